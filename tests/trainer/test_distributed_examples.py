"""The launch configurations and scripts of `examples/`: accelerate reads them, and what a CPU can run is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIGS = EXAMPLES / "accelerate_configs"
KINDS = {
    "cpu": (DistributedType.MULTI_GPU, 1),
    "gpu": (DistributedType.NO, 1),
    "multi_gpu": (DistributedType.MULTI_GPU, 1),
    "multi_node": (DistributedType.MULTI_GPU, 4),
    "fsdp2": (DistributedType.FSDP, 1),
}
SCRIPT = """
import sys
from pathlib import Path
import torch
from support import Rows, build, make_batch, make_trainer
trainer = make_trainer(
    build("vit_class_token"), sys.argv[1], train_dataset=Rows(make_batch(count=4)), max_steps=1,
    per_device_train_batch_size=2, ddp_backend="gloo", use_cpu=False,
)
trainer.train()
words = [trainer.args.world_size, trainer.args.device.type, type(trainer.model_wrapped).__name__]
Path(sys.argv[1], f"process{trainer.args.process_index}").write_text(" ".join(map(str, words)))
torch.distributed.barrier()
"""


def test_every_configuration_is_known():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", list(KINDS))
def test_accelerate_reads_the_configuration(name):
    kind, machines = KINDS[name]
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    assert f"accelerate_configs/{name}.yaml" in (CONFIGS / f"{name}.yaml").read_text()


def test_the_fsdp_configuration_is_one_that_guidance_takes(monkeypatch):
    """Its keys become the environment of the processes, which the plugin reads."""
    for key, value in load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config.items():
        name = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}.get(key, key.upper())
        monkeypatch.setenv(name, str(value).lower() if isinstance(value, bool) else str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


@pytest.mark.slow
def test_the_configuration_for_a_cpu_starts_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(path for path in (tests, os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml")]
    finished = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    written = sorted(tmp_path.glob("process*"))
    assert len(written) == 2, finished.stderr[-3000:]
    assert {path.read_text() for path in written} == {"2 cpu DistributedDataParallel"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("slurm/*.sh")), ids=lambda path: path.name)
def test_the_slurm_script(path, tmp_path):
    """With stand-ins for SLURM's commands and for accelerate, it hands over what each node has to know."""
    subprocess.run(["bash", "-n", str(path)], check=True)
    for name, body in {
        "scontrol": "echo first; sleep 0.2; echo second",  # whoever reads the first line alone breaks the pipe
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'echo "$@"',
    }.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    refused = subprocess.run(["bash", str(path)], env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, "usage" in refused.stderr) == (2, True)
    run = ["bash", str(path), "train.py", "--name", "two words"]
    lines = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"--num_machines 2 --num_processes 8 --machine_rank {rank} --main_process_ip first" in line
        assert line.endswith("train.py --name two words")
