"""What a report proposes next: ranked by what was measured, each step with a command that the command line takes."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
from tests.messages import mentions
from typer.main import get_command

from efficientnetv2.cli.main import app
from efficientnetv2.evaluation import report
from efficientnetv2.evaluation.next_steps import late_gain, next_steps, suspect_labels
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.calibration import coverage_curve
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.models.pretrained import ranked_weights
from efficientnetv2.utils.random_key import Key

NAMES = ("daisy", "rose", "tulip")
TRUE = np.repeat([0, 1, 2], [60, 30, 20])
RIGHT = classification_metrics(TRUE, np.eye(3)[TRUE], NAMES)
MODEL = "efficientnetv2_b0"
SHIPPED = f"/somewhere/examples/weights/{MODEL}.safetensors"
CURVE = {
    "gain": 0.03, "gain_low": 0.01, "gain_high": 0.05, "forecast": {"num_images": 5528, "macro_f1": 0.6},
}  # fmt: skip


def facts(*, weights=None, px=224, command="effnetv2 train flowers --output runs/a --epochs 10", **more):
    recipe = {
        "model": MODEL,
        "weights": weights or ranked_weights(MODEL)[0],
        "progressive": {"image_size": {"end": px}},
    }
    given = {"num_train_images": 500, "epochs": 20.0, "command": command, "recipe": recipe} | more
    return ReportMetadata(**({"data": "flowers", "evaluated_on": "val", "extra": {"run": "runs/a"}} | given))


def topics(steps):
    return [step.topic for step in steps]


def test_what_limits_a_run_comes_before_more_labels():
    """Weights of aerial images, two epochs, small images: labels come last, and the step says why."""
    told = facts(weights=SHIPPED, epochs=2.0, px=128, stored_size=256.0, label_conflicts=1)
    steps = next_steps(RIGHT, told, data_scaling_curve=CURVE)
    assert topics(steps) == ["weights", "epochs", "image_size", "label_errors", "more_labels"]
    assert [step.rank for step in steps] == [1, 2, 3, 4, 5]
    assert "aerial" in steps[0].reason
    assert "2 epochs" in steps[1].reason
    assert "256 px" in steps[2].reason
    assert "128 px" in steps[2].reason
    assert "steps above first" in steps[-1].reason


def test_where_labels_alone_limit_they_are_the_step():
    (step,) = next_steps(RIGHT, facts(), data_scaling_curve=CURVE)
    assert step.topic == "more_labels"
    assert "+3.0 points" in step.reason
    assert "steps above" not in step.reason
    assert step.command == "effnetv2 predict runs/a IMAGES --rank next.csv"
    assert topics(next_steps(RIGHT, facts(), data_scaling_curve=CURVE | {"gain": -0.01})) == ["use"]


@pytest.mark.parametrize(
    ("weights", "topic"),
    [("none", "weights"), (SHIPPED, "weights"), (ranked_weights(MODEL)[0], "use"), ("runs/before", "use")],
)
def test_imagenet_weights_are_proposed_where_the_run_had_none_or_the_bundled_ones(weights, topic):
    step = next_steps(RIGHT, facts(weights=weights))[0]
    assert step.topic == topic
    assert (ranked_weights(MODEL)[0] in step.command) == (topic == "weights")


def test_imagenet_weights_that_lost_the_comparison_are_not_proposed():
    starts = [{"weights": ranked_weights(MODEL)[0], "value": 0.5}, {"weights": "none", "value": 0.6}]
    told = facts(weights="none", extra={"weights_compared": {"starts": starts}})
    assert topics(next_steps(RIGHT, told)) == ["use"]


@pytest.mark.parametrize(
    ("epochs", "gain", "topic"),
    [(2.0, None, "epochs"), (20.0, 0.03, "epochs"), (20.0, 0.005, "use"), (20.0, -0.02, "use")],
)
def test_more_epochs_where_there_were_few_or_the_metric_still_rose(epochs, gain, topic):
    (step,) = next_steps(RIGHT, facts(epochs=epochs, late_gain=gain))
    assert step.topic == topic
    if gain and topic == "epochs":
        assert mentions(step.reason, "3.0", "points")
        assert "--epochs 40" in step.command


def test_a_run_that_ended_by_itself_is_not_made_longer():
    told = facts(epochs=3.0, extra={"stopped_early": True})
    assert topics(next_steps(RIGHT, told)) == ["use"]


def test_where_training_made_the_start_worse_the_rate_is_lowered():
    recipe = {"model": MODEL, "weights": ranked_weights(MODEL)[0], "optimizer": {"lr": 0.0006}}
    others = {"start_metric": 0.621, "trained_metric": 0.614}
    step = next_steps(RIGHT, facts(recipe=recipe, kept_model="start", extra=others))[0]
    assert "62.1\N{NO-BREAK SPACE}%" in step.reason
    assert "61.4\N{NO-BREAK SPACE}%" in step.reason
    assert step.topic == "learning_rate"
    assert step.command.endswith("--set optimizer.lr=0.0002")
    assert topics(next_steps(RIGHT, facts(recipe=recipe, kept_model="trained"))) == ["use"]


def test_the_late_gain_is_of_the_images_that_select():
    rows = [{"kind": "val", "epoch": e, "top1": 0.1 * e} for e in range(1, 9)]
    assert late_gain(rows) == pytest.approx(0.2)
    assert late_gain([*rows, *({"kind": "minival", "epoch": e, "top1": 0.5} for e in (1, 2))]) == 0
    assert late_gain(rows[:1]) is None
    few = [{"kind": "minival", "epoch": e, "top1": 0.8 + 0.02 * (e == 8), "num_images": 50} for e in range(1, 9)]
    assert late_gain(few) == 0, "of 50 images, 2 points are a single one"
    assert late_gain([row | {"num_images": 500} for row in few]) == pytest.approx(0.02)


def test_rare_classes_that_lag_are_balanced():
    """All of the rare class is taken for the frequent one."""
    behind = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    support = {"daisy": 300, "rose": 150, "tulip": 30}
    step = next_steps(behind, facts(train_images_per_class=support))[0]
    assert step.topic == "class_imbalance"
    assert mentions(step.reason, "30", "300")
    assert mentions(step.command, "--set", "class_sampling=equal")
    assert topics(next_steps(RIGHT, facts(train_images_per_class=support))) == ["use"]
    assert topics(next_steps(behind, facts(train_images_per_class=dict.fromkeys(NAMES, 99)))) == ["use"]


def test_conflicting_labels_of_many_images_come_before_epochs():
    few, many = (next_steps(RIGHT, facts(epochs=2.0, label_conflicts=count, command=None)) for count in (1, 50))
    assert topics(few) == ["epochs", "label_errors"]
    assert topics(many) == ["label_errors", "epochs"]
    assert mentions(many[0].reason, "50", "identical")
    assert many[0].command == "effnetv2 check flowers"


def test_errors_are_suspect_labels_only_where_the_model_is_mostly_right():
    """At 90 % or more: 3 of 100 wrong are suspect; of 100 of which half is wrong, none."""
    sure = np.full(100, 0.95)
    assert suspect_labels(coverage_curve(np.arange(100) >= 3, sure)) == 3
    assert suspect_labels(coverage_curve(np.arange(100) >= 50, sure)) == 0
    assert suspect_labels(coverage_curve(np.arange(100) >= 3, sure - 0.1)) == 0
    (step,) = next_steps(RIGHT, facts(command="effnetv2 train f.csv --label-column kind"), suspects=3)
    assert "3 images" in step.reason
    assert step.command == "effnetv2 check flowers --label-column kind --weights auto"


def test_an_evaluation_proposes_nothing_about_training():
    told = ReportMetadata("new.csv", "test", model="runs/a", recipe={"model": MODEL, "weights": "none"}, epochs=1.0)
    (step,) = next_steps(RIGHT, told)
    assert (step.topic, step.command) == ("use", "effnetv2 predict runs/a IMAGES")


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (
            "effnetv2 train 'my flowers' --output runs/a --resume --label-column kind --epochs 2 --set minival=0.1",
            "effnetv2 train 'my flowers' --label-column kind --set minival=0.1 --epochs 10",
        ),
        ("effnetv2 train flowers --minutes=6 --output=x --json", "effnetv2 train flowers --minutes 12"),
        ("effnetv2 train flowers --output_dir=x --output-dir y", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 train flowers --set=epochs=2 --set lr=1", "effnetv2 train flowers --set lr=1 --epochs 10"),
        ("effnetv2 train flowers --set steps=100", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 crossval f.csv --by place", "effnetv2 crossval f.csv --by place --epochs 10"),
        ("effnetv2 demo", "effnetv2 train flowers --epochs 10"),
        (None, "effnetv2 train flowers --epochs 10"),
    ],
)
def test_the_command_is_that_of_the_run_with_one_change(command, again):
    assert next_steps(RIGHT, facts(command=command, epochs=2.0))[0].command == again


def test_a_check_of_labels_reads_the_data_as_the_run_did():
    told = facts(command="effnetv2 train flowers --layout classes --nodata=-9999", label_conflicts=1)
    (step,) = next_steps(RIGHT, told)
    assert step.command == "effnetv2 check flowers --nodata -9999 --layout classes"


def test_every_command_is_one_that_the_command_line_takes():
    behind = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    told = facts(
        weights="none", epochs=2.0, px=64, stored_size=300.0, label_conflicts=2,
        train_images_per_class={"daisy": 300, "rose": 150, "tulip": 30},
    )  # fmt: skip
    steps = next_steps(behind, told, data_scaling_curve=CURVE, suspects=4)
    assert len(steps) == 6
    program = get_command(app)
    for step in steps:
        name, *words = shlex.split(step.command)[1:]
        program.commands[name].make_context(name, words)  # fails on an option that there is not


def test_the_page_and_the_json_hold_the_steps_in_order(tmp_path):
    told = facts(weights=SHIPPED, epochs=2.0)
    report.Report(metrics=RIGHT, intervals=bootstrap_intervals(RIGHT, key=Key.of(0), draws=20), metadata=told).write(
        tmp_path
    )
    steps = report.Report(RIGHT, bootstrap_intervals(RIGHT, key=Key.of(0), draws=20), told).to_json()["next_steps"]
    assert [(step["rank"], step["topic"]) for step in steps] == [(1, "weights"), (2, "epochs")]
    html = re.sub("<(?!svg)[^>]+>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    places = [html.index(step["command"]) for step in steps]
    assert places == sorted(places)
    assert places[-1] < html.index('class="matrix"')
