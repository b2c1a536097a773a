"""What torchvision's models need beyond their names: an input size (ViT), and input scaling (GoogLeNet, Inception)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efficientnetv2.models.conversion.torchvision import preprocessing_of
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import import_torchvision

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Models with auxiliary heads. torchvision warns unless it is told how to draw their weights.
_WITH_AUX_HEADS = ("googlenet", "inception_v3")

# Models that are built for one input size, and their size without weights.
_ONE_SIZE_PREFIX, _DEFAULT_SIZE = "vit_", "224"


def build_torchvision(sized: str, tag: str, *, num_classes: int | None) -> WrappedModel:
    """A torchvision model by name.

    Args:
        sized: The name; of a vision transformer optionally with its input size ("vit_b_16@384").
        tag: Of pretrained weights; "" for fresh weights.
        num_classes: With fresh weights; None or 0 is torchvision's default.
    """
    models = import_torchvision("models")
    from efficientnetv2.models.library_weights import reading, torchvision_file  # imports an HTTP client

    name, _, size = sized.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"torchvision has no network '{name}'{did_you_mean(name, known)}")
    every = models.get_model_weights(name)
    if tag and tag not in every.__members__:
        raise InputError(
            f"torchvision has no weights '{name}.{tag}'{did_you_mean(tag, every.__members__)} "
            f"Known: {', '.join(every.__members__)}."
        )
    weights = every[tag] if tag else None
    px, documented = _input_size(name, size, weights, every)
    options: dict[str, Any] = {}
    if not weights:  # pretrained weights keep their classes
        options |= {"num_classes": num_classes} if num_classes and num_classes > 0 else {}
        options |= {"init_weights": True} if name in _WITH_AUX_HEADS else {}
        options |= {"image_size": int(px)} if px else {}
    path = torchvision_file(weights.url, f"{name}.{tag}") if weights else None
    with reading(f"torchvision:{name}.{tag}", path):  # torchvision reads the file from its cache
        module = models.get_model(name, weights=weights, **options)
    if name in _WITH_AUX_HEADS:
        # Make fresh models equal to pretrained ones, so that a file of weights says what to build: no auxiliary heads
        # (our losses read the classifier only), and the input is scaled once more.
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, head):
                setattr(module, head, None)
        module.aux_logits, module.transform_input = False, True
    source = name if px in ("", _DEFAULT_SIZE) else f"{name}@{px}"
    return WrappedModel(module, source=f"torchvision:{source}", preprocessing=preprocessing_of(documented))


def _input_size(
    name: str, size: str, weights: WeightsEnum | None, every: type[WeightsEnum]
) -> tuple[str, WeightsEnum]:
    """The input size that a model is built for ("" for any), and weights documented for that size."""
    sizes: dict[str, WeightsEnum] = {}
    if name.startswith(_ONE_SIZE_PREFIX):
        for entry in every:
            sizes.setdefault(str(entry.meta["min_size"][0]), entry)
    if size and (weights or size not in sizes):
        if weights:
            fix = f"Its weights say their size: leave '@{size}' out."
        elif sizes:
            fix = f"Known: {', '.join(f'{name}@{px}' for px in sizes)}."
        else:
            fix = f"A name says no size of it: leave '@{size}' out."
        raise InputError(f"torchvision has no network '{name}@{size}' of such a size. {fix}")
    if weights:
        return (str(weights.meta["min_size"][0]) if sizes else ""), weights
    px = (size or _DEFAULT_SIZE) if sizes else ""
    return px, sizes.get(px, every["DEFAULT"])


def scale_in_stem(network: WrappedModel) -> None:
    """Move the input scaling of GoogLeNet or Inception (``transform_input``) into the stem; else do nothing.

    It brings ImageNet's mean and standard deviation to 0.5, for three channels only. Outputs stay, except at borders
    that a convolution pads with zeros (GoogLeNet).
    """
    if getattr(network.module, "transform_input", False) is True and hasattr(
        network.module, "_transform_input"
    ):
        _move_scaling(network, into_stem=True)


def scale_before_stem(network: WrappedModel) -> None:
    """Undo ``scale_in_stem``: ``build_torchvision`` gives both models their own scaling of three channels."""
    if network.source in [f"torchvision:{name}" for name in _WITH_AUX_HEADS]:
        _move_scaling(network, into_stem=False)


def _move_scaling(network: WrappedModel, *, into_stem: bool) -> None:
    stem = network.module.get_submodule(network.stem_name)
    norm = network.module.get_submodule(f"{network.stem_name.rpartition('.')[0]}.bn")
    assert isinstance(stem, nn.Conv2d), "both models begin with a convolution"
    assert isinstance(norm, nn.BatchNorm2d), "followed by a batch-norm, which takes the constant part"
    assert norm.running_mean is not None
    weight = stem.weight.detach()
    mean, std = (
        torch.tensor(values).to(weight).view(1, -1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    before = weight.clone() if into_stem else weight / (std / 0.5)
    constant = (before * ((mean - 0.5) / 0.5)).sum(dim=(1, 2, 3))
    weight.copy_(before * (std / 0.5) if into_stem else before)
    norm.running_mean.add_(-constant if into_stem else constant)
    network.module.transform_input = not into_stem  # type: ignore[assignment]
