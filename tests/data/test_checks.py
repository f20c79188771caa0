import json
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image

from hf_salguide.data import (
    annotated_rows,
    annotated_share,
    check_folder,
    check_rows,
    check_table,
    decoy_digits,
    load_saliency_dataset,
    make_transforms,
    prepare_dataset,
)

from .test_prepare import Rows
from .test_transforms import config


def _messages(report, severity="error"):
    return [str(problem) for problem in report.problems if problem.severity == severity]


# ---- Tables ----


def _table(labels, **columns):
    dataset = Dataset.from_dict({"label": labels, **columns})
    return dataset.cast_column("label", ClassLabel(names=["a", "b"]))


def test_a_good_table_passes(folder):
    dataset = load_saliency_dataset(folder.write())
    check_table(dataset, label_names=["zebra", "ant"], needs_annotation=True)
    check_table(dataset["train"], label_names=["LABEL_0", "LABEL_1"])
    check_table(dataset["test"], label_names=["zebra", "ant"], training=False, needs_annotation=True)
    check_table(prepare_dataset(dataset["train"], make_transforms(config(), train=False)), needs_annotation=True)
    check_table(Rows([{"pixel_values": 0}]))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["b", "a"], r"\['b', 'a'\] and the data set's \['a', 'b'\]: the same classes in another order"),
        (["a", "c"], "other classes"),
        (["a", "b", "c"], "other classes"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], "3 classes and the data set 2"),
    ],
)
def test_the_models_classes_must_be_the_data_sets(names, words):
    with pytest.raises(ValueError, match=words):
        check_table(_table([0, 1]), label_names=names)


def test_labels_outside_the_class_list():
    with pytest.raises(ValueError, match=r"row 1 has the label 2, outside the class list 0 to 1 \(x, y\)"):
        check_table([{"pixel_values": 0, "labels": torch.tensor(label)} for label in (0, 2)], label_names=["x", "y"])
    with pytest.raises(ValueError, match="row 0 has the label -1"):
        check_table([{"labels": -1}, {"labels": 0}])


def test_one_class_matters_in_training_only():
    with pytest.raises(ValueError, match='every row of the training set has the label "b"'):
        check_table(_table([1, 1]))
    check_table(_table([1, 1]), training=False)
    check_table({"train": _table([0, 1]), "test": _table([1, 1])})


def test_no_annotation_where_it_is_needed():
    for dataset in (_table([0, 1]), _table([0, 1], saliency=[None, None]), [{"labels": 0}, {"labels": 1}]):
        check_table(dataset)
        with pytest.raises(ValueError, match=r"none of the 2 training rows is annotated.*mask_file_name"):
            check_table(dataset, needs_annotation=True)


def test_tables_without_rows_with_bad_weights_and_with_groups_that_cross():
    with pytest.raises(ValueError, match="has no rows"):
        check_table(_table([]))
    with pytest.raises(ValueError, match=r"weight is -1.0 \(row 1\)"):
        check_table(_table([0, 1], weight=[1.0, -1.0]))
    splits = {"train": _table([0, 1], group=["p", "q"]), "test": _table([0, 1], group=["q", "r"])}
    with pytest.raises(ValueError, match=r'"q" \(test and train\)'):
        check_table(DatasetDict(splits))


def test_annotated_rows_and_share(folder):
    folder.rows[0]["mask_file_name"] = "masks/0.png;masks/1.png"
    several = load_saliency_dataset(folder.write())["train"]
    assert annotated_rows(several) == [True, True, True, False]
    assert annotated_rows(several.select([3, 0])) == [False, True]
    assert annotated_share(several) == 0.75
    rows = list(decoy_digits(num_train=20, saliency_fraction=0.25)["train"])
    assert annotated_rows(rows) == annotated_rows(decoy_digits(num_train=20, saliency_fraction=0.25)["train"])
    assert annotated_rows(Rows(rows)) is None
    assert annotated_share(Rows(rows)) == 0.25
    with pytest.raises(ValueError, match="map-style"):
        annotated_share(iter(rows))


# ---- Rows ----


