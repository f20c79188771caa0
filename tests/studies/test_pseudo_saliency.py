"""Saliency from a teacher: which rows get it, its values and its place in the picture."""

import logging
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from support import NAMES, build, make_trainer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_salguide import load_saliency_dataset, saliency_maps
from hf_salguide.backbones import data_config, resolve_feature_layer
from hf_salguide.data import make_transforms, prepare_dataset
from hf_salguide.data.prepare import undecoded
from hf_salguide.studies.pseudo_saliency import pseudo_saliency, record_source

HEIGHT, WIDTH = 60, 100
SPOTS = [(4, 5), (30, 90), (55, 50)]  # row and column: at the edges, where a crop would cut


class BrightnessConfig(PretrainedConfig):
    model_type = "brightness_of_the_tests"


class Brightness(PreTrainedModel):
    """The logit of class 1 is the mean brightness, that of class 0 its opposite: the map of class 1 is the picture."""

    config_class = BrightnessConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.features = nn.Conv2d(3, 2, 4, stride=4)
        self.classifier = nn.Linear(2, 2)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values, labels=None, **kwargs):
        features = self.features(pixel_values)
        return ImageClassifierOutput(logits=self.classifier(features.mean(dim=(2, 3))))


@pytest.fixture
def brightness():
    """Its own preparation is a centre crop that keeps half of the shorter side."""
    recorded = {"input_size": [3, 32, 32], "crop_pct": 0.5, "crop_mode": "center", "interpolation": "bilinear"}
    config = BrightnessConfig(
        num_labels=2,
        id2label={0: "dark", 1: "bright"},
        pretrained_cfg={**recorded, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    )
    model = Brightness(config)
    with torch.no_grad():
        model.features.weight.fill_(1 / 48)
        model.features.weight[1] *= 0.5
        model.features.bias.zero_()
        model.classifier.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        model.classifier.bias.zero_()
    assert data_config(model).crop_pct == 0.5
    assert data_config(model).resize_mode == "crop"
    return model.eval()


def spot(row, column, size=(HEIGHT, WIDTH), radius=3):
    picture = np.zeros(size, dtype=np.uint8)
    picture[max(row - radius, 0) : row + radius, max(column - radius, 0) : column + radius] = 255
    return PILImage.fromarray(picture)


def spots(labels, saliency=None, names=("dark", "bright"), **columns):
    """Pictures with one bright spot each, in turn at the places of `SPOTS`."""
    pictures = [spot(*SPOTS[index % len(SPOTS)]) for index in range(len(labels))]
    features = Features({"image": Image(), "label": ClassLabel(names=list(names)), "saliency": Image()})
    rows = {"image": pictures, "label": labels, "saliency": saliency or [None] * len(labels)}
    dataset = Dataset.from_dict(rows, features=features)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def noise(labels, saliency, size=(48, 80), seed=0, feature=None):
    generator = np.random.default_rng(seed)
    pictures = [PILImage.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8), mode="RGB") for _ in labels]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES), "saliency": feature or Image()})
    return Dataset.from_dict({"image": pictures, "label": labels, "saliency": saliency}, features=features)


def stored(dataset, name="saliency"):
    return undecoded(dataset)[:][name]


def centre(values):
    """The centre of mass, row and column in pixels."""
    values = np.asarray(values, dtype=np.float64)
    rows, columns = np.indices(values.shape)
    return (values * (rows + 0.5)).sum() / values.sum(), (values * (columns + 0.5)).sum() / values.sum()


# ---- The place of the map in the picture ----


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH, HEIGHT), (16, 20)])
def test_a_bright_spot_lies_in_the_map_where_it_lies_in_the_picture(brightness, size):
    places = [(size[0] * row // HEIGHT, size[1] * column // WIDTH) for row, column in SPOTS]
    radius = max(2, min(size) // 12)
    pictures = [spot(*place, size, radius) for place in places]
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "bright"]), "saliency": Image()})
    dataset = Dataset.from_dict({"image": pictures, "label": [1] * 3, "saliency": [None] * 3}, features=features)
    filled = pseudo_saliency(brightness, dataset, progress=False)
    assert filled["saliency_source"][:] == ["teacher"] * 3
    for picture, row in zip(pictures, filled, strict=True):
        saliency = row["saliency"]
        assert saliency.mode == "L"
        assert saliency.size == picture.size
        assert np.asarray(saliency).max() == 255
        cell = (size[0] / 8, size[1] / 8)  # the teacher's grid is 8 x 8
        expected, met = centre(picture), centre(saliency)
        assert abs(met[0] - expected[0]) < 0.5 * cell[0]
        assert abs(met[1] - expected[1]) < 0.5 * cell[1]
        far = np.asarray(saliency).copy()
        top, left = (round(value) for value in expected)
        reach = [int(2.5 * side) for side in cell]
        far[max(top - reach[0], 0) : top + reach[0], max(left - reach[1], 0) : left + reach[1]] = 0
        assert far.max() == 0


