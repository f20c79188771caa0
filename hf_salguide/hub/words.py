"""Sentences and tables of a card, each from the facts of its record."""

import math
from collections.abc import Callable, Iterable, Sequence

from .escape import code, listed, markdown
from .record import CardRecord, Measured, MethodFacts, SplitResult
from .results import accuracy_difference

METRICS = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "calibration error (lower is better)",
}
ALIGNMENT = {
    "energy_inside": (
        "energy inside",
        "the share of a map's positive evidence that lies inside the annotation, from 0 to 1",
    ),
    "iou": ("IoU", "the annotated area's overlap with as many of the map's highest pixels, from 0 to 1"),
    "pointing_game": ("pointing game", "the share of pictures whose map has its maximum inside the annotation"),
    "spearman": ("rank correlation", "Spearman's correlation of the map with the annotation, from −1 to 1"),
}
SYMBOLS = {
    "CAM_y": "`CAM_y` is the map of the true class",
    "CAM_other": "`CAM_other` that of the other class, or of the others together",
    "minmax": "`minmax` stretches a map to 0 to 1",
    "S": "`S` is the annotated saliency, from 0 to 1",
    "z_": "`z` are the logits",
    "x~": "`x~` is the picture with what lies outside of the saliency shuffled",
    "a(x)": "`a` are the model's activations",
    "D(": "`D` is a discriminator that is trained along",
}


SHOWN = 30  # class names in a card
CERTAIN, FEW_OF_A_CLASS = 0.99, 30  # beyond, and below, resamples hardly vary


def figure(measured: Measured | None) -> str:
    """A figure with its interval: `0.931 (0.900 to 0.958)`."""
    if measured is None:
        return ""
    return f"{measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f})".replace("-", "−")


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def counted(number: int, what: str, several: str | None = None) -> str:
    """A number of things: `1 picture`, `1,013 pictures`."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def list_item(text: str) -> str:
    """A user's Markdown at the end of a list: as one item, or as the items that it is made of."""
    if text.startswith(("- ", "* ")):
        return text
    first, *others = text.splitlines()
    return "\n".join([f"- {first}", *(f"  {line}".rstrip() for line in others)])


# ---- Results ----


def ordered(record: CardRecord) -> list[SplitResult]:
    """The results, those out of distribution last."""
    return sorted(record.results, key=lambda result: result.out_of_distribution)


def results_table(record: CardRecord) -> str | None:
    """The classification figures, beside those of the baseline and the control."""
    return _side_by_side(
        record, METRICS, lambda result: result.metrics, lambda result, _: f"{result.pictures:,}", "pictures"
    )


def alignment_table(record: CardRecord) -> str | None:
    """The alignment of the maps, beside those of the baseline and the control."""
    names = {name: title for name, (title, _) in ALIGNMENT.items()}
    return _side_by_side(
        record, names, lambda result: result.alignment, lambda _, found: f"{found.pictures:,}", "pictures"
    )


def _side_by_side(
    record: CardRecord,
    names: dict[str, str],
    figures: Callable[[SplitResult], dict[str, Measured]],
    count: Callable[[SplitResult, Measured], str],
    counts: str,
) -> str | None:
    others = [
        (title, {result.key: figures(result) for result in other.results})
        for title, other in (("unguided baseline", record.baseline), ("inverted control", record.inverted))
        if other is not None and any(figures(result) for result in other.results)
    ]
    rows = []
    for result in ordered(record):
        own, name = figures(result), set_name(result)
        for metric in names:
            if metric in own:
                cells = [_figure_beside(own[metric], found.get(result.key, {}).get(metric)) for _, found in others]
                rows.append([name, count(result, own[metric]), names[metric], figure(own[metric]), *cells])
    columns = ["set", counts, "figure", "this model", *(title for title, _ in others)]
    return table(columns, rows) if rows else None


def _figure_beside(own: Measured, other: Measured | None) -> str:
    """Another model's figure; with its number of pictures where that is not the same."""
    differs = other is not None and other.pictures != own.pictures
    return figure(other) + (f", {counted(other.pictures, 'picture')}" if other is not None and differs else "")


def set_name(result: SplitResult) -> str:
    """A set's name in a table, with what is known of it."""
    where = f", {markdown(result.dataset)}" if result.dataset else ""
    return f"{code(result.name, in_table=True)}{where}{', out of distribution' if result.out_of_distribution else ''}"


