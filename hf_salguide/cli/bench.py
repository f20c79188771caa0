"""`hf-salguide bench`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .common import writable, write_json
from .parsing import parse, parse_model


@dataclass
class BenchArguments:
    """What is measured."""

    models: list[str] = field(
        default_factory=lambda: [
            "resnet18",
            "vit_tiny_patch16_224:global_pool=avg",
            "vit_tiny_patch16_224",
        ],
        metadata={"help": "timm names, with keyword arguments after a colon: name:key=value,key=value."},
    )
    methods: list[str] = field(
        default_factory=lambda: ["cyborg"],
        metadata={"help": "Guidance methods, with their options after a colon: gradmask:at=features."},
    )
    image_size: int = field(default=224, metadata={"help": "Side of the pictures in pixels."})
    batch_size: int = field(default=8, metadata={"help": "Pictures a step."})
    annotated: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Shares of the pictures that have saliency."}
    )
    repeats: int = field(default=20, metadata={"help": "Pairs of a plain and a guided step."})
    memory: bool = field(default=True, metadata={"help": "Measure peak memory, each variant in its own process."})
    loader: bool = field(default=True, metadata={"help": "Measure how fast pictures are read and transformed."})
    json: str | None = field(default=None, metadata={"help": "File for the figures as JSON."})


def run(argv: Sequence[str]) -> int:
    """The cost of a guided step as a multiple of the plain step: one run, interleaved, median and quartiles."""
    (args,) = parse([BenchArguments], argv, "bench", run.__doc__ or "")
    from ..guidance import get_guidance
    from ..studies.bench import BenchMethod, BenchSetting, bench, bench_table, cost_table, loader_rate

    methods = [BenchMethod(*parse_model("methods", name)) for name in args.methods]
    for method in methods:
        get_guidance(method.name, **method.options)
    if args.repeats < 1:
        raise ValueError(f"repeats={args.repeats} measures nothing; give at least 1.")
    if args.json:
        writable("json", args.json)
    results = []
    for name in args.models:
        model, model_args = parse_model("models", name)
        plain_bytes = None
        for method in methods:
            for share in args.annotated:
                setting = BenchSetting(model, model_args, args.image_size, args.batch_size, share)
                results.append(bench(setting, method, args.repeats, args.memory, plain_bytes))
                plain_bytes = results[-1].plain_bytes
    print(bench_table(results))
    print(f"\nTime and peak memory, guided / plain:\n{cost_table(results)}")
    content: dict[str, Any] = {"steps": [dataclasses.asdict(result) for result in results]}
    if args.loader:
        rates = loader_rate(args.image_size)
        content["loader"] = rates
        for kind, rate in rates.items():
            print(f"One process reads and transforms {rate:.0f} pictures ({kind}) a second to {args.image_size} px.")
    if args.json:
        print(f"Written to {write_json(args.json, content)}")
    return 0
