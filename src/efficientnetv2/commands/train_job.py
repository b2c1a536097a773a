"""What ``train`` and ``demo`` do: settle, run, evaluate, report."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.memory import limit
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.beginning import Place, begin, decided
from efficientnetv2.commands.caching import Cached, reader_here
from efficientnetv2.commands.choosing import chosen
from efficientnetv2.commands.explaining import explained
from efficientnetv2.commands.finished import Finished, tell_finished
from efficientnetv2.commands.going_on import go_on
from efficientnetv2.commands.outcome import Outcome, hashes, versions
from efficientnetv2.commands.prepare import Prepared, Source, prepare, refuse_missing
from efficientnetv2.commands.probing import known_of_run
from efficientnetv2.commands.screen import Screen, TrainingBar
from efficientnetv2.commands.words import Words
from efficientnetv2.evaluation.answered import f1_of_answers
from efficientnetv2.evaluation.apart import apart
from efficientnetv2.evaluation.cost import stage_costs
from efficientnetv2.evaluation.report import Facts
from efficientnetv2.evaluation.sizes import SizeCurve
from efficientnetv2.inference.accelerate import few_enough, pick_own_device, pick_workers
from efficientnetv2.models import modelfile
from efficientnetv2.models.network import Network
from efficientnetv2.training.books import input_wait_share, training_seconds
from efficientnetv2.training.distributed import ALONE, World, by_first, launched, together, with_tensors
from efficientnetv2.training.folder import NoFolder, RunFolder
from efficientnetv2.training.job import Job
from efficientnetv2.training.memory import GroupsAtATime
from efficientnetv2.training.named import title
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resume import drop
from efficientnetv2.training.run import Result, run


def train_and_report(words: Words, source: Source, place: Place) -> Path:
    """Everything that ``effnetv2 train`` does, alone or as one of many processes.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.

    Returns:
        The run folder.

    Raises:
        InputError: anything a user can mend.
    """
    world = launched()
    screen = Screen(quiet=place.as_json, mute=not world.first)
    with together(world):
        done = trained(words, source, place, screen, world)
        if isinstance(done, Trained):
            done.tell(screen, as_json=place.as_json)
        elif world.first:
            tell_finished(done, screen, as_json=place.as_json)
        return done.path


@dataclass(frozen=True, eq=False)
class Trained:
    """A run that has just come to its end.

    Args:
        path: of its folder.
        outcome: what it came to; None on every process but the first.
    """

    path: Path
    outcome: Outcome | None

    def tell(self, screen: Screen, *, as_json: bool) -> None:
        """Say what it came to, and where it lies.

        Args:
            screen: to say it on.
            as_json: answer with the report.
        """
        if self.outcome is None:
            return
        folder = RunFolder(self.path, screen.say)
        self.outcome.show(screen, as_json=as_json)
        folder.log(f"Model: {folder.model_file}")
        folder.log(f"Report: {folder.path / 'report.html'}")


def trained(
    words: Words, source: Source, place: Place, screen: Screen, world: World = ALONE
) -> Trained | Finished:
    """Train, and write the report, without showing what it says; what is finished already is left as it is.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.
        screen: gets lines and bars.
        world: the processes that do it together.

    Raises:
        InputError: anything a user can mend.
        KeyboardInterrupt: Ctrl-C; says how ``train`` goes on.
    """
    device = pick_own_device(place.device, world.local_rank, world.local_size)
    if place.memory_gib is not None:
        limit(device, place.memory_gib)
    world = with_tensors(world, device)
    sharing = world.local_size
    workers = (
        pick_workers(device, sharing=sharing)
        if place.workers is None
        else few_enough(place.workers, sharing=sharing, say=screen.say)
    )
    ready = by_first(world, lambda: _readied(words, source, place, device, workers, screen, world))
    if isinstance(ready, Finished):
        return ready
    return Trained(ready.path, _run(ready, source, place, device, workers, screen, world))


@dataclass(frozen=True, eq=False)
class _Ready:
    """What the first process has decided, for all.

    Args:
        path: of the run folder.
        recipe: settled.
        network: to begin with, on the CPU.
        prepared: the pictures.
        preprocessing: of evaluation, and of the model file.
        at_a_time: how many groups run in one pass.
        resumed: whether the run goes on.
        pictures: those to train on, if they are kept decoded.
    """

    path: Path
    recipe: Recipe
    network: Network
    prepared: Prepared
    preprocessing: Preprocessing
    at_a_time: GroupsAtATime
    resumed: bool
    pictures: Cached | None


def _readied(
    words: Words,
    source: Source,
    place: Place,
    device: torch.device,
    workers: int,
    screen: Screen,
    world: World,
) -> _Ready | Finished:
    known = decided(words, place, device, screen, world)
    recipe, resumed = known.recipe, known.resumed
    if resumed and RunFolder(known.path, screen.say).finished:
        return Finished(known.path, recipe)
    prepared = prepare(
        source,
        holdout=recipe.holdout,
        minival=recipe.minival,
        made_for=recipe.made_for,
        seed=recipe.seed,
        strict=place.strict,
        say=screen.say,
    )
    known = chosen(known, words, prepared, device, workers, place, screen)
    folder, recipe, network, pictures = (
        go_on(known.path, recipe, words, prepared, device, place.memory_gib, screen, world)
        if resumed
        else begin(known, words, prepared, device, workers, place, screen, world)
    )
    beginning = folder.beginning()
    preprocessing = Preprocessing.from_json(beginning["preprocessing"])
    at_a_time = GroupsAtATime.from_json(beginning["groups_at_a_time"])
    return _Ready(folder.path, recipe, network, prepared, preprocessing, at_a_time, resumed, pictures)


def _run(
    ready: _Ready,
    source: Source,
    place: Place,
    device: torch.device,
    workers: int,
    screen: Screen,
    world: World,
) -> Outcome | None:
    recipe, path = ready.recipe, ready.path
    job = Job(
        recipe=recipe,
        network=ready.network,
        train=ready.prepared.train,
        val=ready.prepared.val,
        preprocessing=ready.preprocessing,
        folder=RunFolder(path, screen.say) if world.first else NoFolder(path),
        device=device,
        workers=workers,
        at_a_time=ready.at_a_time,
        strict=place.strict,
        world=world,
        reader=reader_here(ready.pictures, recipe, ready.prepared, device, screen, world),
        minival=ready.prepared.minival,
    )
    by = f" by {world.size} processes" if world.many else ""
    refuse_missing(job.train, world)
    job.folder.log(
        f"Training {title(recipe.model)} on {count_of(len(job.train), 'picture')} of "
        f"{count_of(len(job.train.class_names), 'class')} for "
        f"{count_of(float(recipe.epochs), 'epoch')} ({count_of(job.length.steps, 'step')} of "
        f"{recipe.batch_images}) on {device.type}{by}."
    )
    try:
        with TrainingBar(screen) as bar:
            result = run(job, resumed=ready.resumed, watch=bar)
    except KeyboardInterrupt as stop:
        again = shlex.join(["effnetv2", "train", source.data, "--out", str(path), "--resume"])
        raise KeyboardInterrupt(f"Go on with: {again}") from stop
    return _report(job, ready.prepared, result) if world.first else None


def _epochs(job: Job, result: Result) -> float | None:
    """What was trained: all that the recipe says, or less."""
    if result.images < job.length.steps * job.recipe.batch_images:
        return round(result.images / len(job.train), 4)
    return None if job.recipe.epochs == "auto" else job.recipe.epochs


def _report(job: Job, prepared: Prepared, result: Result) -> Outcome:
    recipe, beginning = job.recipe, job.folder.beginning()
    probe = beginning.get("linear_probe")
    selected = result.selection.to_json() if result.selection else {}
    known = known_of_run(job.folder.path, beginning, result.calibration)
    facts = Facts(
        data=prepared.manifest.source,
        evaluated_on="val",
        selected_on=selected.pop("selected_on", None),
        model=title(recipe.model),
        command=beginning["command"],
        versions=versions(),
        chosen=beginning["chosen"],
        notes=[prepared.split_note, *(str(choice) for choice in (result.selection, result.sizes) if choice)],
        recipe=recipe.to_json(),
        seed=recipe.seed,
        epochs=_epochs(job, result),
        train_pictures=len(job.train),
        linear_probe=probe["top1"] if probe else None,
        linear_probe_macro_f1=probe["macro_f1"] if probe else None,
        linear_probe_f1={} if known.probe is None else f1_of_answers(known.probe),
        train_support={} if prepared.manifest.separator else dict(job.train.table["label"].value_counts()),
        hashes=hashes(job.folder.model_file, job.folder.manifest_file),
        wall_s=round(result.seconds, 2),
        images_per_s=round(result.images / result.seconds, 2),
        input_wait_share=input_wait_share(result.history),
        skipped=job.folder.skipped_count,
        others={
            "train_s": round(training_seconds(result.history), 2),
            "run": str(job.folder.path),
            "model_file": str(job.folder.model_file),
            "processes": job.world.size,
            "stages": [asdict(stage) for stage in stage_costs(result.history)],
            **{name: beginning[name] for name in ("weights_compared",) if name in beginning},
            **selected,
            **(result.sizes.to_json() if result.sizes else {}),
        },
    )
    kept = modelfile.load(job.folder.model_file, job.device)  # the moving average, not what was trained last
    explanation = explained(kept, result.predictions, job.val, job.train.class_names, kept.preprocessing)
    known = replace(known, sections=(*known.sections, *explanation), apart=apart(prepared.manifest, "val"))
    outcome = Outcome(result.predictions, job.val, job.train.class_names, facts, known=known)
    curve = None
    if result.sizes:
        curve = SizeCurve(
            result.sizes.points, result.sizes.image_px, recipe.progressive.last.image_px, "chose"
        )
    outcome.write(job.folder.path, history=result.history, sizes=curve)
    drop(job.folder.checkpoints)  # only now: until the report is whole there may be something to go on with
    return outcome
