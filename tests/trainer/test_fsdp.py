"""FSDP2: two processes whose weights are spread train as one process does, and what cannot is refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from filelock import FileLock
from fsdp_run import BLOCKS, KINDS, RESUMED, RUNS, ShardedTrainer, fsdp2, train
from parity_run import network
from safetensors.torch import load_file
from support import Rows, build, make_batch

from hf_salguide import SaliencyTrainingArguments, as_classifier, get_guidance
from hf_salguide.steps import refuse_sharded, sharding_of

SCRIPT = Path(__file__).with_name("fsdp_run.py")


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, worker_id):
    """Every run in two gloo processes, in one launch; judged by what rank 0 wrote, since they may abort on exit."""
    folder = tmp_path_factory.getbasetemp()
    output = (folder if worker_id == "master" else folder.parent) / "sharded" / "results.pt"
    output.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command += ["--rdzv_endpoint=localhost:0", str(SCRIPT), str(output)]
    with FileLock(f"{output}.lock"):
        if not output.exists():
            finished = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=500, check=False
            )
            assert output.exists(), finished.stderr[-4000:]
    return {**torch.load(output, weights_only=False), "folder": output.parent}


@pytest.mark.slow
@pytest.mark.parametrize("run", list(RUNS))
def test_two_processes_with_spread_weights_train_as_one(tmp_path, run, sharded):
    """The second of them has no annotated picture in any step; Accelerate on a CPU would silently give DDP."""
    one, two = train(run, tmp_path, 1), sharded[run]
    assert sharded["world_size"] == 2
    assert two["sharded"] == 1.0
    assert largest_difference(one["weights"], network(RUNS[run][0]).state_dict()) > 1e-3
    assert largest_difference(one["weights"], two["weights"]) < 1e-6
    # The task's loss is a mean of batch means, as in Trainer, and shifts with the padded last batch; terms do not.
    terms = [name for name in one["metrics"] if name not in ("eval_loss", "eval_task_loss")]
    assert one["metrics"].keys() == two["metrics"].keys()
    for name in terms:
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-4, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_unbroken_one(kind, sharded):
    """With the discriminator and the balance of the losses, which the checkpoint keeps beside the weights."""
    unbroken, resumed = sharded[kind]["unbroken"], sharded[kind]["resumed"]
    assert largest_difference(unbroken, resumed) == 0
    assert largest_difference(unbroken, build("vit_class_token").state_dict()) > 1e-3
    state = torch.load(sharded["folder"] / kind / "unbroken" / "checkpoint-1" / "guidance.pt", weights_only=True)
    assert state["methods"]["actdiff_adversarial"]["discriminator"]
    assert state["alpha"] != 0.5


@pytest.mark.slow
def test_a_full_checkpoint_holds_the_model_whole(sharded):
    folder = sharded["folder"] / KINDS[0] / "unbroken" / "checkpoint-2"
    assert {"README.md", "card.json", "training_args.json"} <= {path.name for path in folder.iterdir()}
    assert torch.equal(
        load_file(folder / "model.safetensors")["head.weight"], sharded[KINDS[0]]["unbroken"]["timm_model.head.weight"]
    )
    loaded = as_classifier(str(folder), pretrained=True)
    assert largest_difference(loaded.state_dict(), sharded[KINDS[0]]["unbroken"]) == 0
    assert loaded.config.saliency_guide["name"] == RESUMED["guidance"]


# ---- What is refused ----


@pytest.fixture
def told():
    """Leaves no trace of what the accelerator's state was told."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer_under(plugin, tmp_path, model=None, **arguments):
    options = {"report_to": "none", "use_cpu": True, **arguments}
    args = SaliencyTrainingArguments(str(tmp_path), **options)
    kind = type("Sharded", (ShardedTrainer,), {"plugin": plugin})
    rows = Rows(make_batch((64, 96), 5))
    return kind(build("vit_class_token") if model is None else model, args, train_dataset=rows)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"cpu_ram_efficient_loading": True}, {}, "fsdp_cpu_ram_efficient_loading=True.*set .*: false"),
        ({"activation_checkpointing": True}, {}, "fsdp_activation_checkpointing=True.*gradient_checkpointing=True"),
        ({}, {"torch_compile": True, "torch_compile_backend": "eager"}, "torch_compile=True.*under FSDP2 is untested"),
        (
            {},
            {"guidance": "rrr", "guidance_options": {"gradient_engine": "finite_difference"}},
            'gradient_engine="finite_difference".*leave the others waiting.*set gradient_engine="double_backward"',
        ),
    ],
)
@pytest.mark.usefixtures("told")
def test_fsdp2_refuses(tmp_path, options, arguments, message):
    plugin = fsdp2(BLOCKS["vit_class_token"], **options)
    with pytest.raises(ValueError, match=message):
        trainer_under(plugin, tmp_path, **arguments)
    trainer_under(plugin, tmp_path, guidance="none")


@pytest.mark.usefixtures("told")
def test_fsdp2_takes_the_double_backward(tmp_path):
    trainer = trainer_under(fsdp2(["Block"]), tmp_path, guidance="rrr")
    choice = trainer.gradient_engines["rrr"]
    assert (choice.engine, sharding_of(trainer.accelerator)) == ("double_backward", "FSDP2")
    assert "FSDP2" in choice.reason


@pytest.mark.usefixtures("told")
def test_fsdp1(tmp_path):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, cpu_ram_efficient_loading=False)
    with pytest.raises(ValueError, match="fsdp_version=1: guidance=cyborg.*set fsdp_version: 2"):
        trainer_under(plugin, tmp_path)
    trainer_under(plugin, tmp_path, guidance="none")


@pytest.mark.usefixtures("told")
def test_a_model_that_is_spread_already(tmp_path):
    model = build("vit_class_token")
    model.timm_model.head.weight.full_tensor = None  # what tells a DTensor, of which one process can make none
    with pytest.raises(ValueError, match="model: its parameters are spread over the processes already"):
        trainer_under(fsdp2(["Block"]), tmp_path, model=model)


@pytest.mark.parametrize("guidance", ["cyborg", "rrr"])
def test_zero_3_refuses_maps_and_gradients(guidance):
    model, methods = build("vit_class_token"), [get_guidance(guidance)]

    def accelerator(stage):
        return SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=None, deepspeed_plugin=SimpleNamespace(zero_stage=stage))
        )

    with pytest.raises(ValueError, match=f"zero_stage=3: guidance={guidance}.*set zero_stage: 2, or fsdp_version: 2"):
        refuse_sharded(accelerator(3), model, methods, compiled=False)
    refuse_sharded(accelerator(3), model, [get_guidance("actdiff")], compiled=False)
    refuse_sharded(accelerator(2), model, methods, compiled=False)
