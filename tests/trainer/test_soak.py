"""A long run keeps nothing: no memory, no file handle, no hook, no tensor, no object more at its end than early on."""

import ctypes
import gc
import mmap
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

import pytest
import torch
from support import NAMES, Rows, make_batch, make_trainer
from transformers import TrainerCallback

from hf_salguide import as_classifier

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(
    not (STATM.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")), reason="reads /proc, and has glibc trim memory"
)
SIZE = (32, 48)
SAMPLES, WARM_UP = 6, 2
# Every way that a term is made: a map of an exact read-out, and one whose gradient goes through the last block; views,
# with a discriminator and without; the gradient by a double backward, by finite differences, and at the features.
RUNS = {
    "convolutions": (
        "test_resnet",
        ["cyborg", "sage", "gradmask"],
        {"gradmask": {"gradient_engine": "double_backward"}},
    ),
    "class token": (
        "test_vit",
        ["divisive_complement", "actdiff_adversarial", "rrr", "gradmask"],
        {"rrr": {"gradient_engine": "finite_difference"}, "gradmask": {"at": "features"}},
    ),
}
# Resident memory sways by megabytes in a process that has run other tests; a leak grows with the steps.
MEGABYTES = 16.0
OBJECTS = 40  # Python's and the Trainer's own swaying


@dataclass(frozen=True)
class Sample:
    """What a process holds at the end of a step."""

    step: int
    megabytes: float
    handles: int
    hooks: int
    tensors: int
    objects: int


class Sampler(TrainerCallback):
    """Counts what there is every so many steps; `leak` may keep something at each."""

    def __init__(self, every, leak=None):
        self.every = every
        self.leak = leak
        self.samples = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.leak is not None:
            self.leak(model)
        if state.global_step % self.every == 0:
            self.samples.append(sample(state.global_step, model))


def sample(step, model):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: the rest is held
    objects = gc.get_objects()
    return Sample(
        step=step,
        megabytes=int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
        handles=len(os.listdir("/proc/self/fd")),
        hooks=sum(hooks_of(module) for module in model.modules()),
        tensors=sum(1 for thing in objects if issubclass(type(thing), torch.Tensor)),
        objects=len(objects),
    )


def hooks_of(module):
    """How many hooks of any kind hang on a module, and on its parameters."""
    kept = sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks") and value)
    parameters = [parameter for parameter in module.parameters(recurse=False) if parameter._backward_hooks]
    return kept + sum(len(parameter._backward_hooks) for parameter in parameters)


def soak(tmp_path, run, steps, leak=None):
    """Trains a tiny model and gives six samples; the first two are the warm-up's."""
    name, methods, options = RUNS[run]
    torch.manual_seed(0)
    sampler = Sampler(steps // SAMPLES, leak)
    trainer = make_trainer(
        as_classifier(name, label_names=NAMES, image_size=SIZE),
        tmp_path,
        guidance=methods,
        guidance_options=options,
        train_dataset=Rows(make_batch(SIZE, 12, annotated=[True, False, True] * 4)),
        callbacks=[sampler],
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_strategy="no",
    )
    trainer.train()
    assert trainer.state.global_step == steps
    return sampler.samples


def growth(samples):
    """What a run holds more of at its end than after its warm-up: the names, with the first and the last figure."""
    assert len(samples) == SAMPLES
    first, last = samples[WARM_UP : WARM_UP + 2], samples[-2:]
    allowed = {"megabytes": MEGABYTES, "handles": 0, "hooks": 0, "tensors": 0, "objects": OBJECTS}
    found = {}
    for field in fields(Sample):
        early, late = (median(getattr(one, field.name) for one in part) for part in (first, last))
        if field.name != "step" and late - early > allowed[field.name]:
            found[field.name] = (early, late)
    return found


@pytest.mark.parametrize("run", RUNS)
def test_a_short_run_keeps_nothing(run, tmp_path):
    assert growth(soak(tmp_path, run, steps=60)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_thousand_steps_keep_nothing(run, tmp_path):
    samples = soak(tmp_path, run, steps=2004)
    assert growth(samples) == {}
    assert all(one.hooks == samples[0].hooks for one in samples)


def test_what_steps_keep_is_seen(tmp_path, monkeypatch):
    """A run that keeps a little of everything at each step, as a fault would."""
    kept, files = [], []

    def leak(model):
        files.append(open(os.devnull))  # noqa: SIM115
        model.register_forward_hook(lambda *given: None)
        pages = mmap.mmap(-1, 1_000_000)  # fresh ones: other memory may be there already, freed by earlier tests
        pages.write(b"x" * 1_000_000)
        kept.extend([torch.zeros(1), pages, [], []])

    monkeypatch.setitem(RUNS, "one term", ("test_resnet", ["cyborg"], {}))
    found = growth(soak(tmp_path, "one term", steps=60, leak=leak))
    for file in files:
        file.close()
    assert len(kept) == 4 * 60
    assert set(found) == {"megabytes", "handles", "hooks", "tensors", "objects"}


@pytest.mark.parametrize("name", ["megabytes", "handles", "hooks", "tensors", "objects"])
def test_each_count_is_looked_at(name):
    steady = [Sample(step, 900.0, 12, 3, 400, 90_000) for step in range(SAMPLES)]
    assert growth(steady) == {}
    rising = [replace(one, **{name: getattr(one, name) + 30 * one.step}) for one in steady]
    assert list(growth(rising)) == [name]
