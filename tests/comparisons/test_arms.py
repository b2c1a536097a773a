"""Paired comparisons of runs: statistics by hand and by scipy, and checks of saved results."""

import json
import sys
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import arms, record
from benchmarks.arms import by_size, gain, measured, ratio, rows_of, write_pictures
from benchmarks.paper.runs import Cell, Runs
from scipy import stats
from tests.conftest import paint
from tests.messages import mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    """40 train and 20 val images, half of them of class a."""
    from PIL import Image

    for number in range(60):
        folder = tmp_path / "set" / ("train" if number < 40 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return load_dataset(str(tmp_path / "set"))


def test_gain_is_a_paired_t_test():
    first, second = [71.0, 74.0, 72.5, 70.0], [70.0, 71.5, 72.0, 70.5]
    found = gain(first, second)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(0.875)
    assert found.n == 4


def test_ratio_is_symmetric():
    first, second = [100.0, 120.0, 90.0], [50.0, 80.0, 60.0]
    found, inverse = ratio(first, second), ratio(second, first)
    assert found.value == pytest.approx((2 * 1.5 * 1.5) ** (1 / 3))
    assert (found.value, found.low) == pytest.approx((1 / inverse.value, 1 / inverse.high))


def test_one_seed_has_no_interval():
    found = ratio([3.0], [2.0])
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1.5, 1.5, 1.5, 1))


def test_sample_keeps_class_fractions_and_depends_on_the_seed(dataset):
    samples = [rows_of(dataset, "train", 10, seed) for seed in range(3)]
    for rows in samples:
        assert len(set(rows)) == 10
        assert (dataset.labels[rows] == 0).sum() == 5
        assert set(dataset.split[rows]) == {"train"}
    assert len({tuple(rows) for rows in samples}) == 3
    assert rows_of(dataset, "train", 10, 0).tolist() == samples[0].tolist()
    assert len(rows_of(dataset, "val", None, 0)) == len(rows_of(dataset, "val", 500, 0)) == 20


def test_written_sample_is_read_back_as_train_and_val(dataset, tmp_path):
    train, val = rows_of(dataset, "train", 8, 0), rows_of(dataset, "train", None, 0)[-4:]
    train = np.setdiff1d(train, val)
    loaded = load_dataset(str(write_pictures(tmp_path / "out" / "part.csv", dataset, train, val)))
    assert (loaded.split == "train").sum() == len(train)
    assert (loaded.split == "val").sum() == 4
    assert loaded.class_names == dataset.class_names
    table = pd.read_csv(tmp_path / "out" / "part.csv")
    assert all((tmp_path / "out" / path).exists() for path in table["path"])


def test_run_is_measured_once_with_the_load_of_other_processes(tmp_path, monkeypatch):
    calls = []

    def report(self, cell, seed):
        calls.append(seed)
        self.folder(cell, seed).mkdir(parents=True)
        (self.folder(cell, seed) / "metrics.jsonl").write_text("")
        return dict.fromkeys(("seed", "top1", "macro_f1", "epochs", "train_s", "wall_s", "linear_probe_top1"), 1.0)

    monkeypatch.setattr(Runs, "report", report)
    runs, cell = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print), Cell("a", "b", "quick", None, ())
    first = measured(runs, cell, 3)
    assert measured(runs, cell, 3) == first
    assert calls == [3]
    assert first["others_cores"] >= 0
    assert (first["hardware"], first["versions"]["torch"]) == (record.hardware(), version("torch"))
    assert json.loads((tmp_path / "a_b_3" / "measured.json").read_text()) == first


