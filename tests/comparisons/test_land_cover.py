"""The comparison on land cover: what is asked of whom, what is kept; and once the whole of it, tiny."""

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
    """Where figures go instead of the repository's own."""
    monkeypatch.setattr(land_cover, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    return tmp_path


def test_every_way_of_balancing_is_a_recipe():
    for class_sampling in (*BALANCED, *BALANCING):
        for size in (land_cover_runs.SMALL, land_cover_runs.FULL):
            with_overrides(get_recipe("finetune"), [*land_cover_runs.ALWAYS, *size, *class_sampling.split()])
    scratch = [*land_cover_runs.SMALL, *land_cover.FROM_SCRATCH, *land_cover.HARDLY_VALIDATED]
    with_overrides(get_recipe("quick"), [*land_cover_runs.ALWAYS, *scratch])


def test_of_a_report_the_majority_is_worked_out():
    """515, 417 and 112 images: always the first is right for 49.3 %, its F1 0.6607, the mean of three 0.2202."""
    support = {"plantation": 515, "smallholder_agriculture": 417, "grassland": 112}
    report = dict.fromkeys(land_cover_runs.TOLD) | {
        "intervals": {"top1": [0, 1], "macro_f1": [0, 1]},
        "per_class": {name: {"f1": 0.5, "support": count} for name, count in support.items()},
    }
    majority = told(report)["majority"]
    assert majority["top1"] == pytest.approx(0.4933, abs=1e-4)
    assert majority["macro_f1"] == pytest.approx(0.2202, abs=1e-4)


def test_gains_are_seed_by_seed():
    over = {"class_sampling=null": (0.0, 0.0), "class_sampling=sqrt": (0.01, 0.03), "class_sampling=equal": (0.0, 0.0)}
    scores = {(way, seed): 0.6 + 0.1 * seed + over[way][seed] for way in over for seed in (0, 1)}
    found = land_cover.gains(scores)
    assert found["class_sampling=null"]["macro_f1"] == pytest.approx([0.6, 0.7])
    assert found["class_sampling=sqrt"]["gain"] == pytest.approx(0.02)
    assert found["class_sampling=sqrt"]["gain_interval"][0] < 0.02 < found["class_sampling=sqrt"]["gain_interval"][1]
    assert found["class_sampling=equal"]["gain"] == pytest.approx(0)


def test_a_claim_is_of_the_machine_that_made_the_cross_validation(results):
    """Of what was kept before that was said, no machine is named: it need not have been this one."""
    one = {"macro_f1": 0.5, "top1": 0.6, "intervals": {name: [0.4, 0.7] for name in ("macro_f1", "top1")}}
    land_cover.claim({"spatial": one | {"hardware": "another machine"}, "stratified": one}, "command")
    summary = json.loads((results / "summary.json").read_text())
    assert {name: claim["hardware"] for name, claim in summary.items()} == {
        f"land_cover_{figure}_{split}": on
        for figure in ("macro_f1", "top1")
        for split, on in (("spatial", "another machine"), ("stratified", "hardware that was not kept"))
    }


def test_what_two_steps_ask_for_is_done_once(tmp_path):
    work = Work("p.csv", "w", "a", tmp_path)
    wide, balancing = (of(work).values() for of in (land_cover.wide_asked, land_cover.balancing_asked))
    both = {one.name: one for one in wide if one.name in {other.name for other in balancing}}
    assert set(both) == {f"wide/spatial/imagenet_class_sampling-{how}" for how in ("null", "equal")}
    assert all(other == both[other.name] for other in balancing if other.name in both)
    assert len({one.name for one in (*wide, *balancing)}) == len(wide) + len(balancing) - 2


def test_only_what_is_still_needed_is_pretrained(tmp_path, monkeypatch):
    """Best begins with both; with best done and one of them there, wide needs the other."""
    begun = []
    monkeypatch.setattr(land_cover, "each", lambda does, work, asked: begun.append(asked) or [])
    work = Work("p.csv", "w", "a", tmp_path, kept=tmp_path / "kept")
    best, wide = land_cover.best_asked(work), land_cover.wide_asked(work)
    land_cover.pretrain(work, ("pretrain", "best"), {"best": best})
    assert begun == [["aerial", "both"]]
    with pytest.raises(SystemExit, match=mentioning("--only")):
        land_cover.pretrain(work, ("best",), {"best": best})
    for one in best.values():
        work.kept_of(one).parent.mkdir(parents=True, exist_ok=True)
        work.kept_of(one).write_text("{}")
    land_cover.pretrain(work, ("pretrain", "best"), {"best": best})
    assert len(begun) == 1, "nothing is left to do"
    work.model_of("both").parent.mkdir(parents=True)
    work.model_of("both").write_text("weights")
    land_cover.pretrain(work, ("pretrain", "best", "wide"), {"best": best, "wide": wide})
    first, *beside = begun[1]
    assert first == "aerial"
    assert {one.words.weights for one in beside} == {"w"}, "that needs no pretraining"


def keep_begun(work, asked, **pretrained):
    """Of a cross-validation, the file that says with which weights it began."""
    work.kept_of(asked).parent.mkdir(parents=True, exist_ok=True)
    work.kept_of(asked).write_text(json.dumps({"pretrained": pretrained}))


def test_of_one_step_all_begin_with_the_same_weights(tmp_path):
    """Told before any of them begins: of what is kept and the weights that are there, and of two that are kept."""
    work = Work("p.csv", "w", "a", tmp_path / "out", kept=tmp_path / "kept")
    wide = list(land_cover.wide_asked(work).values())
    first, second, *_ = (one for one in wide if work.pretrained_of(one) == ["aerial"])
    model = work.model_of("aerial")
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    digest = land_cover_runs._digest(model)
    keep_begun(work, first, aerial="0123")
    with pytest.raises(SystemExit) as refused:
        land_cover_runs.each(lambda work, asked: pytest.fail("has begun"), work, wide)
    for said in (work.kept_of(first), "(0123)", model, f"({digest})", work.kept / "wide", work.out / "wide"):
        assert str(said) in str(refused.value)
    keep_begun(work, first, aerial=digest)
    assert [one for one, *_ in land_cover_runs.each(_told, work, wide)] == wide
    keep_begun(work, second, aerial="4567")
    model.unlink()
    with pytest.raises(SystemExit, match=mentioning("class_sampling-equal.json", "4567", "class_sampling-null.json")):
        land_cover_runs.each(_told, work, wide)
    best = list(land_cover.best_asked(work).values())
    assert len(land_cover_runs.each(_told, work, best)) == len(best), "it is no affair of another step"


def test_steps_that_begin_with_different_weights_of_a_name_are_told(tmp_path, capsys):
    work = Work("p.csv", "w", "a", tmp_path / "out", kept=tmp_path / "kept")
    best, wide, balancing = (
        list(of(work).values()) for of in (land_cover.best_asked, land_cover.wide_asked, land_cover.balancing_asked)
    )
    for one in (*best, *wide, *balancing):
        begun = dict.fromkeys(work.pretrained_of(one), "0123")
        keep_begun(work, one, **begun | ({"both": "4567"} if one in best else {}))
    note = "Note: 'both' are different weights in different steps: best 4567, wide 0123.\n"
    for asked, said in ((best, note), (wide, note), (balancing, "")):
        land_cover_runs.each(_told, work, asked)
        assert capsys.readouterr().out == said


class Small(Work):
    """The same with the network of tests."""

    def words(self, start, settings, seed=0):
        return replace(super().words(start, settings, seed), model=NETWORK)


@pytest.mark.slow
def test_the_whole_of_it_tiny(results, monkeypatch, tmp_path):
    """Two folds of 24 images at 32 px: every step runs, is kept, and is only read the second time."""
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
    network = create(registry.read_architecture(Path(NETWORK)), num_classes=5)
    model_file.save(tmp_path / "weights.safetensors", network, class_names=list("abcde"))
    work = Small(
        str(tmp_path / "all.csv"), str(tmp_path / "weights.safetensors"), str(tmp_path / "aerial"), tmp_path / "out",
        kept=results / "land_cover", always=("augment.flip=d4",), small=tiny, full=tiny,
        members=1,
    )  # fmt: skip
    steps = ("pretrain", "wide", "best")  # the ways of balancing are more of the same: their sums are above
    land_cover.run(work, steps)
    kept = json.loads((results / "land_cover.json").read_text())
    assert set(kept) == {"wide", "best"}
    assert set(kept["wide"]["spatial"]) == {
        f"{start} {class_sampling}"
        for start in ("scratch", "imagenet", "aerial")
        for class_sampling in land_cover.BALANCED
    }
    assert all(
        one["linear_probe_top1"] is not None for name, one in kept["wide"]["spatial"].items() if "scratch" not in name
    )
    assert {choice.split()[0] for [choice] in kept["best"]["spatial"]["chosen"]} <= {"imagenet", "aerial"}
    assert set(kept["best"]["spatial"]["pretrained"]) == {"aerial"}
    assert "pretrained" not in kept["wide"]["spatial"]["imagenet class_sampling=equal"]
    assert str(tmp_path) not in (results / "land_cover.json").read_text()
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary) == {f"land_cover_{f}_spatial" for f in ("macro_f1", "top1")}
    assert kept["best"]["spatial"]["hardware"] == record.hardware()
    assert np.isclose(summary["land_cover_macro_f1_spatial"]["value"], kept["best"]["spatial"]["macro_f1"])
    monkeypatch.setattr(land_cover_runs, "run_crossval", None)  # nothing is done again
    shutil.rmtree(tmp_path / "out")  # neither what a sitting has left behind
    land_cover.run(work, ("wide", "best"))
    assert json.loads((results / "land_cover.json").read_text()) == kept
    with pytest.raises(SystemExit, match="of another settings; move"):
        land_cover.run(replace(work, small=(*tiny, "epochs=2")), ("wide",))


def _told(work, asked):
    return asked, torch.get_num_threads(), os.getpid()


def test_two_at_once_share_the_processor_and_come_in_order(tmp_path):
    work = Work("p.csv", "w", "a", tmp_path, workers=2)
    found = land_cover_runs.each(_told, work, ["a", "b", "c"])
    assert [one[0] for one in found] == ["a", "b", "c"]
    assert {one[1] for one in found} == {max(1, torch.get_num_threads() // 2)}
    assert os.getpid() not in {one[2] for one in found}
