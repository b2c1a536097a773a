"""What to do next: the steps that promise to improve a model, ranked by what was measured or is known of its run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.evaluation.html import number, percent, round_percent
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.metrics.selective import CoverageCurve
from efficientnetv2.models import pretrained
from efficientnetv2.utils.errors import count_of
from efficientnetv2.utils.shell import typed

Topic = Literal[
    "weights", "epochs", "learning_rate", "image_size", "label_errors", "class_imbalance", "more_labels", "use"
]  # fmt: skip

# Fewer epochs than these leave a model undertrained, whatever its last validations say. Ours.
_FEW_EPOCHS = 5.0
# Share of the training whose gain says whether the metric still rises, and the gain from which it does. Ours.
_LAST_PART, _RISING = 0.25, 0.01
# What the learning rate is divided by where training has made the start worse. Ours.
_LOWER = 3.0
# Images that have to change for a gain to be more than chance in a few of them. Ours.
_LEAST_GAINED = 3
# How much larger images are stored than the model sees them, for larger ones to promise something. Ours.
_LARGER = 1.25
# At most, in pixels, and of what size a multiple: five halvings of each side. Ours, from what trains within hours.
_MOST_PX, _MULTIPLE_PX = 480, 32
# From this probability on a prediction is confident. Its errors are suspect labels if so large a share is right. Ours.
_CONFIDENT, _MOSTLY_RIGHT = 0.9, 0.9
# Share of the images with conflicting labels from which these come before epochs and image size. Ours.
_MANY_CONFLICTS = 0.01
# Imbalance of the training images, and the lag of the rare classes' recall, from which balancing is proposed. Ours.
_IMBALANCE, _LAG = 3.0, 0.1
# Images of the rare classes to measure on, at least. Ours.
_LEAST_RARE = 10
# Points of macro-F1 that twice the labels have to bring to be worth a step: see ``evaluation.label_efficiency``. Ours.
_WORTH = 0.005
#: Steps after which the learning curve of the probe, or what training makes of more labels, is another.
CHANGE_THE_PROBE = {"weights", "epochs", "learning_rate", "image_size"}
# Options of the training command that another run does not repeat; the second ones take no value.
_OWN = ("--out", "--output", "--output-dir", "-o", "--against")
_FLAGS = ("--resume", "--json")
_LENGTH = ("--epochs", "--minutes")
_PX = ("--image-px", "--img-size", "--image-size", "--imgsz")
_TABLE = (
    "--path-column", "--label-column", "--group-column", "--labels", "--label-separator", "--bands",
    "--nodata", "--layout",
)  # fmt: skip


@dataclass(frozen=True)
class NextStep:
    """A step that promises a better model, or the use of this one.

    Args:
        rank: Position in the list, from 1. The first step promises most.
        topic: What the step changes.
        action: The step as a heading.
        reason: Why, in sentences, with the measured numbers.
        command: The command of the step, as one types it.
    """

    rank: int
    topic: Topic
    action: str
    reason: str
    command: str

    @property
    def line(self) -> str:
        """The step as a line of the screen, with the first sentence of its reason."""
        first = self.reason.partition(". ")[0].removesuffix(".")
        return f"{self.action} ({first[0].lower()}{first[1:]}): {self.command}"


def next_steps(
    metrics: Metrics,
    metadata: ReportMetadata,
    *,
    label_curve: Mapping[str, Any] | None = None,
    suspects: int = 0,
) -> tuple[NextStep, ...]:
    """The steps of a run, a cross-validation or an evaluation, the most promising first.

    Args:
        figures: Metrics of the evaluated images.
        facts: Facts of the report.
        label_curve: The learning curve of the linear probe as ``report.json`` has it. None if not measured.
        suspects: Number of evaluated images whose label is suspect, as ``suspect_labels`` counts them.

    Returns:
        At least one step. Without a measured limit it is the use of the model.

    Example:
        >>> from efficientnetv2.evaluation.report import Facts
        >>> from efficientnetv2.metrics.classification import figures
        >>> shown = figures([0, 1], [[0.9, 0.1], [0.2, 0.8]], ("a", "b"))
        >>> next_steps(shown, Facts("photos", "val", model="runs/a"))[0].command
        'effnetv2 predict runs/a IMAGES'
    """
    found: list[tuple[float, NextStep]] = []
    if metadata.is_training_report:
        found += [
            (order, step)
            for order, step in (
                (1.0, _weights(metadata)),
                (0.5 if (metadata.epochs or 1) < 1 else 2.0, _epochs(metadata)),
                (2.5, _learning_rate(metadata)),
                (3.0, _image_size(metadata)),
                (5.0, _imbalance(metrics, metadata)),
                (6.0, _more_labels(metadata, label_curve)),
            )
            if step is not None
        ]
    if (step := _label_errors(metadata, suspects)) is not None:
        of = metrics.pictures + (metadata.train_pictures or 0)
        found.append((1.5 if metadata.label_conflicts > _MANY_CONFLICTS * of else 4.0, step))
    steps = [step for _, step in sorted(found, key=lambda one: one[0])]
    if steps and steps[-1].topic == "more_labels" and {one.topic for one in steps} & CHANGE_THE_PROBE:
        first = f"{steps[-1].reason} Do the steps above first: they change this estimate."
        steps[-1] = replace(steps[-1], reason=first)
    steps = steps or [_use(metadata)]
    return tuple(replace(step, rank=rank) for rank, step in enumerate(steps, start=1))


def suspect_labels(curve: CoverageCurve) -> int:
    """Number of errors at a probability of 90 % or more, if 90 % of these predictions are right, else 0.

    Errors of a model that is seldom right, however confident, say little of the labels.

    Args:
        curve: Accuracy against the share of images with a prediction.
    """
    count, accuracy, _ = curve.answered_at(_CONFIDENT)
    if accuracy is None or accuracy < _MOSTLY_RIGHT:
        return 0
    return round(count * (1 - accuracy))


def late_gain(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The gain of validation top-1 in the last quarter of the training, as a fraction. None if not measured.

    A gain of fewer than 3 images counts as 0.

    Args:
        history: Rows of ``metrics.jsonl``. The selection set counts where there is one.
    """
    for kind in ("minival", "val"):
        points = [
            (row["epoch"], row["top1"], row.get("images", 10**9))
            for row in history
            if row.get("kind") == kind and row.get("top1") is not None
        ]
        if len(points) > 1:
            epochs, scores, images = np.array(points, dtype=np.float64).T
            before = np.flatnonzero(epochs <= (1 - _LAST_PART) * epochs[-1])
            gain = float(scores[-1] - scores[before[-1] if len(before) else 0])
            return gain if abs(gain) * images.min() > _LEAST_GAINED - 0.5 else 0.0
    return None


