"""The benchmark: turns, clocks, arithmetic with known values, rivals that make the same maps, verdicts, refusals."""

import dataclasses
import json
import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_salguide import as_classifier, list_guidance, resolve_feature_layer, saliency_maps
from hf_salguide.cli import main
from hf_salguide.studies.bench import (
    BenchMethod,
    BenchSetting,
    LoaderResult,
    bench,
    bench_extraction,
    bench_scaling,
    bench_startup,
    scaling,
    scaling_worker,
    startup,
    steps,
)
from hf_salguide.studies.bench.bounds import BOUNDS, Figures, bounds_table, findings, shortfalls
from hf_salguide.studies.bench.extraction import extractors
from hf_salguide.studies.bench.memory import peak_bytes, profiled_peak
from hf_salguide.studies.bench.passes import count_passes
from hf_salguide.studies.bench.plot import save_plot
from hf_salguide.studies.bench.rivals import MODULES, RIVALS
from hf_salguide.studies.bench.setting import PLAIN_METHOD, every_method, machine
from hf_salguide.studies.bench.step import Step
from hf_salguide.studies.bench.tables import (
    bench_table,
    cost_table,
    extraction_table,
    machine_line,
    scaling_table,
    startup_table,
)
from hf_salguide.studies.bench.timing import check_clock, interleaved, ratio_of, seconds

RESNET = BenchSetting("test_resnet", {}, 64, 4)
VIT = BenchSetting("test_vit", {"global_pool": "avg"}, 64, 4)


# ---- Turns and clocks ----


def test_the_order_is_turned_round_at_each_turn():
    calls = []
    runners = {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}
    times = interleaved(runners, repeats=3, clock="wall", device="cpu", warm_up=1)
    assert calls == ["a", "b", "c", "a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_taken_turn_by_turn():
    ratio = ratio_of([2.0, 30.0, 4.0, 5.0, 60.0], [1.0, 10.0, 1.0, 1.0, 10.0])
    assert (ratio.low, ratio.median, ratio.high) == (3.0, 4.0, 5.0)
    assert ratio_of([3.0], [2.0]).low == ratio_of([3.0], [2.0]).high == 1.5


def test_cpu_time_does_not_count_waiting():
    assert seconds(lambda: time.sleep(0.1), "cpu", "cpu") < 0.05
    assert seconds(lambda: time.sleep(0.1), "wall", "cpu") >= 0.1


def test_the_clock_fits_the_device():
    assert (check_clock(None, "cpu"), check_clock(None, "cuda")) == ("cpu", "wall")
    with pytest.raises(ValueError, match='clock="cpu" does not see what device="cuda" does'):
        check_clock("cpu", "cuda")
    with pytest.raises(ValueError, match='clock="sun" is not known'):
        check_clock("sun", "cpu")


# ---- The step ----


@pytest.fixture(scope="module")
def plain_passes(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("plain"))
    return {setting.name: count_passes(Step(setting, PLAIN_METHOD, folder)) for setting in (RESNET, VIT)}


@pytest.mark.parametrize(
    ("setting", "method", "share", "low", "high", "rows"),
    [
        (RESNET, BenchMethod("none"), 1.0, 1.0, 1.0, 4),
        (RESNET, BenchMethod("cyborg"), 1.0, 1.0, 1.001, 4),
        (RESNET, BenchMethod("rrr", {"at": "features"}), 1.0, 1.0, 1.001, 4),
        (RESNET, BenchMethod("actdiff"), 1.0, 2.0, 2.001, 8),
        (RESNET, BenchMethod("actdiff"), 0.25, 1.25, 1.2501, 5),
        (RESNET, BenchMethod("actdiff"), 0.0, 1.0, 1.0, 4),
        (RESNET, BenchMethod("sage"), 1.0, 3.0, 3.001, 12),
        (RESNET, BenchMethod("masked_input"), 1.0, 1.0, 1.0, 4),
        (RESNET, BenchMethod("gradmask"), 1.0, 2.0, 2.1, 4),  # by a double backward
        (VIT, BenchMethod("cyborg"), 1.0, 1.0, 1.001, 4),
        (VIT, BenchMethod("actdiff"), 1.0, 2.0, 2.001, 8),
        # Forward, backward to the pictures alone, forward, backward twice: 7/3, and what the first layer of the plain
        # step does not propagate to the pictures, which is much in so small a network.
        (VIT, BenchMethod("gradmask"), 1.0, 7 / 3, 2.45, 4),
    ],
    ids=lambda value: str(value) if isinstance(value, BenchMethod) else None,
)
def test_the_arithmetic_of_a_step_has_the_value_that_its_passes_give(
    setting, method, share, low, high, rows, plain_passes, tmp_path
):
    step = Step(setting, method, str(tmp_path))
    step.batch = setting.batch(share)
    counted = count_passes(step)
    assert low - 1e-9 <= counted.flops / plain_passes[setting.name].flops <= high
    assert counted.rows == rows


@pytest.mark.parametrize("setting", [RESNET, VIT], ids=lambda setting: setting.name)
def test_the_counter_is_that_of_torch(setting, tmp_path):
    step = Step(setting, PLAIN_METHOD, str(tmp_path))
    with FlopCounterMode(display=False) as counter:
        step()
    assert count_passes(step).flops == counter.get_total_flops() > 1e6


def test_a_step_is_an_optimizer_step(tmp_path):
    step = Step(RESNET, BenchMethod("actdiff_adversarial"), str(tmp_path))
    before = [parameter.detach().clone() for parameter in step.trainer.model.parameters()]
    (method,) = step.trainer.guidance
    state = json.dumps(method.state_dict(), default=lambda value: value.tolist())
    step()
    after = list(step.trainer.model.parameters())
    moved = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert sum(moved) > len(moved) / 2  # branches that start at zero hold back those in them
    assert all(parameter.grad is None for parameter in after)
    # The discriminator is trained at the end of the step; that is part of what the method costs.
    assert json.dumps(method.state_dict(), default=lambda value: value.tolist()) != state
    assert step.trainer.state.global_step == 1


def test_peak_memory_counts_what_is_alive_at_once():
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities) as profiler:
        first = torch.zeros(1_000_000)
        del first
        second, third = torch.zeros(500_000), torch.zeros(1_500_000)
        del second, third
    assert profiled_peak(profiler) == pytest.approx(8_000_000, rel=0.01)


