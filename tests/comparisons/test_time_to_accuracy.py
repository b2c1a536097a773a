"""Time to the same top-1: what others' programs are asked and how their answers are read; what is claimed."""

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


def test_seconds_are_the_means_of_whole_epochs_times_their_updates():
    assert seconds_of(LOG) == pytest.approx(37 * 0.6 + 37 * 0.5)


def test_top1_is_that_of_the_last_line_as_a_fraction(tmp_path):
    file = tmp_path / "summary.csv"
    file.write_text("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2,2,40,90,0.1\n1,1,1,67.25,95,0.0\n")
    assert top1_of(file) == 0.6725


def test_a_later_part_takes_the_earliers_place(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    side = Timm(tmp_path / "train.py", 64, ("--channels-last",)).with_part("batch", ["-b", "64"])
    words = side.with_part("batch", ["-b", "32"]).command(tmp_path, epochs=3, seed=5, output=tmp_path)
    assert words[-2:] == ["-b", "32"]
    assert "64" not in words[words.index("--output") :]
    asked = {name: words[words.index(name) + 1] for name in ("--epochs", "--seed", "--num-classes", "--val-interval")}
    assert asked == {"--epochs": "3", "--seed": "5", "--num-classes": "1", "--val-interval": "3"}


def test_a_run_that_is_kept_is_not_made_again_and_serves_what_it_was_asked_for_alone(tmp_path):
    made = iter([{"top1": 0.5}])
    file = tmp_path / "deep" / "one.json"
    words = {"epochs": 2, "words": ["--lr", "0.1"]}
    for _ in range(2):
        assert once(file, lambda: next(made), words) == {"top1": 0.5, **words}
    with pytest.raises(SystemExit, match=mentioning("one.json", "--lr", "0.1", "0.2")):
        once(file, lambda: next(made), {"epochs": 2, "words": ["--lr", "0.2"]})
    file.write_text('{"top1": 0.4}')
    assert once(file, lambda: next(made), words) == {"top1": 0.4}, "kept before that was told"


@pytest.mark.parametrize("side", ["timm", "torchvision"])
def test_a_shorter_try_is_not_recorded_as_the_whole(tmp_path, monkeypatch, side):
    asked = []

    def trained(self, pictures, *, epochs, seed):
        asked.append(epochs)
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
    assert (row["epochs"], row["seed"], asked) == (2, 0, [2])
    assert row["versions"]["torch"] == version("torch"), "by which its minutes are compared"
    options.epochs = 10
    with pytest.raises(SystemExit, match=mentioning("_0.json", "2", "10")):
        time_to_accuracy.peers(side, options, chosen)
    options.epochs, chosen["torchvision"]["lr"], options.image_size = 2, 0.2, 96
    with pytest.raises(SystemExit, match=mentioning("_0.json", "96")):
        time_to_accuracy.peers(side, options, chosen)


@pytest.mark.parametrize("tuned", [0.4, 0.6])
def test_timm_goes_the_whole_length_at_the_rate_that_tuning_began_with_too(tuned, tmp_path, monkeypatch):
    """A rate that single runs chose may be the worse one; the better one counts."""
    rates = []

    def trained(self, pictures, *, epochs, seed):
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
    words = json.loads((tmp_path / "out/sides/timm_first_rate_0.json").read_text())["words"]
    assert words[-8:] == ["-b", "64", "--opt", "sgd", "--weight-decay", "5e-5", "--lr", "0.1"]


def test_linked_folders_are_the_same_images(tmp_path):
    for number, name in itertools.product(range(3), "ab"):
        path = tmp_path / "set" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, ord(name), 0)).save(path)
    dataset = load_dataset(str(tmp_path / "set"))
    for _ in range(2):  # what is there is left
        out = link_folders(dataset, np.array([0, 3]), np.array([1, 4, 5]), tmp_path / "out")
    found = {
        split: sorted((path.parent.name, Image.open(path).getpixel((0, 0))[0]) for path in (out / split).rglob("*.png"))
        for split in ("train", "val")
    }
    assert found == {"train": [("a", 0), ("b", 0)], "val": [("a", 1), ("b", 1), ("b", 2)]}


