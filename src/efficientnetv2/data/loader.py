"""Batches of uint8 images, read ahead by worker processes that live as long as the run.

Each request names its own image size, so that progressive learning needs no new workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import CROP_UNIFORMS, load_eval_image, load_train_image
from efficientnetv2.data.image_io import Pixels, UnreadableImageError
from efficientnetv2.data.open_image import IGNORED_WARNINGS
from efficientnetv2.data.readers import Reader, eval_reader, source_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, ReaderKilledError
from efficientnetv2.utils.processes import end_with_parent, without_script
from efficientnetv2.utils.random_key import Key

Result = TypeVar("Result")
#: Batches that each worker reads ahead. Ours.
PREFETCH = 4


@dataclass
class Batch:
    """Training images of one request: (n, C, image_size, image_size) uint8, in channels-last memory.

    ``labels`` are (n,) int64, or (n, M) padded with -1. ``unreadable`` images are replaced by others of their class.
    """

    request: BatchRequest
    images: Tensor
    labels: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> Batch:
        """For the DataLoader."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass
class EvaluationBatch:
    """(n,) indices of readable images, (n, C, image_size, image_size) uint8, indices and reasons of the others."""

    samples: Ints
    images: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> EvaluationBatch:
        """For the DataLoader."""
        return replace(self, images=self.images.pin_memory())


def training_batches(
    images: TrainingImages, requests: Iterable[BatchRequest], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches of the requests, in order; see ``iter_batches``."""
    return iter_batches(images, requests, workers, pin_memory)


def evaluation_batches(
    dataset: ImageDataset, preprocessing: Preprocessing, *, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[EvaluationBatch]:
    """Every image of a dataset once, in order, with the preprocessing of a model."""
    rows = range(len(dataset))
    chunks = [list(rows[first : first + batch_size]) for first in rows[::batch_size]]
    return iter_batches(_EvaluationImages(dataset, preprocessing, decode_threads(workers)), chunks, workers, pin_memory)


def iter_batches(dataset: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """Batches of a dataset for requests, in order, read ahead by ``workers`` processes. Raises InputError meanwhile."""
    with worker_errors(ConnectionError, EOFError):
        # Without a name, so that the traceback of an error does not keep the workers alive.
        for batch in _start_loader(dataset, requests, workers, pin_memory):
            if isinstance(batch, InputError):
                try:
                    raise batch
                finally:
                    del batch  # else the error would keep this frame, and its callers, alive
            yield batch


def _start_loader(dataset: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    options: dict[str, Any] = {}
    if workers:
        # The system ends a worker with the thread that started it, and only the main thread lasts until the end.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        options = {"worker_init_fn": partial(_start_worker, parent=parent), "prefetch_factor": PREFETCH}
        if sys.platform == "linux":  # workers share the list of images and start at once
            options["multiprocessing_context"] = "fork"
    with warnings.catch_warnings():
        # Raised by every loader with more than one worker per core. The user is warned once, elsewhere.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # batch_size=None: a request is a whole group already.
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=None, sampler=requests, num_workers=workers, pin_memory=pin_memory, **options
        )
        # Workers that are not forked would run the user's script.
        with nullcontext() if sys.platform == "linux" or not workers else without_script():
            return iter(loader)


def _start_worker(_: int, parent: int | None) -> None:
    if parent is not None:
        end_with_parent(parent)
    torch.set_num_threads(1)
    # Ctrl-C, a closed window and a launcher's SIGTERM reach the whole process group; the main process alone handles
    # them. Its own SIGTERM, for a worker that does not end, comes after.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@contextmanager
def worker_errors(*others: type[Exception]) -> Iterator[None]:
    """Raise ReaderKilledError for killed workers, InputError for lack of shared memory (Bus error).

    PyTorch raises RuntimeError wherever the main thread is by then: in ``iter_batches``, or between batches, as in
    ``Trainer``. Where only images are read, ``others`` mean a killed worker too.
    """
    kinds: tuple[type[Exception], ...] = (RuntimeError, *others)
    try:
        yield
    except kinds as error:
        text = str(error) or type(error).__name__
        killed = "exited unexpectedly" in text or "killed by signal" in text
        if isinstance(error, RuntimeError) and not (killed and "DataLoader worker" in text):
            raise
        # Shared memory holds only images; of other memory the model in training uses most.
        kind = InputError if "Bus error" in text else ReaderKilledError
        raise kind(
            f"A process that reads images was killed ({text.splitlines()[0]}), most likely because memory or "
            "shared memory ran out. Use fewer `workers`, or `workers=0`."
        ) from error


def decode_threads(workers: int) -> int:
    """Threads that read in one process: one in a worker; without workers, one per core."""
    # On a CPU the training step uses all cores, and a worker would slow it down. Pillow releases the GIL.
    return 1 if workers else torch.get_num_threads()


def thread_map(function: Callable[[int], Result], count: int, threads: int) -> list[Result]:
    """``function`` of 0 to count - 1, in order."""
    if threads == 1:
        return [function(index) for index in range(count)]
    with IGNORED_WARNINGS, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(count)))


class TrainingImages(Dataset["Batch | InputError"]):
    """Training batches by request: draws the crop of each image, decodes only that, and resizes it.

    ``area_min`` is the minimum fraction of an image that a crop covers. ``threads`` read a group without workers.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        preprocessing: Preprocessing,
        area_min: float,
        key: Key,
        threads: int = 1,
        reader: Reader | None = None,
    ) -> None:
        self.dataset, self.preprocessing, self.reader = (dataset, preprocessing, reader or source_reader(dataset))
        self.area_min, self.key, self.threads = area_min, key, threads
        self.labels, self.targets = dataset.labels, dataset.targets

    def __getitem__(self, request: BatchRequest) -> Batch | InputError:
        return _batch_or_error(self.batch, request)

    def batch(self, request: BatchRequest) -> Batch:
        """The images of a request. Raises InputError if a whole class has become unreadable."""
        # As lists: a crop uses a few dozen single numbers, which are slow in numpy.
        uniforms = self.key.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS).tolist()
        wanted = request.samples.tolist()
        reader = self.reader.ahead(wanted)
        px = request.setting.image_size
        images = np.empty((len(wanted), px, px, self.preprocessing.channels), np.uint8)

        def read(place: int) -> tuple[int, list[tuple[int, str]]]:
            # Each image is written to its place: stacking a list later would take twice the memory.
            images[place], sample, failures = self._read(reader, wanted[place], px, uniforms[place])
            return sample, failures

        results = thread_map(read, len(wanted), self.threads)
        labels = torch.from_numpy(self.targets[[sample for sample, _ in results]])
        unreadable = tuple(failure for _, failures in results for failure in failures)
        return Batch(request, torch.from_numpy(images).permute(0, 3, 1, 2), labels, unreadable)

    def _read(
        self, reader: Reader, sample: int, image_size: int, uniforms: Sequence[float]
    ) -> tuple[Pixels, int, list[tuple[int, str]]]:
        """The image, or the next readable one of its class, cyclically: a function of the files alone."""
        failures: list[tuple[int, str]] = []
        for candidate in self._candidates(sample):
            try:
                image = load_train_image(
                    reader.source(candidate),
                    image_size=image_size,
                    crop_mode=self.preprocessing.crop_mode,
                    area_min=self.area_min,
                    uniforms=uniforms,
                    interpolation=self.preprocessing.interpolation,
                    mean=self.preprocessing.mean,
                )
                return image, candidate, failures
            except UnreadableImageError as error:
                failures.append((candidate, error.reason))
        name, reason = self.reader.name(failures[-1][0]), failures[-1][1]
        raise InputError(
            f"Every image of class '{self.dataset.class_names[self.labels[sample]]}' has become unreadable during the "
            f"run (last: {name}: {reason}). Check the disk or the network share, then resume."
        )

    def _candidates(self, sample: int) -> Iterator[int]:
        yield sample
        members = np.flatnonzero(self.labels == self.labels[sample])
        yield from np.roll(members, -int(np.searchsorted(members, sample)))[1:].tolist()


