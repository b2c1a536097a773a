"""What is recorded is the whole measurement, beside the command that prints it; nothing is measured here."""

from __future__ import annotations

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
from benchmarks import epoch, loop_overhead, record, train_step

from efficientnetv2.base.timing import Spread


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """What was recorded, by name; not in the repository's own summary."""
    for module in (record, epoch, train_step):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setitem(sys.modules, "record", record)  # as a script finds it beside itself
    return lambda: json.loads((tmp_path / "summary.json").read_text())


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Two sides of an epoch, of one picture; words of the command line for it."""
    (tmp_path / "set/train/a").mkdir(parents=True)
    (tmp_path / "set/train/a/1.jpg").write_bytes(b"")
    monkeypatch.setattr(epoch.Timm, "tuned", lambda self: {("channels-last", "1"): 0.1})
    monkeypatch.setattr(epoch.Timm, "seconds_per_image", lambda self, more, most: 0.2)
    monkeypatch.setattr(epoch, "our_epoch", lambda pictures, px, batch: (0.1, 0.03, {}))
    return tmp_path / "set", "train.py", "--record"


@pytest.mark.parametrize(("rounds", "more"), [(2, ""), (3, " --rounds 3")])
def test_an_epochs_claims_name_the_rounds_that_they_are_of(rounds, more, timed, summary, monkeypatch):
    run(epoch, monkeypatch, *timed, "--rounds", rounds)
    command = f"python -m benchmarks.epoch IMAGENETTE TIMM_TRAIN_PY{more} --record"
    assert {(claim["command"], claim["n"]) for claim in summary().values()} == {(command, rounds)}
    assert summary()["epoch_vs_timm_train_script"]["value"] == 2


@pytest.mark.parametrize(
    "words", [("--image-px", 64), ("--batch-images", 32), ("--updates", 10), ("--tune-updates", 3)]
)
def test_another_epoch_is_not_recorded(words, timed, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(epoch, monkeypatch, *timed, *words)
    assert "--record is for whole epochs at 128 px and batches of 64" in capsys.readouterr().err
    run(epoch, monkeypatch, *timed[:2], *words)


@pytest.mark.parametrize(("rounds", "more"), [(5, ""), (7, " --rounds 7")])
def test_the_loops_claim_names_the_rounds_that_it_is_of(rounds, more, summary, monkeypatch):
    for side in ("bare", "ours"):
        monkeypatch.setattr(loop_overhead, side, lambda *given: itertools.repeat(None))
    run(loop_overhead, monkeypatch, "--record", "--rounds", rounds)
    claim = summary()["loop_over_bare_loop_ratio"]
    assert (claim["command"], claim["n"]) == (f"python benchmarks/loop_overhead.py{more}", rounds)


@pytest.mark.parametrize(
    "words", [("--image-px", 64), ("--batch-images", 32), ("--steps", 1), ("--like-with-like",)]
)
def test_another_loop_is_not_recorded(words, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(loop_overhead, monkeypatch, "--record", *words)
    assert "--record is for 4 steps a round at 128 px and batches of 64" in capsys.readouterr().err


@pytest.mark.parametrize(("rounds", "more"), [(9, ""), (3, " --rounds 3")])
def test_a_steps_claims_name_the_rounds_that_they_are_of(rounds, more, summary, monkeypatch):
    found = SimpleNamespace(seconds={}, to_json=dict)
    monkeypatch.setattr(train_step, "steps", lambda work, **words: found)
    monkeypatch.setattr(train_step, "claims", lambda name, found: ({name: Spread.of([2.0, 3.0])}, "timm"))
    monkeypatch.setattr(train_step, "losses", lambda work: {})
    run(train_step, monkeypatch, "--record", "--compiled", "--only", "b0_224", "--rounds", rounds)
    claim = summary()["b0_224"]
    assert claim["command"] == f"python -m benchmarks.train_step --compiled{more}"
    assert claim["n"] == rounds


def test_a_step_without_timms_compiled_sides_is_not_recorded(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(train_step, monkeypatch, "--record")
    assert "its compiled ones too: add --compiled" in capsys.readouterr().err
