"""Prediction and embedding in batches: a dataset becomes batches, batches become logits, logits become rows."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from threading import get_ident
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.label_rules import pad_labels
from efficientnetv2.data.loader import evaluation_batches, worker_errors
from efficientnetv2.data.records import Ints
from efficientnetv2.models.adapt import classifier_layers
from efficientnetv2.models.efficientnet import Network, require_classes
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import TTA, Preprocessing
from efficientnetv2.transforms.geometric import symmetry
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.device import to_device
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, gather_to_main
from efficientnetv2.utils.errors import InputError, non_finite_error, pluralize
from efficientnetv2.utils.memory import retry_halving_batch
from efficientnetv2.utils.probability import Activation, probabilities, to_logits

# Images at a time: enough to keep the processor busy. Ours.
BATCH = 64
_CPU = torch.device("cpu")

Engine = Literal["auto", "torch", "onnxruntime", "openvino", "openvino-bf16"]  # see ``exporters.engines``
Compute = Callable[[Tensor], Tensor]  # (n, C, S, S) uint8 pixels to (n, K) calibrated logits
# From network, preprocessing, first batch and number of images, if it is known, to what computes; None is PyTorch.
PickEngine = Callable[[Network, Preprocessing, Tensor, int | None], Compute | None]
Progress = Callable[[int], object]  # takes the number of images done so far


@dataclass(frozen=True)
class Runtime:
    """Where and how this process predicts a dataset."""

    device: torch.device = _CPU
    workers: int = 0  # processes that read images; 0 reads in this one
    strict: bool = False  # refuse the first unreadable image instead of skipping it
    world: World = SINGLE_PROCESS
    engine: Engine = "torch"  # as requested; ``workflows.batch_predict`` opens it
    compute: Compute | None = None  # None computes with PyTorch


THIS_PROCESS = Runtime()


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of the readable images of a dataset, in its order."""

    samples: Ints  # (n,) rows of the dataset
    labels: Ints  # (n,) classes, -1 without a label; (n, M) for multi-label data, padded with -1
    logits: Tensor  # (n, K) float32
    unreadable: tuple[tuple[int, str], ...] = ()  # row and reason of every other image
    activation: Activation = "softmax"
    unknown_scores: Tensor | None = None  # (n,) of the detector of unknown images; None without it

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(n, K) float32; rows sum to 1 with ``softmax``."""
        return probabilities(self.logits, self.activation).numpy()


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of the readable images of a dataset; see ``Predictions``."""

    samples: Ints
    labels: Ints
    vectors: npt.NDArray[np.float32]  # (n, embed_dim)
    unreadable: tuple[tuple[int, str], ...] = ()


def predict(
    network: Network,
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    on_batch: Callable[[Tensor], object] | None = None,
    num_images: int | None = None,
    pick_engine: PickEngine | None = None,
    unknown: bool = False,
) -> Tensor:
    """(N, K) float32 logits on the CPU, in order, divided by the temperature.

    With test-time augmentation, they are the logits of the mean of the probabilities of all views.

    ``batches`` are (n, C, H, W) uint8, split where memory runs out. ``progress`` is called after each with the number
    of images so far, ``on_batch`` with its logits. With ``num_images``, an upper bound, the logits are never in memory
    twice. ``pick_engine`` sees the first batch. The network moves to ``device``, and keeps its training mode. With
    ``unknown``, the scores of the network's detector of unknown images, if it has one, are a further column.
    """
    require_classes(network)
    width = network.num_classes + (unknown and network.unknown is not None)
    batches = iter(batches)
    first = list(islice(batches, 1))
    engine = pick_engine(network, preprocessing, first[0], num_images) if pick_engine is not None and first else None

    def logits(images: Tensor) -> Tensor:
        if engine is not None:
            return engine(images)[:, :width]
        inputs = _normalized(images, network, preprocessing)
        return calibrated_outputs(network, inputs, preprocessing.tta, unknown=unknown)

    computing, shape = network if engine is None else None, (num_images, width)
    return _run_batches(computing, logits, chain(first, batches), torch.device(device), shape, progress, on_batch)


def embed(
    network: Network,
    batches: Iterable[Tensor],
    *,
    preprocessing: Preprocessing,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    num_images: int | None = None,
) -> Tensor:
    """What the classifier reads, (N, embed_dim) float32 on the CPU, from one view. Arguments: see ``predict``."""

    def vectors(images: Tensor) -> Tensor:
        return network.embed(_normalized(images, network, preprocessing))

    shape = (num_images, network.embed_dim)
    return _run_batches(network, vectors, batches, torch.device(device), shape, progress)


