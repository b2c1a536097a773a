"""Return values of the functions of the API."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from tests.command_line import effnetv2
from tests.messages import mentioning, mentions
from tests.nas.tiny import SPACE
from tests.processes import in_processes
from tests.workflows.conftest import MACHINE, MACHINE_WORDS, TINY

import efficientnetv2 as ev2
from efficientnetv2.nas.storage import import_optuna

ONE_STAGE = {**TINY, "epochs": 1, "settings": {"progressive.stages": 1}}
# Fields that depend on the duration or on the call.
_OTHER = {"command", "wall_s", "images_per_s", "sizes"}


def test_run_displays_its_metrics(run):
    assert repr(run).startswith(f"Run({str(run.path)!r}, top1=")
    html = run._repr_html_()
    assert "<td>macro_f1</td>" in html
    assert f'href="{os.path.relpath(run.report_path)}"' in html
    low, high = run.intervals["top1"]
    assert low <= run.metrics["top1"] <= high
    assert run.model.class_names == ("blue", "green", "red")
    right = (run.predictions["predicted_label"] == run.predictions["true_label"]).mean()
    assert right == pytest.approx(run.metrics["top1"])


def test_tilde_is_the_home_folder(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.path.parent))
    path = f"~/{run.path.name}"
    assert ev2.Run(path).metrics == run.metrics
    assert ev2.load(path).class_names == run.model.class_names
    for result in (ev2.DatasetCheck("~/look"), ev2.Study("~/look")):
        assert result.path == run.path.parent / "look"
        assert "cannot be read" in repr(result), "a notebook shows results that are not there"
        assert "cannot be read" in result._repr_html_()


def test_missing_run_is_an_error_without_a_hint_to_resume(tmp_path):
    run = ev2.Run(tmp_path / "nope")
    assert repr(run) == f"Run({str(tmp_path / 'nope')!r}, no such folder)"
    for name in ("metrics", "predictions"):
        with pytest.raises(ev2.InputError, match=r"nope does not exist\. Give the folder of a run\.$"):
            getattr(run, name)


@pytest.mark.parametrize(("kind", "file"), [(ev2.Run, "recipe.yaml"), (ev2.CrossValidation, "crossval.json")])
def test_another_folder_is_an_error_that_names_the_missing_file(tmp_path, kind, file):
    with pytest.raises(ev2.InputError, match=rf"has no {file}\. Give the folder of"):
        _ = kind(tmp_path).metrics


@pytest.mark.parametrize("kind", [ev2.Run, ev2.CrossValidation])
def test_result_of_another_folder_can_be_displayed(tmp_path, kind):
    (tmp_path / "report.json").write_text("{}")
    assert "cannot be read" in repr(kind(tmp_path))
    assert "cannot be read" in kind(tmp_path)._repr_html_()


def test_optimistic_evaluation_displays_the_reason():
    report = {"top1": 0.98, "intervals": {}, "num_images": 150, "optimistic": True}
    why = "optimistic: 120 of these 150 images trained the model)"
    notes = ["120 of these 150 images trained the model."]
    shown = ev2.Evaluation(None, report | {"notes": notes}, pd.DataFrame())
    assert repr(shown) == f"Evaluation(top1=0.980, {why}"
    assert why in shown._repr_html_()
    assert "optimistic" not in repr(ev2.Evaluation(None, report | {"optimistic": False}, pd.DataFrame()))


@pytest.mark.parametrize(("kind", "file"), [(ev2.Run, "recipe.yaml"), (ev2.CrossValidation, "crossval.json")])
def test_optimistic_run_displays_the_reason(tmp_path, kind, file):
    """Its later notes are on its splits."""
    (tmp_path / file).touch()
    notes = ["Weights runs/a: 12 of the 24 images of val trained them.", "Held out 24 images."]
    report = {"top1": 0.98, "intervals": {}, "num_images": 24, "optimistic": True, "notes": notes}
    (tmp_path / "report.json").write_text(json.dumps(report))
    for shown in (repr(kind(tmp_path)), kind(tmp_path)._repr_html_()):
        assert "optimistic: Weights runs/a: 12 of the 24 images of val trained them)" in shown
        assert "Held out" not in shown


def test_table_of_a_notebook_links_the_report_from_its_folder(tmp_path, monkeypatch):
    """Browsers open no file: link of a page of Jupyter."""
    run = ev2.Run(tmp_path / "my run")
    run.path.mkdir()
    (run.path / "recipe.yaml").touch()
    (run.path / "report.json").write_text(json.dumps({"top1": 0.98, "intervals": {}, "num_images": 24}))
    monkeypatch.chdir(tmp_path)
    assert 'href="my%20run/report.html"' in run._repr_html_()


@pytest.mark.parametrize("images", [["a.jpg", "b.jpg"], np.zeros((2, 8, 8, 3), np.uint8), Image.new("RGB", (8, 8))])
def test_images_instead_of_a_dataset_are_refused_with_the_function_that_takes_them(images):
    with pytest.raises(ev2.InputError, match=mentioning("data", "Predictor")) as error:
        ev2.predict("runs/mine", images)
    assert "to_csv" not in str(error.value)


def test_unfinished_run_is_an_error_with_a_hint_to_resume(tmp_path):
    run = ev2.Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "recipe.yaml").touch()
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, not finished)"
    assert "not finished" in run._repr_html_()
    with pytest.raises(ev2.InputError, match=r"resume it: efficientnetv2\.train\(DATA, output="):
        _ = run.metrics
    with pytest.raises(ev2.InputError, match=r"predictions\.csv.*resume it"):
        _ = run.predictions


def test_evaluation_equals_that_of_the_command(run, photos, tmp_path):
    result = ev2.evaluate(run, photos, output=tmp_path / "here", split="all", tta="d4", sizes=[48, 64], **MACHINE)
    done = effnetv2(
        "evaluate", run.path, photos, "--output", "there", "--split", "all", "--tta", "d4", "--eval-sizes", "48,64",
        "--json", *MACHINE_WORDS, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert result.report.keys() == there.keys()
    assert {key for key in there if result.report[key] != there[key]} <= _OTHER
    for name in ("here", "there"):
        written = ev2.Evaluation(tmp_path / name)
        assert written.metrics == result.metrics
        pd.testing.assert_frame_equal(written.predictions, result.predictions, check_dtype=False)
    assert result.report_path.is_file()
    assert repr(result).startswith("Evaluation(")


def test_evaluation_without_an_output_writes_nothing(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ev2.evaluate(run, photos, slices=(), **MACHINE)
    assert result.report_path is None
    assert len(result.predictions) == 48
    assert result.metrics["top1"] == result.report["top1"]
    assert "<td>top1</td>" in result._repr_html_()
    assert list(tmp_path.iterdir()) == []


def test_predictions_equal_those_of_the_command(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = ev2.predict(run, photos, abstain_below=0.5, **MACHINE)
    assert list(tmp_path.iterdir()) == []
    written = ev2.predict(run, photos, abstain_below=0.5, output="here.csv", rank="next.csv", **MACHINE)
    pd.testing.assert_frame_equal(table, written)
    done = effnetv2("predict", run.path, photos, "--output", "there.csv", "--abstain-below", "0.5", *MACHINE_WORDS,
                    cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()
    assert (tmp_path / "next.csv").is_file()
    assert ev2.Predictor(run, device="cpu")([photos / table["path"][0]])[0].probability == pytest.approx(
        table["probability"][0], abs=1e-3
    )


def test_check_equals_that_of_the_command(photos, tmp_path):
    data = tmp_path / "photos"
    for split in ("train", "val"):
        shutil.copytree(photos, data / split)
    found = ev2.check(data, output=tmp_path / "here", **MACHINE)
    done = effnetv2("check", data, "--output", "there", "--json", *MACHINE_WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert found.report == json.loads(done.stdout)
    assert len(found.duplicates) == 48
    assert [finding["kind"] for finding in found.leakage] == ["same_across_splits"]
    assert found.label_errors == []
    assert found.report_path.is_file()
    assert "duplicates=48" in repr(found)
    assert "in two splits: the same file is in both" in found._repr_html_()
    assert ev2.DatasetCheck(tmp_path / "here").findings == found.findings
    once = ev2.check(photos, output=tmp_path / "here", **MACHINE)
    twice = ev2.check(data, output=tmp_path / "here", **MACHINE)
    assert len(once.duplicates) < 48 == len(twice.duplicates), "each has what its own call found"


def test_estimate_is_the_sum_of_its_parts(photos, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    found = ev2.estimate(photos, **TINY)
    assert found.seconds == pytest.approx(found.stages["seconds"].sum() + sum(found.other_seconds.values()))
    assert found.memory_bytes > 0
    assert found.disk_bytes > 0
    assert repr(found).startswith("Estimate(seconds=")
    assert "<th>image_size</th>" in found._repr_html_()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


@pytest.fixture(scope="module")
def folds(photos):
    counts = {"folds": np.int64(2), "min_images_per_class": np.int64(1)}
    return ev2.cross_validate(photos, output=photos.with_name("folds"), **counts, **ONE_STAGE)


def test_cross_validation_predicts_each_image_once(folds, photos):
    assert len(folds.predictions) == 48
    assert folds.predictions["path"].is_unique
    assert len(folds.folds) == 2
    assert folds.report_path.is_file()
    assert len(ev2.predict(folds, photos, **MACHINE)) == 48
    again = ev2.cross_validate(photos, output=folds.path, resume=True, **MACHINE)
    assert again.metrics == folds.metrics


def test_candidates_are_in_the_report(photos, tmp_path):
    result = ev2.cross_validate(
        photos,
        folds=2,
        output=tmp_path / "folds",
        candidates=[{"optimizer.lr": 0.01}, {"progressive.image_size": {"start": 32, "end": 48}}],
        candidate_settings={"epochs": 2},
        **ONE_STAGE,
    )
    assert [one["settings"] for one in result.report["candidates"]] == [
        "optimizer.lr=0.01",
        "'progressive.image_size={start: 32, end: 48}'",
    ]


def test_study_finds_an_architecture(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.json").write_text(json.dumps(SPACE.to_json()))
    options = {"space": "space.json", "epochs": 1, "image_size": 32, "batch_size": 8, "settings": {"minival": 0.25}}
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    study = ev2.search(photos, trials=np.int64(1), seeds=np.int64(0), **options, **MACHINE)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert study.path == tmp_path / "studies/photos"
    assert study.trials["number"].tolist() == [0]
    assert study.trials["state"].tolist() == ["finished"]
    assert study.best_trial == 0
    assert study.architecture() == study.architecture(0)
    with pytest.raises(ev2.InputError, match=r"trial\W+7"):
        study.architecture(7)
    with pytest.raises(ev2.InputError, match="not of"):
        ev2.search(tmp_path, output=study.path, resume=True, **MACHINE)
    more = ev2.search(photos, output=study.path, resume=True, trials=2, **MACHINE)
    assert len(more.trials) == 2
    assert repr(more).startswith("Study('studies/photos', trials=2 of 2, best_reward=")
    assert more.write_report() == more.report_path
    assert 'href="studies/photos/search.html"' in more._repr_html_()
    columns = more.trials.columns.tolist()
    monkeypatch.setattr(ev2.Study, "_load", lambda self: SimpleNamespace(rows=[]))
    assert more.trials.columns.tolist() == columns, "before the first trial has ended"


@pytest.mark.slow
def test_search_needs_no_main_guard_in_a_script(photos, tmp_path):
    """The processes of trials do not run the script again."""
    (tmp_path / "space.json").write_text(json.dumps(SPACE.to_json()))
    script = tmp_path / "script.py"
    script.write_text(
        "import efficientnetv2 as ev2\n"
        "print('runs')\n"
        f"study = ev2.search({str(photos)!r}, output='study', trials=1, space='space.json', epochs=1, image_size=32,\n"
        "    batch_size=8, settings={'minival': 0.25}, device='cpu', workers=0)\n"
        "print(study.trials['state'].tolist(), __file__)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["runs", f"['finished'] {script}"], done.stderr


def test_workers_need_no_main_guard_in_a_script(photos, tmp_path):
    """Where the system starts them anew, as on macOS and Windows."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from types import SimpleNamespace\n"
        "import efficientnetv2 as ev2\n"
        "from efficientnetv2.data import loader\n"
        "loader.sys = SimpleNamespace(platform='darwin')\n"
        "multiprocessing.set_start_method('spawn')\n"
        "print('runs')\n"
        f"run = ev2.train({str(photos)!r}, output='run', **{ONE_STAGE | {'workers': 1}!r})\n"
        "print(run.path, __file__)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["runs", f"{tmp_path / 'run'} {script}"], done.stderr


