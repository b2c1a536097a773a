"""``effnetv2 search`` from a user's view."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image
from tests.command_line import Done, effnetv2, run_ok, run_refused
from tests.conftest import COLORS, paint
from tests.messages import mentions
from tests.nas.tiny import SPACE, words
from tests.recipes import with_overrides
from typer.testing import CliRunner

from efficientnetv2.architectures.registry import read_architecture
from efficientnetv2.cli.main import app
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.models.model_file import load
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.storage import Storage, sqlite_url
from efficientnetv2.nas.study import load_config, open_study
from efficientnetv2.nas.trial import StepTimed, Trained, TrialResult
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import RunLog, attached
from efficientnetv2.workflows import search_run
from efficientnetv2.workflows.search_config import SearchConfig, SearchOptions
from efficientnetv2.workflows.search_export import compound_scaling, scale_up
from efficientnetv2.workflows.study_dir import StudyDir

TRIALS = 4


@pytest.fixture(scope="module")
def finished(painted_folders, tmp_path_factory):
    """A folder with images and a finished study; its name has special characters of URLs and shells."""
    folder = tmp_path_factory.mktemp("50% of #1, or what?")
    shutil.copytree(painted_folders, folder / "pictures")
    done = run_ok(*words(folder, folder / "pictures", "--trials", TRIALS), cwd=folder)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def invoke(*arguments: object) -> Done:
    """Run a command without training in this process: another process takes seconds to start."""
    ended = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return Done(ended.exit_code, ended.stdout, ended.stderr)


def invoke_ok(*arguments: object) -> Done:
    done = invoke(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def invoke_refused(*arguments: object, names: Iterable[object] = ()) -> Done:
    done = invoke(*arguments)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    facts = tuple(names)
    assert not facts or mentions(done.stderr, *facts), done.stderr
    return done


def invoke_json(study: Path, command: str, *arguments: object):
    return json.loads(invoke_ok("search", command, study, *arguments, "--json").stdout)


def test_study_finishes_the_requested_trials(finished):
    output = (finished / "stdout.txt").read_text()
    assert mentions(output, TRIALS, "0 failed")
    assert len(re.findall(r"^Trial \d+: top-1", output, re.MULTILINE)) == TRIALS
    rows = invoke_json(finished / "study", "show")["rows"]
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert len({tuple(row["point"]) for row in rows}) == TRIALS, "no architecture was evaluated twice"


def test_reward_follows_the_formula_relative_to_the_backbone(finished):
    shown = invoke_json(finished / "study", "show")
    base = shown["reference"]
    for row in shown["rows"]:
        one = row["measurement"]
        time, size = (one[name] / base[name] for name in ("step_seconds", "parameters"))
        assert row["reward"] == pytest.approx(one["top1"] * time**-0.07 * size**-0.05)


def test_reward_may_include_inference_time_and_memory(finished, tmp_path):
    """Another worker with the paper's reward is refused."""
    more = ("--inference-exponent", "-0.2", "--memory-exponent", "-0.1")
    run_ok(*words(tmp_path, finished / "pictures", "--trials", 2, *more), cwd=tmp_path)
    shown = invoke_json(tmp_path / "study", "show")
    powers = {"step_seconds": -0.07, "parameters": -0.05, "inference_seconds": -0.2, "peak_memory_bytes": -0.1}
    base = shown["reference"]
    assert len(shown["rows"]) == 2
    for row in shown["rows"]:
        one = row["measurement"]
        costs = prod((one[cost] / base[cost]) ** power for cost, power in powers.items())
        assert row["reward"] == pytest.approx(one["top1"] * costs)
    joined = invoke_refused(*words(tmp_path, finished / "pictures", "--trials", 2))
    assert "another study: reward: " in joined.stderr


