"""A network's answers to batches of pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.loader import evaluation_batches
from efficientnetv2.data.multilabel import pad_labels
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.preprocessing import RGB, Preprocessing, Views
from efficientnetv2.transforms.geometric import symmetry
from efficientnetv2.transforms.normalize import normalise
from efficientnetv2.utils.device import place, to_device
from efficientnetv2.utils.distributed import World, gather_to_main
from efficientnetv2.utils.errors import InputError, MemoryShortError, count_of, non_finite_error
from efficientnetv2.utils.memory import is_out_of_memory, reason_of, release_memory
from efficientnetv2.utils.probability import Answer, probabilities, to_logits
from efficientnetv2.utils.shell import typed


def retry_halving_batch(
    compute: Callable[[Tensor], Tensor], images: Tensor, most: int, device: torch.device
) -> tuple[Tensor, int]:
    """What ``compute`` makes of a batch; where memory runs out, of the rest of it with half as many at a time.

    Args:
        compute: pictures -> a row for each, on the CPU; pictures do not know of each other.
        images: (n, C, H, W), n above 0.
        most: how many pictures at a time.
        device: that ``compute`` uses.

    Returns:
        (n, ...), and how many at a time from now on.

    Raises:
        MemoryShortError: a single picture does not fit.
    """
    results: list[Tensor] = []
    done = 0
    while done < len(images):
        part = images[done : done + most]
        try:
            results.append(compute(part))
            done += len(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryShortError(
                    f"Memory ran out with a single picture of {images.shape[-1]} px that is only looked at "
                    f"({reason_of(error)}). End what else takes memory, then say the same again (a run goes on with "
                    "--resume), or look at smaller pictures."
                ) from error
        # Only here, where the error and all that its traceback held on to are gone, is memory free again.
        most = len(part) // 2
        release_memory(device)
    return torch.cat(results), most


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers to the pictures of a dataset, in its order.

    Args:
        samples: (n,) positions in the dataset of the pictures that could be read.
        labels: (n,) their true classes, -1 where unlabelled; of several labels each (n, M), -1 behind the last.
        logits: (n, K) float32.
        unreadable: position and reason of the others.
        answer: what the logits mean.
    """

    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: Tensor
    unreadable: tuple[tuple[int, str], ...] = ()
    answer: Answer = "softmax"

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(n, K) float32; rows sum to 1 where the answer is ``softmax``."""
        return probabilities(self.logits, self.answer).numpy()


def predict(
    network: Network,
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
    each: Callable[[Tensor], object] | None = None,
    pictures: int | None = None,
) -> Tensor:
    """Logits of every picture, in order.

    The network moves to ``device`` and stays there; whether its parts train or evaluate is left as it was.

    Args:
        network: in any mode; it answers in evaluation mode.
        batches: (n, C, H, W) uint8 each, values 0 to 255; looked at in parts where memory runs out.
        preprocessing: of the network; its mean, std and views are used here.
        device: to compute on.
        progress: called after every batch with the number of pictures done so far.
        each: called with the (n, K) logits of every batch, as soon as they are there.
        pictures: how many there are at most, where that is known: the logits are then never in memory twice.

    Returns:
        (N, K) float32 on the CPU, divided by the network's temperature where it has one (``models.temperature``). Of
        several views: logits of their mean probabilities.

    Raises:
        InputError: the pictures have another number of channels than the preprocessing, the network has no
            classes, it answers with NaN or infinity, or memory is too short for a single picture.
    """
    require_classes(network)
    temperature = 1.0 if network.calibration is None else network.calibration.temperature
    return _computed(
        network,
        lambda inputs: _answers(network, inputs, preprocessing.views).float() / temperature,
        batches,
        preprocessing=preprocessing,
        device=torch.device(device),
        progress=progress,
        each=each,
        width=network.num_classes,
        pictures=pictures,
    )


def embed(
    network: Network,
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
    pictures: int | None = None,
) -> Tensor:
    """Embeddings of all images, in order: what the network's classifier reads. Each image is seen once.

    Args:
        network: See ``predict``; it needs no classifier.
        batches: See ``predict``.
        preprocessing: Of the network; its mean and std are used here.
        device: Device to compute on.
        progress: Called after every batch with the number of images done so far.
        pictures: See ``predict``.

    Returns:
        (N, embed_dim) float32 on the CPU.

    Raises:
        InputError: See ``predict``.
    """
    return _computed(
        network,
        network.embed,
        batches,
        preprocessing=preprocessing,
        device=torch.device(device),
        progress=progress,
        width=network.embed_dim,
        pictures=pictures,
    )


def require_classes(network: Network, file: str | Path | None = None) -> None:
    """Refuse a network that only embeds, where classes are asked for.

    Args:
        network: any.
        file: that it came from, for the message.

    Raises:
        InputError: it has no classifier.
    """
    if network.num_classes == 0:
        command = typed(["effnetv2", "train", "DATA", "--weights", str(file or "FILE")])
        raise InputError(
            f"{file or 'the network'} has no classifier, so it knows no classes. Train one: {command}"
        )


def require_single_label(network: Network, why: str, file: str | Path | None = None) -> None:
    """Refuse a network that answers each class by itself, where one of them is asked for.

    Args:
        network: any.
        why: one is, in words.
        file: that it came from, for the message.

    Raises:
        InputError: its answer is ``sigmoid``.
    """
    if network.answer == "sigmoid":
        raise InputError(
            f"{file or 'the network'} answers each class by itself (sigmoid), maybe several or none, but {why}. Give a "
            "model trained on pictures of one label, or with --set several_labels=softmax."
        )


def require_image_channels(network: Network, file: str | Path | None = None) -> None:
    """Refuse a network for other channels than files have: three, or the bands of its rule for rasters.

    Args:
        network: any.
        file: that it came from, for the message.

    Raises:
        InputError: nobody knows what its channels are.
    """
    bands = network.preprocessing.bands
    if network.in_channels != (RGB if bands is None else bands.channels):
        raise InputError(
            f"{file or 'the network'} takes pictures of {count_of(network.in_channels, 'channel')}, but files are "
            "read as three (RGB). Use inference.predict.predict with batches of your own."
        )


def _computed(
    network: Network,
    compute: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    progress: Callable[[int], object] | None,
    width: int,
    pictures: int | None,
    each: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """What ``compute`` makes of each batch, normalised, on the CPU; refused at the first that comes to nothing.

    Returns:
        (N, width).
    """
    place(network, device)

    def of(images: Tensor) -> Tensor:
        on_device = to_device(images, device, memory_format=torch.channels_last)
        return compute(normalise(on_device, mean=preprocessing.mean, std=preprocessing.std)).float().cpu()

    # To their places at once: joined at the end, a million pictures' vectors take 10 GB for the 5 that they are.
    whole: npt.NDArray[np.float32] | None = None
    results: list[Tensor] = []  # where nobody knows how many there are
    done, most = 0, sys.maxsize
    with eval_mode(network):
        for images in batches:
            answers, most = retry_halving_batch(of, images, most, device)
            broken = (~answers.isfinite().all(dim=1)).nonzero().flatten()
            if len(broken):
                raise non_finite_error(len(broken), done + len(images), done + int(broken[0]))
            if pictures is None:
                results.append(answers)
            else:
                whole = np.empty((pictures, *answers.shape[1:]), np.float32) if whole is None else whole
                whole[done : done + len(images)] = answers.numpy()
            done += len(images)
            if each is not None:
                each(answers)
            if progress is not None:
                progress(done)
    if whole is not None:
        return torch.from_numpy(whole[:done])
    return torch.cat(results) if results else torch.empty(0, width)


def _answers(network: Network, inputs: Tensor, views: Views) -> Tensor:
    """Logits of a batch before the network's temperature, (N, K); an ensemble's members have divided by their own."""
    if isinstance(network, Ensemble):
        return network.blended(lambda member: _answers(member, inputs, views))
    if views == "one":
        answers: Tensor = network(inputs)
        return answers
    total = torch.zeros(len(inputs), network.num_classes, device=inputs.device)
    for index in range(8):
        view = symmetry(inputs, index).contiguous(memory_format=torch.channels_last)
        total += probabilities(network(view).float(), network.answer)
    return to_logits(total / 8, network.answer)


def predict_dataset(
    network: Network,
    dataset: ImageDataset,
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    workers: int = 0,
    batch_images: int = 64,
    progress: Callable[[int], object] | None = None,
    each: Callable[[npt.NDArray[np.int64], Tensor], object] | None = None,
    strict: bool = False,
) -> Predictions:
    """Answers to every readable picture of a dataset.

    Args:
        network: in any mode.
        dataset: labelled or not.
        preprocessing: of the network.
        device: to compute on.
        workers: processes that read pictures; 0 reads in this one.
        batch_images: how many at a time; fewer from the batch on in which memory runs out.
        progress: called after every batch with the number of pictures done so far.
        each: called with the (n,) positions in the dataset and the (n, K) logits of every batch, as soon as they are
            there.
        strict: refuse the first unreadable picture instead of passing it over.

    Raises:
        InputError: a picture can't be read, with ``strict``; or see ``predict``.
    """
    read = _Reading(dataset, preprocessing, batch_images, workers, torch.device(device), strict)
    logits = predict(
        network,
        read.images(),
        preprocessing=preprocessing,
        device=device,
        progress=progress,
        each=None if each is None else lambda answers: each(read.latest, answers),
        pictures=len(dataset),
    )
    targets, unreadable = dataset.targets[read.samples], tuple(read.unreadable)
    return Predictions(read.samples, targets, logits, unreadable, network.answer)


def merge_shards(parts: Sequence[Predictions], num_classes: int) -> Predictions:
    """Answers to all pictures of a dataset, from those to its parts.

    Args:
        parts: number i of n answers the pictures i, i + n, i + 2n, ... of the dataset, all by the same network.
        num_classes: K.
    """
    count = len(parts)
    if count == 1:
        return parts[0]
    samples = np.concatenate(
        [np.empty(0, np.int64), *(part.samples * count + i for i, part in enumerate(parts))]
    )
    labels = pad_labels([part.labels for part in parts])
    unreadable = ((row * count + i, why) for i, part in enumerate(parts) for row, why in part.unreadable)
    order = np.argsort(samples)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    logits = torch.empty(len(samples), num_classes)
    for own, part in zip(
        _split(place, parts), parts, strict=True
    ):  # one by one: all of a large set fill gigabytes
        logits[torch.from_numpy(own)] = part.logits
    answer: Answer = parts[0].answer if parts else "softmax"  # of none there is nothing to be meant
    return Predictions(samples[order], labels[order], logits, tuple(sorted(unreadable)), answer)


def _split(rows: npt.NDArray[np.int64], parts: Sequence[Predictions]) -> list[npt.NDArray[np.int64]]:
    """The rows of each part, that stand behind one another."""
    return np.split(rows, np.cumsum([len(part.samples) for part in parts])[:-1]) if parts else []


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a network's classifier reads of the pictures of a dataset, in its order.

    Args:
        samples: (n,) positions in the dataset of the pictures that could be read.
        labels: (n,) their true classes; -1 where unlabelled.
        vectors: (n, embed_dim) float32.
        unreadable: position and reason of those that could not be read.
    """

    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    unreadable: tuple[tuple[int, str], ...] = ()


