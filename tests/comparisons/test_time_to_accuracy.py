"""Time to the same top-1: commands and output of other training programs, and claims."""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from benchmarks import record, time_to_accuracy
from benchmarks.arms import Paired
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Reference, Timm, link_folders, once, seconds_of, top1_of
from benchmarks.peers_tuning import beyond_ends, tuned_timm
from benchmarks.reference_recipe import top1
from benchmarks.reference_recipe import trained as reference_trained
from benchmarks.time_to_accuracy import Claim, changed_pace, claims, claims_of, climbed
from PIL import Image
from tests.messages import mentioning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from efficientnetv2.data.config import DataConfig
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


@pytest.mark.parametrize("side", ["timm", "torchvision"])
def test_shorter_run_is_not_recorded_as_the_full_length(tmp_path, monkeypatch, side):
    num_epochs = []

    def trained(self, images, *, epochs, seed):
        num_epochs.append(epochs)
        return {"top1": 0.5, "train_s": 1.0}

    monkeypatch.setattr(Timm, "trained", trained)
    monkeypatch.setattr(Reference, "trained", trained)
    (tmp_path / "train" / "a").mkdir(parents=True)
    options = Namespace(
        pictures=tmp_path, script=tmp_path / "train.py", image_size=64, epochs=2, seeds=1, output=tmp_path / "out"
    )
    parts = {"optimizer": ["--opt", "adamw", "--lr", "0.003"]}
    chosen = {"timm": {"quick": ["-j", "1"], "parts": parts}, "torchvision": {"lr": 0.1}}
    ((row,),) = time_to_accuracy.peers(side, options, chosen)
    assert (row["epochs"], row["seed"], num_epochs) == (2, 0, [2])
    assert row["versions"]["torch"] == version("torch"), "needed to compare minutes"
    options.epochs = 10
    with pytest.raises(SystemExit, match=mentioning("_0.json", "2", "10")):
        time_to_accuracy.peers(side, options, chosen)
    options.epochs, chosen["torchvision"]["lr"], options.image_size = 2, 0.2, 96
    with pytest.raises(SystemExit, match=mentioning("_0.json", "96")):
        time_to_accuracy.peers(side, options, chosen)


@pytest.mark.parametrize("tuned", [0.4, 0.6])
def test_timm_is_also_run_at_its_initial_rate(tuned, tmp_path, monkeypatch):
    """The tuned rate may be worse, and the better one counts."""
    rates = []

    def trained(self, images, *, epochs, seed):
        rates.append(self.parts["optimizer"][-1])
        return {"top1": {"0.4": tuned, "0.1": 0.5}[rates[-1]], "train_s": 1.0}

    monkeypatch.setattr(Timm, "trained", trained)
    (tmp_path / "train" / "a").mkdir(parents=True)
    options = Namespace(
        pictures=tmp_path, script=tmp_path / "train.py", image_size=64, epochs=2, seeds=2, output=tmp_path / "out"
    )
    parts = {"batch": ["-b", "64"], "optimizer": ["--opt", "sgd", "--lr", "0.4"]}
    found = time_to_accuracy.peers("timm", options, {"timm": {"quick": [], "parts": parts}})
    assert ([len(rows) for rows in found], rates) == ([2, 2], ["0.4", "0.4", "0.1", "0.1"])
    assert found[-1][0]["top1"] == max(tuned, 0.5)
    args = json.loads((tmp_path / "out/sides/timm_first_rate_0.json").read_text())["words"]
    assert args[-8:] == ["-b", "64", "--opt", "sgd", "--weight-decay", "5e-5", "--lr", "0.1"]


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


def rows(*pairs):
    return [
        {"seed": seed, "top1": top1, "train_s": seconds, "hardware": "one"}
        for seed, (top1, seconds) in enumerate(pairs)
    ]


