"""Alternating runs: order, lengths, machine speed, and claims of two programs."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
from benchmarks import in_turn, leaderboard, record, time_to_accuracy
from benchmarks.in_turn import Side, our_side, paced, refuse_drift, take_turns
from benchmarks.paper.runs import Runs
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig


def side(name, per_epoch, asked, *, lengths=(2, 4, 8), by_seed=(0.0, 0.0, 0.0), pace=(10.0, 10.0)):
    """A side whose top-1 grows by 0.1 per epoch, with an offset by seed."""

    def run(epochs, seed):
        asked.append((name, epochs, seed))
        return {
            "seed": seed, "top1": epochs / 10 + by_seed[seed], "train_s": epochs * per_epoch, "hardware": "one",
            "versions": {"torch": "2"}, "pace": list(pace), "file": f"{name}_{epochs}_{seed}.json",
        }  # fmt: skip

    return Side(name, run, lengths)


def test_first_seed_selects_a_length_and_the_mean_confirms_it():
    calls = []
    lucky = side("a", 1, calls, by_seed=(0.1, -0.1, -0.1))
    assert lucky.first_length(0.5) == 4
    assert [run[1:] for run in calls] == [(2, 0), (4, 0)]
    epochs, rows = lucky.reaching(0.5, 4, 3)
    assert (epochs, [row["seed"] for row in rows]) == (8, [0, 1, 2])
    assert lucky.first_length(2.0) == 8
    assert lucky.reaching(2.0, 2, 3) is None


def test_first_side_alternates_by_seed():
    calls = []
    one, other = (side(name, 1, calls) for name in "ab")
    found = take_turns([(one, 2), (other, 4)], 3)
    assert calls == [("a", 2, 0), ("b", 4, 0), ("b", 4, 1), ("a", 2, 1), ("a", 2, 2), ("b", 4, 2)]
    assert [[row["train_s"] for row in rows] for rows in found] == [[2, 2, 2], [4, 4, 4]]


def test_runs_at_different_machine_speeds_are_rejected():
    even, slower = side("a", 1, []), side("b", 1, [], pace=(10.0, 8.9))
    with pytest.raises(SystemExit, match=mentioning("a_2_0.json", "b_4_0.json", "8.9")):
        take_turns([(even, 2), (slower, 4)], 2)
    rows = [
        {"pace": pace, "file": "a", "hardware": "one", "seed": 0} for pace in ([10.0, 10.9], [9.95, 10.0])
    ]  # fmt: skip
    refuse_drift(rows, 1.1)
    with pytest.raises(SystemExit):
        refuse_drift(rows, 1.05)


@pytest.mark.parametrize("other", [{"hardware": "another"}, {"versions": {"torch": "3"}}])
def test_runs_on_other_hardware_or_torch_versions_are_rejected(other):
    row = side("a", 1, []).run(2, 1)
    refuse_drift([row, row], 1.1)
    refuse_drift([row, {key: value for key, value in row.items() if key != "versions"}], 1.1)
    with pytest.raises(SystemExit, match=mentioning("seed 1")):
        refuse_drift([row, row | other], 1.1)


def test_run_is_saved_with_the_machine_speed_before_and_after(tmp_path, monkeypatch):
    paces = iter([10.0, 9.0])
    monkeypatch.setattr(in_turn, "pace", lambda: next(paces))
    for _ in range(2):  # the second time, it is read
        made = {"top1": 0.5, "train_s": 60.0, "versions": {"torch": "of its own Python"}}
        row = paced(tmp_path / "deep/one.json", lambda made=made: made, {"seed": 3})
    assert (row["pace"], row["seed"], row["file"]) == ([10.0, 9.0], 3, "one.json")
    assert row["versions"] == in_turn.library_versions() | {"torch": "of its own Python"}


def test_machine_speed_is_measured_by_a_fixed_computation():
    assert 0 < in_turn.pace(0.01) < 1e6


def test_stopped_run_of_this_package_starts_again(tmp_path, monkeypatch):
    """A resumed run would have times of two sessions and only the last machine speeds."""
    monkeypatch.setattr(in_turn, "pace", lambda: 10.0)
    monkeypatch.setattr(Runs, "config", lambda self, cell: {})
    left = []

    def measured(runs, cell, seed):
        left.append((runs.folder(cell, seed) / "recipe.yaml").exists())
        return {"top1": 0.5, "train_s": 60.0}

    monkeypatch.setattr(in_turn, "measured", measured)
    runs = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print)
    stopped = tmp_path / "model/ours-2-epochs_run_0"
    stopped.mkdir(parents=True)
    (stopped / "recipe.yaml").touch()
    ours = our_side(runs, 64, (2,), "model")
    assert [ours.run(2, 0)["top1"] for _ in range(2)] == [0.5, 0.5]
    assert left == [False]


def test_top1_of_the_entry_is_the_target_by_hand():
    calls = []
    options = Namespace(seeds=2, pace_limit=1.1)
    entry = side(leaderboard.ENTRY, 600, calls, lengths=(5, 9), by_seed=(0.3, 0.1))
    models = [side("b0", 100, calls, lengths=(6, 8)), side("never", 1, calls, lengths=(1, 2))]
    reached = leaderboard.reach(entry, models, 5, options)
    assert {name: len(rows) for name, rows in reached.items()} == {leaderboard.ENTRY: 2, "b0": 2}
    assert {epochs for name, epochs, _ in calls if name == leaderboard.ENTRY} == {5}
    values = {
        name: (pytest.approx(claim.figure.value), claim.unit) for name, claim in leaderboard.claims(reached, 5).items()
    }
    assert values == {
        f"imagenette_5_epochs_top1_{leaderboard.ENTRY}": (0.7, "fraction"),
        f"imagenette_5_epochs_s_{leaderboard.ENTRY}": (3000, "s"),
        "imagenette_5_epochs_top1_b0": (0.8, "fraction"),
        "imagenette_5_epochs_s_b0": (800, "s"),
        "imagenette_5_epochs_speedup_b0": (3.75, "ratio"),
    }


def test_entry_length_that_no_model_reaches_has_no_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path)
    (tmp_path / "summary.json").write_text('{"imagenette_20_epochs_speedup_b0": {}, "another": {}}')
    monkeypatch.setattr(leaderboard, "entry_of", lambda *words: None)
    monkeypatch.setattr(leaderboard, "peer_side", lambda name, *words: side(name, 600, []))
    monkeypatch.setattr(leaderboard, "our_side", lambda runs, size, lengths, model: side(model, 100, [], lengths=(6,)))
    options = Namespace(
        pictures="x", seeds=2, output=tmp_path, image_size=64, pace_limit=1.1, entry_lengths=(5, 20), lengths=(6,),
        models=("b0",), record=True,
    )  # fmt: skip
    leaderboard.measure(options, {"quick": []})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["imagenette_5_epochs_speedup_b0"]["value"] == pytest.approx(5)
    assert "--models b0" in summary["imagenette_5_epochs_speedup_b0"]["command"]
    assert "imagenette_20_epochs_speedup_b0" not in summary
    assert "another" in summary
    assert f"imagenette_20_epochs_top1_{leaderboard.ENTRY}" in summary


@pytest.mark.parametrize("suffix", ["", "_without_avx512"])
def test_format_of_the_entry_is_the_fastest_tried(suffix, tmp_path, monkeypatch):
    """Without AVX-512, bf16 is not tried: it is many times slower."""

    def trained(self, pictures, *, epochs, seed):
        return {"train_s": 100 - len(self.quick) * 10 - (self.quick[-1] == "1")}

    monkeypatch.setattr(leaderboard, "without_avx512", lambda: suffix)
    monkeypatch.setattr(leaderboard, "load_dataset", lambda data: None)
    monkeypatch.setattr(leaderboard, "rows_of", lambda *words: [])
    monkeypatch.setattr(leaderboard, "link_folders", lambda *words: words[-1])
    monkeypatch.setattr(leaderboard.Program, "trained", trained)
    options = Namespace(pictures=tmp_path, python="python", image_size=64, output=tmp_path)
    found = leaderboard.fastest(options)
    bf16 = () if suffix else ("--bf16",)
    assert found["quick"] == ("--channels-last", *bf16, "--workers", "1")
    assert len(found["images_per_s"]) == (6 if suffix else 9)
    words = json.loads((tmp_path / "tried/fp32_0.json").read_text())["words"]
    assert words[-2:] == ["--workers", "0"]
    assert words[words.index("--lr") + 1] == "0.008", "the published learning rate"


def test_measurement_requires_tuning(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "program", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "--tune")):
        time_to_accuracy.main()


@pytest.mark.parametrize("program", [time_to_accuracy, leaderboard])
def test_one_seed_is_not_recorded(program, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "program", "--record", "--seeds", "1"])
    with pytest.raises(SystemExit):
        program.main()
