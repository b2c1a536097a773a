"""From requests to uint8 batches, in worker processes that live as long as the run.

A request names its own image size, so the growing of the picture needs no new workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import parent_process
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import CROP_UNIFORMS, load_eval_image, load_train_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.readers import Reader, eval_reader, source_reader
from efficientnetv2.data.sampler import BatchRequest
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.child_processes import end_with_parent, own_folder
from efficientnetv2.utils.errors import InputError, ReaderKilledError
from efficientnetv2.utils.rng import Key

Read = TypeVar("Read")
#: Batches that each worker has read ahead where nobody takes them. Ours.
PREFETCH = 4


@dataclass(frozen=True)
class BatchFailure:
    """Why a request could not be answered; it travels from a worker as a value."""

    message: str

    def pin_memory(self) -> BatchFailure:
        """For the DataLoader, which pins what goes to a GPU."""
        return self


def decode_threads(workers: int) -> int:
    """How many threads read in one process: one in a worker; without workers, one per core.

    On a CPU the training step keeps all cores busy, and a worker beside it makes its threads wait for each
    other. So the main process reads by itself, on all cores, between two steps. Pillow lets threads run side by
    side while it decodes and resizes.
    """
    return 1 if workers else torch.get_num_threads()


def thread_map(work: Callable[[int], Read], count: int, threads: int) -> list[Read]:
    """``work`` of 0 to count - 1, in order."""
    if threads == 1:
        return [work(place) for place in range(count)]
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Around the threads, because filters belong to the process: within, each opener sets its own aside.
        warnings.simplefilter("ignore")
        return list(pool.map(work, range(count)))


def _begun(images: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    parent = None
    if workers:
        if parent_process() is None:  # else its parent's folder holds what multiprocessing puts aside
            own_folder()
        # The system ends a worker with the thread that has started it, and only the main thread stays to the end.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
    with warnings.catch_warnings():
        # Of every loader anew, beyond a worker per core; whoever asked for them has been told of the cores once.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # batch_size=None: a request is a whole group already, so nothing is left to collate.
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=partial(_begin_worker, parent=parent) if workers else None,
            prefetch_factor=PREFETCH if workers else None,
            # On Linux forked, whatever Python's default: they share the list of pictures, and begin at once.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        return iter(loader)


def iter_batches(images: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> Iterator[Any]:
    """What a dataset answers to requests, in their order, read ahead by ``workers`` processes (0: none).

    Raises:
        InputError: while iterating: the reason of a ``BatchFailure``, or a worker was killed.
    """
    with worker_errors():
        for batch in _begun(images, requests, workers, pin_memory):
            if isinstance(batch, BatchFailure):
                raise InputError(batch.message)
            yield batch


@contextmanager
def worker_errors() -> Iterator[None]:
    """Around reading, and around what is done with what was read: PyTorch says so wherever the main process is.

    Raises:
        ReaderKilledError: a process that reads pictures was killed, other than for want of shared memory.
        InputError: it was, for that: a Bus error.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        said = str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and (
            "DataLoader worker" not in said
            or not ("exited unexpectedly" in said or "killed by signal" in said)
        ):
            raise
        # Shared memory holds pictures alone; of other memory the network that is trained has most.
        kind = InputError if "Bus error" in said else ReaderKilledError
        raise kind(
            f"A process that reads pictures was killed by the system ({said.splitlines()[0]}), most likely for "
            "want of memory or shared memory. Use fewer with --workers, or none with --workers 0."
        ) from error


def _begin_worker(_: int, parent: int | None) -> None:
    if parent is not None:
        end_with_parent(parent)
    torch.set_num_threads(1)
    # Ctrl-C, a window that is closed, and a launcher's SIGTERM reach the whole process group; the main process alone
    # decides what they mean. Its own SIGTERM, for a worker that does not end by itself, comes after.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@dataclass