def test_best_architecture_is_printed_like_table_4(finished):
    done = invoke("search", "show", finished / "study")
    lines = done.stdout.splitlines()[1:]
    assert lines[1].split() == ["stage", "operator", "stride", "#channels", "#layers"]
    assert lines[2].split() == ["0", "Conv3x3", "2", "8", "1"]
    assert lines[3].split() == ["1", "Fused-MBConv1,", "k3x3", "1", "8", "1"]
    assert lines[6].split() == ["4", "Conv1x1", "&", "Pooling", "&", "FC", "-", "64", "1"]
    best = invoke_json(finished / "study", "show", "--top", 3)["best"]
    assert len(best) == 3
    assert best[0]["reward"] == max(row["reward"] for row in invoke_json(finished / "study", "show")["rows"])
    assert best[0]["reward"] >= best[1]["reward"] >= best[2]["reward"]


def test_pareto_fronts_are_not_dominated(finished):
    shown = invoke_json(finished / "study", "show")
    rows = {row["number"]: row["measurement"] for row in shown["rows"]}
    for cost, front in shown["fronts"].items():
        for number in front:
            point = rows[number]
            assert not [one for one in rows.values() if one["top1"] > point["top1"] and one[cost] <= point[cost]]


def test_search_page_is_self_contained(finished):
    invoke_ok("search", "show", finished / "study")
    page = (finished / "study/search.html").read_text()
    assert "Accuracy and cost" in page
    assert "Reward over trials" in page
    assert mentions(page, "S is the time of a training step", "P is the number of parameters")
    assert "I is" not in page
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{1,20})', page)
    assert addresses
    assert all(one.startswith("data:image/svg") for one in addresses)
    for name in ("fronts", "rewards"):
        with Image.open(finished / f"study/{name}.png") as image:
            assert image.width > 600


def test_best_architecture_is_trained_from_its_file(finished):
    done = invoke_ok("search", "export", finished / "study")
    best = invoke_json(finished / "study", "show", "--top", 1)["best"][0]
    model = read_architecture(finished / "study/found.yaml")
    assert SPACE.encode(model) == tuple(best["point"])
    train = ["effnetv2", "train", f"{finished}/study/dataset.csv", "--model", f"{finished}/study/found.yaml"]
    assert shlex.join([*train, "--set", "minival=0.1"]) in done.stdout
    run_ok(
        "train", "study/dataset.csv", "--model", "study/found.yaml", "--epochs", 1, "--image-size", 32,
        "--batch-size", 8, "--workers", 0, "--output", "run", "--set", "minival=0.1", cwd=finished,
    )  # fmt: skip
    num_minival = (finished / "study/dataset.csv").read_text().count(",minival")
    assert num_minival > 0
    assert (finished / "run/dataset.csv").read_text().count(",minival") == num_minival, (
        "the images that selected the architecture"
    )
    assert load(finished / "run/model.safetensors").architecture == model
    again = effnetv2(
        "train", "study/dataset.csv", "--model", "study/found.yaml", "--output", "run", "--resume", cwd=finished
    )
    assert "has finished" in again.stdout, again.stderr


def test_another_trial_is_exported(finished):
    invoke_ok("search", "export", finished / "study", "--trial", 2, "--output", finished / "second.yaml")
    row = invoke_json(finished / "study", "show")["rows"][2]
    assert SPACE.encode(read_architecture(finished / "second.yaml")) == tuple(row["point"])
    invoke_refused("search", "export", finished / "study", "--output", finished / "second.yaml", names=("second.yaml",))
    invoke_refused("search", "export", finished / "study", "--trial", 99, names=("0", "3", "trial"))


def test_exported_architecture_is_scaled_up(finished):
    """Deeper and wider by compound scaling, with the image size that belongs to it."""
    file = finished / "larger.yaml"
    done = invoke_ok("search", "export", finished / "study", "--trial", 2, "--grow", "1", "--output", file)
    small = SPACE.decode(tuple(invoke_json(finished / "study", "show")["rows"][2]["point"]))
    assert read_architecture(file) == scale_up(small, compound_scaling(1), eval_image_size=32).architecture
    assert "images of 40 px" in done.stdout
    train = f"--model {shlex.quote(str(file))} --image-size 32 --set eval_image_size=40 --set minival=0.1\n"
    assert train in done.stdout
    invoke_refused("search", "export", finished / "study", "--grow", "xl", names=("--grow", "xl"))


