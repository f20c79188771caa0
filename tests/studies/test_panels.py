"""Panels: colours for the colour-blind, a paper's width, what is drawn, and files that are the same every time."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_salguide import as_classifier, difference_salience, saliency_maps
from hf_salguide.backbones import data_config
from hf_salguide.data import decoy_digits, make_transforms
from hf_salguide.studies.explanation import figures
from hf_salguide.studies.explanation.figures import (
    Sheet,
    draw_box,
    draw_contour,
    draw_map,
    evidence_colours,
    save_panel,
)
from hf_salguide.studies.explanation.panels import (
    Explanation,
    draw_class_means,
    draw_comparison,
    draw_difference,
    draw_panel,
    explain,
)

# Of Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE
# Transactions on Visualization and Computer Graphics 2009, table of severity 1.0; on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def seen(colours, deficiency):
    """sRGB colours `(N, 3)` as CIELAB (D65), as somebody with the deficiency sees them."""
    colours = np.asarray(colours)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.asarray(DEFICIENCIES[deficiency]).T).clip(0, 1)
    ratio = (linear @ TO_XYZ.T) / TO_XYZ.sum(axis=1)
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_the_oracle_of_colour_is_right():
    lab = seen([[1, 1, 1], [1, 0, 0]], "none")
    np.testing.assert_allclose(lab, [[100, 0, 0], [53.24, 80.09, 67.20]], atol=0.05)
    red_and_green = seen([[0.84, 0.19, 0.15], [0.10, 0.60, 0.31]], "none")
    mixed_up = seen([[0.84, 0.19, 0.15], [0.10, 0.60, 0.31]], "protanopia")
    assert np.linalg.norm(np.diff(mixed_up, axis=0)) < 0.4 * np.linalg.norm(np.diff(red_and_green, axis=0))


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_scale_is_read_with_any_colour_vision(deficiency):
    scale = evidence_colours()(np.linspace(0, 1, 101))[:, :3]
    lab = seen(scale, deficiency)
    lightness, hue = lab[:, 0], lab[:, 1:]
    # The two signs: far apart at the ends, and at a quarter of the scale, and not by lightness.
    assert np.linalg.norm(lab[0] - lab[100]) > 60
    assert np.linalg.norm(hue[0] - hue[100]) > 60
    assert np.linalg.norm(lab[25] - lab[75]) > 30
    assert abs(lightness[0] - lightness[100]) < 15
    # Each half darkens all the way from a pale middle.
    assert (np.diff(lightness[50:]) < 0.05).all()
    assert (np.diff(lightness[:51]) > -0.05).all()
    assert lightness[50] > 95
    assert max(lightness[0], lightness[100]) < 55


def test_a_red_and_green_scale_would_not_pass():
    from matplotlib import colormaps

    ends = seen(colormaps["RdYlGn"]([0.15, 0.85])[:, :3], "deuteranopia")
    assert np.linalg.norm(ends[0] - ends[1]) < 60


@pytest.fixture(scope="module")
def digits():
    return decoy_digits(size=48, num_train=10, num_validation=10, num_test=10, num_ood=10)["ood"]


@pytest.fixture(scope="module")
def model(digits):
    torch.manual_seed(0)
    return as_classifier("test_resnet", label_names=digits.features["label"].names, image_size=64).eval()


@pytest.fixture(scope="module")
def explanations(model, digits):
    return explain(model, [digits[0], {"image": digits[1]["image"]}], "softmax")


def test_the_difference_map_is_that_of_the_model(model, digits, explanations):
    row = digits[0]
    pixels, _ = make_transforms(data_config(model), train=False)(row["image"])
    with torch.no_grad():
        expected = difference_salience(model, pixels[None], row["label"])
        own = saliency_maps(model, pixels[None], row["label"])
    size = {"size": (64, 64), "mode": "bilinear", "align_corners": False}
    for map, values in ((explanations[0].difference_map, expected), (explanations[0].true_map, own)):
        drawn = torch.nn.functional.interpolate(values[None], **size)[0, 0].numpy()
        np.testing.assert_allclose(map, drawn, atol=1e-4 * abs(drawn).max())
    assert explanations[0].other_name == "9 others, softmax"
    assert explanations[1].correct is None


def test_the_strongest_rival_has_a_name(model, digits):
    (explanation,) = explain(model, [digits[0]])
    assert explanation.other_name in digits.features["label"].names
    with pytest.raises(ValueError, match='rival="none" is not known'):
        explain(model, [digits[0]], "none")


def test_a_masked_models_picture_is_the_masked_one(model, digits):
    model.config.saliency_guide = {"name": "mask_everything"}
    try:
        (masked,) = explain(model, [digits[0]])
    finally:
        del model.config.saliency_guide
    (plain,) = explain(model, [digits[0]])
    outside = plain.saliency == 0
    assert np.ptp(masked.picture[outside]) < 1e-3 < np.ptp(plain.picture[outside])


def test_a_model_in_training_is_explained_on_the_pictures_that_it_is_shown(model, digits):
    """The transform of its evaluation, and masked pictures before its configuration says so."""
    seen = []

    def transform(picture, saliency):
        seen.append((picture.size, saliency is not None))
        pixels, there = make_transforms(data_config(model), train=False)(picture, saliency)
        return pixels.flip(2), None if saliency is None else there.flip(1)

    rows = [digits[0], {"image": digits[1]["image"]}]
    (first, second), plain = explain(model, rows, transform=transform), explain(model, rows)
    assert seen == [((48, 48), True), ((48, 48), False)]
    np.testing.assert_allclose(first.picture, plain[0].picture[:, ::-1], atol=1e-5)
    np.testing.assert_array_equal(first.saliency, plain[0].saliency[:, ::-1])
    assert second.saliency is None
    pixels, _ = make_transforms(data_config(model), train=False)(digits[0]["image"])
    with torch.no_grad():
        expected = saliency_maps(model, pixels[None].flip(3), digits[0]["label"])
    size = {"size": (64, 64), "mode": "bilinear", "align_corners": False}
    drawn = torch.nn.functional.interpolate(expected[None], **size)[0, 0].numpy()
    np.testing.assert_allclose(first.true_map, drawn, atol=1e-4 * abs(drawn).max())
    (masked,) = explain(model, rows[:1], transform=transform, guidance={"name": "mask_everything"})
    outside = first.saliency == 0
    assert np.ptp(masked.picture[outside]) < 1e-3 < np.ptp(first.picture[outside])
    np.testing.assert_array_equal(masked.picture[first.saliency == 1], first.picture[first.saliency == 1])


def test_a_label_outside_the_classes_is_named(model, digits):
    with pytest.raises(ValueError, match="row 1: label 10 is outside the model's 10 classes, 0 to 9"):
        explain(model, [digits[0], {**digits[1], "label": 10}])


def made(shape=(40, 40), limits=(1.0, 2.0), **changes):
    """An explanation whose maps have the given largest magnitudes."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / (max(shape) - 1)
    saliency = np.zeros(shape)
    saliency[10:20, 10:30] = 0.8
    given = {
        "picture": np.random.default_rng(0).random((*shape, 3)),
        "saliency": saliency,
        "true_map": (rows - 0.5) * 2 * limits[0],
        "other_map": (columns - 0.5) * 2 * limits[1],
        "true_name": "live",
        "other_name": "attack",
        "predicted_name": "attack",
        "probability": 0.75,
        "correct": False,
    }
    return Explanation(**{**given, **changes})


