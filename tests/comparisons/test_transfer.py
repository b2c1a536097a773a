"""Transfer to CIFAR-10: the recipe of the paper at small scale, and claims."""

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


def test_recipe_of_the_paper_changes_only_size_length_and_batch():
    """Learning rate 0.001 for 512 images, so 0.000125 for 64. Optimizer, schedule and cutout are unchanged."""
    small, paper = recipe(PAPER), get_recipe(PAPER)
    assert small.optimizer.lr == pytest.approx(0.001 / 8)
    assert small.optimizer.model_copy(update={"lr": paper.optimizer.lr}) == paper.optimizer
    assert small.schedule == paper.schedule
    assert small.progressive.last.cutout == paper.progressive.last.cutout == 0.5
    assert (small.epochs, small.steps, small.batch_size) == (3, None, 64)


@pytest.mark.parametrize("arm", [PAPER, OURS])
def test_both_arms_train_and_evaluate_at_the_same_final_size(arm):
    recipe_ = recipe(arm)
    assert (recipe_.progressive.last.image_size, recipe_.eval_image_size, recipe_.epochs) == (96, 96, 3)


def test_finetune_grows_in_proportion():
    """128 to 224 px is 4 to 7: from 55 px to 96, in multiples of 32."""
    schedule = recipe(OURS).progressive
    assert [schedule.stage(number).image_size for number in range(3)] == [64, 64, 96]


def measured_rows(*pairs):
    """Top-1 of each seed, and its difference to the probe."""
    return [{"top1": top1, "over_probe": {"top1": {"value": gain}}} for top1, gain in pairs]


def test_claims_by_hand():
    found = claims({PAPER: measured_rows((0.94, 0.04), (0.95, 0.05)), OURS: measured_rows((0.95, 0.05), (0.97, 0.07))})
    values = {name: (pytest.approx(claim.value), unit) for name, (claim, unit) in found.items()}
    assert values == {
        "transfer_paper_cifar10_top1": (0.945, "fraction"),
        "finetune_cifar10_top1": (0.96, "fraction"),
        "finetune_cifar10_top1_gain_over_transfer_paper": (1.5, "points"),
        "finetune_cifar10_top1_gain_over_probe": (6.0, "points"),
    }
    low, high = (getattr(found["finetune_cifar10_top1"][0], end) for end in ("low", "high"))
    assert low < 0.95 < 0.97 < high  # only two seeds


def test_difference_to_the_probe_is_of_images_that_both_predicted(tmp_path):
    """The probe predicted four images: the run has 3 right, the probe 1. The fifth does not count."""
    runs, cell = Runs(DataConfig("x"), 1, "none", "cpu", tmp_path, print), arms(96, 3)[OURS]
    run = runs.folder(cell, 0)
    predictions = pd.DataFrame({"path": list("abcde"), "label": list("xxyyy"), "true_label": list("xxyxy")})
    probe = pd.DataFrame({"path": list("abcd"), "label": list("xyxy"), "true_label": list("xxyx")})
    save_predictions(run, predictions)
    save_predictions(run / "probe", probe)
    (run / "measured.json").write_text(json.dumps({"top1": 0.8, "linear_probe": 0.9}))
    row = asked(runs, cell, 0)
    assert (row["top1"], row["probe_top1"], row["pictures"]) == (0.8, 0.25, 4)
    (run / "predictions.csv").unlink()
    assert asked(runs, cell, 0) == row  # as in a clone, without predictions
    found, unit = claims({PAPER: [row], OURS: [row]})["finetune_cifar10_top1_gain_over_probe"]
    assert (found.value, unit) == (pytest.approx(50), "points")


def test_interval_includes_the_probe_of_each_seed():
    """Differences of 5 and 7 points at equal accuracies: only the probes differ."""
    found = claims({PAPER: measured_rows((0.9, 0.0), (0.9, 0.0)), OURS: measured_rows((0.95, 0.05), (0.95, 0.07))})
    gain = found["finetune_cifar10_top1_gain_over_probe"][0]
    assert gain.value == pytest.approx(6)
    assert gain.low < 5 < 7 < gain.high


