"""torchvision's names of tensors and models, and its preprocessing.

torchvision pads symmetrically. Its V1 models B0 to B4 have batch-norm epsilon 1e-5, B5 to B7 and V2 1e-3
(torchvision.models.efficientnet).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from efficientnetv2.architectures.registry import architecture
from efficientnetv2.architectures.spec import Architecture, blocks
from efficientnetv2.models.conversion.tensors import shape_name, tensors_of
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import import_torchvision

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Our name -> theirs.
MODELS = {f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(8)} | {
    f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"
}
_EPSILONS = {f"efficientnet_b{n}": 1e-5 for n in range(5)}  # of all others 1e-3


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Tensor names from ours to torchvision's; padding and epsilon do not matter."""
    last = len(architecture.stages) + 1
    modules = {"stem.conv": "features.0.0", "stem.norm": "features.0.1"}
    layers: dict[int, int] = {}
    for index, block in enumerate(blocks(architecture)):
        layer = layers[block.stage] = layers.get(block.stage, -1) + 1
        ours, theirs = f"blocks.{index}", f"features.{block.stage + 1}.{layer}.block"
        parts = ["expand"] * (block.kind == "mbconv" and block.expands) + ["spatial"]
        parts += ["se"] * (block.se_channels is not None) + ["project"] * block.projects
        for number, part in enumerate(parts):
            pairs = {"reduce": "fc1", "expand": "fc2"} if part == "se" else {"conv": "0", "norm": "1"}
            modules |= {
                f"{ours}.{part}.{here}": f"{theirs}.{number}.{there}" for here, there in pairs.items()
            }
    modules |= {
        "head.conv": f"features.{last}.0",
        "head.norm": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    return tensors_of(modules)


def published_name(model: str) -> str:
    """The published model that a torchvision name means."""
    names = {theirs: ours for ours, theirs in MODELS.items()}
    if model in MODELS and model not in names:
        raise InputError(f"torchvision has no network '{model}'; did you mean '{MODELS[model]}'?")
    if model not in names:
        raise InputError(
            f"'{model}' is none of torchvision's networks that can be read here: {', '.join(names)}. "
            f"Use it through torchvision itself: create('torchvision:{model}')."
        )
    return names[model]


def architecture_of(name: str) -> Architecture:
    """The published table with torchvision's padding and epsilon."""
    return replace(architecture(name), padding="symmetric", batch_norm_epsilon=_EPSILONS.get(name, 1e-3))


def default_preprocessing(name: str) -> tuple[Preprocessing, str]:
    """The preprocessing that torchvision documents for its default weights of a published model, and their name."""
    weights = import_torchvision("models").get_model_weights(MODELS[name]).DEFAULT
    return preprocessing_of(weights), str(weights)


def preprocessing_of(weights: WeightsEnum) -> Preprocessing:
    """The preprocessing that torchvision documents for weights of any of its models."""
    transform = weights.transforms()
    [crop_px], [resize_px] = transform.crop_size, transform.resize_size
    return Preprocessing(
        image_px=crop_px,
        framing="crop",
        crop_fraction=crop_px / resize_px,
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def model_name(architecture: Architecture) -> str:
    """Torchvision's name of a model.

    Raises:
        InputError: torchvision has no such model; says what differs.
    """
    name = shape_name(architecture)
    if name is None or name not in MODELS:
        raise InputError(
            f"torchvision has only {', '.join(MODELS.values())}, and this one is "
            + ("of none of their shapes" if name is None else name)
        )
    wanted = architecture_of(name)
    if architecture.padding != wanted.padding:
        raise InputError(
            f"this {name} pads as TensorFlow does, and torchvision's {MODELS[name]} symmetrically: the same "
            "weights would give other, worse answers there. timm and Keras can take it"
        )
    if architecture.batch_norm_epsilon != wanted.batch_norm_epsilon:
        raise InputError(
            f"batch-norm epsilon is {architecture.batch_norm_epsilon:g}, and torchvision's {MODELS[name]} has "
            f"{wanted.batch_norm_epsilon:g}: the same weights would give other answers there"
        )
    return MODELS[name]
