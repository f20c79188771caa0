"""What `torch.compile` does with the guided step: the same training, and few compilations."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import BATCH, METHODS, SIZE, assert_same_movement, convnext, movement, resnet, rows, trainer_of
from support import build, make_batch, make_trainer
from torch._dynamo.utils import counters

from hf_salguide import get_guidance, saliency_maps
from hf_salguide.steps import make_plan, run_options

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
STEPS = 12


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


KINDS = ("maps", "views", "pictures", "input gradients")


def kind_of(method):
    if method.transforms_inputs:
        return "pictures"
    return "views" if method.makes_views else "maps" if method.needs_maps else "input gradients"


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_is_trained_as_without_compilation(kind, tmp_path):
    """Methods of a kind together, each with its weight, for compiling takes seconds."""
    names = [name for name in METHODS if kind_of(get_guidance(name)) == kind]
    assert names
    expected, plain = movement(convnext, tmp_path, guidance=names)
    assert counters["stats"]["unique_graphs"] == 0
    found, trainer = movement(convnext, tmp_path, guidance=names, **COMPILED)
    assert counters["stats"]["unique_graphs"] > 0
    assert (trainer._plan.tail is not None) == plain._plan.tail_gradient == (kind == "maps")
    # A finite difference is one of two gradients that are nearly the same: it magnifies their rounding.
    assert_same_movement(found, expected, 2e-3 if plain._plan.finite_difference else 1e-4)
    logged, expected_logs = ([log for log in run.state.log_history if "loss" in log] for run in (trainer, plain))
    assert len(logged) == len(expected_logs) == 3
    for one, other in zip(logged, expected_logs, strict=True):
        for name in (f"{name}_loss" for name in names if kind != "pictures"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_models_of_one_class_are_compiled_by_themselves(tmp_path):
    """What was compiled without hooks would be run for a guided model too, and the other way round."""
    plain, _ = movement(resnet, tmp_path, 2, guidance="none", **COMPILED)
    guided, _ = movement(resnet, tmp_path, 2, guidance="cyborg", **COMPILED)
    again, _ = movement(resnet, tmp_path, 2, guidance="none", **COMPILED)
    expected, _ = movement(resnet, tmp_path, 2, guidance="cyborg")
    assert_same_movement(guided, expected, 1e-4)
    assert_same_movement(again, plain, 1e-6)


def test_after_training_a_plain_model_is_judged_as_a_guided_one(tmp_path):
    """It is evaluated as it is, not compiled, so hooks fire."""
    _, trainer = movement(resnet, tmp_path, 2, guidance="none", **COMPILED)
    metrics = trainer.evaluate(rows([3, 2]))
    assert 0 <= metrics["eval_energy_inside"] <= 1


@pytest.mark.slow
def test_feature_gradients_are_those_of_what_comes_behind(tmp_path):
    options = {"gradmask": {"at": "features"}, "rrr": {"at": "features"}}
    arguments = {"guidance": ["gradmask", "rrr"], "guidance_options": options}
    expected, _ = movement(convnext, tmp_path, **arguments)
    found, trainer = movement(convnext, tmp_path, **arguments, **COMPILED)
    assert trainer._plan.tail is not None
    assert_same_movement(found, expected, 1e-4)


@pytest.mark.slow
def test_exact_maps_and_views_with_batch_normalisation_are_trained_as_without_compilation(tmp_path):
    guidance = ["cyborg", "actdiff"]
    expected, _ = movement(resnet, tmp_path, 2, guidance=guidance)
    found, trainer = movement(resnet, tmp_path, 2, guidance=guidance, **COMPILED)
    assert trainer._plan.tail is None
    assert_same_movement(found, expected, 1e-3)


@pytest.mark.slow
def test_batch_normalisation_is_compiled_for_each_quarter_of_the_batch(tmp_path):
    """Whatever the number of annotated rows: the list of parts is a constant of the graph."""
    expected, _ = movement(resnet, tmp_path, STEPS, guidance="actdiff")
    eager = {"torch_compile": True, "torch_compile_backend": "eager"}
    found, trainer = movement(resnet, tmp_path, STEPS, guidance="actdiff", **eager)
    assert trainer._plan.few_sizes
    assert counters["stats"]["unique_graphs"] <= 2 + 4
    assert not counters["graph_break"]
    assert_same_movement(found, expected, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, False], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("guidance", "options"),
    [("none", {}), ("cyborg", {}), (["actdiff", "sage"], {}), ("rrr", {"gradient_engine": "finite_difference"})],
    ids=str,
)
def test_the_number_of_compilations_is_bounded(guidance, options, dynamic, tmp_path, monkeypatch):
    """
    Whatever the number of annotated rows: as many as plain training takes (2, since transformers writes `problem_type`
    in the first step), and 2 more for all numbers of views, or, where sizes are static, one for each quarter of the
    batch. Nothing breaks the graph.
    """
    if dynamic is False:
        monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "False")  # as `accelerate launch` does
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    _, trainer = movement(convnext, tmp_path, STEPS, guidance=guidance, guidance_options=options, **compiled)
    assert trainer._how_run["static"] is (dynamic is False)
    more = 0 if guidance in ("none", "cyborg") else 2 if dynamic is None else 4
    assert 2 <= counters["stats"]["unique_graphs"] <= 2 + more
    assert not counters["graph_break"]


def test_padded_views_change_nothing(tmp_path, monkeypatch):
    guidance = ["actdiff", "sage"]
    expected, _ = movement(convnext, tmp_path, STEPS, guidance=guidance)
    monkeypatch.setattr("hf_salguide.steps.forward.SIZES", 2)
    monkeypatch.setattr("hf_salguide.steps.plan.Plan.few_sizes", property(lambda _: True, lambda *_: None))
    sizes = set()

    def watched():
        model = convnext()

        def note(module, args, kwargs):
            if "labels" in kwargs and module.training:
                sizes.add(len(kwargs["pixel_values"]))

        model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    found, _ = movement(watched, tmp_path, STEPS, guidance=guidance)
    assert sizes == {BATCH, BATCH + 3 * 2, BATCH + 3 * 4}  # three views, of none, of half or of all the rows
    assert_same_movement(found, expected, 1e-5)


def test_a_class_token_is_refused_with_the_remedy(tmp_path):
    message = "torch_compile=True: guidance takes a gradient.*class token.*leave torch_compile out"
    with pytest.raises(ValueError, match=message):
        make_trainer(build("vit_class_token"), tmp_path, guidance="cyborg", **COMPILED)
    assert make_trainer(build("vit_class_token"), tmp_path, guidance="actdiff", **COMPILED)._plan.makes_views


@pytest.mark.parametrize("make", [resnet, convnext])
def test_evaluation_and_maps_after_training(make, tmp_path):
    model = make()
    trainer = trainer_of(model, tmp_path, 2, guidance="cyborg", **COMPILED)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    before = trainer.evaluate(rows([4]))
    assert before["eval_cyborg_loss"] > 0
    trainer.train()
    after = trainer.evaluate(rows([4]))
    plain = make_trainer(model, tmp_path, guidance="cyborg").evaluate(rows([4]))
    for name in ("eval_loss", "eval_cyborg_loss", "eval_relevance_mass"):
        assert after[name] == pytest.approx(plain[name], rel=1e-4)
        assert after[name] != before[name]
    maps = saliency_maps(model, make_batch(SIZE)["pixel_values"], 1)
    torch.testing.assert_close(maps, saliency_maps(model, make_batch(SIZE)["pixel_values"], 1))
    assert maps.abs().max() > 0
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any("capture" in key for module in model.modules() for key in vars(module))


@pytest.mark.slow
def test_a_model_that_was_compiled_in_place(tmp_path):
    expected, _ = movement(convnext, tmp_path, guidance="cyborg")

    def compiled():
        model = convnext()
        model.compile(backend="aot_eager")
        return model

    found, trainer = movement(compiled, tmp_path, guidance="cyborg")
    assert trainer._plan.tail is not None
    assert_same_movement(found, expected, 1e-4)
    assert trainer.evaluate(rows([3]))["eval_cyborg_loss"] > 0


def test_how_a_model_is_run_is_read_off(tmp_path, monkeypatch):
    trainer = make_trainer(convnext(), tmp_path, guidance="none", **COMPILED)
    known = {"compiled": True, "static": False}
    assert known.items() <= run_options(trainer.accelerator, trainer.args, trainer.model).items()
    plan = make_plan(convnext(), [], SIZE, compiled=True, static=True)
    assert plan.few_sizes


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a compiler"
)
def test_inductor_trains_alike(tmp_path):
    guidance = ["cyborg", "actdiff", "sage"]
    expected, _ = movement(convnext, tmp_path, 6, guidance=guidance)
    found, _ = movement(convnext, tmp_path, 6, guidance=guidance, torch_compile=True, torch_compile_backend="inductor")
    assert counters["stats"]["unique_graphs"] <= 4
    assert_same_movement(found, expected, 1e-3)


@pytest.mark.slow
def test_finite_differences_of_a_compiled_model_in_two_processes(tmp_path):
    """Also where a process has no annotated picture in a step, and so no second forward."""
    sys.path.insert(0, str(Path(__file__).parent))
    from compiled_run import run

    output, folder = tmp_path / "found.pt", Path(__file__).parent
    paths = os.pathsep.join([str(folder), str(folder.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(folder / "compiled_run.py"), str(output)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert output.exists(), finished.stderr[-4000:]
    found = torch.load(output)
    assert found["world_size"] == 2
    expected, _ = run(1)
    assert_same_movement(found["movement"], expected, 5e-3)
