"""The recorder of the demo: finished runs are read, and records have no local paths."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import demo
from benchmarks import record as keeping
from tests.messages import mentions

EARLIER = "results/demo/7"  # of an earlier record


def reports(folder: Path, seed: int) -> None:
    """Write the report of a demo run."""
    folder.mkdir(parents=True)
    report = {"top1": 0.6 + seed / 100, "macro_f1": 0.5, "linear_probe_macro_f1": 0.4, "majority_top1": 0.2}
    (folder / "report.json").write_text(json.dumps(report | {"run": str(folder)}))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The list of seeds that are run again. Three seeds are finished, and an earlier record exists."""
    started = []

    def run(words, **how):
        started.append(int(words[words.index("--seed") + 1]))
        reports(Path(words[words.index("--output") + 1]), started[-1])

    for seed in range(3):
        folder = tmp_path / "out" / str(seed)
        reports(folder, seed)
        (folder / "took.json").write_text(json.dumps({"wall_s": 300.0 + seed, **demo.made_by()}))
    monkeypatch.setattr(keeping, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(demo, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(demo, "without_avx512", lambda: "")
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))
    (tmp_path / EARLIER).mkdir(parents=True)
    return started


def record(tmp_path, monkeypatch, *, seeds: int = 3) -> dict:
    """Record the claims."""
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", str(seeds), "--output", str(tmp_path / "out"), "--record"])
    demo.main()
    return json.loads((tmp_path / "summary.json").read_text())


def test_record_is_replaced_only_on_request(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", "3", "--output", str(tmp_path / "out")])
    demo.main()
    assert mentions(capsys.readouterr().out, "demo_top1", "0.6100")
    assert (tmp_path / EARLIER).is_dir()
    assert not (tmp_path / "summary.json").exists()


def test_finished_seeds_are_read_saved_and_recorded(ran, tmp_path, monkeypatch):
    claims = record(tmp_path, monkeypatch)
    assert ran == []
    assert set(claims) == {f"demo_{name}" for name in demo.UNITS}
    assert claims["demo_top1"]["value"] == pytest.approx(0.61)
    # Student's t with 2 degrees of freedom is 4.303. Standard deviations are 0.01 and 1 s.
    assert claims["demo_top1"]["high"] == pytest.approx(0.61 + 4.303 * 0.01 / 3**0.5, abs=1e-5)
    assert claims["demo_macro_f1_minus_probe"]["value"] == pytest.approx(0.1)
    assert claims["demo_top1_minus_majority"]["value"] == pytest.approx(41)
    assert claims["demo_wall_s"]["low"] == pytest.approx(301 - 4.303 / 3**0.5, abs=1e-3)
    assert claims["demo_wall_s"]["n"] == 3
    assert claims["demo_wall_s"]["hardware"] == keeping.hardware()
    assert claims["demo_wall_s"]["versions"] == demo.made_by()["versions"]
    saved = sorted(path.name for path in (tmp_path / "results/demo").iterdir())
    assert saved == ["0", "1", "2"]
    assert str(tmp_path) not in (tmp_path / "results/demo/1/report.json").read_text()


def test_record_of_a_processor_without_avx_512_replaces_no_other(ran, tmp_path, monkeypatch):
    first = record(tmp_path, monkeypatch)
    monkeypatch.setattr(demo, "without_avx512", lambda: "_without_avx512")
    both = record(tmp_path, monkeypatch)
    assert both.keys() == first.keys() | {f"{name}_without_avx512" for name in first}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"demo", "demo_without_avx512"}


@pytest.mark.parametrize("stale", ["hardware", "versions", "code", "all"])
def test_seed_of_other_code_versions_or_hardware_is_run_again(stale, ran, tmp_path, monkeypatch):
    """Also a run without these facts, as earlier versions saved it. Its old files are removed first."""
    folder = tmp_path / "out/1"
    saved = json.loads((folder / "took.json").read_text())
    other = {"versions": saved["versions"] | {"torch": "1.0"}}.get(stale, "other")
    (folder / "took.json").write_text(json.dumps({"wall_s": 1.0} if stale == "all" else saved | {stale: other}))
    (folder / "left_over").write_text("")
    claims = record(tmp_path, monkeypatch)
    assert ran == [1]
    assert not (folder / "left_over").exists()
    took = json.loads((folder / "took.json").read_text())
    assert {name: took[name] for name in saved if name != "wall_s"} == demo.made_by()
    assert claims["demo_top1"]["value"] == pytest.approx(0.61)
    record(tmp_path, monkeypatch)
    assert ran == [1], "now it is kept"


@pytest.mark.parametrize("seeds", [0, 1])
def test_too_few_seeds_are_rejected_before_any_run(seeds, ran, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit):
        record(tmp_path, monkeypatch, seeds=seeds)
    assert mentions(capsys.readouterr().err, seeds, "--seeds", "2", "interval")
    assert ran == []
    assert (tmp_path / EARLIER).exists()


@pytest.mark.usefixtures("ran")
def test_earlier_record_is_kept_if_there_is_no_new_record(tmp_path, monkeypatch):
    def claims(each):
        raise ValueError("no interval")

    monkeypatch.setattr(demo, "claims", claims)
    with pytest.raises(ValueError, match="no interval"):
        record(tmp_path, monkeypatch)
    assert (tmp_path / EARLIER).exists()
