"""``create``: a model or a backbone from a name, an architecture, a file or a module."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn

from efficientnetv2.architectures.registry import (
    NAMES,
    get_model_info,
    is_architecture_file,
    published_shape,
    read_architecture,
)
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models import model_file, pretrained
from efficientnetv2.models.adapt import adapt, reset_classifiers
from efficientnetv2.models.conversion import convert, detect
from efficientnetv2.models.conversion.layouts import Source
from efficientnetv2.models.efficientnet import (
    EfficientNet,
    Network,
    check_classes_and_channels,
    require_classes,
    require_image_channels,
)
from efficientnetv2.models.ensemble import require_single_model
from efficientnetv2.models.library_models import build_library_model, is_library_model
from efficientnetv2.models.output_shapes import infer_shapes
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrapped_model import wrap_model
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.device import place
from efficientnetv2.utils.errors import InputError, did_you_mean, short_repr
from efficientnetv2.utils.optional_deps import import_optional, import_torchvision

_logger = logging.getLogger(__name__)

_DROP_PATH = 0.2  # 1 - 0.8, the survival probability of every released model (arXiv:2104.00298, section 5.1)
_DROPOUT = 0.2  # of an unpublished architecture: that of the smallest released models
# Of model files and weights that can be converted.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".h5", ".keras", ".ckpt")
_IMAGENET_CLASSES = 1000

Model = str | os.PathLike[str] | Architecture | nn.Module

_LARGEST_STRIDE = 64


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
    """A model, adapted to a number of classes and channels.

    Args:
        model: One of

            - a name of ``list_models()`` or an ``Architecture``: random weights;
            - a name with a tag ("efficientnetv2_s.in1k"): pretrained weights, see ``list_models(pretrained=True)``;
            - an architecture file (.yaml, .yml, .json): random weights;
            - a model file or a run directory: a ``Path``, or a string with a file suffix or a slash;
            - "timm:NAME" or "torchvision:NAME", optionally with a tag of that library's weights;
            - a module with an ``nn.Conv2d`` and an ``nn.Linear``, which is wrapped. A model of this package within it
              gives its preprocessing and, with as many outputs, its class names and activation.
        num_classes: 0 leaves out the classifier. None is as the weights have it, else 1000.
        in_channels: None is as the weights have it, else 3.
        dropout: Before the classifier, in [0, 1). None is as released, 0.2 for an ``Architecture`` of another shape,
            and unchanged for models of other libraries.
        drop_path: Rate of stochastic depth, in [0, 1). None is as released (0.2), and unchanged for models of other
            libraries.
        features_only: Return a ``Backbone``, which gives a list of feature maps.

    Returns:
        In evaluation mode with this package's pretrained weights and from a model file or run. A given module keeps its
        mode. All else is in training mode, also weights of timm and torchvision. Call ``network.train()`` before a
        training loop of your own.

    Raises:
        InputError: No such model (names the nearest), weights that cannot be downloaded, weights of another library
            (the message has the command to convert them), or a value out of range.

    Example::

        import efficientnetv2 as ev2

        network = ev2.create("efficientnetv2_s.in21k_ft_in1k", num_classes=10)
    """
    check_classes_and_channels(num_classes, in_channels)
    has_rates = dropout is not None or drop_path is not None
    if isinstance(model, nn.Module):
        network = model if isinstance(model, Network) else wrap_model(model)
    elif isinstance(model, str) and is_library_model(model):
        classes = 0 if features_only and num_classes is None else num_classes
        network = build_library_model(model, num_classes=classes, in_channels=in_channels)
    elif not isinstance(model, str | os.PathLike | Architecture):
        raise InputError(f"`model` is {short_repr(model)}. Give a name, a file, an `Architecture` or a module.")
    else:
        network = _create_or_load(model, num_classes, in_channels)
        if isinstance(network, EfficientNet):
            # Whatever its padding and pooling.
            name = published_shape(replace(network.architecture, global_pool="avg"))
            released = get_model_info(name).dropout if name else _DROPOUT
            dropout = released if dropout is None else dropout
            drop_path = _DROP_PATH if drop_path is None else drop_path
    report = apply_regularization(network, dropout=dropout, drop_path=drop_path)
    for note in report.notes if has_rates else ():
        _logger.warning(note)
    network = adapt(network, num_classes=num_classes, in_channels=in_channels)
    return Backbone(network) if features_only else network


def load_classifier(model: str | os.PathLike[str]) -> Network:
    """A model of a file, a run or a name of pretrained weights, with classes and the channels of image files.

    Raises InputError.
    """
    name = os.fspath(model)
    is_file = name not in pretrained.weight_names() or os.path.exists(name)
    network = model_file.load(name) if is_file else create(name)
    require_classes(network, name)
    require_image_channels(network, name)
    place(network, torch.device("cpu"))  # channels-last, as in training, so that both give the same bits
    return network


def _create_or_load(
    model: str | os.PathLike[str] | Architecture, num_classes: int | None, in_channels: int | None
) -> Network:
    """With random weights for the given classes and channels, or with weights and their own classes and channels."""
    if isinstance(model, os.PathLike) or (
        isinstance(model, str) and (model.endswith(_SUFFIXES) or "/" in model or os.sep in model)
    ):
        model = Path(os.path.expanduser(model))
    if isinstance(model, str | Path) and is_architecture_file(str(model)) and not Path(model).is_dir():
        model = read_architecture(Path(model))
    if isinstance(model, Path):
        return model_file.load(model)
    preprocessing = None
    if isinstance(model, str):
        if model.partition(".")[0] in NAMES and "." in model:
            from efficientnetv2.models import hub  # imports an HTTP client

            if model not in pretrained.weight_names() and [*_library_names(*model.split(".", 1))]:
                raise unknown_model_error(model)
            return convert.read_pretrained(hub.fetch(model), model)
        if model not in NAMES:
            if Path(model).exists():
                raise InputError(f"'{model}' is a file or folder, not a model name. To load it, give './{model}'.")
            raise unknown_model_error(model)
        info = get_model_info(model)
        model, preprocessing = info.architecture, info.preprocessing
    network = EfficientNet(
        model,
        num_classes=_IMAGENET_CLASSES if num_classes is None else num_classes,
        in_channels=RGB if in_channels is None else in_channels,
    )
    if preprocessing:
        network.preprocessing = preprocessing.with_channels(network.in_channels)
    return network


def unknown_model_error(model: str) -> InputError:
    """The error for an unknown model name, with the names that it has here, in timm, torchvision or Keras."""
    name, _, tag = model.partition(".")
    meant = []
    if (ours := _published_name(name)) is not None and ours != name:
        meant.append(f"{ours}.{tag}" if f"{ours}.{tag}" in pretrained.weight_names() else ours)
    meant += [*_library_names(name, tag)] or _library_names(name, "")
    if meant:
        return InputError(f"there is no model '{model}'; did you mean {' or '.join(map(repr, meant))}?")
    return InputError(
        f"there is no model '{model}'{did_you_mean(model, NAMES)} Give timm:NAME, torchvision:NAME or one of "
        f"{', '.join(NAMES)}."
    )


def _published_name(name: str) -> str | None:
    """The published model that another library calls by this name."""
    sources: tuple[Source, ...] = ("timm", "torchvision", "keras")
    for source in sources:
        with suppress(InputError):
            return detect.published_name(source, name)
    return None


def _library_names(name: str, tag: str) -> Iterator[str]:
    """Names for ``create`` of the libraries' models of this name, with weights of this tag if one is given."""
    word = f"{name}.{tag}" if tag else name
    with suppress(InputError):  # not installed
        timm = import_optional("timm", "timm", f"the model 'timm:{name}'")
        if timm.is_model(name) and (not tag or word in timm.list_pretrained(f"{name}.*")):
            yield f"timm:{word}"
    with suppress(InputError):
        models = import_torchvision("models")
        known = name in models.list_models(module=models)
        if known and (not tag or tag in models.get_model_weights(name).__members__):
            yield f"torchvision:{word}"


