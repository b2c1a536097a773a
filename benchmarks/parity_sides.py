"""The three others of ``parity``: each builds, saves and loads a network by its own means, and answers to pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.models.conversion import convert, torchvision_config
from efficientnetv2.models.conversion.layouts import tensor_names
from efficientnetv2.models.efficientnet import EfficientNet


class Timm:
    """A network of timm, in folders as its hub has them."""

    title = "timm"

    def __init__(self, name: str) -> None:
        """Ours is the name."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Whether timm has it."""
        return True

    def create(self) -> nn.Module:
        """With fresh weights."""
        import timm

        return timm.create_model(f"tf_{self.name}")

    def save(self, theirs: nn.Module, place: Path) -> Path:
        """By timm's own means."""
        from timm.models import save_for_hf

        save_for_hf(theirs, str(place / "timm"), safe_serialization=True)
        return place / "timm"

    def load(self, network: EfficientNet, place: Path) -> tuple[nn.Module, Path]:
        """Ours, converted and loaded by timm's own means; and the file."""
        import timm

        out = place / "for_timm"
        convert.write(out, network, "timm")
        return timm.create_model(f"local-dir:{out}", pretrained=True), out

    def logits(self, theirs: nn.Module, pixels: Tensor) -> Tensor:
        """Of uint8 images, normalised as timm says for this network."""
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(theirs)
        return _normalised_logits(theirs, pixels, config["mean"], config["std"])


class Torchvision:
    """A network of torchvision; its state dicts are saved and loaded by PyTorch."""

    title = "torchvision"

    def __init__(self, name: str) -> None:
        """Ours is the name."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Whether torchvision has it."""
        return name in torchvision_config.MODELS

    def create(self) -> nn.Module:
        """With fresh weights."""
        from torchvision.models import get_model

        return get_model(torchvision_config.MODELS[self.name], weights=None)

    def save(self, theirs: nn.Module, place: Path) -> Path:
        """As torchvision publishes its own."""
        torch.save(theirs.state_dict(), place / "torchvision.pth")
        return place / "torchvision.pth"

    def load(self, network: EfficientNet, place: Path) -> tuple[nn.Module, Path]:
        """Ours, converted and loaded strictly; and the file."""
        out = place / "for_torchvision.pth"
        convert.write(out, network, "torchvision")
        theirs = self.create()
        theirs.load_state_dict(torch.load(out, weights_only=True))
        return theirs, out

    def logits(self, theirs: nn.Module, pixels: Tensor) -> Tensor:
        """Of uint8 images, normalised as torchvision documents for its weights of this network."""
        from torchvision.models import get_model_weights

        transform = get_model_weights(torchvision_config.MODELS[self.name]).DEFAULT.transforms()
        return _normalised_logits(theirs, pixels, transform.mean, transform.std)


class Keras:
    """A network of Keras with its rescaling built in: it takes pixels from 0 to 255."""

    title = "keras"

    def __init__(self, name: str) -> None:
        """Ours is the name."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Whether Keras has it."""
        return name.rpartition("_")[2] not in ("xl", "l2", "b8")

    def create(self, px: int) -> Any:
        """With fresh weights, for images of a size: V1 pads by the size that it was built for."""
        import keras

        family, _, size = self.name.partition("_")
        prefix = {"efficientnetv2": "EfficientNetV2", "efficientnet": "EfficientNet"}[family]
        build = getattr(keras.applications, prefix + size.upper())
        return build(weights=None, input_shape=(px, px, 3), classifier_activation=None)

    def save(self, theirs: Any, place: Path) -> Path:
        """By Keras' own means."""
        with _without_keras_warnings():
            theirs.save_weights(place / "keras.weights.h5")
        return place / "keras.weights.h5"

    def load(self, network: EfficientNet, place: Path, px: int) -> Any:
        """Ours, converted and loaded by Keras' own means."""
        out = place / "for_keras.weights.h5"
        convert.write(out, network, "keras")
        with _without_keras_warnings():
            theirs = self.create(px)
            theirs.load_weights(out)
        return theirs

    def logits(self, theirs: Any, pixels: Tensor) -> Tensor:
        """Of uint8 images as they are."""
        with torch.inference_mode(), _without_keras_warnings():
            answers = theirs(pixels.permute(0, 2, 3, 1).float(), training=False)
        return torch.as_tensor(answers).detach().cpu().clone()


@contextmanager
def _without_keras_warnings() -> Iterator[None]:
    """Keras' own, about how it uses NumPy and PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def same_shapes(side: Timm | Torchvision) -> bool:
    """Whether every tensor of theirs is one of ours, and of its shape; nothing is left over on either side."""
    table = get_architecture(side.name)
    with torch.device("meta"):
        ours, theirs = EfficientNet(table), side.create()
    names = tensor_names(side.title, table)  # type: ignore[arg-type]
    expected = {names[key]: tensor.shape for key, tensor in ours.state_dict().items()}
    return expected == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def _normalised_logits(theirs: nn.Module, pixels: Tensor, mean: Any, std: Any) -> Tensor:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    with torch.inference_mode():
        return theirs.eval()((pixels.float() / 255 - mean) / std)
