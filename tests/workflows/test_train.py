"""`train` in Python equals `effnetv2 train` exactly."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.command_line import NETWORK, effnetv2
from tests.workflows.conftest import TINY, TINY_WORDS
from torch import nn

import efficientnetv2 as ev2
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import api


def test_run_is_bitwise_equal_to_the_command(run, photos, tmp_path):
    done = effnetv2(
        "train", photos, "--output", "run", *TINY_WORDS, "--seed", 1, "--crop-mode", "center", "--set",
        "optimizer.lr=0.01",
        "--set", "progressive.stages=2", "--set", "progressive.image_size={start: 32, end: 40}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here, there = (load_file(folder / "model.safetensors") for folder in (run.path, tmp_path / "run"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    for name in ("predictions.csv", "recipe.yaml"):
        assert (run.path / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert run.metrics == {name: report[name] for name in run.metrics}


def test_report_has_the_python_call(run, photos):
    command = run.report["command"]
    assert command.startswith(f"efficientnetv2.train({str(photos)!r}, output=")
    assert "crop_mode='center'" in command


def test_recorded_call_has_the_values_of_numpy_scalars():
    """A loop over np.logspace gives them."""

    @api
    def train(data, **given):
        return command_line()

    found = train("x", settings={"optimizer.lr": np.float64(0.5), "sizes": (np.int64(3),)}, model=object())
    assert found == "efficientnetv2.train('x', settings={'optimizer.lr': 0.5, 'sizes': (3,)}, model=...)"


LEVEL = "import logging; logging.getLogger('efficientnetv2').setLevel('{}')\n"


@pytest.mark.parametrize(
    ("setup", "is_shown"),
    [
        ("", True),
        (LEVEL.format("INFO"), True),
        (LEVEL.format("WARNING"), False),
        ("import logging; logging.basicConfig(level='ERROR')\n", False),
    ],
)
def test_script_prints_its_own_output_and_progress_to_stderr(setup, is_shown, photos, tmp_path):
    """No progress if the script sets up logging itself, or asks for warnings alone."""
    (tmp_path / "script.py").write_text(
        f"{setup}import efficientnetv2 as ev2\n"
        f"run = ev2.train({str(photos)!r}, output='run', **{dict(TINY)!r})\n"
        "print(run.metrics['top1'])\n"
        "print(len(ev2.predict(run, 'run/dataset.csv', workers=0, device='cpu')))\n"
        f"print(ev2.evaluate(run, {str(photos)!r}, workers=0, device='cpu').metrics['top1'])\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    top1, count, again = done.stdout.split()
    assert 0 <= float(top1) <= 1
    assert count == "48"
    assert 0 <= float(again) <= 1
    printed = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert {"Data", "Weights", "Length", "Report"} <= set(printed) if is_shown else printed == []
    assert printed.count("Data") == is_shown, "only train() shows its progress"


def test_finished_run_can_be_opened_and_resumed(run, photos):
    opened = ev2.Run(run.path)
    assert opened.metrics == run.metrics
    pd.testing.assert_frame_equal(opened.predictions, run.predictions)
    before = (run.path / "model.safetensors").stat().st_mtime_ns
    again = ev2.train(photos, output=run.path, resume=True, workers=0, device="cpu")
    assert again.metrics == run.metrics
    assert (run.path / "model.safetensors").stat().st_mtime_ns == before


def test_nothing_is_printed_where_logging_is_set_up(photos, tmp_path, capsys):
    """As it is here, by pytest."""
    ev2.train(photos, output=tmp_path / "run", **TINY | {"epochs": 1})
    assert capsys.readouterr() == ("", "")
    assert "Report: " in (tmp_path / "run/log.txt").read_text()


def test_columns_of_a_table_can_be_named(photos, tmp_path):
    files = sorted(photos.rglob("*.jpg"))
    table = pd.DataFrame({"file_name": files, "species": [file.parent.name for file in files], "place": "x"})
    table["place"] = [file.stem for file in files]
    table.to_csv(tmp_path / "images.csv", index=False)
    columns = {"path_column": "file_name", "label_column": "species", "group_column": "place"}
    run = ev2.train(tmp_path / "images.csv", output=tmp_path / "run", **TINY | {"epochs": 1}, **columns)
    assert set(run.predictions["true_label"]) == {"red", "green", "blue"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"imgsz": 64}, r"train\(\) has no argument 'imgsz'; did you mean 'image_size'\?"),
        ({"learning_rate": 0.1}, "did you mean 'lr'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"patience": 3}, r"pass settings=\{'patience': \.\.\.\}"),
        ({"nonsense": 3}, r"train\(\) has no argument 'nonsense'\."),
        ({"epochs": "3"}, "`epochs` must be a number, not '3'"),
        ({"image_size": 32.5}, "`image_size` must be an integer"),
        ({"image_size": 0}, "`image_size` must be between 1 and"),
        ({"workers": -1}, "`workers` must be at least 0, not -1"),
        ({"crop_mode": "centre"}, "`crop_mode` must be.*not 'centre'.*did you mean 'center'"),
        ({"lr": 0.1, "settings": {"optimizer.lr": 0.2}}, "are the same. Pass one of them"),
        ({"settings": {"optimizer.lrr": 0.2}}, "there is no field 'optimizer.lrr'"),
        ({"settings": 3}, "`settings` must be a mapping"),
        ({"settings": {"seed": object()}}, "`settings` must be numbers, text, lists or mappings"),
        ({"model": "efficientnetv2_z"}, "efficientnetv2_z"),
        ({"data": pd.DataFrame()}, r"`data` must be a path or a name, not DataFrame.*table.to_csv"),
        ({"data": "nowhere/"}, "'nowhere/' does not exist"),
        ({"cache": True}, "`cache` must be one of ram, disk, not True"),
        ({"group_column": ["patient", "site"]}, "`group_column` must be text"),
        ({"label_column": 1}, "`label_column` must be text, not 1"),
        ({"model": nn.Linear(1, 2)}, "`model` must be a path or a name, not Linear.*own-training-loop.md"),
        ({"model": ev2.create(NETWORK, num_classes=3)}, r"efficientnetv2\.save.*`weights`"),
    ],
)
def test_invalid_argument_is_an_input_error(given, said, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ev2.InputError, match=said):
        ev2.train(**{"data": photos, "model": NETWORK, "weights": "none", **given})
    assert not (tmp_path / "runs").exists()


def test_settings_accept_numpy_values(photos, tmp_path):
    run = ev2.train(
        photos,
        output=tmp_path / "run",
        settings={"seed": torch.tensor(7).numpy(), "progressive.stages": 1, "minival": None, "optimizer.name": "sgd"},
        **TINY | {"epochs": 1},
    )
    recipe = run.report["recipe"]
    assert (recipe["seed"], recipe["progressive"]["stages"], recipe["optimizer"]["name"]) == (7, 1, "sgd")