def test_peak_memory_of_a_step_holds_weights_gradients_and_activations(tmp_path):
    plain, guided = (Step(RESNET, method, str(tmp_path)) for method in (PLAIN_METHOD, BenchMethod("cyborg")))
    larger = Step(dataclasses.replace(RESNET, batch_size=16), PLAIN_METHOD, str(tmp_path))
    for step in (plain, guided, larger):
        step()
    peaks = [peak_bytes(step) for step in (plain, guided, larger)]
    weights = sum(value.numel() * 4 for value in plain.trainer.model.parameters())
    assert peaks[0] > 4 * weights  # weights, gradients, two moments of AdamW
    assert peaks[0] <= peaks[1] < 1.2 * peaks[0]
    assert peaks[2] > peaks[0] + 12 * 3 * 64 * 64 * 4  # the pictures' activations


@pytest.fixture(scope="module")
def results():
    methods = [BenchMethod("cyborg"), BenchMethod("actdiff"), BenchMethod("gradmask")]
    return bench(RESNET, methods[:2], (1.0, 0.25), repeats=2) + bench(VIT, methods[::2], repeats=2)


def test_a_result_holds_what_was_measured(results):
    named = {(result.model, result.method, result.annotated): result for result in results}
    assert len(named) == 6
    cyborg = named["test_resnet", "cyborg", 1.0]
    assert (cyborg.kind, cyborg.readout, cyborg.rows, cyborg.enlarged_ratio) == ("map", "exact", 4, None)
    views = named["test_resnet", "actdiff", 0.25]
    assert (views.kind, views.rows, views.theoretical_ratio) == ("views", 5, pytest.approx(1.25, abs=1e-3))
    assert views.enlarged_ratio < views.time_ratio
    assert views.enlarged_memory_ratio < views.memory_ratio
    gradient = named["test_vit(global_pool=avg)", "gradmask", 1.0]
    assert (gradient.kind, gradient.engine) == ("input gradient", "finite_difference")
    for result in results:
        assert result.clock == "cpu"
        assert result.time_ratio_low <= result.time_ratio <= result.time_ratio_high
        assert result.guided_rate == pytest.approx(4000 / result.guided_ms)
        assert result.plain_bytes <= result.guided_bytes


