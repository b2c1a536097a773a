"""Calibration on predictions with a known temperature, and the documented results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.calibration import halves
from scipy.special import softmax

from efficientnetv2.utils.random_key import Key

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_known_factor_of_the_logits_is_found_on_each_half(factor):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6000, 4)) * 1.5
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((6000, 1))).argmax(axis=1)
    for half in halves(labels, softmax(factor * logits, axis=1), Key.of(0)):
        assert half["pictures"] == 3000
        assert half["temperature"] == pytest.approx(factor, rel=0.1)
        assert half["with"]["ece"] < 0.03
        assert half["with"]["log_loss"] <= half["without"]["log_loss"] + 1e-3
        assert (half["without"]["ece"] > half["without"]["ece_by_chance"]) == (factor != 1)


def test_page_has_the_measured_results():
    found = json.loads((ROOT / "benchmarks/results/calibration.json").read_text())
    page = " ".join((ROOT / "docs/how-to/evaluate-and-compare.md").read_text(encoding="utf-8").split())
    for name, label in (("scratch", "from scratch, 20 epochs"), ("finetuned", "fine-tuned, 5 epochs")):
        halves_ = found[name]
        top1 = np.mean([half["top1"] for half in halves_])
        ece = [", ".join(f"{half[variant]['ece']:.3f}" for half in halves_) for variant in ("without", "with")]
        row = f"| {label} | {top1:.1%} | {ece[0]} | {ece[1]} |"
        assert row.replace("%", " %") in page