def test_validation_images_are_unused_by_the_search(finished):
    """The saved table has the split of each image; training evaluates on val."""
    lines = (finished / "study/dataset.csv").read_text().splitlines()
    splits = [line.rsplit(",", 1)[1] for line in lines[1:]]
    assert {name: splits.count(name) for name in sorted(set(splits))} == {"minival": 10, "train": 29, "val": 9}


def test_study_resumes_with_more_trials(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    done = run_ok("search", "resume", tmp_path / "study", "--trials", TRIALS + 1, "--workers", 0, cwd=tmp_path)
    assert f"{TRIALS + 1} finished" in done.stdout
    invoke_refused("search", "resume", tmp_path / "study", "--trials", 3, names=(TRIALS + 1, "study"))


def test_study_of_another_version_resumes_with_a_note(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    resume = ("search", "resume", tmp_path / "study", "--workers", 0)
    assert "was started with" not in invoke(*resume).stdout
    storage = Storage(sqlite_url(tmp_path / "study/study.db"), timeout_s=5)
    plan = load_config(storage, "study").to_json()
    assert plan["version"] == version("efficientnetv2")
    study_id = storage.rdb.get_study_id_from_name("study")
    storage.rdb.set_study_user_attr(study_id, "plan", plan | {"version": "0.0.1"})
    done = invoke_ok(*resume)
    assert mentions(" ".join(done.stdout.split()), "efficientnetv2", "0.0.1")
    assert "0.0.1" in (tmp_path / "study/log.txt").read_text()


def test_no_trial_starts_without_enough_time(finished, tmp_path):
    """A trial takes longer than the remaining time."""
    shutil.copytree(finished / "study", tmp_path / "study")
    done = run_ok(
        "search", "resume", tmp_path / "study", "--trials", TRIALS + 50, "--minutes", "0.001",
        "--threads", 1, "--workers", 0, cwd=tmp_path,
    )  # fmt: skip
    assert "Time is up" in done.stdout
    again = f"Continue with: effnetv2 search resume {tmp_path / 'study'} --workers 0 --threads 1\n"
    assert again in done.stdout, "with the same options"


@pytest.mark.slow
def test_dry_run_estimates_the_search_and_leaves_no_files(finished, tmp_path):
    done = run_ok(*words(tmp_path, finished / "pictures", "--dry-run", "--json", "--trials", 40), cwd=tmp_path)
    estimated = json.loads(done.stdout)
    assert estimated["networks"] == SPACE.count
    assert estimated["seconds"] == pytest.approx(40 * sum(estimated["trial_seconds"].values()) / 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space.json"]


@pytest.mark.slow
def test_dry_run_of_a_study_estimates_the_trials_that_are_left(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "here")
    done = run_ok(*words(tmp_path / "here", tmp_path / "here/pictures", "--dry-run", "--json"), cwd=tmp_path)
    assert json.loads(done.stdout)["trials"] == 0


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (("--set", "optimizer.lr=0.003"), ("optimizer.lr", "0.001", "0.003")),
        (("--space", "small"), ("space: ",)),
        (("--w", "-0.1"), ("reward: ",)),
        (("--sampler", "random"), ("sampler: policy there, random here",)),
        (("--seeds", "0,1"), ("seeds: (0,) there, (0, 1) here",)),
        (("--trials", TRIALS + 1), ("effnetv2 search resume",)),
    ],
)
def test_study_with_other_options_is_refused(change, facts, finished):
    invoke_refused(*words(finished, finished / "pictures", *change), names=facts)


def fake_work(study, context, *_) -> search_run.SearchResult:
    """Replaces the work of a worker: no trial."""
    return search_run.SearchResult(study, context.folder, finished=False, command="")


@pytest.fixture
def on_rasters(tmp_path, monkeypatch):
    """A study on rasters of four bands, started with ``--bands`` and ``--nodata`` and a fake time of the backbone."""
    rasters = pytest.importorskip("tests.rasters", reason="needs the extra geo")
    rng = np.random.default_rng(0)
    for name in ("bare", "lush"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            values = rng.integers(0, 9_000, (4, 32, 32)).astype(np.uint16)
            rasters.write_raster(tmp_path / "pictures" / name / f"{name}_{number:02d}.tif", values)
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, rounds=1), predicted=None, measured=True)
    timed = TrialResult(step, (), Trained((), 1000), None)
    monkeypatch.setattr(search_run, "run_trial", lambda *args, **more: timed)
    monkeypatch.setattr(search_run, "_work", fake_work)
    invoke_ok(*words(tmp_path, tmp_path / "pictures", "--bands", "4,3,2", "--nodata", "none"))
    return tmp_path


