"""Open a study or begin it, then work for it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule, prepare_data
from efficientnetv2.nas.proxy_task import LEFT_OUT, Proxy, refuse_leaks
from efficientnetv2.nas.results import exponents
from efficientnetv2.nas.space import other_version
from efficientnetv2.nas.storage import Ledger, NoStudiesError
from efficientnetv2.nas.study import Opened, Plan, Wanted, create, opened, plan_of, refuse_other
from efficientnetv2.nas.trial import measurement, try_out
from efficientnetv2.nas.worker import Watch, Worker
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.auto_batch import Hardware
from efficientnetv2.training.auto_config import TrainingSet, resolve_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.run_dir import RunLog
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.device import device_title, pick_device, workers_for
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import cache_folder
from efficientnetv2.utils.logs import attached
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.utils.timer import boot_id
from efficientnetv2.workflows.output_paths import refuse_replaced, refuse_within
from efficientnetv2.workflows.search_config import Asked
from efficientnetv2.workflows.search_options import WorkerOptions
from efficientnetv2.workflows.study_dir import STUDY_FILES, StudyFolder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Machine:
    """What a worker has.

    Args:
        device: to train on.
        workers: processes that read pictures.
        threads: of PyTorch; None on a GPU, where they do not matter.
        training_threads: those that a network trains with; None for all.
        memory_gib: that a trial may take; None is what there is.
        strict: a trial ends at the first picture that can't be read any more.
    """

    device: torch.device
    workers: int
    threads: int | None
    training_threads: int | None
    memory_gib: float | None
    strict: bool

    @classmethod
    def of(cls, place: WorkerOptions) -> Machine:
        """As the options say.

        Raises:
            InputError: no such device here, or not so many threads.
        """
        device = pick_device(place.device)
        workers = workers_for(place.workers, device)
        threads = torch.get_num_threads() if device.type == "cpu" else None
        if place.threads is not None and place.threads > (threads or 0):
            there = (
                f"PyTorch has {pluralize(threads, 'thread')} here"
                if threads
                else "networks train on a GPU here"
            )
            raise InputError(
                f"--threads {place.threads}: {there}. Give no more of them, or leave --threads out."
            )
        return cls(device, workers, threads, place.threads, place.memory_gib, place.strict)

    def proxy(self, recipe: Recipe, plan: Plan | Asked, prepared: DataModule, folder: StudyFolder) -> Proxy:
        """How networks are tried here."""
        choosing = prepared.minival
        assert choosing is not None, "a search sets pictures aside that choose"
        return Proxy(
            recipe=recipe,
            seeds=plan.seeds,
            train=prepared.train,
            choosing=choosing,
            device=str(self.device),
            workers=self.workers,
            threads=self.threads,
            training_threads=self.training_threads,
            memory_gib=self.memory_gib,
            strict=self.strict,
            step_time=plan.step_time,
            times=folder.times_file,
            quiet=cache_folder("quiet") / boot_id(),
            latency=plan.reward.inference_seconds != 0,
            pace=plan.pace if isinstance(plan, Plan) else None,
        )


@dataclass(frozen=True, eq=False)
class Worked:
    """What a worker leaves when it ends.

    Args:
        study: it worked for.
        folder: of the study.
        finished: whether all trials have ended.
        again: the command by which it goes on.
    """

    study: Opened
    folder: StudyFolder
    finished: bool
    again: str


def pictures(source: DataConfig, recipe: Recipe, *, strict: bool) -> DataModule:
    """The pictures of a search: what trains, what chooses, and what it never looks at.

    Raises:
        InputError: what ``prepare`` refuses, or pictures that stand on both sides.
    """
    prepared = prepare_data(
        source,
        holdout=recipe.holdout,
        minival=recipe.minival,
        made_for=recipe.made_for,
        seed=recipe.seed,
        strict=strict,
    )
    if prepared.dataset.channels != RGB:
        raise InputError(
            f"A search compares networks on pictures of {RGB} channels, but these rasters have "
            f"{pluralize(prepared.dataset.channels, 'band')}. Search on rasters of three (with GDAL, gdal_translate "
            "-b), then train the network that is found on all of them."
        )
    _logger.info(prepared.split_note.replace("the weights to keep", "among networks"))
    refuse_leaks(prepared.dataset, prepared.contents)
    return prepared


def run_study(asked: Asked, watch: Watch | None = None) -> Worked:
    """Begin a study, or join one, and work for it.

    Raises:
        InputError: anything a user can mend.
    """
    log = RunLog()
    with attached(log):
        return _run_study(asked, watch, log)


def _run_study(asked: Asked, watch: Watch | None, log: RunLog) -> Worked:
    until = _end_of(asked.minutes)
    machine = Machine.of(asked.place)
    folder = StudyFolder(asked.study)
    prepared = looked_at(asked, folder)
    url = _url(asked, folder)
    if url == folder.own_storage:
        folder.make()
    known = folder.file.exists()  # of a study that was begun nothing is made anew: its database may be lost
    storage = folder.database(url, patience_s=60 * asked.place.wait, create=not known)
    wanted = replace(asked.wanted, **_found_here(prepared, machine))
    where = folder.where(url)
    plan = plan_of(storage, folder.name)
    if plan is not None:
        refuse_other(plan, wanted, where)
    elif known:
        raise InputError(folder.lost(url))
    folder.make()  # only now: what is refused leaves nothing
    log.write_to(folder.path)
    if plan is None:
        folder.forget_times()
        plan = create(
            storage,
            folder.name,
            begun(asked, prepared, machine, folder),
            trials=asked.trials,
        )
    refuse_other(plan, wanted, where)
    study = opened(storage, folder.name)
    _refuse_trials(asked, study, where)
    folder.begin(asked.source, url, prepared.dataset, plan)
    return _work(study, machine, prepared, folder, until, asked.place, watch)


def looked_at(asked: Asked, folder: StudyFolder) -> DataModule:
    """The pictures of a study that may lie in that folder; nothing is made there.

    Raises:
        InputError: the folder lies in DATA, or holds something else; or what ``pictures`` refuses.
    """
    if not folder.file.exists():
        refuse_within(asked.source.data, folder.path, "STUDY")
        refuse_replaced(asked.source.data, folder.path, STUDY_FILES, "STUDY")
    prepared = pictures(asked.source, asked.recipe, strict=asked.place.strict)
    folder.check()
    return prepared


def refuse_joining(asked: Asked, prepared: DataModule, machine: Machine, folder: StudyFolder) -> None:
    """Refuse what ``run_study`` would of a study that is there already; nothing is made.

    Raises:
        InputError: it is another one, or has another number of trials; or its database can't be read.
    """
    url = _url(asked, folder)
    try:
        storage = folder.database(url, patience_s=60 * asked.place.wait)
    except NoStudiesError:
        return
    plan = plan_of(storage, folder.name)
    if plan is not None:
        where = folder.where(url)
        refuse_other(plan, replace(asked.wanted, **_found_here(prepared, machine)), where)
        _refuse_trials(asked, opened(storage, folder.name), where)


def _url(asked: Asked, folder: StudyFolder) -> str:
    return folder.storage(asked.storage or (None if folder.file.exists() else folder.own_storage))


def _refuse_trials(asked: Asked, study: Opened, where: str) -> None:
    if asked.said_trials is None or asked.said_trials == study.target:
        return
    if asked.said_trials < study.target:
        raise InputError(
            f"--trials {asked.said_trials}: {where} is to have {study.target}. Leave --trials out to work for all of "
            "them."
        )
    raise InputError(
        f"--trials {asked.said_trials}: {where} has {study.target}. Let it have more of them with effnetv2 search "
        f"resume {shell_join([str(asked.study)])} --trials {asked.said_trials}, or leave --trials out."
    )


def resume_study(
    path: Path,
    storage_url: str | None,
    trials: int | None,
    minutes: float | None,
    place: WorkerOptions,
    watch: Watch | None = None,
) -> Worked:
    """Go on with a study.

    Raises:
        InputError: there is no such study, its pictures are others by now, or anything else a user can mend.
    """
    until = _end_of(minutes)
    folder = StudyFolder(path)
    source = folder.source(storage_url)
    url = folder.storage(storage_url)
    storage = folder.database(url, patience_s=60 * place.wait)
    study = opened(storage, folder.name)
    machine = Machine.of(place)
    prepared = pictures(source, study.plan.asked, strict=place.strict)
    wanted = Wanted(**_found_here(prepared, machine))
    refuse_other(study.plan, wanted, folder.where(url), resumed=True)
    if trials is not None:
        study.extend(trials)
    log = RunLog()
    with attached(log):
        log.write_to(folder.path)
        return _work(study, machine, prepared, folder, until, place, watch)


def _end_of(minutes: float | None) -> float | None:
    """When a worker's minutes that begin now are over, by ``time.monotonic``; None where it has no end."""
    return None if minutes is None else time.monotonic() + 60 * minutes


