"""Training as a run does it, reading included, beside a plain loop around timm's network and timm's loader.

Every side trains the same network from the same weights with AdamW on the same pictures, of which random crops of 8 to
100 % of the area are read, flipped, and changed by RandAugment with two operations of magnitude 9; timm applies each of
them with probability 1/2. timm's loader is asked for as its train script asks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from efficientnetv2.augment.pipeline import AugmentPlan
from efficientnetv2.base.errors import count_of
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.base.timing import Spread, waiting
from efficientnetv2.commands.bench_input import AREA_MIN, LAYERS, MAGNITUDE, TIMM_RANDAUGMENT
from efficientnetv2.commands.bench_pictures import opened
from efficientnetv2.commands.bench_sides import OURS, Sides
from efficientnetv2.commands.bench_step import Peer, Work, has, our_recipe, our_steps
from efficientnetv2.data.ahead import AHEAD, reading_threads
from efficientnetv2.data.loader import Batch, TrainingPictures, training_batches
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.readers import originals
from efficientnetv2.data.sampling import Request
from efficientnetv2.inference.accelerate import cores, lower_precision, pick_workers
from efficientnetv2.training.recipe import Recipe

# Workers that timm's train script takes where none are named.
_TIMM_WORKERS = 4
# Steps of a round before those that count: the workers start, a compiled network compiles. Ours.
WARM_UP = 2
# Steps of a round that count, at least. Ours.
_STEPS = 8
# Batches that each of a DataLoader's workers reads ahead, as timm's script leaves it.
_TIMM_AHEAD = 2

_Batch = TypeVar("_Batch")


def _read_meanwhile(batches: Iterable[_Batch], ahead: int) -> Iterator[_Batch]:
    """Batches without those that were read ahead while the first step compiled, or what follows would wait for none.

    They are left out before the last step that does not count.

    Args:
        batches: in their order.
        ahead: how many the workers read ahead; 0 without workers.
    """
    coming = iter(batches)
    yield from islice(coming, WARM_UP - 1)
    yield from islice(coming, ahead, None)


@dataclass(frozen=True)
class TimmLoop:
    """A plain loop around timm's network and loader.

    Args:
        peer: the network, how it is called.
        workers: processes of the loader.
    """

    peer: Peer
    workers: int

    def __str__(self) -> str:
        return f"{self.peer}, {count_of(self.workers, 'worker')}"

    @property
    def ahead(self) -> int:
        """Batches that are read ahead."""
        return _TIMM_AHEAD * self.workers

    def steps(self, work: Work, manifest: Manifest) -> Generator[float, None, None]:
        """A step for each number: the seconds that it waited for its pictures."""
        waiting = _Waiting(_read_meanwhile(self._batches(work, manifest), self.ahead))
        for _ in self.peer.train(work, waiting):
            yield waiting.seconds

    def _batches(self, work: Work, manifest: Manifest) -> Iterator[tuple[Tensor, Tensor]]:
        from timm.data.loader import create_loader

        on_gpu = work.device.type == "cuda"
        with warnings.catch_warnings():
            # More workers than cores are what the script asks for too.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            loader = create_loader(
                _Files(manifest),  # type: ignore[arg-type]  # any dataset that has a transform to be set
                (3, work.image_px, work.image_px),
                work.batch_images,
                is_training=True,
                scale=(AREA_MIN, 1.0),
                auto_augment=TIMM_RANDAUGMENT,
                num_workers=self.workers,
                pin_memory=on_gpu,
                device=work.device,
                use_prefetcher=on_gpu,
            )
        while True:
            yield from loader


class _Files(Dataset[tuple[Any, int]]):
    """Pictures as timm's own datasets give them; the loader sets the transform."""

    transform: Callable[[Any], Any] | None = None

    def __init__(self, manifest: Manifest) -> None:
        self.reader, self.labels = originals(manifest), manifest.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> tuple[Any, int]:
        assert self.transform is not None, "create_loader sets it"
        with opened(self.reader, sample) as image:
            return self.transform(image.convert("RGB")), self.labels[sample]


class _Waiting:
    """Batches, and how long the last one was waited for.

    Args:
        batches: to pass on.
    """

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            began = time.perf_counter()
            batch = next(self.batches)
            self.seconds = time.perf_counter() - began
            yield batch