def _weights(metadata: ReportMetadata) -> NextStep | None:
    """ImageNet weights, where the run began without weights or with those of the repository."""
    recipe = metadata.recipe or {}
    model, start = recipe.get("model"), str(recipe.get("weights"))
    if model not in NAMES or recipe.get("made_for") is not None:
        return None
    known = pretrained.best(model)
    compared = [one["weights"] for one in metadata.others.get("weights_compared", {}).get("starts", ())]
    shipped = start.endswith(f"{model}.safetensors") and Path(start).parent.name == "weights"
    if not known or not (start == "none" or shipped) or set(compared) & set(known):
        return None
    began = (
        "The run started from the bundled weights, which were trained on aerial images."
        if shipped
        else "The run started from random weights."
    )
    measured = (
        ""
        if metadata.linear_probe is None
        else f" A linear probe of these weights reaches top-1 {percent(metadata.linear_probe)}."
    )
    few = (
        ""
        if metadata.train_pictures is None
        else f", above all with {metadata.train_pictures:,} training images"
    )
    fetch = typed(["effnetv2", "models", "--fetch", known[0]])
    reason = (
        f"{began}{measured} ImageNet weights usually give far more{few}. Without a network here, run {fetch} on "
        "another machine. Copy the file that it names, and pass it as --weights FILE."
    )
    settings = ("initialisation", "classifier") if start == "none" else ()
    command = _again(
        metadata, ["--weights", known[0]], without=("--weights", "--recipe"), without_fields=settings
    )
    return NextStep(0, "weights", "Start from ImageNet weights", reason, command)