def test_results_go_through_json_into_tables(results):
    content = json.loads(json.dumps({"steps": [dataclasses.asdict(result) for result in results]}))
    read = Figures.read(content).steps
    assert list(read) == results
    table = bench_table(read).splitlines()
    assert len(table) == 2 + len(results)
    assert len({line.count("|") for line in table}) == 1
    assert "| test_vit(global_pool=avg) | gradmask, finite difference | 100% | 64 | 4 | cpu | cpu |" in table[-1]
    cost = cost_table(read).splitlines()
    assert cost[0] == "| method | annotated | test_resnet, 64 px × 4 | test_vit(global_pool=avg), 64 px × 4 |"
    assert [line.split(" | ")[0] for line in cost[2:]] == [
        "| cyborg",
        "| cyborg",
        "| actdiff",
        "| actdiff",
        "| gradmask",
    ]
    assert "(of 1.25)" in cost[5]
    assert "(difference)" in cost[6]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_is_written(results, tmp_path, suffix):
    path = save_plot(results, tmp_path / "new" / f"bench{suffix}")
    assert path.stat().st_size > 10_000
    again = save_plot(results, tmp_path / f"again{suffix}")
    if suffix == ".png":
        assert path.read_bytes() == again.read_bytes()


def test_a_method_that_a_model_refuses_is_left_out_with_the_reason(monkeypatch):
    told, original = [], steps.Step

    def refusing(setting, method, folder):
        if method.name == "sage":
            raise ValueError("no views here")
        return original(setting, method, folder)

    monkeypatch.setattr(steps, "Step", refusing)
    methods = [BenchMethod("sage"), BenchMethod("cyborg")]
    found = bench(RESNET, methods, repeats=1, memory=False, report=told.append)
    assert [result.method for result in found] == ["cyborg"]
    assert found[0].memory_ratio is None
    assert told == ["test_resnet, sage: left out. no views here"]
    with pytest.raises(ValueError, match="no views here"):
        bench(RESNET, methods, repeats=1, memory=False)


@pytest.mark.slow
def test_compiled_steps_in_bfloat16_are_measured_and_counted_as_they_are():
    setting = dataclasses.replace(VIT, compile_backend="aot_eager", bf16=True)
    (result,) = bench(setting, [BenchMethod("cyborg")], repeats=1)
    assert (result.precision, result.compile_backend) == ("bfloat16", "aot_eager")
    assert result.theoretical_ratio == pytest.approx(1.0, abs=1e-3)
    assert "bfloat16, compiled" in cost_table([result])


def test_every_method_is_among_all():
    methods = every_method()
    assert {method.name for method in methods} == set(list_guidance())
    assert {str(method) for method in methods if method.options} == {"gradmask(at=features)", "rrr(at=features)"}


# ---- Map extraction ----


