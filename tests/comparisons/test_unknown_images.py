"""The documented results on unknown images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.unknown_images import compared

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("shift", "auroc"), [(10, 1.0), (0, 0.5), (-10, 0.0)])
def test_higher_scores_of_unknown_images_give_a_higher_auroc(shift, auroc):
    rng = np.random.default_rng(0)
    found = compared(rng.normal(size=400), shift + rng.normal(size=400), rng)
    assert found["auroc"] == pytest.approx(auroc, abs=0.05)
    assert found["low"] <= found["auroc"] <= found["high"]


def test_page_has_the_measured_results():
    found = json.loads((ROOT / "benchmarks/results/unknown_images.json").read_text())
    page = " ".join((ROOT / "docs/how-to/flag-unknown-images.md").read_text(encoding="utf-8").split())
    for other in found["others"].values():
        cells = [
            f"{s['auroc']:.2f} ({s['low']:.2f} to {s['high']:.2f})"
            for s in (other["score"], other["largest_probability"])
        ]
        assert f"| {cells[0]} | {cells[1]} | {other['flagged']:.0%} |".replace("%", " %") in page
        assert other["num_images"] == 300
    rate = found["false_alarm_rate"]
    assert f"{rate['found']:.1%} of {rate['num_images']} known".replace("%", " %") in page
    assert f"{found['num_fitted_images']} validation images" in page
    assert f"{found['top1']:.1%}".replace("%", " %") in page
