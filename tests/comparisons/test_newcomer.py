"""Comparison with other tools: recorded predictions and times, and the number of epochs of a peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmarks import in_turn, minutes_kept, newcomer, newcomer_sides, record
from benchmarks.minutes_kept import Task
from benchmarks.peers_training import link_folders
from tests.messages import mentioning

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.predictions import compare_predictions, save_predictions


def predictions(true, predicted):
    """A table as ``load_predictions`` returns it, one letter per image."""
    columns = {"predicted_label": list(predicted), "true_label": list(true)}
    return pd.DataFrame(columns, index=pd.Index([f"{row}.png" for row in range(len(true))], name="path"))


def test_difference_is_the_mean_over_seeds():
    true = "aaaabbbb"
    ours = [predictions(true, "aaaabbbb"), predictions(true, "aaaabbba")]
    theirs = [predictions(true, "aaabbbbb"), predictions(true, "bbaabbaa")]
    found = newcomer.differences(ours, theirs)
    assert found["top1"]["value"] == pytest.approx(100 * ((8 - 7) + (7 - 4)) / 2 / 8)
    assert newcomer.top1(theirs[1]) == 0.5


def test_equal_seeds_do_not_narrow_the_interval():
    """Three runs with equal predictions have the interval of one run."""
    draw = np.random.default_rng(0)
    true, mine, other = ("".join(draw.choice(list("abc"), 60)) for _ in range(3))
    once = compare_predictions(predictions(true, mine), predictions(true, other))
    thrice = newcomer.differences([predictions(true, mine)] * 3, [predictions(true, other)] * 3)
    width = once.top1.high - once.top1.low
    assert thrice["top1"]["high"] - thrice["top1"]["low"] == pytest.approx(100 * width, rel=0.15)
    assert thrice["top1"]["value"] == pytest.approx(100 * once.top1.value)


def test_groups_of_test_images_are_resampled_together():
    """Four groups of equal images are as uncertain as four images."""
    true, mine, other = "a" * 40 + "b" * 40, "a" * 60 + "b" * 20, "b" * 20 + "a" * 20 + "b" * 40
    groups = [str(row // 20) for row in range(80)]
    ours, theirs = predictions(true, mine), predictions(true, other)
    single = newcomer.differences([ours], [theirs])["top1"]
    grouped = newcomer.differences([ours.assign(cluster=groups)], [theirs])["top1"]
    assert grouped["value"] == pytest.approx(single["value"])
    assert grouped["high"] - grouped["low"] > 2 * (single["high"] - single["low"])


def test_peer_trains_for_the_number_of_epochs_nearest_to_its_minutes(monkeypatch):
    job = newcomer_sides.Job("", "", "", "", minutes=2, seed=0)
    monkeypatch.setattr(newcomer_sides, "BEGAN", 100)
    monkeypatch.setattr(newcomer_sides.time, "monotonic", lambda: 150)
    assert job.epochs(20, pilot_s=40) == 6  # 110 s are left: the pilot does not count
    assert job.epochs(1000, pilot_s=40) == 1


def test_timm_epoch_is_timed_from_its_first_steps():
    line = "Train: 0 [   {}/50 (  2%)]  Loss: 2.3 (2.3)  Time: {}s, 64.0/s  (0.9s, 64.0/s)  LR: 1e-05  Data: 0.1 (0.1)"
    script = (
        "import itertools, time\n"
        f"for step in itertools.count(): print({line!r}.format(step, 0.5 if step else 9), flush=True); time.sleep(0.01)"
    )
    assert newcomer_sides._epoch_s([sys.executable, "-c", script]) == pytest.approx(50 * 0.5)


def test_output_of_a_failed_timm_script_is_quoted():
    for script in ("raise SystemExit('no such model')", "print('done')"):
        with pytest.raises(RuntimeError, match=mentioning("no such model" if "raise" in script else "done")):
            newcomer_sides._epoch_s([sys.executable, "-c", script])


@pytest.mark.parametrize(("steps", "epochs"), [(1, 13), (5, 3), (40, 1)])
def test_fastai_step_is_timed_without_validation(tmp_path, monkeypatch, steps, epochs):
    """A training step takes 2 s and a validation step 1 s. With one step per epoch, validation is between all steps."""
    clock, fitted = [0.0], []

    class Callback:
        training = True

    class CancelFitError(Exception):
        pass

    class Learner:
        def __init__(self):
            loaders = SimpleNamespace(train=range(steps), valid=range(6))
            self.dls = loaders

        def unfreeze(self):
            pass

        def fit(self, epochs, cbs):
            cbs.before_fit()
            for epoch in range(epochs):
                fitted.append(epoch)
                for training, count, seconds in ((True, steps, 2.0), (False, 6, 1.0)):
                    cbs.training = training
                    for _ in range(count):
                        clock[0] += seconds
                        try:
                            cbs.after_batch()
                        except CancelFitError:
                            return

        def fine_tune(self, epochs):
            fitted.append(f"{1 + epochs} epochs")

    vision = SimpleNamespace(
        Callback=Callback, CancelFitException=CancelFitError, set_seed=lambda seed: None, Resize=lambda size: None,
        aug_transforms=list, accuracy=None, vision_learner=lambda *words, **more: Learner(),
        ImageDataLoaders=SimpleNamespace(from_folder=lambda *words, **more: None),
    )  # fmt: skip
    for name in ("fastai", "fastai.vision", "fastai.vision.all"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(all=vision))
    monkeypatch.setattr(newcomer_sides, "version", lambda name: "2")
    monkeypatch.setattr(newcomer_sides, "BEGAN", 0.0)
    monkeypatch.setattr(newcomer_sides.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(newcomer_sides.Job, "image_size", 64)
    _, facts = newcomer_sides.train_fastai(newcomer_sides.Job("", "", "", "", minutes=100, seed=0))
    assert len(fitted) == epochs + 1
    step_s = 8.0 if steps == 1 else 2.0
    assert facts["epochs"] == round(6000 / (step_s * (steps + 2)))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Runs of all sides, which are replaced. The learning rate 2e-3 is the best on the validation images."""

    def run(folder, wrong, **facts):
        true = ["a", "b"] * 10
        predicted = ["b" if row in wrong else label for row, label in enumerate(true)]
        paths = [f"{row}.png" for row in range(20)]
        table = pd.DataFrame({"path": paths, "predicted_label": predicted, "true_label": true})
        save_predictions(folder, table)
        return {**facts, "hardware": "a machine", "versions": {}}

    calls = []

    def peer(side, python, job):
        calls.append((side, job.seed) if side != "timm" else (side, job.seed, job.timm_lr))
        facts = {"lr": job.timm_lr, "val_top1": {"5e-4": 0.5, "2e-3": 0.6}[job.timm_lr]} if side == "timm" else {}
        return run(tmp_path / job.out, {0, 2}, wall_s=50 + job.seed, **facts)

    def ours(task, folder, checkout, cores):
        assert not folder.exists(), "a stopped run starts again"
        calls.append(("ours", task.seed))
        return run(folder / "test", {0}, wall_s=60)

    monkeypatch.setattr(newcomer, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(newcomer, "prepare", lambda task, folder: dict.fromkeys(("images", "test", "weights"), ""))
    monkeypatch.setattr(newcomer, "run_peer", peer)
    monkeypatch.setattr(newcomer, "train", ours)
    monkeypatch.setitem(newcomer._LIBRARIES, "autogluon", "a_library_that_is_not_installed")
    monkeypatch.setattr(in_turn, "pace", lambda: 10.0)
    return calls


def test_learning_rate_of_timm_is_the_best_on_validation_images(calls, tmp_path, monkeypatch, class_folders, capsys):
    (tmp_path / "train.py").write_text("")
    words = ["--minutes", "1", "--seeds", "2", "--sides", "timm", "--timm-lr", "5e-4", "2e-3", "--record"]
    files = ["--timm-train", str(tmp_path / "train.py"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["newcomer", f"tiny={class_folders},{class_folders}", *words, *files])
    for _ in range(2):  # finished runs are only read
        newcomer.main()
        assert [call for call in calls if call[0] == "timm"] == [
            ("timm", 0, "5e-4"), ("timm", 0, "2e-3"), ("timm", 0, "2e-3"), ("timm", 1, "2e-3"),
        ]  # fmt: skip
    assert "timm, learning rate 2e-3: top-1 60.0% on the validation images" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert " --timm-lr 5e-4 2e-3 " in summary["newcomer_tiny_offline_1min_minus_timm_top1"]["command"]
    more = json.loads((tmp_path / "newcomer.json").read_text())["tiny_offline_1min"]
    assert more["timm_lr_tried"] == {"5e-4": 0.5, "2e-3": 0.6}
    at = words.index("5e-4")
    words[at : at + 2] = ["2e-3"]
    monkeypatch.setattr(sys, "argv", ["newcomer", f"tiny={class_folders},{class_folders}", *words, *files])
    newcomer.main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert " --timm-lr 2e-3 " in summary["newcomer_tiny_offline_1min_minus_timm_top1"]["command"]


def test_claims_are_recorded_and_missing_peers_are_named(calls, tmp_path, monkeypatch, capsys, class_folders):
    (tmp_path / "out/tiny_offline_1min_ours_0/run").mkdir(parents=True)
    saved = {f"newcomer_tiny_offline_{minutes}min_minus_fastai_top1": {} for minutes in (1, 6)}
    (tmp_path / "summary.json").write_text(json.dumps(saved))
    words = ["--minutes", "1", "--seeds", "2", "--sides", "probe", "autogluon", "timm", "--record", "--output"]
    data = f"tiny={class_folders},{class_folders}"
    monkeypatch.setattr(sys, "argv", ["newcomer", data, *words, str(tmp_path / "out")])
    newcomer.main()
    printed = capsys.readouterr().out
    assert "autogluon: not measured" in printed
    assert "timm: not measured (no --timm-train)" in printed
    assert calls == [("ours", 0), ("probe", 0), ("probe", 1), ("ours", 1)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["newcomer_tiny_offline_1min_minus_probe_top1"]["value"] == pytest.approx(5)
    assert summary["newcomer_tiny_offline_1min_minus_probe_top1"]["hardware"] == "a machine"
    assert "--sides probe autogluon timm " in summary["newcomer_tiny_offline_1min_minus_probe_top1"]["command"]
    more = json.loads((tmp_path / "newcomer.json").read_text())["tiny_offline_1min"]
    assert more["sides"]["probe"] == {"top1": [0.9, 0.9], "wall_s": [50, 51]}
    assert more["minus"]["probe"]["macro_f1"]["value"] > 0
    assert "newcomer_tiny_offline_6min_minus_fastai_top1" in summary
    assert "newcomer_tiny_offline_1min_minus_fastai_top1" not in summary, "not measured this time"
    newcomer.main()
    assert len(calls) == 4, "a finished run is only read"
    file = tmp_path / "out/sides/tiny_offline_1min_probe_1.json"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"pace": [10.0, 8.0]}))
    with pytest.raises(SystemExit, match=mentioning(file.name, "8.0")):
        newcomer.main()
    file.write_text(json.dumps(row))
    next(class_folders.rglob("*.jpg")).unlink()
    with pytest.raises(SystemExit, match=mentioning("ours_0.json", "train")):
        newcomer.main()


