"""What a trainer saves is loaded by transformers and timm, holds no pickle, and says nothing of the place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import NAMES, Rows, build, make_batch, make_trainer
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_salguide import ModelCardCallback, as_classifier
from hf_salguide.hub.saving import published_arguments, saved_files, write_training_arguments, write_under_timm_names

SIZE = (64, 96)
TIMM = ("resnet", "vit_class_token")
NOT_TIMM = ("swin", "transformers_vit")
LOADS = """
import json, sys
sys.modules["hf_salguide"] = None  # as where it is not installed
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
torch.set_grad_enabled(False)  # attention takes another kernel with it
for folder, pictures, is_timm in json.loads(sys.argv[1]):
    pixel_values = torch.load(pictures, weights_only=True)
    found = [AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values).logits]
    if is_timm:
        found.append(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixel_values))
    torch.save(found, pictures)
    picture = Image.new("RGB", (120, 80), "red")
    inputs = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    labels = sorted(answer["label"] for answer in pipeline("image-classification", model=folder)(picture))
    print(json.dumps([list(inputs.shape[-2:]), labels]))
"""


def train(name, tmp_path, **arguments):
    """Three steps of a tiny model; the pictures' size is not the backbone's own."""
    size = (64, 64) if name in ("swin", "transformers_vit") else SIZE
    batch = make_batch(size, 6, annotated=[True, False, True] * 2)
    trainer = make_trainer(
        build(name),
        tmp_path,
        train_dataset=Rows(batch),
        per_device_train_batch_size=2,
        **{"guidance": "cyborg", "max_steps": 3, **arguments},
    )
    trainer.train()
    return trainer, batch["pixel_values"]


def logits_of(trainer, pixel_values):
    with torch.no_grad():
        return trainer.model.eval()(pixel_values).logits


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What one process without this package makes of folders that hold a saved model and nothing else."""
    expected, jobs = {}, []
    for name in TIMM + NOT_TIMM:
        place = tmp_path_factory.mktemp(name)
        trainer, pixel_values = train(name, place / "run")
        trainer.save_model()
        (place / "alone").mkdir()
        for file in saved_files(place / "run"):
            (place / "alone" / file).write_bytes((place / "run" / file).read_bytes())
        torch.save(pixel_values, place / "pictures.pt")
        expected[name] = logits_of(trainer, pixel_values), list(pixel_values.shape[-2:]), place / "pictures.pt"
        jobs.append([str(place / "alone"), str(place / "pictures.pt"), name in TIMM])
    command = [sys.executable, "-c", LOADS, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    return {name: (*given, said) for (name, given), said in zip(expected.items(), printed, strict=True)}


@pytest.mark.parametrize("name", TIMM + NOT_TIMM)
def test_a_saved_folder_alone_is_loaded_by_others(name, loaded):
    logits, size, file, said = loaded[name]
    found = torch.load(file, weights_only=True)
    assert len(found) == (2 if name in TIMM else 1)
    assert all(torch.equal(each, logits) for each in found)
    assert said == [size, sorted(NAMES)]


def test_no_pickle_of_the_arguments_is_written(tmp_path):
    trainer, _ = train("resnet", tmp_path, save_strategy="steps", save_steps=2, hub_token="hf_secret", run_name="me")
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert not (folder / "training_args.bin").exists()
        saved = json.loads((folder / "training_args.json").read_text())
        assert saved["guidance"] == "cyborg"
        assert saved["max_steps"] == 3
        assert str(tmp_path) not in json.dumps(saved)
        assert not {"hub_token", "push_to_hub_token", "output_dir", "run_name"} & set(saved)
    assert not any(b"hf_secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_arguments_lose_folders_and_tokens():
    given = {
        "hub_token": "x",
        "seed": 3,
        "deepspeed": "~/smith/zero.json",
        "optim_args": "path=/home/smith/x",
        "hub_model_id": "user/model",
        "nested": {"/home/smith/file": ["/a/b", "c/d", "file:///home/smith/e", Path("/f/g"), 1e-3]},
    }
    assert published_arguments(given) == {
        "seed": 3,
        "deepspeed": "zero.json",
        "optim_args": "x",
        "hub_model_id": "user/model",
        "nested": {"file": ["b", "d", "e", "g", 1e-3]},
    }


def test_the_pickle_of_an_earlier_run_goes(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"a pickle")
    write_training_arguments(tmp_path, {"seed": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training_args.json"]


@pytest.mark.parametrize("name", ["resnet", "vit_class_token", "transformers_vit"])
def test_a_run_goes_on_from_a_checkpoint(name, tmp_path):
    whole, pixel_values = train(name, tmp_path / "whole", max_steps=6)
    train(name, tmp_path / "parts", max_steps=6, save_strategy="steps", save_steps=3)
    resumed = make_trainer(
        build(name, seed=5),
        tmp_path / "parts",
        train_dataset=whole.train_dataset,
        max_steps=6,
        per_device_train_batch_size=2,
        guidance="cyborg",
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert torch.equal(logits_of(resumed, pixel_values), logits_of(whole, pixel_values))


@pytest.mark.parametrize("name", ["resnet", "transformers_vit"])  # the latter's weights are saved under older names
def test_the_best_model_is_loaded_at_the_end(name, tmp_path):
    batch = make_batch(SIZE if name == "resnet" else (64, 64), 6, annotated=[True, False, True] * 2)
    trainer = make_trainer(
        build(name),
        tmp_path,
        train_dataset=Rows(batch),
        eval_dataset=Rows(batch),
        guidance="cyborg",
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_weights_that_are_not_a_wrapped_timm_model_stay(tmp_path):
    save_file({"head.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = (tmp_path / "model.safetensors").read_bytes()
    write_under_timm_names(tmp_path)
    write_under_timm_names(tmp_path / "nowhere")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_names_of_timm_are_written(tmp_path):
    model = build("resnet")
    model.save_pretrained(tmp_path)
    write_under_timm_names(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.timm_model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.timm_model.state_dict().items())
    assert [path.name for path in tmp_path.glob("_*")] == []


ODD = ["a|b", "<b>x</b>", "line\nbreak", "`tick`", "key: value", "- yes", "é ☃ 😀", "'\""]


def test_odd_label_names_come_back(tmp_path):
    model = as_classifier("test_resnet", label_names=ODD, image_size=32)
    batch = make_batch((32, 32), 4, annotated=[True] * 4)
    trainer = make_trainer(model, tmp_path, train_dataset=Rows(batch), guidance="cyborg", max_steps=1)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert [loaded.config.id2label[index] for index in range(len(ODD))] == ODD
    assert AutoImageProcessor.from_pretrained(tmp_path) is not None


def test_only_what_belongs_to_the_model_is_listed(tmp_path):
    trainer, _ = train("transformers_vit", tmp_path, save_strategy="steps", save_steps=2)
    trainer.save_model()
    for name in ("notes.txt", "patients.csv", "pytorch_model.bin", "extra.safetensors", "trainer_state.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "pictures").mkdir()
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "training_args.json", "card.json"}
    assert set(saved_files(tmp_path)) == expected
    assert set(saved_files(tmp_path / "checkpoint-2")) == expected


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder; give the output_dir"):
        saved_files(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"holds no model \(config.json and model.safetensors\).*not published"):
        saved_files(tmp_path)


def test_shards_belong_to_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {"a": shards[0], "b": shards[1], "c": shards[0]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for shard in shards:
        (tmp_path / shard).write_bytes(b"x")
    assert saved_files(tmp_path) == ["config.json", "model.safetensors.index.json", *shards]
    for stranger in ("../elsewhere.safetensors", "notes.txt", "model-00003-of-00003.safetensors"):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": stranger}}))
        with pytest.raises(ValueError, match="holds no model"):
            saved_files(tmp_path)


def test_a_link_out_of_the_folder_is_not_published(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "elsewhere.json").write_text("{}")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(tmp_path / "model.safetensors")  # as in the Hub's cache
    assert saved_files(folder) == ["config.json", "model.safetensors"]
    (folder / "training_args.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"training_args.json is a link out of its folder"):
        saved_files(folder)


def test_a_model_and_adapters_do_not_mix(tmp_path):
    for name in ("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"holds a model \(model.safetensors\) and adapters .*of two trainings"):
        saved_files(tmp_path)
    assert saved_files(tmp_path, adapters=False) == ["config.json", "model.safetensors"]
    assert saved_files(tmp_path, adapters=True) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_card_that_cannot_be_written_costs_no_training(tmp_path, caplog):
    class Broken(ModelCardCallback):
        def write(self, folder):
            raise RuntimeError("no pen")

    batch = Rows(make_batch(SIZE, 4))
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(build("resnet"), tmp_path, train_dataset=batch, callbacks=[Broken()], **options)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "model.safetensors" in saved_files(tmp_path / "checkpoint-2")
    assert "could not be written, and the model is saved without: no pen" in caplog.text
