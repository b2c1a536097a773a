"""The way of a picture on one core, from its file to an augmented float batch, beside timm's and torchvision's.

Every side opens, decodes, draws a crop of 8 to 100 % of the area, resizes bilinearly with antialiasing, flips, applies
RandAugment with two operations of magnitude 9, normalises and stacks. timm applies each drawn operation with
probability 1/2 (``rand-m9-mstd0.5``, as its documentation trains); torchvision and ours always do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from efficientnetv2.augment.pipeline import AugmentPlan, augment
from efficientnetv2.base.counting import uncounted
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import of_torchvision
from efficientnetv2.base.keys import Key
from efficientnetv2.base.memory import free_bytes
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.commands.bench_pictures import content, opened
from efficientnetv2.commands.bench_sides import OURS
from efficientnetv2.data.cache import Kept
from efficientnetv2.data.filling import Order
from efficientnetv2.data.keeping import in_memory
from efficientnetv2.data.loader import TrainingPictures
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.readers import Reader, originals
from efficientnetv2.data.sampling import Request
from efficientnetv2.progressive import Setting

CACHED = f"{OURS} cached"
# Inception's crops; RandAugment as timm's documentation trains with it, and the same for the others.
AREA_MIN, MAGNITUDE, LAYERS, TIMM_RANDAUGMENT = 0.08, 9, 2, "rand-m9-mstd0.5"
# As ``--cache ram`` without further words keeps pictures; the share of free memory that it may take here. Ours.
_CACHE_DETAIL, _MEMORY_SHARE = 0.5, 0.5
KEY = Key.of(0)

Round = Callable[[], None]


@dataclass(frozen=True)
class Reading:
    """What every side reads in a round.

    Args:
        manifest: of encoded pictures, each once.
        image_px: side of the squares.
        batch_images: pictures of a batch, the last one's maybe fewer.
    """

    manifest: Manifest
    image_px: int
    batch_images: int = 64

    def batches(self) -> Iterator[range]:
        """The pictures of each batch."""
        for first in range(0, len(self.manifest), self.batch_images):
            yield range(first, min(first + self.batch_images, len(self.manifest)))

    def sides(self, *, cached: bool = True) -> dict[str, Round]:
        """Side -> a round of it; of other libraries those that are installed.

        Args:
            cached: ours from pictures kept decoded in memory too; they are decoded here.

        Raises:
            InputError: there is no memory for the cache.
        """
        sides = {"timm": timm_round(self)} if importlib.util.find_spec("timm") else {}
        if _torchvision_decodes():
            sides["torchvision v2"] = torchvision_round(self)
        sides[OURS] = Ours.of(self).round_
        if cached:
            sides[CACHED] = Ours.of(self, kept_in_memory(self)).round_
        return sides


def timm_round(reading: Reading) -> Round:
    """``create_transform`` of timm, as it trains: on a Pillow image, picture by picture."""
    from timm.data.transforms_factory import create_transform

    transform = create_transform(
        reading.image_px, is_training=True, scale=(AREA_MIN, 1), auto_augment=TIMM_RANDAUGMENT
    )
    reader = originals(reading.manifest)

    def one(sample: int) -> Tensor:
        with opened(reader, sample) as image:
            picture: Tensor = transform(image.convert("RGB"))
            return picture

    return _stacked(reading, one)


def torchvision_round(reading: Reading) -> Round:
    """Transforms v2 of torchvision on tensors that it has decoded, picture by picture: faster than on Pillow images."""
    io, v2 = of_torchvision("io"), of_torchvision("transforms.v2")
    means = Preprocessing(image_px=reading.image_px)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(reading.image_px, scale=(AREA_MIN, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=LAYERS, magnitude=MAGNITUDE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(means.mean, means.std),
        ]
    )
    reader = originals(reading.manifest)

    def one(sample: int) -> Tensor:
        encoded = torch.frombuffer(bytearray(content(reader, sample)), dtype=torch.uint8)
        picture: Tensor = transform(io.decode_image(encoded, mode=io.ImageReadMode.RGB))
        return picture

    def round_() -> None:
        with warnings.catch_warnings():
            # That its decoders will go one day, which is then seen.
            warnings.simplefilter("ignore", DeprecationWarning)
            stacked()

    stacked = _stacked(reading, one)
    return round_


def _torchvision_decodes() -> bool:
    """Whether torchvision still has its decoders, which it has deprecated."""
    return hasattr(of_torchvision("io"), "decode_image")


def _stacked(reading: Reading, one: Callable[[int], Tensor]) -> Round:
    def round_() -> None:
        for samples in reading.batches():
            torch.stack([one(sample) for sample in samples])

    return round_


@dataclass
class Ours:
    """Our way, as ``train`` reads and augments.

    Args:
        pictures: that read crops.
        reading: what is read.
        turns: of the rounds.
    """

    pictures: TrainingPictures
    reading: Reading
    turns: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, reading: Reading, reader: Reader | None = None) -> Ours:
        """Read from the originals, or by another reader."""
        preprocessing = Preprocessing(reading.image_px, framing="crop", interpolation="bilinear")
        return cls(TrainingPictures(reading.manifest, preprocessing, AREA_MIN, KEY, reader=reader), reading)

    def requests(self) -> list[Request]:
        """All pictures once, other draws for every round."""
        number = next(self.turns)
        setting = Setting(image_px=self.reading.image_px, randaugment=MAGNITUDE)
        batches = [np.array(samples, np.int64) for samples in self.reading.batches()]
        return [Request(0, 0, setting, samples, np.full_like(samples, number)) for samples in batches]

    def augmented(self, request: Request, images: Tensor, labels: Tensor) -> Tensor:
        """Flip, RandAugment, normalise: a float batch."""
        pictures, _ = augment(
            images,
            labels,
            setting=request.setting,
            key=KEY,
            ids=request.ids,
            mix_key=KEY,
            plan=AugmentPlan(randaugment_layers=LAYERS),
            preprocessing=self.pictures.preprocessing,
            num_classes=len(self.reading.manifest.class_names),
        )
        return pictures

    def round_(self) -> None:
        """From files to float batches."""
        for request in self.requests():
            batch = self.pictures.batch(request)
            self.augmented(request, batch.images, batch.labels)


def kept_in_memory(reading: Reading) -> Reader:
    """The same pictures, decoded once and shrunk to what crops of this size need.

    Raises:
        InputError: there is no memory for them.
    """
    manifest = reading.manifest
    order = Order(
        reader=originals(manifest),
        count=len(manifest),
        kept=Kept.enough(image_px=reading.image_px, framing="crop", area_min=AREA_MIN, detail=_CACHE_DETAIL),
        threads=1,
        say=lambda _line: None,
        counting=uncounted,
    )
    filled = in_memory(order, room_bytes=int(_MEMORY_SHARE * free_bytes(torch.device("cpu"))))
    return filled.reader(np.arange(len(manifest)), originals(manifest))


def able(sides: dict[str, Round], say: Callable[[str], None]) -> dict[str, Round]:
    """The sides that can read all the pictures: other libraries know fewer formats.

    Args:
        sides: each is run once, ours too.
        say: gets a line for each that is left out.

    Raises:
        InputError: ours can't.
    """
    found = {}
    for side, round_ in sides.items():
        try:
            round_()
        except (OSError, RuntimeError, ValueError) as error:
            if side.startswith(OURS) or isinstance(error, InputError):
                raise
            say(f"{side} is left out, for it can't read these pictures: {str(error).splitlines()[0]}")
        else:
            found[side] = round_
    return found


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within it this thread computes on one core alone, where the system allows to say so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
