"""The benchmark of a GPU, without one: what is claimed of whom."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import gpu, record

from efficientnetv2.base.timing import Spread


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where figures go instead of the repository's own."""
    for module in (gpu, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def test_a_claim_names_the_gpu_and_the_machine_that_it_is_in(results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    gpu.keep({"gpu_busy_share": Spread.of([0.9, 1.0])}, {}, 2)
    on = f"A GPU, torch {torch.__version__}; {record.hardware()}"
    assert json.loads((results / "summary.json").read_text())["gpu_busy_share"]["hardware"] == on
    assert json.loads((results / "gpu.json").read_text())["hardware"] == on