def comparison_words(record: CardRecord) -> str | None:
    """What the models beside this one are."""
    known = []
    if record.baseline is not None:
        known.append("The unguided baseline is of the same architecture, trained on the same data without guidance.")
    if record.inverted is not None:
        known.append(
            "The inverted control was guided by `1 - S`, away from what is annotated: where it does as well, a gain "
            "is not due to the annotation."
        )
    return " ".join(known) or None


def place(result: SplitResult) -> str:
    """A set's name in a sentence, with its data set where that is another than that of the training."""
    return code(result.name) + (f" of {markdown(result.dataset)}" if result.dataset else "")


def verdicts(record: CardRecord) -> list[str]:
    """How the accuracy differs from that of the baseline and of the control, in a sentence a set."""
    found = []
    for result in ordered(record):
        sentences = []
        for title, other in (
            ("the unguided baseline's", record.baseline),
            ("the inverted control's", record.inverted),
        ):
            theirs = next((one for one in other.results if one.key == result.key), None) if other else None
            if theirs is not None and {"accuracy"} <= result.metrics.keys() & theirs.metrics.keys():
                sentences.append(_difference(result, theirs, title))
        if sentences:
            found.append(f"On {place(result)}, the accuracy is {', and '.join(sentences)}.")
    return found


def _difference(own: SplitResult, other: SplitResult, title: str) -> str:
    gap = own.metrics["accuracy"].value - other.metrics["accuracy"].value
    side = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}" if round(abs(gap), 3) else "equal to"
    measured = accuracy_difference(own, other)
    if measured is None:
        return f"{side} {title}"
    ends = f"95 % interval of the difference {signed(measured.low)} to {signed(measured.high)}"
    doubtful = ": no evidence of a difference" if measured.low <= 0 <= measured.high else ""
    return f"{side} {title} ({ends}{doubtful})"


def signed(value: float) -> str:
    """A difference: `+0.063`, `−0.012`."""
    return f"{value:+.3f}".replace("-", "−")


def interval_words(record: CardRecord) -> str:
    """What the intervals are."""
    grouped = [result for result in record.results if result.groups]
    unit = "subjects" if grouped and len(grouped) == len(record.results) else "pictures"
    if grouped and unit == "pictures":
        unit = f"pictures (subjects on {listed(result.name for result in grouped)})"
    text = (
        f"In brackets: 95 % intervals, by bootstrap over {unit}. They say how far a figure would move with other "
        f"{unit.partition(' ')[0]} of the same kind, not with another training."
    )
    if any(result.right for result in record.results) and verdicts(record):
        text += " Those of differences are for the same pictures under both models (Bonett and Price, 2012)."
    compared = [other.results for other in (record.baseline, record.inverted) if other is not None]
    classes = max(2, len(record.model.label_names))
    shown = [one for results in (record.results, *compared) for one in results if "auroc" in one.metrics]
    if any(one.metrics["auroc"].value > CERTAIN or one.pictures < FEW_OF_A_CLASS * classes for one in shown):
        text += (
            f" Those of an AUROC above {CERTAIN}, or with fewer than about {FEW_OF_A_CLASS} pictures of a class, are "
            "too narrow."
        )
    return text


def alignment_words(record: CardRecord) -> list[str]:
    """What the alignment figures mean, those that there are."""
    present = [name for name in ALIGNMENT if any(name in result.alignment for result in record.results)]
    return [f"{ALIGNMENT[name][0]}: {ALIGNMENT[name][1]}" for name in present]


def sentence(text: str) -> str:
    """A user's text with a full stop."""
    return text if text.endswith((".", "!", "?", ":", ")")) else f"{text}."


# ---- The method ----


def summary(record: CardRecord) -> str:
    """What the model is, in a sentence."""
    model, training = record.model, record.training
    kind = "An image classifier"
    if model.architecture:
        article = "An" if model.architecture[:1].lower() in "aeiou" else "A"
        kind = f"{article} {code(model.architecture)} image classifier"
    if model.library == "peft":
        kind = f"Adapters (PEFT) for {kind[0].lower()}{kind[1:]}"
    classes = f" of {counted(len(model.label_names), 'class', 'classes')}" if model.label_names else ""
    kind += f" ({size_words(model.parameters)} parameters)" if model.parameters else ""
    if training is None:
        return f"{kind}{classes}."
    start = f"fine-tuned from {hub_link(model.base_model)}" if model.base_model else "trained"
    if training.continued:
        start = f"trained on from weights that had been guided by {listed(training.continued)},"
    if not training.methods:
        return f"{kind}{classes}, {start} plainly, without saliency guidance."
    kinds = {"random": " with random saliency", "inverted": " with inverted saliency"}
    kind_of_saliency = kinds.get(training.control or "", "")
    return f"{kind}{classes}, {start} under saliency guidance by {method_names(training.methods)}{kind_of_saliency}."