def _epochs(metadata: ReportMetadata) -> NextStep | None:
    """More epochs, where there were few or the metric still rose."""
    epochs = metadata.epochs
    if epochs is None or metadata.others.get("stopped_early"):
        return None
    gain = metadata.late_gain
    rising = gain is not None and gain > _RISING
    if epochs >= _FEW_EPOCHS and not rising:
        return None
    reason = f"The model was trained for {count_of(float(f'{epochs:.3g}'), 'epoch')}."
    if rising and gain is not None:
        reason += f" Validation top-1 still rose by {100 * gain:.1f} points in the last quarter."
    said = _value(metadata.command, "--minutes")
    length = ["--epochs", f"{max(2 * epochs, 2 * _FEW_EPOCHS):.3g}"]
    if said is not None:
        length = ["--minutes", number(2 * float(said))]
    return NextStep(
        0,
        "epochs",
        "Train longer",
        reason,
        _again(metadata, length, without=_LENGTH, without_fields=("steps", "epochs")),
    )


def _learning_rate(metadata: ReportMetadata) -> NextStep | None:
    """A lower rate, where training has made a pretrained start worse."""
    rate = (metadata.recipe or {}).get("optimizer", {}).get("lr")
    if metadata.kept_model != "start" or rate is None or (metadata.epochs or 0) < _FEW_EPOCHS:
        return None
    start, trained = (metadata.others.get(f"{which}_metric") for which in ("start", "trained"))
    reached = (
        ""
        if None in (start, trained)
        else f" It reached {percent(start)} there, training {percent(trained)}."
    )
    reason = (
        "The model before training was kept, as no trained one was better on the selection set."
        f"{reached} The learning rate was {rate:g}."
    )
    command = _again(
        metadata,
        ["--set", f"optimizer.lr={float(f'{rate / _LOWER:.2g}'):g}"],
        without_fields=("optimizer.lr",),
    )
    return NextStep(0, "learning_rate", "Lower the learning rate", reason, command)


def _image_size(metadata: ReportMetadata) -> NextStep | None:
    """Larger images, where they are stored larger than the model sees them."""
    recipe, stored = metadata.recipe or {}, metadata.stored_px
    px = recipe.get("eval_px") or recipe.get("progressive", {}).get("image_px")
    if isinstance(px, Mapping):
        px = px.get("end")
    if not isinstance(px, (int, float)) or stored is None or stored < _LARGER * px:
        return None
    larger = int(min(stored, 2 * px, _MOST_PX)) // _MULTIPLE_PX * _MULTIPLE_PX
    if larger <= px:
        return None
    reason = (
        f"Images are stored at {stored:,.0f} px (median shorter side). The model sees {px:,.0f} px. "
        f"Training at {larger} px takes about {number(float(f'{(larger / px) ** 2:.2g}'))} times as long."
    )
    command = _again(
        metadata, ["--image-px", str(larger)], without=_PX, without_fields=("progressive.image_px", "eval_px")
    )
    return NextStep(0, "image_size", "Use larger images", reason, command)


def _label_errors(metadata: ReportMetadata, suspects: int) -> NextStep | None:
    """A look at labels that contradict each other, or the model where it is confident and mostly right."""
    reasons = []
    if count := metadata.label_conflicts:
        verb = "has" if count == 1 else "have"
        reasons.append(f"{count_of(count, 'pair')} of identical images {verb} different labels.")
    if suspects:
        verb = "contradicts" if suspects == 1 else "contradict"
        reasons.append(
            f"The labels of {count_of(suspects, 'image')} {verb} a prediction of {round_percent(_CONFIDENT)} or more, "
            "which is mostly right."
        )
    if not reasons:
        return None
    kept = [word for name in _TABLE if (said := _value(metadata.command, name)) for word in (name, said)]
    words = ["effnetv2", "inspect", metadata.data, *kept, *(["--weights", "auto"] if suspects else [])]
    return NextStep(0, "label_errors", "Check suspicious labels", " ".join(reasons), typed(words))


