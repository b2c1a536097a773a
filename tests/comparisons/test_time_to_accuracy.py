"""Time to the same top-1: commands and output of other training programs, and claims."""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from benchmarks import in_turn, record, time_to_accuracy
from benchmarks.arms import ratio, refuse_incomparable_times
from benchmarks.in_turn import Side
from benchmarks.peers_training import Reference, Timm, link_folders, once, seconds_of, top1_of
from benchmarks.peers_tuning import beyond_ends, tuned_timm
from benchmarks.reference_recipe import top1
from benchmarks.reference_recipe import trained as reference_trained
from PIL import Image
from tests.messages import mentioning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
        pictures=tmp_path, script=script, image_size=64, epochs=2, seeds=2, output=tmp_path / "out", pace_limit=1.1,
        ladder=(1, 2, 4), record=False, program="time_to_accuracy",
    )  # fmt: skip


def chosen(lr="0.1"):
    parts = {"batch": ["-b", "64"], "optimizer": ["--opt", "sgd", "--lr", lr]}
    return {"timm": {"quick": ["-j", "1"], "parts": parts}, "torchvision": {"lr": 0.1}}


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_saved_run_has_the_same_options_and_script(options, monkeypatch, name):
    def trained(self, images, *, epochs, seed):
        return {"top1": 0.5, "train_s": 1.0}

    monkeypatch.setattr(in_turn, "pace", lambda: 10.0)
    monkeypatch.setattr(Timm, "trained", trained)
    monkeypatch.setattr(Reference, "trained", trained)

    def row():
        [side] = time_to_accuracy.peers_of(options, chosen())[name]
        return side.run(2, 0)

    first = row()
    assert (first["epochs"], first["seed"], first["pace"]) == (2, 0, [10.0, 10.0])
    assert first["versions"]["torch"] == version("torch"), "needed to compare minutes"
    assert row() == first
    if name == "timm":
        assert first["timm"] == version("timm")
        options.script.write_text("# another version")
        with pytest.raises(SystemExit, match=mentioning("timm_2_0.json", "script_sha256")):
            row()
    options.image_size = 96
    with pytest.raises(SystemExit, match=mentioning("_2_0.json", "96")):
        row()


@pytest.mark.parametrize(("lr", "names"), [("0.4", ["timm", "timm_first_rate"]), ("0.1", ["timm"])])
def test_timm_is_also_run_at_its_initial_rate(options, lr, names):
    assert [side.name for side in time_to_accuracy.peers_of(options, chosen(lr))["timm"]] == names


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


def test_tuning_keeps_the_best_of_each_stage():
    """A score that counts correct options finds all of them with one trial per candidate."""
    best_options = {"rmsproptf": 4, "0.024": 2, "2 warm": 1, "rand-m6-mstd0.5": 1, "32": 1}
    trials = []

    def score(side):
        args = [arg for part in side.parts.values() for arg in part]
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


def side(name, top1, train_s, *, lengths=(2,), calls=None):
    """A side with top-1 and seconds by epochs and seed."""

    def run(epochs, seed):
        if calls is not None:
            calls.append((name, epochs, seed))
        return {
            "seed": seed, "top1": top1(epochs, seed), "train_s": train_s(epochs, seed), "hardware": "one",
            "versions": {"torch": "2"}, "pace": [10.0, 10.0], "file": f"{name}_{epochs}_{seed}.json",
        }  # fmt: skip

    return Side(name, run, lengths)


def compare(options, *, slower=1.0, calls=None):
    """The first rate of timm has the higher mean. ``quick`` needs 2 epochs for its top-1, and 1 for torchvision's."""
    peers = {
        "timm": [
            side("timm", lambda epochs, seed: (0.3, 0.5)[seed], lambda epochs, seed: 800.0, calls=calls),
            side("timm_first_rate", lambda epochs, seed: (0.55, 0.6)[seed], lambda epochs, seed: 810.0, calls=calls),
        ],
        "torchvision": [side("torchvision", lambda epochs, seed: 0.4, lambda epochs, seed: 600.0, calls=calls)],
    }
    quick = side(
        "quick", lambda epochs, seed: 0.4 + 0.1 * epochs, lambda epochs, seed: 100.0 * epochs * (slower if seed else 1),
        lengths=options.ladder, calls=calls,
    )  # fmt: skip
    return time_to_accuracy.compared(peers, quick, options)