def test_epochs_increase_until_the_mean_is_reached(tmp_path, monkeypatch):
    """0.5, 0.6, 0.7 after 2, 3, 4 epochs: 0.62 takes 4, and 0.5 is too low to be repeated."""
    calls = []

    def ours(runs, epochs, px):
        calls.append((epochs, runs.seeds))
        return rows((0.3 + epochs / 10, 60.0 * epochs))

    monkeypatch.setattr(time_to_accuracy, "ours", ours)
    runs = Runs(DataConfig("x"), 3, "none", "cpu", tmp_path, print)
    assert list(climbed(runs, 128, 0.62)) == [3, 4]
    assert calls == [(2, 1), (3, 1), (3, 3), (4, 1), (4, 3)]
    assert list(climbed(runs, 128, 2.0)) == [10]  # all seeds of the longest


def test_claims_by_hand():
    peers = {"timm": rows((0.66, 800), (0.68, 1000)), "torchvision": rows((0.40, 600), (0.42, 600))}
    by_epochs = {2: rows((0.5, 100), (0.5, 100)), 4: rows((0.69, 200), (0.67, 250))}
    found = claims(peers, by_epochs, rows((0.80, 800), (0.81, 1000)))
    values = {name: (pytest.approx(claim.figure.value), claim.unit) for name, claim in found.items()}
    assert values == {
        "time_to_timm_top1_speedup": (4.0, "ratio"),
        "time_to_torchvision_top1_speedup": (6.0, "ratio"),
        "same_minutes_top1_gain_over_timm": (13.5, "points"),
    }
    too_short = {2: by_epochs[2]}
    assert "time_to_timm_top1_speedup" not in claims(peers, too_short, rows((0.5, 1), (0.5, 1)))


@pytest.mark.parametrize(
    ("saved", "expected"), [((), 19.1), ((3, 18.2), 18.2), ((17.5, 18.2), 18.2), ((17, 19.2), 19.1)]
)
def test_saved_run_of_a_slightly_shorter_length_is_reused(tmp_path, saved, expected):
    for epochs in saved:
        folder = tmp_path / f"ours-{epochs}-epochs_run_0"
        folder.mkdir()
        (folder / "measured.json").write_text(json.dumps({"epochs": epochs}))
    assert time_to_accuracy._within(tmp_path, 19.1) == expected


def test_minutes_on_different_hardware_give_no_claim():
    peers = {"timm": rows((0.66, 800), (0.68, 1000))}
    by_epochs = {4: rows((0.69, 200), (0.67, 250))}
    same = [row | {"hardware": "another"} for row in rows((0.80, 800), (0.81, 1000))]
    assert len(claims(peers, by_epochs, same)) == 2, "only top-1 is compared here"
    by_epochs[4][1]["hardware"] = "another"
    with pytest.raises(SystemExit, match=mentioning("1", "seed")):
        claims(peers, by_epochs, same)


def test_minutes_with_different_torch_versions_give_no_claim():
    """Runs of older versions without versions are compared."""
    peers = {"timm": rows((0.66, 800), (0.68, 1000))}
    by_epochs = {4: [row | {"versions": {"torch": "2.15.0"}} for row in rows((0.69, 200), (0.67, 250))]}
    same = rows((0.80, 800), (0.81, 1000))
    assert "time_to_timm_top1_speedup" in claims(peers, by_epochs, same)
    peers["timm"][1]["versions"] = {"torch": "2.14.0"}
    with pytest.raises(SystemExit, match=mentioning("1", "2.14.0", "2.15.0")):
        claims(peers, by_epochs, same)


@pytest.mark.parametrize(("seconds", "expected"), [((880, 1000, 1100), True), ((1100, 1000, 900), False)])
def test_sides_of_a_seed_with_different_paces_give_no_speedup(seconds, expected):
    """Ours slows down from seed to seed; peers with it, or against it."""
    peers = {"timm": rows(*((0.6, value) for value in seconds))}
    by_epochs = {4: rows((0.7, 180), (0.7, 200), (0.7, 220))}
    found = claims(peers, by_epochs, rows(*[(0.8, 1000)] * 3))
    assert ("time_to_timm_top1_speedup" in found) == expected
    assert ("With seed 0" in changed_pace(peers["timm"], by_epochs[4])) != expected