def loops(work: Work, workers: int | None) -> list[TimmLoop]:
    """Timm as its script runs it first, then tuned by the usual switches; nothing where it is not installed.

    Args:
        work: to do.
        workers: of the tuned ones; None tries, on a CPU, none and one per core, on a GPU as many as ours.
    """
    if not has("timm", work.model):
        return []
    tuned = Peer("timm", channels_last=True, precision=lower_precision(work.device) or "fp32", fused=True)
    counts = [0, cores()] if work.device.type == "cpu" else [pick_workers(work.device)]
    counts = counts if workers is None else [workers]
    return [TimmLoop(Peer("timm"), _TIMM_WORKERS), *(TimmLoop(tuned, count) for count in counts)]


def fair_steps(work: Work, workers: int | None) -> int:
    """Steps of a round that count where nobody says how many: workers end batches together, of few chance would decide.

    Args:
        work: to do.
        workers: as for ``trained``.
    """
    return max(_STEPS, AHEAD * _our_workers(work, workers), *(loop.ahead for loop in loops(work, workers)))


def _our_workers(work: Work, workers: int | None) -> int:
    return pick_workers(work.device) if workers is None else workers


def our_waits(work: Work, recipe: Recipe, manifest: Manifest, workers: int) -> Generator[float, None, None]:
    """Steps of our loop: for each the seconds that it waited for its pictures."""
    pictures = TrainingPictures(
        manifest,
        Preprocessing(work.image_px, framing="crop", interpolation="bilinear"),
        AREA_MIN,
        Key.of(0),
        threads=reading_threads(workers),
    )

    def read(requests: Iterable[Request]) -> Iterable[Batch]:
        pin_memory = work.device.type == "cuda"
        batches = training_batches(pictures, requests, workers=workers, pin_memory=pin_memory)
        return _read_meanwhile(batches, AHEAD * workers)

    for done in our_steps(work, recipe, read, manifest.labels):
        yield done.waited_s


@dataclass(frozen=True)
class Trained(Sides):
    """Rounds of all sides, measured.

    Args:
        waited: seconds of each round in which a side had no pictures to train on.
        note: what was chosen for ours.
    """

    waited: dict[str, list[float]]
    note: str

    def waiting_share(self, side: str) -> Spread:
        """Share of a round's time, over the rounds."""
        return Spread.of(
            [wait / all_ for wait, all_ in zip(self.waited[side], self.seconds[side], strict=True)]
        )

    def side_json(self, side: str) -> dict[str, Any]:
        """Waiting too."""
        waiting = {"waiting_share": asdict(self.waiting_share(side)), "waited_s": self.waited[side]}
        return super().side_json(side) | waiting

    def to_json(self) -> dict[str, Any]:
        """The choice too."""
        return {"choice": self.note} | super().to_json()


def trained(
    work: Work,
    manifest: Manifest,
    *,
    rounds: int,
    steps: int,
    workers: int | None,
    say: Callable[[str], None],
    counted: Callable[[int], None],
) -> Trained:
    """Train some steps of every side in turn, each round from its beginning, so that nobody reads ahead meanwhile.

    Args:
        work: what each does.
        manifest: of the pictures; at least a batch.
        rounds: of each side.
        steps: of a round that count, after ``WARM_UP`` that do not.
        workers: processes that read; None leaves it to each side.
        say: gets a line for what was chosen.
        counted: gets the number of pictures done so far.

    Raises:
        InputError: no such network, or a value outside its range.
    """
    recipe, note = our_recipe(work)
    say(note)
    strong = replace(recipe.progressive, randaugment=float(MAGNITUDE))
    plan = AugmentPlan(randaugment_layers=LAYERS)
    recipe = recipe.model_copy(update={"progressive": strong, "augment": plan})
    ours = _our_workers(work, workers)
    begin: dict[str, Callable[[], Generator[float, None, None]]] = {
        str(loop): lambda loop=loop: loop.steps(work, manifest)  # type: ignore[misc]
        for loop in loops(work, workers)
    }
    begin[OURS] = lambda: our_waits(work, recipe, manifest, ours)
    seconds: dict[str, list[float]] = {side: [] for side in begin}
    waited: dict[str, list[float]] = {side: [] for side in begin}
    done = 0
    for number in range(rounds):
        for side in list(begin) if number % 2 == 0 else list(begin)[::-1]:
            with closing(begin[side]()) as waits:
                whole_s, waited_s = _timed(waits, steps, work.device)
            seconds[side].append(whole_s)
            waited[side].append(waited_s)
            done += (WARM_UP + steps) * work.batch_images
            counted(done)
    return Trained(seconds, steps * work.batch_images, waited, note)


def _timed(waits: Iterator[float], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of the steps after the first ones, and of waiting in them."""
    wait = waiting(device)
    for _ in range(WARM_UP):
        next(waits)
    wait()
    began = time.perf_counter()
    waited = sum(next(waits) for _ in range(steps))
    wait()
    return time.perf_counter() - began, waited
