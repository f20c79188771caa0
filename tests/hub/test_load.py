"""`load_guided`: what was saved comes back exactly; no code is run, no pickle opened, nothing else downloaded."""

import json
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import NAMES, SIZES, Rows, build, make_batch, make_trainer, save_as_trained
from timm.models._hub import save_for_hf
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTImageProcessor, ViTModel

from hf_salguide import difference_salience, saliency_maps
from hf_salguide.backbones import data_config
from hf_salguide.cli import main
from hf_salguide.hub.load import load_guided
from hf_salguide.hub.metadata import KEY
from hf_salguide.studies.explanation.explain import explain
from hf_salguide.studies.predictions import predict

from .hub_state import File
from .local_hub import OTHER, TOKEN

MODELS = ["resnet", "vit_class_token", "swin", "transformers_vit"]


def logits_of(model, name="resnet"):
    with torch.no_grad():
        return model.eval()(make_batch(SIZES.get(name, (64, 96)))["pixel_values"]).logits


def edit(folder, **values):
    """Changes `config.json`; what is `None` is removed."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def plain(folder, name="resnet"):
    model = build(name)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A guided model and the folder that the trainer wrote, which no test changes."""
    folder = tmp_path_factory.mktemp("guided")
    model = build("resnet")
    trainer = make_trainer(model, folder, guidance="cyborg", train_dataset=Rows(make_batch()))
    save_as_trained(trainer)
    return model, folder


@pytest.fixture
def copy(guided, tmp_path):
    """A folder of the guided model that a test may change."""
    return shutil.copytree(guided[1], tmp_path / "model")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


# -- what was saved


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_folder_comes_back_exactly(name, tmp_path):
    model = build(name)
    trainer = make_trainer(
        model, tmp_path, guidance="cyborg", train_dataset=Rows(make_batch(SIZES.get(name, (64, 96))))
    )
    save_as_trained(trainer)
    loaded = load_guided(tmp_path)
    assert torch.equal(logits_of(loaded.model, name), logits_of(model, name))
    assert not loaded.model.training
    assert loaded.guidance == trainer.guidance_block()
    assert (loaded.guidance["name"], loaded.guidance["version"]) == ("cyborg", 1)
    assert loaded.model.config.id2label == dict(enumerate(NAMES))
    pixels = loaded.processor(Image.new("RGB", (90, 70), "red"), return_tensors="pt")["pixel_values"]
    layer = loaded.guidance["feature_layer"]
    maps = saliency_maps(loaded.model, pixels, feature_layer=layer)
    assert maps.shape == difference_salience(loaded.model, pixels, feature_layer=layer).shape
    (shown,) = explain(loaded.model, [{"image": Image.new("RGB", (90, 70), "red")}])
    assert shown.true_map.shape == tuple(pixels.shape[-2:]) == SIZES.get(name, (64, 96))


@pytest.mark.parametrize("name", MODELS)
def test_plain_models_have_no_guidance(name, tmp_path):
    model = plain(tmp_path, name)
    loaded = load_guided(str(tmp_path))
    assert loaded.guidance == {}
    assert not hasattr(loaded.model.config, KEY)
    assert torch.equal(logits_of(loaded.model, name), logits_of(model, name))


def test_an_older_save_under_the_names_of_the_wrapper(guided, copy):
    state = {
        f"timm_model.{key.removeprefix('timm_model.')}": value
        for key, value in load_file(copy / "model.safetensors").items()
    }
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits_of(load_guided(copy).model), logits_of(guided[0]))


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_shards(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits_of(load_guided(tmp_path).model, name), logits_of(model, name))


def test_a_folder_of_timm(tmp_path):
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=3).eval()
    save_for_hf(module, tmp_path, safe_serialization=True, model_config={"label_names": NAMES})
    loaded = load_guided(tmp_path)
    assert loaded.guidance == {}
    assert loaded.model.config.id2label == dict(enumerate(NAMES))
    assert type(loaded.processor).__name__ == "TimmWrapperImageProcessor"
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels).logits, module(pixels))


def test_the_saved_processor_goes_before_the_one_that_is_made(tmp_path):
    plain(tmp_path, "transformers_vit")
    made = load_guided(tmp_path).processor
    assert (made.size["height"], list(made.image_mean)) == (64, [0.5, 0.5, 0.5])
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    assert list(load_guided(tmp_path).processor.image_mean) == [0.1, 0.2, 0.3]