def test_check_rows_reads_evenly_spread_rows_and_raises(folder):
    dataset = load_saliency_dataset(folder.write())
    state = torch.get_rng_state()
    report = check_rows(dataset, limit=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.summary["rows"] == {"train": {"zebra": 2}, "validation": {"zebra": 1}, "test": {"ant": 1}} | {
        "ood": {"zebra": 1}
    }
    (folder.path / "images/2.png").write_bytes(b"broken")
    np.save(folder.path / "masks/1.npy", np.full((20, 30), np.nan))
    with pytest.raises(ValueError, match=r"1 problem\.\n  images/2\.png: .*cannot be read"):
        check_rows(dataset)


def test_check_rows_of_prepared_rows():
    good = {"pixel_values": torch.rand(3, 4, 4), "labels": 0, "saliency": torch.rand(4, 4)}
    check_rows([good, good | {"pixel_values": torch.rand(3, 4, 4)}])
    with pytest.raises(ValueError, match=r"row 1: .*NaN"):
        check_rows(Rows([good, good | {"saliency": torch.full((4, 4), torch.nan)}]))
    with pytest.raises(ValueError, match="row 1: pixel_values has NaN"):
        check_rows([good, good | {"pixel_values": torch.full((3, 4, 4), torch.nan)}])
    with pytest.raises(ValueError, match="row 1: label 5 lies outside the 3 classes"):
        check_rows(Rows([good, good | {"labels": 5}]), num_labels=3)


def test_all_pictures_constant(folder):
    for row in folder.rows:
        Image.new("L", (30, 20), 7).save(folder.path / row["file_name"])
    with pytest.raises(ValueError, match="all 7 pictures that were read are constant"):
        check_rows(load_saliency_dataset(folder.write()))


# ---- Folders ----


def test_a_good_folder(folder):
    report = check_folder(folder.write())
    assert not report.errors
    assert report.summary["rows"]["train"] == {"zebra": 2, "ant": 2}
    assert report.summary["annotated_share"]["train"] == {"zebra": 1.0, "ant": 0.5}
    assert report.summary["picture_sizes"] == {"30 × 20": 7}
    assert report.summary["picture_modes"] == {"RGB": 7}
    assert _messages(report, "warning") == ["1 rows have an empty split and are left out; name their split"]
    assert json.loads(json.dumps(report.to_dict()))["summary"] == report.summary
    assert "0 errors, 1 warnings" in str(report)


def test_every_problem_is_listed(folder):
    (folder.path / "images/0.png").write_bytes(b"broken")
    folder.rows[1]["mask_file_name"] = "masks/absent.png"
    Image.new("RGB", (30, 20), (255, 0, 0)).save(folder.path / "masks/2.png")
    np.save(folder.path / "nan.npy", np.full((20, 30), np.nan, np.float32))
    folder.rows[3]["mask_file_name"] = "nan.npy"
    Image.new("L", (20, 20)).save(folder.path / "masks/4.png")
    folder.rows[5]["file_name"] = "../5.png"
    errors = _messages(check_folder(folder.write()))
    expected = [
        ("images/0.png", "cannot be read"),
        ("masks/absent.png", "does not exist"),
        ("images/2.png", "colours"),
        ("images/3.png", "NaN"),
        ("images/4.png", "20 × 20 and its picture 20 × 30"),
        ("../5.png", "leaves the folder"),
    ]
    assert len(errors) == len(expected)
    for words in expected:
        assert any(all(word in error for word in words) for error in errors), (words, errors)


def test_leaks_are_warned_of(folder):
    for index in (0, 2):
        Image.new("L", (30, 20)).save(folder.path / f"masks/{index}.png")
    (folder.path / "images/5.png").write_bytes((folder.path / "images/1.png").read_bytes())
    Image.new("L", (30, 20), 9).save(folder.path / "images/6.png")
    Image.fromarray(np.eye(20, 30, dtype=np.uint8) * 3).save(folder.path / "masks/1.png")
    report = check_folder(folder.write())
    warnings = "\n".join(_messages(report, "warning"))
    assert 'all 2 empty masks have the label "zebra"' in warnings
    assert "images/1.png (train), images/5.png (test)" in warnings
    assert "images/6.png: the picture is constant" in warnings
    assert "images/1.png: the saliency map's brightest value is 3 of 255" in warnings
    assert report.summary["empty_masks"] == {"zebra": 2}
    assert report.summary["repeated_pictures"] == 1
    assert not report.errors


def test_annotation_of_one_class_and_mixed_depths(folder):
    for index, row in enumerate(folder.rows):
        row["mask_file_name"] = "" if row["label"] else row["mask_file_name"]
        ramp = np.linspace(0, 60000 if index == 0 else 4000, 600).astype(np.uint16).reshape(20, 30)
        Image.fromarray(ramp + index).save(folder.path / row["file_name"])
    warnings = "\n".join(_messages(check_folder(folder.write()), "warning"))
    assert 'only rows with the label "zebra" are annotated' in warnings
    assert "deep pictures fall on different scales: 4095 (images/1.png), 65535 (images/0.png)" in warnings
    assert "bit_depth" in warnings
    assert "save all pictures with one scale" in warnings


def test_groups_are_counted_and_crossing_is_an_error(folder):
    for index, row in enumerate(folder.rows):
        row["patient"] = f"p{min(index, 4)}"
    report = check_folder(folder.write(), group_column="patient")
    assert report.summary["groups"] == {"train": 4, "validation": 1, "test": 1, "ood": 1}
    assert '"p4" (ood and test and validation)' in _messages(report)[0]


def test_what_cannot_be_loaded_is_in_the_report(folder, tmp_path):
    folder.write()
    folder.write("metadata.jsonl")
    assert "both metadata.csv and metadata.jsonl" in _messages(check_folder(folder.path))[0]
    assert "does not exist" in _messages(check_folder(tmp_path / "absent"))[0]
    with pytest.raises(TypeError, match="colour"):
        check_folder(folder.path, colour="red")


def test_a_dataset_of_the_library():
    report = check_folder(decoy_digits(num_train=30, num_validation=5, num_test=5, num_ood=5))
    assert not report.problems
    assert sum(report.summary["rows"]["train"].values()) == 30


def test_resized_maps_are_counted_and_told_once(folder):
    for index in (0, 1):
        Image.new("L", (15, 10), 255).save(folder.path / f"masks/{index}.png")
    report = check_folder(folder.write())
    assert report.summary["resized_maps"] == 2
    assert sum("2 annotated pictures have a map of another size" in line for line in _messages(report, "warning")) == 1
    assert not report.errors


def test_class_names_that_differ_in_case_are_in_the_report(folder):
    folder.drop_column("label")
    folder.rows[0]["label_name"] = "Zebra"
    assert "differ only in case: Zebra, zebra" in "".join(_messages(check_folder(folder.write()), "warning"))


def test_reading_rows_leaves_the_global_generators():
    good = {"pixel_values": torch.rand(3, 4, 4), "labels": 0, "saliency": torch.rand(4, 4)}
    dataset = Rows([good, good | {"pixel_values": torch.rand(3, 4, 4)}])  # draws from all three when it is read
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    check_rows(dataset)
    assert dataset.reads == 2
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), states[2], strict=True))
