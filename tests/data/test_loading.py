import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_from_disk
from PIL import Image as PILImage

from hf_salguide.data import load_saliency_dataset, read_image, read_saliency
from hf_salguide.data.prepare import undecoded

# ---- What is read ----


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_gives_splits_classes_and_lazy_pictures(folder, name, caplog):
    dataset = load_saliency_dataset(folder.write(name))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 4, "validation": 1, "test": 1, "ood": 1}
    assert "1 rows have an empty split" in caplog.text
    features = dataset["train"].features
    assert features["label"] == ClassLabel(names=["zebra", "ant"])  # by integer, not by alphabet
    assert all(rows.features == features for rows in dataset.values())
    assert dataset["train"][1]["label"] == 1
    assert dataset["train"][0]["image"].size == (30, 20)
    assert undecoded(dataset["train"])[0]["image"] == {"bytes": None, "path": str(folder.path / "images/0.png")}
    assert [value is None for value in dataset["train"]["saliency"]] == [False, False, False, True]
    assert dataset["train"]["file_name"][:2] == ["images/0.png", "images/1.png"]
    assert dataset["train"].cast_column("image", Image())[0]["image"].size == (30, 20)


def test_without_a_split_column_everything_is_train(folder):
    folder.drop_column("split")
    assert {split: len(rows) for split, rows in load_saliency_dataset(folder.write()).items()} == {"train": 8}


def test_a_named_split_column(folder):
    for index, row in enumerate(folder.rows):
        row["scheme"] = "valid" if index < 2 else "confounded"
    dataset = load_saliency_dataset(folder.write(), split_column="scheme")
    assert {split: len(rows) for split, rows in dataset.items()} == {"validation": 2, "confounded": 6}


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (None, ["b", "a"], ["a", "b"]),
        ([0, 1], None, ["0", "1"]),
        (["b", "a"], None, ["a", "b"]),
        ([2, 1], ["b", "a"], ["a", "b"]),
    ],
)
def test_class_names(folder, labels, names, expected):
    for index, row in enumerate(folder.rows):
        del row["label"], row["label_name"]
        if labels is not None:
            row["label"] = labels[index % 2]
        if names is not None:
            row["label_name"] = names[index % 2]
    dataset = load_saliency_dataset(folder.write())
    assert dataset["train"].features["label"].names == expected
    assert dataset["train"][0]["label"] == (1 if expected == ["a", "b"] else 0)


