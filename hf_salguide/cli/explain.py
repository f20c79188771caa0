"""`hf-salguide explain`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..maps import RIVALS
from .chosen import ChosenArguments, all_rows, chosen_rows
from .common import load_model, table, writable
from .parsing import parse

if TYPE_CHECKING:
    from ..studies.explanation.difference import DifferenceStudy

TOOLS = ("maps", "difference")
LISTED = 5


@dataclass
class ExplainArguments(ChosenArguments):
    """Which pictures, by which model, with which tool."""

    model: str = field(default="", metadata={"help": "Folder or Hub id (owner/name, owner/name@revision) of a model."})
    tool: str = field(
        default="maps",
        metadata={"help": "maps: of the true and of the other class; difference: what decides between the two."},
    )
    output: str = field(
        default="panel.png", metadata={"help": "The picture of the chosen rows that is written: .png, .pdf or .svg."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "difference: folder of tables, panels and summary (default, for all rows: difference)."},
    )
    rival: str | None = field(
        default=None,
        metadata={
            "help": "The other class, of more than two: max, softmax or mean (default: max; difference: softmax)."
        },
    )
    feature_layer: list[str] | None = field(
        default=None,
        metadata={"help": "Module, or modules, where the maps are made (default: the one that was guided)."},
    )
    share: float = field(
        default=0.5, metadata={"help": "difference: a region's cells exceed this share of the map's maximum."}
    )
    figures: str = field(default="png", metadata={"help": "difference: panels in output_dir as png or pdf."})
    panels: int = field(default=6, metadata={"help": "difference: pictures in a panel of output_dir; 0 for none."})
    batch_size: int = field(default=32, metadata={"help": "difference: pictures a forward."})
    num_workers: int = field(default=0, metadata={"help": "difference: processes that read pictures."})


def run(argv: Sequence[str]) -> int:
    """Maps of chosen pictures, or what decides over a data set: Difference Salience, its regions, whom it flatters."""
    (args,) = parse([ExplainArguments], argv, "explain", run.__doc__ or "", "data", "pictures")
    check(args)
    model = load_model(args.model)
    if args.tool == "difference":
        return run_difference(args, model)
    from ..studies.explanation.panels import draw_panel, explain, save_panel

    rows, titles = chosen_rows(args, model)
    rival = args.rival or "max"
    panel = draw_panel(explain(model, rows, rival, args.feature_layer), titles)
    print(f"Panel of {len(rows)} picture(s): {save_panel(panel, args.output)}")
    return 0


def check(args: ExplainArguments) -> None:
    """
    Checks the options before a model is loaded.

    Raises:
        ValueError: for an option out of its range, or one that the tool does not have.
        ImportError: if panels are wanted and matplotlib is missing.
    """
    from ..studies.explanation.difference_files import FIGURES, check_folder
    from ..studies.explanation.figures import require_matplotlib

    if args.tool not in TOOLS:
        raise ValueError(f'tool="{args.tool}" is not known; choose "maps" or "difference".')
    if args.rival is not None and args.rival not in RIVALS:
        raise ValueError(f'rival="{args.rival}" is not known; choose {", ".join(RIVALS)}.')
    if args.figures not in FIGURES:
        raise ValueError(f'figures="{args.figures}" is not known; choose {" or ".join(FIGURES)}.')
    if args.panels < 0:
        raise ValueError(f"panels={args.panels} is negative; give a number of pictures, 0 for no panels.")
    if not 0 <= args.share < 1:
        raise ValueError(f"share={args.share} of a map's maximum is out of range; give 0 or more, and less than 1.")
    if args.batch_size < 1:
        raise ValueError(f"batch_size={args.batch_size} is not a number of pictures; give 1 or more.")
    if args.tool == "maps" and args.output_dir is not None:
        raise ValueError(f'output_dir="{args.output_dir}" goes with --tool difference; name a picture with --output.')
    writable("output", args.output, (".png", ".pdf", ".svg"))
    if folder := output_folder(args):
        check_folder(writable("output_dir", str(folder), folder=True))
    if folder is None or args.panels:
        require_matplotlib()


def is_chosen(args: ExplainArguments) -> bool:
    """Whether pictures were named one by one."""
    return any(option is not None for option in (args.rows, args.files, args.pictures))


def output_folder(args: ExplainArguments) -> Path | None:
    """The folder that the difference tool writes, if it writes one."""
    if args.output_dir is not None:
        return Path(args.output_dir)
    return None if args.tool == "maps" or is_chosen(args) else Path("difference")


def run_difference(args: ExplainArguments, model: PreTrainedModel) -> int:
    """Difference Salience of chosen pictures, as a panel, or of all, as a folder."""
    from ..studies.explanation.difference import study_difference
    from ..studies.explanation.difference_files import summarise, write_study
    from ..studies.explanation.panels import draw_difference, explain, save_panel

    folder, rival = output_folder(args), args.rival or "softmax"
    rows, titles = chosen_rows(args, model) if is_chosen(args) else (all_rows(args, model), None)
    layer = args.feature_layer
    study = study_difference(model, rows, rival, args.share, args.batch_size, args.num_workers, feature_layer=layer)
    if folder is None:
        panel = draw_difference(explain(model, rows, rival, layer), titles)
        print_pictures(study)
        print_notes(summarise(study))
        print(f"Panel of {len(rows)} picture(s): {save_panel(panel, args.output)}")
        return 0
    summary = write_study(study, model, rows, folder, args.figures, args.panels)
    print_study(study, summary)
    print_notes(summary)
    print(f"Written to {folder}")
    return 0


def print_pictures(study: "DifferenceStudy") -> None:
    """A table of chosen pictures."""
    names = study.class_names
    columns = ["picture", "class", "predicted", "contrast (logits)", "inside", "entropy (nats)", "fooling gap"]
    values = [study.contrasts, study.inside, study.entropy, study.fooling_gap]
    rows = [
        [file, names[study.explained[row]], names[study.predicted[row]], *(float(value[row]) for value in values)]
        for row, file in enumerate(study.file_names)
    ]
    print(table(columns, rows))


def print_study(study: "DifferenceStudy", summary: dict[str, Any]) -> None:
    """The means over the pictures, and the first of both lists."""
    words = {
        "inside": "share of the absolute difference on the annotation",
        "positive_inside": "share of its positive part on the annotation",
        "entropy": f"entropy of its positive part, nats (at most {summary['largest_entropy']:.2f})",
        "iou_true": f"IoU with the annotation, map of the {summary['explained']}",
        "iou_difference": "IoU with the annotation, difference",
        "fooling_gap": "fooling gap, the former minus the latter",
    }
    means, counts = summary["means"], summary["counts"]
    rows: list[list[Any]] = [[words[name], means[name], counts[name]] for name in words if counts[name]]
    if study.completeness is not None:
        rows.append(["largest error of completeness, logits", f"{study.completeness.max():.1e}", summary["pictures"]])
    print(table(["over the data set", "mean", "pictures"], rows))
    names = study.class_names
    print(f"\n{len(study.regions)} regions; those with the most evidence:\n")
    columns = ["picture", "class", "evidence (logits)", "share of positive", "inside", "left, top, right, bottom"]
    print(
        table(
            columns,
            [
                [
                    study.file_names[region.row],
                    names[study.explained[region.row]],
                    region.evidence,
                    region.share,
                    region.inside,
                    ", ".join(map(str, region.box)),
                ]
                for region in study.regions[:LISTED]
            ],
        )
    )
    if study.flattering:
        gap = study.fooling_gap
        print(f"\nThe map of the class flatters the model on {len(study.flattering)} pictures; most of all:\n")
        rows = [
            [study.file_names[row], names[study.explained[row]], names[study.predicted[row]], float(gap[row])]
            for row in study.flattering[:LISTED]
        ]
        print(table(["picture", "class", "predicted", "fooling gap"], rows))
    print()


def print_notes(summary: dict[str, Any]) -> None:
    """What is not defined, and why."""
    for note in summary["notes"]:
        print(note)
