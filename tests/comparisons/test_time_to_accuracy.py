"""Time to the same top-1: commands and output of other training programs, and claims."""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import pytest
from benchmarks import in_turn, peers_tuning, record, time_to_accuracy
from benchmarks.arms import SAME_PACE
from benchmarks.peers_training import Timm, link_folders, once, seconds_of, span_of, top1_of
from benchmarks.peers_tuning import beyond_ends, tuned_timm
from PIL import Image
from tests.messages import mentioning

from efficientnetv2.data.dataset import load_dataset

# Two epochs of 37 updates as timm 1.0.31 logs them.
LOG = """
Train: 0 [   0/37 (  3%)]  Loss: 2.30 (2.30)  Time: 1.500s,   42.67/s  (1.500s,   42.67/s)  LR: 1.000e-05  Data: 0.1
Train: 0 [  36/37 (100%)]  Loss: 2.10 (2.20)  Time: 0.500s,  128.00/s  (0.600s,  106.67/s)  LR: 1.000e-03  Data: 0.1
Skipping eval and checkpointing
Train: 1 [   0/37 (  3%)]  Loss: 2.10 (2.10)  Time: 0.900s,   71.11/s  (0.900s,   71.11/s)  LR: 1.000e-03  Data: 0.1
Train: 1 [  36/37 (100%)]  Loss: 1.90 (2.00)  Time: 0.400s,  160.00/s  (0.500s,  128.00/s)  LR: 1.000e-05  Data: 0.1
"""


def test_seconds_are_epoch_means_times_updates():
    assert seconds_of(LOG) == pytest.approx(37 * 0.6 + 37 * 0.5)


def test_span_is_from_the_beginning_of_the_first_update_to_the_end_of_the_last():
    lines = [(100.0 + number, line) for number, line in enumerate(LOG.splitlines())]
    assert span_of(lines) == (101.0 - 1.5, 105.0)


def test_top1_is_the_fraction_in_the_last_line(tmp_path):
    file = tmp_path / "summary.csv"
    file.write_text("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2,2,40,90,0.1\n1,1,1,67.25,95,0.0\n")
    assert top1_of(file) == 0.6725


