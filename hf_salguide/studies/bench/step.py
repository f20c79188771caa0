"""One optimizer step, as the Trainer takes it: the unit of the benchmark."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...arguments import SaliencyTrainingArguments
from ...guidance import Guidance
from ...trainer import SaliencyTrainer
from .setting import BenchMethod, BenchSetting


class Step:
    """
    One optimizer step of a [`SaliencyTrainer`] on a fixed batch: forward, loss, backward, clipping, optimizer.

    Called in a process of `torchrun`, the model is wrapped as in training.

    Args:
        setting ([`BenchSetting`]): backbone, picture and batch size; the batch size of this process.
        method ([`BenchMethod`]): the guidance method.
        output_dir (`str`): a folder that the trainer may write to.
    """

    def __init__(self, setting: BenchSetting, method: BenchMethod, output_dir: str) -> None:
        with _compiled_or_not():
            args = SaliencyTrainingArguments(
                output_dir,
                guidance=method.name,
                guidance_options=method.options or None,
                image_size=setting.image_size,
                per_device_train_batch_size=setting.batch_size,
                bf16=setting.bf16,
                torch_compile=setting.compile_backend is not None,
                torch_compile_backend=setting.compile_backend,
                use_cpu=setting.device == "cpu",
                ddp_backend="gloo" if "WORLD_SIZE" in os.environ and setting.device == "cpu" else None,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            self.trainer = SaliencyTrainer(setting.build(), args)
            self.trainer.create_optimizer()
            self.trainer.current_gradient_accumulation_steps = 1
            prepared = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
            self.model, self.trainer.optimizer = prepared
            self.trainer.model_wrapped = self.model
        self.batch = setting.batch()

    def __call__(self) -> None:
        trainer = self.trainer
        trainer.training_step(self.model, self.batch)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), trainer.args.max_grad_norm)
        trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.state.global_step += 1

    @property
    def method(self) -> Guidance | None:
        """The guidance method; `None` in plain training."""
        return self.trainer.guidance[0] if self.trainer.guidance else None

    @property
    def kind(self) -> str:
        """What the method takes beside the plain step: `"plain"`, `"inputs"`, `"map"`, `"views"`, or a gradient."""
        method = self.method
        if method is None:
            return "plain"
        if method.transforms_inputs:
            return "inputs"
        if method.gradient_at is not None:
            return "input gradient" if method.gradient_at == "input" else "feature gradient"
        return "views" if method.cost == "views" else "map"

    @property
    def readout(self) -> str | None:
        """How the head reads the layer that maps are made of; `None` where no method asks for one."""
        layer = self.trainer.feature_layer
        return None if layer is None else layer.readout

    @property
    def engine(self) -> str | None:
        """How an input gradient is differentiated."""
        return next((choice.engine for choice in self.trainer.gradient_engines.values()), None)

    def held_bytes(self) -> int:
        """Bytes of what is there before a step: weights, buffers and the optimizer's state; gradients are dropped."""
        tensors: list[Tensor] = [*self.trainer.model.parameters(), *self.trainer.model.buffers()]
        for state in self.trainer.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _compiled_or_not() -> Iterator[None]:
    """TrainingArguments tell Accelerate of a backend by the environment, where the next trainer would find it."""
    prefix = "ACCELERATE_DYNAMO_"
    former = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(prefix)]:
            del os.environ[name]
        os.environ.update(former)