def test_versions_of_a_peer_are_of_its_interpreter_and_it_has_no_gpu(tmp_path, monkeypatch):
    job, environments = newcomer_sides.Job("", "", "", str(tmp_path), minutes=1, seed=0), []
    versions = dict.fromkeys(("torch", *newcomer_sides.LIBRARIES), "0.0")

    def run(command, *, env, **more):
        environments.append(env)
        (tmp_path / "side.json").write_text(json.dumps({"wall_s": 1, **versions}))

    monkeypatch.setattr(newcomer.subprocess, "run", run)
    found = newcomer.run_peer("probe", sys.executable, job)["versions"]
    assert found.items() >= versions.items()
    assert "pillow" in found
    assert environments[0]["CUDA_VISIBLE_DEVICES"] == ""


def test_train_has_no_gpu_and_no_weights_of_a_cache(monkeypatch, tmp_path):
    """The record names the processor, and the peers start from the bundled weights."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    environments = []

    def run(command, *, env, **more):
        environments.append(env)
        assert not [*Path(env["HF_HUB_CACHE"]).iterdir(), *Path(env["TORCH_HOME"]).iterdir()]

    (tmp_path / "weights").touch()
    monkeypatch.setattr(minutes_kept.subprocess, "run", run)
    minutes_kept._run(["train", "photos"], None, {0})
    assert (environments[0]["CUDA_VISIBLE_DEVICES"], environments[0]["HF_HUB_OFFLINE"]) == ("", "1")


def test_timm_finds_images_of_all_formats(tmp_path, class_folders):
    for file in sorted(class_folders.rglob("*.jpg"))[::2]:
        file.rename(file.with_suffix(".webp"))
    data = load_dataset(class_folders)
    images = link_folders(data, np.arange(len(data)), np.arange(0), tmp_path / "links")
    reader = pytest.importorskip("timm.data").create_dataset("", str(images), split="train").reader
    assert len(reader) == len(data)


def test_run_with_other_weights_is_another_run(tmp_path, class_folders):
    file = tmp_path / "weights"
    task = Task(str(class_folders), str(class_folders), 1, str(file))
    found = []
    for content in (b"one", b"other"):
        file.write_bytes(content)
        found.append(newcomer.asked(task))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"weights_sha256"}
