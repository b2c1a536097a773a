"""What ``evaluate`` does: read the model, answer its pictures, compare with their labels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from efficientnetv2.base.errors import InputError, did_you_mean, some
from efficientnetv2.commands.outcome import Outcome, command_line, versions
from efficientnetv2.commands.prepare import Source, tell
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.sizes import answering, one_size, several_sizes, size_curve, tell_sizes
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.inference.accelerate import few_enough, pick_device, pick_workers
from efficientnetv2.inference.predict import check_classes, check_reads_rgb
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
    image_px: int | None = None,
    sizes: str | None = None,
) -> None:
    """Everything that ``effnetv2 evaluate`` does.

    Args:
        model: a model file or run folder.
        source: of the pictures.
        split: of them; None takes the one that is meant for it.
        out: folder for the report; None writes none.
        device: as ``--device`` says it.
        workers: processes that read pictures; None chooses by the machine.
        strict: refuse the first unreadable picture.
        as_json: only the report on stdout.
        image_px: at which the pictures are seen; None is as the model file says.
        sizes: further ones, to compare, as ``--sizes`` gives them; None compares none.

    Raises:
        InputError: anything a user can mend.
    """
    screen = Screen(quiet=as_json)
    compared = () if sizes is None else several_sizes(sizes)
    on = pick_device(device)
    workers = pick_workers(on) if workers is None else few_enough(workers, say=screen.say)
    network = modelfile.load(model)
    px = network.preprocessing.image_px if image_px is None else one_size(image_px, "--image-px")
    check_classes(network, model)
    check_reads_rgb(network, model)
    part, name = _part(source.read(for_training=False), split)
    part = _in_classes_of(part, network.class_names, model, merge=source.labels == "casefold")
    tell(part, strict=strict, say=screen.say)
    trained_on = _trained_on(Path(model), part)
    answer = answering(network, part, device=on, workers=workers, strict=strict, screen=screen)
    predictions, seconds = answer(px)
    for row, reason in predictions.unreadable:
        screen.say(f"Skipped {part.paths[row]}: {reason}.")
    may_choose = name == "train" or trained_on == len(part)
    curve = None
    if compared:
        curve = size_curve(answer, compared, (px, (predictions, seconds)), network, may_choose=may_choose)
    facts = Facts(
        data=source.data,
        evaluated_on=name,
        selected_on=name if trained_on else None,
        notes=[f"{trained_on} of these {len(part)} pictures trained the model."] if trained_on else [],
        model=model,
        command=command_line(),
        versions=versions(),
        recipe=network.recipe or None,
        seed=network.recipe.get("seed"),
        epochs=network.recipe.get("epochs"),
        wall_s=round(seconds, 2),
        images_per_s=round(len(predictions.samples) / seconds, 1),
        skipped=len(predictions.unreadable),
        others={"image_px": px} | ({} if curve is None else {"sizes": curve.to_json()}),
    )
    outcome = Outcome(predictions, part, network.class_names, facts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        outcome.write(out, sizes=curve)
    outcome.show(screen, as_json=as_json)
    if curve is not None and not as_json:
        tell_sizes(curve, screen)
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


def _trained_on(model: Path, part: Manifest) -> int:
    """How many of the pictures trained the model, as far as the manifest beside it tells."""
    folder = model if model.is_dir() else model.parent
    if not (folder / "manifest.csv").exists():
        return 0
    there = Manifest.from_csv(folder / "manifest.csv", root=folder.absolute(), source=str(folder))
    trained = {os.path.realpath(there.file(int(row))) for row in np.flatnonzero(there.split == "train")}
    return sum(os.path.realpath(part.file(row)) in trained for row in range(len(part)))


def _in_classes_of(manifest: Manifest, class_names: tuple[str, ...], model: str, *, merge: bool) -> Manifest:
    """The same pictures, their labels counted as the model counts its classes.

    Args:
        manifest: labelled.
        class_names: of the model.
        model: for the message.
        merge: take labels that differ only by case or space for the model's.

    Raises:
        InputError: a label that is no class of the model, or a model whose classes have no names.
    """
    if merge:
        spelled = {name.strip().casefold(): name for name in class_names}
        labels = manifest.table["label"].map(lambda label: spelled.get(label.strip().casefold(), label))
        manifest = replace(manifest, table=manifest.table.assign(label=labels))
    known = set(class_names)
    strange = [name for name in np.unique(manifest.table["label"].dropna()) if name not in known]
    if strange:
        row = int(np.flatnonzero(manifest.table["label"] == strange[0])[0])
        if class_names == tuple(str(number) for number in range(len(class_names))):
            raise InputError(
                f"{manifest.where(row)}: label {some(strange)}, but the outputs of {model} have no names, only numbers "
                f"('0' to '{len(class_names) - 1}'). Name them, in their order: effnetv2 convert {model} "
                "NAMED.safetensors --class-names NAMES.txt (a name on each line)"
            )
        fix = "Correct the labels, or leave those pictures out."
        if known.isdisjoint(manifest.table["label"]):
            fix = (
                "No label is; so this model answers something else, or its classes are called wrongly. To call them "
                f"otherwise: effnetv2 convert {model} NAMED.safetensors --class-names NAMES.txt (a name on each line)"
            )
        raise InputError(
            f"{manifest.where(row)}: label {some(strange)} is no class of {model}, which knows "
            f"{some(class_names, 10)}{did_you_mean(strange[0], known)} {fix}"
        )
    return replace(manifest, class_names=class_names)