@pytest.fixture
def untrained(monkeypatch):
    """Studies without timing and trials; a list of the arguments of their workers."""
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, rounds=1), predicted=None, measured=True)
    timed, calls = TrialResult(step, (), Trained((), 1000), None), []
    monkeypatch.setattr(search_run, "run_trial", lambda *args, **more: timed)
    monkeypatch.setattr(search_run, "_work", lambda *args: calls.append(args) or fake_work(*args))
    return calls


def test_new_study_ignores_step_times_of_an_earlier_study(class_folders, untrained, tmp_path):
    times = tmp_path / "study/step_times.json"
    times.parent.mkdir()
    times.write_text("{}")
    invoke_ok(*words(tmp_path, class_folders))
    assert not times.exists()
    times.write_text("{}")
    invoke_ok(*words(tmp_path, class_folders))
    assert times.exists(), "the step times of this study"


def test_study_resumes_in_a_renamed_folder(class_folders, untrained, tmp_path):
    invoke_ok(*words(tmp_path, class_folders))
    (tmp_path / "study").rename(tmp_path / "renamed")
    invoke_ok(*words(tmp_path, class_folders, study="renamed"))
    invoke_ok("search", "resume", tmp_path / "renamed", "--workers", 0, "--device", "cpu")
    assert [call[0].name for call in untrained] == ["study"] * 3


def test_minutes_of_a_worker_start_with_its_process(class_folders, untrained, tmp_path, monkeypatch):
    """They include the time to read the images and to measure the backbone."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(search_run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    read = search_run.load_search_data

    def slowly(*call, **more):
        clock.now += 120
        return read(*call, **more)

    monkeypatch.setattr(search_run, "load_search_data", slowly)
    invoke_ok(*words(tmp_path, class_folders, "--minutes", 5))
    resume = ("search", "resume", tmp_path / "study", "--minutes", 5, "--workers", 0, "--device", "cpu")
    assert invoke(*resume).returncode == 0
    assert [call[2] for call in untrained] == [1000 + 300, 1120 + 300]


@pytest.mark.parametrize("emptied", [True, False])
def test_lost_database_is_refused_with_a_fix(emptied, class_folders, untrained, tmp_path):
    """Whether the database is missing or empty; the named files are all that must be removed."""
    invoke_ok(*words(tmp_path, class_folders))
    study = tmp_path / "study"
    (study / "study.db").unlink()
    if emptied:
        (study / "study.db").touch()
    resume = ("search", "resume", study, "--workers", 0, "--device", "cpu")
    for args in (words(tmp_path, class_folders), words(tmp_path, class_folders, "--dry-run"), resume):
        done = invoke_refused(*args)
        output = " ".join(done.stderr.split())
        assert mentions(output, "database", "study")
        assert f"or remove {study / 'study.yaml'} and {study / 'dataset.csv'} to start again" in output
        assert "Start or join one" not in output
        assert (study / "study.db").exists() == emptied
    for name in ("study.yaml", "dataset.csv"):
        (study / name).unlink()
    invoke_ok(*words(tmp_path, class_folders))


def test_resume_without_a_study_folder_explains_how_to_join(tmp_path):
    done = invoke_refused("search", "resume", tmp_path / "study", "--storage", "postgresql://me:secret@host/db")
    output = " ".join(done.stderr.split())
    assert mentions(output, "--data", "DATA", "--storage", "postgresql://me")
    assert "--storage URL" not in output


def test_number_of_trials_is_never_lowered(class_folders, untrained, tmp_path):
    """Neither with the options of its start, nor with those of the suggested command."""
    first = words(tmp_path, class_folders, "--trials", 4)
    invoke_ok(*first)
    invoke_ok("search", "resume", tmp_path / "study", "--trials", 6, "--workers", 0, "--device", "cpu")
    again = invoke_refused(*first)
    assert mentions(" ".join(again.stderr.split()), "6", "--trials")
    assert "resume" not in again.stderr
    invoke_ok(*words(tmp_path, class_folders))


def test_machine_that_joins_is_not_told_to_resume(class_folders, untrained, tmp_path):
    """`search resume` needs the study's folder, which another machine does not have."""
    invoke_ok(*words(tmp_path, class_folders, "--trials", 4))
    (tmp_path / "other").mkdir()
    database = ("--storage", sqlite_url(tmp_path / "study/study.db"))
    for change in (("--trials", 6), ("--seeds", "0,1")):
        done = invoke_refused(*words(tmp_path / "other", class_folders, *database, *change))
        assert "resume" not in done.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_study_with_other_bands_or_missing_data_is_refused(more, on_rasters):
    before = (on_rasters / "study/study.yaml").read_bytes()
    done = invoke_refused(*words(on_rasters, on_rasters / "pictures", "--bands", "3,2,1", *more))
    assert mentions(done.stderr, "--bands", "4,3,2", "3,2,1")
    done = invoke_refused(*words(on_rasters, on_rasters / "pictures", "--bands", "4,3,2", "--nodata", "7", *more))
    assert mentions(done.stderr, "--nodata", "none there, 7 here")
    assert (on_rasters / "study/study.yaml").read_bytes() == before
    invoke_ok(*words(on_rasters, on_rasters / "pictures", "--bands", "4,3,2"))


