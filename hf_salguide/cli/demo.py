"""`hf-salguide demo`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import parse, parse_model


@dataclass
class DemoArguments:
    """The demo on decoy digits."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Where table, JSON and panel are written."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One run of each kind a seed."})
    epochs: int = field(default=8, metadata={"help": "Passes over the training set."})
    model: str = field(
        default="resnet10t:output_stride=16",
        metadata={"help": "timm model from random weights, name:key=value."},
    )
    methods: list[str] = field(
        default_factory=list,
        metadata={"help": "Guidance methods beside plain training, or all (default: cyborg, and cyborg inverted)."},
    )
    image_size: int = field(default=48, metadata={"help": "Side of the pictures in pixels."})


def run(argv: Sequence[str]) -> int:
    """Trains plain and guided models on decoy digits and compares them."""
    (args,) = parse([DemoArguments], argv, "demo", run.__doc__ or "")
    from ..studies.demo import ARMS, arms_of, run_demo

    model_name, model_args = parse_model("model", args.model)
    arms = arms_of(args.methods) if args.methods else ARMS
    run_demo(args.output_dir, args.seeds, args.epochs, model_name, model_args, args.image_size, arms)
    return 0