def test_sides_alternate_from_the_length_of_the_first_seed(options):
    calls = []
    found, same = compare(options, calls=calls)
    assert [name for name, _, seed in calls if seed == 0][:3] == ["timm", "quick", "timm_first_rate"]
    odd = [(name, epochs) for name, epochs, seed in dict.fromkeys(calls) if seed == 1]
    assert odd == [
        ("quick", 7.6), ("quick", 2), ("quick", 1), ("torchvision", 2), ("timm_first_rate", 2), ("timm", 2),
    ]  # fmt: skip
    assert {name: one.epochs for name, one in found.items()} == {"timm": 2, "torchvision": 1}
    assert [row["top1"] for row in found["timm"].theirs] == [0.55, 0.6]
    assert [row["top1"] for row in found["timm"].lower[0]] == [0.3, 0.5]
    assert time_to_accuracy.mean_top1(same) == pytest.approx(1.16)


def test_claims_by_hand(options):
    found, same = compare(options)
    values = {
        name: (pytest.approx(claim.figure.value), claim.unit)
        for name, claim in time_to_accuracy.claims(found, same).items()
    }
    assert values == {
        "time_to_timm_top1_speedup": (4.05, "ratio"),
        "time_to_torchvision_top1_speedup": (6.0, "ratio"),
        "same_minutes_top1_gain_over_timm": (116 - 57.5, "points"),
    }


def test_side_that_is_too_slow_or_never_reaches_the_target_has_no_claim(options):
    options.ladder = (1,)
    found, same = compare(options, slower=1.4)
    assert list(time_to_accuracy.claims(found, same)) == ["time_to_torchvision_top1_speedup"]


def test_measurement_is_recorded_and_earlier_claims_are_removed(options, tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(time_to_accuracy, "our_side", lambda *words: None)
    options.record = True
    other = {"of another script": {"value": 1}}
    (tmp_path / "summary.json").write_text(json.dumps(other))
    torchvision, timm = (f"time_to_{name}_top1_speedup" for name in ("torchvision", "timm"))
    for ladder, claimed in ((options.ladder, [timm, torchvision]), ((1,), [torchvision])):
        options.ladder = ladder
        both = compare(options, slower=1.4)
        with monkeypatch.context() as patch:
            patch.setattr(time_to_accuracy, "compared", lambda *words, both=both: both)
            time_to_accuracy.measure({}, options, chosen())
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert set(summary) == {*claimed, *other}
    raw = json.loads((tmp_path / "time_to_accuracy.json").read_text())
    assert len(raw["timm"]) == len(raw["timm_lower"]) == len(raw["ours"]["1"]) == 2


def test_recorded_speedups_follow_from_the_saved_runs():
    """By seed, on one type of machine. The machine speed differs between the runs of timm, so timm has no claim."""
    raw = json.loads((record.RESULTS / "time_to_accuracy.json").read_text())
    summary = json.loads(record.SUMMARY.read_text())
    theirs, mine = raw["torchvision"], raw["ours"]["2"]
    for pair in zip(theirs, mine, strict=True):
        refuse_incomparable_times(pair)
    claim = summary["time_to_torchvision_top1_speedup"]
    assert claim["value"] == pytest.approx(ratio(in_turn.seconds(theirs), in_turn.seconds(mine)).value)
    assert in_turn.mean_top1(mine) >= in_turn.mean_top1(theirs)
    assert in_turn.mean_top1(raw["timm"]) >= in_turn.mean_top1(raw["timm_lower"])
    assert not {"time_to_timm_top1_speedup", "same_minutes_top1_gain_over_timm"} & set(summary)


def test_reference_learns_a_separable_problem(monkeypatch):
    """Dark and light images, one convolution, soft labels as with mixing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    monkeypatch.setattr("benchmarks.reference_recipe.timm.create_model", lambda name, num_classes: model)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 8, 8) * 0.1 + labels[:, None, None, None] * 2.0 - 1
    batches = DataLoader(TensorDataset(images, nn.functional.one_hot(labels, 2).float()), 16)
    options = Namespace(epochs=40, lr=0.2, bf16=False)
    average, seconds = reference_trained(batches, 2, options)
    assert seconds > 0
    assert top1(average, DataLoader(TensorDataset(images, labels), 16)) == 1.0
    assert top1(average, DataLoader(TensorDataset(images, 1 - labels), 16)) == 0.0
