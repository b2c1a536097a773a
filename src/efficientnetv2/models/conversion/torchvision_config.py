"""Names and preprocessing of torchvision's models. Source: torchvision/models/efficientnet.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from efficientnetv2.architectures.registry import get_architecture, published_shape
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_torchvision

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Our name -> theirs.
MODELS = {f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(8)} | {
    f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"
}
_EPSILONS = {f"efficientnet_b{n}": 1e-5 for n in range(5)}  # 1e-3 for all others


def architecture_of(name: str) -> Architecture:
    """The published architecture with torchvision's padding and epsilon."""
    return replace(get_architecture(name), padding="symmetric", batch_norm_epsilon=_EPSILONS.get(name, 1e-3))


def default_preprocessing(name: str) -> tuple[Preprocessing, str]:
    """The preprocessing that torchvision documents for its default weights of a published model, and their name."""
    weights = import_torchvision("models").get_model_weights(MODELS[name]).DEFAULT
    return preprocessing_of(weights), str(weights)


def preprocessing_of(weights: WeightsEnum) -> Preprocessing:
    """The preprocessing that torchvision documents for weights of any of its models."""
    transform = weights.transforms()
    [crop_px], [resize_px] = transform.crop_size, transform.resize_size
    return Preprocessing(
        image_size=crop_px,
        crop_mode="center",
        crop_pct=crop_px / resize_px,
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def model_name(table: Architecture) -> str:
    """Torchvision's name of a model. Raises InputError with the difference if torchvision has none."""
    name = published_shape(table)
    if name is None or name not in MODELS:
        raise InputError(
            f"torchvision has only {', '.join(MODELS.values())}, and this model is {name or 'not one of them'}"
        )
    theirs = architecture_of(name)
    if (table.padding, table.batch_norm_epsilon) != (theirs.padding, theirs.batch_norm_epsilon):
        raise InputError(
            f"torchvision's {MODELS[name]} has padding '{theirs.padding}' and batch-norm epsilon "
            f"{theirs.batch_norm_epsilon:g}, this model '{table.padding}' and {table.batch_norm_epsilon:g}. Write it "
            "for timm or Keras"
        )
    return MODELS[name]