def test_results_of_another_config_or_of_other_images_are_rejected(tmp_path):
    table = tmp_path / "a" / "pictures.csv"
    table.parent.mkdir()
    table.write_text("path,label\nx/1.png,a\n")
    runs = Runs(DataConfig(str(table)), 1, "none", "cpu", tmp_path, print)
    cell = Cell("a", "b", "quick", None, ("epochs=3",))
    folder = runs.folder(cell, 0)
    folder.mkdir()
    (folder / "measured.json").write_text(json.dumps({"top1": 0.5, "asked": runs.config(cell)}))
    assert measured(runs, cell, 0)["top1"] == 0.5
    moved = tmp_path / "b" / "pictures.csv"
    moved.parent.mkdir()
    moved.write_text("path,label\n../elsewhere/1.png,a\n")
    assert measured(replace(runs, source=DataConfig(str(moved))), cell, 0)["top1"] == 0.5
    with pytest.raises(InputError, match=mentioning("a_b_0", "epochs=3", "epochs=1")):
        measured(runs, replace(cell, settings=("epochs=1",)), 0)
    moved.write_text("path,label\n../elsewhere/2.png,a\n")
    with pytest.raises(InputError, match=mentioning("a_b_0", "pictures")):
        measured(replace(runs, source=DataConfig(str(moved))), cell, 0)
    (folder / "measured.json").write_text(json.dumps({"top1": 0.5}))  # saved by an older version
    assert measured(runs, replace(cell, settings=("epochs=1",)), 0)["top1"] == 0.5


def test_recipe_with_changed_defaults_is_rejected(tmp_path, monkeypatch):
    """Fields that were added later are not compared."""
    runs, cell = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print), Cell("a", "b", "quick", None, ())
    saved = json.loads(json.dumps(runs.config(cell)))
    del saved["says"]["optimizer"]["lr"]
    runs.refuse_another(cell, saved, tmp_path)
    changed = with_overrides(get_recipe("quick"), ["optimizer.lr=0.5", "ema_decay=0.5"])
    monkeypatch.setattr("benchmarks.paper.runs.get_recipe", lambda name: changed)
    with pytest.raises(InputError, match=mentioning("ema_decay", "0.5")):
        runs.refuse_another(cell, saved, tmp_path)


def test_weights_with_another_content_are_rejected(tmp_path):
    """The weights of every run have the same file name."""
    runs = {}
    for folder in ("first", "moved", "second"):
        file = tmp_path / folder / "model.safetensors"
        file.parent.mkdir()
        file.write_bytes(b"others" if folder == "second" else b"weights")
        runs[folder] = Runs(DataConfig("x"), 1, str(file), "cpu", tmp_path, print)
    cell = Cell("a", "b", "finetune", None, ())
    saved = runs["first"].config(cell)
    runs["moved"].refuse_another(cell, saved, tmp_path)
    with pytest.raises(InputError, match=mentioning("weights_digest")):
        runs["second"].refuse_another(cell, saved, tmp_path)


def test_gpu_and_cpu_results_are_not_interchangeable(tmp_path, monkeypatch):
    """Results saved before the device was recorded are not checked."""
    saved_runs, runs = (Runs(DataConfig("x"), 1, "none", device, tmp_path, print) for device in ("cpu", "auto"))
    cell = Cell("a", "b", "quick", None, ())
    saved = saved_runs.config(cell)
    runs.refuse_another(cell, saved, tmp_path)
    monkeypatch.setattr(
        "benchmarks.paper.runs.pick_device", lambda word: torch.device("cuda" if word == "auto" else word)
    )
    with pytest.raises(InputError, match=mentioning("device", "cpu", "cuda")):
        runs.refuse_another(cell, saved, tmp_path)
    del saved["device"]
    runs.refuse_another(cell, saved, tmp_path)


