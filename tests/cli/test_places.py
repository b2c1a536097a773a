"""Places that can't be written to are refused before any work; and how to go on is said whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.command_line import NETWORK, TINY, effnetv2
from tests.data.test_splits import dataset
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from typer.main import get_command
from typer.testing import CliRunner

from efficientnetv2.cli.main import app
from efficientnetv2.cli.parsing import _expanded
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.evaluation.predictions import write_skipped
from efficientnetv2.nas.storage import sqlite_file
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training import run_request
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RUN_FILES, RunDir, RunLog
from efficientnetv2.training.run_paths import validate_new_run_dir
from efficientnetv2.training.run_request import RunOptions, request_run
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import run_start, train
from efficientnetv2.workflows.area import _from_table
from efficientnetv2.workflows.arguments import refuse_inside_data, refuse_replacing_data
from efficientnetv2.workflows.batch_predict import InferenceOptions
from efficientnetv2.workflows.crossval import _folder, load_images
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions, check_calibration, report_folder
from efficientnetv2.workflows.predict import PredictOptions, predict_and_write
from efficientnetv2.workflows.run_start import resume_hint

MACHINE = InferenceOptions("cpu", 0)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_run_within_its_data_is_refused_before_anything_is_loaded(more, class_folders, monkeypatch):
    """It depends on two paths alone; what the command does, torch before all, takes seconds to import."""
    for module in ("train", "estimate"):
        monkeypatch.setitem(sys.modules, f"efficientnetv2.workflows.{module}", None)
    monkeypatch.chdir(class_folders)
    done = CliRunner().invoke(app, ["train", ".", *more])
    assert done.exit_code == 2, done.output
    assert mentions(done.stderr, "DATA")


def test_the_report_of_a_cross_validation_is_not_written_over(tmp_path):
    (tmp_path / "crossval.json").write_text("{}")
    with pytest.raises(InputError, match=mentioning("run", "report")):
        evaluate_and_report("m", DataConfig("d"), EvaluateOptions(out=tmp_path), MACHINE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=mentioning("file", "folder")):
        evaluate_and_report("m", DataConfig("d"), EvaluateOptions(out=tmp_path / "file"), MACHINE)


@pytest.mark.parametrize(("option", "name"), [("output", "out"), ("rank", "rank")])
def test_a_folder_in_place_of_a_table_is_refused_before_the_pictures_are_answered(option, name, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    places = {"out": tmp_path / "p.csv", "rank": None} | {name: tmp_path / "folder.csv"}
    with pytest.raises(InputError, match=mentioning(option, "folder.csv")):
        predict_and_write("m", DataConfig("d"), PredictOptions(**places), MACHINE)


def test_a_run_that_could_not_be_kept_is_refused_before_the_pictures_are_looked_at(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        place = RunOptions(out=out)
        with pytest.raises(InputError, match=mentioning("file", "folder")):
            request_run(TrainOverrides(recipe="quick"), place, Hardware(torch.device("cpu")))
        with pytest.raises(InputError, match=mentioning("file", "folder")):
            _folder(place)


def test_the_answers_of_a_run_are_not_written_over(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds the predictions of the run there, which comparisons read"):
        predict_and_write("m", DataConfig("d"), PredictOptions(out=tmp_path / "predictions.csv"), MACHINE)


def test_what_a_cross_validation_passes_over_is_listed(class_folders, tmp_path):
    (class_folders / "red/text.jpg").write_text("no picture")
    readable, _, skipped = load_images(DataConfig(str(class_folders)), RunOptions(), 0)
    assert len(readable) == 48
    write_skipped(tmp_path / "skipped.csv", skipped)
    assert (tmp_path / "skipped.csv").read_text().startswith("path,reason\nred/text.jpg,")


def test_too_few_pictures_to_calibrate_on_are_refused_before_they_are_answered(tmp_path):
    few, network = dataset([0, 1] * 14 + [0]), torch.nn.Identity()
    network.preprocessing = Preprocessing(image_size=32)
    with pytest.raises(InputError, match=mentioning("30", "29", "val")):
        check_calibration(tmp_path / "m.safetensors", network, few, "val", network.preprocessing)
    check_calibration(tmp_path / "m.safetensors", network, dataset([0, 1] * 15), "val", network.preprocessing)


def test_skipped_pictures_are_said_to_be_listed_only_where_there_is_a_run(class_folders):
    (class_folders / "red/text.jpg").write_text("no picture")
    said = logged_lines()
    prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, strict=False)
    assert any("Skipped 1 unreadable" in line and "red/text.jpg" in line for line in said)
    assert not any("skipped.csv" in line for line in said)


def test_data_is_said_again_with_how_it_is_read():
    source = DataConfig("a.csv", label_column="species", label_separator=";", bands="4,3,2")
    words = ["a.csv", "--label-column", "species", "--label-separator", ";", "--bands", "4,3,2"]
    assert source.words == words
    assert DataConfig("photos").words == ["photos"]


@pytest.mark.parametrize("stopped", ["fit", "write_run_report"])
def test_a_run_that_is_stopped_says_how_it_goes_on_as_it_was_asked_for(stopped, class_folders, tmp_path, monkeypatch):
    """Stopped in training, or while the report is written."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", stop if stopped == "fit" else lambda *_, **__: None)
    if stopped != "fit":
        monkeypatch.setattr(train, stopped, stop)
    words = TrainOverrides(model=NETWORK, weights="none", epochs=10, settings=("compile=false",))
    place = RunOptions(tmp_path / "run", device="cpu", workers=0, memory_gib=6.5, strict=True)
    with pytest.raises(KeyboardInterrupt) as told:
        train.train_run(words, DataConfig(str(class_folders)), place, RunLog())
    again = f"effnetv2 train {class_folders} --output {tmp_path / 'run'} --resume"
    assert mentions(str(told.value), again, "--device", "--workers", "0", "--memory-gib", "6.5", "--strict")
    plain = RunOptions(tmp_path / "run")
    assert resume_hint(DataConfig(str(class_folders)), plain, tmp_path / "run", World()) == (f"To resume: {again}")


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        (1, "To resume: torchrun --nproc-per-node 2 -m efficientnetv2 train"),
        (2, "To resume, start it on every machine as before, with: train"),
    ],
)
def test_a_run_of_many_processes_that_is_stopped_goes_on_with_as_many(
    machines, said, class_folders, tmp_path, monkeypatch
):
    """One alone would take as many times longer."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", stop)
    # What they would say to each other.
    monkeypatch.setattr(run_start, "with_tensor_group", lambda world, device: world)
    monkeypatch.setattr(train, "broadcast_from_main", lambda world, make: make())
    monkeypatch.setattr(train, "require_images_here", lambda images, world: None)
    words = TrainOverrides(model=NETWORK, weights="none", epochs=10, settings=("compile=false", "precision=fp32"))
    place = RunOptions(tmp_path / "run", device="cpu", workers=0)
    world = World(size=2 * machines, local_size=2)
    with pytest.raises(KeyboardInterrupt) as told:
        train.train_run(words, DataConfig(str(class_folders)), place, RunLog(), world)
    again = f"{class_folders} --output {tmp_path / 'run'} --resume --device cpu --workers 0"
    assert str(told.value) == f"{said} {again}"


@pytest.mark.parametrize("verb", ["train", "crossval"])
def test_how_to_run_is_said_in_words_that_there_are(verb):
    place = RunOptions(device="cpu", workers=0, memory_gib=6.5, strict=True, probe=False)
    options = {name for one in get_command(app).commands[verb].params for name in one.opts}
    assert {word for word in place.words if word.startswith("--")} <= options


def visited(folder: Path, content: bytes) -> Path:
    (folder / "visited.csv").write_bytes(content)
    return folder / "visited.csv"


@pytest.mark.parametrize("content", [b"", b"label,map\n\xff,a\n", b"label,map\na,a\na,a,a,a\n"])
def test_a_sample_that_is_no_table_is_refused(content, tmp_path):
    with pytest.raises(InputError, match=mentioning("visited.csv", "CSV", "UTF-8")):
        _from_table(visited(tmp_path, content), "label", ["a"], Path("map.tif"))


def test_a_class_may_be_called_as_pandas_calls_nothing(tmp_path):
    file = visited(tmp_path, b"label,map\nNA,NA\nNA,None\nNone,None\n")
    counts, left_out = _from_table(file, "label", ["NA", "None"], Path("map.tif"))
    assert (counts.toarray().tolist(), left_out) == ([[1, 0], [1, 1]], 0)
    with pytest.raises(InputError, match=mentioning("2", "label", "empty")):
        _from_table(visited(tmp_path, b"label,map\n,NA\n"), "label", ["NA"], Path("map.tif"))


def test_a_sample_is_read_as_a_spreadsheet_writes_it(tmp_path):
    """In much of Europe by semicolons; rows left blank do not count, but those behind them keep their numbers."""
    label = ("label", ["a", "b"], Path("map.tif"))
    file = visited(tmp_path, b"\xef\xbb\xbflabel;map\na;a\n\n;\nb;a\n;\n")
    counts, left_out = _from_table(file, *label)
    assert (counts.toarray().tolist(), left_out) == ([[1, 1], [0, 0]], 0)
    with pytest.raises(InputError, match=mentioning("5", "'c'")):
        _from_table(visited(tmp_path, b"label;map\na;a\n\n;\nb;c\n"), *label)
    with pytest.raises(InputError, match=mentioning("4", "7,5")):
        _from_table(visited(tmp_path, b"label;x;y\na;7;7\n;;\na;7,5;7\n"), *label)


@pytest.mark.parametrize("words", [("train", "."), ("crossval", ".", "--folds", "2"), ("train", ".", "--dry-run")])
def test_results_are_refused_a_place_among_the_class_folders(words, class_folders):
    """They would be a class without images, and DATA could not be read again, not even to go on."""
    there = sorted(class_folders.iterdir())
    done = effnetv2(*words, *TINY, cwd=class_folders)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "DATA", "class")
    assert mentions(done.stderr, words[0], "effnetv2", "--output")
    assert sorted(class_folders.iterdir()) == there


@pytest.mark.parametrize(
    "words", [("check", ".", "--output", "red/look"), ("train", ".", "--preview", "red/sheet.png")]
)
def test_what_is_to_be_looked_at_is_no_part_of_data_either(words, class_folders):
    there = sorted(class_folders.rglob("*"))
    done = effnetv2(*words, "--weights", "none", cwd=class_folders)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "DATA", "class")
    assert sorted(class_folders.rglob("*")) == there


@pytest.mark.parametrize(("verb", "place"), [("check", "inspection"), ("train", "runs")])
def test_who_stands_in_data_is_told_where_to_go(verb, place, class_folders):
    """The option that a message blames is one that was typed."""
    done = effnetv2(verb, ".", "--weights", "none", cwd=class_folders)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, place, "DATA")
    assert mentions(done.stderr, verb, "effnetv2", "--output")
    within = effnetv2(verb, class_folders, "--weights", "none", cwd=class_folders / "red")
    assert mentions(within.stderr, verb, "effnetv2")


@pytest.mark.parametrize("verb", ["train", "crossval", "check"])
@pytest.mark.parametrize("out", [None, "pictures/red/new"])
def test_a_place_in_data_is_refused_before_any_work(verb, out, class_folders, monkeypatch):
    """Before the verb's own work is so much as loaded: torch takes seconds, and a list of many images minutes."""
    monkeypatch.setitem(sys.modules, f"efficientnetv2.workflows.{verb}", None)
    monkeypatch.chdir(class_folders if out is None else class_folders.parent)
    words = ("pictures", "--output", out) if out else (".",)
    ended = CliRunner().invoke(app, [verb, *words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert ended.exit_code == 2, ended.output
    assert ("is in DATA pictures" if out else "is in DATA .") in ended.stderr


def test_an_evaluation_lies_outside_of_data(class_folders):
    for inside in ("red", "new", "."):
        with pytest.raises(InputError, match=mentioning("DATA")):
            report_folder(class_folders / inside, str(class_folders))
    with report_folder(class_folders.parent / "evaluation", str(class_folders)):
        pass


def test_results_lie_where_they_are_no_part_of_data(class_folders, tmp_path, monkeypatch):
    """Next to class folders, next to a table, next to train/ and val/: as people work."""
    (tmp_path / "set").mkdir()
    class_folders.rename(tmp_path / "set/train")
    (tmp_path / "set/all.csv").write_text("path,label\n")
    monkeypatch.chdir(tmp_path / "set")
    for data, out in ((".", "runs/1"), ("all.csv", "runs/1"), ("train", "runs/1"), ("train", "train2")):
        refuse_inside_data(data, Path(out), "--output")
    for out in ("train", "train/runs/1"):
        with pytest.raises(InputError, match=mentioning(out, "OUT", "DATA")):
            refuse_inside_data(".", Path(out), "OUT")


def test_given_splits_that_part_a_group_are_said_to_before_the_run(class_folders):
    """Held out here, groups stay whole; with a val of the user's own they stand as they are given."""
    rows = [
        (path.relative_to(class_folders).as_posix(), path.parent.name, f"P{number % 16 // 2}", number % 16 == 1)
        for number, path in enumerate(sorted(class_folders.rglob("*.jpg")))
    ]
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    table["split"] = np.where(table["split"], "val", "train")
    table.to_csv(class_folders / "given.csv", index=False)
    table.drop(columns="split").to_csv(class_folders / "plain.csv", index=False)
    notes = {}
    for name in ("given", "plain"):
        source = DataConfig(str(class_folders / f"{name}.csv"))
        notes[name] = prepare_data(source, val_fraction=0.2, seed=0, strict=False).split_note
    assert mentions(notes["given"], "3", "val", "1", "8")
    assert mentions(notes["given"], "'P0'", "val")
    assert "more than one split" not in notes["plain"]


BEGUN = '{"command": "effnetv2 train photos", "preprocessing": {}}'


@pytest.mark.parametrize(
    "mine",
    [
        {"dataset.csv": "path,label\n"},
        {"log.txt": "Friday: rain"},
        {"skipped.csv": "lesson,reason\n"},
        {"run.json": '{"chapter": 1}', "dataset.csv": "path,label\n"},
        {"run.json": "Once upon a time"},
    ],
)
def test_a_run_takes_no_folder_of_the_users_for_its_own(mine, tmp_path):
    """A table called as a run calls its own would be written over, a log written on."""
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"holds files that are not a run .*{min(mine)}"):
        validate_new_run_dir(tmp_path)


def test_a_run_that_never_began_leaves_its_place_to_the_next(tmp_path):
    for name in ("probe", "against", "inspection"):
        (tmp_path / name).mkdir()
    validate_new_run_dir(tmp_path)
    for name in ("log.txt", "dataset.csv", "skipped.csv", ".recipe.yaml.0f.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / "run.json").write_text(BEGUN)
    validate_new_run_dir(tmp_path)


def test_a_run_says_how_it_began_before_it_leaves_anything_else(tmp_path, monkeypatch):
    """So whatever stops it, the next one knows its folder."""
    folder, wrote = RunDir(tmp_path / "run"), []
    for name in ("write_text_atomically", "write_atomically"):
        monkeypatch.setattr(f"efficientnetv2.training.run_dir.{name}", lambda path, _: wrote.append(path.name))
    folder.begin(get_recipe("quick"), dataset([0, 1]), {})
    assert wrote == ["run.json", "dataset.csv", "recipe.yaml"]


def test_a_run_is_not_written_over_the_table_that_it_reads(class_folders, tmp_path):
    """Not even where a run that never began has left the folder."""
    rows = [f"../{path.relative_to(tmp_path)},{path.parent.name}" for path in class_folders.rglob("*.jpg")]
    text = "\n".join(["path,species", *rows])
    (tmp_path / "exp1").mkdir()
    (tmp_path / "exp1/dataset.csv").write_text(text)
    words = ("train", "exp1/dataset.csv", "--label-column", "species", "--output", "exp1", *TINY)
    done = effnetv2(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "--output", "exp1", "dataset.csv")
    (tmp_path / "exp1/run.json").write_text(BEGUN)
    for more in ((), ("--dry-run",)):
        done = effnetv2(*words, *more, cwd=tmp_path)
        assert done.returncode == 2
        assert mentions(done.stderr, "--output", "DATA", "exp1/dataset.csv")
    assert (tmp_path / "exp1/dataset.csv").read_text() == text


def test_only_what_a_run_writes_may_not_be_its_data(tmp_path):
    for name in ("probe", "tables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.csv").write_text("")
    with pytest.raises(InputError, match=mentioning("probe")):
        refuse_replacing_data(str(tmp_path / "probe/predictions.csv"), tmp_path, RUN_FILES, "--output")
    for data in ("tables/predictions.csv", "dataset.csv", "cifar10"):
        refuse_replacing_data(str(tmp_path / data), tmp_path, RUN_FILES, "--output")


def test_a_user_that_nobody_knows_is_a_name_like_any(class_folders, monkeypatch):
    """A folder may be called ~backup; Python's own way home would end in an error there."""
    class_folders.rename(class_folders.parent / "~backup_of_nobody")
    monkeypatch.chdir(class_folders.parent)
    assert len(DataConfig("~backup_of_nobody").read()) == 48
    refuse_inside_data("~backup_of_nobody", Path("~runs_of_nobody/1"), "--output")
    with pytest.raises(InputError, match=mentioning("~nobody_at_all/x.csv")):
        DataConfig("~nobody_at_all/x.csv").read()
    assert sqlite_file("sqlite:///~nobody_at_all/study.db") == Path.cwd() / "~nobody_at_all/study.db"


@pytest.mark.parametrize("words", [("--output=~/look",), ("--output", "~/look")])
def test_a_way_home_is_taken_wherever_a_shell_leaves_it(words, class_folders, monkeypatch):
    """Bash expands no ~ that follows an equals sign; a folder called ~ is nobody's wish, and a danger to clear away."""
    monkeypatch.setenv("HOME", str(class_folders.parent))
    (class_folders.parent / "work").mkdir()
    monkeypatch.chdir(class_folders.parent / "work")
    ended = CliRunner().invoke(app, ["check", "~/pictures", *words])
    assert ended.exit_code == 0, ended.output
    assert (class_folders.parent / "look/inspection.html").exists()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "~/no.safetensors", "~/pictures"), "{home}/no.safetensors"),
        (("predict", "m", "~/pictures", "--output=~/no/p.csv"), "there is no folder {home}/no"),
        (("train", "~/pictures", "--weights=~/no.safetensors"), "{home}/no.safetensors"),
        (("train", "~/pictures", "--model=~/no.yaml"), "{home}/no.yaml"),
        (("train", "~/pictures", "--baseline=~/no"), "{home}/no"),
        (("compare", "~/one", "~/other"), "{home}/one"),
        (("search", "show", "~/study"), "{home}/study"),
    ],
)
def test_every_path_may_begin_at_home(words, said, class_folders, monkeypatch):
    monkeypatch.setenv("HOME", str(class_folders.parent))
    monkeypatch.chdir(class_folders.parent)
    ended = CliRunner().invoke(app, list(words), env={"COLUMNS": "400"})
    assert ended.exit_code == 2, ended.output
    assert said.format(home=class_folders.parent) in ended.stderr


def test_a_tilde_between_labels_is_no_way_home():
    home = Path.home()
    for given, expected in (
        ("~", "~"),
        (Path("~"), home),
        ([Path("~/a"), "weights=~/b"], [home / "a", "weights=~/b"]),
        (1, 1),
    ):
        assert _expanded(given) == expected


def test_a_launch_goes_on_with_its_own_run_and_passes_over_what_is_none(tmp_path, monkeypatch):
    """A copied recipe without its beginning, and the run of another launch, lie next to it."""
    monkeypatch.chdir(tmp_path)
    for name, launch in (("copied", None), ("other", "another"), ("own", "this")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("name: quick\n")
        if launch is not None:
            whole = {
                "command": "effnetv2 train photos",
                "chosen": [],
                "preprocessing": Preprocessing(image_size=32).to_json(),
                "microbatches": {},
                "launch": launch,
            }
            (folder / "run.json").write_text(json.dumps(whole))
    assert run_request._run_of_launch(World(size=2, launch="this"), None) == Path("runs/own")
    assert run_request._run_of_launch(World(size=2, launch="a third"), None) is None
    assert run_request._run_of_launch(World(size=2, launch="this"), tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()