def scales(figure):
    """The colour scale of each map, in the order of drawing."""
    return [image.get_clim() for axis in figure.axes for image in axis.images if image.get_cmap().name == "evidence"]


def bars(figure):
    return [axis for axis in figure.axes if axis.get_xlabel() == figures.UNIT]


def titles(figure):
    return [axis.get_title().replace("\n", " ") for axis in figure.axes if axis.get_title()]


def test_each_map_of_a_difference_has_its_own_scale_around_zero():
    figure = draw_difference([made(limits=(1.0, 2.0))])
    assert scales(figure) == [(-1, 1), (-2, 2), (-3, 3)]
    assert titles(figure) == ["picture", "human saliency", "true class: live", "false class: attack", "difference"]
    assert [[label.get_text() for label in bar.get_xticklabels()] for bar in bars(figure)] == [
        ["−1", "0", "1"],
        ["−2", "0", "2"],
        ["−3", "0", "3"],
    ]
    assert figure.axes[0].get_xlabel() == "says attack, 75% (wrong)"


def test_the_maps_of_a_panel_share_a_scale():
    figure = draw_panel([made(limits=(1.0, 2.0))], ["a.png"])
    assert scales(figure) == [(-2, 2), (-2, 2)]
    assert titles(figure) == ["a.png", "human saliency", "true class: live", "other class: attack"]


def test_a_comparison_has_a_column_for_each_model():
    figure = draw_comparison({"plain": [made()], "guided": [made(limits=(4.0, 1.0), correct=True)]})
    assert scales(figure) == [(-1, 1), (-4, 4)]
    assert titles(figure)[2:] == ["plain attack 75% wrong", "guided attack 75% right"]


def test_the_outline_of_the_saliency_is_on_every_map():
    contours = [axis for axis in draw_difference([made()]).axes if any(hasattr(c, "levels") for c in axis.collections)]
    assert len(contours) == 3
    assert contours[0].collections[0].levels.tolist() == [0.4]
    for saliency in (None, np.zeros((40, 40)), np.ones((40, 40))):
        figure = draw_difference([made(saliency=saliency)])
        assert not any(hasattr(c, "levels") for axis in figure.axes for c in axis.collections)