def predict_dataset(
    network: Network,
    dataset: ImageDataset,
    *,
    preprocessing: Preprocessing,
    runtime: Runtime = Runtime(),
    batch_size: int = BATCH,
    progress: Progress | None = None,
    on_batch: Callable[[Ints, Tensor], object] | None = None,
) -> Predictions:
    """Predict every readable image of a dataset, see ``predict``; ``on_batch`` gets (n,) rows and (n, K) logits.

    Of a network that scores unknown images, the logits of ``on_batch`` have the scores as a further column.

    Each of several processes predicts every n-th image. The main process returns all predictions, the others none.
    """
    world = runtime.world
    rank_rows = np.arange(world.rank, len(dataset), world.size)
    part = dataset.select(rank_rows) if world.is_distributed else dataset
    read = _DatasetBatches(part, preprocessing, runtime, batch_size)
    outputs = predict(
        network,
        read.images(),
        preprocessing=preprocessing,
        device=runtime.device,
        progress=None if progress is None else lambda done: progress(min(len(dataset), done * world.size)),
        on_batch=None if on_batch is None else lambda logits: on_batch(rank_rows[read.rows[-1]], logits),
        num_images=len(part),
        pick_engine=lambda *_: runtime.compute,
        unknown=True,
    )
    rows, classes = read.samples, network.num_classes
    scores = None if network.unknown is None else outputs[:, classes]
    shard = Predictions(
        rows, part.targets[rows], outputs[:, :classes], tuple(read.unreadable), network.activation, scores
    )
    return merge_shards(gather_to_main(world, shard), classes)


def embed_dataset(
    network: Network,
    dataset: ImageDataset,
    *,
    preprocessing: Preprocessing,
    runtime: Runtime = Runtime(),
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed every readable image of a dataset in this process; see ``embed``."""
    read = _DatasetBatches(dataset, preprocessing, runtime, batch_size)
    count, device = len(dataset), runtime.device
    vectors = embed(
        network, read.images(), preprocessing=preprocessing, device=device, progress=progress, num_images=count
    )
    rows = read.samples
    return Embeddings(rows, dataset.labels[rows], vectors.numpy(), tuple(read.unreadable))


def merge_shards(shards: Sequence[Predictions], num_classes: int) -> Predictions:
    """Predictions of a dataset from n shards; shard i has the rows i, i + n, i + 2n, ..."""
    count = len(shards)
    if count == 1:
        return shards[0]
    rows = [shard.samples * count + i for i, shard in enumerate(shards)]
    samples = np.concatenate([np.empty(0, np.int64), *rows])
    order = np.argsort(samples)
    samples = samples[order]
    logits = torch.empty(len(samples), num_classes)
    for shard_rows, shard in zip(rows, shards, strict=True):  # in place: logits may take gigabytes
        logits[torch.from_numpy(np.searchsorted(samples, shard_rows))] = shard.logits
    labels = pad_labels([shard.labels for shard in shards])[order]
    unreadable = ((row * count + i, why) for i, shard in enumerate(shards) for row, why in shard.unreadable)
    activation: Activation = shards[0].activation if shards else "softmax"
    scored = [shard.unknown_scores for shard in shards if shard.unknown_scores is not None]
    scores = torch.cat(scored)[torch.from_numpy(order)] if scored else None
    return Predictions(samples, labels, logits, tuple(sorted(unreadable)), activation, scores)


# Of the networks in use: how many threads use each, whether it was in training, and whether each of its modules was.
_modes: dict[nn.Module, tuple[int, bool, dict[nn.Module, bool]]] = {}
_changing_modes = threading.Lock()


def _overrides_train(network: nn.Module) -> bool:
    """Whether modules do more than set the mode. Others may be in use outside of ``eval_mode``, and stay in theirs."""
    return any(type(module).train not in (nn.Module.train, Network.train) for module in network.modules())


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; after the last of the threads in it, each module is back in its mode."""
    with _changing_modes:
        users, mode, modes = _modes.get(network) or (0, network.training, {m: m.training for m in network.modules()})
        if not users:
            if _overrides_train(network):  # some forget what they cached for an evaluation only when training begins
                network.train()
            network.eval()
        _modes[network] = users + 1, mode, modes
    try:
        with torch.inference_mode():
            yield
    finally:
        with _changing_modes:
            users, mode, modes = _modes.pop(network)
            if users > 1:
                _modes[network] = users - 1, mode, modes
            else:
                if _overrides_train(network):  # to them, the mode is more than an attribute
                    network.train(mode)
                for module, training in modes.items():
                    module.training = training


def none_readable_error(dataset: ImageDataset, row: int, reason: str) -> InputError:
    """The error for a dataset without readable images; the first has ``row`` and ``reason``."""
    return InputError(
        f"none of the {pluralize(len(dataset), 'image')} of {dataset.source} can be read. The first, "
        f"{dataset.where(row)}: {reason.removesuffix('.')}. Restore or replace it."
    )


@dataclass
class _DatasetBatches:
    """Batches of the readable images of a dataset, and the rows that they came from."""

    dataset: ImageDataset
    preprocessing: Preprocessing
    runtime: Runtime
    batch_size: int
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)

    def images(self) -> Iterator[Tensor]:
        """(n, C, H, W) uint8 each; skips what cannot be read, or refuses it with ``strict``."""
        for batch in evaluation_batches(
            self.dataset,
            self.preprocessing,
            batch_size=self.batch_size,
            workers=self.runtime.workers,
            pin_memory=self.runtime.device.type == "cuda",
        ):
            if batch.unreadable and self.runtime.strict:
                row, reason = batch.unreadable[0]
                raise InputError(f"{self.dataset.paths[row]}: {reason}. Remove it, or skip it without `strict`.")
            self.unreadable += batch.unreadable
            if len(batch.samples):
                self.rows.append(batch.samples)
                yield batch.images

    @property
    def samples(self) -> Ints:
        return np.concatenate([np.empty(0, dtype=np.int64), *self.rows])