class Batch:
    """The pictures of one request.

    Args:
        request: what was asked for.
        images: (n, C, image_px, image_px) uint8, in channels-last memory.
        labels: (n,) int64; of several labels each (n, M), -1 behind the last of a picture.
        unreadable: sample and reason of each picture that another of its class stands in for.
    """

    request: BatchRequest
    images: Tensor
    labels: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> Batch:
        """For the DataLoader, which pins what goes to a GPU."""
        return Batch(self.request, self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


class TrainingImages(Dataset["Batch | BatchFailure"]):
    """Answers requests: draws each picture's crop, decodes just that, resizes.

    Args:
        dataset: of the training pictures.
        preprocessing: of the network; framing, interpolation, mean and channels are used here.
        area_min: smallest share of the picture's area that a random crop keeps; 1 is no crop.
        key: of the run.
        threads: that read a group together, for where no worker process reads ahead.
        reader: of the dataset's pictures; None reads the originals.
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
        self.dataset, self.preprocessing = dataset, preprocessing
        self.reader = source_reader(dataset) if reader is None else reader
        self.area_min, self.key, self.threads = area_min, key, threads
        self.labels, self.targets = dataset.labels, dataset.targets

    def __getitem__(self, request: BatchRequest) -> Batch | BatchFailure:
        try:
            return self.batch(request)
        except InputError as error:
            # Raised in a worker it would arrive as a text with a traceback in it.
            return BatchFailure(str(error))

    def batch(self, request: BatchRequest) -> Batch:
        """The pictures of a request.

        Raises:
            InputError: a whole class has become unreadable.
        """
        # As lists: a crop is drawn with a few dozen single numbers, at which numpy's are slow.
        uniforms = self.key.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS).tolist()
        wanted = request.samples.tolist()
        reader = self.reader.ahead(wanted)
        px = request.setting.image_px
        pictures = np.empty((len(wanted), px, px, self.preprocessing.channels), np.uint8)

        def read_one(place: int) -> tuple[int, list[tuple[int, str]]]:
            # Each goes to its place at once: a list of them, stacked later, would be twice the fresh memory.
            pictures[place], read, failures = self._read(reader, wanted[place], px, uniforms[place])
            return read, failures

        samples, unreadable = request.samples.copy(), []
        for place, (read, failures) in enumerate(thread_map(read_one, len(wanted), self.threads)):
            samples[place] = read
            unreadable += failures
        return Batch(
            request,
            torch.from_numpy(pictures).permute(0, 3, 1, 2),
            torch.from_numpy(self.targets[samples]),
            tuple(unreadable),
        )

    def _read(
        self, reader: Reader, sample: int, image_px: int, uniforms: Sequence[float]
    ) -> tuple[npt.NDArray[np.uint8], int, list[tuple[int, str]]]:
        """The picture, or the next readable one of its class: a function of the files alone."""
        failures: list[tuple[int, str]] = []
        for candidate in self._from(sample):
            try:
                picture = load_train_image(
                    reader.source(candidate),
                    image_px=image_px,
                    framing=self.preprocessing.framing,
                    area_min=self.area_min,
                    uniforms=uniforms,
                    interpolation=self.preprocessing.interpolation,
                    mean=self.preprocessing.mean,
                )
                return picture, candidate, failures
            except UnreadableImageError as error:
                failures.append((candidate, error.reason))
        name = self.dataset.class_names[self.labels[sample]]
        raise InputError(
            f"Every picture of class '{name}' has become unreadable during the run "
            f"(last: {self.reader.name(failures[-1][0])}: {failures[-1][1]}). "
            "Is the disk or the network share still there? Then go on with --resume."
        )

    def _from(self, sample: int) -> Iterator[int]:
        """The sample, then the others of its class in order, around."""
        yield sample
        mates = np.flatnonzero(self.labels == self.labels[sample])
        yield from (int(mate) for mate in np.roll(mates, -int(np.searchsorted(mates, sample)))[1:])


class _Requests(Sampler[BatchRequest]):
    """The DataLoader's view of our sampler."""

    def __init__(self, requests: Iterable[BatchRequest]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)


def training_batches(
    pictures: TrainingImages, requests: Iterable[BatchRequest], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches of the requests, in their order, read ahead by ``workers`` processes (0: none).

    Raises:
        InputError: while iterating: a whole class has become unreadable, or a worker was killed.
    """
    yield from iter_batches(pictures, _Requests(requests), workers, pin_memory)


@dataclass
class EvaluationBatch:
    """Pictures as evaluation sees them.

    Args:
        samples: (n,) positions in the dataset of the pictures that could be read.
        images: (n, C, image_px, image_px) uint8.
        unreadable: position and reason of those that could not.
    """

    samples: npt.NDArray[np.int64]
    images: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> EvaluationBatch:
        """For the DataLoader, which pins what goes to a GPU."""
        return EvaluationBatch(self.samples, self.images.pin_memory(), self.unreadable)


class _EvaluationPictures(Dataset["EvaluationBatch | BatchFailure"]):
    def __init__(self, dataset: ImageDataset, preprocessing: Preprocessing, threads: int) -> None:
        # As those that trained the network; by a network that knows no rasters as they themselves say.
        self.reader = eval_reader(replace(dataset, bands=preprocessing.bands or dataset.bands))
        self.preprocessing, self.threads = preprocessing, threads

    def __getitem__(self, samples: Sequence[int]) -> EvaluationBatch | BatchFailure:
        try:
            return self.batch(samples)
        except InputError as error:
            return BatchFailure(str(error))  # as in training

    def batch(self, samples: Sequence[int]) -> EvaluationBatch:
        """The pictures of these samples that can be read.

        Raises:
            InputError: a store of another machine does not answer.
        """
        reader = self.reader.ahead(samples)

        def read_one(place: int) -> npt.NDArray[np.uint8] | str:
            try:
                return load_eval_image(reader.source(samples[place]), self.preprocessing)
            except UnreadableImageError as error:
                return error.reason

        read, pictures, unreadable = [], [], []
        for sample, found in zip(samples, thread_map(read_one, len(samples), self.threads), strict=True):
            if isinstance(found, str):
                unreadable.append((sample, found))
            else:
                read.append(sample)
                pictures.append(found)
        px, channels = self.preprocessing.image_px, self.preprocessing.channels
        array = np.stack(pictures) if pictures else np.empty((0, px, px, channels), np.uint8)
        return EvaluationBatch(
            np.array(read, dtype=np.int64), torch.from_numpy(array).permute(0, 3, 1, 2), tuple(unreadable)
        )


def evaluation_batches(
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    *,
    batch_images: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[EvaluationBatch]:
    """Every picture of the dataset once, in order, prepared as the model file says."""
    places = range(len(dataset))
    chunks = [list(places[first : first + batch_images]) for first in places[::batch_images]]
    pictures = _EvaluationPictures(dataset, preprocessing, threads=decode_threads(workers))
    yield from iter_batches(pictures, chunks, workers, pin_memory)