def test_tuning_keeps_the_best_of_each_step():
    """A score that grows with what is right in it finds all of it, with one try per candidate."""
    right = {"rmsproptf": 4, "0.024": 2, "2 warm": 1, "rand-m6-mstd0.5": 1, "32": 1}
    tries = []

    def score(side):
        words = [word for part in side.parts.values() for word in part]
        warm = "2 warm" if words[words.index("--warmup-epochs") + 1] == "2" else ""
        return sum(right.get(word, 0) for word in [*words, warm])

    def top1(stage, sides):
        tries.extend((stage, label) for label in sides)
        return {label: score(side) for label, side in sides.items()}

    best, side = tuned_timm(Timm("train.py", 64), top1)
    assert best == 9
    assert side.parts["optimizer"][-2:] == ("--lr", "0.024")
    assert side.parts["schedule"] == ("--sched", "cosine", "--warmup-epochs", "2")
    assert side.parts["batch"] == ("-b", "32")
    # Twice the rate is the best of three, so four times it is tried too.
    assert len(tries) == len(set(tries)) == 3 + 2 + 1 + 2 + 3 + 1


@pytest.mark.parametrize(
    ("best", "asked"), [(0.5, []), (0.25, [0.125]), (0.06, [0.125, 0.0625, 0.03125]), (1.1, [2.0])]
)
def test_rates_go_on_as_long_as_the_best_lies_at_an_end(best, asked):
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(math.log(rate / best))

    found = beyond_ends({rate: score(rate) for rate in (0.25, 0.5, 1.0)}, score)
    assert tried[3:] == asked
    assert min(found) < max(found, key=found.get) < max(found)


def test_tuning_goes_back_to_what_was_better():
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


def test_we_climb_until_the_mean_is_theirs(tmp_path, monkeypatch):
    """0.5, 0.6, 0.7 after 2, 3, 4 epochs: 0.62 takes 4, and 0.5 is too far below it to be repeated."""
    asked = []

    def ours(runs, epochs, px):
        asked.append((epochs, runs.seeds))
        return rows((0.3 + epochs / 10, 60.0 * epochs))

    monkeypatch.setattr(time_to_accuracy, "ours", ours)
    runs = Runs(DataConfig("x"), 3, "none", "cpu", tmp_path, print)
    assert list(climbed(runs, 128, 0.62)) == [3, 4]
    assert asked == [(2, 1), (3, 1), (3, 3), (4, 1), (4, 3)]
    assert list(climbed(runs, 128, 2.0)) == [10]  # of the longest all seeds, however far it is


def test_the_claims_by_hand():
    theirs = {"timm": rows((0.66, 800), (0.68, 1000)), "torchvision": rows((0.40, 600), (0.42, 600))}
    ladder = {2: rows((0.5, 100), (0.5, 100)), 4: rows((0.69, 200), (0.67, 250))}
    found = claims(theirs, ladder, rows((0.80, 800), (0.81, 1000)))
    values = {name: (pytest.approx(one.figure.value), one.unit) for name, one in found.items()}
    assert values == {
        "time_to_timm_top1_speedup": (4.0, "ratio"),
        "time_to_torchvision_top1_speedup": (6.0, "ratio"),
        "same_minutes_top1_gain_over_timm": (13.5, "points"),
    }
    too_short = {2: ladder[2]}
    assert "time_to_timm_top1_speedup" not in claims(theirs, too_short, rows((0.5, 1), (0.5, 1)))


@pytest.mark.parametrize(("kept", "taken"), [((), 19.1), ((3, 18.2), 18.2), ((17.5, 18.2), 18.2), ((17, 19.2), 19.1)])
def test_a_length_a_little_shorter_that_was_run_is_not_run_again(tmp_path, kept, taken):
    for epochs in kept:
        folder = tmp_path / f"ours-{epochs}-epochs_run_0"
        folder.mkdir()
        (folder / "measured.json").write_text(json.dumps({"epochs": epochs}))
    assert time_to_accuracy._within(tmp_path, 19.1) == taken


def test_minutes_of_two_kinds_of_machine_make_no_claim():
    theirs = {"timm": rows((0.66, 800), (0.68, 1000))}
    ladder = {4: rows((0.69, 200), (0.67, 250))}
    same = [row | {"hardware": "another"} for row in rows((0.80, 800), (0.81, 1000))]
    assert len(claims(theirs, ladder, same)) == 2, "of these the top-1 alone is compared"
    ladder[4][1]["hardware"] = "another"
    with pytest.raises(SystemExit, match=mentioning("1", "seed")):
        claims(theirs, ladder, same)


