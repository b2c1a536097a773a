"""What is said of runs in pairs: by hand, by scipy, and by runs that are done once."""

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
def pictures(tmp_path):
    """40 of train and 20 of val, half of class a."""
    from PIL import Image

    for number in range(60):
        folder = tmp_path / "set" / ("train" if number < 40 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return load_dataset(str(tmp_path / "set"))


def test_a_gain_is_that_of_a_paired_t_test():
    ours, theirs = [71.0, 74.0, 72.5, 70.0], [70.0, 71.5, 72.0, 70.5]
    found = gain(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(0.875)
    assert found.n == 4


def test_a_ratio_is_the_same_whichever_side_is_on_top():
    theirs, ours = [100.0, 120.0, 90.0], [50.0, 80.0, 60.0]
    found, turned = ratio(theirs, ours), ratio(ours, theirs)
    assert found.value == pytest.approx((2 * 1.5 * 1.5) ** (1 / 3))
    assert (found.value, found.low) == pytest.approx((1 / turned.value, 1 / turned.high))


def test_one_seed_has_no_interval():
    found = ratio([3.0], [2.0])
    assert (found.value, found.low, found.high, found.n) == pytest.approx((1.5, 1.5, 1.5, 1))


def test_a_part_keeps_the_classes_shares_and_is_another_for_another_seed(pictures):
    drawn = [rows_of(pictures, "train", 10, seed) for seed in range(3)]
    for rows in drawn:
        assert len(set(rows)) == 10
        assert (pictures.labels[rows] == 0).sum() == 5
        assert set(pictures.split[rows]) == {"train"}
    assert len({tuple(rows) for rows in drawn}) == 3
    assert rows_of(pictures, "train", 10, 0).tolist() == drawn[0].tolist()
    assert len(rows_of(pictures, "val", None, 0)) == len(rows_of(pictures, "val", 500, 0)) == 20


def test_a_written_part_reads_back_as_what_learns_and_what_answers(pictures, tmp_path):
    learning, answering = rows_of(pictures, "train", 8, 0), rows_of(pictures, "train", None, 0)[-4:]
    learning = np.setdiff1d(learning, answering)
    dataset = load_dataset(str(write_pictures(tmp_path / "out" / "part.csv", pictures, learning, answering)))
    assert (dataset.split == "train").sum() == len(learning)
    assert (dataset.split == "val").sum() == 4
    assert dataset.class_names == pictures.class_names
    there = pd.read_csv(tmp_path / "out" / "part.csv")
    assert all((tmp_path / "out" / path).exists() for path in there["path"])


def test_a_run_is_measured_once_and_says_what_else_was_running(tmp_path, monkeypatch):
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


def test_figures_of_a_run_with_other_words_or_pictures_are_not_taken_for_this_one(tmp_path):
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
    with pytest.raises(InputError, match="pictures: "):
        measured(replace(runs, source=DataConfig(str(moved))), cell, 0)
    (folder / "measured.json").write_text(json.dumps({"top1": 0.5}))  # kept before it was said
    assert measured(runs, replace(cell, settings=("epochs=1",)), 0)["top1"] == 0.5


def test_a_recipe_that_says_something_else_by_now_is_another(tmp_path, monkeypatch):
    """Of a field that came later nothing was kept, and nothing is said."""
    runs, cell = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print), Cell("a", "b", "quick", None, ())
    kept = json.loads(json.dumps(runs.config(cell)))
    del kept["says"]["optimizer"]["lr"]
    runs.refuse_another(cell, kept, tmp_path)
    changed = with_overrides(get_recipe("quick"), ["optimizer.lr=0.5", "ema_decay=0.5"])
    monkeypatch.setattr("benchmarks.paper.runs.get_recipe", lambda name: changed)
    with pytest.raises(InputError, match=r"another kind: says\.ema_decay: \S+ there, 0\.5 here\. Delete"):
        runs.refuse_another(cell, kept, tmp_path)


def test_weights_of_one_name_that_hold_something_else_are_others(tmp_path):
    """Every run's weights are in a file of one name."""
    kinds = {}
    for place in ("first", "moved", "second"):
        file = tmp_path / place / "model.safetensors"
        file.parent.mkdir()
        file.write_bytes(b"others" if place == "second" else b"weights")
        kinds[place] = Runs(DataConfig("x"), 1, str(file), "cpu", tmp_path, print)
    cell = Cell("a", "b", "finetune", None, ())
    kept = kinds["first"].config(cell)
    kinds["moved"].refuse_another(cell, kept, tmp_path)
    with pytest.raises(InputError, match=mentioning("weights_digest")):
        kinds["second"].refuse_another(cell, kept, tmp_path)


def test_figures_of_a_run_on_a_gpu_are_not_taken_for_one_on_the_cpu(tmp_path, monkeypatch):
    """Nor the other way round; what was kept before the device was said is not checked."""
    there, here = (Runs(DataConfig("x"), 1, "none", device, tmp_path, print) for device in ("cpu", "auto"))
    cell = Cell("a", "b", "quick", None, ())
    kept = there.config(cell)
    here.refuse_another(cell, kept, tmp_path)
    monkeypatch.setattr(
        "benchmarks.paper.runs.pick_device", lambda word: torch.device("cuda" if word == "auto" else word)
    )
    with pytest.raises(InputError, match="another kind: device: cpu there, cuda here"):
        here.refuse_another(cell, kept, tmp_path)
    del kept["device"]
    here.refuse_another(cell, kept, tmp_path)


def test_runs_on_two_folders_of_pictures_are_told_apart(class_folders, tmp_path):
    """Wherever the folder lies; of a record made before folders were, nothing is known, so nothing is refused."""
    runs, cell = (
        Runs(DataConfig(str(class_folders)), 1, "none", "cpu", tmp_path, print),
        Cell("a", "b", "quick", None, ()),
    )
    kept = runs.config(cell)
    moved = class_folders.rename(tmp_path / "moved")
    replace(runs, source=DataConfig(str(moved))).refuse_another(cell, kept, tmp_path)
    fewer = tmp_path / "fewer"
    for name in ("grass", "water"):
        paint(fewer / name / "1.jpg", (90, 90, 90))
    other = replace(runs, source=DataConfig(str(fewer)))
    with pytest.raises(InputError, match=r"another kind: pictures: \w+ there, \w+ here"):
        other.refuse_another(cell, kept, tmp_path)
    other.refuse_another(cell, kept | {"pictures": None}, tmp_path)
    cifar = replace(runs, source=DataConfig("cifar10"))
    with pytest.raises(InputError, match="pictures: cifar10 there, cifar100 here"):
        replace(runs, source=DataConfig("cifar100")).refuse_another(cell, cifar.config(cell), tmp_path)


def runs_to_record(folder, *told):
    """Folders of runs whose reports say this."""
    for number, one in enumerate(told):
        (folder / str(number)).mkdir()
        report = {"recipe": {"name": "quick", "seed": one["seed"]}, "top1": 0.5, "wall_s": 9.0, "command": "c"}
        (folder / str(number) / "report.json").write_text(json.dumps(report | one))
    return [str(folder / str(number)) for number in range(len(told))]


def test_runs_are_recorded_with_their_own_versions_on_the_hardware_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "results/summary.json")
    (tmp_path / "results/mine/7").mkdir(parents=True)
    told = [{"seed": seed, "versions": {"torch": torch_}} for seed, torch_ in enumerate(("2.1", "2.0"))]
    monkeypatch.setattr(sys, "argv", ["record", "mine", *runs_to_record(tmp_path, *told), "--on", "a GPU"])
    record.main()
    claim = json.loads((tmp_path / "results/summary.json").read_text())["mine_top1"]
    assert (claim["hardware"], claim["versions"]["torch"]) == ("a GPU", "2.0 and 2.1")
    assert claim["versions"]["pillow"] == "not kept"
    assert sorted(path.name for path in (tmp_path / "results/mine").iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("other", "said"),
    [({"seed": 0}, "have one seed"), ({"seed": 1, "recipe": {"name": "finetune"}}, "has another recipe than")],
)
def test_runs_that_are_not_one_recipe_by_several_seeds_are_no_figure(other, said, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    words = ["record", "mine", *runs_to_record(tmp_path, {"seed": 0}, other), "--on", "x"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=said):
        record.main()
    assert not (tmp_path / "results").exists()


def at(px_and_pace, **more):
    """A run of 1,000 images at each size."""
    sizes = [{"image_size": px, "images": 1000, "train_s": 1000 / pace} for px, pace in px_and_pace.items()]
    return {"seed": 3, "sizes": sizes} | more


def test_minutes_of_a_machine_that_has_changed_its_pace_are_refused(tmp_path):
    """75 images/s at 128 px, and 100 half an hour later; at the smaller sizes only one of the two trained."""
    fixed = at({128: 75})
    with pytest.raises(SystemExit, match=mentioning("3", "75", "128", "100")):
        arms.refuse_other_pace(fixed, at({64: 170, 128: 100}), tmp_path / "arms")
    arms.refuse_other_pace(fixed, at({64: 300, 128: 82}), tmp_path)
    arms.refuse_other_pace(fixed, at({96: 170}), tmp_path)
    arms.refuse_other_pace(fixed, {"seed": 3}, tmp_path)


@pytest.mark.parametrize("regime", ["paper", "resnet50"])
def test_the_recorded_pairs_are_of_one_pace(regime, tmp_path):
    found = record.read(record.RESULTS / f"progressive_{regime}.json")["arms"]
    for pair in zip(found["fixed"], found["progressive"], strict=True):
        arms.refuse_other_pace(*pair, tmp_path)


def test_what_was_tuned_in_another_regime_is_refused(tmp_path):
    tuned = {"regime": {"epochs": 60, "image_size": 128, "shares": [[2, 1]]}}  # as JSON has tuples
    arms.refuse_other_regime(tmp_path / "tuned.json", tuned, {"epochs": 60, "image_size": 128, "shares": ((2, 1),)})
    with pytest.raises(SystemExit, match=mentioning("tuned.json", "image_size", "128", "64")):
        arms.refuse_other_regime(tmp_path / "tuned.json", tuned, {"epochs": 60, "image_size": 64})


def test_times_on_two_kinds_of_machine_do_not_compare():
    here = {"seed": 2, "hardware": "2 cores, A"}
    arms.refuse_incomparable_times([here, here])
    with pytest.raises(SystemExit, match=mentioning("2", "4", "seed")):
        arms.refuse_incomparable_times([here, {"seed": 2, "hardware": "4 cores, B"}])


def test_times_with_two_torches_do_not_compare():
    """Other versions do not matter, nor does what was kept before versions were said."""
    here = {"seed": 2, "hardware": "2 cores, A"}
    older, newer, repaired = (
        here | {"versions": {"torch": torch_, "efficientnetv2": ours}}
        for torch_, ours in (("2.14.0", "0.1.0"), ("2.15.0", "0.1.0"), ("2.15.0", "0.1.1"))
    )
    arms.refuse_incomparable_times([here, newer, repaired])
    with pytest.raises(SystemExit, match=mentioning("2", "2.14.0", "2.15.0")):
        arms.refuse_incomparable_times([newer, here, older])


@pytest.mark.parametrize("regime", ["paper", "resnet50"])
def test_the_times_that_are_recorded_of_progressive_learning_compare(regime):
    sides = record.read(record.RESULTS / f"progressive_{regime}.json")["arms"].values()
    for seed in zip(*sides, strict=True):
        arms.refuse_incomparable_times(seed)


def test_a_machine_is_told_from_one_of_another_generation_by_the_same_name():
    of_zen5 = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: sse avx512f\n"
    assert mentions(record.processor(of_zen5 * 2), "AMD", "EPYC", "26", "2", "AVX-512")
    assert mentions(record.processor(of_zen5.replace(" 26", " 25")), "AMD", "EPYC", "25", "2", "AVX-512")
    assert record.processor("model name\t: ARM\nflags\t: neon") == "ARM"
    assert record.processor("processor\t: 0\nBogoMIPS\t: 50\n") == "", "of ARM under Linux"


def test_a_gpu_is_named_before_the_machine_that_it_is_in(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert record.hardware(torch.device("cuda")) == f"A GPU, torch {torch.__version__}; {record.hardware()}"
    assert record.hardware(torch.device("cpu")) == record.hardware()


def test_each_size_has_its_pictures_and_seconds():
    def row(px, images, seconds):
        return {"kind": "train", "image_size": px, "images_per_s": images / seconds, "train_s": seconds}

    history = [row(64, 320, 1.0), {"kind": "val"}, row(64, 160, 0.5), row(128, 320, 2.0), row(64, 32, 0.1)]
    assert by_size(history) == [
        {"image_size": 64, "images": 512, "train_s": 1.6},
        {"image_size": 128, "images": 320, "train_s": 2.0},
    ]


def test_what_others_took_is_what_the_machine_was_busy_with_less_our_own():
    """10 seconds, 15 seconds of cores in all, 9 of them ours: 0.6 cores."""
    before, after = arms._Busy(100.0, 50.0, 7.0), arms._Busy(110.0, 65.0, 16.0)
    assert before.others(after) == pytest.approx(0.6)
    assert before.others(arms._Busy(110.0, 55.0, 16.0)) == 0


def test_our_own_work_is_not_counted_as_that_of_others():
    before = arms._Busy.now()
    begun, until = time.monotonic(), time.process_time() + 0.3
    while time.process_time() < until:
        pass
    took = time.monotonic() - begun
    after = arms._Busy.now()
    assert after.own - before.own > 0.2
    assert after.wall - before.wall >= took