def test_later_part_replaces_an_earlier_part(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    side = Timm(tmp_path / "train.py", 64, ("--channels-last",)).with_part("batch", ["-b", "64"])
    args = side.with_part("batch", ["-b", "32"]).command(tmp_path, epochs=3, seed=5, output=tmp_path)
    assert args[-2:] == ["-b", "32"]
    assert "64" not in args[args.index("--output") :]
    options = {name: args[args.index(name) + 1] for name in ("--epochs", "--seed", "--num-classes", "--val-interval")}
    assert options == {"--epochs": "3", "--seed": "5", "--num-classes": "1", "--val-interval": "3"}


def test_saved_run_is_not_repeated_and_only_for_the_same_options(tmp_path):
    results = iter([{"top1": 0.5}])
    file = tmp_path / "deep" / "one.json"
    options = {"epochs": 2, "words": ["--lr", "0.1"]}
    for _ in range(2):
        assert once(file, lambda: next(results), options) == {"top1": 0.5, **options}
    with pytest.raises(SystemExit, match=mentioning("one.json", "--lr", "0.1", "0.2")):
        once(file, lambda: next(results), {"epochs": 2, "words": ["--lr", "0.2"]})
    file.write_text('{"top1": 0.4}')
    assert once(file, lambda: next(results), options) == {"top1": 0.4}, "saved by an older version"


@pytest.fixture
def options(tmp_path):
    """Options for two short seeds with a train.py of timm."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    script = tmp_path / "train.py"
    script.write_text("")
    return Namespace(
        pictures=tmp_path, script=script, image_size=64, epochs=2, tune_epochs=4, seeds=2, output=tmp_path / "out",
        lengths=(1, 2), record=False, values="tuned", second_processor=False,
    )  # fmt: skip


CHOSEN = {
    name: {
        "quick": ["-j", "1"],
        "parts": {
            "schedule": ["--sched", "cosine", "--warmup-epochs", "5"],
            "optimizer": ["--opt", "sgd", "--lr", "0.1"],
            **more,
        },
    }
    for name, more in (("timm", {}), ("timm_progressive", {"sizes": ["--train-img-sizes", "32", "64"]}))
}


@pytest.mark.parametrize("number", [0, 1])
def test_saved_run_has_the_same_options_and_script(options, number):
    def saved():
        run = time_to_accuracy.peers_of(options, CHOSEN)[number].run(2, 0)
        return once(run.file, lambda: {"top1": 0.5}, run.conditions)

    first = saved()
    assert (first["epochs"], first["seed"]) == (2, 0)
    assert first["timm"] == version("timm")
    assert first["words"][first["words"].index("--warmup-epochs") + 1] == "2", "half of the tuned five, rounded"
    assert ("--train-img-sizes" in first["words"]) == (number == 0)
    assert saved() == first
    options.script.write_text("# another version")
    with pytest.raises(SystemExit, match=mentioning("_2_0.json", "script_sha256")):
        saved()
    options.script.write_text("")
    options.image_size = 96
    with pytest.raises(SystemExit, match=mentioning("_2_0.json", "96")):
        saved()


def test_timm_has_the_values_of_quick(options):
    """The tuned values of the same options are replaced, and sizes and workers are kept."""
    options.values = "quick"
    progressive, constant = (side.run(2, 0) for side in time_to_accuracy.peers_of(options, CHOSEN))
    for run, sizes in ((progressive, ["--train-img-sizes", "32", "64"]), (constant, [])):
        assert run.file.parent.parent.name == "values_of_quick"
        words = run.conditions["words"]
        text = f"{' '.join(words)} "
        names = [word for word in words if word.startswith("-")]
        assert len(names) == len(set(names))
        assert ("--train-img-sizes" in words) == bool(sizes)
        for expected in (
            "-j 1", "--opt adamw", "fused=True", "--lr 0.002", "--opt-betas 0.9 0.99", "--weight-decay 0.05",
            "--clip-grad 1.0", "--warmup-epochs 1", "-b 32", "--head-init-scale 0", "--color-jitter 0.0",
            "--drop 0.1", "--smoothing 0.1", "--model-ema-decay 0.998", " ".join(sizes),
        ):  # fmt: skip
            assert f"{expected} " in text


def test_linked_folders_have_the_same_images(tmp_path):
    for number, name in itertools.product(range(3), "ab"):
        path = tmp_path / "set" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, ord(name), 0)).save(path)
    dataset = load_dataset(str(tmp_path / "set"))
    for _ in range(2):  # existing links are unchanged
        out = link_folders(dataset, np.array([0, 3]), np.array([1, 4, 5]), tmp_path / "out")
    found = {
        split: sorted((path.parent.name, Image.open(path).getpixel((0, 0))[0]) for path in (out / split).rglob("*.png"))
        for split in ("train", "val")
    }
    assert found == {"train": [("a", 0), ("b", 0)], "val": [("a", 1), ("b", 1), ("b", 2)]}


def words_of(side):
    """Arguments of all parts."""
    return [word for part in side.parts.values() for word in part]


def test_tuning_keeps_the_best_of_each_stage():
    """A score that counts correct options finds all of them with one trial per candidate."""
    best_options = {"rmsproptf": 4, "0.024": 2, "2 warm": 1, "rand-m6-mstd0.5": 1, "32": 1}
    trials = []

    def score(side):
        args = words_of(side)
        warmup = "2 warm" if args[args.index("--warmup-epochs") + 1] == "2" else ""
        return sum(best_options.get(arg, 0) for arg in [*args, warmup])

    def top1(stage, sides):
        trials.extend((stage, label) for label in sides)
        return {label: score(side) for label, side in sides.items()}

    best, side = tuned_timm(Timm("train.py", 64), top1)
    assert best == 9
    assert side.parts["optimizer"][-2:] == ("--lr", "0.024")
    assert side.parts["schedule"] == ("--sched", "cosine", "--warmup-epochs", "2")
    assert side.parts["batch"] == ("-b", "32")
    # Twice the rate is the best of three, so four times is tried too.
    assert len(trials) == len(set(trials)) == 3 + 2 + 1 + 2 + 3 + 1


@pytest.mark.parametrize(
    ("best", "expected"), [(0.5, []), (0.25, [0.125]), (0.06, [0.125, 0.0625, 0.03125]), (1.1, [2.0])]
)
def test_rates_are_extended_while_the_best_is_at_an_end(best, expected):
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(math.log(rate / best))

    found = beyond_ends({rate: score(rate) for rate in (0.25, 0.5, 1.0)}, score)
    assert tried[3:] == expected
    assert min(found) < max(found, key=found.get) < max(found)


def test_tuning_returns_to_the_better_candidate():
    best, side = tuned_timm(
        Timm("train.py", 64), lambda stage, sides: {label: float(label == "adamw") for label in sides}
    )
    assert best == 1
    assert side.parts["optimizer"] == (
        "--opt", "adamw", "--opt-kwargs", "fused=True", "--weight-decay", "0.05", "--lr", "0.003",
    )  # fmt: skip
    assert side.parts["batch"] == ("-b", "64")


def test_size_schedule_ends_at_the_image_size():
    parsed = peers_tuning.size_schedule("three from half, in order", 128)
    assert parsed[:4] == ("--train-img-sizes", "64", "96", "128")
    assert parsed[parsed.index("--train-size-schedule") + 1] == "progressive"
    for label in peers_tuning.SIZES:
        words = peers_tuning.size_schedule(label, 128)
        sizes = [int(word) for word in words[1 : words.index("--train-size-schedule")]]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 128


FIRST, IN_ORDER, FIVE, LATE = peers_tuning.SIZES


@pytest.mark.parametrize(
    ("rows", "sizes", "compiled"),
    [
        ({IN_ORDER: (0.495, 5), FIVE: (0.5, 7), LATE: (0.4, 1)}, IN_ORDER, None),  # faster with half a point less
        ({IN_ORDER: (0.48, 5), FIVE: (0.5, 7), LATE: (0.4, 1)}, FIVE, None),  # two points less are too many
        ({IN_ORDER: (0.48, 5), FIVE: (0.5, 7), LATE: (0.4, 1), "not compiled": (0.5, 8)}, FIVE, True),
        ({IN_ORDER: (0.48, 5), FIVE: (0.5, 7), LATE: (0.4, 1), "not compiled": (0.5, 6)}, FIVE, False),
    ],
)
def test_progressive_schedule_is_tuned_from_the_constant_size(rows, sizes, compiled, monkeypatch):
    """First the learning rate, then sizes and compilation by time. The first sizes take 9 s."""
    quick = ("-j", "0") if compiled is None else ("-j", "0", "--torchcompile")
    timm = Timm("train.py", 128, quick, {"optimizer": ("--opt", "sgd", "--lr", "0.4")})
    rates = []

    def tried_run(options, name, side, seed=0):
        if name.startswith("progressive rate"):
            rates.append(peers_tuning.rate_of(side))
            return {"top1": 0.5 - abs(rates[-1] - 0.1), "train_s": 9}
        assert peers_tuning.rate_of(side) == 0.1
        return dict(zip(("top1", "train_s"), rows[name.removeprefix("sizes ")], strict=True))

    monkeypatch.setattr(peers_tuning, "tried_run", tried_run)
    found = peers_tuning.tune_schedule(Namespace(image_size=128), timm)
    assert found["sizes"] == sizes
    assert found["parts"]["sizes"] == peers_tuning.size_schedule(sizes, 128)
    assert ("--torchcompile" in found["quick"]) == bool(compiled)
    assert found["parts"]["optimizer"][-1] == "0.1"
    assert set(rates) == {0.4, 0.2, 0.1, 0.05}


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    """Options of tuning, and calls of trials by learning rate, clipping and seed. 0.001 is the best rate."""
    script = tmp_path / "train.py"
    script.write_text("")
    options = Namespace(script=script, image_size=128, output=tmp_path / "out", tune_updates=1)
    options = Namespace(**vars(options), **dict.fromkeys(("tune_epochs", "tune_pictures", "tune_answers"), 1))
    options.output.mkdir()
    calls = []

    def tried_run(options, name, side, seed=0):
        rate, clipped = peers_tuning.rate_of(side), "--clip-grad" in words_of(side)
        calls.append((rate, clipped, seed))
        # The first seed prefers another rate.
        lower = abs(rate - (0.012 if seed == 0 else 0.001)) + 0.01 * clipped + 0.1 * ("adamw" not in words_of(side))
        return {"top1": 0.5 - lower, "train_s": 1}

    monkeypatch.setattr(peers_tuning, "link_tuning_images", lambda options: None)
    monkeypatch.setattr(peers_tuning, "quickest", lambda options: {"quick": ("-j", "0"), "on": "here"})
    monkeypatch.setattr(peers_tuning, "tried_run", tried_run)
    return options, calls


def test_two_more_seeds_choose_the_learning_rate_and_clipping(tuning):
    options, calls = tuning
    peers_tuning.tune(options)
    stored = json.loads((options.output / "tuned.json").read_text())
    assert stored["parts"]["parts"]["optimizer"][-1] == "0.012"
    assert peers_tuning.rate_of(peers_tuning.timm_of(stored["timm"], options)) == 0.003
    assert "clipping" not in stored["timm"]["parts"]
    assert [call for call in calls if call[2]] == [
        (0.012, False, 1), (0.012, False, 2), (0.003, False, 1), (0.003, False, 2), (0.003, True, 1), (0.003, True, 2),
    ]  # fmt: skip
    assert "sizes" in stored["timm_progressive"]["parts"]


def test_finished_stages_of_tuning_are_not_repeated(tuning, monkeypatch):
    options, calls = tuning

    def interrupted(options, timm):
        raise KeyboardInterrupt

    monkeypatch.setattr(peers_tuning, "tune_schedule", interrupted)
    for first in (True, False):
        with pytest.raises(KeyboardInterrupt):
            peers_tuning.tune(options)
        assert bool(calls) == first
        calls.clear()
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "timm_progressive", "--tune")):
        time_to_accuracy.tuned(options)
    options.script.write_text("# another version")
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "script_sha256")):
        peers_tuning.tune(options)


def test_another_processor_keeps_the_values_of_timm_and_finds_what_is_fastest_there(tuning, tmp_path):
    options, calls = tuning
    peers_tuning.tune(options)
    first = json.loads((options.output / "tuned.json").read_text())
    stored = {**first, "comment": "of the first"}
    for side in time_to_accuracy.PEERS:
        stored[side] = {**stored[side], "quick": ["-j", "2"]}
    file = tmp_path / "first.json"
    file.write_text(json.dumps(stored))
    (options.output / "tuned.json").unlink()
    calls.clear()
    peers_tuning.tune_speed(options, file, time_to_accuracy.PEERS)
    assert json.loads((options.output / "tuned.json").read_text()) == first
    assert not calls
    options.script.write_text("# another version")
    with pytest.raises(SystemExit, match=mentioning("first.json", "script_sha256")):
        peers_tuning.tune_speed(options, file, time_to_accuracy.PEERS)


def rows(top1s, train_s):
    """Rows of two seeds."""
    return [
        {"seed": seed, "top1": top1, "train_s": train_s, "hardware": "one", "versions": {"torch": "2"}}
        for seed, top1 in enumerate(top1s)
    ]


# ``quick`` needs 2 epochs for the top-1 of the progressive side, and 1 for that of the constant size.
THEIRS = {"timm_progressive": rows((0.55, 0.6), 810.0), "timm": rows((0.4, 0.4), 600.0)}
QUICK = {
    1.0: rows((0.5, 0.5), 100.0), 2.0: rows((0.6, 0.6), 200.0), 4.0: rows((0.8, 0.8), 400.0),
    9.0: rows((0.9, 0.9), 900.0),
}  # fmt: skip


def values_of(quick):
    return {
        name: (pytest.approx(claim.figure.value), claim.unit)
        for name, claim in time_to_accuracy.claims(THEIRS, quick).items()
    }


def test_claims_by_hand():
    assert values_of(QUICK) == {
        "time_to_timm_progressive_top1_speedup": (4.05, "ratio"),
        "time_to_timm_top1_speedup": (6.0, "ratio"),
        "same_minutes_top1_gain_over_timm_progressive": (80 - 57.5, "points"),
    }


def test_length_that_is_too_slow_or_never_reaches_the_target_has_no_claim():
    assert set(values_of({1.0: QUICK[1.0]})) == {
        "time_to_timm_top1_speedup", "same_minutes_top1_gain_over_timm_progressive",
    }  # fmt: skip
    assert set(values_of({9.0: QUICK[9.0]})) == {
        "time_to_timm_progressive_top1_speedup", "time_to_timm_top1_speedup",
    }  # fmt: skip


def test_measurement_is_recorded_and_earlier_claims_are_removed(options, tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    options.record = True
    other = {"of another script": {"value": 1}}
    (tmp_path / "summary.json").write_text(json.dumps(other))
    slow = {9.0: QUICK[9.0]}
    kept = {*other, *time_to_accuracy.claims(THEIRS, slow)}  # those of the first processor, beside the second
    for quick, options.second_processor, others in ((QUICK, False, other), (slow, False, other), (QUICK, True, kept)):
        suffix = "_second_processor" if options.second_processor else ""
        found = {name: {2: of} for name, of in THEIRS.items()} | {"efficientnetv2_b0": quick}
        monkeypatch.setattr(time_to_accuracy, "rows_of_sides", lambda *words, found=found: found)
        time_to_accuracy.measure(options, CHOSEN)
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert set(summary) == {*(name + suffix for name in time_to_accuracy.claims(THEIRS, quick)), *others}
    raw = json.loads((tmp_path / "time_to_accuracy.json").read_text())
    assert len(raw["timm"]) == len(raw["timm_progressive"]) == len(raw["quick"]["9.0"]) == 2


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("time_to_accuracy", ""),
        ("time_to_accuracy_values_of_quick", ""),
        ("time_to_accuracy_values_of_quick_second_processor", "_second_processor"),
    ],
)
def test_recorded_claims_follow_from_the_saved_runs(name, suffix):
    raw, summary = record.read(record.RESULTS / f"{name}.json"), record.read(record.SUMMARY)
    theirs = {name: raw[name] for name in raw.keys() - {"when", "tuned", "quick"}}
    theirs = {name: theirs[name] for name in sorted(theirs, key=lambda name: "progressive" not in name)}
    quick = {float(epochs): of for epochs, of in raw["quick"].items()}
    for runs in zip(*theirs.values(), *quick.values(), strict=True):
        in_turn.refuse_drift(runs, SAME_PACE)
    claims = time_to_accuracy.claims(theirs, quick)
    assert claims
    for name, claim in claims.items():
        assert summary[name + suffix] | asdict(claim.figure) == summary[name + suffix]
