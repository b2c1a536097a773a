"""Files of a run that are damaged between two starts."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest
import torch
from tests.command_line import effnetv2, killed_at
from tests.conftest import COLORS, paint
from tests.faults.test_finished import ARGS, SAVING
from tests.faults.test_kill_and_resume import bits
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.training.checkpoints import checkpoint_steps, load_latest_checkpoint, save_checkpoint
from efficientnetv2.training.run_dir import RunDir, read_skipped
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.crossval_runs import first_preprocessing, selection_results
from efficientnetv2.workflows.run_report import _report_context


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with images, a run that was killed after its last step, and a resumed copy of the run."""
    here = tmp_path_factory.mktemp("stopped")
    for name, color in COLORS.items():
        for number in range(8):
            paint(here / "pictures" / name / f"{number}.jpg", color, number)
    args = ("train", "pictures", *ARGS, "--output", "run")
    killed_at(SAVING, *args, cwd=here)
    shutil.copytree(here / "run", here / "whole")
    done = effnetv2("train", "pictures", "--output", "whole", "--resume", "--device", "cpu", cwd=here)
    assert done.returncode == 0, done.stderr
    return here


def resume(stopped, name):
    return effnetv2("train", "pictures", "--output", name, "--resume", "--device", "cpu", cwd=stopped)


def copy(stopped, name):
    shutil.copytree(stopped / "run", stopped / name)
    return stopped / name


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '{"command": 1, "auto_choices": [], "preprocessing": 3}'])
def test_damaged_run_file_is_reported_with_a_command_to_start_again(content, stopped, tmp_path):
    run = copy(stopped, tmp_path.name)
    (run / "run.json").write_text(content)
    done = resume(stopped, run.name)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert mentions(done.stderr, run.name, "run.json")
    assert mentions(done.stderr, "resume")
    assert mentions(
        done.stderr, run.name, "effnetv2 train", "dataset.csv", "--recipe", "recipe.yaml", "--output", "NEW"
    )


def test_suggested_command_trains_on_the_same_split(stopped):
    args = ("train", "run/dataset.csv", "--recipe", "run/recipe.yaml", "--output", "again", "--device", "cpu")
    done = effnetv2(*args, cwd=stopped)
    assert done.returncode == 0, done.stderr
    lists = [
        ImageDataset.from_csv(stopped / run / "dataset.csv", root=stopped / "pictures", source="")
        for run in ("run", "again")
    ]
    first, again = (
        {(os.path.realpath(one.file(row)), one.table["label"][row], one.split[row]) for row in range(len(one))}
        for one in lists
    )
    assert first == again


@pytest.mark.parametrize("log", [random.Random(0).randbytes(1_000), b"[1]\n3\nnull\n{}\n"])
def test_damaged_log_and_list_do_not_stop_a_resumed_run(log, stopped, tmp_path):
    run = copy(stopped, tmp_path.name)
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(rows[0] + log + b"\n")
    (run / "skipped.csv").write_bytes(b"\xff\xfe\0\0")
    done = resume(stopped, run.name)
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0] == rows[0], "what is whole is kept"
    assert all("step" in json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert bits(run) == bits(stopped / "whole")


def test_checkpoint_of_other_content_is_replaced_by_the_previous_one(stopped, tmp_path):
    run = copy(stopped, tmp_path.name)
    before, newest = sorted((run / "checkpoints").iterdir())
    torch.save({"a": 1}, newest)
    done = resume(stopped, run.name)
    assert done.returncode == 0, done.stderr
    assert f"{newest.name} is damaged" in done.stdout
    assert mentions(done.stdout, int(before.stem.removeprefix("step_")), "from step")
    assert bits(run) == bits(stopped / "whole")


@pytest.mark.parametrize("content", [{"a": 1}, [1], 3, {"network": 1}])
def test_checkpoint_with_invalid_content_is_set_aside(content, tmp_path):
    save_checkpoint(tmp_path, {"step": 1}, 1)
    torch.save(content, tmp_path / "step_00000002.pt")
    state, damaged = load_latest_checkpoint(tmp_path, lambda state: isinstance(state, dict) and "step" in state)
    assert state == {"step": 1}
    assert len(damaged) == 1
    assert checkpoint_steps(tmp_path) == [1]


def test_row_truncated_by_a_kill_is_left_out(tmp_path):
    row = {"kind": "train", "step": 1, "epoch": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + '\n{"kind": "tr')
    assert RunDir(tmp_path).history() == [row]


def test_damaged_list_of_skipped_images_starts_again(tmp_path):
    (tmp_path / "skipped.csv").write_bytes(b"\xff\xfe\0\0")
    for number in range(2):
        RunDir(tmp_path).skip(f"{number}.jpg", "empty")
    assert read_skipped(tmp_path / "skipped.csv") == [("0.jpg", "empty"), ("1.jpg", "empty")]


def test_damaged_report_of_a_finished_run_is_reported(stopped, tmp_path):
    shutil.copytree(stopped / "whole", stopped / tmp_path.name)
    (stopped / tmp_path.name / "report.json").write_text("{")
    done = resume(stopped, tmp_path.name)
    assert done.returncode == 2, done.stderr
    assert mentions(done.stderr, tmp_path.name, "report.json")
    assert mentions(done.stderr, tmp_path.name, "effnetv2 evaluate", "DATA")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_files_of_a_cross_validation_are_reported_with_a_fix(content, tmp_path):
    for name, read in (
        ("selection/fold1.json", lambda: selection_results(tmp_path, 0)),
        ("fold1/run.json", lambda: first_preprocessing(tmp_path)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=mentioning(name, "resume")):
            read()


def test_damaged_predictions_of_the_probe_do_not_prevent_the_report(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/predictions.csv").write_bytes(b"\xff\xfe\0\0")
    messages = logged_lines()
    assert _report_context(tmp_path, {"linear_probe": {}}, None).probe is None
    assert mentions(messages[0], "probe/predictions.csv", "damaged")
