"""Comparison of two programs seed by seed: lengths, machine speed, and claims."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial

import pytest
from benchmarks import in_turn, leaderboard, record, time_to_accuracy
from benchmarks.in_turn import Side, first_reaching, our_side, paced, refuse_drift, rows_of_sides
from benchmarks.paper.runs import Runs
from benchmarks.slices import Run
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig


def row(epochs, seed, per_epoch, *, offset=0.0, pace=10.0):
    """A row whose top-1 grows by 0.1 per epoch."""
    return {
        "seed": seed, "top1": epochs / 10 + offset, "train_s": epochs * per_epoch, "hardware": "one",
        "versions": {"torch": "2"}, "pace": [pace], "file": f"{per_epoch}_{epochs}_{seed}.json",
    }  # fmt: skip


def lengths_of(per_epoch, lengths, by_seed=(0.0, 0.0)):
    """Rows by epochs, of seeds with these offsets of top-1."""
    return {
        epochs: [row(epochs, seed, per_epoch, offset=offset) for seed, offset in enumerate(by_seed)]
        for epochs in lengths
    }


def side(name, folder, lengths, pace=10.0):
    """A side that takes one second per epoch."""

    def run(epochs, seed):
        return Run(folder / f"{name}_{epochs}_{seed}.json", partial(row, epochs, seed, 1, pace=pace), {}, epochs)

    return Side(name, run, lengths)


@pytest.fixture
def trained(monkeypatch):
    """Runs that were trained together, by file."""
    calls = []

    def run_in_slices(runs):
        calls.append([run.file.name for run in runs])
        for run in runs:
            run.file.write_text(json.dumps(run.make()))

    monkeypatch.setattr(in_turn, "run_in_slices", run_in_slices)
    return calls


def test_mean_over_seeds_selects_the_length():
    lengths = lengths_of(1, (8, 2, 4), by_seed=(0.1, -0.2, -0.2))
    epochs, rows = first_reaching(lengths, 0.3)
    assert (epochs, [row["seed"] for row in rows]) == (4, [0, 1, 2])
    assert first_reaching(lengths, 0.31)[0] == 8
    assert first_reaching(lengths, 2.0) is None


def test_all_missing_runs_of_a_seed_are_trained_together(tmp_path, trained):
    sides = [side("a", tmp_path, (2,)), side("b", tmp_path, (4, 8))]
    (tmp_path / "b_4_1.json").write_text(json.dumps(row(4, 1, 1)))
    rows = rows_of_sides(sides, 2)
    assert trained == [["a_2_0.json", "b_4_0.json", "b_8_0.json"], ["a_2_1.json", "b_8_1.json"]]
    seconds = {name: {epochs: in_turn.seconds(of) for epochs, of in by.items()} for name, by in rows.items()}
    assert seconds == {"a": {2: [2, 2]}, "b": {4: [4, 4], 8: [8, 8]}}


@pytest.mark.usefixtures("trained")
def test_seed_at_different_machine_speeds_is_rejected(tmp_path):
    sides = [side("a", tmp_path, (2,)), side("b", tmp_path, (4,), pace=8.9)]
    with pytest.raises(SystemExit, match=mentioning("1_2_0.json", "1_4_0.json", "8.9")):
        rows_of_sides(sides, 2)


def test_speeds_that_differ_by_more_than_the_limit_are_rejected():
    rows = [
        {"pace": pace, "file": "a", "hardware": "one", "seed": 0} for pace in ([10.0, 10.9], [9.95, 10.0])
    ]  # fmt: skip
    refuse_drift(rows, 1.1)
    with pytest.raises(SystemExit):
        refuse_drift(rows, 1.05)


@pytest.mark.parametrize("other", [{"hardware": "another"}, {"versions": {"torch": "3"}}])
def test_runs_on_other_hardware_or_torch_versions_are_rejected(other):
    one = row(2, 1, 1)
    refuse_drift([one, one], 1.1)
    refuse_drift([one, {key: value for key, value in one.items() if key != "versions"}], 1.1)
    with pytest.raises(SystemExit, match=mentioning("seed 1")):
        refuse_drift([one, one | other], 1.1)


def test_run_is_saved_with_the_machine_speed_before_and_after(tmp_path, monkeypatch):
    paces = iter([10.0, 9.0])
    monkeypatch.setattr(in_turn, "pace", lambda: next(paces))
    for _ in range(2):  # the second time, it is read
        made = {"top1": 0.5, "train_s": 60.0, "versions": {"torch": "of its own Python"}}
        saved = paced(tmp_path / "deep/one.json", lambda made=made: made, {"seed": 3})
    assert (saved["pace"], saved["seed"], saved["file"]) == ([10.0, 9.0], 3, "one.json")
    assert saved["versions"] == in_turn.library_versions() | {"torch": "of its own Python"}


def test_stopped_run_of_this_package_starts_again(tmp_path, monkeypatch):
    """Slices of an earlier start are not known."""
    monkeypatch.setattr(Runs, "config", lambda self, cell: {})
    left = []

    def report(self, cell, seed):
        left.append((self.folder(cell, seed) / "recipe.yaml").exists())
        (callback,) = self.callbacks
        callback.on_train_start(0, 9)
        callback.on_train_end(9)
        return {"top1": 0.5, "epochs": 2.0, "train_s": 1.0}

    monkeypatch.setattr(Runs, "report", report)
    runs = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print)
    stopped = tmp_path / "model/ours-2-epochs_run_0"
    stopped.mkdir(parents=True)
    (stopped / "recipe.yaml").touch()
    found = our_side(runs, 64, (2,), 100, "model").run(2, 0).make()
    ((began, ended),) = found["spans"]
    assert (found["top1"], left) == (0.5, [False])
    assert began < ended


def test_top1_of_the_entry_is_the_target_by_hand():
    entry = lengths_of(600, (5, 9), by_seed=(0.3, 0.1))
    rows = {leaderboard.ENTRY: entry, "b0": lengths_of(100, (6, 8)), "never": lengths_of(1, (1, 2))}
    reached = leaderboard.reach(rows, 5)
    assert {name: len(rows) for name, rows in reached.items()} == {leaderboard.ENTRY: 2, "b0": 2}
    values = {
        name: (pytest.approx(claim.figure.value), claim.unit) for name, claim in leaderboard.claims(reached, 5).items()
    }
    assert values == {
        f"imagenette_5_epochs_top1_{leaderboard.ENTRY}": (0.7, "fraction"),
        f"imagenette_5_epochs_s_{leaderboard.ENTRY}": (3000, "s"),
        "imagenette_5_epochs_top1_b0": (0.8, "fraction"),
        "imagenette_5_epochs_s_b0": (800, "s"),
        "imagenette_5_epochs_speedup_b0": (3.75, "ratio"),
        "imagenette_5_epochs_top1_gain_b0": (10, "points"),
    }


def test_entry_length_that_no_model_reaches_has_no_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path)
    (tmp_path / "summary.json").write_text('{"imagenette_20_epochs_speedup_b0": {}, "another": {}}')
    monkeypatch.setattr(leaderboard, "entry_of", lambda *words: None)
    rows = {leaderboard.ENTRY: lengths_of(600, (5, 20)), "b0": lengths_of(100, (6,))}
    monkeypatch.setattr(leaderboard, "peer_side", lambda name, *words: Side(name, None, (5, 20)))
    monkeypatch.setattr(leaderboard, "our_side", lambda runs, size, lengths, epoch_s, model: Side(model, None, (6,)))
    monkeypatch.setattr(leaderboard, "rows_of_sides", lambda *words: rows)
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
def test_one_seed_is_not_recorded(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "program", "--record", "--seeds", "1"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--record is for" in capsys.readouterr().err