def test_the_map_lies_in_the_frame_of_the_exif_orientation(brightness, tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    spot(4, 90).save(tmp_path / "turned.png", exif=exif)
    dataset = Dataset.from_dict({"image": [str(tmp_path / "turned.png")], "label": [1]}).cast_column("image", Image())
    filled = pseudo_saliency(brightness, dataset, progress=False)
    saliency = filled[0]["saliency"]
    assert saliency.size == (HEIGHT, WIDTH)  # width, height
    row, column = centre(saliency)
    assert abs(row - 90) < 7
    assert abs(column - (HEIGHT - 4)) < 5
    prepare_dataset(filled, make_transforms(data_config(brightness), train=False))[0]


def resized(values, size):
    """Bilinear, by the definition, in float64: cells' centres at (i + 0.5) / h of the side."""
    height, width = values.shape
    result = np.zeros(size)
    for i in range(size[0]):
        y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
        top = min(int(y), height - 2)
        for j in range(size[1]):
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            left = min(int(x), width - 2)
            for row, a in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, b in ((left, 1 - (x - left)), (left + 1, x - left)):
                    result[i, j] += a * b * values[row, column]
    return result


@pytest.mark.parametrize("name", ["resnet", "vit_class_token", "convnext"])
@pytest.mark.parametrize("map_class", ["true", "predicted"])
def test_values_are_the_positive_part_of_the_map_of_the_class(name, map_class):
    model = build(name).eval()
    dataset = noise([0, 1, 2, -1], [None] * 4, size=(80, 112))
    filled = pseudo_saliency(model, dataset, map_class=map_class, batch_size=3, progress=False)
    transform = make_transforms(data_config(model, image_size=(64, 96)), train=False)
    distinct = 0
    for row, met in zip(dataset, filled, strict=True):
        pixels, _ = transform(row["image"])
        logits = model(pixel_values=pixels[None]).logits[0]
        target = row["label"] if map_class == "true" and row["label"] >= 0 else int(logits.argmax())
        distinct += target != int(logits.argmax())
        raw = saliency_maps(model, pixels[None], target=target).detach()[0].double().numpy()
        expected = resized(np.maximum(raw, 0), (80, 112))
        if raw.max() <= 0:
            assert met["saliency"] is None
            continue
        np.testing.assert_allclose(np.asarray(met["saliency"]), 255 * expected / expected.max(), atol=0.6)
    assert (distinct > 0) == (map_class == "true")  # the choice makes a difference here


@pytest.mark.parametrize("cell", [(3, 3), (0, 31), (17, 12)])
def test_a_map_finer_than_the_picture_passes_over_no_cell(brightness, monkeypatch, cell):
    maps = torch.full((1, 32, 32), -1.0)
    maps[0, *cell] = 1e-30
    monkeypatch.setattr("hf_salguide.studies.pseudo_saliency.saliency_maps", lambda *args: maps)
    dataset = Dataset.from_dict({"image": [spot(3, 3, (8, 8), 2)], "label": [1]}).cast_column("image", Image())
    saliency = np.asarray(pseudo_saliency(brightness, dataset, progress=False)[0]["saliency"])
    assert saliency.shape == (8, 8)
    assert np.unravel_index(saliency.argmax(), (8, 8)) == (cell[0] // 4, cell[1] // 4)
    assert saliency.max() == 255


def test_the_layer_that_the_teacher_was_guided_at_is_used():
    model = build("resnet").eval()
    model.config.saliency_guide = {"name": "cyborg", "feature_layer": "timm_model.layer2"}
    dataset = noise([0, 1], [None, None], size=(64, 96))
    filled = pseudo_saliency(model, dataset, progress=False)
    pixels, _ = make_transforms(data_config(model), train=False)(dataset[1]["image"])
    layer = resolve_feature_layer(model, feature_layer="timm_model.layer2")
    raw = saliency_maps(model, pixels[None], target=1, feature_layer=layer).detach()[0].double().numpy()
    expected = resized(np.maximum(raw, 0), (64, 96))
    np.testing.assert_allclose(np.asarray(filled[1]["saliency"]), 255 * expected / expected.max(), atol=0.6)


# ---- Which rows ----


def test_annotated_rows_stay_as_they_are_the_empty_mask_too(brightness):
    human = PILImage.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    empty = PILImage.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    dataset = spots([1, 0, 1, 1], [human, empty, None, None], patient=["a", "b", "c", "d"])
    before, images = stored(dataset), stored(dataset, "image")
    filled = pseudo_saliency(brightness, dataset, progress=False)
    assert filled["saliency_source"][:] == ["human", "human", "teacher", "teacher"]
    assert stored(filled)[:2] == before[:2]
    assert stored(filled, "image") == images
    assert filled.column_names == ["image", "label", "saliency", "patient", "saliency_source"]
    assert filled.features == dataset.features | {"saliency_source": Value("string")}
    assert filled["label"][:] == [1, 0, 1, 1]
    assert filled["patient"][:] == ["a", "b", "c", "d"]
    assert stored(dataset) == before  # what was given is left alone
    assert "saliency_source" in repr(filled)


def test_rows_that_are_selected_and_shuffled_keep_their_own_maps(brightness):
    human = PILImage.fromarray(np.full((HEIGHT, WIDTH), 7, dtype=np.uint8))
    dataset = spots([1] * 6, [None, human, None, None, human, None])
    order = [5, 4, 2, 0]
    filled = pseudo_saliency(brightness, dataset.select(order), batch_size=2, progress=False)
    assert filled["saliency_source"][:] == ["teacher", "human", "teacher", "teacher"]
    for index, row in zip(order, filled, strict=True):
        if row["saliency_source"] == "human":
            assert np.asarray(row["saliency"]).max() == 7
            continue
        met, expected = centre(row["saliency"]), centre(spot(*SPOTS[index % 3]))
        assert np.hypot(met[0] - expected[0], met[1] - expected[1]) < 8


def test_a_map_that_is_nowhere_positive_stays_none_and_is_counted(brightness, caplog):
    dataset = spots([1, 0, 0])  # nothing in a bright spot speaks for "dark"
    with caplog.at_level(logging.WARNING):
        filled = pseudo_saliency(brightness, dataset, progress=False)
    assert filled["saliency_source"][:] == ["teacher", None, None]
    assert [value is None for value in stored(filled)] == [False, True, True]
    assert "nowhere positive in 2 of 3 pictures" in caplog.text


def test_without_a_label_the_predicted_class_is_explained(brightness):
    dataset = spots([1, 1, 1]).remove_columns("label")
    assert pseudo_saliency(brightness, dataset, progress=False)["saliency_source"][:] == ["teacher"] * 3
    wrong = pseudo_saliency(brightness, spots([0, -1, 1]), progress=False)
    assert wrong["saliency_source"][:] == [None, "teacher", "teacher"]
    predicted = pseudo_saliency(brightness, spots([0, -1, 1]), map_class="predicted", progress=False)
    assert predicted["saliency_source"][:] == ["teacher"] * 3


def test_several_annotators_get_one_map_more(brightness):
    human = spot(20, 20)
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "bright"]), "saliency": List(Image())})
    pictures = [spot(*place) for place in SPOTS]
    columns = {"image": pictures, "label": [1] * 3, "saliency": [[human, human], None, []]}
    dataset = Dataset.from_dict(columns, features=features)
    filled = pseudo_saliency(brightness, dataset, progress=False)
    assert [len(value) for value in stored(filled)] == [2, 1, 1]
    assert stored(filled)[0] == stored(dataset)[0]
    assert filled["saliency_source"][:] == ["human", "teacher", "teacher"]


