"""Difference Salience over a data set: every figure against one picture at a time, the regions, the files."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_salguide import as_classifier, difference_salience, saliency_maps
from hf_salguide.backbones import data_config, resolve_feature_layer
from hf_salguide.data import decoy_digits, make_transforms
from hf_salguide.studies.explanation import difference, difference_files
from hf_salguide.studies.explanation import explain as explanation
from hf_salguide.studies.explanation.difference import study_difference
from hf_salguide.studies.explanation.difference_files import check_folder, summarise, write_study
from hf_salguide.studies.explanation.regions import find_regions, first_of_pictures, rank_regions

COUNT = 12


@pytest.fixture(scope="module")
def digits():
    """Pictures without a file name: annotated, annotated and empty, and not annotated."""
    digits = decoy_digits(size=64, num_train=10, num_validation=10, num_test=COUNT, num_ood=10)["test"]
    rows = [dict(digits[row]) for row in range(COUNT)]
    rows[1]["saliency"] = None
    rows[4]["saliency"] = Image.new("L", (64, 64), 0)
    return [{**row, "file_name": f"digit_{index}.png"} for index, row in enumerate(rows)]


def built(architecture, size=64, **options):
    torch.manual_seed(3)
    model = as_classifier(architecture, num_labels=10, image_size=size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            # The head's weights are large enough for maps of both signs.
            parameter.add_((0.5 if parameter.shape[:1] == (10,) else 0.05) * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return built("test_resnet", size=128)  # 4 × 4 cells


@pytest.fixture(scope="module")
def study(model, digits):
    return study_difference(model, digits, batch_size=5, progress=False)


def prepared(model, row):
    pixels, saliency = make_transforms(data_config(model), train=False)(row["image"], row["saliency"])
    return pixels[None], None if saliency is None else saliency.float().numpy() / 255


def upsampled(values, size):
    tensor = torch.as_tensor(values)[None, None]
    return F.interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0].numpy()


def test_each_figure_is_that_of_the_picture_alone(model, digits, study):
    rows = np.flatnonzero(~np.isnan(study.positive_inside))[:4]
    assert len(rows) == 4
    for row in rows:
        pixels, saliency = prepared(model, digits[row])
        label = digits[row]["label"]
        with torch.no_grad():
            logits = model(pixels).logits[0].double()
            map = difference_salience(model, pixels, label)[0].numpy()
        rivals = np.delete(logits.numpy(), label)
        weights = np.exp(rivals - rivals.max())
        weights /= weights.sum()
        assert study.contrasts[row] == pytest.approx(logits[label].item() - weights @ rivals, abs=1e-4)
        assert study.predicted[row] == logits.argmax()
        assert study.probabilities[row] == pytest.approx(logits.softmax(0).max().item(), abs=1e-5)
        size = saliency.shape
        mass, positive = upsampled(abs(map), size), upsampled(np.maximum(map, 0), size)
        assert study.inside[row] == pytest.approx((mass * saliency).sum() / mass.sum(), rel=1e-3)
        assert study.positive_inside[row] == pytest.approx((positive * saliency).sum() / positive.sum(), rel=1e-3)
        q = np.maximum(map, 0) / np.maximum(map, 0).sum()
        assert study.entropy[row] == pytest.approx(-(q[q > 0] * np.log(q[q > 0])).sum(), rel=1e-3)


def test_the_fooling_gap_is_that_of_the_two_maps_at_matched_area(model, digits, study):
    gaps = []
    for row in (0, 2, 3):
        pixels, saliency = prepared(model, digits[row])
        label = digits[row]["label"]
        with torch.no_grad():
            maps = [saliency_maps(model, pixels, label)[0], difference_salience(model, pixels, label)[0]]
        mask = saliency >= 0.5
        overlaps = []
        for map in maps:
            values = upsampled(map, saliency.shape)
            chosen = np.zeros(values.size, dtype=bool)
            chosen[np.argsort(-values, axis=None, kind="stable")[: mask.sum()]] = True
            chosen = chosen.reshape(mask.shape)
            overlaps.append((chosen & mask).sum() / (chosen | mask).sum())
        assert (study.iou_true[row], study.iou_difference[row]) == pytest.approx(overlaps, abs=0.01)
        gaps.append(overlaps[0] - overlaps[1])
    np.testing.assert_allclose(study.fooling_gap[[0, 2, 3]], gaps, atol=0.02)
    assert np.ptp(study.fooling_gap[~np.isnan(study.fooling_gap)]) > 0.02


def test_what_needs_an_annotation_is_not_a_number_without_one(study):
    for name in ("inside", "positive_inside", "iou_true", "iou_difference", "fooling_gap"):
        missing = np.flatnonzero(np.isnan(getattr(study, name)))
        assert set(missing) >= {1, 4}, name
        assert name == "positive_inside" or list(missing) == [1, 4]
    assert study.annotated.tolist() == [row != 1 for row in range(COUNT)]
    assert not np.isnan(study.contrasts).any()


def test_an_exact_read_out_is_complete_and_another_is_not(study, digits):
    assert study.readout == "exact"
    assert study.completeness.shape == (COUNT,)
    assert study.completeness.max() < 1e-4 * abs(study.contrasts).max()
    assert not any("Not complete" in note for note in summarise(study)["notes"])
    other = study_difference(built("test_vit"), digits[:3], progress=False)
    assert other.completeness is None
    assert "Not complete: the read-out of timm_model.blocks.5.norm1 is generic" in summarise(other)["notes"][0]


def test_neither_the_batch_nor_the_mode_matters(model, digits, study):
    model.train()
    whole = study_difference(model, digits, batch_size=COUNT, progress=False)
    assert model.training
    model.eval()
    for name in ("contrasts", "inside", "entropy", "iou_difference"):
        np.testing.assert_allclose(getattr(whole, name), getattr(study, name), rtol=1e-3, atol=1e-4)
    assert [region.box for region in whole.regions] == [region.box for region in study.regions]


def test_the_mean_map_of_a_class_is_that_of_its_pictures(model, digits, study):
    label = digits[0]["label"]
    maps = []
    for row in digits:
        if row["label"] == label:
            with torch.no_grad():
                maps.append(difference_salience(model, prepared(model, row)[0], label)[0].numpy())
    assert study.class_counts.sum() == COUNT
    assert study.class_counts[label] == len(maps)
    np.testing.assert_allclose(study.class_means[label], np.mean(maps, axis=0), rtol=1e-3, atol=1e-4)
    absent = sorted(set(range(10)) - {row["label"] for row in digits})
    assert np.isnan(study.class_means[absent]).all()


def test_regions_are_of_the_pictures_that_they_name(model, digits, study):
    assert [region.evidence for region in study.regions] == sorted(
        (region.evidence for region in study.regions), reverse=True
    )
    region = study.regions[0]
    with torch.no_grad():
        map = difference_salience(model, prepared(model, digits[region.row])[0], digits[region.row]["label"])[0]
    rows, columns = (range(region.box[place] // 32, region.box[place + 2] // 32) for place in (1, 0))
    cells = map[rows.start : rows.stop, columns.start : columns.stop].numpy()
    assert region.evidence == pytest.approx(cells[cells > map.max().item() / 2].sum() / 16, rel=1e-4)
    positive = map.clamp(min=0).sum().item()
    assert region.share == pytest.approx(region.evidence * 16 / positive, rel=1e-4)


@pytest.mark.parametrize("rival", ["max", "mean"])
def test_the_rival_is_passed_on(model, digits, study, rival):
    other = study_difference(model, digits[:4], rival=rival, progress=False)
    with torch.no_grad():
        maps = difference_salience(model, prepared(model, digits[2])[0], digits[2]["label"], rival)
    mass = upsampled(abs(maps[0].numpy()), (128, 128))
    saliency = prepared(model, digits[2])[1]
    assert other.inside[2] == pytest.approx((mass * saliency).sum() / mass.sum(), rel=1e-3)
    assert not np.allclose(other.contrasts, study.contrasts[:4], rtol=1e-3)


def test_without_labels_the_predicted_class_is_explained(model, digits):
    bare = [{"image": row["image"]} for row in digits[:4]]
    study = study_difference(model, bare, progress=False)
    assert study.labels is None
    assert study.explained is study.predicted
    with torch.no_grad():
        maps = difference_salience(model, prepared(model, digits[0])[0])
    assert study.class_means[study.predicted[0]].shape == maps.shape[1:]
    notes = summarise(study)["notes"]
    assert "There are no labels: each map is of the predicted class against the others." in notes
    assert any(note.startswith("No picture is annotated: inside") for note in notes)
    assert summarise(study)["means"]["inside"] is None
    assert study.flattering == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rival": "none"}, 'rival="none" is not known'),
        ({"share": 1.0}, "share=1.0 of a map's maximum is out of range"),
        ({"share": -0.1}, "share=-0.1"),
    ],
)
def test_options_are_checked_before_any_compute(model, digits, options, message, monkeypatch):
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match=message):
        study_difference(model, digits, progress=False, **options)
    with pytest.raises(ValueError, match="the data set has no picture"):
        study_difference(model, [], progress=False)


def test_labels_outside_the_classes_are_refused(model, digits):
    rows = [digits[0], {**digits[0], "label": 10}]
    with pytest.raises(ValueError, match="row 1: label 10 is outside the model's 10 classes, 0 to 9"):
        study_difference(model, rows, batch_size=1, progress=False)


@pytest.mark.parametrize("given", [str, list, "FeatureLayer"])
def test_the_layer_of_the_maps_is_chosen(model, digits, given, study):
    name = "timm_model.layer3"
    layer = resolve_feature_layer(model, feature_layer=name) if given == "FeatureLayer" else given([name])
    layer = name if given is str else layer
    other = study_difference(model, digits[:3], progress=False, feature_layer=layer)
    assert other.feature_layers == (name,)
    pixels, saliency = prepared(model, digits[2])
    with torch.no_grad():
        map = difference_salience(model, pixels, digits[2]["label"], feature_layer=name)[0].numpy()
    assert map.shape == other.class_means.shape[1:] != study.class_means.shape[1:]
    mass = upsampled(abs(map), saliency.shape)
    assert other.inside[2] == pytest.approx((mass * saliency).sum() / mass.sum(), rel=1e-3)


def test_logits_that_are_not_finite_are_refused(digits, monkeypatch):
    logits = torch.zeros(3, 2)
    logits[1, 0] = torch.inf
    explanation.check_finite(logits[:1], 5)
    with pytest.raises(ValueError, match="row 6: the model's logits are not finite"):
        explanation.check_finite(logits, 5)
    broken = built("test_resnet")
    layer = resolve_feature_layer(broken)
    for module in (difference, explanation):  # which looks for a layer where no logit is finite
        monkeypatch.setattr(module, "layer_of_maps", lambda *args: layer)
    with torch.no_grad():
        broken.timm_model.fc.bias[3] = torch.nan
    with pytest.raises(ValueError, match="row 0: the model's logits are not finite"):
        study_difference(broken, digits[:2], progress=False)
    with pytest.raises(ValueError, match="row 0: the model's logits are not finite"):
        explanation.explain(broken, digits[:2])


def test_the_file_that_cannot_be_read_is_named(model, digits, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.png"):
        study_difference(model, [*digits[:2], {"image": str(path), "label": 0}], progress=False)


MAP = np.array(
    [
        [4.0, 3.0, 0.0, -1.0],
        [0.0, 0.0, 2.5, 0.0],
        [1.0, 0.0, 2.5, -3.0],
    ],
    dtype=np.float32,
)


def test_regions_are_connected_cells_over_half_of_the_maximum():
    saliency = np.zeros((3, 4))
    saliency[0, 0], saliency[1, 2] = 1, 0.5
    first, second = find_regions(MAP, 7, (30, 80), saliency)
    # 3 and 2.5 touch at a corner alone.
    assert (first.row, first.box, first.cells) == (7, (0, 0, 40, 10), 2)
    assert (second.row, second.box, second.cells) == (7, (40, 10, 60, 30), 2)
    assert (first.evidence, second.evidence) == (7 / 12, 5 / 12)
    assert (first.share, second.share) == (7 / 13, 5 / 13)
    assert (first.inside, second.inside) == (4 / 7, 0.25)


def test_a_lower_share_joins_more_cells():
    (region,) = find_regions(np.maximum(MAP, 0.5), 0, (30, 80), share=0.1)
    assert (region.box, region.cells) == ((0, 0, 80, 30), 12)
    assert math.isnan(region.inside)
    assert region.share == 1


def test_a_box_holds_every_pixel_that_its_cells_touch():
    map = np.zeros((3, 3), dtype=np.float32)
    map[1, 1] = 1
    (region,) = find_regions(map, 0, (32, 40))
    assert region.box == (13, 10, 27, 22)  # of 13.3 to 26.7 and of 10.7 to 21.3


@pytest.mark.parametrize("values", [np.zeros((2, 2)), -np.ones((2, 2))])
def test_nowhere_positive_there_is_no_region(values):
    assert list(find_regions(values, 0, (8, 8))) == []


def test_the_ranking_is_by_evidence_and_then_by_row():
    regions = [*find_regions(MAP, 2, (30, 80)), *find_regions(MAP, 1, (30, 80)), *find_regions(2 * MAP, 3, (30, 80))]
    ranked = rank_regions(regions)
    assert [region.row for region in ranked] == [3, 3, 1, 2, 1, 2]
    assert [region.row for region in first_of_pictures(ranked, 2)] == [3, 1]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_the_study(model, digits, study, tmp_path):
    summary = write_study(study, model, digits, tmp_path / "out", panels=0)
    rows = read(tmp_path / "out" / "difference.csv")
    assert [row["file_name"] for row in rows] == [f"digit_{index}.png" for index in range(COUNT)]
    assert rows[1]["inside"] == rows[4]["fooling_gap"] == ""
    assert float(rows[2]["fooling_gap"]) == pytest.approx(study.fooling_gap[2], rel=1e-4, abs=1e-6)
    assert rows[3]["label"] == study.class_names[digits[3]["label"]]
    regions = read(tmp_path / "out" / "regions.csv")
    assert [int(row["rank"]) for row in regions] == list(range(1, len(study.regions) + 1))
    assert [row["file_name"] for row in regions] == [f"digit_{region.row}.png" for region in study.regions]
    assert tuple(int(regions[0][edge]) for edge in ("left", "top", "right", "bottom")) == study.regions[0].box
    gaps = [float(row["fooling_gap"]) for row in read(tmp_path / "out" / "flattering.csv")]
    assert gaps == sorted(gaps, reverse=True)
    assert len(gaps) == (study.fooling_gap > 0).sum() > 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["counts"]["fooling_gap"] == COUNT - 2
    assert summary["means"]["inside"] == pytest.approx(np.nanmean(study.inside))
    means = np.load(tmp_path / "out" / "class_means.npz")
    np.testing.assert_allclose(means["maps"], study.class_means, rtol=1e-5)
    assert not (tmp_path / "out" / ".part").exists()


def test_a_second_study_takes_the_place_of_the_first(model, digits, study, tmp_path):
    write_study(study, model, digits, tmp_path, figures="pdf", panels=1)
    first = sorted(path.name for path in tmp_path.iterdir())
    assert {"regions.pdf", "flattering.pdf", "class_means.pdf"} <= set(first)
    write_study(study, model, digits, tmp_path, panels=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in first if not name.endswith(".pdf")]


def test_an_interrupted_study_leaves_what_was_there(model, digits, study, tmp_path, monkeypatch):
    write_study(study, model, digits, tmp_path, panels=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(difference_files, "draw_class_means", full)
    with pytest.raises(OSError, match="no space left"):
        write_study(study, model, digits, tmp_path, panels=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_holds_something_else_is_refused(study, model, digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which is not ours; name a new folder"):
        write_study(study, model, digits, tmp_path, panels=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    check_folder(tmp_path / "new")


def test_no_map_outlives_its_batch(model, digits, monkeypatch):
    """What is kept of a picture is a few numbers, whatever the picture's size."""
    study = study_difference(model, digits, batch_size=2, progress=False)
    arrays = [value for value in vars(study).values() if isinstance(value, np.ndarray)]
    assert all(array.ndim == 1 for array in arrays if len(array) == COUNT)