@pytest.mark.parametrize(
    "options", [("--image-size", "64"), ("--epochs", "1"), ("--num-train-images", "9"), ("--seeds", "1")]
)
def test_other_options_are_not_recorded(options, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "load_dataset", lambda images: pytest.fail("was measured"))
    monkeypatch.setattr(sys, "argv", ["transfer", "CIFAR10", "WEIGHTS", "--record", *options])
    with pytest.raises(SystemExit):
        transfer.main()
    assert mentions(capsys.readouterr().err, "--record", "96", "3", "2")


def test_table_8_has_b0_under_cifar10_next_to_the_paper():
    """No other cell of the table is run at small scale."""
    found = [{"top1": 0.93}, {"top1": 0.95}]
    table = small_tables.table_8(found, image_size=96, epochs=3, batch_size=64, answered="test")
    first, *others = table.rows
    assert [row.name for row in table.rows] == ["efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"]
    assert first.ours["cifar10"].values == pytest.approx((93, 95))
    assert (first.paper["cifar10"].mean, others[1].paper["cars"].mean) == (98.7, 95.1)
    assert list(first.ours) == list(first.paper) == ["cifar10", "cifar100", "flowers102", "cars"]
    empty = [first.ours["cifar100"], first.ours["cars"], *(row.ours["cifar10"] for row in others)]
    assert {(measurement.values, measurement.why) for measurement in empty} == {((), "not run at scale small")}
    assert (table.name, table.scale, table.seeds) == ("8", "small", 2)
    assert "B0 in the place of S by recipe transfer_paper on all training pictures of CIFAR-10" in table.ours_note
    assert "for 3 epochs at 96 px, batches of 64 and a rate in proportion, 2 seeds." in table.ours_note
    assert "Answered is all of test" in table.ours_note


def test_record_is_on_the_page(tmp_path, monkeypatch):
    dataset = SimpleNamespace(split=np.array(["train", "test"]))
    written = []
    monkeypatch.setattr(transfer, "RESULTS", tmp_path)
    monkeypatch.setattr(transfer.paper_page, "RECORDS", tmp_path)
    monkeypatch.setattr(transfer, "load_dataset", lambda images: dataset)
    monkeypatch.setattr(transfer, "rows_of", lambda *_: np.arange(1))
    monkeypatch.setattr(transfer, "write_pictures", lambda file, *_: file)
    row = {
        "top1": 0.9,
        "train_s": 1.0,
        "probe_top1": 0.8,
        "pictures": 9,
        "over_probe": {"top1": {"value": 0.1}},
        "hardware": "another machine",
    }
    monkeypatch.setattr(transfer, "asked", lambda *_: row)
    monkeypatch.setattr(transfer, "record", lambda name, **claim: written.append(claim["on"]))
    monkeypatch.setattr(transfer.paper_page, "write", lambda: written.append("the page"))
    monkeypatch.setattr(sys, "argv", ["transfer", "CIFAR10", "WEIGHTS", "--record", "--output", str(tmp_path)])
    transfer.main()
    assert written == ["another machine"] * 4 + ["the page"]
    assert json.loads((tmp_path / "transfer.json").read_text())["hardware"] == "another machine"
    table = Table.from_json(saved := json.loads((tmp_path / "8_small.json").read_text()))
    assert table.rows[0].ours["cifar10"].values == pytest.approx((90, 90, 90))
    assert saved["command"] == "python -m benchmarks.transfer CIFAR10 WEIGHTS --record"
    assert (saved["scale"], saved["hardware"]) == ("small", "another machine")
    assert "| efficientnetv2_s | 98.7 | 90.0 ± 0 | 91.5 | – |" in transfer.paper_page.text()