def test_a_second_call_changes_nothing(brightness, caplog):
    first = pseudo_saliency(brightness, spots([1, 1, 0], [spot(9, 9), None, None]), progress=False)
    second = pseudo_saliency(brightness, first, map_class="predicted", progress=False)
    assert second["saliency_source"][:] == ["human", "teacher", "teacher"]
    assert stored(second)[:2] == stored(first)[:2]
    caplog.clear()
    third = pseudo_saliency(brightness, second, progress=False)
    assert "every row of the data set is annotated" in caplog.text
    assert third["saliency_source"][:] == second["saliency_source"][:]
    assert stored(third) == stored(second)


@pytest.mark.parametrize("kind", ["no column", "null column"])
def test_a_data_set_without_any_saliency_is_filled(brightness, kind):
    dataset = spots([1, 1]).remove_columns("saliency")
    if kind == "null column":
        dataset = dataset.add_column("saliency", [None, None])
    filled = pseudo_saliency(brightness, dataset, progress=False)
    assert filled["saliency_source"][:] == ["teacher"] * 2
    assert isinstance(filled.features["saliency"], Image)


def test_sources_alone_can_be_recorded(brightness):
    dataset = spots([1, 0], [spot(9, 9), None])
    recorded = record_source(dataset)
    assert recorded["saliency_source"][:] == ["human", None]
    assert recorded.features == pseudo_saliency(brightness, dataset, progress=False).features
    assert stored(recorded) == stored(dataset)


