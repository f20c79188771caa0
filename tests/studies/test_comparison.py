"""Comparisons: planned, checked, run, resumed, on digits and a tiny network."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from hf_salguide.data import load_saliency_dataset
from hf_salguide.data.checks import annotated_rows
from hf_salguide.studies.comparison import checks
from hf_salguide.studies.comparison import plan as module
from hf_salguide.studies.comparison import run as run_module
from hf_salguide.studies.comparison.plan import check_comparison, run_comparison
from hf_salguide.studies.comparison.records import DONE, FAILED, Arm, load_study, read_run
from hf_salguide.studies.comparison.results import COLUMNS, results_rows
from hf_salguide.studies.comparison.run import execute, partly_annotated, run_arguments
from hf_salguide.studies.comparison.search import Budget
from hf_salguide.studies.comparison.settings import table_digest
from hf_salguide.trainer import SaliencyTrainer

from .comparisons import TRAINING, comparison, in_this_process


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(module, "run_jobs", in_this_process)


@pytest.fixture(scope="module")
def finished(digits_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("study") / "study"
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "run_jobs", in_this_process)
    told = []
    study = run_comparison(comparison(digits_folder, output), report=told.append)
    patch.undo()
    return output, study, told


def figures(path):
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_every_arm_runs_with_every_seed(finished):
    _, study, told = finished
    arms = [Arm("none"), Arm("cyborg"), Arm("masked_input"), Arm("cyborg", "inverted")]
    assert [(run.arm, run.seed) for run in study.runs] == [(arm, seed) for seed in (0, 1) for arm in arms]
    assert {run.status for run in study.runs} == {DONE}
    assert study.missing == 0
    assert len(told) == 8


def test_the_table_of_results(finished):
    output, study, _ = finished
    with (output / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["method"] for row in rows[:4]] == ["none", "cyborg", "masked_input", "cyborg"]
    assert [row["saliency"] for row in rows[:4]] == ["human", "human", "human", "inverted"]
    for row, run in zip(rows, study.runs, strict=True):
        assert float(row["val_auroc"]) == pytest.approx(run.metrics["validation"]["auroc"], abs=1e-6)
        assert float(row["test_auroc"]) == pytest.approx(run.metrics["test"]["auroc"], abs=1e-6)
        assert float(row["ood_auroc"]) == pytest.approx(run.metrics["ood"]["auroc"], abs=1e-6)
        assert float(row["test_energy_inside"]) == pytest.approx(run.metrics["test"]["energy_inside"], rel=1e-5)


def metrics_of(runs):
    """As text, in which what has no value equals itself: a map of a few pictures may be negative everywhere."""
    return [json.dumps(run.metrics, sort_keys=True) for run in runs]


def test_the_figures_are_those_of_the_predictions(finished):
    from sklearn.metrics import roc_auc_score

    _, study, _ = finished
    for run in study.runs:
        for split in ("validation", "test", "ood"):
            found = run.predictions(split)
            assert run.metrics[split]["auroc"] == pytest.approx(roc_auc_score(found.labels, found.probabilities[:, 1]))
            assert run.metrics[split]["energy_inside"] == pytest.approx(np.nanmean(found.alignment["energy_inside"]))
            difference = found.alignment["difference_energy_inside"]
            assert run.metrics[split]["difference_energy_inside"] == pytest.approx(np.nanmean(difference), nan_ok=True)
            assert found.maps.shape[0] == len(found.labels) == len(found.file_names)


def test_the_best_step_by_validation_counts(finished):
    _, study, _ = finished
    for run in study.runs:  # what is judged is the best checkpoint, not the last
        assert run.metrics["validation"]["auroc"] == pytest.approx(run.metrics["training"]["best_auroc"])
    args = run_arguments(dataclasses.replace(spec_of(study), training={"num_train_epochs": 1}))
    assert args.eval_strategy == args.save_strategy == "epoch"
    assert args.load_best_model_at_end
    assert args.metric_for_best_model == "auroc"


def spec_of(study):
    output = study.runs[0].folder.parent.parent
    return comparison("unused", output).specs("digest")[0]


def test_what_is_done_is_left_alone(finished, digits_folder, monkeypatch):
    output, study, _ = finished
    monkeypatch.setattr(module, "execute", None)  # calling it would fail
    told = []
    again = run_comparison(comparison(digits_folder, output), report=told.append)
    assert metrics_of(again.runs) == metrics_of(study.runs)
    assert told == ["8 of 8 are done already."]


def test_a_run_that_is_done_alone_is_the_same(finished, digits_folder, tmp_path):
    """Runs do not depend on the ones before them in their process, nor on the folder."""
    _, study, _ = finished
    small = comparison(digits_folder, tmp_path / "alone", seeds=[1], methods=["cyborg"], inverted=[])
    alone = run_comparison(small, report=lambda line: None)
    same = [run for run in study.runs if run.seed == 1 and run.arm in (Arm("none"), Arm("cyborg"))]
    assert metrics_of(alone.runs) == metrics_of(same)


def test_more_seeds_are_added(finished, digits_folder, tmp_path):
    import shutil

    output, study, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    told = []
    more = run_comparison(comparison(digits_folder, copy, seeds=[0, 1, 2]), report=told.append)
    assert told[0] == "8 of 12 are done already."
    assert len(more.runs) == 12
    assert metrics_of(more.runs[:8]) == metrics_of(study.runs)


def test_a_run_of_other_settings_is_not_taken_for_this_one(finished, digits_folder):
    output, _, _ = finished
    before = (output / "study.json").read_bytes()
    other = comparison(digits_folder, output, training={**TRAINING, "learning_rate": 0.02})
    with pytest.raises(ValueError, match="was run with another training; name another output_dir"):
        run_comparison(other, report=lambda line: None)
    other = comparison(digits_folder, output, data={"path": str(digits_folder), "saliency_column": "mask_file_name"})
    with pytest.raises(ValueError, match="was run with another columns"):
        run_comparison(other, report=lambda line: None)
    run_comparison(
        comparison(digits_folder, output, methods=["sage"], inverted=[]), report=lambda line: None, dry=True
    )
    assert (output / "study.json").read_bytes() == before


def test_nothing_of_the_machine_stands_in_what_is_written(finished, digits_folder):
    output, _, _ = finished
    for name in ("study.json", "results.csv"):
        text = (output / name).read_text()
        assert str(digits_folder) not in text
        assert str(output) not in text


def test_a_failure_is_recorded_and_tried_again(digits_folder, tmp_path, monkeypatch):
    predict = run_module.predict
    broken = True

    def sometimes(model, *args, **kwargs):
        if broken and kwargs["guidance"].get("name") == "cyborg":
            raise RuntimeError(f"no maps today in {tmp_path}/study")
        return predict(model, *args, **kwargs)

    monkeypatch.setattr(run_module, "predict", sometimes)
    given = comparison(digits_folder, tmp_path / "study", seeds=[0], inverted=[])
    study = run_comparison(given, report=lambda line: None)
    assert [run.status for run in study.runs] == [DONE, FAILED, DONE]
    assert study.runs[1].error == f"RuntimeError: no maps today in {tmp_path}/study"
    row = results_rows(study)[1]
    assert (row["status"], row["error"], row["ood_auroc"]) == ("failed", "RuntimeError: no maps today in study", None)
    assert "no maps today" in (study.runs[1].folder / "log.txt").read_text()
    broken = False
    assert {run.status for run in run_comparison(given, report=lambda line: None).runs} == {DONE}


def test_a_process_that_died_is_recorded(digits_folder, tmp_path, monkeypatch):
    def dying(work, tasks, jobs, done):
        for task in tasks:
            done(task, None, "the process of the run was killed by signal 9")

    monkeypatch.setattr(module, "run_jobs", dying)
    study = run_comparison(comparison(digits_folder, tmp_path / "study", seeds=[0]), report=lambda line: None)
    assert {(run.status, run.error) for run in study.runs} == {
        (FAILED, "the process of the run was killed by signal 9")
    }


def test_scores_that_are_not_finite_are_a_failure(digits_folder, tmp_path):
    given = comparison(digits_folder, tmp_path / "s", seeds=[0], methods=["energy"], inverted=[])
    spec = given.specs("digest")[1]
    record = execute(dataclasses.replace(spec, training={**TRAINING, "learning_rate": 1e30}))
    assert record.status == FAILED
    assert "finite" in record.error
    assert read_run(spec.folder)[0].error == record.error


EPOCHS = {**TRAINING, "max_steps": -1, "num_train_epochs": 5, "eval_strategy": "epoch", "learning_rate": 0.003}


def broken_off(monkeypatch, spec, step):
    """Starts a run and kills it when the checkpoint of a step is written."""
    save = SaliencyTrainer._save_checkpoint

    def killed(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step >= step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SaliencyTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            execute(spec)


def counted_steps(monkeypatch):
    steps, training_step = [], SaliencyTrainer.training_step
    monkeypatch.setattr(
        SaliencyTrainer, "training_step", lambda self, *args: (steps.append(1), training_step(self, *args))[1]
    )
    return steps


def losses(folder):
    """The training losses and gradients that a run logged, epoch after epoch."""
    return [line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("{'loss'")]


def test_a_run_that_was_broken_off_goes_on(digits_folder, tmp_path, monkeypatch):
    """The same figures, bit for bit, from the last whole checkpoint."""
    given = comparison(digits_folder, tmp_path / "s", training={**EPOCHS, "warmup_steps": 12})
    spec = given.specs("digest")[1]
    whole = execute(dataclasses.replace(spec, folder=tmp_path / "whole"))
    steps = int(whole.metrics["training"]["steps"])
    broken_off(monkeypatch, spec, steps // 5)
    torn = spec.folder / "training" / f"checkpoint-{2 * steps // 5}"  # one that was being written
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    counted = counted_steps(monkeypatch)
    record = execute(spec)
    assert len(counted) == steps - steps // 5
    assert record.metrics == whole.metrics
    assert losses(spec.folder) == losses(tmp_path / "whole")  # what came after the best epoch is the same as well
    assert not (spec.folder / "training").exists()


def test_what_is_left_of_a_run_with_other_settings_is_cleared_away(digits_folder, tmp_path, monkeypatch):
    given = comparison(digits_folder, tmp_path / "s", training={**EPOCHS, "learning_rate": 0.1})
    broken_off(monkeypatch, given.specs("digest")[1], 1)
    spec = comparison(digits_folder, tmp_path / "s", training=EPOCHS).specs("digest")[1]
    assert list((spec.folder / "training").glob("checkpoint-*"))
    whole = execute(dataclasses.replace(spec, folder=tmp_path / "whole"))
    assert execute(spec).metrics == whole.metrics


def test_a_folder_that_was_moved_goes_on(digits_folder, tmp_path, monkeypatch):
    """The best checkpoint is found where it is now."""
    given = comparison(digits_folder, tmp_path / "before", training=EPOCHS)
    spec = given.specs("digest")[1]
    whole = execute(dataclasses.replace(spec, folder=tmp_path / "whole"))
    broken_off(monkeypatch, spec, int(whole.metrics["training"]["steps"]))
    (tmp_path / "before").rename(tmp_path / "after")
    moved = dataclasses.replace(spec, folder=tmp_path / "after" / "runs" / spec.folder.name)
    assert execute(moved).metrics == whole.metrics


def test_a_run_that_was_broken_off_within_an_epoch_starts_again(finished, digits_folder, tmp_path, monkeypatch):
    _, study, _ = finished
    spec = comparison(digits_folder, tmp_path / "s").specs("digest")[1]
    broken_off(monkeypatch, spec, 2)
    assert (spec.folder / "training" / "checkpoint-2" / "trainer_state.json").is_file()
    counted = counted_steps(monkeypatch)
    assert execute(spec).metrics == study.runs[1].metrics
    assert len(counted) == 4


# ---- Fractions of the annotation ----


@pytest.mark.parametrize("seed", [0, 1])
def test_a_share_of_the_annotation_is_kept(digits_folder, seed):
    train = load_saliency_dataset(digits_folder)["train"]
    labels, all_annotated = np.array(train["label"]), np.array(annotated_rows(train))
    former = np.zeros(len(train), dtype=bool)
    for fraction in (0.1, 0.5, 0.8):
        part = partly_annotated(train, fraction, seed)
        kept = np.array(annotated_rows(part))
        assert list(part["label"]) == list(train["label"])
        assert not (kept & ~all_annotated).any()
        assert (former <= kept).all()  # a larger share keeps what a smaller one keeps
        for label in (0, 1):
            ours = all_annotated & (labels == label)
            assert kept[ours].sum() == max(1, round(fraction * ours.sum()))
        row = int(np.flatnonzero(kept)[0])
        assert np.array_equal(np.asarray(part[row]["saliency"]), np.asarray(train[row]["saliency"]))
        former = kept
    assert partly_annotated(train, 1.0, seed) is train


def test_shares_are_drawn_by_the_seed(digits_folder):
    train = load_saliency_dataset(digits_folder)["train"]
    assert annotated_rows(partly_annotated(train, 0.5, 0)) != annotated_rows(partly_annotated(train, 0.5, 1))


def test_plain_training_stands_beside_every_share(digits_folder, tmp_path):
    given = comparison(
        digits_folder, tmp_path / "s", seeds=[0], methods=["cyborg"], inverted=[], annotated_fractions=[0.5, 1.0]
    )
    study = run_comparison(given, report=lambda line: None)
    found = [(run.arm.method, run.annotated_fraction) for run in study.runs]
    assert found == [("none", 0.5), ("none", 1.0), ("cyborg", 0.5), ("cyborg", 1.0)]
    assert study.runs[0].metrics == study.runs[1].metrics
    assert study.runs[2].metrics["test"] != study.runs[3].metrics["test"]
    assert [row["method"] for row in results_rows(study)] == ["none", "cyborg", "cyborg"]


def test_methods_without_annotation_stand_beside_every_share(digits_folder, tmp_path):
    changes = {"seeds": [0], "methods": ["cyborg", "cam_entropy"], "inverted": [], "annotated_fractions": [0.25, 0.5]}
    study = run_comparison(comparison(digits_folder, tmp_path / "s", **changes), report=lambda line: None)
    found = {(run.arm.method, run.annotated_fraction) for run in study.runs}
    assert found == {(method, share) for method in ("none", "cyborg", "cam_entropy") for share in (0.25, 0.5)}
    written = {(row["method"], row["annotated_fraction"]) for row in results_rows(study)}
    assert written == {("none", 1.0), ("cyborg", 0.25), ("cyborg", 0.5), ("cam_entropy", 1.0)}


# ---- Backbones ----


def test_backbones_of_one_last_name_have_folders_of_their_own(digits_folder, tmp_path):
    given = comparison(digits_folder, tmp_path, backbones={"a/net": {}, "b/net": {}, "test_resnet": {}})
    folders = [spec.folder.name for spec in given.specs("digest")]
    assert len(set(folders)) == len(folders) == 24
    assert {"none_human_a_net_seed0", "none_human_b_net_seed0", "none_human_test_resnet_seed0"} <= set(folders)


def test_a_backbone_of_this_machine_is_named_by_its_last_part(digits_folder, tmp_path):
    from hf_salguide import as_classifier

    backbone = tmp_path / "private" / "net"
    as_classifier("test_resnet", label_names=["zero", "one"]).save_pretrained(backbone)
    changes = {"backbones": {str(backbone): {}}, "seeds": [0], "methods": ["energy"], "inverted": []}
    study = run_comparison(comparison(digits_folder, tmp_path / "s", **changes), report=lambda line: None)
    assert {(run.status, run.backbone) for run in study.runs} == {(DONE, "net")}
    assert list(study.settings["backbones"]) == ["net"]
    for name in ("study.json", "results.csv", "runs/energy_human_net_seed0/run.json"):
        assert "private" not in (tmp_path / "s" / name).read_text()


# ---- The search for hyper-parameters ----

SEARCH = {"learning_rate": [0.001, 0.1], "guidance_weight": [0.1, 10]}


def test_every_method_has_the_same_budget(digits_folder, tmp_path):
    given = comparison(digits_folder, tmp_path / "s", budget=Budget(4, SEARCH))
    trials = given.budget.trials_of(given, "digest")
    counts = {arm: [trial.arm for trial in trials].count(arm) for arm in given.arms}
    assert counts == {Arm("none"): 4, Arm("cyborg"): 4, Arm("masked_input"): 4, Arm("cyborg", "inverted"): 0}
    rates = {arm: [t.training["learning_rate"] for t in trials if t.arm == arm] for arm in given.arms[:3]}
    assert rates[Arm("none")] == rates[Arm("cyborg")] == rates[Arm("masked_input")]
    assert rates[Arm("none")][0] == TRAINING["learning_rate"]
    assert all(0.001 <= rate <= 0.1 for rate in rates[Arm("none")])
    weights = [trial.training.get("guidance_weight") for trial in trials if trial.arm == Arm("cyborg")]
    assert weights[0] is None
    assert all(0.05 <= weight <= 5 for weight in weights[1:])  # 0.1 to 10 times the published 0.5
    assert not any("guidance_weight" in t.training for t in trials if t.arm != Arm("cyborg"))
    assert {trial.seed for trial in trials} == {9000}
    assert {trial.test_splits for trial in trials} == {()}  # a trial sees no test picture


def test_the_best_on_validation_is_taken(digits_folder, tmp_path):
    changes = {"seeds": [0], "methods": ["cyborg"], "budget": Budget(2, SEARCH)}
    given = comparison(digits_folder, tmp_path / "s", **changes)
    told = []
    study = run_comparison(given, report=told.append)
    settings = json.loads((tmp_path / "s" / "study.json").read_text())["settings"]
    trials = given.budget.trials_of(given, table_digest(load_saliency_dataset(digits_folder)))
    for run in study.runs:
        values = {
            read_run(trial.folder)[0].metrics["validation"]["auroc"]: trial
            for trial in reversed(trials)
            if trial.arm.method == run.arm.method
        }
        best = values[max(values)]
        assert run.hyperparameters == best.training
        assert settings["chosen"]["test_resnet"][run.arm.method]["validation_auroc"] == max(values)
    assert sum(line.startswith("search") for line in told) == 4
    # Again: nothing is run, and the same is chosen.
    again = run_comparison(given, report=told.append)
    assert metrics_of(again.runs) == metrics_of(study.runs)


def test_what_was_found_once_stays(digits_folder, tmp_path, monkeypatch):
    """A trial that died is not tried again when the runs that follow from the search are there."""
    given = comparison(
        digits_folder, tmp_path / "s", seeds=[0], methods=["energy"], inverted=[], budget=Budget(2, SEARCH)
    )

    def dying_once(work, tasks, jobs, done):
        for number, task in enumerate(tasks):
            dies = number == 1 and "trial" in task.folder.name
            done(task, *((None, "the process of the run was killed by signal 9") if dies else (work(task), "")))

    monkeypatch.setattr(module, "run_jobs", dying_once)
    study = run_comparison(given, report=lambda line: None)
    assert study.settings["chosen"]["failed trials"] == ["none_human_test_resnet_seed9000_trial1"]
    monkeypatch.setattr(module, "run_jobs", in_this_process)
    told = []
    again = run_comparison(given, report=told.append)
    assert told == ["2 of 2 are done already."]
    assert again.settings["chosen"] == study.settings["chosen"]


def test_what_was_set_by_hand_is_told():
    told = Budget().describe({"cyborg": {"learning_rate": 0.1, "guidance_weight": 2.0}, "sage": {}})
    assert told.endswith("Set by hand, outside that budget: learning_rate, guidance_weight of cyborg.")


def test_the_settings_that_a_reader_looks_for_are_told(finished):
    training = finished[1].settings["training"]
    assert training["max_steps"] == 4
    assert training["lr_scheduler_type"] == "linear"  # not set in the comparison
    assert training["per_device_train_batch_size"] == 4


@pytest.mark.parametrize(
    ("trials", "ranges", "message"),
    [
        (0, {}, "trials=0 has to be at least 1"),
        (3, {}, "give both a number of trials above 1 and ranges"),
        (1, {"learning_rate": [0.1, 1]}, "give both a number of trials above 1 and ranges"),
        (3, {"learning_rate": [1, 0.1]}, "has to be a lower and an upper end above 0"),
        (3, {"learning_rate": 0.1}, "has to be a lower and an upper end above 0"),
        (3, {"learning_rate": ["1e-3", "1e-1"]}, "has to be a lower and an upper end above 0"),
        (3, {"num_train_epochs": [1, 8]}, "every method is to have the same amount of training"),
        (3, {"guidance_weight": [0.1, 1]}, "plain training does not have"),
    ],
)
def test_bad_budgets(trials, ranges, message):
    with pytest.raises(ValueError, match=message):
        Budget(trials, ranges)


def test_the_seed_of_the_search_is_none_of_the_comparison(digits_folder, tmp_path):
    given = comparison(digits_folder, tmp_path / "s", budget=Budget(2, SEARCH, seed=1))
    with pytest.raises(ValueError, match="search_seed=1 is one of seeds"):
        run_comparison(given, report=lambda line: None)


# ---- What is refused before any compute ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["cybrog"]}, 'methods: "cybrog" is no guidance method; choose from'),
        ({"methods": []}, 'inverted: "cyborg" has to be among methods'),
        ({"methods": ["none"], "inverted": []}, "methods is empty"),
        ({"methods": ["cyborg", "cam_entropy"], "inverted": ["cam_entropy"]}, 'inverted: "cam_entropy" has to be'),
        ({"seeds": []}, r"seeds=\[\] has to be"),
        ({"seeds": [1, 1]}, "has to be a list of different whole numbers"),
        ({"annotated_fractions": [0.0, 1.0]}, "have to be different numbers above 0"),
        ({"metric": "aurok"}, 'metric="aurok" is not known'),
        ({"test_split": "tets"}, 'test_split="tets" is not a split of the data; it has train'),
        ({"ood_split": "elsewhere"}, "write none where there is no such split"),
        ({"ood_split": "test"}, 'ood_split="test" is the test split as well'),
        ({"test_split": None}, 'test_split="None" is not a split of the data'),
        ({"training": {**TRAINING, "per_device_train_batch_size": 0}}, "plain with test_resnet cannot be trained"),
        ({"backbones": {"test_resnet": {"output_stride": 5}}}, "plain with test_resnet cannot be trained"),
        ({"eval_split": "test"}, "have to be different: what a run learns or selects on"),
        ({"train_split": "ood"}, "have to be different: what a run learns or selects on"),
        ({"backbones": {"resnet_no": {}}}, "plain with resnet_no cannot be trained"),
        ({"training": {**TRAINING, "image_size": -3}}, "plain with test_resnet cannot be trained: image_size=-3"),
        (
            {"method_arguments": {"cyborg": {"guidance_options": {"cam_class": "best"}}}},
            "cyborg with test_resnet cannot be trained: cam_class='best'",
        ),
        ({"method_arguments": {"cyborgg": {}}}, 'method_arguments: "cyborgg" is no guidance method'),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(digits_folder, tmp_path, changes, message):
    output = tmp_path / "study"
    with pytest.raises(ValueError, match=message):
        run_comparison(comparison(digits_folder, output, **changes), report=lambda line: None)
    assert not output.exists()


def rows_of(digits_folder, keep):
    dataset = load_saliency_dataset(digits_folder)
    return {
        name: split.select([i for i, row in enumerate(split) if keep(name, row)]) for name, split in dataset.items()
    }


def test_one_class_in_a_test_set(digits_folder, tmp_path, monkeypatch):
    from datasets import DatasetDict

    dataset = DatasetDict(rows_of(digits_folder, lambda split, row: split != "ood" or row["label"] == 0))
    monkeypatch.setattr(checks, "load_saliency_dataset", lambda **kwargs: dataset)
    given = comparison(digits_folder, tmp_path / "s")
    with pytest.raises(
        ValueError, match='ood_split="ood" has no picture of one, so that metric="auroc" is not defined'
    ):
        check_comparison(given)
    assert check_comparison(dataclasses.replace(given, metric="accuracy")) is dataset


def test_no_annotated_picture(digits_folder, tmp_path, monkeypatch):
    from datasets import DatasetDict

    dataset = DatasetDict(rows_of(digits_folder, lambda split, row: split != "train" or row["saliency"] is None))
    monkeypatch.setattr(checks, "load_saliency_dataset", lambda **kwargs: dataset)
    with pytest.raises(ValueError, match='no picture of train_split="train" is annotated'):
        check_comparison(comparison(digits_folder, tmp_path / "s"))


def test_a_folder_that_holds_something_else(digits_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no comparison's; name another folder"):
        run_comparison(comparison(digits_folder, tmp_path), report=lambda line: None)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_comparisons_do_not_share_a_folder(digits_folder, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="is in use by another comparison"):
        run_comparison(comparison(digits_folder, tmp_path), report=lambda line: None)


def test_a_dry_run_plans(digits_folder, tmp_path):
    told = []
    study = run_comparison(comparison(digits_folder, tmp_path / "s"), report=told.append, dry=True)
    assert told == ["0 runs of the search for hyper-parameters and 8 runs are planned."]
    assert study.missing == 8
    assert not (tmp_path / "s").exists()


def test_a_comparison_that_was_killed_at_its_very_start_goes_on(digits_folder, tmp_path):
    (tmp_path / "study.json.part").write_text("{")
    given = comparison(digits_folder, tmp_path, seeds=[0], methods=["energy"], inverted=[])
    assert len(run_comparison(given, report=lambda line: None).runs) == 2


def test_a_folder_without_a_comparison(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no comparison"):
        load_study(tmp_path)
