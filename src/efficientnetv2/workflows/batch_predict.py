"""Batch prediction of a dataset, by one process or several; an interrupted prediction is resumed."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.loader import evaluation_batches
from efficientnetv2.data.prepared_data import require_images_here
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import is_url, shard_of
from efficientnetv2.data.shards.reader import ShardDamage
from efficientnetv2.data.shards.storage import Stat, store_at
from efficientnetv2.exporters.engines import EXACT, choose_engine, engine_on, open_engine
from efficientnetv2.inference.predict import (
    BATCH,
    Compute,
    Engine,
    Predictions,
    Runtime,
    none_readable_error,
    predict_dataset,
)
from efficientnetv2.models.conversion.weight_reader import is_model_file
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.ensemble import Ensemble, ensemble_members, remove_calibration
from efficientnetv2.models.factory import load_classifier
from efficientnetv2.models.safetensors_io import sha256_by_name
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import TTA, Preprocessing
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.device import device_note, pick_own_device, workers_for
from efficientnetv2.utils.distributed import World, broadcast_from_main, process_group, world_from_env
from efficientnetv2.utils.errors import InputError, escape_controls, pluralize
from efficientnetv2.utils.io import is_unused, write_atomically
from efficientnetv2.utils.logs import progress, silenced
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import choice

_logger = logging.getLogger(__name__)

# Seconds between two writes of a checkpoint: what a killed process loses at most. Ours.
_CHECKPOINT_S = 300.0
# Unreadable images that are logged by name; a file lists all. Ours.
_LOGGED = 5


@dataclass(frozen=True)
class InferenceOptions:
    """Options that evaluation and prediction share. ``workers`` read images; ``strict`` refuses unreadable ones."""

    device: str = "auto"
    workers: int | None = None
    strict: bool = False
    engine: Engine = "auto"


def engine_of(name: str | None) -> Engine:
    """A valid `engine`, None for "auto". Raises InputError."""
    return cast(Engine, choice("engine", name or "auto", get_args(Engine)))


@dataclass(frozen=True, eq=False)
class PredictionJob:
    """What every process predicts, except images in damaged shards."""

    network: Network
    dataset: ImageDataset
    damage: ShardDamage
    preprocessing: Preprocessing


@contextmanager
def start_processes(options: InferenceOptions) -> Iterator[Runtime]:
    """Join the process group of the launcher, if there is one; other processes than the main one log nothing."""
    world = world_from_env()
    with process_group(world, fix="Run it again."), nullcontext() if world.is_main_process else silenced():
        device = device_for_rank(options.device, world)
        workers = workers_for(options.workers, device, sharing=world.local_size)
        yield Runtime(device, workers, options.strict, world, engine_on(device, options.engine))


def device_for_rank(name: str, world: World) -> torch.device:
    """The device of this process, with a log line where it is untested or a better one exists."""
    device = pick_own_device(name, world.local_rank, world.local_size)
    if note := device_note(name, device):
        _logger.info(note)
    return device


def run_prediction(
    job: PredictionJob, runtime: Runtime, description: str, checkpoint: PredictionCheckpoint | None = None
) -> tuple[Predictions, float]:
    """Predict the dataset of a job, and measure the seconds; every process calls it.

    The main process gets all predictions, the others a part of no use. Predictions are resumed from ``checkpoint``.
    """
    dataset, lost, world = job.dataset, job.damage.reasons, runtime.world
    rows = np.setdiff1d(np.arange(len(dataset)), list(lost))
    require_images_here(replace(dataset, bands=job.preprocessing.bands or dataset.bands).select(rows), world)
    if runtime.engine != "torch":
        engine, compute = _engine_of_all(job, rows, runtime, checkpoint)
        runtime = replace(runtime, compute=compute)
        if checkpoint is not None:
            checkpoint.engine = engine
    # Only the main process keeps earlier logits: for a million images they are gigabytes.
    earlier = checkpoint.load() if checkpoint is not None and world.is_main_process else None
    if checkpoint is not None:
        done = broadcast_from_main(world, lambda: None if earlier is None else earlier[0])
        if done is not None and len(done):
            _logger.info(f"Resuming with {pluralize(len(done), 'prediction')} that an earlier run has saved.")
            rows = np.setdiff1d(rows, done)
    started = time.perf_counter()
    with progress(description, len(rows)) as update, saving_on_interrupt(checkpoint):
        predictions = predict_dataset(
            job.network,
            dataset.select(rows) if len(rows) < len(dataset) else dataset,
            preprocessing=job.preprocessing,
            runtime=runtime,
            progress=update,
            on_batch=None if checkpoint is None else lambda part, logits: checkpoint.add(rows[part], logits),
        )
    seconds = time.perf_counter() - started
    unreadable = lost | {int(rows[row]): reason for row, reason in predictions.unreadable}
    predictions = replace(predictions, samples=rows[predictions.samples], unreadable=tuple(sorted(unreadable.items())))
    if earlier is not None and len(earlier[0]):  # otherwise the logits would be copied
        samples = np.concatenate([predictions.samples, earlier[0]])
        order = np.argsort(samples)
        logits = torch.cat([predictions.logits, earlier[1][:, : predictions.logits.shape[1]]])[torch.from_numpy(order)]
        scores = predictions.unknown_scores
        if scores is not None:
            scores = torch.cat([scores, earlier[1][:, -1]])[torch.from_numpy(order)]
        samples = samples[order]
        predictions = replace(
            predictions, samples=samples, labels=dataset.targets[samples], logits=logits, unknown_scores=scores
        )
    if world.is_main_process and not len(predictions.samples):
        raise none_readable_error(dataset, *predictions.unreadable[0])
    return predictions, seconds


def _engine_of_all(
    job: PredictionJob, rows: Ints, runtime: Runtime, checkpoint: PredictionCheckpoint | None
) -> tuple[Engine, Compute | None]:
    """The engine of all processes, as the main process chooses it: ``auto`` stays with that of saved predictions."""
    network, preprocessing = job.network, job.preprocessing
    computes: list[Compute | None] = []

    def read() -> Tensor | None:
        batches = evaluation_batches(job.dataset.select(rows), preprocessing, batch_size=BATCH, workers=0)
        return next((batch.images for batch in batches if len(batch.samples)), None)

    def choose() -> Engine:
        saved = checkpoint.saved_engine() if checkpoint is not None and runtime.engine == "auto" else None
        try:
            engine, compute = choose_engine(saved or runtime.engine, network, preprocessing, read, len(rows))
        except InputError as error:
            if saved is None:
                raise
            raise InputError(
                f"the saved predictions are of the engine {saved}, which does not work now. To predict all images "
                f"again, use `engine=torch`. The reason: {error}"
            ) from error
        computes.append(compute)
        return engine

    engine = broadcast_from_main(runtime.world, choose)
    return engine, computes[0] if computes else open_engine(engine, network, preprocessing, BATCH)


class PredictionCheckpoint:
    """Predictions of an unfinished job, in a hidden folder next to its table; the same job resumes from them.

    An image is predicted again if its file or shard has changed: in size and time, or for a URL in the state that the
    storage reports. Every process writes files of its own.
    """

    def __init__(self, table: Path, job: PredictionJob, *, every_s: float = _CHECKPOINT_S) -> None:
        """``table`` is written at the end; the network is still on the CPU; ``every_s`` seconds between two writes."""
        self._folder = table.with_name(f".{table.name}.partial")
        self._dataset = job.dataset
        self._width = job.network.num_classes + (job.network.unknown is not None)
        self._digest = _digest(job)
        self.engine: Engine = "torch"  # predictions of others are not loaded
        self._every_s, self._written_at = every_s, time.monotonic()
        self._unwritten: list[tuple[Ints, Tensor, Ints]] = []  # rows, logits, file states
        self._states: dict[str, Stat | None] = {}  # of shards: one request each
        self._failed = False

    @property
    def _prefix(self) -> str:
        return f"{self._digest}-{self.engine.replace('-', '_')}"  # a "-" ends the name of the engine

    def saved_engine(self) -> Engine | None:
        """The engine of the last saved predictions of this job that ``auto`` may continue; None without any."""
        exact = [f"{self._digest}-{engine}-*.npz" for engine in ("torch", *EXACT)]
        files = [file for pattern in exact for file in self._folder.glob(pattern)]
        last = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
        return cast(Engine, last.name.split("-")[1]) if last else None

    def load(self) -> tuple[Ints, Tensor]:
        """(n,) ascending rows of the dataset, and their (n, K) logits, whose files are unchanged."""
        rows, logits = [np.empty(0, np.int64)], [torch.empty(0, self._width)]
        for file in sorted(self._folder.glob(f"{self._prefix}-*.npz")):
            try:
                with file.open("rb") as opened, np.load(opened, allow_pickle=False) as part:
                    part_rows, part_logits, files = part["rows"], part["logits"], part["files"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # damaged
            unchanged = (files == self._file_states(part_rows)).all(axis=1)
            rows.append(part_rows[unchanged])
            logits.append(torch.from_numpy(part_logits[unchanged]))
        unique, first = np.unique(np.concatenate(rows), return_index=True)
        return unique, torch.cat(logits)[torch.from_numpy(first)]

    def add(self, rows: Ints, logits: Tensor) -> None:
        """Add (n,) rows and their (n, K) logits, and write them if the last write is long ago."""
        # States are read now: if a storage fails, predictions are to be saved without it.
        self._unwritten.append((rows, logits, self._file_states(rows)))
        if time.monotonic() - self._written_at >= self._every_s:
            self.write()

    def write(self) -> bool:
        """Write what was added; returns whether all of it is saved. A full disk is logged once, and tried again."""
        if self._unwritten:
            rows, logits, files = zip(*self._unwritten, strict=True)
            try:
                self._folder.mkdir(exist_ok=True)
                file = self._folder / f"{self._prefix}-{secrets.token_hex(4)}.npz"
                part = (np.concatenate(rows), torch.cat(logits).numpy(), np.concatenate(files))
                write_atomically(file, lambda partial: _save(partial, *part))
                self._unwritten = []
            except OSError as error:
                if not self._failed:
                    reason = error.strerror or error
                    _logger.info(f"The predictions so far cannot be saved: {self._folder}: {reason}.")
                self._failed = True
        self._written_at = time.monotonic()
        return not self._unwritten and next(self._folder.glob(f"{self._prefix}-*.npz"), None) is not None

    def remove(self) -> None:
        """Delete the checkpoints of this job, whose table has been written, and those of others after a long time."""
        with suppress(OSError):  # the table is there
            for file in self._folder.glob("*.npz"):
                if file.name.startswith(f"{self._digest}-") or is_unused(file):
                    file.unlink(missing_ok=True)
            if not any(self._folder.glob("*.npz")):
                shutil.rmtree(self._folder)

    def _file_states(self, rows: Ints) -> Ints:
        """(n, 2) size in bytes and hashed state of the file that holds each image; -1 if unknown."""
        dataset = self._dataset
        files = [dataset.paths[row] for row in rows.tolist()]
        if dataset.shards is not None:
            files = [path if (within := shard_of(path)) is None else within[0] for path in files]
        states = {} if dataset.shards is None else self._states
        if new := [name for name in dict.fromkeys(files) if name not in states]:
            states |= zip(new, store_at(str(dataset.root)).stats(new), strict=True)
        return np.array([_hashed(states[name]) for name in files], np.int64).reshape(-1, 2)


def _hashed(state: Stat | None) -> tuple[int, int]:
    if state is None:
        return -1, -1
    return state.bytes, int.from_bytes(blake2b(state.stamp.encode(), digest_size=8).digest(), signed=True)


def _save(partial: Path, rows: Ints, logits: np.ndarray, files: Ints) -> None:
    with partial.open("wb") as file:  # given a name, numpy appends .npz
        np.savez(file, allow_pickle=False, rows=rows, logits=logits, files=files)


def _digest(job: PredictionJob) -> str:
    """32 hexadecimal digits of everything that decides a prediction, except the files."""
    network, dataset = job.network, job.dataset
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    members = [module for module in network.modules() if isinstance(module, Network)]
    # Size and time of a file may be equal in another folder, and some storages have no time.
    root = str(dataset.root)
    parts = [
        sha256_by_name(weights),
        repr(job.preprocessing),
        *(repr((_structure(each), each.preprocessing, each.activation, each.calibration)) for each in members),
        dataset.digest(),
        root if is_url(root) else os.path.realpath(root),
        repr(dataset.bands),
        "" if network.unknown is None else network.unknown.to_json(),
    ]
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _structure(network: Network) -> str:
    """What is not in the weights, such as padding and epsilon."""
    if isinstance(network, EfficientNet):
        return repr(network.architecture)
    if isinstance(network, WrappedModel):
        return repr((network.source, type(network.module).__name__))
    return type(network).__name__


@contextmanager
def saving_on_interrupt(checkpoint: PredictionCheckpoint | None) -> Iterator[None]:
    """Write the checkpoint if the block fails or is stopped; SIGTERM stops it like Ctrl-C. None changes nothing."""
    if checkpoint is None:
        yield
        return
    with signals_as_ctrl_c():
        try:
            yield
        except BaseException as error:
            is_saved = checkpoint.write()
            if is_saved and isinstance(error, KeyboardInterrupt):
                message = "The predictions so far are saved: the same command resumes from them."
                raise KeyboardInterrupt(message) from error
            raise


def with_tta(preprocessing: Preprocessing, tta: str | None) -> Preprocessing:
    """The preprocessing with other test-time augmentation; None keeps it. Raises InputError."""
    views = cast("TTA | None", choice("tta", tta, get_args(TTA)))
    return preprocessing if views is None else replace(preprocessing, tta=views)


def remove_unfit_calibration(model: Network, preprocessing: Preprocessing) -> None:
    """Remove the model's temperature, in place, if it was fitted at another size or with other views."""
    fitted, px, tta = model.preprocessing, preprocessing.image_size, preprocessing.tta
    if (tta, px) == (fitted.tta, fitted.image_size) or not remove_calibration(model):
        return
    another = f" To fit another: {how_to_calibrate(preprocessing)}"
    _logger.info(
        f"Temperature: removed, because it was fitted at {fitted.image_size} px with views '{fitted.tta}', not for "
        f"{px} px and '{tta}'.{'' if isinstance(model, Ensemble) else another}"
    )