def test_suggested_training_has_the_bands_of_the_search(on_rasters):
    storage = Storage(sqlite_url(on_rasters / "study/study.db"), timeout_s=5)
    measured = Measurement(1000, 1000, top1=0.5, step_seconds=0.1).to_json()
    output = {"measurement": measured, "point": list(SPACE.encode(SPACE.backbone))}
    open_study(storage, "study").optuna_study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=output))
    done = invoke_ok("search", "export", on_rasters / "study")
    train = shlex.split(done.stdout.partition("that the search did not see: effnetv2 ")[2])
    assert train[train.index("--nodata") + 1] == "none"
    source = DataConfig(train[1], bands=train[train.index("--bands") + 1])
    prepared = prepare_data(source, val_fraction=0.2, minival=0.1, seed=0, strict=False)
    assert prepared.dataset.bands.numbers == (4, 3, 2)


def test_study_with_other_images_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "here")
    paint(tmp_path / "here/pictures/red/new.jpg", COLORS["red"], 99)
    invoke_refused(*words(tmp_path / "here", tmp_path / "here/pictures"), names=("labels", "splits"))


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        (("--w", "0.07"), ("0.07", "0")),
        (("--memory-exponent", "0.1"), ("--memory-exponent", "peak_memory_bytes", "0.1")),
        (("--image-size", "4"), ("images of 4 px are smaller", "stride")),
        (
            (
                "--set",
                "progressive.image_size={start: 2, end: 64}",
                "--set",
                "progressive.stages=2",
                "--set",
                "progressive.size_multiple=32",
            ),
            ("images of 2 px are smaller", "stride"),
        ),
        (
            ("--set", "progressive.image_size=8", "--set", "progressive.size_multiple=8", "--space", "small"),
            ("stride",),
        ),
        (("--preset", "smal"), ("did you mean", "small")),
        (("--space", "nowhere.json"), ("nowhere.json",)),
        (("--space", "efficientnetv2_b9"), ("there is no such space",)),
        (("--seeds", "1,x"), ("--seeds", "1,x", "whole numbers")),
        (("--seeds", "1,1"), ("--seeds", "twice")),
        (("--step-time", "guessed"), ("guessed", "measured", "cached")),
        (("--storage", "mysql://host/one"), ("--storage", "mysql", "sqlite:///FILE")),
        (("--set", "weights=efficientnetv2_b0.in1k"), ("weights=none", "from scratch")),
        (("--set", "model=efficientnetv2_s"), ("--space",)),
        (("--set", "patience=3"), ("a trial trains to its end",)),
        (("--recipe", "quick", "--set", "stage_time=equal"), ("stage_time=equal", "stage")),
        (("--set", "monitor=macro_f1"), ("monitor=macro_f1", "trial", "weight")),
        (("--set", "cache_resolution=0.25"), ("cache_resolution=0.25", "trial")),
        (("--set", "eval_split=test"), ("eval_split=test",)),
        (("--set", "multilabel=sigmoid"), ("multilabel", "one label each")),
        (("--label-separator", ";"), ("--label-separator", "';'")),
        (("--set", "minival=null"), ("minival", "0.2")),
        (("--set", "minival=auto"), ("minival=auto", "0.2")),
        (("--label-separator", ";", "--set", "minival=null"), ("effnetv2 train",)),
        (("--recipe", "nothing"), ("nothing",)),
        (("--threads", "0"), ("--threads", "at least 1")),
        (("--threads", "9999"), ("--threads", "9999", "PyTorch")),
    ],
)
def test_invalid_search_options_are_refused(more, facts, finished, tmp_path):
    invoke_refused(*words(tmp_path, finished / "pictures", *more), names=facts)
    assert not (tmp_path / "study").exists()