def test_where_selects_rows_and_other_columns_are_kept(folder):
    for index, row in enumerate(folder.rows):
        row["source"], row["dose"] = ("easy", "hard")[index // 2 % 2], index / 2
    dataset = load_saliency_dataset(folder.write(), where={"source": "hard"})
    assert dataset["train"]["file_name"][:] == ["images/2.png", "images/3.png"]
    assert dataset["train"]["dose"][:] == [1.0, 1.5]


def test_where_may_ask_for_a_list_of_values(folder):
    for index, row in enumerate(folder.rows):
        row["site"] = index % 4
    dataset = load_saliency_dataset(folder.write(), where={"site": [0, 1]}, split_column="split")
    assert sum(len(rows) for rows in dataset.values()) == 4


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_several_annotators_make_a_list(folder, name):
    joined = ["masks/0.png", "masks/1.png"]
    folder.rows[0]["mask_file_name"] = joined if name.endswith("jsonl") else ";".join(joined)
    dataset = load_saliency_dataset(folder.write(name))
    assert dataset["train"].features["saliency"] == List(Image())
    assert [value and len(value) for value in dataset["train"]["saliency"]] == [2, 1, 1, None]
    one, other = (read_saliency(folder.path / mask) for mask in joined)
    torch.testing.assert_close(read_saliency(dataset["train"][0]["saliency"]), (one + other) / 2)


def test_groups_and_weights(folder):
    for index, row in enumerate(folder.rows):
        row["patient"], row["w"] = f"p{max(index, 3)}", index / 4
    dataset = load_saliency_dataset(folder.write(), group_column="patient", weight_column="w")
    assert dataset["train"]["group"][:] == ["p3"] * 4
    assert dataset["train"]["weight"][:] == [0.0, 0.25, 0.5, 0.75]


def test_a_column_called_weight_is_no_row_weight_unless_named(folder, caplog):
    for row in folder.rows:
        row["weight"] = 80  # of a patient, in kg
    assert "weight" not in load_saliency_dataset(folder.write())["train"].column_names
    assert "weight_column" in caplog.text


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.uint8, np.uint16])
def test_npy_maps_are_read_to_their_range(folder, dtype):
    unit = np.linspace(0, 1, 600).reshape(20, 30)
    scale = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    array = unit > 0.5 if dtype is bool else (unit * scale).astype(dtype)
    np.save(folder.path / "masks/0.npy", array)
    folder.rows[0]["mask_file_name"] = "masks/0.npy"
    row = undecoded(load_saliency_dataset(folder.write())["train"])[0]
    assert row["saliency"]["path"].endswith("masks/0.npy")
    expected = torch.from_numpy(array.astype(np.float32)) / (1 if dtype is bool else scale)
    torch.testing.assert_close(read_saliency(row["saliency"]), expected, atol=1e-5, rtol=0)
    decoded = Image().decode_example(row["saliency"])
    assert decoded.mode == "I;16"


# ---- Data sets of the datasets library ----


def _rows(count: int = 6) -> dict:
    generator = np.random.default_rng(0)
    pictures = [PILImage.fromarray(generator.integers(0, 256, (8, 9), dtype=np.uint8)) for _ in range(2 * count)]
    return {
        "img": pictures[:count],
        "mask": [picture if index != 2 else None for index, picture in enumerate(pictures[count:])],
        "labels": [index % 2 for index in range(count)],
        "site": ["a", "b", "a", "b", "a", "b"][:count],
    }


def _features(label) -> Features:
    return Features({"img": Image(), "mask": Image(), "labels": label, "site": Value("string")})


def test_a_dataset_dict_is_brought_to_the_same_columns():
    features = _features(ClassLabel(names=["x", "y"]))
    source = DatasetDict(
        {"train": Dataset.from_dict(_rows(), features=features), "val": Dataset.from_dict(_rows(4), features=features)}
    )
    dataset = load_saliency_dataset(source)
    assert set(dataset) == {"train", "validation"}
    assert set(dataset["train"].column_names) == {"image", "saliency", "label", "site"}
    assert dataset["train"].features["label"].names == ["x", "y"]
    assert [value is None for value in dataset["train"]["saliency"]] == [False, False, True, False, False, False]
    assert read_image(dataset["train"][0]["image"]).shape == (3, 8, 9)


def test_a_single_dataset_with_columns_that_are_named(tmp_path):
    source = Dataset.from_dict(_rows(), features=_features(Value("int64"))).rename_columns({"mask": "drawn"})
    dataset = load_saliency_dataset(
        source, split_column="site", image_column="img", saliency_column="drawn", where={"labels": [0, 1]}
    )
    assert {split: len(rows) for split, rows in dataset.items()} == {"a": 3, "b": 3}
    assert dataset["a"].features["label"].names == ["0", "1"]
    source.save_to_disk(tmp_path / "saved")
    again = load_saliency_dataset(tmp_path / "saved", saliency_column="drawn", image_column="img")
    assert len(again["train"]) == len(load_from_disk(str(tmp_path / "saved")))


