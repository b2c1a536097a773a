"""A model file that predicts quickly, images, and applications that serve the model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.serving import ServerOptions, create_app

SMALL = Architecture(
    stem_channels=8, stages=(Stage(fused_mbconv(expand=2, kernel=3), stride=2, channels=8, layers=1),), head_channels=16
)
NAMES = ("forest", "pasture", "maize")
# Each test sets the limits that it checks. Requests do not wait for others, except in tests of batching.
DEFAULTS: dict[str, Any] = {"device": "cpu", "engine": "torch", "max_wait_ms": 0, "batch_size": 8}


def write_model(file: Path, *, names: tuple[str, ...] = NAMES, seed: int = 0) -> Path:
    """Write a model file whose predictions differ between images."""
    torch.manual_seed(seed)
    model = EfficientNet(SMALL, num_classes=len(names))
    torch.nn.init.normal_(next(m for m in model.modules() if isinstance(m, torch.nn.Linear)).weight, std=3.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    model_file.save(file, model, preprocessing=Preprocessing(image_size=16), class_names=names, recipe={}, metrics={})
    return file


def app_of(model: Path | dict[str, Path], **options: Any):
    """Return an application, by default without batching."""
    return create_app(model, ServerOptions(**(DEFAULTS | options)))


def pixels(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image whose color depends on the seed."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 200, 3) + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)


def encoded(image: Image.Image | int = 0, format: str = "JPEG", **options: Any) -> bytes:
    """Return the content of an image file. An integer is the seed of an image."""
    file = io.BytesIO()
    (Image.fromarray(pixels(image)) if isinstance(image, int) else image).save(file, format, **options)
    return file.getvalue()