@pytest.mark.parametrize(
    ("name", "model_args"),
    [("test_resnet", {}), ("test_vit", {}), ("test_vit", {"global_pool": "avg"}), ("test_convnext", {})],
)
def test_other_packages_are_asked_for_the_same_maps(name, model_args):
    packages = [package for package in RIVALS if package != "pytorch-grad-cam" or _installed(package)]
    torch.manual_seed(0)
    model = as_classifier(name, num_labels=3, image_size=64, **model_args).eval()
    pictures = torch.randn(2, 3, 64, 64)
    layer = resolve_feature_layer(model, 64)
    told = []
    runners, methods = extractors(model, layer, pictures, packages, told.append)
    assert told == []
    assert list(methods) == ["hf_salguide", *packages]
    ours = runners["hf_salguide"]()
    torch.testing.assert_close(ours, saliency_maps(model, pictures, target=0).detach())
    assert not ours.requires_grad
    gradcam = saliency_maps(model, pictures, target=0, method="gradcam").detach()
    cells = layer.grid[0] * layer.grid[1]
    torch.testing.assert_close(cells * runners["captum"]().detach(), gradcam, rtol=1e-3, atol=1e-4)
    found = runners["torchcam"]().detach()
    if layer.readout == "exact":
        assert methods["torchcam"] == "CAM"
        torch.testing.assert_close(found, ours, rtol=1e-3, atol=1e-5)
    else:
        torch.testing.assert_close(cells * found, gradcam.relu(), rtol=1e-3, atol=1e-4)
    if "pytorch-grad-cam" in runners:
        assert runners["pytorch-grad-cam"]().shape == (2, 64, 64)
    assert model(pictures).logits.shape == runners["forward"]().shape == (2, 3)


def _installed(package):
    import importlib.util

    return importlib.util.find_spec(MODULES[package]) is not None


def test_extraction_is_measured_in_turns(monkeypatch):
    told = []

    def failing(*args):
        raise RuntimeError("not with this layer\nand more")

    monkeypatch.setitem(RIVALS, "captum", failing)
    found = bench_extraction(RESNET, ["torchcam", "captum"], repeats=3, report=told.append)
    assert [(result.library, result.method) for result in found] == [("hf_salguide", "CAM"), ("torchcam", "CAM")]
    assert told == ["captum: left out, it fails here. RuntimeError: not with this layer"]
    assert found[0].ours_ratio == 1
    assert found[0].forward_ratio > 0.5
    assert found[0].forward_ms == found[1].forward_ms
    assert len(extraction_table(found).splitlines()) == 4
    assert Figures.read({"extraction": [dataclasses.asdict(one) for one in found]}).extraction == found


# ---- Start-up, processes ----


def test_start_up_takes_the_difference_turn_by_turn():
    seen = []

    def run(script, given):
        guided = script is startup.GUIDED_START
        seen.append(json.loads(given)["method"])
        turn = (len(seen) - 1) // 2
        return (10.0 * turn + (1.5 if guided else 0.0), 1.0 + guided)

    (wall,) = bench_startup(RESNET, [BenchMethod("rrr")], repeats=3, clock="wall", run=run)
    assert (wall.added_seconds, wall.plain_seconds, wall.guided_seconds) == (1.5, 20.0, 21.5)
    assert seen == ["rrr", "none", "none", "rrr", "rrr", "none", "none", "rrr"]
    (cpu,) = bench_startup(RESNET, [BenchMethod("rrr")], repeats=1, run=run)
    assert (cpu.clock, cpu.added_seconds) == ("cpu", 1.0)
    assert "+1.50 s (+1.50 to +1.50)" in startup_table([wall])


def test_a_start_that_fails_is_told():
    with pytest.raises(RuntimeError, match="no such thing"):
        startup.start("raise OSError('no such thing')", "{}")


@pytest.mark.slow
@pytest.mark.parametrize("setting", [RESNET, VIT], ids=lambda setting: setting.name)
def test_both_starts_train_a_step(setting):
    (result,) = bench_startup(setting, [BenchMethod("cyborg")], repeats=1)
    assert result.plain_seconds > 0.5
    assert result.added_seconds == result.guided_seconds - result.plain_seconds


def test_the_ratio_of_ratios(tmp_path):
    counts = []

    def launch(job, count):
        counts.append(count)
        assert json.loads(job.read_text())["annotated"] == 0.5
        return {"plain": [4.0 / count] * 3, "cyborg": [5.0 / count * (1.25 if count == 2 else 1)] * 3}

    (result,) = bench_scaling(RESNET, [BenchMethod("cyborg")], 0.5, repeats=3, launches=2, launch=launch)
    assert counts == [1, 2, 2, 1]
    assert (result.plain_ratio, result.guided_ratio, result.ratio) == (2.0, pytest.approx(1.6), pytest.approx(0.8))
    assert "2.00 × | 1.60 × | 0.800 × (0.800–0.800)" in scaling_table([result])


