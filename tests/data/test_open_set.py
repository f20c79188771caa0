"""What is left out of training is tested on, and nothing that is trained on is."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_salguide.data import leave_one_out_split, load_saliency_dataset

TEST = [("live", None), ("spoof", "lens"), ("spoof", "print"), ("live", None), ("spoof", "glass")]
TRAIN = [("live", None), ("spoof", "lens"), ("spoof", "print"), ("spoof", "lens")]


def split(name, rows, groups=None):
    """A split of (label, attack type) rows; its pictures do not exist, so that reading one fails."""
    labels, types = zip(*rows, strict=True) if rows else ((), ())
    names = sorted({"live", "spoof", *labels})
    columns = {
        "image": [{"bytes": None, "path": f"/nowhere/{name}{index}.png"} for index in range(len(rows))],
        "label": [names.index(label) for label in labels],
        "attack_type": list(types),
        "file_name": [f"{name}{index}.png" for index in range(len(rows))],
    }
    features = {
        "image": Image(),
        "label": ClassLabel(names=names),
        "attack_type": Value("string"),
        "file_name": Value("string"),
    }
    if groups is not None:
        columns["group"], features["group"] = groups, Value("string")
    return Dataset.from_dict(columns, features=Features(features))


def attacks(**changed):
    given = {"train": TRAIN, "validation": TRAIN[:3], "test": TEST, "ood": TEST[1:3]} | changed
    return DatasetDict({name: split(name, rows) for name, rows in given.items()})


def files(dataset):
    return {name: list(rows["file_name"]) for name, rows in dataset.items()}


def test_an_attack_type_leaves_and_bona_fide_pictures_stay_in_both():
    before = attacks()
    assert files(leave_one_out_split(before, "attack_type", "lens")) == {
        "train": ["train0.png", "train2.png"],
        "validation": ["validation0.png", "validation2.png"],
        "test": ["test0.png", "test2.png", "test3.png", "test4.png"],
        "ood": ["ood0.png", "ood1.png"],
        "unseen": ["test0.png", "test1.png", "test3.png"],
    }
    assert files(before)["train"] == [f"train{index}.png" for index in range(4)]  # what was given is as it was
    assert "unseen" not in before


@pytest.mark.parametrize("value", ["lens", "print", "glass"])
def test_nothing_that_is_trained_on_is_tested_on(value):
    splits = files(leave_one_out_split(attacks(validation=[*TRAIN, ("spoof", "glass")]), "attack_type", value))
    fitted = {*splits["train"], *splits["validation"]}
    assert not fitted & {*splits["test"], *splits["unseen"]}


def test_the_unseen_split_differs_from_the_test_split_in_the_unseen_pictures_only():
    splits = leave_one_out_split(attacks(), "attack_type", "print")
    live = [row["file_name"] for row in splits["test"].remove_columns("image") if row["label"] == 0]
    unseen = splits["unseen"].remove_columns("image")
    assert [row["file_name"] for row in unseen if row["label"] == 0] == live
    assert [row["attack_type"] for row in unseen if row["label"] == 1] == ["print"]
    assert unseen.features["label"] == ClassLabel(names=["live", "spoof"])


def test_a_type_that_only_the_test_split_has_changes_no_training():
    splits = files(leave_one_out_split(attacks(), "attack_type", "glass"))
    assert len(splits["train"]) == 4
    assert splits["unseen"] == ["test0.png", "test3.png", "test4.png"]


@pytest.mark.parametrize("value", ["print", 1])
def test_a_class_is_left_out_by_name_or_id(value):
    rows = [(name, None) for name in ("live", "print", "spoof", "live", "print")]
    dataset = DatasetDict({name: split(name, rows) for name in ("train", "test")})
    splits = leave_one_out_split(dataset, "label", value)
    assert splits["train"]["label"][:] == splits["test"]["label"][:] == [0, 2, 0]
    assert splits["unseen"]["label"][:] == [0, 1, 2, 0, 1]  # known against unknown
    assert splits["train"].features["label"].names == ["live", "print", "spoof"]


def test_a_site_with_both_labels_is_a_split_of_its_own():
    rows = [("live", "here"), ("spoof", "here"), ("live", "there"), ("spoof", "there")]
    dataset = DatasetDict({name: split(name, rows) for name in ("train", "test")})
    splits = files(leave_one_out_split(dataset, "attack_type", "there"))
    assert splits["unseen"] == ["test2.png", "test3.png"]
    assert splits["test"] == ["test0.png", "test1.png"]


def test_without_test_rows_of_the_type_those_that_left_training_are_taken(caplog):
    splits = files(leave_one_out_split(attacks(test=[("live", None), ("spoof", "print")]), "attack_type", "lens"))
    assert splits["unseen"] == ["test0.png", "train1.png", "train3.png", "validation1.png"]
    assert splits["train"] == ["train0.png", "train2.png"]
    assert "takes the 3 that left training (0 of groups" in caplog.text


def test_a_subject_that_is_trained_on_is_not_tested_on(caplog):
    dataset = DatasetDict(
        train=split("train", TRAIN, ["ann", "ann", "bob", "cid"]),
        validation=split("validation", TRAIN[:3], ["dan", "eve", None]),
        test=split("test", [("live", None)], ["fay"]),
    )
    splits = leave_one_out_split(dataset, "attack_type", "lens")
    assert files(splits)["unseen"] == ["test0.png", "train3.png", "validation1.png"]
    assert "(1 of groups that are still trained on are left out)" in caplog.text
    crossing = DatasetDict(
        train=split("train", TRAIN[:3], ["ann", "ann", "bob"]), test=split("test", [("live", None)], ["fay"])
    )
    with pytest.raises(ValueError, match=r"test has no rows of attack_type='lens', and the groups of all 1 rows"):
        leave_one_out_split(crossing, "attack_type", "lens")


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_split_that_is_left_with_one_class_is_warned_of(name, caplog):
    rows = {"validation": TRAIN[:2], "test": [("live", None), ("spoof", "lens")]}[name]
    leave_one_out_split(attacks(**{name: rows}), "attack_type", "print")
    assert "AUROC is not defined" not in caplog.text
    caplog.clear()
    leave_one_out_split(attacks(**{name: rows}), "attack_type", "lens")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"Without attack_type='lens' the split {name} holds 1 class: AUROC is not defined on it" in caplog.text
    assert f"Put rows of another class into {name}" in caplog.text
    assert ("cannot select a model" in caplog.text) == (name == "validation")
    caplog.clear()
    leave_one_out_split(attacks(), "attack_type", "lens")
    assert not caplog.records


def test_a_loaded_folder(folder):
    for index, row in enumerate(folder.rows):
        row["split"] = ("train", "test")[index // 4]
        row["attack"] = ("lens", "", "print", "")[index % 4]
    splits = leave_one_out_split(load_saliency_dataset(folder.write()), "attack", "print")
    assert {name: list(rows["file_name"]) for name, rows in splits.items()} == {
        "train": ["images/0.png", "images/1.png", "images/3.png"],
        "test": ["images/4.png", "images/5.png", "images/7.png"],
        "unseen": ["images/5.png", "images/6.png", "images/7.png"],
    }
    assert splits["unseen"][1]["image"].size == (30, 20)


@pytest.mark.parametrize(
    ("changed", "column", "value", "message"),
    [
        ({}, "attack", "lens", r'column="attack" is no column of .* there are label, attack_type, file_name\.'),
        ({}, "image", "lens", r'column="image" is no column of names or numbers'),
        ({}, "attack_type", "lense", r"there are 'lens' \(4 rows\), 'print' \(3 rows\), 'glass' \(1 rows\)\."),
        ({}, "attack_type", None, r'value=None is not in column "attack_type"'),
        ({}, "label", "dead", r"value='dead' is not in column \"label\"; there are 'spoof' \(8 rows\), 'live'"),
        ({}, "label", "spoof", r"without label='spoof' train holds 1 of the two classes"),
        ({"train": [TRAIN[0], TRAIN[1]]}, "attack_type", "lens", r"train holds 1 of the two classes"),
        ({"test": TEST[1:3]}, "attack_type", "lens", r"would hold one class only, and AUROC would not be defined"),
        ({"unseen": TEST}, "attack_type", "lens", r'has a split "unseen" already'),
    ],
)
def test_what_cannot_be_left_out(changed, column, value, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out_split(attacks(**changed), column, value)


def test_the_splits_that_are_needed():
    dataset = attacks()
    del dataset["test"]
    with pytest.raises(ValueError, match=r'no split "test", only train, validation, ood'):
        leave_one_out_split(dataset, "attack_type", "lens")
    with pytest.raises(ValueError, match=r"dataset is a Dataset; give a DatasetDict"):
        leave_one_out_split(attacks()["train"], "attack_type", "lens")
