"""A network from whatever names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, overload

from torch import nn

from efficientnetv2.arch.published import NAMES, published
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.models import foreign, modelfile
from efficientnetv2.models.backbone import Backbone
from efficientnetv2.models.elsewhere import unknown
from efficientnetv2.models.fit import fit
from efficientnetv2.models.interop.tensors import shape_name
from efficientnetv2.models.network import EfficientNet, Network, check_numbers
from efficientnetv2.models.regularize import apply_setting

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

            - a name of ``arch.published.NAMES``, or an architecture of your own: fresh weights;
            - a name with a tag ("efficientnetv2_s.in1k"): pretrained weights, see ``models.hub``;
            - a model file or a run folder: a ``Path``, or a text that ends like a file of weights or has a slash;
            - "timm:NAME" or "torchvision:NAME", also with a tag: see ``models.foreign``;
            - a module of your own with an ``nn.Conv2d`` and an ``nn.Linear``: it is wrapped. One of timm keeps
              the preprocessing that is stated of it.
        num_classes: of the classifier; 0 leaves it out. None is as the weights have it, else 1000.
        in_channels: of the picture; None is as the weights have it, else 3. See ``models.fit``.
        dropout: before the classifier, in [0, 1). None is as released, 0.2 for an architecture of your own, and
            as built for foreign networks.
        drop_path: rate of stochastic depth, in [0, 1). None is as released, 0.2, and as built for foreign
            networks.
        features_only: give a ``Backbone`` instead, which answers with a list of maps.

    Raises:
        InputError: no such network (names the nearest), weights that can't be had, weights of others (says how to
            make a model file of them), or a value outside its range.
    """
    check_numbers(num_classes, in_channels)
    if isinstance(model, nn.Module):
        network = model if isinstance(model, Network) else foreign.wrapped(model)
        apply_setting(network, dropout=dropout, drop_path=drop_path)
    elif isinstance(model, str) and foreign.is_foreign(model):
        network = foreign.build(model, num_classes=num_classes, in_channels=in_channels)
        apply_setting(network, dropout=dropout, drop_path=drop_path)
    else:
        network = _ours(model, num_classes, in_channels)
        _regularize(network, dropout, drop_path)
    network = fit(network, num_classes=num_classes, in_channels=in_channels)
    return Backbone(network) if features_only else network


def _ours(model: str | Path | Architecture, num_classes: int | None, in_channels: int | None) -> Network:
    """Fresh, with the classes and channels asked for; or with weights, and those that they have."""
    if isinstance(model, Path) or (isinstance(model, str) and _is_path(model)):
        return modelfile.load(model)
    if isinstance(model, str) and model.partition(".")[0] in NAMES and "." in model:
        from efficientnetv2.models import hub  # brings a client of the network along

        return hub.load(model)
    if isinstance(model, str) and model not in NAMES:
        if Path(model).exists():
            raise InputError(
                f"'{model}' names no network, but there is a file or folder called so: to load it, give "
                f"pathlib.Path('{model}'), or './{model}'."
            )
        raise unknown(model)
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
        apply_setting(network, dropout=dropout, drop_path=drop_path)
        return
    name = shape_name(network.architecture)  # weights of others come with another padding
    default = published(name).dropout if name else DROPOUT
    apply_setting(
        network,
        dropout=default if dropout is None else dropout,
        drop_path=DROP_PATH if drop_path is None else drop_path,
    )
