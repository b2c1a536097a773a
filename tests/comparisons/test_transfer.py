"""Transfer: what of the paper's recipe is kept, and what is claimed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmarks import small_tables, transfer
from benchmarks.paper.runs import Runs
from benchmarks.paper.table import Table
from benchmarks.transfer import OURS, PAPER, arms, asked, claims
from tests.messages import mentions
from tests.recipes import with_overrides

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.predictions import save_predictions
from efficientnetv2.training.recipes import get_recipe


def recipe(arm, px=96, epochs=3):
    return with_overrides(get_recipe(arm), arms(px, epochs)[arm].settings)


def test_the_papers_recipe_keeps_all_but_size_length_and_batch():
    """Rate 0.001 for 512 images, so 0.000125 for 64; no weight decay, cosine, cutout as it is."""
    cut, whole = recipe(PAPER), get_recipe(PAPER)
    assert cut.optimizer.lr == pytest.approx(0.001 / 8)
    assert cut.optimizer.model_copy(update={"lr": whole.optimizer.lr}) == whole.optimizer
    assert cut.schedule == whole.schedule
    assert cut.progressive.last.cutout == whole.progressive.last.cutout == 0.5
    assert (cut.epochs, cut.steps, cut.batch_size) == (3, None, 64)


@pytest.mark.parametrize("arm", [PAPER, OURS])
def test_both_end_at_the_same_size_and_are_asked_at_it(arm):
    made = recipe(arm)
    assert (made.progressive.last.image_size, made.eval_image_size, made.epochs) == (96, 96, 3)


def test_finetune_grows_in_its_own_proportion():
    """128 to 224 px is 4 to 7: from 55 px to 96, in multiples of 32."""
    plan = recipe(OURS).progressive
    assert [plan.stage(number).image_size for number in range(3)] == [64, 64, 96]


def rows(*given):
    """Of each seed top-1, and what of it is more than the probe's."""
    return [{"top1": top1, "over_probe": {"top1": {"value": more}}} for top1, more in given]


def test_the_claims_by_hand():
    found = claims({PAPER: rows((0.94, 0.04), (0.95, 0.05)), OURS: rows((0.95, 0.05), (0.97, 0.07))})
    values = {name: (pytest.approx(one.value), unit) for name, (one, unit) in found.items()}
    assert values == {
        "transfer_paper_cifar10_top1": (0.945, "fraction"),
        "finetune_cifar10_top1": (0.96, "fraction"),
        "finetune_cifar10_top1_gain_over_transfer_paper": (1.5, "points"),
        "finetune_cifar10_top1_gain_over_probe": (6.0, "points"),
    }
    low, high = (getattr(found["finetune_cifar10_top1"][0], end) for end in ("low", "high"))
    assert low < 0.95 < 0.97 < high  # of two seeds little is known


def test_what_a_run_has_over_its_probe_is_of_the_pictures_that_both_answered(tmp_path):
    """The probe was asked the first four: the run has 3 of them right, it 1. The fifth, right too, does not count."""
    runs, cell = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print), arms(96, 3)[OURS]
    run = runs.folder(cell, 0)
    answers = pd.DataFrame({"path": list("abcde"), "label": list("xxyyy"), "true_label": list("xxyxy")})
    probe = pd.DataFrame({"path": list("abcd"), "label": list("xyxy"), "true_label": list("xxyx")})
    save_predictions(run, answers)
    save_predictions(run / "probe", probe)
    (run / "measured.json").write_text(json.dumps({"top1": 0.8, "linear_probe": 0.9}))
    row = asked(runs, cell, 0)
    assert (row["top1"], row["probe_top1"], row["pictures"]) == (0.8, 0.25, 4)
    (run / "predictions.csv").unlink()
    assert asked(runs, cell, 0) == row  # of a clone, which has not the answers
    found, unit = claims({PAPER: [row], OURS: [row]})["finetune_cifar10_top1_gain_over_probe"]
    assert (found.value, unit) == (pytest.approx(50), "points")