def _found_here(prepared: DataModule, machine: Machine) -> dict[str, Any]:
    """What a plan has of the pictures and the machine, by which whoever goes on with it is compared."""
    bands = prepared.dataset.bands
    return {
        "pictures": prepared.dataset.digest(),
        "bands": () if bands is None else bands.numbers,
        "hardware": device_title(machine.device),
    }


def begun(asked: Asked, prepared: DataModule, machine: Machine, folder: StudyFolder) -> Plan:
    """The plan of a new study: its recipe settled, its backbone measured.

    Raises:
        InputError: the recipe can't be had, or the backbone can't be trained by it.
    """
    of_backbone = settled(asked, prepared, machine)
    group, backbone = of_backbone.group_images, asked.space.backbone
    _logger.info("Measuring the backbone's training step.")
    proxy = machine.proxy(of_backbone, asked, prepared, folder)
    outcome = try_out(backbone, replace(proxy, seeds=()))
    reference = measurement(backbone, proxy, outcome)
    if outcome.failed is not None:
        _logger.debug(f"The backbone failed: {reference.failure}")
        raise InputError(
            f"the backbone of the space can't be trained by this recipe ({reference.failed_because}; all of it stands "
            "in log.txt). Take smaller pictures (--image-px), fewer at a time (--batch-images), or another space."
        )
    assert reference.step_seconds is not None, "it was measured, and did not fail"
    assert outcome.step is not None, "as its time was"
    _logger.info(
        f"The backbone: {1000 * reference.step_seconds:.3g} ms a step, {reference.parameters / 1e6:.3g} M parameters."
    )
    return Plan(
        space=asked.space,
        reward=asked.reward,
        recipe=for_all(of_backbone, asked),
        asked=asked.recipe,
        seeds=asked.seeds,
        step_time=asked.step_time,
        sampler=asked.sampler,
        seed=asked.seed,
        prune=asked.prune,
        class_names=prepared.train.class_names,
        **_found_here(prepared, machine),
        reference=reference,
        reference_group=group,
        reference_at_a_time=outcome.step.at_a_time,
        version=version("efficientnetv2"),
    )


