"""What ``train`` and ``demo`` do: settle, run, evaluate, report."""

from __future__ import annotations

import shlex
from pathlib import Path

from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.beginning import Place, begin, decided, go_on
from efficientnetv2.commands.outcome import Outcome, versions
from efficientnetv2.commands.prepare import Prepared, Source, prepare
from efficientnetv2.commands.screen import Screen, TrainingBar
from efficientnetv2.commands.words import Words
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.inference.accelerate import pick_device, pick_workers
from efficientnetv2.training.books import input_wait_share
from efficientnetv2.training.job import Job
from efficientnetv2.training.run import Result, run
from efficientnetv2.training.start import title


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
    path, recipe, chosen, resumed = decided(words, place, device, screen)
    prepared = prepare(source, holdout=recipe.holdout, seed=recipe.seed, strict=place.strict, say=screen.say)
    workers = pick_workers(device) if place.workers is None else place.workers
    folder, recipe, network = (
        go_on(path, recipe, prepared, device, screen)
        if resumed
        else begin(path, recipe, chosen, words, prepared, device, workers, screen)
    )
    job = Job(
        recipe=recipe,
        network=network,
        train=prepared.train,
        val=prepared.val,
        preprocessing=Preprocessing.from_json(folder.beginning()["preprocessing"]),
        folder=folder,
        device=device,
        workers=workers,
        strict=place.strict,
    )
    folder.log(
        f"Training {title(recipe.model)} on {len(job.train)} pictures of {len(job.train.class_names)} classes for "
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


def _report(job: Job, prepared: Prepared, result: Result, screen: Screen, as_json: bool) -> None:
    recipe, beginning = job.recipe, job.folder.beginning()
    probe = beginning.get("linear_probe")
    facts = Facts(
        data=prepared.manifest.source,
        evaluated_on="val",
        model=title(recipe.model),
        command=beginning["command"],
        versions=versions(),
        chosen=beginning["chosen"],
        notes=[prepared.split_note],
        recipe=recipe.to_json(),
        seed=recipe.seed,
        epochs=None if recipe.epochs == "auto" else recipe.epochs,
        train_pictures=len(job.train),
        linear_probe=probe["top1"] if probe else None,
        linear_probe_macro_f1=probe["macro_f1"] if probe else None,
        wall_s=round(result.seconds, 2),
        images_per_s=round(result.images / result.seconds, 2),
        input_wait_share=input_wait_share(result.history),
        skipped=job.folder.skipped_count,
        others={"run": str(job.folder.path), "model_file": str(job.folder.model_file)},
    )
    outcome = Outcome(result.predictions, job.val, job.train.class_names, facts)
    outcome.write(job.folder.path, history=result.history)
    outcome.show(screen, as_json=as_json)
    job.folder.log(f"Model: {job.folder.model_file}")
    job.folder.log(f"Report: {job.folder.path / 'report.html'}")
