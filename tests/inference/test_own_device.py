"""Processes on one machine share its devices: a GPU each, or a part of the cores each."""

from __future__ import annotations

import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.utils import device as accelerate
from efficientnetv2.utils.device import pick_own_device, pick_workers
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(accelerate, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_each_gets_a_gpu_of_its_own(two_gpus):
    assert [pick_own_device("cuda", number, 2) for number in range(2)] == [
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    ]
    assert two_gpus == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_more_processes_than_gpus_are_refused(two_gpus):
    with pytest.raises(InputError, match=mentioning("3", "2", "GPU")):
        pick_own_device("cuda", 0, 3)


@pytest.mark.parametrize("word", ["cuda:1", "mps"])
def test_one_device_for_several_processes_is_refused(word, two_gpus):
    with pytest.raises(InputError, match=mentioning(f"device={word}", "2")):
        pick_own_device(word, 0, 2)
    assert pick_own_device(word, 0, 1) == torch.device(word)


@pytest.mark.parametrize(("variable", "count", "expected"), [("1", 4, 3), ("1", 30, 1), ("5", 4, None)])
def test_processes_share_the_cores_unless_the_user_has_said_how(variable, count, expected, monkeypatch):
    """12 cores; a launcher sets the variable to 1 where the user has not set it."""
    threads = []
    monkeypatch.setattr(accelerate, "cores", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert pick_own_device("cpu", 0, count) == torch.device("cpu")
    assert threads == ([] if expected is None else [expected])


def test_reading_processes_share_the_cores_too(monkeypatch):
    monkeypatch.setattr(accelerate, "cores", lambda: 12)
    gpu = torch.device("cuda")
    assert [pick_workers(gpu, sharing=n) for n in (1, 3, 100)] == [8, 4, 1]
    assert pick_workers(torch.device("cpu"), sharing=3) == 0
