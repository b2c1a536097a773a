"""Output paths that cannot be written are refused before any work; the command to resume is printed in full."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.command_line import NETWORK, TINY, run_refused
from tests.data.test_splits import dataset
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from typer.main import get_command
from typer.testing import CliRunner

from efficientnetv2.cli.main import app
from efficientnetv2.cli.parsing import _expanded
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import prepare_data
from efficientnetv2.data.shards.index import INDEX_NAME, ShardIndex, save_index
from efficientnetv2.evaluation.predictions import write_skipped
from efficientnetv2.nas.storage import sqlite_file
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.run_dir import RUN_FILES, RunDir, validate_new_run_dir
from efficientnetv2.training.run_request import RunOptions, request_run
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import RunLog
from efficientnetv2.workflows import train
from efficientnetv2.workflows.area import _from_table
from efficientnetv2.workflows.arguments import refuse_inside_data, refuse_replacing_data
from efficientnetv2.workflows.batch_predict import InferenceOptions
from efficientnetv2.workflows.crossval import _folder, load_images
from efficientnetv2.workflows.evaluate import evaluate_and_report
from efficientnetv2.workflows.evaluate_options import EvaluateOptions, check_calibration, report_folder
from efficientnetv2.workflows.predict import PredictOptions, predict_and_write
from efficientnetv2.workflows.train import resume_hint

MACHINE = InferenceOptions("cpu", 0)


def test_evaluate_never_replaces_a_cross_validation_report(tmp_path):
    (tmp_path / "crossval.json").write_text("{}")
    with pytest.raises(InputError, match=mentioning("run", "report")):
        evaluate_and_report("m", DataConfig("d"), EvaluateOptions(out=tmp_path), MACHINE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=mentioning("file", "folder")):
        evaluate_and_report("m", DataConfig("d"), EvaluateOptions(out=tmp_path / "file"), MACHINE)


@pytest.mark.parametrize(("option", "name"), [("output", "out"), ("rank", "rank")])
def test_folder_as_output_table_is_refused_before_predicting(option, name, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    places = {"out": tmp_path / "p.csv", "rank": None} | {name: tmp_path / "folder.csv"}
    with pytest.raises(InputError, match=mentioning(option, "folder.csv")):
        predict_and_write("m", DataConfig("d"), PredictOptions(**places), MACHINE)


def test_unwritable_run_folder_is_refused_before_reading_images(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        options = RunOptions(out=out)
        with pytest.raises(InputError, match=mentioning("file", "folder")):
            request_run(TrainOverrides(recipe="quick"), options, Hardware(torch.device("cpu")))
        with pytest.raises(InputError, match=mentioning("file", "folder")):
            _folder(options)


def test_predict_never_replaces_the_predictions_of_a_run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=mentioning("predictions", "run")):
        predict_and_write("m", DataConfig("d"), PredictOptions(out=tmp_path / "predictions.csv"), MACHINE)


def test_images_skipped_by_a_cross_validation_are_listed(class_folders, tmp_path):
    (class_folders / "red/text.jpg").write_text("no image")
    readable, _, skipped = load_images(DataConfig(str(class_folders)), RunOptions(), 0)
    assert len(readable) == 48
    write_skipped(tmp_path / "skipped.csv", skipped)
    assert (tmp_path / "skipped.csv").read_text().startswith("path,reason\nred/text.jpg,")


def test_too_few_images_for_calibration_are_refused(tmp_path):
    few, model = dataset([0, 1] * 14 + [0]), torch.nn.Identity()
    model.preprocessing = Preprocessing(image_size=32)
    with pytest.raises(InputError, match=mentioning("30", "29", "val")):
        check_calibration(tmp_path / "m.safetensors", model, few, "val", model.preprocessing)
    check_calibration(tmp_path / "m.safetensors", model, dataset([0, 1] * 15), "val", model.preprocessing)


def test_skipped_images_are_logged_without_a_list(class_folders):
    (class_folders / "red/text.jpg").write_text("no image")
    lines = logged_lines()
    prepare_data(DataConfig(str(class_folders)), val_fraction=0.2, seed=0, strict=False)
    assert any("Skipped 1 unreadable" in line and "red/text.jpg" in line for line in lines)
    assert not any("skipped.csv" in line for line in lines)


def test_data_config_gives_its_command_line_arguments():
    source = DataConfig("a.csv", label_column="species", label_separator=";", bands="4,3,2")
    expected = ["a.csv", "--label-column", "species", "--label-separator", ";", "--bands", "4,3,2"]
    assert source.words == expected
    assert DataConfig("photos").words == ["photos"]


@pytest.mark.parametrize("function", ["fit", "write_run_report"])
def test_interrupt_prints_the_command_to_resume(function, class_folders, tmp_path, monkeypatch):
    """Interrupted in training, or while the report is written."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupt if function == "fit" else lambda *_, **__: None)
    if function != "fit":
        monkeypatch.setattr(train, function, interrupt)
    overrides = TrainOverrides(model=NETWORK, weights="none", epochs=10, settings=("compile=false",))
    options = RunOptions(tmp_path / "run", device="cpu", workers=0, memory_gib=6.5, strict=True)
    with pytest.raises(KeyboardInterrupt) as error:
        train.train_run(overrides, DataConfig(str(class_folders)), options, RunLog())
    again = f"effnetv2 train {class_folders} --output {tmp_path / 'run'} --resume"
    assert mentions(str(error.value), again, "--device", "--workers", "0", "--memory-gib", "6.5", "--strict")
    plain = RunOptions(tmp_path / "run")
    assert resume_hint(DataConfig(str(class_folders)), plain, tmp_path / "run", World()) == (f"To resume: {again}")


