"""What ``evaluate`` does: read the model, answer its pictures, compare with their labels."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.base.errors import InputError, did_you_mean, some
from efficientnetv2.commands.outcome import Outcome, command_line, versions
from efficientnetv2.commands.prepare import Source
from efficientnetv2.commands.screen import Screen
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.inference.accelerate import pick_device, pick_workers
from efficientnetv2.inference.predict import predict_manifest
from efficientnetv2.models import modelfile

_SPLITS = ("train", "val", "test", "all")


def evaluate_and_report(
    model: str,
    source: Source,
    *,
    split: str | None,
    out: Path | None,
    device: str,
    workers: int | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Everything that ``effnetv2 evaluate`` does.

    Raises:
        InputError: anything a user can mend.
    """
    screen = Screen(quiet=as_json)
    on = pick_device(device)
    network = modelfile.load(model)
    part, name = _part(source.read(), split)
    part = _in_classes_of(part, network.class_names, model)
    started = time.perf_counter()
    with screen.counting("evaluating", len(part)) as counted:
        predictions = predict_manifest(
            network,
            part,
            preprocessing=network.preprocessing,
            device=on,
            workers=pick_workers(on) if workers is None else workers,
            progress=counted,
        )
    seconds = time.perf_counter() - started
    for row, reason in predictions.unreadable:
        if strict:
            raise InputError(f"{part.paths[row]}: {reason}. Remove it, or leave out --strict to skip it.")
        screen.say(f"Skipped {part.paths[row]}: {reason}.")
    facts = Facts(
        data=source.data,
        evaluated_on=name,
        model=model,
        command=command_line(),
        versions=versions(),
        recipe=network.recipe or None,
        seed=network.recipe.get("seed"),
        epochs=network.recipe.get("epochs"),
        wall_s=round(seconds, 2),
        images_per_s=round(len(predictions.samples) / seconds, 1),
        skipped=len(predictions.unreadable),
    )
    outcome = Outcome(predictions, part, network.class_names, facts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        outcome.write(out)
    outcome.show(screen, as_json=as_json)
    if out is not None:
        screen.say(f"Report: {out / 'report.html'}")


def _part(manifest: Manifest, split: str | None) -> tuple[Manifest, str]:
    """The pictures to evaluate on, and what to call them."""
    if split is None:
        split = next((name for name in ("test", "val") if (manifest.split == name).any()), "all")
    if split not in _SPLITS:
        raise InputError(
            f"--split is '{split}', but is one of {', '.join(_SPLITS)}{did_you_mean(split, _SPLITS)}"
        )
    return (manifest, "all pictures") if split == "all" else (manifest.subset(split), split)


def _in_classes_of(manifest: Manifest, class_names: tuple[str, ...], model: str) -> Manifest:
    """The same pictures, their labels counted as the model counts its classes."""
    known = set(class_names)
    strange = [name for name in np.unique(manifest.table["label"].dropna()) if name not in known]
    if strange:
        row = int(np.flatnonzero(manifest.table["label"] == strange[0])[0])
        raise InputError(
            f"{manifest.where(row)}: label {some(strange)} is no class of {model}, which knows "
            f"{some(class_names, 10)}{did_you_mean(strange[0], known)} Correct the labels, or leave those pictures out."
        )
    return replace(manifest, class_names=class_names)
