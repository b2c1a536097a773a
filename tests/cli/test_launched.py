"""What a launcher starts several times and is no command for several processes is refused, and said once."""

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


@pytest.mark.parametrize("words", [("models",), ("search", "show", "study")])
def test_the_first_process_says_why(words, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "8", "torchrun")
    assert done.stdout == ""


def test_the_others_end_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    done = effnetv2_fresh("models", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_launcher_of_one_process_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert effnetv2_fresh("recipes", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("device", "gpus", "told"), [("cuda", 4, True), ("cuda", 1, False), ("cuda:1", 4, False), ("cpu", 4, False)]
)
@pytest.mark.usefixtures("on_screen")
def test_that_other_gpus_are_idle_is_told_with_the_launch_that_takes_them(device, gpus, told, monkeypatch, capsys):
    """Not to those who have named one of them."""

    def stopped(*_, **__):
        raise InputError("as far as this")

    monkeypatch.setattr(train, "train_run", stopped)
    monkeypatch.setattr(train, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["effnetv2", "train", "photos/", "--epochs", "3"])
    with pytest.raises(InputError, match="as far as this"):
        train.train_and_report(TrainOverrides(), DataConfig("photos/"), RunOptions(device=device))
    command = f"torchrun --nproc-per-node {gpus} -m efficientnetv2 train photos/ --epochs 3"
    said = " ".join(capsys.readouterr().out.split())
    assert (f"One of the {gpus} GPUs here trains. For all of them: {command}" in said) == told


def test_a_run_that_is_damaged_bars_no_launch_of_another(tmp_path, monkeypatch):
    """A launch looks through the runs for its own, which it goes on with after a restart."""
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "runs/old"
    damaged.mkdir(parents=True)
    (damaged / "recipe.yaml").write_text("name: quick\n")
    (damaged / "run.json").write_text('{"command": "effn')
    words = TrainOverrides(model="efficientnetv2_b0", weights="none")
    hardware = Hardware(torch.device("cpu"), world=World(launch="a-new-one"))
    begun = request_run(words, RunOptions(), hardware)
    assert not begun.resumed
    assert begun.path != damaged