def test_runs_on_other_image_folders_are_rejected(class_folders, tmp_path):
    """The path of the folder does not matter. Older records have no digest and are not checked."""
    runs, cell = (
        Runs(DataConfig(str(class_folders)), 1, "none", "cpu", tmp_path, print),
        Cell("a", "b", "quick", None, ()),
    )
    saved = runs.config(cell)
    moved = class_folders.rename(tmp_path / "moved")
    replace(runs, source=DataConfig(str(moved))).refuse_another(cell, saved, tmp_path)
    fewer = tmp_path / "fewer"
    for name in ("grass", "water"):
        paint(fewer / name / "1.jpg", (90, 90, 90))
    other = replace(runs, source=DataConfig(str(fewer)))
    with pytest.raises(InputError, match=mentioning("pictures", "delete")):
        other.refuse_another(cell, saved, tmp_path)
    other.refuse_another(cell, saved | {"pictures": None}, tmp_path)
    cifar = replace(runs, source=DataConfig("cifar10"))
    with pytest.raises(InputError, match=mentioning("pictures", "cifar10", "cifar100")):
        replace(runs, source=DataConfig("cifar100")).refuse_another(cell, cifar.config(cell), tmp_path)


def write_reports(folder, *reports):
    """Run folders with these fields in their reports."""
    for number, changes in enumerate(reports):
        (folder / str(number)).mkdir()
        report = {"recipe": {"name": "quick", "seed": changes["seed"]}, "top1": 0.5, "wall_s": 9.0, "command": "c"}
        (folder / str(number) / "report.json").write_text(json.dumps(report | changes))
    return [str(folder / str(number)) for number in range(len(reports))]


def test_runs_are_recorded_with_their_versions_and_the_named_hardware(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "results/summary.json")
    (tmp_path / "results/mine/7").mkdir(parents=True)
    reports = [{"seed": seed, "versions": {"torch": torch_}} for seed, torch_ in enumerate(("2.1", "2.0"))]
    monkeypatch.setattr(sys, "argv", ["record", "mine", *write_reports(tmp_path, *reports), "--on", "a GPU"])
    record.main()
    claim = json.loads((tmp_path / "results/summary.json").read_text())["mine_top1"]
    assert (claim["hardware"], claim["versions"]["torch"]) == ("a GPU", "2.0 and 2.1")
    assert claim["versions"]["pillow"] == "not kept"
    assert sorted(path.name for path in (tmp_path / "results/mine").iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("other", "message"),
    [({"seed": 0}, "have one seed"), ({"seed": 1, "recipe": {"name": "finetune"}}, "has another recipe than")],
)
def test_runs_of_different_recipes_or_equal_seeds_are_rejected(other, message, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    args = ["record", "mine", *write_reports(tmp_path, {"seed": 0}, other), "--on", "x"]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit, match=message):
        record.main()
    assert not (tmp_path / "results").exists()


def run_at(throughput, **more):
    """A run of 1,000 images per size, with images/s by size."""
    sizes = [
        {"image_size": px, "images": 1000, "train_s": 1000 / images_per_s} for px, images_per_s in throughput.items()
    ]
    return {"seed": 3, "sizes": sizes} | more


def test_runs_at_a_changed_machine_speed_are_rejected(tmp_path):
    """75 images/s at 128 px, then 100 half an hour later. Sizes of only one run are not compared."""
    fixed = run_at({128: 75})
    with pytest.raises(SystemExit, match=mentioning("3", "75", "128", "100")):
        arms.refuse_other_pace(fixed, run_at({64: 170, 128: 100}), tmp_path / "arms")
    arms.refuse_other_pace(fixed, run_at({64: 300, 128: 82}), tmp_path)
    arms.refuse_other_pace(fixed, run_at({96: 170}), tmp_path)
    arms.refuse_other_pace(fixed, {"seed": 3}, tmp_path)


@pytest.mark.parametrize("regime", ["paper", "resnet50"])
def test_recorded_pairs_have_the_same_machine_speed(regime, tmp_path):
    found = record.read(record.RESULTS / f"progressive_{regime}.json")["arms"]
    for pair in zip(found["fixed"], found["progressive"], strict=True):
        arms.refuse_other_pace(*pair, tmp_path)