@pytest.mark.parametrize(
    ("machines", "start"),
    [
        (1, "To resume: torchrun --nproc-per-node 2 -m efficientnetv2 train"),
        (2, "To resume, start it on every machine as before, with: train"),
    ],
)
def test_interrupt_of_several_processes_names_their_number(machines, start, class_folders, tmp_path, monkeypatch):
    """A single process would take several times as long."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupt)
    # Replaces the communication of the processes.
    monkeypatch.setattr(train, "with_tensor_group", lambda world, device: world)
    monkeypatch.setattr(train, "broadcast_from_main", lambda world, make: make())
    monkeypatch.setattr(train, "require_images_here", lambda images, world: None)
    overrides = TrainOverrides(model=NETWORK, weights="none", epochs=10, settings=("compile=false", "precision=fp32"))
    options = RunOptions(tmp_path / "run", device="cpu", workers=0)
    world = World(size=2 * machines, local_size=2)
    with pytest.raises(KeyboardInterrupt) as error:
        train.train_run(overrides, DataConfig(str(class_folders)), options, RunLog(), world)
    again = f"{class_folders} --output {tmp_path / 'run'} --resume --device cpu --workers 0"
    assert str(error.value) == f"{start} {again}"


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_run_options_give_existing_command_line_options(command):
    run_options = RunOptions(device="cpu", workers=0, memory_gib=6.5, strict=True, probe=False)
    options = {name for one in get_command(app).commands[command].params for name in one.opts}
    assert {arg for arg in run_options.words if arg.startswith("--")} <= options


def write_sample(folder: Path, content: bytes) -> Path:
    (folder / "sample.csv").write_bytes(content)
    return folder / "sample.csv"


@pytest.mark.parametrize("content", [b"", b"label,map\n\xff,a\n", b"label,map\na,a\na,a,a,a\n"])
def test_invalid_sample_file_is_refused(content, tmp_path):
    with pytest.raises(InputError, match=mentioning("sample.csv", "CSV", "UTF-8")):
        _from_table(write_sample(tmp_path, content), "label", ["a"], Path("map.tif"))


def test_class_names_may_be_na_values_of_pandas(tmp_path):
    file = write_sample(tmp_path, b"label,map\nNA,NA\nNA,None\nNone,None\n")
    counts, left_out = _from_table(file, "label", ["NA", "None"], Path("map.tif"))
    assert (counts.toarray().tolist(), left_out) == ([[1, 0], [1, 1]], 0)
    with pytest.raises(InputError, match=mentioning("2", "label", "empty")):
        _from_table(write_sample(tmp_path, b"label,map\n,NA\n"), "label", ["NA"], Path("map.tif"))


def test_sample_of_a_spreadsheet_is_read(tmp_path):
    """European spreadsheets separate by semicolons; blank rows are skipped, but they count for row numbers."""
    label = ("label", ["a", "b"], Path("map.tif"))
    file = write_sample(tmp_path, b"\xef\xbb\xbflabel;map\na;a\n\n;\nb;a\n;\n")
    counts, left_out = _from_table(file, *label)
    assert (counts.toarray().tolist(), left_out) == ([[1, 1], [0, 0]], 0)
    with pytest.raises(InputError, match=mentioning("5", "'c'")):
        _from_table(write_sample(tmp_path, b"label;map\na;a\n\n;\nb;c\n"), *label)
    with pytest.raises(InputError, match=mentioning("4", "7,5")):
        _from_table(write_sample(tmp_path, b"label;x;y\na;7;7\n;;\na;7,5;7\n"), *label)


@pytest.mark.parametrize("args", [("check", ".", "--output", "red/look"), ("train", ".", "--preview", "red/sheet.png")])
def test_reports_and_previews_in_the_data_are_refused(args, class_folders):
    before = sorted(class_folders.rglob("*"))
    run_refused(*args, "--weights", "none", cwd=class_folders, names=("DATA", "class"))
    assert sorted(class_folders.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "train --dry-run", "crossval", "check"])
@pytest.mark.parametrize("out", [None, "pictures/red/new"])
def test_output_folder_in_the_data_is_refused_before_any_work(command, out, class_folders, monkeypatch):
    """It would be a class without images. Neither torch is imported nor an image listed, which takes seconds."""
    for module in ("train", "estimate", "crossval", "check"):
        monkeypatch.setitem(sys.modules, f"efficientnetv2.workflows.{module}", None)
    monkeypatch.chdir(class_folders if out is None else class_folders.parent)
    before = sorted(class_folders.rglob("*"))
    args = ("pictures", "--output", out) if out else (".",)
    ended = CliRunner().invoke(app, [*command.split(), *args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert ended.exit_code == 2, ended.output
    assert ("is in DATA pictures" if out else "is in DATA .") in ended.stderr
    assert mentions(ended.stderr, "DATA", "class")
    if out is None:
        assert mentions(ended.stderr, "inspection" if command == "check" else "runs", "DATA")
        assert mentions(ended.stderr, command.split()[0], "effnetv2", "--output")
    assert sorted(class_folders.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "check"])
def test_fix_from_within_the_data_changes_the_folder(command, class_folders, monkeypatch):
    """The working directory is a class folder, and DATA is its parent."""
    monkeypatch.chdir(class_folders / "red")
    ended = CliRunner().invoke(app, [command, str(class_folders)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert ended.exit_code == 2, ended.output
    assert mentions(ended.stderr, command, "effnetv2")


def test_evaluation_folder_in_the_data_is_refused(class_folders):
    for inside in ("red", "new", "."):
        with pytest.raises(InputError, match=mentioning("DATA")):
            report_folder(class_folders / inside, str(class_folders))
    run = class_folders.parent / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(InputError, match=mentioning(run, "report")):
        report_folder(run, str(class_folders))
    with report_folder(class_folders.parent / "evaluation", str(class_folders)):
        pass


def test_output_next_to_the_data_is_accepted(class_folders, tmp_path, monkeypatch):
    """Next to class folders, next to a table, next to train/ and val/."""
    (tmp_path / "data").mkdir()
    class_folders.rename(tmp_path / "data/train")
    (tmp_path / "data/all.csv").write_text("path,label\n")
    monkeypatch.chdir(tmp_path / "data")
    for data, out in ((".", "runs/1"), ("all.csv", "runs/1"), ("train", "runs/1"), ("train", "train2")):
        refuse_inside_data(data, Path(out), "--output")
    for out in ("train", "train/runs/1"):
        with pytest.raises(InputError, match=mentioning(out, "OUT", "DATA")):
            refuse_inside_data(".", Path(out), "OUT")


def test_output_in_a_folder_of_tars_is_accepted_only_next_to_an_index(tmp_path, monkeypatch):
    """Without one, a folder of tars is known by having nothing else."""
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/1.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "tars")
    for data, out in ((".", "runs/1"), (tmp_path / "tars", tmp_path / "tars")):
        with pytest.raises(InputError, match=mentioning("OUT", "tars")):
            refuse_inside_data(str(data), Path(out), "OUT")
    refuse_inside_data(".", tmp_path / "runs", "OUT")
    empty = pd.DataFrame({"path": [], "label": [], "split": [], "shard": [], "shard_offset": [], "shard_bytes": []})
    save_index(ShardIndex(empty, (), None), tmp_path / "tars" / INDEX_NAME)
    refuse_inside_data(".", Path("runs/1"), "OUT")


def test_splits_that_divide_a_group_are_reported(class_folders):
    """A random split keeps groups together; splits of the user are not changed."""
    rows = [
        (path.relative_to(class_folders).as_posix(), path.parent.name, f"P{number % 16 // 2}", number % 16 == 1)
        for number, path in enumerate(sorted(class_folders.rglob("*.jpg")))
    ]
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    table["split"] = np.where(table["split"], "val", "train")
    table.to_csv(class_folders / "user_split.csv", index=False)
    table.drop(columns="split").to_csv(class_folders / "random_split.csv", index=False)
    notes = {}
    for name in ("user_split", "random_split"):
        source = DataConfig(str(class_folders / f"{name}.csv"))
        notes[name] = prepare_data(source, val_fraction=0.2, seed=0, strict=False).split_note
    assert mentions(notes["user_split"], "3", "val", "1", "8")
    assert mentions(notes["user_split"], "'P0'", "val")
    assert "more than one split" not in notes["random_split"]


STARTED_RUN = '{"command": "effnetv2 train photos", "preprocessing": {}}'


@pytest.mark.parametrize(
    "files",
    [
        {"dataset.csv": "path,label\n"},
        {"log.txt": "Friday: rain"},
        {"skipped.csv": "lesson,reason\n"},
        {"run.json": '{"chapter": 1}', "dataset.csv": "path,label\n"},
        {"run.json": "Once upon a time"},
    ],
)
def test_folder_with_user_files_is_not_a_run(files, tmp_path):
    """A table with the name of a run file would be replaced, a log appended to."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=mentioning("not a run", min(files))):
        validate_new_run_dir(tmp_path)