def test_a_dataset_without_maps_is_not_annotated(caplog):
    source = Dataset.from_dict(_rows(), features=_features(ClassLabel(names=["x", "y"]))).remove_columns("mask")
    assert load_saliency_dataset(source)["train"]["saliency"][:] == [None] * 6
    assert "no picture is annotated" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_column": "photo"}, ['image_column="photo"', "img, mask, labels, site"]),
        ({"image_column": "site"}, ['image_column="site"', "cast_column"]),
        ({"saliency_column": "site"}, ['saliency_column="site"', "cast_column"]),
        ({"where": {"site": "c"}}, ["where={'site': 'c'}", "'a', 'b'"]),
        ({"where": {"nowhere": 1}}, ['where="nowhere"', "it has"]),
    ],
)
def test_a_dataset_with_wrong_columns(options, words):
    source = Dataset.from_dict(_rows(), features=_features(ClassLabel(names=["x", "y"])))
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        load_saliency_dataset(source, **options)
    assert all(word in str(error.value) for word in words[1:])


def test_a_dataset_with_a_label_outside_its_class_list():
    rows = _rows() | {"labels": [0, 1, -1, 0, 1, 0]}
    source = Dataset.from_dict(rows, features=_features(Value("int64"))).cast_column("labels", Value("int64"))
    table = source.data.table
    info = source.info.copy()
    info.features = _features(ClassLabel(names=["x", "y"]))
    with pytest.raises(ValueError, match=r"row 2 of train: label -1 lies outside the class list of 2 \(x, y\)"):
        load_saliency_dataset(Dataset(table, info=info))


# ---- Bad input ----


def _fails(folder, *words, name="metadata.csv", error=ValueError, **options):
    with pytest.raises(error) as raised:
        load_saliency_dataset(folder.write(name), **options)
    message = str(raised.value)
    assert all(word in message for word in words), message


def test_missing_mask(folder):
    folder.rows[2]["mask_file_name"] = "masks/absent.png"
    _fails(folder, "masks/absent.png", "line 4 of metadata.csv", "does not exist", "leave the cell empty")


def test_missing_picture(folder):
    os.remove(folder.path / "images/1.png")
    _fails(folder, "images/1.png", "line 3 of metadata.csv", "does not exist", "drop the row")


@pytest.mark.parametrize("name", ["../outside.png", "images/../../outside.png"])
def test_a_path_that_leaves_the_folder(folder, name):
    PILImage.new("L", (30, 20)).save(folder.path.parent / "outside.png")
    folder.rows[0]["mask_file_name"] = name
    _fails(folder, name, "leaves the folder", "copy the file into the folder")


def test_an_absolute_path(folder):
    folder.rows[0]["file_name"] = str(folder.path / "images/0.png")
    _fails(folder, "images/0.png", "absolute path", "relative to the folder")


@pytest.mark.parametrize("directory", [False, True])
def test_a_link_that_leaves_the_folder(folder, directory):
    outside = folder.path.parent / "elsewhere"
    outside.mkdir()
    PILImage.new("L", (30, 20)).save(outside / "mask.png")
    if directory:
        (folder.path / "linked").symlink_to(outside)
        folder.rows[0]["mask_file_name"] = "linked/mask.png"
    else:
        (folder.path / "masks/linked.png").symlink_to(outside / "mask.png")
        folder.rows[0]["mask_file_name"] = "masks/linked.png"
    _fails(folder, "linked", "leaves the folder")


def test_links_of_a_hub_snapshot_are_followed(folder, tmp_path):
    folder.write()
    repository = tmp_path / "datasets--x--y"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / "abc"
    os.rename(folder.path, snapshot)
    os.rename(snapshot / "images/0.png", repository / "blobs" / "0")
    (snapshot / "images/0.png").symlink_to("../../../blobs/0")
    assert len(load_saliency_dataset(snapshot)["train"]) == 4


def test_the_same_file_twice(folder):
    folder.rows[3]["file_name"] = "./images/1.png"
    _fails(folder, "./images/1.png", "line 5", "same file as in line 3", "one row a picture")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("file_name", ["no column file_name", "mask_file_name, label", "with image_column"]),
        ("label", ["label nor label_name"]),
    ],
)
def test_missing_columns(folder, column, words):
    folder.drop_column(column)
    if column == "label":
        folder.drop_column("label_name")
    _fails(folder, *words, "split")


