"""Other libraries in ``parity``: each builds, saves and loads a model with its own functions, and computes logits."""

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
    """A model of timm, in folders of the layout of its hub."""

    title = "timm"

    def __init__(self, name: str) -> None:
        """Take our name of the architecture."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Check that timm has this architecture."""
        return True

    def create(self) -> nn.Module:
        """Build the model with random weights."""
        import timm

        return timm.create_model(f"tf_{self.name}")

    def save(self, theirs: nn.Module, place: Path) -> Path:
        """Save with functions of timm."""
        from timm.models import save_for_hf

        save_for_hf(theirs, str(place / "timm"), safe_serialization=True)
        return place / "timm"

    def load(self, model: EfficientNet, place: Path) -> tuple[nn.Module, Path]:
        """Convert our model and load it with functions of timm; return the model and the file."""
        import timm

        out = place / "for_timm"
        convert.write(out, model, "timm")
        return timm.create_model(f"local-dir:{out}", pretrained=True), out

    def logits(self, theirs: nn.Module, pixels: Tensor) -> Tensor:
        """Compute logits of uint8 images, normalized with the values of timm for this model."""
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(theirs)
        return _normalised_logits(theirs, pixels, config["mean"], config["std"])


class Torchvision:
    """A model of torchvision. PyTorch saves and loads its state dict."""

    title = "torchvision"

    def __init__(self, name: str) -> None:
        """Take our name of the architecture."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Check that torchvision has this architecture."""
        return name in torchvision_config.MODELS

    def create(self) -> nn.Module:
        """Build the model with random weights."""
        from torchvision.models import get_model

        return get_model(torchvision_config.MODELS[self.name], weights=None)

    def save(self, theirs: nn.Module, place: Path) -> Path:
        """Save in the format of the published weights."""
        torch.save(theirs.state_dict(), place / "torchvision.pth")
        return place / "torchvision.pth"

    def load(self, model: EfficientNet, place: Path) -> tuple[nn.Module, Path]:
        """Convert our model and load it strictly; return the model and the file."""
        out = place / "for_torchvision.pth"
        convert.write(out, model, "torchvision")
        theirs = self.create()
        theirs.load_state_dict(torch.load(out, weights_only=True))
        return theirs, out

    def logits(self, theirs: nn.Module, pixels: Tensor) -> Tensor:
        """Compute logits of uint8 images, normalized with the documented values for these weights."""
        from torchvision.models import get_model_weights

        transform = get_model_weights(torchvision_config.MODELS[self.name]).DEFAULT.transforms()
        return _normalised_logits(theirs, pixels, transform.mean, transform.std)


class Keras:
    """A model of Keras with built-in rescaling: it takes pixels from 0 to 255."""

    title = "keras"

    def __init__(self, name: str) -> None:
        """Take our name of the architecture."""
        self.name = name

    @staticmethod
    def has(name: str) -> bool:
        """Check that Keras has this architecture."""
        return name.rpartition("_")[2] not in ("xl", "l2", "b8")

    def create(self, px: int) -> Any:
        """Build the model with random weights for images of this size. Paddings of V1 depend on the size."""
        import keras

        family, _, size = self.name.partition("_")
        prefix = {"efficientnetv2": "EfficientNetV2", "efficientnet": "EfficientNet"}[family]
        build = getattr(keras.applications, prefix + size.upper())
        return build(weights=None, input_shape=(px, px, 3), classifier_activation=None)

    def save(self, theirs: Any, place: Path) -> Path:
        """Save with functions of Keras."""
        with _without_keras_warnings():
            theirs.save_weights(place / "keras.weights.h5")
        return place / "keras.weights.h5"

    def load(self, model: EfficientNet, place: Path, px: int) -> Any:
        """Convert our model and load it with functions of Keras."""
        out = place / "for_keras.weights.h5"
        convert.write(out, model, "keras")
        with _without_keras_warnings():
            theirs = self.create(px)
            theirs.load_weights(out)
        return theirs

    def logits(self, theirs: Any, pixels: Tensor) -> Tensor:
        """Compute logits of uint8 images without normalization."""
        with torch.inference_mode(), _without_keras_warnings():
            outputs = theirs(pixels.permute(0, 2, 3, 1).float(), training=False)
        return torch.as_tensor(outputs).detach().cpu().clone()


@contextmanager
def _without_keras_warnings() -> Iterator[None]:
    """Hide warnings of Keras about its use of NumPy and PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def same_shapes(side: Timm | Torchvision) -> bool:
    """Check that both sides have the same tensors, in name and shape."""
    architecture = get_architecture(side.name)
    with torch.device("meta"):
        ours, theirs = EfficientNet(architecture), side.create()
    names = tensor_names(side.title, architecture)  # type: ignore[arg-type]
    expected = {names[key]: tensor.shape for key, tensor in ours.state_dict().items()}
    return expected == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def _normalised_logits(theirs: nn.Module, pixels: Tensor, mean: Any, std: Any) -> Tensor:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    with torch.inference_mode():
        return theirs.eval()((pixels.float() / 255 - mean) / std)
