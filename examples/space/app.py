"""
A guided classifier in the browser: choose a picture, see what it says and what it rests on.

    python app.py FOLDER          # or owner/name, or MODEL=owner/name REVISION=v1 python app.py

Environment: MODEL (a folder or a Hub id), REVISION, EXAMPLES (a folder of pictures to choose from, or decoy_digits).
"""

import base64
import html
import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_salguide.backbones import data_config
from hf_salguide.data import decoy_digits, make_transforms
from hf_salguide.data.pictures import PICTURES
from hf_salguide.hub import GuidedModel, load_guided
from hf_salguide.studies.explanation.explain import explain
from hf_salguide.studies.explanation.figures import SCALE, UNIT

EDGE = 448  # pixels of the longer side, as shown
MOST_BYTES, MOST_PIXELS = 20 * 2**20, 40_000_000
LISTED = 5  # classes
UNKNOWN = "not known"
START = "<p>The prediction and its maps appear here.</p>"
KINDS = "PNG, JPEG, WebP, TIFF, BMP and GIF can be read"
CSS = """
.answer { display: grid; grid-template-columns: fit-content(45%) 1fr auto; gap: 0.4rem 0.7rem; align-items: center; }
.answer { margin: 0 0 1rem; }
.answer .row { display: contents; }
.answer .row > :first-child { overflow-wrap: anywhere; }
.answer .track { background: var(--border-color-primary); height: 0.8rem; border-radius: 0.2rem; }
.answer .bar { background: var(--body-text-color); height: 100%; border-radius: 0.2rem; }
.answer .number { text-align: right; font-variant-numeric: tabular-nums; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8rem), 1fr)); gap: 0.8rem; }
.maps figure { margin: 0; }
.maps figcaption { font-size: 0.9rem; line-height: 1.3; min-height: 2.6em; overflow-wrap: anywhere; }
.maps img { width: 100%; height: auto; margin: 0; border: 1px solid var(--border-color-primary); }
.legend { max-width: 30rem; margin: 1rem auto 0.5rem; font-size: 0.9rem; }
.legend .scale { height: 1rem; border: 1px solid var(--border-color-primary); }
.legend .ends { display: grid; grid-template-columns: 1fr auto 1fr; }
.legend .ends :last-child { text-align: right; }
.legend .unit { text-align: center; }
.message { border-left: 0.3rem solid #c2410c; padding: 0.6rem 1rem; background: var(--background-fill-secondary); }
"""


class BadPictureError(ValueError):
    """What is wrong with an upload, in words for the person who made it."""


@dataclass(frozen=True)
class Answer:
    """
    What is shown of one picture.

    Attributes:
        probabilities (`dict`): of the likeliest classes, the first is the prediction.
        titles (`tuple` of `str`): of the pictures.
        pictures (`tuple` of PIL pictures): as the model sees it; map of the class, of the other class, difference.
        limit (`float`): the colours reach from `-limit` to `limit` logits.
        meaning (`str`): what the maps say, in a sentence.
    """

    probabilities: dict[str, float]
    titles: tuple[str, ...]
    pictures: tuple[Image.Image, ...]
    limit: float
    meaning: str