def test_without_a_mask_column_nothing_is_annotated(folder, caplog):
    folder.drop_column("mask_file_name")
    assert load_saliency_dataset(folder.write())["train"]["saliency"][:] == [None] * 4
    assert "no column mask_file_name, only file_name, label" in caplog.text


@pytest.mark.parametrize(
    "argument", ["split_column", "image_column", "label_column", "saliency_column", "group_column", "weight_column"]
)
def test_a_named_column_that_does_not_exist(folder, argument):
    _fails(folder, f'{argument}="nowhere"', "it has file_name, mask_file_name", **{argument: "nowhere"})


def test_where_that_selects_nothing(folder):
    _fails(folder, "where={'label_name': 'dog'}", "'ant', 'zebra'", where={"label_name": "dog"})
    _fails(folder, 'where="colour"', "it has file_name", where={"colour": "red"})


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("label", -1, ["images/2.png", "label -1", "outside the class list"]),
        ("label", "", ["images/2.png", "no label", "drop the row"]),
        ("label", "many", ['label "many" is not an integer']),
        ("label_name", "dog", ['label 0 is called "dog" here and "zebra" before']),
        ("label_name", "", ["label 0 has no label_name"]),
        ("label", 1, ['label 1 is called "zebra"']),
    ],
)
def test_bad_labels(folder, column, value, words):
    folder.rows[2][column] = value
    _fails(folder, *words)


def test_one_name_for_two_integers(folder):
    folder.rows[2]["label"] = 2
    _fails(folder, 'label_name "zebra" stands for 2 here and for 0 before')


def test_one_class_only(folder):
    for row in folder.rows:
        row["label"], row["label_name"] = 0, "zebra"
    _fails(folder, 'every row has the label "zebra"', "two classes")


def test_both_tables(folder):
    folder.write("metadata.jsonl")
    _fails(folder, "both metadata.csv and metadata.jsonl", "keep one")


def test_an_empty_table(folder):
    (folder.path / "metadata.csv").write_text("file_name,mask_file_name,label\n")
    with pytest.raises(ValueError, match="has no rows"):
        load_saliency_dataset(folder.path)


def test_malformed_tables(folder):
    (folder.path / "metadata.jsonl").write_text('{"file_name": "images/0.png"\n')
    with pytest.raises(ValueError, match=r"line 1 of .*metadata\.jsonl is not JSON"):
        load_saliency_dataset(folder.path)
    os.remove(folder.path / "metadata.jsonl")
    (folder.path / "metadata.csv").write_text("file_name,label\nimages/0.png,0,extra\n")
    with pytest.raises(ValueError, match=r"line 2 of .*more cells than the header has columns \(2\)"):
        load_saliency_dataset(folder.path)


def test_a_group_that_crosses_splits(folder):
    for row in folder.rows:
        row["patient"] = "p7" if row["split"] in ("train", "test") else row["file_name"]
    _fails(folder, "patient: 1 groups", '"p7" (test and train)', "one split", group_column="patient")


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "", "heavy"])
def test_bad_weights(folder, weight):
    for row in folder.rows:
        row["w"] = "1"
    folder.rows[2]["w"] = weight
    _fails(folder, "images/2.png", "w is", "line 4", "finite weight of 0 or more", weight_column="w")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan, 1.0], ["NaN", "write 0"]),
        ([0.0, np.inf], ["infinite"]),
        ([0.0, 200.0], ["reach 200", "divide it by 255"]),
        ([-0.5, 1.0], ["negative"]),
        ([0.0, 0.001], ["density", "divide it by its maximum"]),
    ],
)
def test_bad_npy_maps(folder, values, words):
    np.save(folder.path / "masks/0.npy", np.tile(np.array(values, dtype=np.float32), (20, 15)))
    folder.rows[0]["mask_file_name"] = "masks/0.npy"
    _fails(folder, "masks/0.npy", *words)


