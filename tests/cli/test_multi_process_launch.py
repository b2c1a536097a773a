"""Commands under a multi-process launcher: unsupported commands are refused, and the error is printed once."""

from __future__ import annotations

import sys

import pytest
import torch
from tests.command_line import effnetv2_fresh
from tests.messages import mentions

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_request import RunOptions, request_run
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import train


@pytest.mark.parametrize("args", [("models",), ("search", "show", "study")])
def test_first_process_prints_the_error(args, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "8", "torchrun")
    assert done.stdout == ""


def test_other_processes_end_silently(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh("models", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_launcher_with_one_process_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert effnetv2_fresh("recipes", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("device", "gpus", "is_reported"), [("cuda", 4, True), ("cuda", 1, False), ("cuda:1", 4, False), ("cpu", 4, False)]
)
@pytest.mark.usefixtures("on_screen")
def test_idle_gpus_are_reported_with_the_launch_command(device, gpus, is_reported, monkeypatch, capsys):
    """Not if ``--device`` names one of them."""

    def stop(*_, **__):
        raise InputError("stopped here")

    monkeypatch.setattr(train, "train_run", stop)
    monkeypatch.setattr(train, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["effnetv2", "train", "photos/", "--epochs", "3"])
    with pytest.raises(InputError, match="stopped here"):
        train.train_and_report(TrainOverrides(), DataConfig("photos/"), RunOptions(device=device))
    command = f"torchrun --nproc-per-node {gpus} -m efficientnetv2 train photos/ --epochs 3"
    output = " ".join(capsys.readouterr().out.split())
    assert (f"One of the {gpus} GPUs here trains. For all of them: {command}" in output) == is_reported


def test_damaged_run_does_not_prevent_a_new_launch(tmp_path, monkeypatch):
    """A restarted launch searches the runs folder for its run."""
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "runs/old"
    damaged.mkdir(parents=True)
    (damaged / "recipe.yaml").write_text("name: quick\n")
    (damaged / "run.json").write_text('{"command": "effn')
    overrides = TrainOverrides(model="efficientnetv2_b0", weights="none")
    hardware = Hardware(torch.device("cpu"), world=World(launch="a-new-one"))
    request = request_run(overrides, RunOptions(), hardware)
    assert not request.resumed
    assert request.path != damaged