def test_too_large_minival_is_refused_without_advice_that_a_search_refuses(finished, tmp_path):
    done = invoke_refused(*words(tmp_path, finished / "pictures", "--set", "minival=9999"), names=["9999"])
    assert "null" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("patience=3", "sets patience=3, but a trial trains to its end"),
        (
            "eval_image_size_candidates=[32,64]",
            "sets eval_image_size_candidates=(32, 64), but a trial is evaluated at one size",
        ),
    ],
)
def test_unsupported_fields_of_a_recipe_file_are_refused(setting, expected, tmp_path):
    """As with ``--set``; the fix in the message is accepted."""
    fields = with_overrides(get_recipe("proxy_small"), ["minival=0.2", setting]).to_json()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))

    def search_config(*settings):
        options = SearchOptions(recipe=str(tmp_path / "mine.yaml"), settings=list(settings))
        return SearchConfig(tmp_path, DataConfig("pictures"), options)

    with pytest.raises(InputError, match=re.escape(expected)):
        search_config()
    field = setting.partition("=")[0]
    assert getattr(search_config(f"{field}=null").recipe, field) is None


def test_pooling_of_a_run_from_weights_is_that_of_the_space(tmp_path):
    """Its recipe has the pooling of these weights, which is the usual one."""
    fields = with_overrides(get_recipe("proxy_small"), ["minival=0.2", "global_pool=avg"]).to_json()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    options = SearchOptions(recipe=str(tmp_path / "mine.yaml"))
    assert SearchConfig(tmp_path, DataConfig("pictures"), options).recipe.global_pool is None
    with pytest.raises(InputError, match="global_pool"):
        SearchConfig(tmp_path, DataConfig("pictures"), replace(options, settings=["global_pool=avg+center"]))


def test_graphs_are_refused_in_a_search():
    def search_config(value):
        return SearchConfig(Path("study"), DataConfig("pictures"), SearchOptions(settings=[f"cuda_graphs={value}"]))

    with pytest.raises(InputError, match=r"`cuda_graphs=true`: .*Leave it out"):
        search_config("true")
    assert search_config("false").recipe.weights == "none"


def test_invalid_space_is_refused(finished, tmp_path):
    plain = SPACE.to_json()
    plain["stages"][1]["channels"] = [0]
    (tmp_path / "bad.json").write_text(json.dumps(plain))
    done = invoke_refused(*words(tmp_path, finished / "pictures", "--space", tmp_path / "bad.json"))
    assert mentions(done.stderr, "0", "1", "channel")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_study_folder_in_the_data_is_refused(more, tmp_path):
    for name, color in COLORS.items():
        paint(tmp_path / "all" / name / "one.jpg", color, 0)
    done = invoke_refused(*words(tmp_path / "all", tmp_path / "all", *more))
    assert "STUDY" in done.stderr
    assert mentions(done.stderr, "outside")
    assert not (tmp_path / "all/study").exists()