def _imbalance(metrics: Metrics, metadata: ReportMetadata) -> NextStep | None:
    """Balanced sampling, where classes with few training images have a lower recall."""
    recipe, support = metadata.recipe or {}, metadata.train_support
    if isinstance(metrics, MultilabelMetrics) or recipe.get("balance") == "equal":
        return None
    there = {name: int(count) for name, count in support.items() if int(count)}
    if len(there) < 2 or max(there.values()) < _IMBALANCE * min(there.values()):
        return None
    limit = max(there.values()) / _IMBALANCE
    recalls: dict[bool, list[float]] = {True: [], False: []}
    images = 0
    for name, count in there.items():
        one = metrics.per_class.get(name)
        if one is not None and one.recall is not None:
            recalls[count <= limit].append(one.recall)
            images += one.support * (count <= limit)
    if not all(recalls.values()) or images < _LEAST_RARE:
        return None
    rare, others = (float(np.mean(recalls[of])) for of in (True, False))
    if others - rare < _LAG:
        return None
    fewest, most = min(there.values()), max(there.values())
    reason = (
        f"Classes have {fewest:,} to {most:,} training images. Mean recall is {percent(rare)} for "
        f"{count_of(len(recalls[True]), 'rare class')} and {percent(others)} for the rest."
    )
    command = _again(metadata, ["--set", "balance=equal"], without_fields=("balance",))
    return NextStep(0, "class_imbalance", "Balance the classes", reason, command)


def _more_labels(metadata: ReportMetadata, curve: Mapping[str, Any] | None) -> NextStep | None:
    """More labels, where the learning curve of the linear probe rises."""
    if curve is None or curve["gain"] <= _WORTH:
        return None
    forecast, points = curve["forecast"], 100 * curve["gain"]
    low, high = 100 * curve["gain_low"], 100 * curve["gain_high"]
    reason = (
        f"With {forecast['pictures']:,} labels, twice as many, a linear probe is estimated to gain {points:+.1f} "
        f"points of macro-F1 (95 % CI {low:+.1f} to {high:+.1f}). The command ranks images without labels."
    )
    words = ["effnetv2", "predict", model_of(metadata), "IMAGES", "--rank", "next.csv"]
    return NextStep(0, "more_labels", "Label more images", reason, typed(words))


def _use(metadata: ReportMetadata) -> NextStep:
    reason = "No limit was measured that a usual step would lift."
    return NextStep(0, "use", "Use the model", reason, predict_command(metadata))


def predict_command(metadata: ReportMetadata) -> str:
    """The command that predicts new images with the model of a report.

    Args:
        facts: Facts of the report.
    """
    return typed(["effnetv2", "predict", model_of(metadata), "IMAGES"])


def model_of(metadata: ReportMetadata) -> str:
    """What ``predict`` and ``Predictor`` take as the model of a report.

    Args:
        facts: Facts of the report.
    """
    return str(metadata.others.get("run") or metadata.model or "MODEL")


def _again(
    metadata: ReportMetadata,
    words: Sequence[str],
    *,
    without: Collection[str] = (),
    without_fields: Collection[str] = (),
) -> str:
    """The training command with other options; of a run that another command began, a plain one."""
    said = _split(metadata.command)
    if said[:2] not in (["effnetv2", "train"], ["effnetv2", "crossval"]):
        return typed(["effnetv2", "train", metadata.data, *words])
    kept, rest = said[:2], iter(said[2:])
    for word in rest:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")  # as the command line takes it
        if name in _FLAGS:
            continue
        if name == "--set":
            value = value if equals else next(rest, "")
            if value.partition("=")[0] not in without_fields:
                kept += ["--set", value]
        elif name not in (*_OWN, *without):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return typed([*kept, *words])


def _value(command: str | None, option: str) -> str | None:
    """The value of an option of a command that was typed; None without it."""
    words = iter(_split(command))
    for word in words:
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else next(words, "")
    return None


def _split(command: str | None) -> list[str]:
    """A command of ``utils.shell`` in words."""
    if os.name != "nt":
        return shlex.split(command or "")
    return [word.strip('"') for word in shlex.split(command or "", posix=False)]
