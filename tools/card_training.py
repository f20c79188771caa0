"""Trains and measures one model of model_cards/, with its card; see cards.py."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("validation", "test", "ood")
PLAIN, GUIDED, INVERTED = "plain", "guided", "inverted"
PANEL_PICTURES = 3


@dataclass(frozen=True)
class Recipe:
    """
    How one published model is trained.

    Attributes:
        name (`str`): of its folder.
        backbone (`str`): a timm architecture, or the `model_type` of a transformers configuration.
        backbone_args (`dict`): go to timm, or to the configuration.
        data (`dict`): arguments of [`~data.decoy_digits`].
        guidance (`dict`): the training arguments of the guidance; plain training leaves them out.
        training (`dict`): the training arguments that all have in common.
        seeds (`tuple[int, ...]`): of weights and order; the model of the first one is published.
        card (`dict`): what the card is told, see [`ModelCardCallback`].
    """

    name: str
    backbone: str
    backbone_args: Mapping[str, Any]
    data: Mapping[str, Any]
    guidance: Mapping[str, Any]
    training: Mapping[str, Any]
    seeds: tuple[int, ...]
    card: Mapping[str, Any]


def run(
    recipe: Recipe, arm: str, seed: int, dataset: Mapping[str, Any], folder: Path, beside: Mapping[str, Any]
) -> tuple[Any, float]:
    """
    Trains one model and evaluates it on every split.

    Returns:
        `tuple` of the trainer and the seconds that it took.
    """
    from transformers import set_seed

    from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments
    from hf_salguide.backbones import data_config, image_processor
    from hf_salguide.data import make_transforms
    from hf_salguide.hub.callback import ModelCardCallback

    started = time.perf_counter()
    set_seed(seed)
    model = build(recipe, dataset["train"].features["label"].names)
    # No crop and no augmentation: a crop could cut the patch or the digit away, and a digit has no mirror image.
    config = dataclasses.replace(data_config(model), crop_pct=1.0)
    image_processor(model, config)
    guidance = {"guidance": "none"} if arm == PLAIN else dict(recipe.guidance)
    args = SaliencyTrainingArguments(
        str(folder),
        **{**recipe.training, **guidance},
        invert_saliency=arm == INVERTED,
        seed=seed,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
    )
    card = ModelCardCallback(**recipe.card, model_name=recipe.name, **beside)
    trainer = SaliencyTrainer(
        model,
        args,
        train_dataset=dataset["train"],
        eval_dataset={split: dataset[split] for split in SPLITS},
        train_transform=make_transforms(config, train=False),
        callbacks=[card],
    )
    trainer.train()
    trainer.evaluate()
    return trainer, time.perf_counter() - started


def build(recipe: Recipe, label_names: Sequence[str]) -> Any:
    """A recipe's model with random weights: a timm architecture, or a configuration of transformers."""
    from transformers import CONFIG_MAPPING

    from hf_salguide import as_classifier

    size = recipe.data["size"]
    if recipe.backbone in CONFIG_MAPPING:
        config = CONFIG_MAPPING[recipe.backbone](image_size=size, **recipe.backbone_args)
        return as_classifier(config, label_names=label_names)
    return as_classifier(recipe.backbone, label_names=label_names, image_size=size, **recipe.backbone_args)


def figures(trainer: Any) -> dict[str, Any]:
    """Of each split: the pictures, how many are classified rightly, and the share of the maps' energy on the digit."""
    found = {}
    for split in SPLITS:
        evaluated = trainer.evaluated[f"eval_{split}"]
        right = int((evaluated.probabilities.argmax(axis=1) == evaluated.labels).sum())
        energy = round(float(evaluated.metrics["energy_inside"]), 4)
        found[split] = {"pictures": evaluated.pictures, "correct": right, "energy_inside": energy}
    return found


def comparisons(folder: Path, models: Mapping[str, Any], pictures: Any) -> dict[str, Any]:
    """What the card shows beside the guided model: the folders of the two others, and a panel of maps of all three."""

    def draw(trainer: Any, path: Path) -> None:
        from PIL import Image

        from hf_salguide.studies.explanation.panels import draw_comparison, explain, save_panel

        rows = [pictures[index] for index in range(PANEL_PICTURES)]
        titles = {PLAIN: models[PLAIN], GUIDED: trainer.model, INVERTED: models[INVERTED]}
        save_panel(draw_comparison({title: explain(model, rows) for title, model in titles.items()}), path)
        with Image.open(path) as panel:  # for a screen; for print it would be half of the folder
            smaller = panel.convert("RGB").resize((panel.width // 2, panel.height // 2), Image.Resampling.LANCZOS)
        smaller.quantize(256).save(path, optimize=True)

    return {
        "baseline": folder / PLAIN,
        "inverted": folder / INVERTED,
        "publish_pictures": True,
        "panel": draw,
    }
