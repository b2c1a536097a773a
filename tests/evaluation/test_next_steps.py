"""The next steps in a report: ranked by measurements, each with a valid command."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

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


def metadata(*, weights=None, px=224, command="effnetv2 train flowers --output runs/a --epochs 10", **changes):
    recipe = {
        "model": MODEL,
        "weights": weights or ranked_weights(MODEL)[0],
        "progressive": {"image_size": {"end": px}},
    }
    fields = {"num_train_images": 500, "epochs": 20.0, "command": command, "recipe": recipe} | changes
    return ReportMetadata(**({"data": "flowers", "evaluated_on": "val", "extra": {"run": "runs/a"}} | fields))


def topics(steps):
    return [step.topic for step in steps]


def test_causes_of_low_accuracy_come_before_more_labels():
    """Bundled weights, two epochs and small images come first. The last step refers to them."""
    facts = metadata(weights=SHIPPED, epochs=2.0, px=128, stored_size=256.0, label_conflicts=1)
    steps = next_steps(RIGHT, facts, data_scaling_curve=CURVE)
    assert topics(steps) == ["weights", "epochs", "image_size", "label_errors", "more_labels"]
    assert [step.rank for step in steps] == [1, 2, 3, 4, 5]
    assert "bundled weights" in steps[0].reason
    assert "2 epochs" in steps[1].reason
    assert "256 px" in steps[2].reason
    assert "128 px" in steps[2].reason
    assert "steps above first" in steps[-1].reason


def test_twice_as_many_labels_are_those_of_a_fold_in_a_cross_validation():
    (step,) = next_steps(RIGHT, metadata(evaluated_on="out-of-fold"), data_scaling_curve=CURVE)
    assert step.topic == "more_labels"
    assert mentions(step.reason, "twice those of one fold")


def test_more_labels_is_the_step_if_nothing_else_limits():
    (step,) = next_steps(RIGHT, metadata(), data_scaling_curve=CURVE)
    assert step.topic == "more_labels"
    assert "+3.0 points" in step.reason
    assert "steps above" not in step.reason
    assert step.command == "effnetv2 predict runs/a IMAGES --rank IMAGES/next.csv"
    assert topics(next_steps(RIGHT, metadata(), data_scaling_curve=CURVE | {"gain": -0.01})) == ["use"]
    little = {"gain": 0.008, "gain_low": -0.001, "gain_high": 0.018}  # of which the verdict is "Little."
    assert topics(next_steps(RIGHT, metadata(), data_scaling_curve=CURVE | little)) == ["use"]


def test_selected_image_size_is_what_the_model_sees():
    trained, selected = ({"run": "runs/a"} | size for size in ({}, {"image_size": 192}))
    assert topics(next_steps(RIGHT, metadata(px=128, stored_size=200.0, extra=trained)))[0] == "image_size"
    assert topics(next_steps(RIGHT, metadata(px=128, stored_size=200.0, extra=selected))) == ["use"]


@pytest.mark.parametrize(
    ("weights", "topic"),
    [("none", "weights"), (SHIPPED, "weights"), (ranked_weights(MODEL)[0], "use"), ("runs/before", "use")],
)
def test_imagenet_weights_replace_none_and_bundled_weights(weights, topic):
    step = next_steps(RIGHT, metadata(weights=weights))[0]
    assert step.topic == topic
    assert (ranked_weights(MODEL)[0] in step.command) == (topic == "weights")
    also = next_steps(RIGHT, metadata(weights=weights, command="effnetv2 train flowers --set weights=none"))[0]
    assert also.topic != "weights" or "weights=none" not in also.command


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [("my.yaml", True), ("mine/recipe.yaml", True), ("quick", False), ("runs/before/recipe.yaml", False)],
)
@pytest.mark.parametrize("option", ["--recipe", "--config"])
def test_recipe_of_the_user_stays_with_imagenet_weights(recipe, kept, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/before").mkdir(parents=True)
    (tmp_path / "runs/before/run.json").touch()
    command = f"effnetv2 train flowers {option} {recipe} --epochs 10"
    step = next_steps(RIGHT, metadata(weights=SHIPPED, command=command))[0]
    assert (f"{option} {recipe}" in step.command) == kept
    assert mentions(step.command, "--epochs 10", "--weights", ranked_weights(MODEL)[0])


def test_imagenet_weights_that_lost_a_comparison_are_not_proposed():
    starts = [{"weights": ranked_weights(MODEL)[0], "value": 0.5}, {"weights": "none", "value": 0.6}]
    facts = metadata(weights="none", extra={"weights_compared": {"candidates": starts}})
    assert topics(next_steps(RIGHT, facts)) == ["use"]


@pytest.mark.parametrize(
    ("epochs", "gain", "topic"),
    [(2.0, None, "epochs"), (20.0, 0.03, "epochs"), (20.0, 0.005, "use"), (20.0, -0.02, "use")],
)
def test_more_epochs_after_few_epochs_or_a_late_gain(epochs, gain, topic):
    (step,) = next_steps(RIGHT, metadata(epochs=epochs, late_gain=gain))
    assert step.topic == topic
    if gain and topic == "epochs":
        assert mentions(step.reason, "3.0", "points")
        assert "--epochs 40" in step.command


def test_optimistic_evaluation_proposes_other_images():
    facts = metadata(num_train_images=None, num_eval_images_seen_in_training=12)
    (step,) = next_steps(RIGHT, facts)
    assert "optimistic" in step.reason
    assert step.command == "effnetv2 evaluate runs/a DATA"
    for command in (
        "effnetv2 evaluate runs/a d --label-separator=';'",
        "effnetv2 evaluate runs/a d --label_separator ';'",
        "efficientnetv2.evaluate('runs/a', 'd', label_separator=';')",
        "efficientnetv2.evaluate(model='runs/a', data='d', label_separator=';', device='cpu')",
    ):
        (step,) = next_steps(RIGHT, replace(facts, command=command))
        assert step.command == "effnetv2 evaluate runs/a DATA --label-separator ';'"


def test_prediction_has_the_views_of_the_evaluation_and_the_model_of_a_fold():
    facts = metadata(num_train_images=None, tta="d4", command="effnetv2 evaluate runs/a d --tta d4")
    assert next_steps(RIGHT, facts)[-1].command == "effnetv2 predict runs/a IMAGES --tta d4"
    facts = replace(facts, command="effnetv2 evaluate runs/a d")
    assert next_steps(RIGHT, facts)[-1].command == "effnetv2 predict runs/a IMAGES", "those of the model file"
    facts = metadata(extra={"run": "runs/a", "model_for_new_images": "runs/a/fold1"})
    assert next_steps(RIGHT, facts)[-1].command == "effnetv2 predict runs/a/fold1 IMAGES", "no ensemble"


def test_early_stopped_run_gets_no_more_epochs():
    facts = metadata(epochs=3.0, extra={"stopped_early": True})
    assert topics(next_steps(RIGHT, facts)) == ["use"]


def test_lower_learning_rate_if_training_made_the_model_worse():
    recipe = {"model": MODEL, "weights": ranked_weights(MODEL)[0], "optimizer": {"lr": 0.0006}}
    extra = {"start_metric": 0.621, "trained_metric": 0.614}
    step = next_steps(RIGHT, metadata(recipe=recipe, kept_model="start", extra=extra))[0]
    assert "62.1\N{NO-BREAK SPACE}%" in step.reason
    assert "61.4\N{NO-BREAK SPACE}%" in step.reason
    assert step.topic == "learning_rate"
    assert step.command.endswith("--set optimizer.lr=0.0002")
    for given in ("--lr 0.0006", "--learning-rate 0.0006"):  # with both options `train` would stop
        facts = metadata(recipe=recipe, kept_model="start", extra=extra, command=f"effnetv2 train flowers {given}")
        assert next_steps(RIGHT, facts)[0].command == "effnetv2 train flowers --set optimizer.lr=0.0002"
    assert topics(next_steps(RIGHT, metadata(recipe=recipe, kept_model="trained"))) == ["use"]


def test_late_gain_is_of_the_selection_images():
    rows = [{"kind": "val", "epoch": e, "top1": 0.1 * e} for e in range(1, 9)]
    assert late_gain(rows) == pytest.approx(0.2)
    assert late_gain([*rows, *({"kind": "minival", "epoch": e, "top1": 0.5} for e in (1, 2))]) == 0
    assert late_gain(rows[:1]) is None
    few = [{"kind": "minival", "epoch": e, "top1": 0.8 + 0.02 * (e == 8), "num_images": 50} for e in range(1, 9)]
    assert late_gain(few) == 0, "2 points of 50 images are one image"
    assert late_gain([row | {"num_images": 500} for row in few]) == pytest.approx(0.02)


def test_late_gain_compares_equal_images_and_views():
    """Without a selection set, the last row is the evaluation: of all images, and with TTA."""
    rows = [{"kind": "val", "epoch": e, "top1": 0.5, "num_images": 512} for e in range(1, 8)]
    assert late_gain([*rows, {"kind": "val", "epoch": 8, "top1": 0.6, "num_images": 4000}]) is None
    rows.append({"kind": "val", "epoch": 8, "top1": 0.6, "num_images": 512})
    assert late_gain(rows) == pytest.approx(0.1)
    assert late_gain(rows, tta="d4") is None
    assert late_gain([row | {"kind": "minival"} for row in rows], tta="d4") == pytest.approx(0.1)


def test_late_gain_is_interpolated_between_validations():
    """At epochs 2 and 4 of 4, epoch 3 is half of the way."""
    rows = [{"kind": "val", "epoch": epoch, "top1": top1} for epoch, top1 in ((2.0, 0.5), (4.0, 0.7))]
    assert late_gain(rows) == pytest.approx(0.1)
    assert late_gain([rows[0], rows[1] | {"epoch": 10.0}]) is None, "no validation in the second half"


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (
            "efficientnetv2.train('my flowers', output='runs/a', image_size=64, epochs=2.0, bands=(4, 3, 2), "
            "strict=True, settings={'patience': None, 'progressive.stages': 1})",
            "effnetv2 train 'my flowers' --image-size 64 --bands 4,3,2 --strict --set patience=null "
            "--set progressive.stages=1 --epochs 10",
        ),
        (
            "efficientnetv2.cross_validate(data='x', folds=3, candidates=[{'class_sampling': None, 'seed': 1}], "
            "members=2, candidate_settings={'epochs': 4}, lr=0.00123456789)",
            "effnetv2 crossval x --folds 3 --lr 0.00123456789 --ensemble 2 --candidate-set epochs=4 "
            "--candidate 'class_sampling=null seed=1' --epochs 10",
        ),
        ("efficientnetv2.cross_validate('x', candidates=None, by=None)", "effnetv2 crossval x --epochs 10"),
        ("efficientnetv2.evaluate('runs/a', 'x')", "effnetv2 train flowers --epochs 10"),
        ("efficientnetv2.train('x', seed=3, callbacks=...)", "effnetv2 train x --seed 3 --epochs 10"),
        (
            "efficientnetv2.train('x', model=..., label_column='species', image_size=64)",
            "effnetv2 train x --label-column species --image-size 64 --recipe runs/a --epochs 10",
        ),
        ("efficientnetv2.train('x\"', recipe=<it's>)", "effnetv2 train flowers --epochs 10"),
    ],
)
def test_step_repeats_the_options_of_a_python_call(call, command):
    """Objects have no text: the recipe of the run has them, but for callbacks."""
    (step,) = next_steps(RIGHT, metadata(epochs=2.0, command=call))
    assert step.command == command


def test_cross_validation_with_objects_is_not_repeated():
    """It has no recipe of its own that would have them."""
    (step,) = next_steps(RIGHT, metadata(epochs=2.0, command="efficientnetv2.cross_validate('x', model=...)"))
    assert step.topic == "use"
    assert "candidates" not in step.reason


def test_larger_images_get_more_minutes():
    """Twice the size has four times the pixels."""
    facts = metadata(px=128, stored_size=300.0, command="effnetv2 train flowers --minutes 5 --output runs/a")
    (step,) = next_steps(RIGHT, facts)
    assert step.command == "effnetv2 train flowers --image-size 256 --minutes 20"
    facts = metadata(px=128, stored_size=300.0, command="effnetv2 train flowers --minutes 600 --output runs/a")
    assert next_steps(RIGHT, facts)[0].command.endswith("--minutes 2400"), "no separator of thousands"


def test_larger_images_replace_every_setting_of_the_size():
    facts = metadata(px=96, stored_size=300.0, command="effnetv2 train f --set progressive.image_size.end=96 --seed 1")
    assert next_steps(RIGHT, facts)[0].command == "effnetv2 train f --seed 1 --image-size 192"
    whole = "--set 'progressive={image_size: 96, stages: 1}'"
    assert topics(next_steps(RIGHT, replace(facts, command=f"effnetv2 train f {whole}"))) == ["use"]


def test_time_of_larger_images_is_that_of_the_training_size():
    """From 224 to 480 px: 4.6 times the pixels, whatever the size of the evaluation."""
    recipe = metadata(px=224).recipe | {"eval_image_size": 288}
    (step,) = next_steps(RIGHT, metadata(recipe=recipe, stored_size=512.0, command="effnetv2 train f --minutes 30"))
    assert mentions(step.reason, "288 px", "4.6 times")
    assert step.command == "effnetv2 train f --image-size 480 --minutes 140"


def test_step_that_a_candidate_would_undo_is_left_out():
    low_recall = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    support = {"daisy": 300, "rose": 150, "tulip": 30}
    for candidate, found in (
        ("class_sampling=null", ["use"]),
        ("optimizer.lr=0.1 class_sampling=equal", ["use"]),
        ("optimizer.lr=0.1", ["class_imbalance"]),
    ):
        facts = metadata(command=f"effnetv2 crossval f --candidate '{candidate}'", train_images_per_class=support)
        assert topics(next_steps(low_recall, facts)) == found


def test_rare_classes_with_low_recall_suggest_class_balance():
    """All images of the rare class are predicted as the frequent class."""
    low_recall = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    support = {"daisy": 300, "rose": 150, "tulip": 30}
    step = next_steps(low_recall, metadata(train_images_per_class=support))[0]
    assert step.topic == "class_imbalance"
    assert mentions(step.reason, "30", "300")
    assert mentions(step.command, "--set", "class_sampling=equal")
    assert topics(next_steps(RIGHT, metadata(train_images_per_class=support))) == ["use"]
    assert topics(next_steps(low_recall, metadata(train_images_per_class=dict.fromkeys(NAMES, 99)))) == ["use"]


@pytest.mark.parametrize("field", ["class_weights=equal", "logit_adjustment=1"])
def test_proposed_class_balance_replaces_that_of_the_run(field):
    low_recall = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    support, (name, _, value) = {"daisy": 300, "rose": 150, "tulip": 30}, field.partition("=")
    command = f"effnetv2 train f --set class_sampling=null --set {field}"
    recipe = metadata().recipe | {name: value}
    step = next_steps(low_recall, metadata(command=command, recipe=recipe, train_images_per_class=support))[0]
    assert step.command == f"effnetv2 train f --set class_sampling=equal --set {name}=null"


def test_many_label_conflicts_come_before_epochs():
    few, many = (next_steps(RIGHT, metadata(epochs=2.0, label_conflicts=count, command=None)) for count in (1, 50))
    assert topics(few) == ["epochs", "label_errors"]
    assert topics(many) == ["label_errors", "epochs"]
    assert mentions(many[0].reason, "50", "identical")
    assert many[0].command == "effnetv2 check flowers"


def test_errors_are_suspect_labels_only_in_an_accurate_model():
    """At a confidence of 0.9 or more: 3 errors of 100 are suspect labels, 50 errors are not."""
    confidence = np.full(100, 0.95)
    assert suspect_labels(coverage_curve(np.arange(100) >= 3, confidence)) == 3
    assert suspect_labels(coverage_curve(np.arange(100) >= 50, confidence)) == 0
    assert suspect_labels(coverage_curve(np.arange(100) >= 3, confidence - 0.1)) == 0
    (step,) = next_steps(RIGHT, metadata(command="effnetv2 train f.csv --label-column kind"), suspects=3)
    assert "3 images" in step.reason
    assert step.command == "effnetv2 check flowers --label-column kind --weights auto"


def test_evaluation_proposes_no_training():
    facts = ReportMetadata("new.csv", "test", model="runs/a", recipe={"model": MODEL, "weights": "none"}, epochs=1.0)
    (step,) = next_steps(RIGHT, facts)
    assert (step.topic, step.command) == ("use", "effnetv2 predict runs/a IMAGES")
    facts = replace(facts, command="effnetv2 train a.csv --label-separator ';'")
    assert next_steps(RIGHT, facts)[-1].command == "effnetv2 predict runs/a IMAGES --label-separator ';'"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "effnetv2 train 'my flowers' --output runs/a --resume --label-column kind --epochs 2 --set minival=0.1",
            "effnetv2 train 'my flowers' --label-column kind --set minival=0.1 --epochs 10",
        ),
        ("effnetv2 train flowers --out a --name b --project c --baseline d", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 train flowers --minutes=6 --output=x --json", "effnetv2 train flowers --minutes 12"),
        ("effnetv2 train flowers --output_dir=x --output-dir y", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 train flowers --set=epochs=2 --set lr=1", "effnetv2 train flowers --set lr=1 --epochs 10"),
        ("effnetv2 train flowers --set steps=100", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 train flowers --set 'epochs = 2'", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 train flowers --steps 100", "effnetv2 train flowers --epochs 10"),
        ("effnetv2 crossval f.csv --by place", "effnetv2 crossval f.csv --by place --epochs 10"),
        ("effnetv2 demo", "effnetv2 train flowers --epochs 10"),
        (None, "effnetv2 train flowers --epochs 10"),
    ],
)
def test_command_equals_that_of_the_run_with_one_change(command, expected):
    assert next_steps(RIGHT, metadata(command=command, epochs=2.0))[0].command == expected


def test_check_command_keeps_the_data_options():
    facts = metadata(command="effnetv2 train flowers --layout classes --nodata=-9999", label_conflicts=1)
    (step,) = next_steps(RIGHT, facts)
    assert step.command == "effnetv2 check flowers --nodata -9999 --layout classes"


def test_every_command_is_valid():
    low_recall = classification_metrics(TRUE, np.eye(3)[np.where(TRUE == 2, 0, TRUE)], NAMES)
    facts = metadata(
        weights="none", epochs=2.0, px=64, stored_size=300.0, label_conflicts=2,
        train_images_per_class={"daisy": 300, "rose": 150, "tulip": 30},
    )  # fmt: skip
    steps = next_steps(low_recall, facts, data_scaling_curve=CURVE, suspects=4)
    assert len(steps) == 6
    program = get_command(app)
    for step in steps:
        name, *args = shlex.split(step.command)[1:]
        program.commands[name].make_context(name, args)  # fails for an unknown option


def test_page_and_json_list_the_steps_in_order(tmp_path):
    facts = metadata(weights=SHIPPED, epochs=2.0)
    report.Report(metrics=RIGHT, intervals=bootstrap_intervals(RIGHT, key=Key.of(0), draws=20), metadata=facts).write(
        tmp_path
    )
    steps = report.Report(RIGHT, bootstrap_intervals(RIGHT, key=Key.of(0), draws=20), facts).to_json()["next_steps"]
    assert [(step["rank"], step["topic"]) for step in steps] == [(1, "weights"), (2, "epochs")]
    html = re.sub("<(?!svg)[^>]+>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    places = [html.index(step["command"]) for step in steps]
    assert places == sorted(places)
    assert places[-1] < html.index('class="matrix"')
