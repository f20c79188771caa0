"""Another model beside a card's own: its results, where it is a fair comparison."""

from typing import Any

from .record import CardRecord, Comparison, SplitResult


def compared(record: CardRecord, other: CardRecord | None, role: str) -> Comparison | None:
    """
    What a card shows of another model.

    Args:
        record ([`CardRecord`]): of the model whose card it is.
        other ([`CardRecord`], *optional*): of the other one.
        role (`str`): `"baseline"`, the unguided model, or `"inverted"`, the control with inverted saliency.

    Returns:
        [`Comparison`], or `None` where there is none: with the results on the sets that both were measured on.

    Raises:
        ValueError: if the baseline was guided, the control's saliency was not inverted, or the two models differ in
            architecture, classes, picture size, training data or the pictures of a set of the same name.
    """
    if other is None:
        return None
    training = other.training
    if training is None:
        raise ValueError(
            f"{role} of a card has a record that does not say how the model was trained; give the folder that its "
            "training saved."
        )
    if training.continued:
        raise ValueError(
            f"{role} of a card was trained on from weights that {', '.join(training.continued)} had guided; give one "
            "that started where this model did."
        )
    methods, control = [method.name for method in training.methods], training.control
    if role == "baseline" and methods:
        raise ValueError(
            f"{role} of a card was guided itself, by {', '.join(methods)}; give the model that was trained with "
            'guidance="none".'
        )
    if role == "inverted" and (control != "inverted" or not methods):
        raise ValueError(
            f"{role} of a card was trained with {control or 'human'} saliency"
            f"{'' if methods else ', without any guidance'}; give the model that was trained with "
            "invert_saliency=True."
        )
    own = [] if record.training is None or role == "baseline" else record.training.methods
    if own and [method.name for method in own] != methods:
        raise ValueError(
            f"{role} of a card was guided by {', '.join(methods)}, and this model by "
            f"{', '.join(method.name for method in own)}; give the control of the same method."
        )
    for mine, theirs in zip(own, training.methods, strict=False):
        if (mine.weight, mine.options) != (theirs.weight, theirs.options):
            raise ValueError(
                f"{role} of a card was guided by {theirs.name} with weight {theirs.weight} and {theirs.options}, "
                f"this model with {mine.weight} and {mine.options}; give the control of the same."
            )
    _refuse_others(record, other, role)
    found = Comparison(
        methods=methods,
        control=control,
        seed=training.seed,
        arguments=_differing(record, other),
        results=list(other.results),
    )
    check_pictures(record, found, role)
    return found


def _differing(record: CardRecord, other: CardRecord) -> dict[str, Any]:
    """The other model's training arguments that are not this one's."""
    if record.training is None or other.training is None:
        return {}
    own, theirs = record.training.hyperparameters, other.training.hyperparameters
    names = sorted(own.keys() | theirs.keys())
    found = {name: theirs.get(name, "default") for name in names if own.get(name) != theirs.get(name)}
    # Of a run that is not over yet, the steps are not known.
    if None not in (record.training.steps, other.training.steps) and record.training.seconds is not None:
        for name in ("steps", "runs"):
            if getattr(record.training, name) != getattr(other.training, name):
                found[name] = getattr(other.training, name)
    return found


def check_pictures(record: CardRecord, other: Comparison | None, role: str) -> None:
    """
    Checks that sets of the same name hold the same pictures.

    Raises:
        ValueError: if they differ in number, or in the order of their classes.
    """
    theirs = {result.key: result for result in other.results} if other is not None else {}
    for result in record.results:
        if result.key in theirs:
            _refuse_other_pictures(result, theirs[result.key], role)


def _refuse_others(record: CardRecord, other: CardRecord, role: str) -> None:
    for what, ours, theirs in (
        ("architecture", record.model.architecture, other.model.architecture),
        ("classes", record.model.label_names, other.model.label_names),
        ("picture size", record.model.image_size, other.model.image_size),
        ("training set", _size_of(record), _size_of(other)),
        ("data set", _name_of(record), _name_of(other)),
        (
            "start",
            record.model.base_model or "no weights of the Hub",
            other.model.base_model or "no weights of the Hub",
        ),
    ):
        if ours and theirs and ours != theirs:
            raise ValueError(
                f"{role} of a card has another {what} than this model: {theirs}, not {ours}; give a model that "
                "differs in its guidance alone."
            )


def _size_of(record: CardRecord) -> str | None:
    splits = [] if record.data is None else record.data.splits
    return next((f"{split.pictures} pictures" for split in splits if split.name == "train"), None)


def _name_of(record: CardRecord) -> str | None:
    return None if record.data is None else record.data.hub_id or record.data.name


def _refuse_other_pictures(ours: SplitResult, theirs: SplitResult, role: str) -> None:
    differ = ours.pictures != theirs.pictures or (ours.labels and theirs.labels and ours.labels != theirs.labels)
    if differ:
        raise ValueError(
            f'{role} of a card was measured on other pictures of "{ours.name}" than this model ({theirs.pictures} and '
            f"{ours.pictures}, or in another order); evaluate both on the same ones."
        )
