"""What to do next: steps that may improve a model, ranked by what was measured or is known of its run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.evaluation.html import number, percent, round_percent
from efficientnetv2.evaluation.report_metadata import ReportMetadata
from efficientnetv2.metrics.calibration import CoverageCurve
from efficientnetv2.metrics.multilabel import Metrics, MultilabelMetrics
from efficientnetv2.models import pretrained
from efficientnetv2.preprocessing import TTA
from efficientnetv2.training.recipes import recipe_file
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.shell import (
    command_words,
    lacks_objects,
    option_args,
    option_value,
    shell_join,
    split_settings,
)

Topic = Literal[
    "weights", "epochs", "learning_rate", "image_size", "label_errors", "class_imbalance", "more_labels", "use"
]  # fmt: skip

# Epochs below which a model is undertrained, whatever its last validations show. Ours.
_FEW_EPOCHS = 5.0
# Last fraction of the training whose gain is measured, and the gain from which the metric still rises. Ours.
_LAST_PART, _RISING = 0.25, 0.01
# Divisor of the learning rate if training made the pretrained start worse. Ours.
_LR_DIVISOR = 3.0
# Images that must change for a gain to be more than noise. Ours.
_MIN_GAINED = 3
# Ratio of stored to used image size from which larger images are proposed. Ours.
_LARGER = 1.25
# Largest proposed image size, and its multiple: five halvings of each side. Ours, from what trains within hours.
_MAX_PX, _MULTIPLE_PX = 480, 32
# Probability of a confident prediction, and accuracy from which confident errors are suspect labels. Ours.
_CONFIDENT, _MOSTLY_RIGHT = 0.9, 0.9
# Fraction of images with conflicting labels from which these come before epochs and image size. Ours.
_MANY_CONFLICTS = 0.01
# Class imbalance, and lag of the recall of rare classes, from which balancing is proposed. Ours.
_IMBALANCE, _LAG = 3.0, 0.1
# Minimum number of evaluated images of rare classes. Ours.
_MIN_RARE = 10
# Gain of macro-F1 by twice the labels that is worth a step, and one that is little. Ours.
WORTH, LITTLE = 0.005, 0.02
# Steps that change the learning curve of the probe, or what training makes of more labels.
_CHANGE_THE_PROBE = {"weights", "epochs", "learning_rate", "image_size"}
# Options of the training command that another run does not repeat; flags take no value.
_RUN_OPTIONS = ("--output", "--output-dir", "--save-dir", "--out", "-o", "--project", "--name", "--baseline")
_RUN_FLAGS = ("--resume", "--json")
_TABLE = (
    "--path-column", "--label-column", "--group-column", "--labels", "--label-separator", "--bands",
    "--nodata", "--layout",
)  # fmt: skip


@dataclass(frozen=True)
class NextStep:
    """A step that may give a better model, or the use of this one. The fields are keys of ``report.json``."""

    rank: int  # from 1, the most promising
    topic: Topic
    action: str
    reason: str
    command: str

    @property
    def line(self) -> str:
        """The step as a printed line, with the first sentence of its reason."""
        first = self.reason.partition(". ")[0].removesuffix(".")
        return f"{self.action} ({first[0].lower()}{first[1:]}): {self.command}"


def next_steps(
    metrics: Metrics,
    metadata: ReportMetadata,
    *,
    data_scaling_curve: Mapping[str, Any] | None = None,
    suspects: int = 0,
) -> tuple[NextStep, ...]:
    """The steps of a report, the most promising first; without a measured limit, the use of the model.

    ``data_scaling_curve`` is the learning curve of the linear probe as in ``report.json``; ``suspects`` are
    ``suspect_labels``.
    """
    images = metrics.num_images + (metadata.num_train_images or 0)
    many_conflicts = metadata.label_conflicts > _MANY_CONFLICTS * images
    candidates = {1.5 if many_conflicts else 4.0: _label_errors(metadata, suspects)}
    if metadata.is_training_report:
        candidates |= {
            1.0: _weights(metadata),
            0.5 if (metadata.epochs or 1) < 1 else 2.0: _epochs(metadata),
            2.5: _learning_rate(metadata),
            3.0: _image_size(metadata),
            5.0: _imbalance(metrics, metadata),
            6.0: _more_labels(metadata, data_scaling_curve),
        }
    found = [step for _, step in sorted(candidates.items()) if step is not None]
    steps = [step for step in found if step.command]
    if steps and steps[-1].topic == "more_labels" and {step.topic for step in steps} & _CHANGE_THE_PROBE:
        reason = f"{steps[-1].reason} Do the steps above first: they change this estimate."
        steps[-1] = replace(steps[-1], reason=reason)
    if not steps and metadata.optimistic and not metadata.is_training_report:
        reason = "These metrics are optimistic, so they do not show whether a change is needed."
        separator = option_value(metadata.command, "--label-separator")
        again = ["effnetv2", "evaluate", model_of(metadata), "DATA", *option_args(label_separator=separator)]
        steps = [NextStep(1, "use", "Evaluate the model on other images", reason, shell_join(again))]
    if not steps:
        reason = "Nothing that was measured suggests a change."
        if found:
            reason = "What was measured suggests a change of hyperparameters that the candidates have."
            if lacks_objects(metadata.command):
                reason = "What was measured suggests a change, but a call with objects cannot be repeated as a command."
        if not metadata.is_training_report:
            reason = "An evaluation does not suggest changes of the training. See the report of the run for these."
        steps = [NextStep(1, "use", "Use the model", reason, predict_command(metadata))]
    return tuple(replace(step, rank=rank) for rank, step in enumerate(steps, start=1))


def suspect_labels(curve: CoverageCurve) -> int:
    """Number of errors at a probability of 90 % or more, if 90 % of these predictions are correct, else 0.

    Errors of a model that is often wrong, however confident, reveal little about the labels.
    """
    count, accuracy, _ = curve.at_threshold(_CONFIDENT)
    return 0 if accuracy is None or accuracy < _MOSTLY_RIGHT else round(count * (1 - accuracy))


def late_gain(history: Sequence[Mapping[str, Any]], *, tta: TTA = "none") -> float | None:
    """Gain of validation top-1 in the last quarter of the training, as a fraction. None if not measured.

    Between two validations, top-1 is interpolated, if one is in the second half before the end. Rows are those of
    ``metrics.jsonl``; the selection set counts if there is one. Otherwise the last row is the evaluation of the run,
    and is compared only if it has the same images and views (``tta``). Fewer than 3 images count as 0.
    """
    for kind in ("minival", "val"):
        points = [
            (row["epoch"], row["top1"], row.get("num_images", 10**9))
            for row in history
            if row.get("kind") == kind and row.get("top1") is not None
        ]
        if len(points) > 1:
            epochs, scores, images = np.array(points, dtype=np.float64).T
            if kind == "val" and (tta != "none" or images.min() < images.max()):
                return None
            if not ((epochs >= epochs[-1] / 2) & (epochs < epochs[-1])).any():
                return None
            gain = float(scores[-1] - np.interp((1 - _LAST_PART) * epochs[-1], epochs, scores))
            return gain if abs(gain) * images.min() > _MIN_GAINED - 0.5 else 0.0
    return None


def predict_options(metadata: ReportMetadata) -> dict[str, str]:
    """Arguments with which ``predict`` predicts as the model of a report was evaluated."""
    options = {
        "tta": metadata.tta if evaluated_with(metadata, "--tta") else None,
        "label_separator": option_value(metadata.command, "--label-separator"),
    }
    return {name: value for name, value in options.items() if value is not None}


def predict_command(metadata: ReportMetadata) -> str:
    """The command that predicts new images with the model of a report, as it was evaluated."""
    options = option_args(**predict_options(metadata))
    return shell_join(["effnetv2", "predict", model_of(metadata), "IMAGES", *options])


def evaluated_with(metadata: ReportMetadata, *options: str) -> bool:
    """Whether the command of an evaluation has one of these options, which the model file does not have."""
    return not metadata.is_training_report and any(
        option_value(metadata.command, option) is not None for option in options
    )


def model_of(metadata: ReportMetadata) -> str:
    """What ``predict`` and ``Predictor`` take as the model of a report."""
    names = (metadata.extra.get(name) for name in ("model_for_new_images", "run"))
    return str(next(filter(None, names), metadata.model or "MODEL"))


def _weights(metadata: ReportMetadata) -> NextStep | None:
    """ImageNet weights, if the run started from random or bundled weights."""
    recipe = metadata.recipe or {}
    model, start = recipe.get("model"), str(recipe.get("weights"))
    if model not in NAMES or recipe.get("expected_dataset") is not None:
        return None
    best = pretrained.ranked_weights(model)
    compared = [each["weights"] for each in metadata.extra.get("weights_compared", {}).get("candidates", ())]
    bundled = start.endswith(f"{model}.safetensors") and Path(start).parent.name == "weights"
    if not best or not (start == "none" or bundled) or set(compared) & set(best):
        return None
    weights = "the bundled weights, which were trained on few images" if bundled else "random weights"
    reason = (
        f"The run started from {weights}. ImageNet weights usually give much higher accuracy. Without a network, "
        f"download them elsewhere ({shell_join(['effnetv2', 'models', '--fetch', best[0]])}) and pass the file as "
        "--weights."
    )
    fields = ("weights", "init", "head_init") if start == "none" else ("weights",)
    # A built-in recipe, or that of a run, is made for other weights; a file of the user's stays.
    names = ("--recipe", "--config", "--cfg")
    file = recipe_file(next(filter(None, (option_value(metadata.command, name) for name in names)), ""))
    is_of_run = file is not None and file.with_name("run.json").is_file()
    without = ["--weights", *names] if file is None or is_of_run else ["--weights"]
    command = _repeat(metadata, ["--weights", best[0]], without=without, without_fields=fields)
    return NextStep(0, "weights", "Start from ImageNet weights", reason, command)


def _epochs(metadata: ReportMetadata) -> NextStep | None:
    """More epochs, if there were few or the metric still rose."""
    epochs, gain = metadata.epochs, metadata.late_gain or 0.0
    if epochs is None or metadata.extra.get("stopped_early") or (epochs >= _FEW_EPOCHS and gain <= _RISING):
        return None
    reason = f"The model was trained for {pluralize(float(f'{epochs:.3g}'), 'epoch')}."
    if gain > _RISING:
        reason += f" Validation top-1 still rose by about {100 * gain:.1f} points in the last quarter."
    length = ["--epochs", f"{max(2 * epochs, 2 * _FEW_EPOCHS):.3g}"]
    if (minutes := option_value(metadata.command, "--minutes")) is not None:
        length = ["--minutes", _rounded(2 * float(minutes))]
    command = _repeat(metadata, length, without=("--epochs", "--minutes"), without_fields=("steps", "epochs"))
    return NextStep(0, "epochs", "Train longer", reason, command)


def _learning_rate(metadata: ReportMetadata) -> NextStep | None:
    """A lower learning rate, if training made a pretrained start worse."""
    lr = (metadata.recipe or {}).get("optimizer", {}).get("lr")
    if metadata.kept_model != "start" or lr is None or (metadata.epochs or 0) < _FEW_EPOCHS:
        return None
    start, trained = (percent(metadata.extra.get(f"{model}_metric")) for model in ("start", "trained"))
    reason = f"On the selection set, training at learning rate {lr:g} led from {start} to {trained}."
    lower = f"optimizer.lr={float(f'{lr / _LR_DIVISOR:.2g}'):g}"
    same = ("--lr", "--lr0", "--learning-rate")
    command = _repeat(metadata, ["--set", lower], without=same, without_fields=("optimizer.lr",))
    return NextStep(0, "learning_rate", "Lower the learning rate", reason, command)


def _image_size(metadata: ReportMetadata) -> NextStep | None:
    """Larger images, if they are stored larger than the model sees them."""
    recipe, stored = metadata.recipe or {}, metadata.stored_size
    trained = recipe.get("progressive", {}).get("image_size")
    if isinstance(trained, Mapping):
        trained = trained.get("end")
    px = metadata.extra.get("image_size") or recipe.get("eval_image_size") or trained  # the first was selected
    if not isinstance(px, (int, float)) or stored is None or stored < _LARGER * px:
        return None
    larger = int(min(stored, 2 * px, _MAX_PX)) // _MULTIPLE_PX * _MULTIPLE_PX
    if larger <= px:
        return None
    times = (larger / (trained or px)) ** 2
    reason = (
        f"Images are stored at {stored:,.0f} px (median shorter side). The model sees {px:,.0f} px. "
        f"Training at {larger} px takes about {number(float(f'{times:.2g}'))} times as long."
    )
    options = ["--image-size", str(larger)]
    if (minutes := option_value(metadata.command, "--minutes")) is not None:
        options += ["--minutes", _rounded(float(minutes) * times)]
    command = _repeat(
        metadata,
        options,
        without=("--image-size", "--img-size", "--imgsz", "--minutes"),
        without_fields=("progressive.image_size", "eval_image_size"),
    )
    return NextStep(0, "image_size", "Use larger images", reason, command)


def _label_errors(metadata: ReportMetadata, suspects: int) -> NextStep | None:
    """A check of labels that contradict each other, or a confident model that is mostly right."""
    reasons = []
    if metadata.label_conflicts:
        conflicts = pluralize(metadata.label_conflicts, "pair")
        reasons.append(f"Identical images with different labels: {conflicts}.")
    if suspects:
        reasons.append(
            f"Labels that contradict a prediction of {round_percent(_CONFIDENT)} or more, which is mostly correct: "
            f"{pluralize(suspects, 'image')}."
        )
    if not reasons:
        return None
    command = ["effnetv2", "check", *dataset_words(metadata), *(["--weights", "auto"] if suspects else [])]
    return NextStep(0, "label_errors", "Check suspicious labels", " ".join(reasons), shell_join(command))


def dataset_words(metadata: ReportMetadata, *more: str) -> list[str]:
    """DATA of a report, and the options that it was read with, and ``more`` of them, as words of a command."""
    given = {name: option_value(metadata.command, name) for name in (*_TABLE, *more)}
    return [metadata.data, *(part for name, value in given.items() if value is not None for part in (name, value))]


def _imbalance(metrics: Metrics, metadata: ReportMetadata) -> NextStep | None:
    """Balanced sampling, if classes with few training images have a lower recall."""
    if isinstance(metrics, MultilabelMetrics) or (metadata.recipe or {}).get("class_sampling") == "equal":
        return None
    counts = {name: int(count) for name, count in metadata.train_images_per_class.items() if int(count)}
    if len(counts) < 2 or max(counts.values()) < _IMBALANCE * min(counts.values()):
        return None
    limit = max(counts.values()) / _IMBALANCE
    known = [(count, metrics.per_class[name]) for name, count in counts.items() if name in metrics.per_class]
    rare = [each for count, each in known if each.recall is not None and count <= limit]
    others = [each for count, each in known if each.recall is not None and count > limit]
    if not rare or not others or sum(each.support for each in rare) < _MIN_RARE:
        return None
    recalls = [float(np.mean([each.recall or 0.0 for each in group])) for group in (rare, others)]
    if recalls[1] - recalls[0] < _LAG:
        return None
    reason = (
        f"Classes have {min(counts.values()):,} to {max(counts.values()):,} training images. Mean recall is "
        f"{percent(recalls[0])} for {pluralize(len(rare), 'rare class')} and {percent(recalls[1])} for the rest."
    )
    balanced = ("class_weights", "logit_adjustment")  # they would balance a second time
    options = ["--set", "class_sampling=equal"]
    for field in balanced:
        options += ["--set", f"{field}=null"] if (metadata.recipe or {}).get(field) is not None else []
    command = _repeat(metadata, options, without_fields=("class_sampling", *balanced))
    return NextStep(0, "class_imbalance", "Balance the classes", reason, command)


def _more_labels(metadata: ReportMetadata, curve: Mapping[str, Any] | None) -> NextStep | None:
    """More labels, if the learning curve of the linear probe rises."""
    if curve is None or curve["gain"] <= WORTH or (curve["gain_high"] < LITTLE and curve["gain_low"] <= WORTH):
        return None
    gain, low, high = (100 * curve[name] for name in ("gain", "gain_low", "gain_high"))
    is_fold = metadata.evaluated_on == "out-of-fold"
    twice = "training images, twice those of one fold" if is_fold else "labels, twice as many"
    reason = (
        f"With {curve['forecast']['num_images']:,} {twice}, a linear probe is estimated to gain "
        f"{gain:+.1f} points of macro-F1 (95 % CI {low:+.1f} to {high:+.1f}). The command ranks unlabeled images."
    )
    command = f"{predict_command(metadata)} --rank IMAGES/next.csv"
    return NextStep(0, "more_labels", "Label more images", reason, command)


def _rounded(value: float) -> str:
    """A number with two digits, for a command."""
    return f"{float(f'{value:.2g}'):.10g}"


def _repeat(
    metadata: ReportMetadata,
    options: Sequence[str],
    *,
    without: Collection[str] = (),
    without_fields: Collection[str] = (),
) -> str:
    """The training command with other options; '' if a candidate or a larger ``--set`` has ``without_fields``."""
    words = command_words(metadata.command)
    if words[:2] not in (["effnetv2", "train"], ["effnetv2", "crossval"]):
        return shell_join(["effnetv2", "train", metadata.data, *options])
    if lacks_objects(metadata.command):  # such an object is in the recipe of the run; a cross-validation has none
        if words[1] != "train" or "run" not in metadata.extra or "--recipe" in without:
            return ""
        words += ["--recipe", str(metadata.extra["run"])]
    # The command line takes each field as an option too: --eval-image-size.
    as_options = [f"--{field.rpartition('.')[2].replace('_', '-')}" for field in without_fields]
    repeated, rest = words[:2], iter(words[2:])
    for word in rest:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")  # as the command line takes it
        if name in _RUN_FLAGS:
            continue
        if name in ("--set", "--candidate"):
            value = value if equals else next(rest, "")
            settings = split_settings(value) if name == "--candidate" else [value]
            fields = [one.partition("=")[0].strip() for one in settings]
            parts = any(_is_part(field, of) for field in fields for of in without_fields)
            larger = any(_is_part(one, field) and one != field for field in fields for one in without_fields)
            if (larger and options[0] != "--set") or ((larger or parts) and name == "--candidate"):
                return ""
            repeated += [] if parts else [name, value]
        elif name not in (*_RUN_OPTIONS, *without, *as_options):
            repeated.append(word)
        elif not equals:
            next(rest, None)
    return shell_join([*repeated, *options])


def _is_part(field: str, of: str) -> bool:
    return f"{field}.".startswith(f"{of}.")