def answer(loaded: GuidedModel, path: str | None, true_class: str = UNKNOWN) -> Answer:
    """
    What a model says about a picture, and what that rests on.

    Args:
        loaded ([`GuidedModel`]): the model.
        path (`str`, *optional*): the picture's file.
        true_class (`str`, *optional*): its class, where it is known; the predicted one otherwise.

    Raises:
        BadPictureError: for no picture, or one that cannot be used.
    """
    check_picture(path)
    model, names = loaded.model, class_names(loaded)
    config = data_config(model, processor=loaded.processor)
    transform = make_transforms(config, train=False)
    row: dict[str, Any] = {"image": path}
    if true_class in names:
        row["label"] = names.index(true_class)
    try:
        (found,) = explain(model, [row], "max", transform=transform)
        pixels, _ = transform(path, None)
    except ValueError as error:
        reason = str(error).rpartition(f"{path}")[2].lstrip("): ")
        raise BadPictureError(f"This picture cannot be used: {reason}") from error
    with torch.no_grad():
        shares = model(pixel_values=pixels[None].to(model.device)).logits[0].float().softmax(dim=0).tolist()
    order = sorted(range(len(names)), key=lambda index: -shares[index])[:LISTED]
    mean, std = (np.array(values, dtype=np.float32) for values in (config.mean, config.std))
    picture = np.clip(pixels.permute(1, 2, 0).numpy() * std + mean, 0, 1)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    maps = (found.true_map, found.other_map, found.difference_map)
    limit = max(float(np.abs(values).max()) for values in maps)
    known = found.correct is not None
    size = f"{config.size[1]}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{config.size[0]} pixels"
    titles = (
        f"As the model sees it: {size}",
        f"{'True' if known else 'Predicted'} class: {found.true_name}",
        f"{'False' if known else 'Other'} class, the likeliest: {found.other_name}",
        f"Difference: {found.true_name} minus {found.other_name}",
    )
    meaning = (
        f"Orange marks what speaks for a class and blue what speaks against it; the difference shows what decides "
        f"between {found.true_name} and {found.other_name}."
    )
    drawn = (shown(picture), *(coloured(picture, values, limit) for values in maps))
    return Answer({names[index]: shares[index] for index in order}, titles, drawn, limit, meaning)


def check_picture(path: str | None) -> None:
    """
    Raises:
        BadPictureError: for no picture, a file that is none, and one that is too large.
    """
    if not path:
        raise BadPictureError("There is no picture yet: upload one, or choose one of the examples.")
    if Path(path).stat().st_size > MOST_BYTES:
        raise BadPictureError(f"This file is larger than {MOST_BYTES // 2**20} MB; make it smaller.")
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height <= MOST_PIXELS:
                picture.load()
    except Image.DecompressionBombError as error:
        raise BadPictureError(_too_large("far too many")) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadPictureError(f"This file is no picture, or a damaged one. {KINDS}.") from error
    if width * height > MOST_PIXELS:
        raise BadPictureError(_too_large(f"{width} × {height}"))


def _too_large(pixels: str) -> str:
    return f"This picture has {pixels} pixels, more than {MOST_PIXELS // 10**6} million; make it smaller."


def class_names(loaded: GuidedModel) -> list[str]:
    """The model's classes, in its order."""
    return [loaded.model.config.id2label[index] for index in range(loaded.model.config.num_labels)]


def shown(picture: np.ndarray) -> Image.Image:
    """A picture `(H, W, 3)` in [0, 1], as large as it is shown; small ones keep their pixels."""
    height, width = picture.shape[:2]
    factor = EDGE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(np.round(picture * 255).astype(np.uint8)).resize(
        size, Image.Resampling.NEAREST if factor >= 3 else Image.Resampling.BICUBIC
    )


def coloured(picture: np.ndarray, values: np.ndarray, limit: float) -> Image.Image:
    """A signed map `(H, W)` over its picture in pale grey, as the panels of `hf-salguide explain` have it."""
    base = np.asarray(shown(picture).convert("L"), dtype=np.float32)[..., None] / 255
    places = Image.fromarray(values.astype(np.float32)).resize(base.shape[1::-1], Image.Resampling.BILINEAR)
    stops = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in SCALE]) / 255
    scaled = np.asarray(places) / (limit or 1.0)
    colours = np.stack(
        [np.interp(scaled, np.linspace(-1, 1, len(SCALE)), stops[:, channel]) for channel in range(3)], axis=2
    )
    mixed = 0.3 * (0.6 + 0.4 * base) + 0.7 * colours
    return Image.fromarray(np.round(mixed * 255).astype(np.uint8))


def answer_page(found: Answer) -> str:
    """The prediction as bars, best first."""
    rows = []
    for index, (name, share) in enumerate(found.probabilities.items()):
        tag = "b" if index == 0 else "span"
        rows.append(
            f'<div class="row"><{tag}>{html.escape(name)}</{tag}><div class="track"><div class="bar" '
            f'style="width: {100 * share:.1f}%"></div></div><span class="number">{share:.1%}</span></div>'
        )
    return f'<div class="answer">{"".join(rows)}</div>'