def settled(asked: Asked, prepared: DataModule, machine: Machine) -> Recipe:
    """The recipe of a trial of the backbone, with nothing left to decide."""
    plain = asked.recipe.to_json() | {
        "model": asked.space.backbone.to_json(),
        **LEFT_OUT,
    }
    found = resolve_recipe(
        validate_recipe(plain, where=asked.recipe.name),
        TrainingSet(
            len(prepared.train),
            prepared.train.class_names,
            stored_px=None if asked.recipe.enlarge is None else prepared.stored_px,
        ),
        Hardware(machine.device, machine.memory_gib),
    )
    for note in found.notes:
        _logger.info(note)
    return found.recipe.model_copy(update={"model": "auto"})


def for_all(of_backbone: Recipe, asked: Asked) -> Recipe:
    """The recipe of every trial, which leaves to each network the groups that it has memory for."""
    return of_backbone.model_copy(update={"group_images": asked.recipe.group_images})


def _work(
    study: Opened,
    machine: Machine,
    prepared: DataModule,
    folder: StudyFolder,
    until: float | None,
    place: WorkerOptions,
    watch: Watch | None,
) -> Worked:
    plan = study.plan
    if (other := other_version(plan.version, version("efficientnetv2"))) is not None:
        _logger.info(other)
    _logger.info(
        f"The study '{study.name}': {pluralize(study.target, 'trial')} of {plan.space.count:,} networks by "
        f"{plan.sampler}, for {exponents(plan.reward)}; {pluralize(float(plan.recipe.epochs), 'epoch')} of "
        f"{pluralize(len(prepared.train), 'picture')}, {pluralize(len(prepared.minival or ()), 'picture')} choose."
    )
    proxy = machine.proxy(plan.recipe, plan, prepared, folder)
    try:
        with signals_as_ctrl_c():
            worker = Worker(study, proxy, Ledger(study.storage, study.name), watch or Watch())
            finished = worker.work(until=until)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Go on with: {_again(folder, place)}") from stop
    return Worked(study, folder, finished, _again(folder, place))


def _again(folder: StudyFolder, place: WorkerOptions) -> str:
    """How a worker goes on with a study, in the same way."""
    return shell_join(["effnetv2", "search", "resume", str(folder.path), *place.words])