def test_a_worker_writes_the_seconds_of_its_steps(tmp_path):
    job, output = tmp_path / "job.json", tmp_path / "times.json"
    methods = [{"name": "cyborg", "options": {}}]
    content = {"setting": dataclasses.asdict(RESNET), "methods": methods, "annotated": 0.5, "repeats": 2}
    job.write_text(json.dumps(content))
    scaling_worker.work(job, output)
    found = json.loads(output.read_text())
    assert found["processes"] == 1
    assert {name: len(values) for name, values in found["times"].items()} == {"plain": 2, "cyborg": 2}
    assert min(min(values) for values in found["times"].values()) > 0


@pytest.mark.slow
def test_two_processes_are_measured():
    (result,) = bench_scaling(RESNET, [BenchMethod("cyborg")], 0.25, repeats=2, launches=1)
    assert 0.1 < result.ratio < 10
    assert result.plain_ms_two > 0


def test_a_launch_without_a_result_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "WORKER", ("-c", "import sys; sys.exit('it broke')"))
    with pytest.raises(RuntimeError, match="1 process.* left no result: it broke"):
        scaling.launched(tmp_path / "job.json", 1)


# ---- Verdicts ----


def test_verdicts_follow_from_the_figures(results):
    step = results[0]

    def like(**changes):
        return dataclasses.replace(step, **changes)

    figures = Figures(
        steps=[
            like(time_ratio=1.01, memory_ratio=1.0),
            like(method="energy", time_ratio=1.2, time_ratio_low=1.0, memory_ratio=1.0),
            like(method="late", readout="generic", time_ratio=1.2, time_ratio_low=1.18),
            like(method="sage", kind="views", readout=None, enlarged_ratio=1.03, time_ratio=3.0),
            like(method="rrr", kind="input gradient", engine="double_backward", time_ratio=2.9),
        ]
    )
    verdicts = {finding.bound.what: finding.verdict for finding in findings(figures)}
    assert len(verdicts) == len(BOUNDS) == 12
    assert [verdict for verdict in verdicts.values() if verdict != "not measured"] == [
        "met by 1 of 2",
        "met",
        "**missed**",
        "met",
        "met",
    ]
    table = bounds_table(figures)
    assert "| ≤ 1.03 × | 1.105 × | 1.200 ×, test_resnet energy 64 px × 4 | met by 1 of 2 |" in table
    told = shortfalls(figures)
    assert told.count("\n- ") == 1
    assert "test_resnet energy 64 px × 4 1.200 × (a quartile keeps to it)" in told
    assert "test_resnet late 64 px × 4 1.200 ×. " in told
    assert "test_resnet cyborg" not in told
    assert shortfalls(Figures()) == "Nothing."


def test_a_bound_from_below_is_missed_by_less():
    base = {
        field.name: 1.0 for field in dataclasses.fields(scaling.ScalingResult) if field.name not in ("model", "method")
    }
    good, bad = (scaling.ScalingResult(model="m", method="x", **{**base, "ratio": ratio}) for ratio in (1.2, 0.9))
    (finding,) = [one for one in findings(Figures(scaling=[bad, good])) if one.measured]
    assert finding.verdict == "met by 1 of 2"
    assert finding.measured[-1].value == 0.9
    assert "| ≥ 0.95 × | 1.050 × | 0.900 ×, m x 100% annotated | met by 1 of 2 |" in bounds_table(
        Figures(scaling=[bad, good])
    )


def test_the_machine_is_named():
    line = machine_line(machine("cpu"))
    assert f"torch {torch.__version__.split('+')[0]}" in line
    assert f"{torch.get_num_threads()} thread(s)" in line


# ---- The command line ----


