"""A network from whatever names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal, overload

from torch import nn

from efficientnetv2.architectures.registry import NAMES, published
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models import model_file, pretrained, wrappers
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.conversion import keras_layers, torchvision
from efficientnetv2.models.conversion import timm as timm_names
from efficientnetv2.models.conversion.tensors import shape_name
from efficientnetv2.models.efficientnet import EfficientNet, Network, check_classes_and_channels
from efficientnetv2.models.features import Backbone
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import needed, of_torchvision


def unknown_model_error(model: str) -> InputError:
    """The error for a word that names no network: by which words others have it, and ours of that name.

    Args:
        model: without "timm:" and the like; perhaps with a tag.
    """
    name, dot, tag = model.partition(".")
    meant = _ours_elsewhere(name)
    if meant is not None and f"{meant}.{tag}" in pretrained.names():
        meant += dot + tag
    there = [f"'{word}'" for word in [*_libraries(name, tag)] or _libraries(name, "")]
    if meant is not None:
        also = f" The one of the library itself: {' or '.join(there)}." if there else ""
        return InputError(f"there is no network '{model}'; did you mean '{meant}'?{also}")
    if there:
        return InputError(
            f"there is no network '{model}' of ours, but others have it: {' or '.join(there)}. Say it so, with the "
            "library before it."
        )
    return InputError(
        f"there is no network '{model}'{did_you_mean(model, NAMES)} Known: {', '.join(NAMES)}. Networks of other "
        "libraries: timm:NAME, torchvision:NAME."
    )


def _ours_elsewhere(name: str) -> str | None:
    """The published network that another library means by a name."""
    for published_name in (lambda word: timm_names.published_name(word)[0], torchvision.published_name):
        try:
            return published_name(name)
        except InputError:
            continue
    try:
        return keras_layers.published_name(name)
    except InputError:
        return None


def _libraries(name: str, tag: str) -> Iterator[str]:
    """The words for the networks of that name, with weights of that tag if one is given."""
    word = f"{name}.{tag}" if tag else name
    timm = _at_hand(lambda: needed("timm", "timm", f"the network 'timm:{name}'"))
    if timm and timm.is_model(name) and (not tag or word in timm.list_pretrained(f"{name}.*")):
        yield f"timm:{word}"
    models = _at_hand(lambda: of_torchvision("models"))
    if (
        models
        and name in models.list_models(module=models)
        and (not tag or tag in models.get_model_weights(name).__members__)
    ):
        yield f"torchvision:{word}"


def _at_hand(imported: Callable[[], ModuleType]) -> ModuleType | None:
    """A library; None of one that is not installed or can't be imported, for a word may have been meant otherwise."""
    try:
        return imported()
    except InputError:
        return None


DROP_PATH = 0.2  # 1 - 0.8, the survival probability of every released network (arXiv:2104.00298, section 5.1)
DROPOUT = 0.2  # for an architecture that was not published: that of the smallest released ones
# Of files of weights: ours, and those that ``effnetv2 convert`` makes ours of.
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".h5", ".keras", ".ckpt")
_CLASSES = 1000  # of a network with fresh weights: ImageNet's

Model = str | Path | Architecture | nn.Module


@overload
def create(
    model: Architecture,
    *,
    num_classes: int | None = ...,
    in_channels: int | None = ...,
    dropout: float | None = ...,
    drop_path: float | None = ...,
    features_only: Literal[False] = ...,
) -> EfficientNet: ...
@overload
def create(
    model: Model,
    *,
    num_classes: int | None = ...,
    in_channels: int | None = ...,
    dropout: float | None = ...,
    drop_path: float | None = ...,
    features_only: Literal[False] = ...,
) -> Network: ...
@overload
def create(
    model: Model,
    *,
    num_classes: int | None = ...,
    in_channels: int | None = ...,
    dropout: float | None = ...,
    drop_path: float | None = ...,
    features_only: Literal[True],
) -> Backbone: ...
def create(
    model: Model,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    features_only: bool = False,
) -> Network | Backbone:
    """A network, fitted to so many classes and channels.

    Args:
        model: what it is made from:

            - a name of ``architectures.registry.NAMES``, or an architecture of your own: fresh weights;
            - a name with a tag ("efficientnetv2_s.in1k"): pretrained weights, see ``models.hub``;
            - a model file or a run folder: a ``Path``, or a text that ends like a file of weights or has a slash;
            - "timm:NAME" or "torchvision:NAME", also with a tag: see ``models.wrappers``;
            - a module of your own with an ``nn.Conv2d`` and an ``nn.Linear``: it is wrapped. One of timm keeps
              the preprocessing that is stated of it.
        num_classes: of the classifier; 0 leaves it out. None is as the weights have it, else 1000.
        in_channels: of the picture; None is as the weights have it, else 3. See ``models.adapt``.
        dropout: before the classifier, in [0, 1). None is as released, 0.2 for an architecture of your own, and
            as built for foreign networks.
        drop_path: rate of stochastic depth, in [0, 1). None is as released, 0.2, and as built for foreign
            networks.
        features_only: give a ``Backbone`` instead, which answers with a list of maps.

    Raises:
        InputError: no such network (names the nearest), weights that can't be had, weights of others (says how to
            make a model file of them), or a value outside its range.
    """
    check_classes_and_channels(num_classes, in_channels)
    if isinstance(model, nn.Module):
        network = model if isinstance(model, Network) else wrappers.wrap_model(model)
        apply_regularization(network, dropout=dropout, drop_path=drop_path)
    elif isinstance(model, str) and wrappers.is_library_model(model):
        network = wrappers.build(model, num_classes=num_classes, in_channels=in_channels)
        apply_regularization(network, dropout=dropout, drop_path=drop_path)
    else:
        network = _ours(model, num_classes, in_channels)
        _regularize(network, dropout, drop_path)
    network = adapt(network, num_classes=num_classes, in_channels=in_channels)
    return Backbone(network) if features_only else network


def _ours(model: str | Path | Architecture, num_classes: int | None, in_channels: int | None) -> Network:
    """Fresh, with the classes and channels asked for; or with weights, and those that they have."""
    if isinstance(model, Path) or (isinstance(model, str) and _is_path(model)):
        return model_file.load(model)
    if isinstance(model, str) and model.partition(".")[0] in NAMES and "." in model:
        from efficientnetv2.models import hub  # brings a client of the network along

        return hub.load(model)
    if isinstance(model, str) and model not in NAMES:
        if Path(model).exists():
            raise InputError(
                f"'{model}' names no network, but there is a file or folder called so: to load it, give "
                f"pathlib.Path('{model}'), or './{model}'."
            )
        raise unknown_model_error(model)
    facts = published(model) if isinstance(model, str) else None
    network = EfficientNet(
        model if isinstance(model, Architecture) else published(model).architecture,
        num_classes=_CLASSES if num_classes is None else num_classes,
        in_channels=3 if in_channels is None else in_channels,
    )
    if facts:
        network.preprocessing = facts.preprocessing.with_channels(network.in_channels)
    return network


def _is_path(model: str) -> bool:
    return model.endswith(_ENDINGS) or "/" in model or os.sep in model


def _regularize(network: Network, dropout: float | None, drop_path: float | None) -> None:
    """As given, else as released."""
    if not isinstance(network, EfficientNet):
        apply_regularization(network, dropout=dropout, drop_path=drop_path)
        return
    name = shape_name(network.architecture)  # weights of others come with another padding
    default = published(name).dropout if name else DROPOUT
    apply_regularization(
        network,
        dropout=default if dropout is None else dropout,
        drop_path=DROP_PATH if drop_path is None else drop_path,
    )
