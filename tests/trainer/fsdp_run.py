"""Short training runs under FSDP2, for the tests that compare them with one process; started by torchrun for two."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from parity_run import network
from support import Rows, make_batch
from torch.distributed.tensor import DTensor

from hf_salguide import SaliencyTrainer, SaliencyTrainingArguments, list_guidance

STEPS = 2
# In every step the second process has no annotated picture, with and without accumulation.
ANNOTATED = [True, True, False, False, False, False, False, False] * STEPS
TWICE = {"gradient_engine": "double_backward"}

# The name of each run: the network, and how it is guided.
RUNS = {
    **{name: ("vit_class_token", {"guidance": name}) for name in list_guidance()},
    "gradmask": ("vit_class_token", {"guidance": "gradmask", "guidance_options": TWICE}),
    "rrr": ("vit_class_token", {"guidance": "rrr", "guidance_options": TWICE}),
    "exact": ("nfnet", {"guidance": "cyborg"}),
    "uniform": ("convnext", {"guidance": "cyborg"}),
    "features": ("vit_class_token", {"guidance": "rrr", "guidance_options": {"at": "features"}}),
    "checkpointed": ("vit_class_token", {"guidance": "actdiff", "gradient_checkpointing": True}),
    "accumulated": (
        "vit_class_token",
        {
            "guidance": ["cyborg", "rrr", "actdiff"],
            "guidance_options": {"rrr": TWICE},
            "guidance_schedule": "adaptive",
            "gradient_accumulation_steps": 2,
        },
    ),
}
BLOCKS = {  # what is sharded by itself; of the exact network, the head as well
    "vit_class_token": ["Block"],
    "convnext": ["ConvNeXtBlock"],
    "nfnet": ["NormFreeBlock", "Linear"],
}
KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")  # of checkpoints
RESUMED = {
    "guidance": ["cyborg", "actdiff_adversarial"],
    "guidance_schedule": "adaptive",
    "save_strategy": "steps",
    "optim": "adamw_torch",  # torch does not load the state of an optimizer that has none
    "learning_rate": 1e-3,
}


class ShardedTrainer(SaliencyTrainer):
    """
    As under `accelerate launch` with `fsdp_version: 2`, on a CPU, where Accelerate itself gives DDP.

    What is told it is the accelerator's state alone: what shards, trains and saves is Accelerate's and Trainer's code.
    """

    plugin: FullyShardedDataParallelPlugin

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = self.plugin
        self.is_fsdp_enabled = True


def fsdp2(blocks, **options):
    """A plugin as `accelerate launch` makes it from a configuration file."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=blocks,
        **{"cpu_ram_efficient_loading": False, "state_dict_type": "FULL_STATE_DICT", **options},
    )


def make(name, output_dir, processes, state_dict_type="FULL_STATE_DICT", **arguments):
    """A trainer of eight pictures an optimizer step, however many processes there are."""
    accumulation = arguments.get("gradient_accumulation_steps", 1)
    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_steps": STEPS}
    options |= {"optim": "sgd", "learning_rate": 0.05, **arguments}
    args = SaliencyTrainingArguments(
        str(output_dir),
        per_device_train_batch_size=8 // processes // accumulation,
        per_device_eval_batch_size=3,
        train_sampling_strategy="sequential",
        **options,
    )
    kind = SaliencyTrainer
    if processes > 1:
        plugin = fsdp2(BLOCKS[name], state_dict_type=state_dict_type)
        kind = type("Sharded", (ShardedTrainer,), {"plugin": plugin})
    rows = Rows(make_batch((64, 96), len(ANNOTATED), annotated=ANNOTATED))
    held_out = Rows(make_batch((64, 96), 7, seed=1, annotated=[True, False, True] * 3))  # no multiple of anything
    return kind(network(name), args, train_dataset=rows, eval_dataset=held_out)


def whole_weights(trainer):
    """The state dict of a model, whole on every process."""
    return {
        key: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for key, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
    }


def train(run, output_dir, processes):
    """What a run gives: weights, the losses of the evaluation, and the share of its parameters that are spread."""
    name, arguments = RUNS[run]
    trainer = make(name, output_dir, processes, **arguments)
    trainer.train()
    sharded = [isinstance(parameter, DTensor) for parameter in trainer.model.parameters()]
    metrics = {metric: value for metric, value in trainer.evaluate().items() if metric.endswith("_loss")}
    return {"weights": whole_weights(trainer), "metrics": metrics, "sharded": sum(sharded) / len(sharded)}


def resume(output_dir, state_dict_type):
    """The weights of an unbroken run, and of one that goes on from its first checkpoint."""
    options = {"ddp_backend": "gloo", "save_steps": 1, "state_dict_type": state_dict_type, **RESUMED}
    unbroken = make("vit_class_token", output_dir / "unbroken", 2, **options)
    unbroken.train()
    resumed = make("vit_class_token", output_dir / "resumed", 2, **options)
    resumed.train(resume_from_checkpoint=str(output_dir / "unbroken" / "checkpoint-1"))
    return {"unbroken": whole_weights(unbroken), "resumed": whole_weights(resumed)}


if __name__ == "__main__":
    output = Path(sys.argv[1])
    folder = output.parent
    results = {run: train(run, folder, 2) for run in RUNS}
    results |= {kind: resume(folder / kind, kind) for kind in KINDS}
    results["world_size"] = torch.distributed.get_world_size()
    if torch.distributed.get_rank() == 0:
        partial = output.with_suffix(".partial")
        torch.save(results, partial)
        partial.rename(output)
    # A process that ends early takes the other with it, and may abort on its way out.
    torch.distributed.barrier()