def _run_batches(
    network: Network | None,
    compute: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    device: torch.device,
    shape: tuple[int | None, int],
    progress: Progress | None,
    on_batch: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Apply ``compute`` to batches on a device, without a network by an engine; stop at results that are not finite."""
    memory_format = torch.preserve_format
    if network is not None:  # an engine has weights of its own
        memory_format = _memory_format(network)
        network.to(device)  # in its layout, which an optimizer has for its state

    def compute_part(images: Tensor) -> Tensor:
        return compute(to_device(images, device, memory_format=memory_format)).float().cpu()

    num_images, width = shape
    # Filled in place: concatenating would need the memory twice, 10 GB for a million embeddings.
    buffer = None if num_images is None else torch.empty(num_images, width)
    results: list[Tensor] = []
    done, most = 0, sys.maxsize
    # A worker may be killed while a batch is computed.
    with worker_errors(), nullcontext() if network is None else eval_mode(network):
        for images in batches:
            rows, most = retry_halving_batch(compute_part, images, most, device)
            broken = (~rows.isfinite().all(dim=1)).nonzero().flatten()
            if len(broken):
                raise non_finite_error(len(broken), done + len(images), done + int(broken[0]))
            if buffer is None:
                results.append(rows)
            else:
                buffer[done : done + len(images)] = rows
            done += len(images)
            if on_batch is not None:
                on_batch(rows)
            if progress is not None:
                progress(done)
    return torch.cat([torch.empty(0, width, device="cpu"), *results]) if buffer is None else buffer[:done]


def _normalized(images: Tensor, network: Network, preprocessing: Preprocessing) -> Tensor:
    """Normalized images in the number format of the network's first convolution."""
    values = normalize(images, mean=preprocessing.mean, std=preprocessing.std)
    layers = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.weight.is_floating_point())
    return values.to(next((layer.weight.dtype for layer in layers), values.dtype))


def calibrated_outputs(network: Network, inputs: Tensor, tta: TTA, *, unknown: bool = False) -> Tensor:
    """(N, K) logits divided by the temperature; see ``predict`` for ``unknown``, which scores the image as it is."""
    temperature = 1.0 if network.calibration is None else network.calibration.temperature
    if not unknown or network.unknown is None:
        return view_logits(network, inputs, tta).float() / temperature
    embeddings: list[Tensor] = []  # of each view; the first is the image itself
    thread = get_ident()

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == thread:  # others may predict with the same network
            embeddings.append(inputs[0])

    with classifier_layers(network)[-1].register_forward_pre_hook(keep):
        logits = view_logits(network, inputs, tta).float() / temperature
    return torch.cat([logits, network.unknown.scores(embeddings[0])[:, None]], dim=1)


def _memory_format(network: Network) -> torch.memory_format:
    """Channels-last; but the user's own module may use ``view``, which cannot flatten that."""
    is_own = isinstance(network, WrappedModel) and network.source is None
    return torch.contiguous_format if is_own else torch.channels_last


def view_logits(network: Network, inputs: Tensor, tta: TTA) -> Tensor:
    """(N, K) logits without the network's temperature; members of an ensemble apply their own."""
    if isinstance(network, Ensemble):
        return network.mean_logits(lambda member: view_logits(member, inputs, tta))
    if tta == "none":
        logits: Tensor = network(inputs)
        return logits
    total = torch.zeros(inputs.shape[0], network.num_classes, device=inputs.device)  # len() fixes an exported batch
    for index in range(8):
        view = symmetry(inputs, index).contiguous(memory_format=_memory_format(network))
        total += probabilities(network(view).float(), network.activation)
    return to_logits(total / 8, network.activation)