def test_the_probe_of_each_seed_has_its_part_in_the_interval():
    """Differences of 5 and 7 points, of equal accuracies: the probes alone differ."""
    found = claims({PAPER: rows((0.9, 0.0), (0.9, 0.0)), OURS: rows((0.95, 0.05), (0.95, 0.07))})
    over = found["finetune_cifar10_top1_gain_over_probe"][0]
    assert over.value == pytest.approx(6)
    assert over.low < 5 < 7 < over.high


@pytest.mark.parametrize(
    "words", [("--image-size", "64"), ("--epochs", "1"), ("--num-train-images", "9"), ("--seeds", "1")]
)
def test_another_size_or_length_is_not_recorded(words, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "load_dataset", lambda pictures: pytest.fail("was measured"))
    monkeypatch.setattr(sys, "argv", ["transfer", "CIFAR10", "WEIGHTS", "--record", *words])
    with pytest.raises(SystemExit):
        transfer.main()
    assert mentions(capsys.readouterr().err, "--record", "96", "3", "2")


def test_table_8_has_our_b0_under_cifar10_beside_the_papers_s():
    """Nothing else of the table is run in small."""
    found = [{"top1": 0.93}, {"top1": 0.95}]
    made = small_tables.table_8(found, image_size=96, epochs=3, batch_size=64, answered="test")
    first, *others = made.rows
    assert [row.name for row in made.rows] == ["efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"]
    assert first.ours["cifar10"].values == pytest.approx((93, 95))
    assert (first.paper["cifar10"].mean, others[1].paper["cars"].mean) == (98.7, 95.1)
    assert list(first.ours) == list(first.paper) == ["cifar10", "cifar100", "flowers102", "cars"]
    empty = [first.ours["cifar100"], first.ours["cars"], *(row.ours["cifar10"] for row in others)]
    assert {(figure.values, figure.why) for figure in empty} == {((), "not run at scale small")}
    assert (made.name, made.scale, made.seeds) == ("8", "small", 2)
    assert "B0 in the place of S by recipe transfer_paper on all training pictures of CIFAR-10" in made.ours_note
    assert "for 3 epochs at 96 px, batches of 64 and a rate in proportion, 2 seeds." in made.ours_note
    assert "Answered is all of test" in made.ours_note


def test_what_is_recorded_stands_on_the_page(tmp_path, monkeypatch):
    dataset = SimpleNamespace(split=np.array(["train", "test"]))
    written = []
    monkeypatch.setattr(transfer, "RESULTS", tmp_path)
    monkeypatch.setattr(transfer.paper_page, "RECORDS", tmp_path)
    monkeypatch.setattr(transfer, "load_dataset", lambda pictures: dataset)
    monkeypatch.setattr(transfer, "rows_of", lambda *given: np.arange(1))
    monkeypatch.setattr(transfer, "write_pictures", lambda file, *given: file)
    row = {
        "top1": 0.9,
        "train_s": 1.0,
        "probe_top1": 0.8,
        "pictures": 9,
        "over_probe": {"top1": {"value": 0.1}},
        "hardware": "another machine",
    }
    monkeypatch.setattr(transfer, "asked", lambda *given: row)
    monkeypatch.setattr(transfer, "record", lambda name, **figure: written.append(figure["on"]))
    monkeypatch.setattr(transfer.paper_page, "write", lambda: written.append("the page"))
    monkeypatch.setattr(sys, "argv", ["transfer", "CIFAR10", "WEIGHTS", "--record", "--output", str(tmp_path)])
    transfer.main()
    assert written == ["another machine"] * 4 + ["the page"]
    assert json.loads((tmp_path / "transfer.json").read_text())["hardware"] == "another machine"
    made = Table.from_json(kept := json.loads((tmp_path / "8_small.json").read_text()))
    assert made.rows[0].ours["cifar10"].values == pytest.approx((90, 90, 90))
    assert kept["command"] == "python -m benchmarks.transfer CIFAR10 WEIGHTS --record"
    assert (kept["scale"], kept["hardware"]) == ("small", "another machine")
    assert "| efficientnetv2_s | 98.7 | 90.0 ± 0 | 91.5 | – |" in transfer.paper_page.text()