# ---- No trace, and the student ----


def test_the_model_and_the_generators_are_left_as_they_were():
    model = build("resnet").train()
    model.timm_model.layer2.eval()

    def draw(*args):
        torch.rand(1)

    model.timm_model.layer3.register_forward_hook(draw)
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    pseudo_saliency(model, noise([0, 1], [None, None]), progress=False)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_student_trains_on_what_the_teacher_filled_in(digits_folder, tmp_path):
    dataset = load_saliency_dataset(digits_folder)
    from hf_salguide import as_classifier

    names = dataset["train"].features["label"].names
    torch.manual_seed(0)
    teacher = as_classifier("test_resnet", label_names=names, image_size=32)
    filled = pseudo_saliency(teacher, dataset["train"], map_class="predicted", progress=False)
    human = [index for index, value in enumerate(stored(dataset["train"])) if value is not None]
    assert [index for index, source in enumerate(filled["saliency_source"]) if source == "human"] == human
    assert [stored(filled)[index] for index in human] == [stored(dataset["train"])[index] for index in human]
    assert "teacher" in filled["saliency_source"][:]
    student = as_classifier("test_resnet", label_names=names, image_size=32)
    trainer = make_trainer(
        student, tmp_path, guidance="cyborg", max_steps=2, train_dataset=filled, eval_dataset=filled
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_cyborg_loss"] > 0
    again = load_saliency_dataset(DatasetDict({"train": filled}))["train"]
    assert stored(again) == stored(filled)


# ---- What is refused ----


def prepared_column():
    return Dataset.from_dict({"pixel_values": [[[[0.0]]]], "label": [0]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: DatasetDict({"train": rows}), r"give one of them, as dataset\['train'\]"),
        (lambda rows: list(rows), "dataset is a list; give a datasets.Dataset"),
        (
            lambda rows: prepare_dataset(rows, None),
            "dataset is a PreparedDataset; give a datasets.Dataset of pictures",
        ),
        (lambda rows: prepared_column(), "prepared already .* prepare the result"),
        (lambda rows: rows.with_transform(lambda batch: batch), r"dataset.with_format\(None\)"),
        (lambda rows: rows.rename_column("image", "scan"), "no column image, only scan, label, saliency; load it by"),
        (lambda rows: rows.cast_column("label", ClassLabel(names=["bright", "dark"])), "another order"),
        (
            lambda rows: rows.remove_columns("saliency").add_column("saliency", [[[0.0]]] * 3),
            "column saliency of the type List, which takes no pictures; .*cast_column",
        ),
        (
            lambda rows: rows.cast_column("label", Value("int64")).map(
                lambda row: {"label": 3 if row["label"] == 1 else row["label"]}
            ),
            "row 1 has the label 3, outside the class list",
        ),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(brightness, change, message):
    with pytest.raises(ValueError, match=message):
        pseudo_saliency(brightness, change(spots([-1, 1, 0])), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rise"}, "method='rise' is not known; choose one of 'auto'"),
        ({"map_class": "wrong"}, "map_class='wrong' is not known; choose one of 'true', 'predicted'"),
        ({"batch_size": 0}, "batch_size=0 has to be an integer of 1 or more"),
    ],
)
def test_unknown_options_are_refused(brightness, options, message):
    annotated = spots([1], [spot(5, 5)])  # nothing to compute
    with pytest.raises(ValueError, match=message):
        pseudo_saliency(brightness, annotated, progress=False, **options)


def test_a_picture_that_cannot_be_read_is_named(brightness, tmp_path):
    spot(5, 5).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"broken")
    files = [str(tmp_path / name) for name in ("good.png", "bad.png")]
    dataset = Dataset.from_dict({"image": files, "label": [1, 1]}).cast_column("image", Image())
    with pytest.raises(ValueError, match=r"row 1 \(.*bad\.png\): .*cannot be read"):
        pseudo_saliency(brightness, dataset, progress=False)


def test_a_teacher_that_gives_nan_is_refused(brightness):
    with torch.no_grad():
        brightness.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pseudo_saliency(brightness, spots([1]), method="input_gradient", progress=False)