def test_a_processor_that_cannot_be_read_is_named(tmp_path):
    plain(tmp_path, "transformers_vit")
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"image processor cannot be read.*remove preprocessor_config\.json"):
        load_guided(tmp_path)


# -- what is said about guidance


def test_a_later_version_is_read_as_far_as_it_is_known(copy, caplog):
    block = json.loads((copy / "config.json").read_text())[KEY]
    later = {**block, "version": 2, "tempo": "slow", "options": {"cyborg": {"never_heard_of": 1}}}
    with caplog.at_level(logging.WARNING):
        loaded = load_guided(edit(copy, **{KEY: later}))
    assert loaded.guidance == later
    (message,) = [record.getMessage() for record in caplog.records if "later release" in record.getMessage()]
    assert "version=2, and this release knows 1" in message
    assert "not used: tempo" in message
    assert "the options of cyborg are other ones here" in message
    assert explain(loaded.model, [{"image": Image.new("RGB", (96, 64))}])  # which applies the block


def test_what_the_block_does_not_say_is_none(copy, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_guided(edit(copy, **{KEY: {"name": ["a_method_of_mine", "cyborg"], "own": True}}))
    assert loaded.guidance == {
        "name": ["a_method_of_mine", "cyborg"],
        "own": True,
        "weight": None,
        "feature_layer": None,
        "version": None,
    }
    assert not caplog.records


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("cyborg", "a str in place of a mapping"),
        ({}, "name=None"),
        ({"weight": 1.0}, "name=None"),
        ({"name": 3}, "name=3"),
        ({"name": "cyborg", "feature_layer": {"a": 1}}, "feature_layer={'a': 1}"),
        ({"name": "cyborg", "feature_layer": []}, "feature_layer=[]"),
        ({"name": "cyborg", "options": ["a"]}, "options=['a']"),
    ],
    ids=str,
)
def test_a_block_that_is_not_understood(block, fault, guided, copy, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_guided(edit(copy, **{KEY: block}))
    (message,) = [record.getMessage() for record in caplog.records]
    assert fault in message
    assert str(copy) in message
    assert loaded.guidance == {}
    assert torch.equal(logits_of(loaded.model), logits_of(guided[0]))
    assert explain(loaded.model, [{"image": Image.new("RGB", (96, 64))}])


# -- what is never opened


@pytest.mark.parametrize("name", ["resnet", "transformers_vit"])
def test_pickles_are_never_opened(name, tmp_path):
    folder, mark = tmp_path / "model", tmp_path / "opened"
    model = plain(folder, name)
    beside = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")
    for file in beside:
        (folder / file).write_bytes(pickle.dumps(Planted(mark)))
    assert torch.equal(logits_of(load_guided(folder).model, name), logits_of(model, name))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"its weights in pytorch_model\.bin, a pickle.*Convert it"):
        load_guided(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):  # the others are no weights
        load_guided(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()  # they would have been noticed


@pytest.mark.parametrize("name", ["resnet", "transformers_vit"])
def test_an_index_may_name_safetensors_beside_it_alone(name, tmp_path):
    plain(tmp_path, name)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    for shard in ("pytorch_model.bin", "../model.safetensors"):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ValueError, match=f"names {shard}, but weights are read from files in safetensors"):
            load_guided(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-1\.safetensors, named in .* is missing"):
        load_guided(tmp_path)


def test_a_configuration_cannot_name_a_checkpoint_to_open(guided, copy, tmp_path):
    mark = tmp_path / "opened"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Planted(mark)))
    loaded = load_guided(edit(copy, model_args={"checkpoint_path": str(tmp_path / "evil.pth")}))
    assert torch.equal(logits_of(loaded.model), logits_of(guided[0]))
    assert not mark.exists()