def test_folder_of_a_run_without_steps_is_reused(tmp_path):
    for name in ("probe", "against", "inspection"):
        (tmp_path / name).mkdir()
    validate_new_run_dir(tmp_path)
    for name in ("log.txt", "dataset.csv", "skipped.csv", ".recipe.yaml.0f.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / "run.json").write_text(STARTED_RUN)
    validate_new_run_dir(tmp_path)


def test_run_json_is_written_first(tmp_path, monkeypatch):
    """Whatever interrupts the run, a resumed run recognizes its folder."""
    folder, written = RunDir(tmp_path / "run"), []
    for name in ("write_text_atomically", "write_atomically"):
        monkeypatch.setattr(f"efficientnetv2.training.run_dir.{name}", lambda path, _: written.append(path.name))
    folder.begin(get_recipe("quick"), dataset([0, 1]), {})
    assert written == ["run.json", "dataset.csv", "recipe.yaml"]


def test_run_never_replaces_its_own_dataset(class_folders, tmp_path):
    """Nor after a run that never started has left files in the folder."""
    rows = [f"../{path.relative_to(tmp_path)},{path.parent.name}" for path in class_folders.rglob("*.jpg")]
    text = "\n".join(["path,species", *rows])
    (tmp_path / "exp1").mkdir()
    (tmp_path / "exp1/dataset.csv").write_text(text)
    args = ("train", "exp1/dataset.csv", "--label-column", "species", "--output", "exp1", *TINY)
    run_refused(*args, cwd=tmp_path, names=("--output", "exp1", "dataset.csv"))
    (tmp_path / "exp1/run.json").write_text(STARTED_RUN)
    for more in ((), ("--dry-run",)):
        run_refused(*args, *more, cwd=tmp_path, names=("--output", "DATA", "exp1/dataset.csv"))
    assert (tmp_path / "exp1/dataset.csv").read_text() == text


def test_data_may_be_a_file_that_the_run_does_not_write(tmp_path):
    for name in ("probe", "tables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.csv").write_text("")
    with pytest.raises(InputError, match=mentioning("probe")):
        refuse_replacing_data(str(tmp_path / "probe/predictions.csv"), tmp_path, RUN_FILES, "--output")
    for data in ("tables/predictions.csv", "dataset.csv", "cifar10"):
        refuse_replacing_data(str(tmp_path / data), tmp_path, RUN_FILES, "--output")


def test_tilde_of_an_unknown_user_is_a_plain_name(class_folders, monkeypatch):
    """A folder may have the name ~backup, for which ``Path.expanduser`` raises an error."""
    class_folders.rename(class_folders.parent / "~backup_of_nobody")
    monkeypatch.chdir(class_folders.parent)
    assert len(DataConfig("~backup_of_nobody").read()) == 48
    refuse_inside_data("~backup_of_nobody", Path("~runs_of_nobody/1"), "--output")
    with pytest.raises(InputError, match=mentioning("~nobody_at_all/x.csv")):
        DataConfig("~nobody_at_all/x.csv").read()
    assert sqlite_file("sqlite:///~nobody_at_all/study.db") == Path.cwd() / "~nobody_at_all/study.db"


@pytest.mark.parametrize("args", [("--output=~/look",), ("--output", "~/look")])
def test_tilde_after_an_equals_sign_is_expanded(args, class_folders, monkeypatch):
    """Bash does not expand it there; a folder named ~ would be dangerous to remove."""
    monkeypatch.setenv("HOME", str(class_folders.parent))
    (class_folders.parent / "work").mkdir()
    monkeypatch.chdir(class_folders.parent / "work")
    ended = CliRunner().invoke(app, ["check", "~/pictures", *args])
    assert ended.exit_code == 0, ended.output
    assert (class_folders.parent / "look/inspection.html").exists()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("args", "facts"),
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
def test_tilde_is_expanded_in_every_path(args, facts, class_folders, monkeypatch):
    monkeypatch.setenv("HOME", str(class_folders.parent))
    monkeypatch.chdir(class_folders.parent)
    ended = CliRunner().invoke(app, list(args), env={"COLUMNS": "400"})
    assert ended.exit_code == 2, ended.output
    assert facts.format(home=class_folders.parent) in ended.stderr


def test_tilde_as_a_separator_is_not_expanded():
    home = Path.home()
    for value, expected in (
        ("~", "~"),
        (Path("~"), home),
        ([Path("~/a"), "weights=~/b"], [home / "a", "weights=~/b"]),
        (1, 1),
    ):
        assert _expanded(value) == expected