def test_minutes_with_two_torches_make_no_claim():
    """Runs that were kept before versions were said are compared as they were."""
    theirs = {"timm": rows((0.66, 800), (0.68, 1000))}
    ladder = {4: [row | {"versions": {"torch": "2.15.0"}} for row in rows((0.69, 200), (0.67, 250))]}
    same = rows((0.80, 800), (0.81, 1000))
    assert "time_to_timm_top1_speedup" in claims(theirs, ladder, same)
    theirs["timm"][1]["versions"] = {"torch": "2.14.0"}
    with pytest.raises(SystemExit, match=mentioning("1", "2.14.0", "2.15.0")):
        claims(theirs, ladder, same)


@pytest.mark.parametrize(("seconds", "claimed"), [((880, 1000, 1100), True), ((1100, 1000, 900), False)])
def test_a_seed_whose_sides_met_another_pace_makes_no_speedup(seconds, claimed):
    """Ours slows down from seed to seed; theirs with it, or against it."""
    theirs = {"timm": rows(*((0.6, one) for one in seconds))}
    ladder = {4: rows((0.7, 180), (0.7, 200), (0.7, 220))}
    found = claims(theirs, ladder, rows(*[(0.8, 1000)] * 3))
    assert ("time_to_timm_top1_speedup" in found) == claimed
    assert ("With seed 0" in changed_pace(theirs["timm"], ladder[4])) != claimed


def test_paces_are_compared_on_one_kind_of_machine():
    """The second seed's machine is twice as fast for both sides."""
    theirs, mine = rows((0.6, 1000), (0.6, 500)), rows((0.7, 200), (0.7, 110))
    for side in (theirs, mine):
        side[1]["hardware"] = "another"
    assert not changed_pace(theirs, mine)


def test_the_sides_take_turns(tmp_path, monkeypatch):
    """Seed by seed: timm at both rates, torchvision, then ours until it reaches the best of them."""
    ran = []

    def trained(self, pictures, *, epochs, seed):
        ran.append((type(self).__name__, seed))
        return {"top1": 0.6, "train_s": 1.0}

    def measured(runs, cell, seed):
        ran.append((cell.row, seed))
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
    one_seed = ["Timm", "Timm", "Reference", "ours 2 epochs", "ours 3 epochs"]
    assert ran == [(who, seed) for seed in range(2) for who in one_seed]


def test_the_minutes_that_are_recorded_compare():
    raw = json.loads((record.RESULTS / "time_to_accuracy.json").read_text())
    summary = json.loads(record.SUMMARY.read_text())
    found = claims_of(raw)
    assert set(found) == {name for name in time_to_accuracy._CLAIMS if name in summary}
    for name, claim in found.items():
        assert summary[name]["value"] == pytest.approx(claim.figure.value)
    assert time_to_accuracy.mean_top1(raw["timm"]) >= time_to_accuracy.mean_top1(raw["timm_lower"])


def test_a_claim_that_is_not_reached_any_more_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(time_to_accuracy.paper_page, "write", lambda: None)
    on_one = [{"hardware": "a machine", "versions": {"torch": "1"}}]
    figure = Claim(Paired(2.0, 1.0, 3.0, 3), "ratio", on_one)
    other = {"of another script": {"value": 1}}
    (tmp_path / "summary.json").write_text(json.dumps(other))
    both = {
        "time_to_timm_top1_speedup": figure,
        "time_to_torchvision_top1_speedup": replace(figure, rows=[*on_one, {"hardware": "another"}]),
    }
    raw = {"timm": [{}] * 3}
    time_to_accuracy._record(both, raw)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["time_to_timm_top1_speedup"]["hardware"] == "a machine", "each of what its own runs were made on"
    assert kept["time_to_timm_top1_speedup"]["versions"]["torch"] == "1"
    assert kept["time_to_torchvision_top1_speedup"]["hardware"] == "a machine and another"
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {*both, *other}
    time_to_accuracy._record({"time_to_torchvision_top1_speedup": figure}, raw)
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {
        "time_to_torchvision_top1_speedup", *other,
    }  # fmt: skip


def test_the_reference_learns_what_can_be_learned(monkeypatch):
    """Dark and light, by a network of one convolution; soft labels as mixing gives them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    monkeypatch.setattr("benchmarks.reference_recipe.timm.create_model", lambda name, num_classes: network)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 8, 8) * 0.1 + labels[:, None, None, None] * 2.0 - 1
    batches = DataLoader(TensorDataset(images, nn.functional.one_hot(labels, 2).float()), 16)
    options = Namespace(epochs=40, lr=0.2, bf16=False)
    average, seconds = reference_trained(batches, 2, options)
    assert seconds > 0
    assert top1(average, DataLoader(TensorDataset(images, labels), 16)) == 1.0
    assert top1(average, DataLoader(TensorDataset(images, 1 - labels), 16)) == 0.0