def test_the_boxes_are_where_the_regions_are():
    figure = draw_difference([made(), made()], boxes=[(10, 5, 30, 20), None])
    patches = [(index, patch) for index, axis in enumerate(figure.axes[:10]) for patch in axis.patches]
    assert sorted({index for index, _ in patches}) == [0, 4]
    for _, patch in patches:
        assert (*patch.get_xy(), patch.get_width(), patch.get_height()) == (9.5, 4.5, 20, 15)
    assert "Box: the region with the most evidence" in figure.texts[0].get_text().replace("\n", " ")
    assert "Box" not in draw_difference([made()]).texts[0].get_text()


def test_the_mean_maps_of_the_classes_share_a_scale():
    maps = np.stack([np.full((2, 3), 1.0), np.full((2, 3), np.nan), np.full((2, 3), -5.0)])
    figure = draw_class_means(maps, [4, 0, 2], ["ant", "bee", "cat"])
    assert titles(figure) == ["ant 4 pictures", "cat 2 pictures"]
    assert scales(figure) == [(-5, 5), (-5, 5)]
    many = draw_class_means(np.ones((15, 2, 2)), np.arange(1, 16), [f"class {index}" for index in range(15)])
    assert titles(many)[0] == "class 3 4 pictures"
    assert "The 12 classes with the most pictures." in many.texts[0].get_text().replace("\n", " ")
    with pytest.raises(ValueError, match="counts are all 0"):
        draw_class_means(maps, [0, 0, 0], ["ant", "bee", "cat"])


LONG = "a_very_long_file_name_of_a_hospital_0123456789_0123456789.png"
SHEETS = {
    "difference": lambda: draw_difference([made(), made(saliency=None, correct=None)], [LONG, "b\nregion: +2 logits"]),
    "wide": lambda: draw_difference([made((20, 60))]),
    "high": lambda: draw_difference([made((60, 20), saliency=None)]),
    "panel": lambda: draw_panel([made(true_name=LONG, other_name=LONG, predicted_name=LONG)]),
    "one column": lambda: draw_panel([made()], width="single"),
    "comparison": lambda: draw_comparison({name: [made()] for name in ("plain", "cyborg", "a rather long method")}),
    "means": lambda: draw_class_means(np.ones((7, 4, 4)), np.ones(7, dtype=int), list("abcdefg")),
}


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_is_as_wide_as_the_paper_and_everything_is_on_it(name):
    figure = SHEETS[name]()
    wide = {"one column": 4 * 24.0}.get(name, 175.0)
    assert figure.get_size_inches()[0] * 25.4 == pytest.approx(wide)
    figure.set_dpi(300)
    figure.draw_without_rendering()
    page, texts = figure.bbox, []
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, *axis.get_xticklabels(), *axis.texts]
    texts = [text for text in [*texts, *figure.texts] if text.get_text()]
    assert all(text.get_fontsize() >= 6 for text in texts)
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, text.get_text()
    pictures = [axis.get_window_extent() for axis in figure.axes if axis.images]
    for index, box in enumerate(boxes):
        for other in [*boxes[:index], *(pictures if "annotated" not in texts[index].get_text() else [])]:
            overlap = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(overlap) <= 1, texts[index].get_text()


def test_a_sheet_of_many_columns_is_wider_and_an_unknown_width_is_refused():
    assert Sheet(1, 4, width="single").figure.get_size_inches()[0] * 25.4 == pytest.approx(96)
    assert Sheet(1, 3, width="single").figure.get_size_inches()[0] * 25.4 == pytest.approx(85)
    with pytest.raises(ValueError, match='width="half" is not known'):
        Sheet(1, 1, width="half")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_file(suffix, tmp_path):
    paths = [save_panel(draw_difference([made()]), tmp_path / "new" / f"{index}.{suffix}") for index in (1, 2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"1.{suffix}", f"2.{suffix}"]
    assert b"CreationDate" not in first
    assert b"<dc:date>" not in first


def test_a_png_has_300_dots_an_inch_and_a_pdf_its_fonts(tmp_path):
    with Image.open(save_panel(draw_difference([made()]), tmp_path / "a.png")) as image:
        assert image.width == pytest.approx(175 / 25.4 * 300, abs=1)
        assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
    pdf = save_panel(draw_difference([made()]), tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf


def test_an_interrupted_file_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"earlier")
    figure = draw_difference([made()])

    def full(target, **options):
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        save_panel(figure, path)
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_map_of_zeros_is_drawn():
    sheet = Sheet(1, 1)
    image = draw_map(sheet.axes[0, 0], np.zeros((4, 4, 3)), np.zeros((4, 4)))
    draw_contour(sheet.axes[0, 0], None)
    draw_box(sheet.axes[0, 0], (0, 0, 2, 2))
    assert image.get_clim() == (-1, 1)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_salguide\[plots\]'"):
        draw_difference([made()])
