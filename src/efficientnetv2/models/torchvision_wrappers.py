"""Networks of torchvision as its weights decide them: their size of picture, what they do to a picture themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import of_torchvision

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from efficientnetv2.models.wrappers import WrappedModel

# Those with heads at the side. torchvision warns, too, unless told to draw their weights as it ever did.
_SIDE_HEADED = ("googlenet", "inception_v3")

# Those that are built for pictures of one size, and how theirs begin without weights.
_OF_ONE_SIZE, _USUAL_PX = "vit_", "224"


def build(sized: str, tag: str, *, num_classes: int | None) -> tuple[nn.Module, Preprocessing, str]:
    """A network of torchvision.

    Args:
        sized: its name; of one that is built for pictures of one size maybe with that size ("vit_b_16@384").
        tag: of pretrained weights; '' for fresh ones.
        num_classes: of the classifier of fresh ones; None or 0 as torchvision has it.

    Returns:
        The network, what its weights are documented with, or would be, and the name that makes it again.

    Raises:
        InputError: no such network, tag or size, or the weights cannot be fetched.
    """
    models = of_torchvision("models")
    from efficientnetv2.models.conversion.torchvision import preprocessing_of
    from efficientnetv2.models.library_weights import reading, torchvision_file

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
    px, documented = _of_size(name, size, weights, every)
    # Pretrained ones come with the classes that they were trained for.
    fresh: dict[str, Any] = {}
    if not weights:
        fresh |= {"num_classes": num_classes} if num_classes and num_classes > 0 else {}
        fresh |= {"init_weights": True} if name in _SIDE_HEADED else {}
        fresh |= {"image_size": int(px)} if px else {}
    path = torchvision_file(weights.url, f"{name}.{tag}") if weights else None
    with reading(f"torchvision:{name}.{tag}", path):  # from its cache, where the file lies now
        module = models.get_model(name, weights=weights, **fresh)
    if name in _SIDE_HEADED:
        _as_pretrained(module)
    again = name if px in ("", _USUAL_PX) else f"{name}@{px}"
    return module, preprocessing_of(documented), again


def _of_size(
    name: str, size: str, weights: WeightsEnum | None, every: type[WeightsEnum]
) -> tuple[str, WeightsEnum]:
    """The size of picture that a network is built for, '' for one that takes any; and weights documented for that."""
    sizes: dict[str, WeightsEnum] = {}
    if name.startswith(_OF_ONE_SIZE):
        for one in every:
            sizes.setdefault(str(one.meta["min_size"][0]), one)
    if size and (weights or size not in sizes):
        if weights:
            mend = f"Its weights say their size: leave '@{size}' out."
        elif sizes:
            mend = f"Known: {', '.join(f'{name}@{px}' for px in sizes)}."
        else:
            mend = f"A name says no size of it: leave '@{size}' out."
        raise InputError(f"torchvision has no network '{name}@{size}' of such a size. {mend}")
    if weights:
        return (str(weights.meta["min_size"][0]) if sizes else ""), weights
    px = (size or _USUAL_PX) if sizes else ""
    return px, sizes.get(px, every["DEFAULT"])


def _as_pretrained(module: nn.Module) -> None:
    """GoogLeNet or Inception of torchvision made the same network with fresh weights as with pretrained ones.

    Then a file of weights alone says what to build: of the two, the pretrained ones alone scale their input once
    more, and GoogLeNet's have no heads at the side. Those go from all, for our losses read the classifier alone.
    """
    for head in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, head):
            setattr(module, head, None)
    module.aux_logits, module.transform_input = False, True  # type: ignore[assignment]


def scale_in_stem(network: WrappedModel) -> None:
    """Let the stem do what GoogLeNet or Inception do to three channels before it; of other networks nothing.

    They bring ImageNet's mean and standard deviation to 0.5 (``transform_input``), which breaks pictures of any other
    number of channels. The answers stay, but for the margin where a convolution pads with zeros (GoogLeNet's).

    Args:
        network: for three channels; changed in place.
    """
    if getattr(network.module, "transform_input", False) is True and hasattr(
        network.module, "_transform_input"
    ):
        _scaled(network, by_stem=True)


def scale_before_stem(network: WrappedModel) -> None:
    """The other way: torchvision's own two scale three channels by themselves, for so ``build`` makes them.

    Args:
        network: for three channels; changed in place.
    """
    if network.source in [f"torchvision:{name}" for name in _SIDE_HEADED]:
        _scaled(network, by_stem=False)


def _scaled(network: WrappedModel, *, by_stem: bool) -> None:
    stem = network.module.get_submodule(network.stem_name)
    norm = network.module.get_submodule(f"{network.stem_name.rpartition('.')[0]}.bn")
    assert isinstance(stem, nn.Conv2d), "both begin with a convolution"
    assert isinstance(norm, nn.BatchNorm2d), "and a batch-norm, which takes its constant part"
    assert norm.running_mean is not None
    weight = stem.weight.detach()
    mean, std = (torch.tensor(one).to(weight).view(1, -1, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    before = weight.clone() if by_stem else weight / (std / 0.5)
    constant = (before * ((mean - 0.5) / 0.5)).sum(dim=(1, 2, 3))
    weight.copy_(before * (std / 0.5) if by_stem else before)
    norm.running_mean.add_(-constant if by_stem else constant)
    network.module.transform_input = not by_stem  # type: ignore[assignment]