def outcome(record: CardRecord) -> str | None:
    """How often it is right, in and out of distribution, in a sentence."""
    known = [result for result in ordered(record) if "accuracy" in result.metrics]
    inside = [result for result in known if not (result.out_of_distribution or result.dataset)]
    inside = [result for result in inside if result.key == ("test", None)] or inside[-1:]
    told = [
        f"{figure(result.metrics['accuracy'])} on {counted(result.pictures, 'picture')} of {place(result)}"
        f"{', which come from elsewhere than those of its training' if result.out_of_distribution else ''}"
        for result in inside + [result for result in known if result.out_of_distribution or result.dataset]
    ]
    return f"Its accuracy is {'; and '.join(told)}." if told else None


def size_words(parameters: int) -> str:
    """A number of parameters, to two digits: `11 million`."""
    for word, unit in (("billion", 1e9), ("million", 1e6)):
        if parameters >= unit:
            return f"{parameters / unit:.2g} {word}" if parameters < 100 * unit else f"{parameters / unit:.0f} {word}"
    return f"{parameters:,}"


def class_words(record: CardRecord) -> str:
    """The classes, or the first of many."""
    names = record.model.label_names
    shown = listed(names) if len(names) <= SHOWN else ", ".join(code(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} others, in `config.json`"


def auroc_words(record: CardRecord) -> str | None:
    """What the AUROC is of, where there is one."""
    names = record.model.label_names
    if not names or not any("auroc" in result.metrics for result in record.results):
        return None
    if len(names) > 2:
        return "AUROC: the mean over the classes of each one against the others."
    return f"AUROC: of {code(names[1])} against {code(names[0])}."


def method_names(methods: Iterable[MethodFacts]) -> str:
    """The methods' names as code."""
    return listed(method.name for method in methods)


def hub_link(identifier: str, datasets: bool = False) -> str:
    """A link to what has an id on the Hub."""
    return f"[{markdown(identifier)}](https://huggingface.co/{'datasets/' if datasets else ''}{identifier})"


def control_words(record: CardRecord) -> str | None:
    """That the model is a control, where it is one."""
    control = None if record.training is None or not record.training.methods else record.training.control
    if control is None:
        return None
    how = {
        "random": "every saliency map was replaced by a random one",
        "inverted": "every saliency map `S` was replaced by `1 - S`, which points away from the annotation",
    }[control]
    return (
        f"**This is a control, not a model to use.** In its training {how}. It is there to be compared with: if it "
        "does as well as the model of the true saliency, the gain of that model is not due to where the annotation is."
    )


def loss_words(record: CardRecord) -> str | None:
    """The loss as it was weighted."""
    training = record.training
    if training is None:
        return None
    terms = [method for method in training.methods if not method.transforms_inputs]
    if not terms:
        return None
    task = training.hyperparameters.get("compute_loss_func", "cross-entropy")
    parts = [] if training.task_weight is None else [f"{training.task_weight:g} · {task}"]
    parts += [f"{method.weight:g} · {method.name}" for method in terms if method.weight is not None]
    return " + ".join(parts)


def symbol_words(methods: Sequence[MethodFacts]) -> str | None:
    """What the signs of the formulae mean."""
    formulae = " ".join(method.formula or "" for method in methods)
    known = [words for sign, words in SYMBOLS.items() if sign in formulae]
    chosen = {method.options.get("cam_class", "true") for method in methods if "CAM_y" in (method.formula or "")}
    if chosen == {"predicted"}:
        known = [words.replace("the true class", "the predicted class") for words in known]
    return f"{'; '.join(known)}." if known else None


def options_words(method: MethodFacts) -> str | None:
    """The options of a method that are not the default."""
    return ", ".join(code(f"{name}={value!r}") for name, value in sorted(method.options.items())) or None


def share(part: int, whole: int) -> str:
    """A share in percent."""
    percent = 100 * part / whole
    if 99.5 <= percent < 100:
        return f"{percent:.1f} %" if percent < 99.95 else "nearly 100 %"
    return f"{percent:.0f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if round(seconds / size, 2) >= 1:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"