def maps_page(found: Answer) -> str:
    """The picture and its three maps, their legend, and what they mean."""
    figures = []
    for title, picture in zip(found.titles, found.pictures, strict=True):
        stream, text = io.BytesIO(), html.escape(title, quote=True)
        picture.save(stream, "PNG")
        source = base64.b64encode(stream.getvalue()).decode()
        figures.append(
            f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{source}"></figure>'
        )
    number = f"{found.limit:.2g}"
    return (
        f'<div class="maps">{"".join(figures)}</div><div class="legend"><div class="unit">{UNIT}, one scale for the '
        f'three maps</div><div class="scale" style="background: linear-gradient(to right, {", ".join(SCALE)})"></div>'
        f'<div class="ends"><span>−{number}<br>against</span><span>0</span><span>+{number}<br>for</span></div></div>'
        f"<p>{html.escape(found.meaning)}</p>"
    )


def message_page(text: str) -> str:
    """What is wrong, where the answer would stand."""
    return f'<div class="message" role="alert">{html.escape(text)}</div>'


def facts(loaded: GuidedModel, name: str) -> str:
    """A line about the model."""
    guidance = loaded.guidance
    if not guidance:
        return f"**{name}** was trained plainly, without human saliency."
    methods = guidance["name"] if isinstance(guidance["name"], str) else ", ".join(guidance["name"])
    weight = "" if guidance["weight"] is None else f", weight {guidance['weight']}"
    return f"**{name}** was trained under the guidance of human saliency ({methods}{weight})."


def example_pictures(source: str, folder: Path) -> list[str]:
    """The pictures of a folder; or generated digits, which are written to `folder`."""
    if source != "decoy_digits":
        return sorted(str(file) for file in Path(source).iterdir() if file.suffix.lower() in PICTURES)
    for index, row in enumerate(decoy_digits(num_train=10, num_validation=10, num_test=10, num_ood=6)["ood"]):
        row["image"].save(folder / f"digit_{index}.png")
    return sorted(str(file) for file in folder.iterdir())


def build(loaded: GuidedModel, name: str, examples: list[str]) -> Any:
    """The page, as `gradio.Blocks`."""
    import gradio as gr

    def ask(path: str | None, true_class: str) -> tuple[str, str]:
        try:
            found = answer(loaded, path, true_class)
        except BadPictureError as error:
            return message_page(str(error)), ""
        return answer_page(found), maps_page(found)

    with gr.Blocks(title=f"What {name} looks at", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# What does the model look at?\n{facts(loaded, name)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                upload = gr.File(label="Picture", file_types=["image"], height=150)
                if examples:
                    chooser = gr.Dataset(
                        components=[gr.Image(visible=False)],
                        samples=[[path] for path in examples],
                        label="Examples",
                        type="index",
                    )
                true_class = gr.Dropdown([UNKNOWN, *class_names(loaded)], value=UNKNOWN, label="True class, if known")
                button = gr.Button("Explain", variant="primary")
            with gr.Column(scale=3, min_width=320):
                said = gr.HTML(START)
                drawn = gr.HTML()
        gr.on([upload.upload, upload.clear], lambda: (START, ""), None, [said, drawn], queue=False)
        button.click(ask, [upload, true_class], [said, drawn])
        if examples:
            chosen = chooser.click(lambda index: examples[index], chooser, upload)
            chosen.then(ask, [upload, true_class], [said, drawn])
    return page


def main() -> None:
    """Loads the model that is named, and serves the page."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    source = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MODEL", "")
    if not source:
        sys.exit("Name a model: python app.py FOLDER, or the environment variable MODEL, a folder or a Hub id.")
    try:
        loaded = load_guided(source, revision=os.environ.get("REVISION") or None)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    folder = Path(tempfile.mkdtemp(prefix="examples_"))
    chosen = os.environ.get("EXAMPLES")
    name = Path(source).resolve().name if Path(source).is_dir() else source
    page = build(loaded, name, example_pictures(chosen, folder) if chosen else [])

    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from elsewhere
    page.launch(
        theme=gr.themes.Default(**fonts),
        css=CSS,
        max_file_size=MOST_BYTES,
        allowed_paths=[str(Path(chosen).resolve()) if chosen and chosen != "decoy_digits" else str(folder)],
        footer_links=[],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
