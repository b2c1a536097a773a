"""What ``train`` and ``demo`` do: settle, run, evaluate, report."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.outcome import Outcome, command_line, versions
from efficientnetv2.commands.prepare import Prepared, Source, prepare
from efficientnetv2.commands.screen import Screen, TrainingBar
from efficientnetv2.commands.words import Words, begin_recipe, resumed_recipe
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.inference.accelerate import pick_device, pick_workers
from efficientnetv2.models import modelfile
from efficientnetv2.training.folder import RunFolder, new_folder, newest, refuse_occupied
from efficientnetv2.training.job import Job
from efficientnetv2.training.loop import Length
from efficientnetv2.training.plan import epochs_within
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run import Result, run
from efficientnetv2.training.settle import settle


@dataclass(frozen=True)
class Place:
    """Where and how to run.

    Args:
        out: folder of the run; None makes a new one under ``runs/``.
        resume: go on with the run there.
        device: as ``--device`` says it.
        workers: None chooses by the machine.
        strict: stop at the first unreadable picture.
        as_json: only the report on stdout.
    """

    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    workers: int | None = None
    strict: bool = False
    as_json: bool = False


RUNS = Path("runs")


def train_and_report(words: Words, source: Source, place: Place) -> Path:
    """Everything that ``effnetv2 train`` does.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.

    Returns:
        The run folder.

    Raises:
        InputError: anything a user can mend.
    """
    screen = Screen(quiet=place.as_json)
    device = pick_device(place.device)
    path, recipe, resumed = _recipe(words, place, screen)
    prepared = prepare(source, holdout=recipe.holdout, seed=recipe.seed, strict=place.strict, say=screen.say)
    folder, recipe = (
        _go_on(path, recipe, prepared, screen)
        if resumed
        else _begin(path, recipe, words, prepared, device, screen)
    )
    job = Job(
        recipe=recipe,
        train=prepared.train,
        val=prepared.val,
        preprocessing=Preprocessing.from_json(folder.beginning()["preprocessing"]),
        folder=folder,
        device=device,
        workers=pick_workers(device) if place.workers is None else place.workers,
        strict=place.strict,
    )
    folder.log(
        f"Training {recipe.model} on {len(job.train)} pictures of {len(job.train.class_names)} classes for "
        f"{recipe.epochs:g} epochs ({job.length.steps} steps of {recipe.batch_images}) on {device}."
    )
    try:
        with TrainingBar(screen) as bar:
            result = run(job, resumed=resumed, watch=bar)
    except KeyboardInterrupt as stop:
        again = shlex.join(["effnetv2", "train", source.data, "--out", str(path), "--resume"])
        raise KeyboardInterrupt(f"Go on with: {again}") from stop
    _report(job, prepared, result, screen, place.as_json)
    return path


def _begin(
    path: Path, recipe: Recipe, words: Words, prepared: Prepared, device: torch.device, screen: Screen
) -> tuple[RunFolder, Recipe]:
    """Settle the recipe, then make the folder: what is refused leaves nothing behind."""
    recipe, chosen = _settled(recipe, words, prepared, device)
    folder = RunFolder(path, screen.say)
    folder.log(f"Run folder: {path}")
    folder.log(prepared.split_note)
    for note in chosen:
        folder.log(note)
    preprocessing = _preprocessing(recipe)
    folder.begin(
        recipe,
        prepared.manifest,
        {"command": command_line(), "chosen": chosen, "preprocessing": preprocessing.to_json()},
    )
    for skipped_path, reason in prepared.skipped:
        folder.skip(skipped_path, reason)
    return folder, recipe


def _go_on(path: Path, recipe: Recipe, prepared: Prepared, screen: Screen) -> tuple[RunFolder, Recipe]:
    folder = RunFolder(path, screen.say)
    _same_pictures(folder, prepared)
    folder.log(f"Run folder: {path}")
    return folder, recipe


def _recipe(words: Words, place: Place, screen: Screen) -> tuple[Path, Recipe, bool]:
    """The run folder, its recipe, and whether there is something to go on with."""
    if place.resume:
        path = place.out or newest(RUNS)
        if path is not None and (path / "recipe.yaml").exists():
            return path, resumed_recipe(words, path / "recipe.yaml", screen.say), True
        screen.say(f"There is no run in {path or RUNS} yet: beginning one.")
    if place.out is not None:
        refuse_occupied(place.out)
    recipe = begin_recipe(words, screen.say)
    return place.out or new_folder(RUNS, recipe.name), recipe, False


def _settled(
    recipe: Recipe, words: Words, prepared: Prepared, device: torch.device
) -> tuple[Recipe, list[str]]:
    settled = settle(recipe, images=len(prepared.train), device=device)
    notes = list(settled.notes)
    recipe = settled.recipe
    if words.minutes is not None:
        epochs = epochs_within(words.minutes, recipe, prepared.train, device)
        recipe = recipe.model_copy(update={"epochs": epochs})
        notes = [note for note in notes if not note.startswith("Epochs:")]
        notes.append(f"Epochs: {epochs:g}, what fits into {words.minutes:g} minutes by a short measurement.")
        recipe.progressive.at(0, steps=Length.of(recipe, len(prepared.train)).steps)
    return recipe, notes


def _preprocessing(recipe: Recipe) -> Preprocessing:
    """As the weights want it (mean, std), or as the network was published; at the recipe's size and framing."""
    assert recipe.eval_px is not None, "settle() comes first"
    donor = None if recipe.weights == "none" else modelfile.load(recipe.weights)
    facts = donor.preprocessing if donor else published(recipe.model).preprocessing
    return replace(facts, image_px=recipe.eval_px, framing=recipe.framing, crop_fraction=1.0)


def _same_pictures(folder: RunFolder, prepared: Prepared) -> None:
    there = Manifest.from_csv(
        folder.manifest_file, root=prepared.manifest.root, source=prepared.manifest.source
    )
    if there.digest() == prepared.manifest.digest():
        return
    before, now = set(there.paths), set(prepared.manifest.paths)
    what = [
        f"{len(gone)} {word} (first: {min(gone)})"
        for gone, word in ((before - now, "gone"), (now - before, "new"))
        if gone
    ]
    raise InputError(
        f"--resume: the pictures are not those that the run in {folder.path} was begun with: "
        f"{', '.join(what) or 'labels, splits or order differ'}. "
        "Bring them back, or begin anew with another --out."
    )


def _report(job: Job, prepared: Prepared, result: Result, screen: Screen, as_json: bool) -> None:
    recipe, beginning = job.recipe, job.folder.beginning()
    facts = Facts(
        data=prepared.manifest.source,
        evaluated_on="val",
        model=recipe.model,
        command=beginning["command"],
        versions=versions(),
        chosen=beginning["chosen"],
        notes=[prepared.split_note],
        recipe=recipe.to_json(),
        seed=recipe.seed,
        epochs=None if recipe.epochs == "auto" else recipe.epochs,
        train_pictures=len(job.train),
        wall_s=round(result.seconds, 2),
        images_per_s=round(result.images / result.seconds, 2),
        skipped=job.folder.skipped_count,
        others={"run": str(job.folder.path), "model_file": str(job.folder.model_file)},
    )
    outcome = Outcome(result.predictions, job.val, job.train.class_names, facts)
    outcome.write(job.folder.path, history=result.history)
    outcome.show(screen, as_json=as_json)
    job.folder.log(f"Model: {job.folder.model_file}")
    job.folder.log(f"Report: {job.folder.path / 'report.html'}")