class Stop(ev2.Callback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, *_arguments, **_more):
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_stopped_run_leaves_no_workers(error, photos, tmp_path):
    """Even while the exception is kept, as in a notebook."""
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(error) as kept:
        ev2.train(photos, output=tmp_path / "run", callbacks=[Stop(error)], **ONE_STAGE | {"workers": 1})
    assert error is ArithmeticError or mentions(str(kept.value), "resume")
    assert {child.pid for child in psutil.Process().children()} <= before


def test_random_numbers_of_the_caller_do_not_depend_on_a_call(photos):
    drawn = []
    for call in (lambda: None, lambda: ev2.estimate(photos, **ONE_STAGE)):
        torch.manual_seed(5)
        call()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_state_of_torch_in_a_notebook_is_no_obstacle(run, photos):
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    try:
        ev2.estimate(photos, **ONE_STAGE)
        found = ev2.evaluate(run, photos, split="all", **MACHINE)
        assert len(ev2.Predictor(ev2.Run(run).model, device="cpu").embed(photos / "red/red_00.jpg")) == 1
        assert not torch.is_grad_enabled()
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    assert found.metrics == ev2.evaluate(run, photos, split="all", **MACHINE).metrics


def test_style_of_a_notebook_changes_no_page(run, photos, tmp_path):
    pages = []
    for name, style in (("plain", {}), ("other", {"text.usetex": True, "text.color": "white", "lines.linewidth": 9})):
        with matplotlib.rc_context(style):
            ev2.evaluate(run, photos, split="all", output=tmp_path / name, **MACHINE)
            ev2.preview(photos, tmp_path / f"{name}.png", weights="none", recipe="quick")
            assert style.items() <= matplotlib.rcParams.items()
        pages.append([len((tmp_path / name / "report.html").read_bytes()), (tmp_path / f"{name}.png").read_bytes()])
    assert abs(pages[0][0] - pages[1][0]) < 200, "the command and the time differ"
    assert pages[0][1] == pages[1][1]


