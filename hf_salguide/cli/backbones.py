"""`hf-salguide backbones`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from .common import writable, write_json
from .parsing import parse


@dataclass
class BackbonesArguments:
    """Which families, and what is tried on them."""

    pattern: str | None = field(
        default=None,
        metadata={
            "help": "Families, or models of them, with a shell's wildcards (default: all); else architectures of timm."
        },
    )
    train: bool = field(default=False, metadata={"help": "Train one step with one method of each kind."})
    processes: int = field(default=1, metadata={"help": "Processes, each of one thread."})
    json: str | None = field(default=None, metadata={"help": "File for the rows as JSON."})


def run(argv: Sequence[str]) -> int:
    """What the resolver finds in a small model of each family, with random weights, and whether it holds."""
    (args,) = parse([BackbonesArguments], argv, "backbones", run.__doc__ or "", "pattern")
    from ..studies.survey import survey_all, survey_summary, survey_table, versions
    from ..studies.zoo import families

    if args.processes < 1:
        raise ValueError(f"processes={args.processes} runs nothing; give at least 1.")
    if args.json:
        writable("json", args.json, suffixes=(".json",))
    rows = survey_all(families(args.pattern), args.train, args.processes)
    print(survey_table(rows))
    print(f"\n{survey_summary(rows)}")
    if args.json:
        content = {"versions": versions(), "rows": [dataclasses.asdict(row) for row in rows]}
        print(f"\nWritten to {write_json(args.json, content)}")
    return 0
