"""Adversarial ActDiff: a discriminator cannot tell the features of a picture from those of the destroyed one."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..maps import FILLS, degrade_outside
from ..names import POOLED
from ..rng import preserve_rng
from .base import BatchNorm, GuidanceBatch, Pictures, StatefulGuidance, check_choice, check_positive, is_count
from .registry import register_guidance


@register_guidance
class ActDiffAdversarial(StatefulGuidance):
    """
    Adversarial ActDiff (Viviano, Simpson, Dutil, Bengio, Cohen, "Saliency is a Possible Red Herring When Diagnosing
    Poor Generalization", ICLR 2021, arXiv 1910.00199).

    For sample `i`, `BCE(D(a(x_i)), 0) + BCE(D(a(x~_i)), 1)`: `a` is the vector that the classifier's last layer reads,
    `x~` the destroyed picture of [`ActDiff`], and `D` a perceptron, its hidden layers spectrally normalised, that is
    trained the other way round, to give 1 for `a(x)` and 0 for `a(x~)`: `discriminator_steps` steps of Adam at the
    end of each optimizer step, on all its pictures. The gradient flows through both branches to the model, not to `D`.

    Where it departs from the authors' code: the classifier is trained in every step (the code drops the gradients of
    all but one in `n` batches for `n` steps of `D`); evaluation trains nothing; the term is that of `D` as it was at
    the start of the optimizer step, so that accumulation and processes change nothing; the weight of the term does not
    scale the loss of `D`; `D` gives logits, which do not saturate.

    Args:
        discriminator_steps (`int`, *optional*, defaults to 1): steps of `D` for each one of the model, 1 or above.
        discriminator_learning_rate (`float`, *optional*, defaults to 1e-3): of `D`'s Adam.
        hidden_sizes (`list[int]`, *optional*, defaults to `(1024, 1024, 1024)`): widths of `D`'s hidden layers.
        fill (`str`, *optional*, defaults to `"shuffle"`): what is put outside, `"shuffle"`, `"zero"`, `"mean"`,
            `"noise"` or `"blur"`, see [`~maps.fill_pictures`].
        sigma (`float`, *optional*, defaults to 16.0): standard deviation of `"blur"`, in pixels.
        batch_norm (`str`, *optional*, defaults to `"pictures"`): see [`Guidance`].
    """

    name: ClassVar[str] = "actdiff_adversarial"
    paper: ClassVar[str] = (
        "Viviano et al., Saliency is a Possible Red Herring When Diagnosing Poor Generalization, ICLR 2021, "
        "arXiv 1910.00199"
    )
    formula: ClassVar[str] = "BCE(D(a(x)), 0) + BCE(D(a(x~)), 1), x~ = S*x + (1-S)*shuffle(x)"
    cost: ClassVar[str] = "views"
    draws: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False
    layers: tuple[str, ...] = (POOLED,)

    def __init__(
        self,
        discriminator_steps: int = 1,
        discriminator_learning_rate: float = 1e-3,
        hidden_sizes: Sequence[int] = (1024, 1024, 1024),
        fill: str = "shuffle",
        sigma: float = 16.0,
        batch_norm: BatchNorm = "pictures",
    ) -> None:
        if not is_count(discriminator_steps):
            raise ValueError(f"discriminator_steps={discriminator_steps!r} has to be a whole number, 1 or above.")
        if not isinstance(hidden_sizes, list | tuple) or not all(is_count(size) for size in hidden_sizes):
            raise ValueError(f"hidden_sizes={hidden_sizes!r} has to be a list of whole numbers, 1 or above.")
        self.discriminator_steps = discriminator_steps
        self.discriminator_learning_rate = check_positive("discriminator_learning_rate", discriminator_learning_rate)
        self.hidden_sizes = tuple(hidden_sizes)
        self.fill = check_choice("fill", fill, FILLS)
        self.sigma = check_positive("sigma", sigma)
        self.batch_norm = check_choice("batch_norm", batch_norm, get_args(BatchNorm))
        self._trained: tuple[nn.Sequential, torch.optim.Adam] | None = None
        self._width = 0
        self.forget()

    def views(self, pictures: Pictures) -> list[Tensor]:
        pixels = pictures.pixel_values.detach()
        return [degrade_outside(pixels, pictures.saliency, pictures.uniform, self.fill, self.sigma)]

    def terms(self, batch: GuidanceBatch) -> Tensor:
        self._pictures += len(batch.logits) if batch.training else 0
        if not batch.views:  # no row counts
            return batch.logits.new_zeros(len(batch.logits))
        picture, view = batch.of_annotated(batch.features[POOLED]), batch.views[0].features[POOLED]
        if batch.training:
            self._seen.append((picture.detach(), view.detach()))
        of_picture, of_view = self._scores(picture, view)
        # With logits, BCE(., 0) is softplus(logit) and BCE(., 1) is softplus(-logit).
        return batch.to_batch(F.softplus(of_picture) + F.softplus(-of_view))

    def setup(self, sizes: Mapping[str, torch.Size], device: torch.device, seed: int) -> None:
        self._width = sizes[POOLED].numel()
        widths = [self._width, *self.hidden_sizes]
        with preserve_rng():
            torch.default_generator.manual_seed(seed)  # the CPU's alone: those of other devices are not touched
            layers: list[nn.Module] = []
            for width, following in pairwise(widths):
                layers += [spectral_norm(nn.Linear(width, following)), nn.ReLU()]
            discriminator = nn.Sequential(*layers, nn.Linear(widths[-1], 1)).to(device)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=self.discriminator_learning_rate)
        self._trained = discriminator.eval().requires_grad_(False), optimizer
        self.forget()

    def step(self, average: Callable[[list[Tensor]], None]) -> None:
        discriminator, optimizer = self._state
        parameters = list(discriminator.parameters())
        empty = parameters[0].new_zeros(0, self._width)  # a process without annotated rows takes part as well
        picture = torch.cat([empty, *(picture for picture, _ in self._seen)])
        view = torch.cat([empty, *(view for _, view in self._seen)])
        pictures = max(self._pictures, 1)
        self.forget()
        rows = empty.new_full((1,), len(picture))
        average([rows])
        if rows.item() == 0:
            return
        discriminator.train().requires_grad_(True)
        for _ in range(self.discriminator_steps):
            of_picture, of_view = self._scores(picture, view)
            loss = (F.softplus(-of_picture) + F.softplus(of_view)).sum() / pictures
            gradients = list(torch.autograd.grad(loss, parameters))
            average(gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad()
        discriminator.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        discriminator, optimizer = self._state
        return {"discriminator": discriminator.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        discriminator, optimizer = self._state
        discriminator.load_state_dict(state["discriminator"])
        optimizer.load_state_dict(state["optimizer"])
        self.forget()

    @property
    def _state(self) -> tuple[nn.Sequential, torch.optim.Adam]:
        if self._trained is None:
            raise RuntimeError(f'guidance="{self.name}" has no discriminator yet; call setup first.')
        return self._trained

    def _scores(self, picture: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's logits, from one forward: in training each forward is a power iteration."""
        of_picture, of_view = self._state[0](torch.cat([picture, view])).squeeze(1).tensor_split(2)
        return of_picture, of_view

    def forget(self) -> None:
        """Forgets what the discriminator is to be trained on: features, and the number of pictures they are of."""
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._pictures = 0
