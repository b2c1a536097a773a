"""``effnetv2 search`` as its users meet it."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import sqlite3
import sys
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from PIL import Image
from tests.command_line import Done, effnetv2
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
from efficientnetv2.training.run_dir import RunLog
from efficientnetv2.utils.benchmark import TimingStats
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import attached
from efficientnetv2.workflows import search_run
from efficientnetv2.workflows.search_config import SearchConfig, SearchOptions
from efficientnetv2.workflows.search_export import compound_scaling, scale_up
from efficientnetv2.workflows.study_dir import StudyDir

TRIALS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder with images and a study that has come to its end; of a name that URLs and shells read otherwise."""
    folder = tmp_path_factory.mktemp("50% of #1, or what?")
    for name, color in COLORS.items():
        for number in range(16):
            paint(folder / "pictures" / name / f"{name}_{number:02d}.jpg", color, number)
    done = effnetv2(*words(folder, folder / "pictures", "--trials", TRIALS), cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def here(*arguments: object) -> Done:
    """A command that trains nothing, in this process: a process of its own takes seconds to begin."""
    ended = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return Done(ended.exit_code, ended.stdout, ended.stderr)


def answer(study: Path, verb: str, *arguments: object):
    done = here("search", verb, study, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_study_ends_with_the_trials_asked_for(found):
    said = (found / "said.txt").read_text()
    assert mentions(said, TRIALS, "0 failed")
    assert len(re.findall(r"^Trial \d+: top-1", said, re.MULTILINE)) == TRIALS
    rows = answer(found / "study", "show")["rows"]
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert len({tuple(row["point"]) for row in rows}) == TRIALS, "no network was tried twice"


def test_a_reward_is_the_formula_over_the_backbone(found):
    shown = answer(found / "study", "show")
    base = shown["reference"]
    for row in shown["rows"]:
        one = row["measurement"]
        time, size = (one[name] / base[name] for name in ("step_seconds", "parameters"))
        assert row["reward"] == pytest.approx(one["top1"] * time**-0.07 * size**-0.05)


def test_a_study_may_count_what_the_paper_does_not(found, tmp_path):
    """To its end; whoever joins it with the paper's reward is refused."""
    more = ("--inference-exponent", "-0.2", "--memory-exponent", "-0.1")
    done = effnetv2(*words(tmp_path, found / "pictures", "--trials", 2, *more), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = answer(tmp_path / "study", "show")
    powers = {"step_seconds": -0.07, "parameters": -0.05, "inference_seconds": -0.2, "peak_memory_bytes": -0.1}
    base = shown["reference"]
    assert len(shown["rows"]) == 2
    for row in shown["rows"]:
        one = row["measurement"]
        costs = prod((one[cost] / base[cost]) ** power for cost, power in powers.items())
        assert row["reward"] == pytest.approx(one["top1"] * costs)
    joined = here(*words(tmp_path, found / "pictures", "--trials", 2))
    assert joined.returncode == 2
    assert "another study: reward: " in joined.stderr


def test_best_reads_like_table_4(found):
    done = here("search", "show", found / "study")
    lines = done.stdout.splitlines()[1:]
    assert lines[1].split() == ["stage", "operator", "stride", "#channels", "#layers"]
    assert lines[2].split() == ["0", "Conv3x3", "2", "8", "1"]
    assert lines[3].split() == ["1", "Fused-MBConv1,", "k3x3", "1", "8", "1"]
    assert lines[6].split() == ["4", "Conv1x1", "&", "Pooling", "&", "FC", "-", "64", "1"]
    best = answer(found / "study", "show", "--top", 3)["best"]
    assert len(best) == 3
    assert best[0]["reward"] == max(row["reward"] for row in answer(found / "study", "show")["rows"])
    assert best[0]["reward"] >= best[1]["reward"] >= best[2]["reward"]


def test_nothing_beats_those_of_a_front(found):
    shown = answer(found / "study", "show")
    rows = {row["number"]: row["measurement"] for row in shown["rows"]}
    for cost, edge in shown["fronts"].items():
        for number in edge:
            own = rows[number]
            assert not [one for one in rows.values() if one["top1"] > own["top1"] and one[cost] <= own[cost]]


def test_show_draws_one_page_that_fetches_nothing(found):
    done = here("search", "show", found / "study")
    assert done.returncode == 0, done.stderr
    page = (found / "study/search.html").read_text()
    assert "Accuracy and cost" in page
    assert "Reward over trials" in page
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{1,20})', page)
    assert addresses
    assert all(one.startswith("data:image/svg") for one in addresses)
    for name in ("fronts", "rewards"):
        with Image.open(found / f"study/{name}.png") as image:
            assert image.width > 600


def test_the_network_found_is_trained_by_its_file(found):
    done = here("search", "export", found / "study")
    assert done.returncode == 0, done.stderr
    best = answer(found / "study", "show", "--top", 1)["best"][0]
    network = read_architecture(found / "study/found.yaml")
    assert SPACE.encode(network) == tuple(best["point"])
    train = ["effnetv2", "train", f"{found}/study/pictures.csv", "--model", f"{found}/study/found.yaml"]
    assert shlex.join([*train, "--set", "minival=0.1"]) in done.stdout
    trained = effnetv2(
        "train", "study/pictures.csv", "--model", "study/found.yaml", "--epochs", 1, "--image-size", 32,
        "--batch-size", 8, "--workers", 0, "--output", "run", "--set", "minival=0.1", cwd=found,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    given = (found / "study/pictures.csv").read_text().count(",minival")
    assert given > 0
    assert (found / "run/dataset.csv").read_text().count(",minival") == given, "those that chose among networks"
    assert load(found / "run/model.safetensors").architecture == network
    again = effnetv2(
        "train", "study/pictures.csv", "--model", "study/found.yaml", "--output", "run", "--resume", cwd=found
    )
    assert "has finished" in again.stdout, again.stderr


def test_another_trial_can_be_exported(found):
    done = here("search", "export", found / "study", "--trial", 2, "--output", found / "second.yaml")
    assert done.returncode == 0, done.stderr
    row = answer(found / "study", "show")["rows"][2]
    assert SPACE.encode(read_architecture(found / "second.yaml")) == tuple(row["point"])
    done = here("search", "export", found / "study", "--output", found / "second.yaml")
    assert done.returncode == 2
    assert mentions(done.stderr, "second.yaml")
    done = here("search", "export", found / "study", "--trial", 99)
    assert done.returncode == 2
    assert mentions(done.stderr, "0", "3", "trial")


def test_a_larger_network_can_be_made_of_the_one_found(found):
    """Deeper and wider by compound scaling, and the size of image that goes with it."""
    file = found / "larger.yaml"
    done = here("search", "export", found / "study", "--trial", 2, "--grow", "1", "--output", file)
    assert done.returncode == 0, done.stderr
    small = SPACE.decode(tuple(answer(found / "study", "show")["rows"][2]["point"]))
    assert read_architecture(file) == scale_up(small, compound_scaling(1), eval_image_size=32).architecture
    assert "images of 40 px" in done.stdout
    assert (
        f"--model {shlex.quote(str(file))} --image-size 32 --set eval_image_size=40 --set minival=0.1\n" in done.stdout
    )
    done = here("search", "export", found / "study", "--grow", "xl")
    assert done.returncode == 2
    assert mentions(done.stderr, "--grow", "xl")


def test_what_judges_is_in_none_of_the_searchs_pictures(found):
    """The images file says it of every image; in training val is the split that judges."""
    lines = (found / "study/pictures.csv").read_text().splitlines()
    splits = [line.rsplit(",", 1)[1] for line in lines[1:]]
    assert {name: splits.count(name) for name in sorted(set(splits))} == {"minival": 10, "train": 29, "val": 9}


def test_a_study_is_resumed_with_more_trials(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    done = effnetv2("search", "resume", tmp_path / "study", "--trials", TRIALS + 1, "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{TRIALS + 1} finished" in done.stdout
    done = here("search", "resume", tmp_path / "study", "--trials", 3)
    assert done.returncode == 2
    assert mentions(done.stderr, TRIALS + 1, "study")


def test_a_study_begun_by_another_version_goes_on_and_says_so(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    resume = ("search", "resume", tmp_path / "study", "--workers", 0)
    assert "was begun with" not in here(*resume).stdout
    storage = Storage(sqlite_url(tmp_path / "study/study.db"), timeout_s=5)
    plan = load_config(storage, "study").to_json()
    assert plan["version"] == version("efficientnetv2")
    study_id = storage.rdb.get_study_id_from_name("study")
    storage.rdb.set_study_user_attr(study_id, "plan", plan | {"version": "0.0.1"})
    done = here(*resume)
    assert done.returncode == 0, done.stderr
    assert mentions(" ".join(done.stdout.split()), "efficientnetv2", "0.0.1")
    assert "0.0.1" in (tmp_path / "study/log.txt").read_text()


def test_time_is_up(found, tmp_path):
    """A trial takes longer than the time given, so none is begun."""
    shutil.copytree(found / "study", tmp_path / "study")
    done = effnetv2(
        "search", "resume", tmp_path / "study", "--trials", TRIALS + 50, "--minutes", "0.001",
        "--threads", 1, "--workers", 0, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Time is up" in done.stdout
    again = f"Continue with: effnetv2 search resume {tmp_path / 'study'} --workers 0 --threads 1\n"
    assert again in done.stdout, "as it was started"


@pytest.mark.slow
def test_dry_run_foretells_and_leaves_nothing(found, tmp_path):
    done = effnetv2(*words(tmp_path, found / "pictures", "--dry-run", "--json", "--trials", 40), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    foretold = json.loads(done.stdout)
    assert foretold["networks"] == SPACE.count
    assert foretold["seconds"] == pytest.approx(40 * sum(foretold["trial_seconds"].values()) / 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--set", "optimizer.lr=0.003"), ("optimizer.lr", "0.001", "0.003")),
        (("--space", "small"), ("space: ",)),
        (("--w", "-0.1"), ("reward: ",)),
        (("--sampler", "random"), ("sampler: policy there, random here",)),
        (("--seeds", "0,1"), ("seeds: (0,) there, (0, 1) here",)),
        (("--trials", TRIALS + 1), ("effnetv2 search resume",)),
    ],
)
def test_a_study_is_not_gone_on_with_as_another(change, said, found):
    done = here(*words(found, found / "pictures", *change))
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, *said)
    assert "Traceback" not in done.stderr


def no_work(study, context, *_) -> search_run.SearchResult:
    """What a worker leaves that has tried nothing."""
    return search_run.SearchResult(study, context.folder, finished=False, command="")


@pytest.fixture
def on_rasters(tmp_path, monkeypatch):
    """A study on rasters of four bands, begun with ``--bands 4,3,2`` and a backbone that nobody has timed."""
    rasters = pytest.importorskip("tests.rasters", reason="needs the extra geo")
    rng = np.random.default_rng(0)
    for name in ("bare", "lush"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            values = rng.integers(0, 9_000, (4, 32, 32)).astype(np.uint16)
            rasters.write_raster(tmp_path / "pictures" / name / f"{name}_{number:02d}.tif", values)
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, rounds=1), predicted=None, measured=True)
    timed = TrialResult(step, (), Trained((), 1000), None)
    monkeypatch.setattr(search_run, "run_trial", lambda *given, **more: timed)
    monkeypatch.setattr(search_run, "_work", no_work)
    done = here(*words(tmp_path, tmp_path / "pictures", "--bands", "4,3,2"))
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.fixture
def untrained(monkeypatch):
    """Studies whose backbone nobody times, and for which nobody works; what their workers were given."""
    step = StepTimed(TimingStats(0.1, 0.1, 0.1, rounds=1), predicted=None, measured=True)
    timed, given = TrialResult(step, (), Trained((), 1000), None), []
    monkeypatch.setattr(search_run, "run_trial", lambda *words, **more: timed)
    monkeypatch.setattr(search_run, "_work", lambda *words: given.append(words) or no_work(*words))
    return given


def test_a_study_begun_anew_takes_no_step_times_of_the_one_before(class_folders, untrained, tmp_path):
    times = tmp_path / "study/step_times.json"
    times.parent.mkdir()
    times.write_text("{}")
    done = here(*words(tmp_path, class_folders))
    assert done.returncode == 0, done.stderr
    assert not times.exists()
    times.write_text("{}")
    joined = here(*words(tmp_path, class_folders))
    assert joined.returncode == 0, joined.stderr
    assert times.exists(), "of the same study"


def test_a_study_is_gone_on_with_in_a_folder_renamed(class_folders, untrained, tmp_path):
    begun = here(*words(tmp_path, class_folders))
    assert begun.returncode == 0, begun.stderr
    (tmp_path / "study").rename(tmp_path / "renamed")
    joined = here(*words(tmp_path, class_folders, study="renamed"))
    assert joined.returncode == 0, joined.stderr
    resumed = here("search", "resume", tmp_path / "renamed", "--workers", 0, "--device", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    assert [given[0].name for given in untrained] == ["study"] * 3


def test_a_workers_minutes_begin_when_it_does(class_folders, untrained, tmp_path, monkeypatch):
    """What the images and the backbone take is of them, not before them."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(search_run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    read = search_run.load_search_data

    def slowly(*given, **more):
        clock.now += 120
        return read(*given, **more)

    monkeypatch.setattr(search_run, "load_search_data", slowly)
    begun = here(*words(tmp_path, class_folders, "--minutes", 5))
    assert begun.returncode == 0, begun.stderr
    resume = ("search", "resume", tmp_path / "study", "--minutes", 5, "--workers", 0, "--device", "cpu")
    assert here(*resume).returncode == 0
    assert [given[2] for given in untrained] == [1000 + 300, 1120 + 300]


@pytest.mark.parametrize("emptied", [True, False])
def test_what_a_lost_study_says_lets_another_begin(emptied, class_folders, untrained, tmp_path):
    """Whether its database is gone or empty, and whoever asks; nothing else has to be removed."""
    begun = here(*words(tmp_path, class_folders))
    assert begun.returncode == 0, begun.stderr
    study = tmp_path / "study"
    (study / "study.db").unlink()
    if emptied:
        (study / "study.db").touch()
    resume = ("search", "resume", study, "--workers", 0, "--device", "cpu")
    for ask in (words(tmp_path, class_folders), words(tmp_path, class_folders, "--dry-run"), resume):
        done = here(*ask)
        assert done.returncode == 2, done.stdout
        told = " ".join(done.stderr.split())
        assert mentions(told, "database", "study")
        assert f"or remove {study / 'study.yaml'} and {study / 'pictures.csv'} to start again" in told
        assert "Begin one" not in told
    for name in ("study.yaml", "pictures.csv"):
        (study / name).unlink()
    anew = here(*words(tmp_path, class_folders))
    assert anew.returncode == 0, anew.stderr


def test_who_has_no_folder_of_a_study_is_told_how_to_join_it(tmp_path):
    done = here("search", "resume", tmp_path / "study", "--storage", "postgresql://me:secret@host/db")
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert mentions(told, "--data", "DATA", "--storage", "postgresql://me")
    assert "say where its trials lie" not in told, "that was said"


def test_a_study_that_has_been_given_more_trials_is_not_made_smaller(class_folders, untrained, tmp_path):
    """By the words that it was begun with, or by those that they are answered with."""
    first = words(tmp_path, class_folders, "--trials", 4)
    begun = here(*first)
    assert begun.returncode == 0, begun.stderr
    more = here("search", "resume", tmp_path / "study", "--trials", 6, "--workers", 0, "--device", "cpu")
    assert more.returncode == 0, more.stderr
    again = here(*first)
    assert again.returncode == 2
    assert mentions(" ".join(again.stderr.split()), "6", "--trials")
    assert "resume" not in again.stderr
    joined = here(*words(tmp_path, class_folders))
    assert joined.returncode == 0, joined.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_study_is_not_gone_on_with_on_other_bands(more, on_rasters):
    before = (on_rasters / "study/study.yaml").read_bytes()
    done = here(*words(on_rasters, on_rasters / "pictures", "--bands", "3,2,1", *more))
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "--bands", "4,3,2", "3,2,1")
    assert (on_rasters / "study/study.yaml").read_bytes() == before
    joined = here(*words(on_rasters, on_rasters / "pictures", "--bands", "4,3,2"))
    assert joined.returncode == 0, joined.stderr


@pytest.mark.parametrize("kept", [True, False])
def test_the_network_found_is_trained_on_the_bands_of_its_search(kept, on_rasters):
    """Also of a study begun before plans kept them, as it was said to this machine."""
    storage = Storage(sqlite_url(on_rasters / "study/study.db"), timeout_s=5)
    if not kept:
        plain = load_config(storage, "study").to_json() | {"bands": None}
        study_id = storage.rdb.get_study_id_from_name("study")
        storage.rdb.set_study_user_attr(study_id, "plan", plain)
    measured = Measurement(1000, 1000, top1=0.5, step_seconds=0.1).to_json()
    told = {"measurement": measured, "point": list(SPACE.encode(SPACE.backbone))}
    open_study(storage, "study").optuna_study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs=told))
    done = here("search", "export", on_rasters / "study")
    assert done.returncode == 0, done.stderr
    train = shlex.split(done.stdout.partition("that the search did not see: effnetv2 ")[2])
    source = DataConfig(train[1], bands=train[train.index("--bands") + 1])
    prepared = prepare_data(source, val_fraction=0.2, minival=0.1, seed=0, strict=False)
    assert prepared.dataset.bands.numbers == (4, 3, 2)


def test_a_study_is_not_gone_on_with_on_other_pictures(found, tmp_path):
    shutil.copytree(found, tmp_path / "here")
    paint(tmp_path / "here/pictures/red/new.jpg", COLORS["red"], 99)
    done = here(*words(tmp_path / "here", tmp_path / "here/pictures"))
    assert done.returncode == 2
    assert mentions(done.stderr, "labels", "splits")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--w", "0.07"), ("0.07", "0")),
        (("--v", "0.05"), ("0.05", "0")),
        (("--inference-exponent", "0.1"), ("--inference-exponent", "inference_seconds", "0.1")),
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
        (("--sampler", "polcy"), ("did you mean", "policy")),
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
        (("--recipe", "finetune"), ("monitor=macro_f1", "trial", "weight")),
        (("--set", "cache_resolution=0.25"), ("cache_resolution=0.25", "trial")),
        (("--set", "eval_split=test"), ("eval_split=test",)),
        (("--set", "multilabel=sigmoid"), ("multilabel", "one label each")),
        (("--label-separator", ";"), ("--label-separator", "';'")),
        (("--set", "minival=null"), ("minival", "0.2")),
        (("--label-separator", ";", "--set", "minival=null"), ("effnetv2 train",)),
        (("--recipe", "nothing"), ("nothing",)),
        (("--threads", "0"), ("--threads", "at least 1")),
        (("--threads", "9999"), ("--threads", "9999", "PyTorch")),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_made(more, said, found, tmp_path):
    done = here(*words(tmp_path, found / "pictures", *more))
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, *said)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("patience=3", "sets patience=3, but a trial trains to its end"),
        (
            "eval_image_size_candidates=[32,64]",
            "sets eval_image_size_candidates=(32, 64), but a trial is evaluated at one size",
        ),
    ],
)
def test_what_a_recipe_file_says_in_vain_is_refused(setting, said, tmp_path):
    """As ``--set`` is; and with the words that the message gives, it is let through."""
    brought = with_overrides(get_recipe("proxy_small"), ["minival=0.2", setting]).to_json()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(brought))

    def asked(*settings):
        options = SearchOptions(recipe=str(tmp_path / "mine.yaml"), settings=list(settings))
        return SearchConfig(tmp_path, DataConfig("pictures"), options)

    with pytest.raises(InputError, match=re.escape(said)):
        asked()
    field = setting.partition("=")[0]
    assert getattr(asked(f"{field}=null").recipe, field) is None


def test_a_space_that_can_not_be_is_refused_by_its_place(found, tmp_path):
    plain = SPACE.to_json()
    plain["stages"][1]["channels"] = [0]
    (tmp_path / "bad.json").write_text(json.dumps(plain))
    done = here(*words(tmp_path, found / "pictures", "--space", tmp_path / "bad.json"))
    assert done.returncode == 2
    assert mentions(done.stderr, "0", "1", "channel")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_study_does_not_become_a_class_of_its_pictures(more, tmp_path):
    for name, color in COLORS.items():
        paint(tmp_path / "all" / name / "one.jpg", color, 0)
    done = here(*words(tmp_path / "all", tmp_path / "all", *more))
    assert done.returncode == 2
    assert "STUDY" in done.stderr
    assert mentions(done.stderr, "outside")
    assert not (tmp_path / "all/study").exists()


def test_pictures_on_both_sides_are_refused(found, tmp_path):
    shutil.copytree(found / "pictures", tmp_path / "all/train")
    for name in COLORS:
        (tmp_path / "all/val" / name).mkdir(parents=True)
        shutil.copy(tmp_path / f"all/train/{name}/{name}_00.jpg", tmp_path / f"all/val/{name}/other.jpg")
    done = here(*words(tmp_path, tmp_path / "all"))
    assert done.returncode == 2
    assert "other.jpg" in done.stderr


def test_a_study_of_another_program_is_left_alone(found, tmp_path):
    database = tmp_path / "theirs.db"
    optuna.create_study(study_name="study", storage=f"sqlite:///{database}")
    before = database.read_bytes()
    done = here(*words(tmp_path, found / "pictures", "--storage", f"sqlite:///{database}"))
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, database, "study", "effnetv2 search")
    assert database.read_bytes() == before
    assert not (tmp_path / "study").exists()


def test_a_database_given_is_found_from_anywhere(found, tmp_path, monkeypatch):
    """A worker of another folder joins, by a path that holds where it stands."""
    shutil.copy(found / "study/study.db", tmp_path / "shared one.db")
    monkeypatch.chdir(tmp_path)
    said = words(tmp_path, found / "pictures", "--trials", TRIALS, "--storage", "sqlite:///shared one.db")
    joined = here(*said)
    assert joined.returncode == 0, joined.stderr
    monkeypatch.chdir(found)
    assert answer(tmp_path / "study", "show") == answer(found / "study", "show")


def test_who_has_looked_at_a_study_from_afar_may_still_join_it(found, tmp_path):
    """Of another machine: no folder here, only the database."""
    afar = ("--storage", f"sqlite:///{found}/study/study.db".replace("%", "%25").replace("?", "%3F"))
    best = here("search", "show", tmp_path / "study", *afar)
    export = shlex.split(best.stdout.partition("for training: effnetv2 ")[2].partition("\nPage: ")[0])
    assert export[:3] == ["search", "export", str(tmp_path / "study")]
    assert here(*export).returncode == 0
    exported = SPACE.encode(read_architecture(tmp_path / "study/found.yaml"))
    assert exported == tuple(answer(found / "study", "show", "--top", 1)["best"][0]["point"])
    assert not here("search", "show", tmp_path / "study").stdout, "it has no study of its own"
    joined = here(*words(tmp_path, found / "pictures", "--trials", TRIALS, *afar))
    assert joined.returncode == 0, joined.stderr


def test_show_replaces_only_what_a_study_has_left(found, tmp_path):
    """From afar, into a folder that has drawings of somebody else's by the same name; into its own it draws again."""
    afar = ("--storage", f"sqlite:///{found}/study/study.db".replace("%", "%25").replace("?", "%3F"))
    (tmp_path / "study").mkdir()
    (tmp_path / "study/fronts.png").write_bytes(b"mine")
    done = here("search", "show", tmp_path / "study", *afar)
    assert done.returncode == 2
    assert mentions(done.stderr, "fronts.png", "study")
    assert [(one.name, one.read_bytes()) for one in (tmp_path / "study").iterdir()] == [("fronts.png", b"mine")]
    (tmp_path / "study/fronts.png").unlink()
    for _ in range(2):
        done = here("search", "show", tmp_path / "study", *afar)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "study/fronts.png").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_folder_of_something_else_is_left_alone(more, found, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/thesis.txt").write_text("mine")
    done = here(*words(tmp_path, found / "pictures", *more))
    assert done.returncode == 2
    assert "thesis.txt" in done.stderr


@pytest.mark.parametrize("verb", ["resume", "show", "export"])
def test_a_study_that_is_not_there_is_told(verb, tmp_path):
    done = here("search", verb, tmp_path / "nothing")
    assert done.returncode == 2
    assert mentions(done.stderr, "no study")
    assert not (tmp_path / "nothing").exists()


def test_a_lost_database_is_told(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    (tmp_path / "study/study.db").unlink()
    done = here("search", "show", tmp_path / "study")
    assert done.returncode == 2
    assert mentions(done.stderr, "database", "study")


def test_run_does_not_begin_a_study_anew_whose_database_is_lost(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    (tmp_path / "study/study.db").unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "study").iterdir() if file.is_file()}
    done = here(*words(tmp_path, found / "pictures"))
    assert done.returncode == 2
    assert mentions(done.stderr, "database")
    assert not (tmp_path / "study/study.db").exists()
    assert {file.name: file.read_bytes() for file in (tmp_path / "study").iterdir() if file.is_file()} == before


def test_a_database_of_something_else_is_told(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    (tmp_path / "study/study.db").write_bytes(b"no database " * 500)
    done = here("search", "show", tmp_path / "study", "--wait", "0.01")
    assert done.returncode == 2
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_locked_database_is_waited_for_then_told(found, tmp_path):
    shutil.copytree(found / "study", tmp_path / "study")
    holder = sqlite3.connect(tmp_path / "study/study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        done = here("search", "show", tmp_path / "study", "--wait", "0.02")
    finally:
        holder.close()
    assert done.returncode == 2
    assert "database is locked" in done.stderr
    assert mentions(done.stderr, "locked")


def test_the_plan_is_there_to_read(found):
    said = yaml.safe_load((found / "study/study.yaml").read_text())
    assert said["plan"]["sampler"] == "policy"
    assert said["data"]["data"] == str(found / "pictures")


@pytest.mark.slow
def test_networks_that_all_fail_end_the_search(found, tmp_path):
    more = ("--trials", 9, "--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=null")
    done = effnetv2(*words(tmp_path, found / "pictures", *more), cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "5 trials", "diverged")
    shown = answer(tmp_path / "study", "show")
    assert [row["end"] for row in shown["rows"]] == ["failed"] * 5
    assert {row["reward"] for row in shown["rows"]} == {0.0}
    assert shown["best"] == []


@pytest.mark.parametrize("name", ["pictures.csv", "log.txt"])
def test_a_study_takes_no_file_of_the_users_for_its_own(name, found, tmp_path):
    """A list of images in the folder for the study would be written over, a log written on."""
    rows = [f"{path},{path.parent.name}" for path in (found / "pictures").rglob("*.jpg")]
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / name).write_text("\n".join(["path,species", *rows]))
    before = (tmp_path / "study" / name).read_bytes()
    done = here(*words(tmp_path, found / "pictures"))
    assert done.returncode == 2
    assert mentions(done.stderr, name, "study")
    data = tmp_path / "study" / name
    done = here(*words(tmp_path, data, "--label-column", "species"))
    assert done.returncode == 2
    assert mentions(done.stderr, data, name, "DATA")
    assert [(one.name, one.read_bytes()) for one in (tmp_path / "study").iterdir()] == [(name, before)]


def test_a_study_that_never_began_leaves_its_place_to_the_next(tmp_path):
    """What its backbone failed of stands in its log; the plan comes before the list of images."""
    folder = StudyDir(tmp_path)
    log = RunLog()
    log.write_to(tmp_path)
    with attached(log):
        logging.getLogger("efficientnetv2").debug("The backbone failed: out of memory")
    (tmp_path / "study.db").write_bytes(b"")
    folder.check()
    (tmp_path / "study.yaml").write_text("")
    (tmp_path / "pictures.csv").write_text("")
    folder.check()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_search_without_optuna_says_what_to_install(more, found, tmp_path, monkeypatch):
    for name in [one for one in sys.modules if one.startswith(("optuna.", "efficientnetv2.nas.samplers"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    done = here(*words(tmp_path, found / "pictures", *more))
    assert done.returncode == 2
    assert mentions(done.stderr, "effnetv2 search", "optuna")
    assert not (tmp_path / "study").exists()


def test_a_plan_says_in_which_groups_its_backbone_was_timed(found):
    plan = yaml.safe_load((found / "study/study.yaml").read_text(encoding="utf-8"))["plan"]
    assert plan["recipe"]["batch_size"] % plan["reference_group"] == 0
    assert plan["recipe"]["ghost_batch_size"] is None, "which each network has for itself"