def _never(*args, **kwargs):
    raise AssertionError("compute was spent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet18x"], 'model="resnet18x" is neither a timm architecture'),
        (["--models", "resnet18:depth"], "write keyword arguments as name:key=value"),
        (["--methods", "cybrog"], 'did you mean "cyborg"'),
        (["--methods", "gradmask:on=features"], '"on" is not an option of guidance="gradmask"'),
        (["--against", "torchcamp"], 'against="torchcamp" is not known; choose from torchcam, captum'),
        (["--against", "captum,quantus"], 'against="quantus" is not known'),
        (["--batch_size", "8", "0"], "batch_size=0 has to be at least 1"),
        (["--image_size", "-1"], "image_size=-1 has to be at least 1"),
        (["--annotated", "1.5"], "annotated=1.5 has to be a share"),
        (["--repeats", "0"], "repeats=0 measures nothing"),
        (["--steps", "false", "--loader", "false"], "steps=false and loader=false leave nothing to measure"),
        (["--launches", "0"], "launches=0 has to be at least 1"),
        (["--threads", "0"], "threads=0 has to be at least 1"),
        (["--device", "tpu"], 'device="tpu" is not known'),
        (["--clock", "sun"], 'clock="sun" is not known'),
        (["--compile", "--compile_backend", "induktor"], 'compile_backend="induktor" is not known; did you mean "ind'),
        (["--scaling", "--device", "cpu", "--batch_size", "7"], "batch_size=7 cannot be shared by 2 processes"),
        (["--json", "{here}"], 'json="{here}" is a folder'),
        (["--plot", "{here}/bench.gif"], "has to end in .png, .svg, .pdf"),
        (["--plot", "{here}/file/bench.png"], "is a file; name another"),
        (["--plot", "{here}/bench.png", "--steps", "false"], "steps=false leaves them out"),
    ],
)
def test_bad_input_is_refused_before_compute(arguments, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(BenchSetting, "build", _never)
    assert main(["bench", *[part.format(here=tmp_path) for part in arguments]]) == 2
    error = capsys.readouterr().err
    assert message.format(here=tmp_path) in error
    assert "Traceback" not in error


def test_a_gpu_that_is_not_there_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_packages_that_are_not_installed_are_left_out_and_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODULES, "torchcam", "a_module_that_nobody_has")
    output = tmp_path / "bench.json"
    arguments = ["--models", "test_resnet", "--image_size", "64", "--batch_size", "2", "--steps", "false"]
    arguments += ["--against", "torchcam,captum", "--loader", "false", "--repeats", "1", "--device", "cpu"]
    assert main(["bench", *arguments, "--json", str(output)]) == 0
    assert "torchcam is not installed; it is left out." in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert [result["library"] for result in content["extraction"]] == ["hf_salguide", "captum"]
    assert "torchcam" not in content["machine"]
    assert "steps" not in content


def test_sizes_and_shares_are_lists_and_all_goes_into_the_file(tmp_path, capsys, monkeypatch):
    def read(size, repeats):
        return [LoaderResult("PNG", 256, 256, size, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 3, 2, repeats)]

    monkeypatch.setattr("hf_salguide.studies.bench.bench_loader", read)
    output, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    arguments = ["--models", "test_resnet", "--image_size", "32", "48", "--batch_size", "2", "3", "--annotated", "1"]
    arguments += ["--repeats", "1", "--memory", "false", "--device", "cpu"]
    assert main(["bench", *arguments, "--json", str(output), "--plot", str(plot)]) == 0
    content = json.loads(output.read_text())
    sizes = [(result["image_size"], result["batch_size"]) for result in content["steps"]]
    assert sizes == [(32, 2), (32, 3), (48, 2), (48, 3)]
    assert all(math.isfinite(result["theoretical_ratio"]) for result in content["steps"])
    assert content["machine"]["torch"]
    loader = Figures.read(content).loader
    assert [(result.image_size, result.reduced_bytes) for result in loader] == [(32, 1), (48, 1)]
    printed = capsys.readouterr().out
    assert "Training steps, CPU time:" in printed
    assert "<svg" in plot.read_text()


def test_an_argument_that_the_architecture_does_not_take(capsys):
    from hf_salguide.cli import main

    assert main(["bench", "--models", "resnet10t:foo=1", "--loader", "false", "--device", "cpu"]) == 2
    assert "models: resnet10t does not take these keyword arguments ['foo']" in capsys.readouterr().err
