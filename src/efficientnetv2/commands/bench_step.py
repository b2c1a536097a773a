"""One training step beside those of timm and torchvision: same network, pictures, optimizer, regularization."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from efficientnetv2.augment.normalise import normalise
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import of_torchvision
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.loader import Batch
from efficientnetv2.data.sampling import Request, Sampler
from efficientnetv2.inference.accelerate import Precision, autocast, lower_precision, place
from efficientnetv2.models.create import create
from efficientnetv2.models.interop import timm as timm_names
from efficientnetv2.models.network import EfficientNet
from efficientnetv2.models.regularize import apply_setting
from efficientnetv2.progressive import Progressive
from efficientnetv2.training.checked import checked
from efficientnetv2.training.loop import StepDone, train
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import named
from efficientnetv2.training.speed import choose
from efficientnetv2.training.state import Length, begin

# AdamW as everybody has it; the figures do not depend on them.
_LR, _WEIGHT_DECAY = 1e-3, 0.05
# Steps of the run that our side makes its choices for: on a CPU pictures of one's own for some minutes, on a GPU such
# as ImageNet's. Ours.
_CPU_STEPS, _GPU_STEPS = 1_000, 300_000


# Whose steps stand beside ours, where they are installed.
LIBRARIES = ("timm", "torchvision")


@dataclass(frozen=True)
class Work:
    """What every side trains.

    Args:
        model: a published network's name.
        image_px: side of the pictures, which are noise.
        batch_images: pictures of a step; they share batch-norm statistics.
        rate: of dropout and of stochastic depth.
        device: to train on.
        num_classes: K.
        seed: of the first weights and of the pictures.
    """

    model: str
    image_px: int
    batch_images: int
    rate: float
    device: torch.device
    num_classes: int = 1000
    seed: int = 0

    def network(self) -> EfficientNet:
        """With the same weights, whenever it is made.

        Raises:
            InputError: no such network, or not one of ours.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = create(self.model, num_classes=self.num_classes)
        if not isinstance(network, EfficientNet):
            raise InputError(f"--model {self.model}: only networks of ours are compared (effnetv2 models).")
        return network

    def pictures(self) -> tuple[Tensor, Tensor]:
        """(N, 3, px, px) uint8 in channels-last memory and (N,) labels, on the CPU; the same each time."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch_images, self.image_px, self.image_px, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return images.permute(0, 3, 1, 2), torch.arange(self.batch_images) % self.num_classes


@dataclass(frozen=True)
class Peer:
    """A plain loop around somebody's network.

    Args:
        library: ``timm`` or ``torchvision``.
        channels_last: memory of network and pictures.
        precision: of autocast.
        compiled: by ``torch.compile``.
        fused: AdamW, as ours is: one pass over each parameter; without it as PyTorch has it by itself.
    """

    library: str
    channels_last: bool = False
    precision: Precision = "fp32"
    compiled: bool = False
    fused: bool = False

    def __str__(self) -> str:
        words = [self.library]
        words += ["channels-last"] if self.channels_last else []
        words += ["fused"] if self.fused else []
        words += [self.precision] if self.precision != "fp32" else []
        words += ["compiled"] if self.compiled else []
        return " ".join(words)

    def losses(self, work: Work) -> Iterator[Tensor]:
        """A step for each loss, always on the pictures of ``work``."""
        raw, labels = (tensor.to(work.device) for tensor in work.pictures())
        means = Preprocessing(image_px=work.image_px)
        images = normalise(raw, mean=means.mean, std=means.std).contiguous(memory_format=self._memory)
        return self.train(work, itertools.repeat((images, labels)))

    def train(self, work: Work, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """A step for each batch, from our weights where the libraries have the same network; its loss.

        Args:
            work: to do.
            batches: (N, 3, px, px) float images, normalised, and (N,) labels.
        """
        network = (timm_network if self.library == "timm" else _torchvision)(work).to(work.device)
        network = network.to(memory_format=self._memory)
        fused = True if self.fused else None  # None leaves it to PyTorch
        optimizer = torch.optim.AdamW(network.parameters(), _LR, weight_decay=_WEIGHT_DECAY, fused=fused)
        scaler = torch.amp.GradScaler(work.device.type, enabled=self.precision == "fp16")
        call: Callable[[Tensor], Tensor] = torch.compile(network) if self.compiled else network
        for images, labels in batches:
            there = images.to(work.device, memory_format=self._memory, non_blocking=True)
            with autocast(work.device, self.precision):
                loss = nn.functional.cross_entropy(call(there), labels.to(work.device, non_blocking=True))
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            yield loss.detach()

    @property
    def _memory(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def peers(work: Work, *, compiled: bool, libraries: Sequence[str] = LIBRARIES) -> list[Peer]:
    """As people run them first, then tuned by the usual switches; those that are installed and have the network.

    Args:
        work: to do.
        compiled: add the compiled ones.
        libraries: of which.
    """
    lower = lower_precision(work.device)
    found = []
    for library in libraries:
        if not has(library, work.model):
            continue
        tuned = [Peer(library, channels_last=True, fused=True)]
        tuned += [replace(tuned[0], precision=lower)] if lower else []
        found += [Peer(library), *tuned]
        found += [replace(one, compiled=True) for one in tuned] if compiled else []
    return found


def our_recipe(work: Work, **settled: Any) -> tuple[Recipe, str]:
    """A recipe of the same optimizer, its speed chosen on this machine; and what is said about that.

    Args:
        work: to do.
        settled: fields of the recipe; ``precision`` and ``compile`` are not chosen where they are among them.

    Raises:
        InputError: a value outside its range.
    """
    optimizer = {"kind": "adamw", "lr": _LR, "weight_decay": _WEIGHT_DECAY, "momentum": 0.9, "decay": 0.999}
    steps = _CPU_STEPS if work.device.type == "cpu" else _GPU_STEPS
    plan = Progressive(image_px=work.image_px, dropout=work.rate, drop_path=work.rate)
    changes: dict[str, Any] = {
        "model": work.model,
        "epochs": steps,
        "batch_images": work.batch_images,
        "group_images": work.batch_images,
        "progressive": plan.to_json(),
        "optimizer": optimizer,
        "schedule": {"kind": "constant"},
        "ema_decay": None,
        "augment": {"flip": "none"},
        **settled,
    }
    recipe = checked(named("quick").to_json() | changes, where="bench")
    speed = choose(recipe, work.network(), steps=steps, device=work.device)
    return recipe.model_copy(update={"precision": speed.precision, "compile": speed.compile}), speed.note


Reader = Callable[[Iterable[Request]], Iterable[Batch]]


def our_losses(work: Work, recipe: Recipe, read: Reader | None = None) -> Iterator[Tensor]:
    """The loop of ``training.loop``, a step for each loss.

    Args:
        work: to do.
        recipe: settled; of ``our_recipe``.
        read: from requests to batches; None gives the pictures of ``work``, again and again.
    """
    images, labels = work.pictures()

    def again(requests: Iterable[Request]) -> Iterable[Batch]:
        return (Batch(request, images, labels, ()) for request in requests)

    return (step.loss for step in our_steps(work, recipe, read or again, labels.numpy()))


def our_steps(work: Work, recipe: Recipe, read: Reader, labels: Ints) -> Iterator[StepDone]:
    """The loop of ``training.loop``.

    Args:
        work: to do.
        recipe: settled; of ``our_recipe``.
        read: from requests to batches.
        labels: (N,) of the pictures that are requested.
    """
    size, steps = work.batch_images, 1_000_000  # nobody reaches the end
    requests = Sampler(labels, recipe.progressive, steps, size, size, None, Key.of(0))
    return train(
        begin(place(work.network(), work.device), recipe),
        read(requests),
        recipe=recipe,
        preprocessing=Preprocessing(image_px=work.image_px),
        length=Length(steps, steps_per_epoch=1.0),
        num_classes=work.num_classes,
        key=Key.of(0),
        device=work.device,
    )


def has(library: str, model: str) -> bool:
    """Whether a library is installed and has the network.

    Args:
        library: ``timm`` or ``torchvision``.
        model: our name of it.
    """
    if importlib.util.find_spec(library) is None:
        return False
    if library == "timm":
        import timm

        return bool(timm.is_model(f"tf_{model}"))
    return model in _TORCHVISION


# Our names of those that torchvision has with nearly the same layers: its padding is symmetric.
_TORCHVISION = {f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"}


def timm_network(work: Work) -> nn.Module:
    """Timm's network with the weights of ``work.network()``, in training mode.

    Args:
        work: to do.
    """
    import timm

    network: nn.Module = timm.create_model(
        f"tf_{work.model}", num_classes=work.num_classes, drop_rate=work.rate, drop_path_rate=work.rate
    )
    ours = work.network()
    state = ours.state_dict()
    names = timm_names.tensor_names(ours.architecture)
    network.load_state_dict({theirs: state[name] for name, theirs in names.items()})
    return network.train()


def _torchvision(work: Work) -> nn.Module:
    network: nn.Module = of_torchvision("models").get_model(
        _TORCHVISION[work.model], num_classes=work.num_classes
    )
    apply_setting(network, dropout=work.rate, drop_path=work.rate)
    return network.train()
