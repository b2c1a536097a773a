"""From requests to uint8 batches, in worker processes that live as long as the run.

A request names its own image size, so the growing of the picture needs no new workers.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Framing, Preprocessing
from efficientnetv2.data.decode import CROP_UNIFORMS, UnreadablePicture, eval_picture, train_picture
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.sampling import Request


@dataclass(frozen=True)
class Cropping:
    """How training pictures are cut out.

    Args:
        framing: what becomes of a picture that is not square; see ``Preprocessing``.
        area_min: smallest share of the picture's area that a random crop keeps; 1 is no crop.
        aspect: least and greatest width over height of a crop.
    """

    framing: Framing
    area_min: float
    aspect: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass
class Batch:
    """The pictures of one request.

    Args:
        request: what was asked for.
        images: (n, 3, image_px, image_px) uint8, in channels-last memory.
        labels: (n,) int64.
        unreadable: sample and reason of each picture that another of its class stands in for.
    """

    request: Request
    images: Tensor
    labels: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> Batch:
        """For the DataLoader, which pins what goes to a GPU."""
        return Batch(self.request, self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


class TrainingPictures(Dataset[Batch]):
    """Answers requests: draws each picture's crop, decodes just that, resizes."""

    def __init__(self, manifest: Manifest, cropping: Cropping, key: Key) -> None:
        self.manifest, self.cropping, self.key = manifest, cropping, key
        self.labels = manifest.labels

    def __getitem__(self, request: Request) -> Batch:
        uniforms = self.key.fold("crop").uniform_rows(request.ids, CROP_UNIFORMS)
        samples, unreadable, pictures = request.samples.copy(), [], []
        for place, sample in enumerate(request.samples):
            picture, read, failures = self._read(int(sample), request.setting.image_px, uniforms[place])
            samples[place] = read
            unreadable += failures
            pictures.append(picture)
        return Batch(
            request,
            torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
            torch.from_numpy(self.labels[samples]),
            tuple(unreadable),
        )

    def _read(
        self, sample: int, image_px: int, uniforms: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.uint8], int, list[tuple[int, str]]]:
        """The picture, or the next readable one of its class: a function of the files alone."""
        failures: list[tuple[int, str]] = []
        for candidate in self._from(sample):
            try:
                picture = train_picture(
                    self.manifest.file(candidate),
                    image_px=image_px,
                    framing=self.cropping.framing,
                    area_min=self.cropping.area_min,
                    aspect=self.cropping.aspect,
                    uniforms=uniforms,
                )
                return picture, candidate, failures
            except UnreadablePicture as error:
                failures.append((candidate, str(error)))
        name = self.manifest.class_names[self.labels[sample]]
        raise InputError(
            f"Every picture of class '{name}' has become unreadable during the run "
            f"(last: {self.manifest.file(sample)}: {failures[-1][1]}). "
            "Is the disk or the network share still there? Then go on with --resume."
        )

    def _from(self, sample: int) -> Iterator[int]:
        """The sample, then the others of its class in order, around."""
        yield sample
        mates = np.flatnonzero(self.labels == self.labels[sample])
        yield from (int(mate) for mate in np.roll(mates, -int(np.searchsorted(mates, sample)))[1:])


class _Requests(Sampler[Request]):
    """The DataLoader's view of our sampler."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def training_batches(
    pictures: TrainingPictures, requests: Iterable[Request], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches of the requests, in their order, read ahead by ``workers`` processes (0: none)."""
    loader = _loader(pictures, _Requests(requests), workers, pin_memory)
    return iter(loader)


@dataclass
class EvaluationBatch:
    """Pictures as evaluation sees them.

    Args:
        samples: (n,) positions in the manifest of the pictures that could be read.
        images: (n, 3, image_px, image_px) uint8.
        unreadable: position and reason of those that could not.
    """

    samples: npt.NDArray[np.int64]
    images: Tensor
    unreadable: tuple[tuple[int, str], ...]

    def pin_memory(self) -> EvaluationBatch:
        """For the DataLoader, which pins what goes to a GPU."""
        return EvaluationBatch(self.samples, self.images.pin_memory(), self.unreadable)


class _EvaluationPictures(Dataset[EvaluationBatch]):
    def __init__(self, manifest: Manifest, preprocessing: Preprocessing) -> None:
        self.manifest, self.preprocessing = manifest, preprocessing

    def __getitem__(self, samples: Sequence[int]) -> EvaluationBatch:
        read, pictures, unreadable = [], [], []
        for sample in samples:
            try:
                pictures.append(eval_picture(self.manifest.file(sample), self.preprocessing))
                read.append(sample)
            except UnreadablePicture as error:
                unreadable.append((sample, str(error)))
        px = self.preprocessing.image_px
        array = np.stack(pictures) if pictures else np.empty((0, px, px, 3), np.uint8)
        return EvaluationBatch(
            np.array(read, dtype=np.int64), torch.from_numpy(array).permute(0, 3, 1, 2), tuple(unreadable)
        )


def evaluation_batches(
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    batch_images: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[EvaluationBatch]:
    """Every picture of the manifest once, in order, prepared as the model file says."""
    places = range(len(manifest))
    chunks = [list(places[first : first + batch_images]) for first in places[::batch_images]]
    return iter(_loader(_EvaluationPictures(manifest, preprocessing), chunks, workers, pin_memory))


def _loader(dataset: Dataset[Any], requests: Any, workers: int, pin_memory: bool) -> DataLoader[Any]:
    # batch_size=None: a request is a whole group already, so nothing is left to collate.
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group; the main process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
