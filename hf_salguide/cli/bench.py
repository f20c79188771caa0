"""`hf-salguide bench`."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .common import writable, write_json
from .parsing import parse, parse_model

if TYPE_CHECKING:
    from ..studies.bench import BenchMethod, BenchSetting


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
        metadata={"help": "Guidance methods, with their options after a colon: gradmask:at=features; or all."},
    )
    image_size: list[int] = field(
        default_factory=lambda: [224], metadata={"help": "Sides of the pictures, in pixels."}
    )
    batch_size: list[int] = field(
        default_factory=lambda: [8], metadata={"help": "Pictures a step; with scaling, of all processes together."}
    )
    annotated: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Shares of the pictures that have saliency."}
    )
    repeats: int = field(default=20, metadata={"help": "Turns of all that is compared."})
    device: str | None = field(default=None, metadata={"help": "cpu or cuda (default: cuda where there is one)."})
    bf16: bool = field(default=False, metadata={"help": "Run the models under autocast to bfloat16."})
    compile: bool = field(default=False, metadata={"help": "Compile the models for the steps."})
    compile_backend: str | None = field(
        default=None, metadata={"help": "Backend of torch.compile, which it switches on (default: inductor)."}
    )
    clock: str | None = field(
        default=None,
        metadata={"help": "cpu, the CPU time of the process, or wall (default: cpu on a CPU, wall on a GPU)."},
    )
    threads: int | None = field(default=None, metadata={"help": "Threads of this process (default: torch's own)."})
    steps: bool = field(default=True, metadata={"help": "Measure training steps."})
    memory: bool = field(default=True, metadata={"help": "Measure the steps' peak memory too."})
    against: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Measure map extraction, beside that of torchcam,captum,pytorch-grad-cam, those of them that are "
            "installed; none: ours alone."
        },
    )
    startup: bool = field(default=False, metadata={"help": "Measure start-up, in fresh processes."})
    scaling: bool = field(default=False, metadata={"help": "Measure 2 processes against 1 on this machine's CPU."})
    launches: int = field(default=3, metadata={"help": "Turns of the fresh processes of startup and scaling."})
    loader: bool = field(default=True, metadata={"help": "Measure how fast pictures are read and transformed."})
    json: str | None = field(default=None, metadata={"help": "File for the figures as JSON."})
    plot: str | None = field(default=None, metadata={"help": "File for a plot of the steps, .png, .svg or .pdf."})


def run(argv: Sequence[str]) -> int:
    """What guidance costs: time, memory and arithmetic of a guided step as multiples of the plain step, in turns."""
    (args,) = parse([BenchArguments], argv, "bench", run.__doc__ or "")
    settings, methods, installed = _checked(args)
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    from ..studies.bench import bench, bench_extraction, bench_loader, bench_scaling, bench_startup
    from ..studies.bench.loader import loader_table
    from ..studies.bench.plot import save_plot
    from ..studies.bench.rivals import rival_versions
    from ..studies.bench.setting import machine
    from ..studies.bench.tables import (
        CLOCKS,
        bench_table,
        cost_table,
        extraction_table,
        machine_line,
        scaling_table,
        startup_table,
    )

    found = {**machine(settings[0].device), **rival_versions(installed)}
    content: dict[str, Any] = {"machine": found}
    print(machine_line(found))
    if args.steps:
        results = [
            result
            for setting in settings
            for result in bench(setting, methods, args.annotated, args.repeats, args.memory, args.clock, report=print)
        ]
        content["steps"] = results
        print(f"\nTraining steps, {CLOCKS[results[0].clock] if results else 'none'}:\n{bench_table(results)}")
        print(f"\nTime (of arithmetic) and peak memory, guided / plain:\n{cost_table(results)}")
        if args.plot and results:
            print(f"Drawn in {save_plot(results, args.plot)}")
    if args.against:
        content["extraction"] = [
            result
            for setting in settings
            for result in bench_extraction(setting, installed, args.repeats, args.clock, report=print)
        ]
        print(f"\nSaliency maps:\n{extraction_table(content['extraction'])}")
    if args.startup:
        content["startup"] = [
            result for setting in settings for result in bench_startup(setting, methods, args.launches, args.clock)
        ]
        print(f"\nStart-up, import to first step:\n{startup_table(content['startup'])}")
    if args.scaling:
        content["scaling"] = [
            result
            for setting in settings
            for share in args.annotated
            for result in bench_scaling(setting, methods, share, args.repeats, args.launches)
        ]
        print(f"\n2 processes against 1, one thread each:\n{scaling_table(content['scaling'])}")
    if args.loader:
        content["loader"] = [result for size in args.image_size for result in bench_loader(size, repeats=args.repeats)]
        print(f"\nReading, one thread:\n{loader_table(content['loader'])}")
    if args.json:
        plain = {name: [dataclasses.asdict(result) for result in content[name]] for name in PARTS if name in content}
        print(f"Written to {write_json(args.json, {**content, **plain})}")
    return 0


PARTS = ("steps", "extraction", "startup", "scaling", "loader")


def _checked(args: BenchArguments) -> "tuple[list[BenchSetting], list[BenchMethod], list[str]]":
    """The settings, methods and installed packages that are asked for, after all checks that cost nothing."""
    import torch

    from ..studies.bench import BenchMethod, BenchSetting
    from ..studies.bench.plot import SUFFIXES, check_plot
    from ..studies.bench.rivals import check_rivals
    from ..studies.bench.scaling import check_shared
    from ..studies.bench.setting import check_settings, every_method
    from ..studies.bench.timing import check_clock, check_repeats

    if not (args.steps or args.against or args.startup or args.scaling or args.loader):
        raise ValueError("steps=false and loader=false leave nothing to measure; give against, startup or scaling.")
    backend = args.compile_backend or ("inductor" if args.compile else None)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = [
        BenchSetting(
            *parse_model("models", name),
            size,
            batch,
            device,
            args.bf16,
            backend,
        )
        for name, size, batch in itertools.product(args.models, args.image_size, args.batch_size)
    ]
    methods = [
        method
        for name in args.methods
        for method in (every_method() if name == "all" else [BenchMethod(*parse_model("methods", name))])
    ]
    check_settings(settings, methods, args.annotated)
    check_clock(args.clock, device)
    for name, count in (("launches", args.launches), ("threads", 1 if args.threads is None else args.threads)):
        if count < 1:
            raise ValueError(f"{name}={count} has to be at least 1.")
    check_repeats(args.repeats)
    named = [name for text in args.against for name in text.split(",") if name and name != "none"]
    installed = check_rivals(named)
    for name in named:
        if name not in installed:
            print(f"{name} is not installed; it is left out.")
    if args.scaling:
        for setting in settings:
            check_shared(setting)
    if args.json:
        writable("json", args.json)
    if args.plot:
        writable("plot", args.plot, SUFFIXES)
        check_plot()
        if not args.steps:
            raise ValueError(f'plot="{args.plot}" draws the steps, and steps=false leaves them out; drop one of them.')
    return settings, methods, installed