def test_result_stays_the_same_after_a_change_of_directory(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    results = ev2.Run("run"), ev2.DatasetCheck("run"), ev2.Study("run")
    (tmp_path / "elsewhere/run").mkdir(parents=True)
    monkeypatch.chdir("elsewhere")
    assert results[0].metrics == ev2.Run(run).metrics
    assert {os.fspath(result.path) for result in results} == {str(tmp_path / "run")}


@pytest.mark.parametrize("sizes", [np.int64(32), "32,64"])
def test_sizes_may_be_numpy_numbers_or_text(run, photos, sizes):
    found = ev2.evaluate(run, photos, split="all", sizes=sizes, **MACHINE)
    assert "32" in str(found.report["sizes"])


def test_model_object_must_be_saved_first(run, photos):
    with pytest.raises(ev2.InputError, match=r"`model` must be a path or a name, not \w+\. Write a model to a file"):
        ev2.predict(run.model, photos)


def test_own_module_is_for_the_predictor_alone(photos, tmp_path):
    own = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    network, file = ev2.create(own), tmp_path / "own.safetensors"
    ev2.save(file, network, class_names=("a", "b"))
    for model in (network, own, file):
        with pytest.raises(ev2.InputError, match=r"efficientnetv2\.Predictor\("):
            ev2.evaluate(model, photos)


def test_functions_are_not_replaced_by_imported_subpackages():
    for module in pkgutil.iter_modules(ev2.__path__, "efficientnetv2."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    functions = ("train", "evaluate", "predict", "cross_validate", "check", "estimate", "search")
    assert all(callable(getattr(ev2, name)) for name in functions)


def train_and_read(photos, output):
    return ev2.train(photos, output=output, settings={"ghost_batch_size": 4}, **TINY).metrics["top1"]


def test_every_process_of_a_launched_script_can_read_the_result(photos, tmp_path):
    first, second = in_processes(train_and_read, 2, photos, tmp_path / "run")
    assert first == second == ev2.Run(tmp_path / "run").metrics["top1"]


def train_twice(photos, folder, restarts):
    os.chdir(folder)
    os.environ |= {"TORCHELASTIC_RUN_ID": "a launch", "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    return [ev2.train(photos, seed=seed, **ONE_STAGE).path for seed in range(2)]


def test_restarted_script_resumes_each_of_its_runs(photos, tmp_path):
    (made,) = in_processes(train_twice, 1, photos, tmp_path, 0)
    assert len(set(made)) == 2
    assert in_processes(train_twice, 1, photos, tmp_path, 1) == [made]


@pytest.mark.parametrize(
    "name",
    ["evaluate", "predict", "cross_validate", "check", "estimate", "search", "export", "push", "convert", "compare"],
)
def test_several_processes_are_rejected_except_for_train(name, monkeypatch):
    launch = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for variable, value in launch.items():
        monkeypatch.setenv(variable, value)
    arguments = ("data",) if name in ("cross_validate", "check", "estimate", "search", "export") else ("model", "data")
    with pytest.raises(ev2.InputError, match=rf"{name}\(\) runs in one process"):
        getattr(ev2, name)(*arguments)


def test_check_with_weights_lists_label_errors(photos, tmp_path):
    """One red image is in the folder of the blue ones; random weights separate colors."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    shutil.move(data / "red/red_03.jpg", data / "blue/blue_99.jpg")
    torch.manual_seed(0)
    ev2.save(tmp_path / "any.safetensors", ev2.create("efficientnetv2_b0", num_classes=0))
    found = ev2.check(data, output=tmp_path / "look", weights=tmp_path / "any.safetensors", **MACHINE)
    (suspected,) = [one for one in found.label_errors if one["path"] == "blue/blue_99.jpg"]
    assert (suspected["label"], suspected["suggested"]) == ("blue", "red")
