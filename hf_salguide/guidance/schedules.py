"""Schedules of the guidance weight: pure functions of how far training is, so that a resumed run needs no state."""

import math

ADAPTIVE = "adaptive"
_SCHEDULES = (
    "constant",
    ADAPTIVE,
    "linear_increase",
    "linear_decrease",
    "cosine_decrease",
    "warmup:FRACTION",
    "after:FRACTION",
)


def schedule_factor(schedule: str, progress: float) -> float:
    """
    The factor by which the guidance weight is multiplied.

    Args:
        schedule (`str`): `"constant"` (1), `"adaptive"` (1: the weights come from the losses), `"linear_increase"`
            (0 to 1), `"linear_decrease"` and `"cosine_decrease"` (1 to 0), `"warmup:0.1"` (0 to 1 over the first
            tenth of training, then 1) or `"after:0.2"` (0 for the first fifth, then 1).
        progress (`float`): optimizer steps done over all steps, in [0, 1].

    Returns:
        `float` in [0, 1].

    Raises:
        ValueError: for an unknown schedule, or a fraction that does not lie in (0, 1].
    """
    if schedule in ("constant", ADAPTIVE):
        return 1.0
    if schedule == "linear_increase":
        return progress
    if schedule == "linear_decrease":
        return 1.0 - progress
    if schedule == "cosine_decrease":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    kind, _, text = str(schedule).partition(":")
    if kind in ("warmup", "after"):
        try:
            fraction = float(text)
        except ValueError:
            fraction = math.nan
        if not 0.0 < fraction <= 1.0:
            raise ValueError(
                f'guidance_schedule="{schedule}": {kind} takes a fraction of training in (0, 1], such as "{kind}:0.1".'
            )
        return min(1.0, progress / fraction) if kind == "warmup" else float(progress >= fraction)
    raise ValueError(f'guidance_schedule="{schedule}" is not known; choose one of {", ".join(_SCHEDULES)}.')
