"""How sure networks are: the measurement on answers whose temperature is known, and what the page says of it."""

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
def test_the_factor_that_logits_were_multiplied_by_is_found_on_either_half(factor):
    noise = np.random.default_rng(0)
    logits = noise.normal(size=(6000, 4)) * 1.5
    labels = (softmax(logits, axis=1).cumsum(axis=1) > noise.random((6000, 1))).argmax(axis=1)
    for half in halves(labels, softmax(factor * logits, axis=1), Key.of(0)):
        assert half["pictures"] == 3000
        assert half["temperature"] == pytest.approx(factor, rel=0.1)
        assert half["with"]["ece"] < 0.03
        assert half["with"]["log_loss"] <= half["without"]["log_loss"] + 1e-3
        assert (half["without"]["ece"] > half["without"]["ece_by_chance"]) == (factor != 1)


def test_the_page_gives_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/calibration.json").read_text())
    page = " ".join((ROOT / "docs/how-to/evaluate-and-compare.md").read_text(encoding="utf-8").split())
    for name, called in (("scratch", "from scratch, 20 epochs"), ("finetuned", "fine-tuned, 5 epochs")):
        two = found[name]
        top1 = np.mean([half["top1"] for half in two])
        ece = [", ".join(f"{half[which]['ece']:.3f}" for half in two) for which in ("without", "with")]
        row = f"| {called} | {top1:.1%} | {ece[0]} | {ece[1]} |"
        assert row.replace("%", " %") in page