def embed_dataset(
    network: Network,
    dataset: ImageDataset,
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    workers: int = 0,
    batch_images: int = 64,
    progress: Callable[[int], object] | None = None,
) -> Embeddings:
    """Embeddings of every readable picture of a dataset, each looked at once; see ``predict_dataset``."""
    read = _Reading(dataset, preprocessing, batch_images, workers, torch.device(device), strict=False)
    vectors = embed(
        network,
        read.images(),
        preprocessing=preprocessing,
        device=device,
        progress=progress,
        pictures=len(dataset),
    )
    return Embeddings(read.samples, dataset.labels[read.samples], vectors.numpy(), tuple(read.unreadable))


@dataclass
class _Reading:
    """Pictures of a dataset in batches, and which of them could be read."""

    dataset: ImageDataset
    preprocessing: Preprocessing
    batch_images: int
    workers: int
    device: torch.device
    strict: bool
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    _samples: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def images(self) -> Iterator[Tensor]:
        """(n, C, H, W) uint8 each.

        Raises:
            InputError: a picture can't be read, with ``strict``.
        """
        for batch in evaluation_batches(
            self.dataset,
            self.preprocessing,
            batch_images=self.batch_images,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        ):
            for row, reason in batch.unreadable:
                if self.strict:
                    raise InputError(
                        f"{self.dataset.paths[row]}: {reason}. Remove it, or leave out --strict to skip it."
                    )
                self.unreadable.append((row, reason))
            if len(batch.samples):
                self._samples.append(batch.samples)
                yield batch.images

    @property
    def latest(self) -> npt.NDArray[np.int64]:
        """Positions of the pictures given out last."""
        return self._samples[-1]

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Positions of the pictures given out so far."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._samples])


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, within; afterwards every part is in the mode that it was in.

    Parts are put back one by one, for a network may train with some of them frozen.
    """
    training = {module for module in network.modules() if module.training}
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


# Pictures at a time: enough to keep the processor busy; fewer where memory runs out. Ours.
_BATCH = 64


def predict_distributed(
    network: Network,
    dataset: ImageDataset,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
    world: World,
    progress: Callable[[int], object] | None = None,
    each: Callable[[npt.NDArray[np.int64], Tensor], object] | None = None,
    strict: bool = False,
) -> Predictions:
    """Answers to every readable picture, each counted once; every process calls it.

    Args:
        network: the same for all, in any mode.
        dataset: the same for all.
        preprocessing: of the network.
        device: of this process.
        workers: of this process, that read pictures.
        world: the processes.
        progress: called after every batch with the number of pictures that all have done so far, as far as this
            process's own tell.
        each: called with the (n,) positions in the dataset and the (n, K) logits of every batch of this process, as
            soon as they are there.
        strict: refuse the first unreadable picture instead of passing it over.

    Returns:
        All answers for the first process, an empty part of them for the others.

    Raises:
        InputError: see ``inference.predict.predict_dataset``.
    """

    def together(done: int) -> None:
        if progress is not None:
            progress(min(len(dataset), done * world.size))

    own = np.arange(world.rank, len(dataset), world.size)
    share = predict_dataset(
        network,
        dataset.select(own) if world.is_distributed else dataset,
        preprocessing=preprocessing,
        device=device,
        workers=workers,
        batch_images=_BATCH,
        progress=together,
        each=None if each is None else lambda samples, logits: each(own[samples], logits),
        strict=strict,
    )
    return merge_shards(gather_to_main(world, share), share.logits.shape[1])