def test_duplicates_across_train_and_val_are_refused(finished, tmp_path):
    shutil.copytree(finished / "pictures", tmp_path / "all/train")
    for name in COLORS:
        (tmp_path / "all/val" / name).mkdir(parents=True)
        shutil.copy(tmp_path / f"all/train/{name}/{name}_00.jpg", tmp_path / f"all/val/{name}/other.jpg")
    done = invoke_refused(*words(tmp_path, tmp_path / "all"))
    assert "other.jpg" in done.stderr


def test_study_of_another_program_is_not_changed(finished, tmp_path):
    database = tmp_path / "other.db"
    optuna.create_study(study_name="study", storage=f"sqlite:///{database}")
    before = database.read_bytes()
    done = invoke_refused(*words(tmp_path, finished / "pictures", "--storage", f"sqlite:///{database}"))
    assert mentions(done.stderr, database, "study", "effnetv2 search")
    assert database.read_bytes() == before
    assert not (tmp_path / "study").exists()


def test_relative_storage_path_works_from_another_folder(finished, tmp_path, monkeypatch):
    """A worker in another working directory joins with a relative path."""
    shutil.copy(finished / "study/study.db", tmp_path / "shared one.db")
    monkeypatch.chdir(tmp_path)
    args = words(tmp_path, finished / "pictures", "--trials", TRIALS, "--storage", "sqlite:///shared one.db")
    invoke_ok(*args)
    monkeypatch.chdir(finished)
    assert invoke_json(tmp_path / "study", "show") == invoke_json(finished / "study", "show")


def test_study_shown_by_its_database_can_be_joined(finished, tmp_path):
    """As from another machine: without the study folder, with the database only."""
    storage = ("--storage", f"sqlite:///{finished}/study/study.db".replace("%", "%25").replace("?", "%3F"))
    best = invoke("search", "show", tmp_path / "study", *storage)
    export = shlex.split(best.stdout.partition("for training: effnetv2 ")[2].partition("\nPage: ")[0])
    assert export[:3] == ["search", "export", str(tmp_path / "study")]
    assert invoke(*export).returncode == 0
    exported = SPACE.encode(read_architecture(tmp_path / "study/found.yaml"))
    assert exported == tuple(invoke_json(finished / "study", "show", "--top", 1)["best"][0]["point"])
    assert not invoke("search", "show", tmp_path / "study").stdout, "this folder has no study"
    invoke_ok(*words(tmp_path, finished / "pictures", "--trials", TRIALS, *storage))


