"""A network's answers to the pictures of a manifest, its processes each answering their share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.inference.predict import Predictions, interleaved, predict_manifest
from efficientnetv2.models.network import Network
from efficientnetv2.training.distributed import World, gathered_by_first

# Pictures at a time: enough to keep the processor busy; fewer where memory runs out. Ours.
_BATCH = 64


def shared_answers(
    network: Network,
    manifest: Manifest,
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
        manifest: the same for all.
        preprocessing: of the network.
        device: of this process.
        workers: of this process, that read pictures.
        world: the processes.
        progress: called after every batch with the number of pictures that all have done so far, as far as this
            process's own tell.
        each: called with the (n,) positions in the manifest and the (n, K) logits of every batch of this process, as
            soon as they are there.
        strict: refuse the first unreadable picture instead of passing it over.

    Returns:
        All answers for the first process, an empty part of them for the others.

    Raises:
        InputError: see ``inference.predict.predict_manifest``.
    """

    def together(done: int) -> None:
        if progress is not None:
            progress(min(len(manifest), done * world.size))

    own = np.arange(world.rank, len(manifest), world.size)
    share = predict_manifest(
        network,
        manifest.select(own) if world.many else manifest,
        preprocessing=preprocessing,
        device=device,
        workers=workers,
        batch_images=_BATCH,
        progress=together,
        each=None if each is None else lambda samples, logits: each(own[samples], logits),
        strict=strict,
    )
    return interleaved(gathered_by_first(world, share), share.logits.shape[1])