def test_code_of_a_model_is_not_run(tmp_path, caplog):
    model = plain(tmp_path, "transformers_vit")
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import *\nclass Own(ViTForImageClassification): pass\n"
    (tmp_path / "own.py").write_text(code)
    auto_map = {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Own"}
    with caplog.at_level(logging.WARNING):
        loaded = load_guided(edit(tmp_path, auto_map=auto_map))
    assert f'"{tmp_path}" brings code of its own (auto_map), which is not run' in caplog.text
    assert torch.equal(logits_of(loaded.model, "transformers_vit"), logits_of(model, "transformers_vit"))
    with pytest.raises(ValueError, match=r"needs code of its own \(auto_map.*trust_remote_code=True, if you trust it"):
        load_guided(edit(tmp_path, model_type="own"))
    assert not mark.exists()


def test_a_kernel_of_the_hub_is_not_run(tmp_path):
    plain(tmp_path, "transformers_vit")
    with pytest.raises(ValueError, match='attn_implementation="evil/kernel" in config.json'):
        load_guided(edit(tmp_path, attn_implementation="evil/kernel"))


# -- bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", r'"resnet18" is no folder .* and no Hub id'),
        ("./nowhere/model", "is no folder on this machine and no Hub id, which is owner/name; check the path"),
        ("/nowhere/model", "is no folder on this machine"),
        ("a/b/c", "is no folder on this machine"),
        ("", "is no folder on this machine"),
        ("user/a b", "the Hub allows no such name; give owner/name"),
        ("user/--model", "the Hub allows no such name"),
    ],
    ids=str,
)
def test_names_of_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        load_guided(name)


def test_folders_that_hold_no_model(guided, copy, tmp_path):
    with pytest.raises(ValueError, match=r'"resnet/x@1" and revision="2" name two revisions'):
        load_guided("resnet/x@1", revision="2")
    with pytest.raises(ValueError, match=r'revision="main" goes with a Hub id, but .* is a local folder'):
        load_guided(copy, revision="main")
    with pytest.raises(ValueError, match=r"is a file; give the folder that it lies in"):
        load_guided(copy / "config.json")
    parent = tmp_path / "run"
    parent.mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json; give what save_model .* wrote\.$"):
        load_guided(parent)
    shutil.copytree(guided[1], parent / "checkpoint-30")
    with pytest.raises(ValueError, match=r'Its checkpoint ".*checkpoint-30" has one; pass that'):
        load_guided(parent)
    (copy / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds no JSON object; save the model anew"):
        load_guided(copy)


def test_adapters_are_to_be_merged(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["timm_model.head"])
    model = peft.get_peft_model(build("vit_average"), config)
    save_as_trained(make_trainer(model, tmp_path, guidance="cyborg", train_dataset=Rows(make_batch())))
    with pytest.raises(ValueError, match=r"holds adapters \(adapter_config\.json\).*model\.merge_and_unload\(\)"):
        load_guided(tmp_path)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(load_guided(tmp_path / "merged").model), logits_of(merged))


def test_damaged_weights(copy):
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="the weights are damaged.*copy or download them again"):
        load_guided(copy)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(ValueError, match="is a pointer of git-lfs.*git lfs pull"):
        load_guided(copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("resnet", {"model_args": {"never_heard_of": 1}}),
        ("resnet", {"model_args": [1]}),
        ("transformers_vit", {"hidden_size": "wide"}),
        ("transformers_vit", {"id2label": 7}),
    ],
    ids=str,
)
def test_a_configuration_that_no_model_can_be_built_from(name, change, tmp_path):
    plain(tmp_path, name)
    with pytest.raises(ValueError, match=r"no model can be built from its config\.json \("):
        load_guided(edit(tmp_path, **change))


def test_weights_of_another_head(copy):
    state = load_file(copy / "model.safetensors")
    state = {key: value[:2] if key.endswith(("fc.weight", "fc.bias")) else value for key, value in state.items()}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not those of config\.json"):
        load_guided(copy)


def test_models_that_are_no_classifiers(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is no image classifier but BertForSequenceClassification"):
        load_guided(tmp_path / "bert")
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"holds no classifier that is trained: its weights lack classifier\.bias"):
        load_guided(tmp_path / "headless")
    edit(tmp_path / "bert", model_type="of_next_year")
    with pytest.raises(ValueError, match="model_type='of_next_year', which this release of transformers"):
        load_guided(tmp_path / "bert")


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf_ secret", "hf_sécret", 3])
def test_a_token_that_cannot_be_one_is_not_quoted(token):
    with pytest.raises(ValueError, match="token is empty or holds spaces") as caught:
        load_guided("user/model", token=token)
    assert "cret" not in str(caught.value)


# -- the Hub


def test_from_the_hub(guided, copy, online_hub):
    (copy / "training_args.bin").write_bytes(b"pickle")
    (copy / "optimizer.pt").write_bytes(b"pickle")
    (copy / "own.py").write_text("raise SystemExit")
    online_hub.add("user/model", files_of(copy))
    loaded = load_guided("user/model")
    assert torch.equal(logits_of(loaded.model), logits_of(guided[0]))
    assert loaded.guidance["name"] == "cyborg"
    asked = " ".join(request.path for request in online_hub.requests)
    assert "model.safetensors" in asked
    assert not {name for name in ("training_args.bin", "optimizer.pt", "own.py", "README.md") if name in asked}