def test_problems_are_counted_and_the_first_are_named(folder):
    for row in folder.rows:
        row["file_name"] = row["file_name"].replace("images", "pictures")
    _fails(folder, "7 problems", "pictures/0.png", "and 2 more")


def test_paths_that_cannot_be_loaded(folder, tmp_path):
    folder.write()
    with pytest.raises(ValueError, match=r'path=".*metadata\.csv" is a file; give the folder'):
        load_saliency_dataset(folder.path / "metadata.csv")
    with pytest.raises(FileNotFoundError, match=r'path=".*absent" does not exist; give a folder or the id'):
        load_saliency_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty folder; it needs metadata\.csv"):
        load_saliency_dataset(tmp_path / "empty")
    with pytest.raises(ValueError, match="path is a int; give a folder"):
        load_saliency_dataset(3)


# ---- A class list that is given ----


def _only(folder, *indices):
    folder.rows = [folder.rows[index] for index in indices]


def test_a_given_class_list_allows_one_class_and_places_names_in_it(folder):
    names = ["wolf", "zebra", "ant"]
    for row in folder.rows:
        row["label"] += 1
    _only(folder, 1, 3)
    dataset = load_saliency_dataset(folder.write(), label_names=names)
    assert dataset["train"].features["label"].names == names
    assert dataset["train"]["label"][:] == [2, 2]
    with pytest.raises(ValueError, match="two classes"):
        load_saliency_dataset(folder.path)


def test_integers_are_places_in_a_given_class_list(folder):
    folder.drop_column("label_name")
    _only(folder, 1, 3)
    assert load_saliency_dataset(folder.write(), label_names=["zebra", "ant"])["train"]["label"][:] == [1, 1]
    with pytest.raises(ValueError, match="\"1\" is not in the class list \\['zebra'\\]"):
        load_saliency_dataset(folder.path, label_names=["zebra"])


def test_names_alone_are_placed_in_a_given_class_list(folder):
    folder.drop_column("label")
    dataset = load_saliency_dataset(folder.write(), label_names=["zebra", "ant"])
    assert dataset["train"].features["label"].names == ["zebra", "ant"]
    assert dataset["train"]["label"][:] == [0, 1, 0, 1]


def test_a_table_that_contradicts_a_given_class_list(folder):
    _fails(folder, "another order", label_names=["ant", "zebra"])
    _fails(folder, 'the class "zebra" is not in', label_names=["ant", "dog"])


def test_a_given_class_list_for_a_data_set_of_the_library():
    source = Dataset.from_dict(_rows(), features=_features(ClassLabel(names=["x", "y"])))
    one = source.filter(lambda row: row["labels"] == 1)
    dataset = load_saliency_dataset(one, label_names=["w", "x", "y"])
    assert dataset["train"]["label"][:] == [2, 2, 2]
    assert dataset["train"].features["label"].names == ["w", "x", "y"]
    with pytest.raises(ValueError, match="another order"):
        load_saliency_dataset(source, label_names=["y", "x"])
    with pytest.raises(ValueError, match='every row has the label "y"'):
        load_saliency_dataset(one)


# ---- Cells as people write them ----


def test_an_empty_label_column_is_told_row_by_row(folder):
    folder.drop_column("label_name")
    for row in folder.rows:
        row["label"] = ""
    _fails(folder, "7 problems", "images/0.png", "the row has no label")


def test_cells_are_stripped(folder):
    for row in folder.rows:
        row["label_name"], row["split"] = f" {row['label_name']} ", f"{row['split']} "
    folder.rows[0]["mask_file_name"] = "   "
    folder.rows[1]["file_name"] = " images/1.png"
    dataset = load_saliency_dataset(folder.write())
    assert dataset["train"].features["label"].names == ["zebra", "ant"]
    assert dataset["train"]["file_name"][1] == "images/1.png"
    assert dataset["train"]["saliency"][0] is None


