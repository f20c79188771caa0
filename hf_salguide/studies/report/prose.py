"""How a comparison was made and how its report is read, in sentences."""

from typing import TYPE_CHECKING

from ..comparison.records import Study
from ..comparison.words import metric_name
from . import text as words

if TYPE_CHECKING:
    from ..comparison.findings import Analysis


def how_it_was_made(study: Study, analysis: "Analysis") -> list[str]:
    """Data, training, budget, selection and statistics, a paragraph each, from the study's settings."""
    settings = study.settings
    metric = metric_name(analysis.metric)
    training = settings.get("training") or {}
    size, epochs = settings.get("image_size"), training.get("num_train_epochs")
    splits = settings["splits"]
    start = "pretrained weights" if settings.get("pretrained") else "random weights"
    how_long = f" for {epochs:g} epochs" if isinstance(epochs, int | float) else ""
    resolution = f"{size} pixels" if isinstance(size, int) else "the model’s own size" if size is None else str(size)
    outside = f"and, out of distribution, on “{splits['out']}”" if splits.get("out") else "and on no other test set"
    backbones = ", ".join(settings.get("backbones") or dict.fromkeys(run.backbone for run in study.runs))
    return [
        f"Every run trained {backbones} from {start} on pictures of {resolution}{how_long}; runs of one seed share "
        f"the initial weights, the order of the pictures and their augmentation. It was judged on “{splits['in']}” "
        f"{outside}.",
        f"Hyper-parameters. {settings.get('budget') or 'The budget was not recorded.'}",
        f"Selection. The epoch that was kept is the best by {metric} on the validation split. No test picture was "
        "looked at for it.",
        *analysis.explanation,
        "Rank tests are not used with fewer than 8 seeds: they can hardly reject there, whatever the effect.",
        f"Intervals are at {words.percent(analysis.level)}.",
        "Correlations are Pearson’s, over all runs that did not fail, and within the arms, each arm’s means taken "
        "off. The first mixes what methods do with what runs do; the second does not.",
    ]


def how_to_read(analysis: "Analysis") -> list[str]:
    """The words of the report, explained."""
    return [
        "Arm: a way of training. Plain is training without guidance; the others are named by their method, and what "
        "stands in brackets is a control’s saliency. The numbers are the same in tables and plots.",
        "Difference to plain: the mean over seeds of an arm’s figure minus that of plain training with the same seed. "
        "An interval that includes 0 is no evidence for a difference.",
        "No evidence of a difference is not evidence of none: compare with the smallest difference that could be "
        "found.",
        "Energy inside the annotation: the share of a map’s positive evidence that lies where people annotated, from "
        "0 to 1; only annotated pictures count. The class map is that of the predicted class, the difference map that "
        "of the true class minus the others.",
        "In-distribution: test pictures from the sources of the training pictures. Out-of-distribution: from other "
        "sources, where a shortcut may stop helping.",
        "A control that helps as much as its method says that the gain is not owed to the human saliency.",
    ]