def test_paces_are_compared_on_one_kind_of_machine():
    """The second seed's machine is twice as fast for both sides."""
    peers, mine = rows((0.6, 1000), (0.6, 500)), rows((0.7, 200), (0.7, 110))
    for side in (peers, mine):
        side[1]["hardware"] = "another"
    assert not changed_pace(peers, mine)


def test_the_sides_take_turns(tmp_path, monkeypatch):
    """Seed by seed: timm at both rates, torchvision, then ours until it reaches the best of them."""
    runs_started = []

    def trained(self, images, *, epochs, seed):
        runs_started.append((type(self).__name__, seed))
        return {"top1": 0.6, "train_s": 1.0}

    def measured(runs, cell, seed):
        runs_started.append((cell.row, seed))
        return {"top1": {"ours 2 epochs": 0.5, "ours 3 epochs": 0.7}[cell.row]}

    monkeypatch.setattr(Timm, "trained", trained)
    monkeypatch.setattr(Reference, "trained", trained)
    monkeypatch.setattr(time_to_accuracy, "measured", measured)
    (tmp_path / "train" / "a").mkdir(parents=True)
    options = Namespace(
        pictures=tmp_path, script=tmp_path / "train.py", image_size=64, epochs=2, seeds=2, output=tmp_path / "out"
    )
    parts = {"optimizer": ["--opt", "sgd", "--lr", "0.4"]}
    chosen = {"timm": {"quick": ["-j", "1"], "parts": parts}, "torchvision": {"lr": 0.1}}
    runs = Runs(DataConfig("x"), 2, "none", "cpu", tmp_path, print)
    time_to_accuracy.take_turns(("timm", "torchvision"), options, chosen, runs)
    of_a_seed = ["Timm", "Timm", "Reference", "ours 2 epochs", "ours 3 epochs"]
    assert runs_started == [(who, seed) for seed in range(2) for who in of_a_seed]


def test_recorded_minutes_are_comparable():
    raw = json.loads((record.RESULTS / "time_to_accuracy.json").read_text())
    summary = json.loads(record.SUMMARY.read_text())
    found = claims_of(raw)
    assert set(found) == {name for name in time_to_accuracy._CLAIMS if name in summary}
    for name, claim in found.items():
        assert summary[name]["value"] == pytest.approx(claim.figure.value)
    assert time_to_accuracy.mean_top1(raw["timm"]) >= time_to_accuracy.mean_top1(raw["timm_lower"])


def test_claim_that_is_no_longer_reached_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(time_to_accuracy.paper_page, "write", lambda: None)
    on_one = [{"hardware": "a machine", "versions": {"torch": "1"}}]
    claim = Claim(Paired(2.0, 1.0, 3.0, 3), "ratio", on_one)
    other = {"of another script": {"value": 1}}
    (tmp_path / "summary.json").write_text(json.dumps(other))
    both = {
        "time_to_timm_top1_speedup": claim,
        "time_to_torchvision_top1_speedup": replace(claim, rows=[*on_one, {"hardware": "another"}]),
    }
    raw = {"timm": [{}] * 3}
    time_to_accuracy._record(both, raw)
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["time_to_timm_top1_speedup"]["hardware"] == "a machine", "the hardware of its own runs"
    assert saved["time_to_timm_top1_speedup"]["versions"]["torch"] == "1"
    assert saved["time_to_torchvision_top1_speedup"]["hardware"] == "a machine and another"
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {*both, *other}
    time_to_accuracy._record({"time_to_torchvision_top1_speedup": claim}, raw)
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {
        "time_to_torchvision_top1_speedup", *other,
    }  # fmt: skip


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