def test_names_that_differ_in_case_are_warned_of(folder, caplog):
    folder.drop_column("label")
    folder.rows[0]["label_name"] = "Zebra"
    assert load_saliency_dataset(folder.write())["train"].features["label"].names == ["Zebra", "ant", "zebra"]
    assert "differ only in case: Zebra, zebra" in caplog.text


def test_numbers_that_do_not_round_trip_stay_text(folder):
    for index, row in enumerate(folder.rows):
        row["patient"], row["version"], row["hash"] = f"{index:03}", f"1.{index}0", f"{index}e5"
        row["dose"], row["count"] = str(index / 2), str(index)
    row = load_saliency_dataset(folder.write())["train"][1]
    assert (row["patient"], row["version"], row["hash"]) == ("001", "1.10", "1e5")
    assert (row["dose"], row["count"]) == (0.5, 1)


def test_known_split_names_are_lower_cased(folder):
    for row, split in zip(
        folder.rows, ["Train", "TRAIN", "train", " Train", "VAL", "Test", "OOD", "Site A"], strict=True
    ):
        row["split"] = split
    dataset = load_saliency_dataset(folder.write())
    assert {split: len(rows) for split, rows in dataset.items()} == {
        "train": 4,
        "validation": 1,
        "test": 1,
        "ood": 1,
        "Site A": 1,
    }


def test_a_table_in_another_encoding_is_named(folder):
    folder.rows[0]["label_name"] = folder.rows[2]["label_name"] = "zèbre"
    text = Path(folder.write() / "metadata.csv").read_text()
    (folder.path / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv is not in UTF-8"):
        load_saliency_dataset(folder.path)


# ---- More of data sets of the library ----


def test_a_lone_number_or_text_is_no_label():
    source = Dataset.from_dict(_rows(), features=_features(ClassLabel(names=["x", "y"])))
    with pytest.raises(ValueError, match="no label column is found"):
        load_saliency_dataset(source.remove_columns("labels"))
    renamed = source.rename_column("labels", "finding")
    assert load_saliency_dataset(renamed)["train"].features["label"].names == ["x", "y"]


def test_rows_of_a_data_set_of_the_library_are_decoded():
    rows = _rows()
    source = Dataset.from_dict(rows, features=_features(ClassLabel(names=["x", "y"])))
    row = load_saliency_dataset(source)["train"][1]
    assert isinstance(row["image"], PILImage.Image)
    assert np.array_equal(np.asarray(row["image"]), np.asarray(rows["img"][1]))
    assert np.array_equal(np.asarray(row["saliency"]), np.asarray(rows["mask"][1]))


def test_where_keeps_labels_weights_and_maps_with_their_rows():
    rows = _rows(8) | {"site": list("abbabaab"), "labels": [0, 1, 1, 1, 0, 0, 1, 0]}
    rows["w"], rows["patient"] = [index / 8 for index in range(8)], [f"p{index}" for index in range(8)]
    features = Features({**_features(ClassLabel(names=["x", "y"])), "w": Value("float32"), "patient": Value("string")})
    source = Dataset.from_dict(rows, features=features)
    dataset = load_saliency_dataset(source, where={"site": "b"}, weight_column="w", group_column="patient")["train"]
    chosen = [1, 2, 4, 7]
    assert dataset["label"][:] == [rows["labels"][index] for index in chosen]
    assert dataset["weight"][:] == [index / 8 for index in chosen]
    assert dataset["group"][:] == [f"p{index}" for index in chosen]
    for row, index in zip(dataset, chosen, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(rows["img"][index]))
        assert (row["saliency"] is None) == (index == 2)