class _EvaluationImages(Dataset["EvaluationBatch | InputError"]):
    def __init__(self, dataset: ImageDataset, preprocessing: Preprocessing, threads: int) -> None:
        # Rasters are read by the model's bands; by the dataset's for a model without bands.
        self.reader = eval_reader(replace(dataset, bands=preprocessing.bands or dataset.bands))
        self.preprocessing, self.threads = preprocessing, threads

    def __getitem__(self, samples: Sequence[int]) -> EvaluationBatch | InputError:
        return _batch_or_error(self.batch, samples)

    def batch(self, samples: Sequence[int]) -> EvaluationBatch:
        """The readable images of these samples. Raises InputError if a remote store does not respond."""
        reader = self.reader.ahead(samples)

        def read(place: int) -> Pixels | str:
            try:
                return load_eval_image(reader.source(samples[place]), self.preprocessing)
            except UnreadableImageError as error:
                return error.reason

        results = list(zip(samples, thread_map(read, len(samples), self.threads), strict=True))
        images = [image for _, image in results if not isinstance(image, str)]
        readable = [sample for sample, image in results if not isinstance(image, str)]
        unreadable = tuple((sample, reason) for sample, reason in results if isinstance(reason, str))
        px, channels = self.preprocessing.image_size, self.preprocessing.channels
        array = np.stack(images) if images else np.empty((0, px, px, channels), np.uint8)
        batch = torch.from_numpy(array).permute(0, 3, 1, 2)
        return EvaluationBatch(np.array(readable, dtype=np.int64), batch, unreadable)


def _batch_or_error(make: Callable[[Any], Result], request: Any) -> Result | InputError:
    """The error as a value: a worker's exception would arrive as text with a traceback."""
    try:
        return make(request)
    except InputError as error:
        return error
