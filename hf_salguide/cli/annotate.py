"""`hf-salguide annotate`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import DatasetDict

from .common import DataArguments, load_model, split_of, table, writable
from .parsing import parse


@dataclass
class AnnotateArguments(DataArguments):
    """Which pictures, by which teacher."""

    model: str = field(default="", metadata={"help": "Folder or Hub id of the teacher, a guided model."})
    splits: list[str] = field(
        default_factory=lambda: ["train"],
        metadata={"help": "Splits that get the teacher's maps; the others keep human saliency alone."},
    )
    method: str = field(default="auto", metadata={"help": "auto, cam, gradcam, hirescam or input_gradient."})
    map_class: str = field(default="true", metadata={"help": "Whose map is taken, true or predicted."})
    batch_size: int = field(default=32, metadata={"help": "Pictures a forward."})
    output_dir: str = field(default="annotated", metadata={"help": "A new folder, which --data takes afterwards."})


def run(argv: Sequence[str]) -> int:
    """A copy of a data set in which pictures that nobody annotated have a teacher's maps as saliency."""
    (args,) = parse([AnnotateArguments], argv, "annotate", run.__doc__ or "", "data")
    from ..studies.pseudo_saliency import SOURCE, pseudo_saliency, record_source

    output = writable("output_dir", args.output_dir, folder=True)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f'output_dir="{output}" is not empty; name a new folder.')
    model = load_model(args.model)
    dataset = args.load_for(model)
    for name in args.splits:
        split_of(dataset, "splits", name)
    annotated = DatasetDict(
        {
            name: pseudo_saliency(model, split, args.method, args.map_class, args.batch_size)
            if name in args.splits
            else record_source(split)
            for name, split in dataset.items()
        }
    )
    annotated.save_to_disk(str(output))  # with the pictures inside
    counts = {name: Counter(split[SOURCE]) for name, split in annotated.items()}
    rows = [[name, *(count[source] for source in ("human", "teacher", None))] for name, count in counts.items()]
    print(table(["split", "human", "teacher", "no saliency"], rows))
    print(f"Data set in {output}: hf-salguide train --data {output}")
    return 0