def test_revisions_of_the_hub(copy, online_hub):
    repository = online_hub.add("user/model", files_of(copy))
    guided = repository.commit()
    plain_config = File(edit(copy, **{KEY: None}).joinpath("config.json").read_bytes(), False)
    repository.add("main", "Plain", "", "user", {**guided.files, "config.json": plain_config})
    assert load_guided("user/model").guidance == {}
    assert load_guided("user/model", revision=guided.oid).guidance["name"] == "cyborg"
    assert load_guided(f"user/model@{guided.oid}").guidance["name"] == "cyborg"
    assert load_guided(f"hf-hub:user/model@{guided.oid}", revision=guided.oid).guidance["name"] == "cyborg"
    with pytest.raises(
        OSError, match='revision="v9" cannot be loaded: the repository has no such branch, tag or commit'
    ):
        load_guided("user/model", revision="v9")


def test_a_private_repository_wants_a_token(guided, online_hub, monkeypatch):
    online_hub.add("user/model", files_of(guided[1]), private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        OSError, match=r"shows no such repository: it does not exist, or it is private .* `hf auth login`"
    ):
        load_guided("user/model")
    with pytest.raises(OSError, match="cannot be loaded") as caught:
        load_guided("user/model", token=OTHER)
    assert OTHER not in str(caught.value)
    with pytest.raises(OSError, match="cannot be loaded") as caught:
        load_guided("user/model", token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)
    assert load_guided("user/model", token=TOKEN).guidance["name"] == "cyborg"


def test_pickles_of_the_hub_are_named_but_not_downloaded(copy, online_hub):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    online_hub.add("user/model", files_of(copy))
    with pytest.raises(ValueError, match=r'"user/model" has its weights in pytorch_model\.bin, a pickle'):
        load_guided("user/model")
    assert not [request for request in online_hub.requests if "/resolve/" in request.path and ".bin" in request.path]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (401, "private|refuses the token"),
        (403, r"refuses the token \(status 403\)"),
        (429, "too many requests|status 429"),
        (500, "answers with status 500"),
        ("cut", "connection failed|cannot be reached|download failed"),
    ],
)
@pytest.mark.parametrize("path", ["/api/models/", "model.safetensors|/objects/"], ids=["listing", "weights"])
def test_a_hub_that_fails(path, action, message, guided, online_hub):
    online_hub.add("user/model", files_of(guided[1]))
    online_hub.fail("*", path, action, times=None)
    with pytest.raises(OSError, match=message) as caught:
        load_guided("user/model")
    assert TOKEN not in str(caught.value)
    online_hub.heal()
    assert load_guided("user/model").guidance["name"] == "cyborg"


def test_without_a_connection(guided, online_hub, monkeypatch):
    from huggingface_hub import constants

    online_hub.add("user/model", files_of(guided[1]))
    load_guided("user/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits_of(load_guided("user/model").model), logits_of(guided[0]))
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set, .* or run `hf download user/other`"):
        load_guided("user/other")


def test_the_command_line_explains_a_picture_with_a_model_of_the_hub(guided, online_hub, tmp_path, capsys):
    commit = online_hub.add("user/model", files_of(guided[1])).commit().oid
    Image.new("RGB", (96, 64), "red").save(tmp_path / "picture.jpg")
    for model in ("user/model", f"user/model@{commit}"):
        panel = tmp_path / "panel.png"
        assert main(["explain", "--model", model, str(tmp_path / "picture.jpg"), "--output", str(panel)]) == 0
        assert panel.stat().st_size > 10_000
        panel.unlink()
    assert main(["explain", "--model", "user/model@v9", str(tmp_path / "picture.jpg")]) == 2
    assert 'revision="v9" cannot be loaded' in capsys.readouterr().err


def test_pictures_are_prepared_as_the_saved_processor_says(tmp_path):
    """A transformers model does not know its own processor: what is made of the loaded one does."""
    model = build("swin")
    processor = ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    guided = load_guided(tmp_path)
    assert data_config(guided.model).mean == (0.485, 0.456, 0.406)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    expected = guided.processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        probabilities = guided.model(expected).logits.softmax(dim=1).numpy()
    found = predict(guided.model, [{"image": picture}], progress=False)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=2e-3)  # eight bits, rounded once or twice
