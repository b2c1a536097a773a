"""Runs that take turns: their order, the lengths that count, the pace of the machine, and what two programs claim."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
from benchmarks import in_turn, leaderboard, timm_progressive
from benchmarks.in_turn import Side, our_side, paced, refuse_drift, take_turns
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Timm
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig


def side(name, per_epoch, asked, *, lengths=(2, 4, 8), by_seed=(0.0, 0.0, 0.0), pace=(10.0, 10.0)):
    """A tenth of top-1 per epoch, more or less by the seed."""

    def run(epochs, seed):
        asked.append((name, epochs, seed))
        return {
            "seed": seed, "top1": epochs / 10 + by_seed[seed], "train_s": epochs * per_epoch, "hardware": "one",
            "versions": {"torch": "2"}, "pace": list(pace), "file": f"{name}_{epochs}_{seed}.json",
        }  # fmt: skip

    return Side(name, run, lengths)


def test_the_first_seed_chooses_a_length_and_the_mean_confirms_it():
    asked = []
    lucky = side("a", 1, asked, by_seed=(0.1, -0.1, -0.1))
    assert lucky.first_length(0.5) == 4
    assert [run[1:] for run in asked] == [(2, 0), (4, 0)]
    epochs, rows = lucky.reaching(0.5, 4, 3)
    assert (epochs, [row["seed"] for row in rows]) == (8, [0, 1, 2])
    assert lucky.first_length(2.0) == 8
    assert lucky.reaching(2.0, 2, 3) is None


def test_the_side_that_runs_first_changes_with_each_seed():
    asked = []
    one, other = (side(name, 1, asked) for name in "ab")
    found = take_turns([(one, 2), (other, 4)], 3)
    assert asked == [("a", 2, 0), ("b", 4, 0), ("b", 4, 1), ("a", 2, 1), ("a", 2, 2), ("b", 4, 2)]
    assert [[row["train_s"] for row in rows] for rows in found] == [[2, 2, 2], [4, 4, 4]]


def test_runs_at_two_paces_of_the_machine_are_refused():
    even, slower = side("a", 1, []), side("b", 1, [], pace=(10.0, 8.9))
    with pytest.raises(SystemExit, match=mentioning("a_2_0.json", "b_4_0.json", "8.9")):
        take_turns([(even, 2), (slower, 4)], 2)
    rows = [{"pace": [10.0, 10.9], "file": "a"}, {"pace": [9.95, 10.0], "file": "b"}]
    refuse_drift(rows, 1.1)
    with pytest.raises(SystemExit):
        refuse_drift(rows, 1.05)


def test_a_run_is_kept_with_the_pace_before_and_after_it(tmp_path, monkeypatch):
    paces = iter([10.0, 9.0])
    monkeypatch.setattr(in_turn, "pace", lambda: next(paces))
    for _ in range(2):  # the second time it is only read
        row = paced(tmp_path / "deep/one.json", lambda: {"top1": 0.5, "train_s": 60.0}, {"seed": 3})
    assert (row["pace"], row["seed"], row["file"]) == ([10.0, 9.0], 3, "one.json")
    assert in_turn.library_versions().items() <= row["versions"].items()


def test_the_pace_is_that_of_a_fixed_computation():
    assert 0 < in_turn.pace(0.01) < 1e6


def test_a_stopped_run_of_ours_starts_again(tmp_path, monkeypatch):
    """Its times would be of two sittings, and the paces of the last one."""
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


def test_a_size_schedule_ends_at_the_image_size():
    parsed = timm_progressive.size_schedule("three from half, in order", 128)
    assert parsed[:4] == ("--train-img-sizes", "64", "96", "128")
    assert parsed[parsed.index("--train-size-schedule") + 1] == "progressive"
    for label in timm_progressive._SIZES:
        words = timm_progressive.size_schedule(label, 128)
        sizes = [int(word) for word in words[1 : words.index("--train-size-schedule")]]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 128


@pytest.mark.parametrize(
    ("seconds", "tops", "sizes", "compiled"),
    [
        ((9, 5, 7, 8, 6), (0.50, 0.495, 0.50, 0.40), "96", True),  # the second is faster, at half a point less
        ((9, 5, 7, 8, 4), (0.50, 0.48, 0.50, 0.40), "80", False),  # two points less are too many
    ],
)
def test_sizes_and_compilation_are_chosen_by_time(seconds, tops, sizes, compiled, monkeypatch):
    """Then the rate, by three seeds."""
    timm = Timm("train.py", 128, ("-j", "0", "--torchcompile"), {"optimizer": ("--opt", "sgd", "--lr", "0.4")})
    monkeypatch.setattr(
        timm_progressive, "tune", lambda options, sizes: {"timm": {"quick": timm.quick, "parts": timm.parts}}
    )
    by_name = dict(
        zip([*(f"sizes {label}" for label in timm_progressive._SIZES), "not compiled"], seconds, strict=True)
    )
    asked = []

    def tried_run(options, name, side, seed=0):
        asked.append((name, seed))
        if "rate" in name:
            return {"top1": 0.5 + (0.02 * seed if side.parts["optimizer"][-1] == "0.1" else 0)}
        return {"top1": dict(zip(by_name, tops, strict=False)).get(name, 0.5), "train_s": by_name[name]}

    monkeypatch.setattr(timm_progressive, "tried_run", tried_run)
    found = timm_progressive.tune_schedule(Namespace(script="train.py", image_size=128))["timm"]
    assert found["parts"]["sizes"][2] == sizes
    assert ("--torchcompile" in found["quick"]) == compiled
    assert found["parts"]["optimizer"][-1] == "0.1"
    assert [seed for name, seed in asked if name.startswith("first rate")] == [1, 2, 3]


def test_timms_top1_and_minutes_decide_the_lengths_of_ours():
    asked = []
    options = Namespace(epochs=10, seeds=2, pace_limit=1.1)
    timm = side("timm", 100, asked, by_seed=(-0.65, -0.55), lengths=(10,))
    ours = side("ours", 150, asked, by_seed=(0.0, 0.0))
    theirs, reached, same = timm_progressive.compared(timm, ours, options)
    assert reached[0] == 4
    assert {epochs for name, epochs, _ in asked if name == "ours"} == {2, 4, 6.6}
    found = timm_progressive.claims(theirs, reached, same)
    assert found["time_to_timm_progressive_top1_speedup"].figure.value == pytest.approx(1000 / 600)
    assert found["same_minutes_top1_gain_over_timm_progressive"].figure.value == pytest.approx(66 - 40)
    assert set(timm_progressive.claims(theirs, None, same)) == {"same_minutes_top1_gain_over_timm_progressive"}


def test_the_leaderboards_targets_by_hand():
    asked = []
    options = Namespace(seeds=2, pace_limit=1.1)
    sides = [
        side(leaderboard.ENTRY, 600, asked, lengths=(5, 9)), side("b0", 100, asked, lengths=(6, 8)),
        side("never", 1, asked, lengths=(1, 2)),
    ]  # fmt: skip
    reached = leaderboard.reach(sides, 80, options)
    assert {name: epochs for name, (epochs, _) in reached.items()} == {leaderboard.ENTRY: 9, "b0": 8}
    found = leaderboard.claims(reached, 80)
    values = {name: (pytest.approx(claim.figure.value), claim.unit) for name, claim in found.items()}
    assert values == {
        f"imagenette_80_top1_s_{leaderboard.ENTRY}": (5400, "s"),
        "imagenette_80_top1_s_b0": (800, "s"),
        "imagenette_80_top1_speedup_b0": (6.75, "ratio"),
    }
    alone = leaderboard.claims({"b0": reached["b0"]}, 80)
    assert list(alone) == ["imagenette_80_top1_s_b0"], "no ratio to an entry that does not reach it"


def test_the_entrys_rate_and_format_are_the_best_that_were_tried(tmp_path, monkeypatch):
    rates = []

    def tried_run(options, name, entry, seed=0):
        rates.append(entry.lr)
        assert entry.quick == ("--channels-last", "--bf16", "--workers", "1")
        return {"top1": 0.5 - abs(entry.lr - 4e-3)}

    def trained(self, pictures, *, epochs, seed):
        return {"train_s": 100 - len(self.quick) * 10 - (self.quick[-1] == "1")}

    monkeypatch.setattr(leaderboard, "tried_run", tried_run)
    monkeypatch.setattr(leaderboard, "load_dataset", lambda data: None)
    monkeypatch.setattr(leaderboard, "rows_of", lambda *words: [])
    monkeypatch.setattr(leaderboard, "link_folders", lambda *words: words[-1])
    monkeypatch.setattr(leaderboard, "link_tuning_images", lambda options: None)
    monkeypatch.setattr(leaderboard.Reference, "trained", trained)
    options = Namespace(
        pictures=tmp_path, python="python", image_size=64, output=tmp_path,
        tune_epochs=1, tune_pictures=2, tune_answers=2,
    )  # fmt: skip
    found = leaderboard.tune(options)
    assert (found["lr"], rates) == (4e-3, [8e-3, 4e-3, 16e-3, 2e-3])
    assert json.loads((tmp_path / "tried/fp32_0.json").read_text())["words"][-2:] == ["--workers", "0"]


@pytest.mark.parametrize("program", [timm_progressive, leaderboard])
def test_a_measurement_needs_its_tuning(program, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "program", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "--tune")):
        program.main()
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "program", "--record", "--seeds", "1"])
    with pytest.raises(SystemExit):
        program.main()