class Backbone(nn.Module):
    """The feature maps of a model, largest first, without the layers after the last map.

    ``torchvision.ops.FeaturePyramidNetwork(backbone.channels, 256)`` takes them as an ordered dict. ``network`` is
    consumed: its classifier is removed, and the head convolution of an ``EfficientNet`` too. ``strides`` and
    ``channels`` are those of the maps: strides 2, 4, 8, 16 and 32 in every published model. Raises InputError if the
    model gives no maps.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.training = network.training
        self.preprocessing = network.preprocessing
        require_single_model(network)
        reset_classifiers(network, 0)
        if isinstance(network, EfficientNet):
            network.head = nn.Identity()
            network.frozen = tuple(name for name in network.frozen if not name.startswith("head."))
        self.network = network
        self.strides, self.channels = self._strides_and_channels()
        if not self.strides:
            raise InputError(f"{network.display_name()} gives no feature maps. Leave out `features_only`.")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) float, normalized, to (N, channels[i], H / strides[i], W / strides[i]), rounded up."""
        return self.network.features(x)

    def _strides_and_channels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        size, training, channels = self.preprocessing.image_size, self.training, self.network.in_channels
        # Sides that halve without a remainder give exact strides, but a transformer takes only its own size.
        even_size = -(-size // _LARGEST_STRIDE) * _LARGEST_STRIDE
        self.eval()
        try:
            maps: list[Tensor] = infer_shapes(self, in_channels=channels, image_size=even_size)
            size = even_size
        except InputError:
            maps = infer_shapes(self, in_channels=channels, image_size=size)
        finally:
            self.train(training)
        return tuple(round(size / m.shape[-1]) for m in maps), tuple(m.shape[1] for m in maps)
