"""The demo's recorder: what was run is read, not run again; no path of a machine stands in what is kept."""

from __future__ import annotations

import json
import sys

import pytest
from benchmarks import demo
from benchmarks import record as keeping


def test_seeds_that_have_run_are_read_kept_and_claimed(tmp_path, monkeypatch):
    for seed in range(3):
        folder = tmp_path / "out" / str(seed)
        (folder / "folds").mkdir(parents=True)
        (folder / "took.json").write_text(json.dumps({"wall_s": 300.0 + seed}))
        for part in (folder, folder / "folds"):
            report = {"top1": 0.6 + seed / 100, "macro_f1": 0.5, "run": str(part)}
            (part / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(keeping, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(demo, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(demo, "subprocess", None)  # to run one again would fail
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", "3", "--out", str(tmp_path / "out")])
    (tmp_path / "results/land_cover_demo/7").mkdir(parents=True)  # of an earlier record
    demo.main()
    claims = json.loads((tmp_path / "summary.json").read_text())
    assert set(claims) == {f"land_cover_demo_{name}" for name in ("top1", "macro_f1", "wall_s")}
    assert claims["land_cover_demo_top1"]["value"] == pytest.approx(0.61)
    # Student's t with 2 degrees of freedom is 4.303; the deviation is 0.01 and 1 s.
    assert claims["land_cover_demo_top1"]["high"] == pytest.approx(0.61 + 4.303 * 0.01 / 3**0.5, abs=1e-5)
    assert claims["land_cover_demo_wall_s"]["low"] == pytest.approx(301 - 4.303 / 3**0.5, abs=1e-3)
    assert claims["land_cover_demo_wall_s"]["n"] == 3
    kept = sorted(path.name for path in (tmp_path / "results/land_cover_demo").iterdir())
    assert kept == ["0", "1", "2"]
    assert str(tmp_path) not in (tmp_path / "results/land_cover_demo/1/folds/report.json").read_text()
