"""What is wrong with a data set, and what it holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """
    One thing that is wrong.

    Args:
        severity (`str`): `"error"` (the data set cannot be used so) or `"warning"`.
        file (`str` or `None`): the file it is about, where it is about one.
        message (`str`): what was met.
        remedy (`str`): what to do.
    """

    severity: Literal["error", "warning"]
    file: str | None
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"{where}{self.message}{'; ' + self.remedy if self.remedy else ''}"


@dataclass
class CheckReport:
    """
    The result of a check.

    Args:
        problems (`list[Problem]`): all that were found, errors first.
        summary (`dict`): what the data set holds; plain numbers, strings, lists and dictionaries, so that it can be
            written as JSON.
    """

    problems: list[Problem] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    def raise_for_errors(self, what: str) -> None:
        """Raises a `ValueError` that lists the first errors, if there are any."""
        raise_errors(self.errors, what)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"summary": self.summary, "problems": [vars(problem) for problem in self.problems]}

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.summary.items()]
        lines += [f"{problem.severity.upper()} {problem}" for problem in self.problems]
        return "\n".join([*lines, f"{len(self.errors)} errors, {len(self.warnings)} warnings"])


def raise_errors(problems: Sequence[Problem], what: str) -> None:
    """Raises one `ValueError` for a list of problems, naming the first few and counting the rest."""
    if not problems:
        return
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
    rest = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ValueError(f"{what}: {count}.\n{shown}{rest}")
