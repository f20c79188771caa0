"""What a model is not for, and what its card cannot tell, as it follows from the facts."""

from .escape import code, listed
from .record import CardRecord, Comparison
from .words import counted, share

SPARSE = 0.5  # the annotated share under which a card points it out
FEW = 30  # annotated pictures under which alignment figures are said to be of few


def picture_words(record: CardRecord) -> str | None:
    """What the model takes."""
    size, channels = record.model.image_size, record.model.channels
    if not size:
        return None
    colour = {1: "grey ", 3: "colour "}.get(channels or 0, "")
    return f"It takes a {colour}picture, brought to {size[0]} × {size[1]} pixels (height × width)."


def not_for(record: CardRecord) -> list[str]:
    """What the model is not for, as it follows from the facts."""
    known = [
        "Decisions about people, patients or products without a validation of your own, on your own pictures.",
    ]
    if record.model.label_names:
        known.append(
            f"Pictures of anything else than its {counted(len(record.model.label_names), 'class', 'classes')}: it "
            "names one of them whatever it is shown."
        )
    outside = [result for result in record.results if result.out_of_distribution]
    tested = f"; {listed(one.name for one in outside)} above shows one such case" if outside else ""
    known.append(
        f"Pictures from sources unlike those of the training pictures: other sites, devices, generators{tested}."
    )
    if any(method.transforms_evaluation for method in (record.training.methods if record.training else [])):
        known.append(
            "Pictures without saliency: the figures above were measured on pictures whose surroundings were removed "
            "with the help of the annotation, which a user does not have."
        )
    return known


def limits(record: CardRecord) -> list[str]:
    """What the card cannot tell, and what its figures do not mean."""
    training, found = record.training, []
    guided = training is not None and bool(training.methods)
    if record.results and training is not None:
        seed = "" if training.seed is None else f" (seed {training.seed})"
        found.append(
            f"The figures are of one training run{seed}. Another seed gives others, and the intervals do not say how "
            "far off."
        )
    if not any(result.metrics for result in record.results):
        found.append("No figure of how well it classifies was recorded.")
    elif not any(result.out_of_distribution or result.dataset for result in record.results):
        found.append(
            "No set above is marked as coming from other sources than the training pictures: how it does on such "
            "pictures is not known."
        )
    if any(result.key == ("train", None) for result in record.results):
        found.append("The figures of `train` are of the training pictures: they say nothing of others.")
    if guided and not _beside(record, record.baseline):
        found.append("No unguided baseline stands beside it: whether guidance helped cannot be told from this card.")
    elif guided and training is not None and training.control is None and not _beside(record, record.inverted):
        found.append(
            "No control with inverted saliency stands beside it: whether a gain comes from the annotation, or from "
            "any additional term, cannot be told from this card."
        )
    for title, other in (("unguided baseline", record.baseline), ("inverted control", record.inverted)):
        theirs = None if other is None else other.seed
        if training is not None and None not in (theirs, training.seed) and theirs != training.seed:
            found.append(f"The {title} was trained with another seed, {theirs}.")
        if other is not None and other.arguments:
            told = ", ".join(code(f"{name}={value}") for name, value in sorted(other.arguments.items()))
            found.append(f"The {title} was trained with other arguments than this model: {told}.")
    if record.selected_on and any(result.key == (record.selected_on, None) for result in record.results):
        by = f" by {code(record.selected_by)}" if record.selected_by else ""
        found.append(f"The weights were chosen on {code(record.selected_on)}{by}: its figures are optimistic.")
    found += _annotation_limits(record, guided)
    if any(result.alignment for result in record.results):
        found.append(
            "Maps that agree better with the annotation do not make a better model: they say where the evidence lies, "
            "not whether the answer is right."
        )
    return found


def _beside(record: CardRecord, other: Comparison | None) -> bool:
    """Whether another model was measured on a set that this one was measured on."""
    known = {result.key for result in record.results if result.metrics}
    return other is not None and any(result.key in known for result in other.results)


def _annotation_limits(record: CardRecord, guided: bool) -> list[str]:
    found = []
    train = next((split for split in record.data.splits if split.name == "train"), None) if record.data else None
    annotated = train.annotated if guided and train is not None else None
    if train is not None and annotated is not None and annotated < SPARSE * train.pictures:
        found.append(
            f"{annotated:,} of {counted(train.pictures, 'training picture')} ({share(annotated, train.pictures)}) are "
            "annotated; guidance did nothing for the others."
        )
    few = [result for result in record.results if result.alignment and result.annotated < FEW]
    if few:
        found.append(
            "Agreement with the annotation was measured on few pictures: "
            + ", ".join(f"{result.annotated} of {code(result.name)}" for result in few)
            + "."
        )
    return found
