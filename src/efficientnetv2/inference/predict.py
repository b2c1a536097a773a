"""A network's answers to batches of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from efficientnetv2.augment.normalise import normalise
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.loader import evaluation_batches
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.inference.accelerate import place
from efficientnetv2.models.network import EfficientNet


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers to the pictures of a manifest, in its order.

    Args:
        samples: (n,) positions in the manifest of the pictures that could be read.
        labels: (n,) their true classes; -1 where unlabelled.
        logits: (n, K) float32.
        unreadable: position and reason of the others.
    """

    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: Tensor
    unreadable: tuple[tuple[int, str], ...] = ()

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(n, K) float32, rows sum to 1."""
        return self.logits.softmax(dim=1).numpy()


def predict(
    network: EfficientNet,
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Logits of every picture, in order.

    The network moves to ``device`` and stays there; whether its parts train or evaluate is left as it was.

    Args:
        network: in any mode; it answers in evaluation mode.
        batches: (n, C, H, W) uint8 each, values 0 to 255.
        preprocessing: of the network; its mean and std are used here.
        device: to compute on.
        progress: called after every batch with the number of pictures done so far.

    Returns:
        (N, K) float32 on the CPU.

    Raises:
        InputError: the pictures have another number of channels than the preprocessing.
    """
    place(network, torch.device(device))
    logits: list[Tensor] = []
    done = 0
    with evaluating(network):
        for images in batches:
            on_device = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            answers = network(normalise(on_device, mean=preprocessing.mean, std=preprocessing.std))
            logits.append(answers.float().cpu())
            done += len(images)
            if progress is not None:
                progress(done)
    return torch.cat(logits) if logits else torch.empty(0, network.num_classes)


def predict_manifest(
    network: EfficientNet,
    manifest: Manifest,
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    workers: int = 0,
    batch_images: int = 64,
    progress: Callable[[int], object] | None = None,
    strict: bool = False,
) -> Predictions:
    """Answers to every readable picture of a manifest.

    Args:
        network: in any mode.
        manifest: labelled or not.
        preprocessing: of the network.
        device: to compute on.
        workers: processes that read pictures; 0 reads in this one.
        batch_images: how many at a time.
        progress: called after every batch with the number of pictures done so far.
        strict: refuse the first unreadable picture instead of passing it over.

    Raises:
        InputError: a picture can't be read, with ``strict``.
    """
    samples: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    unreadable: list[tuple[int, str]] = []

    def images() -> Iterator[Tensor]:
        for batch in evaluation_batches(
            manifest,
            preprocessing,
            batch_images=batch_images,
            workers=workers,
            pin_memory=torch.device(device).type == "cuda",
        ):
            for row, reason in batch.unreadable:
                if strict:
                    raise InputError(
                        f"{manifest.paths[row]}: {reason}. Remove it, or leave out --strict to skip it."
                    )
                unreadable.append((row, reason))
            if len(batch.samples):
                samples.append(batch.samples)
                yield batch.images

    logits = predict(network, images(), preprocessing=preprocessing, device=device, progress=progress)
    read = np.concatenate(samples)
    return Predictions(read, manifest.labels[read], logits, tuple(unreadable))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
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