def how_to_calibrate(preprocessing: Preprocessing) -> str:
    """How to fit a temperature of a model for another size or other views."""
    return (
        f"`effnetv2 convert MODEL OUT.safetensors --image-size {preprocessing.image_size} --tta {preprocessing.tta}`, "
        "then `effnetv2 evaluate OUT.safetensors DATA --calibrate NEW.safetensors`"
    )


def load_predictor(model: str, data: str | Path, command: str) -> Network:
    """The model of a command, which has classes and takes what files have; refuses arguments in the wrong order."""
    if _is_model(data) and not _is_model(model):
        right = shell_join(["effnetv2", *command.split(), str(data), model])
        raise InputError(f"MODEL {model} is not a model, but DATA {data} is. Swap them: {right}")
    return load_classifier(model)


def _is_model(path: str | Path) -> bool:
    folder = Path(path)
    if not os.path.isdir(folder):  # the names of shards may be longer than a path can be
        return os.path.isfile(folder) and is_model_file(folder)
    return is_model_file(folder) or (folder / "recipe.yaml").is_file() or bool(ensemble_members(folder))


def log_unreadable(job: PredictionJob, unreadable: Sequence[tuple[int, str]]) -> None:
    """Log the first unreadable images, each reason once, and the number of the others; damaged shards were logged."""
    others = [(row, reason) for row, reason in unreadable if row not in job.damage.reasons]
    logged: set[str] = set()
    for row, reason in others[:_LOGGED]:
        why = "for the same reason" if reason in logged else reason.removesuffix(".")
        _logger.info(f"Skipped {escape_controls(job.dataset.paths[row])}: {why}.")
        logged.add(reason)
    if len(others) > _LOGGED:
        _logger.info(f"Skipped {len(others) - _LOGGED:,} more that could not be read.")


def log_skipped_count(job: PredictionJob, unreadable: Sequence[tuple[int, str]], file: Path | None) -> None:
    """Log how many images were skipped, and the file that lists them."""
    if unreadable:
        where = f"{file} lists them all" if file else "set `output` to list them all"
        _logger.info(f"Skipped {len(unreadable):,} of {len(job.dataset):,} images; {where}.")
