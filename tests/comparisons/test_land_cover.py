"""The comparison on land cover: requested runs, saved results, and a complete small run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import land_cover, land_cover_runs, record
from benchmarks.land_cover import BALANCED, BALANCING
from benchmarks.land_cover_runs import Work, told
from tests.command_line import NETWORK
from tests.conftest import COLORS, paint
from tests.messages import mentioning
from tests.recipes import with_overrides

from efficientnetv2 import create
from efficientnetv2.architectures import registry
from efficientnetv2.models import model_file
from efficientnetv2.training.recipes import get_recipe


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A temporary results folder."""
    monkeypatch.setattr(land_cover, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def test_every_class_sampling_is_a_valid_recipe():
    for class_sampling in (*BALANCED, *BALANCING):
        for size in (land_cover_runs.SMALL, land_cover_runs.FULL):
            with_overrides(get_recipe("finetune"), [*land_cover_runs.ALWAYS, *size, *class_sampling.split()])
    scratch = [*land_cover_runs.SMALL, *land_cover.FROM_SCRATCH, *land_cover.HARDLY_VALIDATED]
    with_overrides(get_recipe("quick"), [*land_cover_runs.ALWAYS, *scratch])


def test_majority_baseline_is_computed_from_the_report():
    """515, 417 and 112 images: predicting the first class gives 49.3 % top-1, F1 0.6607, mean F1 0.2202."""
    support = {"plantation": 515, "smallholder_agriculture": 417, "grassland": 112}
    report = dict.fromkeys(land_cover_runs.TOLD) | {
        "intervals": {"top1": [0, 1], "macro_f1": [0, 1]},
        "per_class": {name: {"f1": 0.5, "support": count} for name, count in support.items()},
    }
    majority = told(report)["majority"]
    assert majority["top1"] == pytest.approx(0.4933, abs=1e-4)
    assert majority["macro_f1"] == pytest.approx(0.2202, abs=1e-4)


def test_gains_are_paired_by_seed():
    gain = {"class_sampling=null": (0.0, 0.0), "class_sampling=sqrt": (0.01, 0.03), "class_sampling=equal": (0.0, 0.0)}
    scores = {(sampling, seed): 0.6 + 0.1 * seed + gain[sampling][seed] for sampling in gain for seed in (0, 1)}
    found = land_cover.gains(scores)
    assert found["class_sampling=null"]["macro_f1"] == pytest.approx([0.6, 0.7])
    assert found["class_sampling=sqrt"]["gain"] == pytest.approx(0.02)
    assert found["class_sampling=sqrt"]["gain_interval"][0] < 0.02 < found["class_sampling=sqrt"]["gain_interval"][1]
    assert found["class_sampling=equal"]["gain"] == pytest.approx(0)


def test_claim_has_the_hardware_of_the_cross_validation(results):
    """Results of older versions have no hardware, and it may be another machine."""
    result = {"macro_f1": 0.5, "top1": 0.6, "intervals": {name: [0.4, 0.7] for name in ("macro_f1", "top1")}}
    land_cover.claim({"spatial": result | {"hardware": "another machine"}, "stratified": result}, "command")
    summary = json.loads((results / "summary.json").read_text())
    assert {name: claim["hardware"] for name, claim in summary.items()} == {
        f"land_cover_{metric}_{split}": hardware
        for metric in ("macro_f1", "top1")
        for split, hardware in (("spatial", "another machine"), ("stratified", "hardware that was not kept"))
    }


def test_runs_of_two_steps_are_done_once(tmp_path):
    work = Work("p.csv", "w", "a", tmp_path)
    wide, balancing = (requested(work).values() for requested in (land_cover.wide_asked, land_cover.balancing_asked))
    both = {run.name: run for run in wide if run.name in {other.name for other in balancing}}
    assert set(both) == {f"wide/spatial/imagenet_class_sampling-{sampling}" for sampling in ("null", "equal")}
    assert all(other == both[other.name] for other in balancing if other.name in both)
    assert len({run.name for run in (*wide, *balancing)}) == len(wide) + len(balancing) - 2


def test_only_missing_pretraining_is_done(tmp_path, monkeypatch):
    """Step best uses both weights. With its results and one of the weights, step wide needs only the other."""
    started = []
    monkeypatch.setattr(land_cover, "each", lambda function, work, requested: started.append(requested) or [])
    work = Work("p.csv", "w", "a", tmp_path, kept=tmp_path / "kept")
    best, wide = land_cover.best_asked(work), land_cover.wide_asked(work)
    land_cover.pretrain(work, ("pretrain", "best"), {"best": best})
    assert started == [["aerial", "both"]]
    with pytest.raises(SystemExit, match=mentioning("--only")):
        land_cover.pretrain(work, ("best",), {"best": best})
    for run in best.values():
        work.kept_of(run).parent.mkdir(parents=True, exist_ok=True)
        work.kept_of(run).write_text("{}")
    land_cover.pretrain(work, ("pretrain", "best"), {"best": best})
    assert len(started) == 1, "nothing to do"
    work.model_of("both").parent.mkdir(parents=True)
    work.model_of("both").write_text("weights")
    land_cover.pretrain(work, ("pretrain", "best", "wide"), {"best": best, "wide": wide})
    first, *others = started[1]
    assert first == "aerial"
    assert {run.words.weights for run in others} == {"w"}, "which need no pretraining"


def save_start(work, requested, **pretrained):
    """Write the file of a cross-validation with its initial weights."""
    work.kept_of(requested).parent.mkdir(parents=True, exist_ok=True)
    work.kept_of(requested).write_text(json.dumps({"pretrained": pretrained}))


def test_runs_of_a_step_start_from_the_same_weights(tmp_path):
    """Checked before the first run, between saved results and available weights, and between two saved results."""
    work = Work("p.csv", "w", "a", tmp_path / "out", kept=tmp_path / "kept")
    wide = list(land_cover.wide_asked(work).values())
    first, second, *_ = (run for run in wide if work.pretrained_of(run) == ["aerial"])
    model = work.model_of("aerial")
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    digest = land_cover_runs._digest(model)
    save_start(work, first, aerial="0123")
    with pytest.raises(SystemExit) as error:
        land_cover_runs.each(lambda work, requested: pytest.fail("was started"), work, wide)
    for text in (work.kept_of(first), "(0123)", model, f"({digest})", work.kept / "wide", work.out / "wide"):
        assert str(text) in str(error.value)
    save_start(work, first, aerial=digest)
    assert [run for run, *_ in land_cover_runs.each(_environment, work, wide)] == wide
    save_start(work, second, aerial="4567")
    model.unlink()
    with pytest.raises(SystemExit, match=mentioning("class_sampling-equal.json", "4567", "class_sampling-null.json")):
        land_cover_runs.each(_environment, work, wide)
    best = list(land_cover.best_asked(work).values())
    assert len(land_cover_runs.each(_environment, work, best)) == len(best), "other steps are not affected"


def test_different_initial_weights_in_two_steps_are_reported(tmp_path, capsys):
    work = Work("p.csv", "w", "a", tmp_path / "out", kept=tmp_path / "kept")
    best, wide, balancing = (
        list(runs_of(work).values())
        for runs_of in (land_cover.best_asked, land_cover.wide_asked, land_cover.balancing_asked)
    )
    for run in (*best, *wide, *balancing):
        digests = dict.fromkeys(work.pretrained_of(run), "0123")
        save_start(work, run, **digests | ({"both": "4567"} if run in best else {}))
    note = "Note: 'both' are different weights in different steps: best 4567, wide 0123.\n"
    for requested, output in ((best, note), (wide, note), (balancing, "")):
        land_cover_runs.each(_environment, work, requested)
        assert capsys.readouterr().out == output


class Small(Work):
    """The work with the small model of the tests."""

    def words(self, start, settings, seed=0):
        return replace(super().words(start, settings, seed), model=NETWORK)


@pytest.mark.slow
def test_complete_small_run_is_saved_and_only_read_again(results, monkeypatch, tmp_path):
    """Two folds of 24 images at 32 px."""
    rows = []
    for number in range(24):
        name = list(COLORS)[number % 3]
        paint(tmp_path / f"{number}.jpg", COLORS[name], number)
        paint(tmp_path / "aerial" / name / f"{number}.jpg", COLORS[name], number + 50)
        rows.append((f"{number}.jpg", name, number % 12 + 0.5, 3 * (number % 12) + 0.5))
    table = pd.DataFrame(rows, columns=["path", "label", "latitude", "longitude"])
    table.to_csv(tmp_path / "all.csv", index=False)
    tiny = ("progressive.image_size=32", "progressive.stages=1", "epochs=1", "batch_size=8", "tta=none")
    for module in (land_cover, land_cover_runs):
        monkeypatch.setattr(module, "SPLITS", {"spatial": "place"})
        monkeypatch.setattr(module, "FOLDS", 2)
        monkeypatch.setattr(module, "PRETRAINING", {"aerial": ("epochs=1",)})
    monkeypatch.setattr(land_cover, "FROM_SCRATCH", ())
    monkeypatch.setattr(land_cover, "BALANCED", ("class_sampling=equal",))
    model = create(registry.read_architecture(Path(NETWORK)), num_classes=5)
    model_file.save(tmp_path / "weights.safetensors", model, class_names=list("abcde"))
    work = Small(
        str(tmp_path / "all.csv"), str(tmp_path / "weights.safetensors"), str(tmp_path / "aerial"), tmp_path / "out",
        kept=results / "land_cover", always=("augment.flip=d4",), small=tiny, full=tiny,
        members=1,
    )  # fmt: skip
    steps = ("pretrain", "wide", "best")  # balancing is tested above
    land_cover.run(work, steps)
    saved = json.loads((results / "land_cover.json").read_text())
    assert set(saved) == {"wide", "best"}
    assert set(saved["wide"]["spatial"]) == {
        f"{start} {class_sampling}"
        for start in ("scratch", "imagenet", "aerial")
        for class_sampling in land_cover.BALANCED
    }
    assert all(
        result["linear_probe_top1"] is not None
        for name, result in saved["wide"]["spatial"].items()
        if "scratch" not in name
    )
    assert {choice.split()[0] for [choice] in saved["best"]["spatial"]["chosen"]} <= {"imagenet", "aerial"}
    assert set(saved["best"]["spatial"]["pretrained"]) == {"aerial"}
    assert "pretrained" not in saved["wide"]["spatial"]["imagenet class_sampling=equal"]
    assert str(tmp_path) not in (results / "land_cover.json").read_text()
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary) == {f"land_cover_{f}_spatial" for f in ("macro_f1", "top1")}
    assert saved["best"]["spatial"]["hardware"] == record.hardware()
    assert np.isclose(summary["land_cover_macro_f1_spatial"]["value"], saved["best"]["spatial"]["macro_f1"])
    monkeypatch.setattr(land_cover_runs, "run_crossval", None)  # fails if called
    shutil.rmtree(tmp_path / "out")  # only the saved results remain
    land_cover.run(work, ("wide", "best"))
    assert json.loads((results / "land_cover.json").read_text()) == saved
    with pytest.raises(SystemExit, match="of another settings; move"):
        land_cover.run(replace(work, small=(*tiny, "epochs=2")), ("wide",))


def _environment(work, requested):
    return requested, torch.get_num_threads(), os.getpid()


def test_two_processes_share_the_threads_and_keep_the_order(tmp_path):
    work = Work("p.csv", "w", "a", tmp_path, workers=2)
    found = land_cover_runs.each(_environment, work, ["a", "b", "c"])
    assert [result[0] for result in found] == ["a", "b", "c"]
    assert {result[1] for result in found} == {max(1, torch.get_num_threads() // 2)}
    assert os.getpid() not in {result[2] for result in found}