def test_show_replaces_only_its_own_plots(finished, tmp_path):
    """A user file with the name of a plot is kept; earlier plots are replaced."""
    storage = ("--storage", f"sqlite:///{finished}/study/study.db".replace("%", "%25").replace("?", "%3F"))
    (tmp_path / "study").mkdir()
    (tmp_path / "study/fronts.png").write_bytes(b"mine")
    invoke_refused("search", "show", tmp_path / "study", *storage, names=("fronts.png", "study"))
    assert [(one.name, one.read_bytes()) for one in (tmp_path / "study").iterdir()] == [("fronts.png", b"mine")]
    (tmp_path / "study/fronts.png").unlink()
    for _ in range(2):
        invoke_ok("search", "show", tmp_path / "study", *storage)
    assert (tmp_path / "study/fronts.png").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_folder_with_other_files_is_refused(more, finished, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/thesis.txt").write_text("mine")
    done = invoke_refused(*words(tmp_path, finished / "pictures", *more))
    assert "thesis.txt" in done.stderr


@pytest.mark.parametrize("command", ["resume", "show", "export"])
def test_missing_study_is_refused(command, tmp_path):
    invoke_refused("search", command, tmp_path / "nothing", names=("no study",))
    assert not (tmp_path / "nothing").exists()


def test_show_refuses_a_lost_database(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    (tmp_path / "study/study.db").unlink()
    invoke_refused("search", "show", tmp_path / "study", names=("database", "study"))


def test_run_keeps_all_files_when_the_database_is_lost(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    (tmp_path / "study/study.db").unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "study").iterdir() if file.is_file()}
    invoke_refused(*words(tmp_path, finished / "pictures"), names=("database",))
    assert not (tmp_path / "study/study.db").exists()
    assert {file.name: file.read_bytes() for file in (tmp_path / "study").iterdir() if file.is_file()} == before


def test_file_that_is_not_a_database_is_refused(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    (tmp_path / "study/study.db").write_bytes(b"no database " * 500)
    done = invoke_refused("search", "show", tmp_path / "study", "--wait", "0.01")
    assert "not a database" in done.stderr


def test_locked_database_is_refused_after_waiting(finished, tmp_path):
    shutil.copytree(finished / "study", tmp_path / "study")
    holder = sqlite3.connect(tmp_path / "study/study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        done = invoke("search", "show", tmp_path / "study", "--wait", "0.02")
    finally:
        holder.close()
    assert done.returncode == 2
    assert "database is locked" in done.stderr
    assert mentions(done.stderr, "locked")


def test_study_file_has_the_plan(finished):
    saved = yaml.safe_load((finished / "study/study.yaml").read_text())
    assert saved["plan"]["sampler"] == "policy"
    assert saved["data"]["data"] == str(finished / "pictures")


@pytest.mark.slow
def test_search_stops_after_failed_trials(finished, tmp_path):
    more = ("--trials", 9, "--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=null")
    run_refused(*words(tmp_path, finished / "pictures", *more), cwd=tmp_path, names=("5 trials", "diverged"))
    shown = invoke_json(tmp_path / "study", "show")
    assert [row["end"] for row in shown["rows"]] == ["failed"] * 5
    assert {row["reward"] for row in shown["rows"]} == {0.0}
    assert shown["best"] == []


@pytest.mark.parametrize("name", ["dataset.csv", "log.txt"])
def test_user_files_are_not_taken_for_study_files(name, finished, tmp_path):
    """A list of images in the study folder would be replaced, a log appended to."""
    rows = [f"{path},{path.parent.name}" for path in (finished / "pictures").rglob("*.jpg")]
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / name).write_text("\n".join(["path,species", *rows]))
    before = (tmp_path / "study" / name).read_bytes()
    invoke_refused(*words(tmp_path, finished / "pictures"), names=(name, "study"))
    data = tmp_path / "study" / name
    invoke_refused(*words(tmp_path, data, "--label-column", "species"), names=(data, name, "DATA"))
    assert [(one.name, one.read_bytes()) for one in (tmp_path / "study").iterdir()] == [(name, before)]


def test_folder_of_a_failed_start_is_reused(tmp_path):
    """The log has the error of the backbone; study.yaml is written before the list of images."""
    folder = StudyDir(tmp_path)
    log = RunLog()
    log.write_to(tmp_path)
    with attached(log):
        logging.getLogger("efficientnetv2").debug("The backbone failed: out of memory")
    (tmp_path / "study.db").write_bytes(b"")
    folder.check()
    (tmp_path / "study.yaml").write_text("")
    (tmp_path / "dataset.csv").write_text("")
    folder.check()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_search_without_optuna_names_the_package(more, finished, tmp_path, monkeypatch):
    for name in [one for one in sys.modules if one.startswith(("optuna.", "efficientnetv2.nas.samplers"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    invoke_refused(*words(tmp_path, finished / "pictures", *more), names=("effnetv2 search", "optuna"))
    assert not (tmp_path / "study").exists()


def test_plan_has_the_batch_size_of_the_timed_backbone(finished):
    plan = yaml.safe_load((finished / "study/study.yaml").read_text(encoding="utf-8"))["plan"]
    assert plan["recipe"]["batch_size"] % plan["reference_group"] == 0
    assert plan["recipe"]["ghost_batch_size"] is None, "chosen for each architecture"


def test_search_selects_on_minival_and_never_on_val(class_folders, untrained, tmp_path):
    invoke_ok(*words(tmp_path, class_folders))
    ((study, context, *_),) = untrained
    task = context.task(study.config.recipe, study.config)
    assert (set(task.train.split), set(task.selection.split)) == ({"train"}, {"minival"})