def test_tuning_of_another_regime_is_rejected(tmp_path):
    tuned = {"regime": {"epochs": 60, "image_size": 128, "shares": [[2, 1]]}}  # JSON has lists for tuples
    arms.refuse_other_regime(tmp_path / "tuned.json", tuned, {"epochs": 60, "image_size": 128, "shares": ((2, 1),)})
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "image_size", "128", "64")):
        arms.refuse_other_regime(tmp_path / "tuned.json", tuned, {"epochs": 60, "image_size": 64})


def test_times_on_different_hardware_are_not_comparable():
    run = {"seed": 2, "hardware": "2 cores, A"}
    arms.refuse_incomparable_times([run, run])
    with pytest.raises(SystemExit, match=mentioning("2", "4", "seed")):
        arms.refuse_incomparable_times([run, {"seed": 2, "hardware": "4 cores, B"}])


def test_times_with_different_torch_versions_are_not_comparable():
    """Other versions do not matter. Older records without versions are accepted."""
    run = {"seed": 2, "hardware": "2 cores, A"}
    older, newer, repaired = (
        run | {"versions": {"torch": torch_, "efficientnetv2": version}}
        for torch_, version in (("2.14.0", "0.1.0"), ("2.15.0", "0.1.0"), ("2.15.0", "0.1.1"))
    )
    arms.refuse_incomparable_times([run, newer, repaired])
    with pytest.raises(SystemExit, match=mentioning("2", "2.14.0", "2.15.0")):
        arms.refuse_incomparable_times([newer, run, older])


@pytest.mark.parametrize("regime", ["paper", "resnet50"])
def test_recorded_times_of_progressive_learning_are_comparable(regime):
    sides = record.read(record.RESULTS / f"progressive_{regime}.json")["arms"].values()
    for seed in zip(*sides, strict=True):
        arms.refuse_incomparable_times(seed)


def test_processor_has_family_model_and_vector_instructions():
    zen5 = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: sse avx512f\n"
    assert mentions(record.processor(zen5 * 2), "AMD", "EPYC", "26", "2", "AVX-512")
    assert mentions(record.processor(zen5.replace(" 26", " 25")), "AMD", "EPYC", "25", "2", "AVX-512")
    without = zen5.replace("avx512f", "avx2")
    assert mentions(record.processor(without), "AVX2")
    assert record.processor("model name\t: ARM\nflags\t: neon") == "ARM"
    assert record.processor("processor\t: 0\nBogoMIPS\t: 50\n") == "", "ARM on Linux"


def test_gpu_is_named_before_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert record.hardware(torch.device("cuda")) == f"A GPU, torch {torch.__version__}; {record.hardware()}"
    assert record.hardware(torch.device("cpu")) == record.hardware()


def test_images_and_seconds_are_summed_by_size():
    def row(px, images, seconds):
        return {"kind": "train", "image_size": px, "images_per_s": images / seconds, "train_s": seconds}

    history = [row(64, 320, 1.0), {"kind": "val"}, row(64, 160, 0.5), row(128, 320, 2.0), row(64, 32, 0.1)]
    assert by_size(history) == [
        {"image_size": 64, "images": 512, "train_s": 1.6},
        {"image_size": 128, "images": 320, "train_s": 2.0},
    ]


def test_load_of_other_processes_is_total_minus_own():
    """10 seconds, 15 core seconds in total, 9 of them own: load 0.6 cores."""
    before, after = arms._Busy(100.0, 50.0, 7.0), arms._Busy(110.0, 65.0, 16.0)
    assert before.others(after) == pytest.approx(0.6)
    assert before.others(arms._Busy(110.0, 55.0, 16.0)) == 0


def test_own_work_does_not_count_as_load():
    before = arms._Busy.now()
    started, until = time.monotonic(), time.process_time() + 0.3
    while time.process_time() < until:
        pass
    elapsed = time.monotonic() - started
    after = arms._Busy.now()
    assert after.own - before.own > 0.2
    assert after.wall - before.wall >= elapsed
