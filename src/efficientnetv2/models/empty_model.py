"""The model of a model file before its weights are loaded: on the meta device where possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.blocks import DropPath, SameConv2d
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.library_models import build_library_model, is_library_model
from efficientnetv2.models.model_card import UPGRADE, Header
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError, error_summary, shorten

_NO_OPS = (nn.Dropout, DropPath, nn.Identity)  # in evaluation


class TensorLike(Protocol):
    """A tensor, or the description of one in a file."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format."""

    @property
    def shape(self) -> Sequence[int]:
        """Size of each dimension."""


def module_of(network: Network) -> nn.Module:
    """The module that holds the weights under their own names."""
    return network.module if isinstance(network, WrappedModel) else network


def empty_network(
    path: Path, header: Header, found: Mapping[str, TensorLike], given: nn.Module | None
) -> Network:
    """The model of a model file, without memory for its weights if possible, otherwise with fresh weights.

    Args:
        found: The file's tensors, not yet read.
        given: The module as it was saved, if the header cannot say how to build it.

    Raises:
        InputError: The model cannot be built, or is of an unknown library; or ``given`` is missing or not needed.
    """
    if given is not None and header.can_be_built:
        raise InputError(
            f"{path} names its network, so the given module would not change. Leave network out."
        )
    if header.architecture is not None:
        return _empty_efficientnet(path, header, len(found))
    if header.foreign is None:
        if given is None:
            raise InputError(
                f"{path} holds the weights of a module of your own. Create it, and load with efficientnetv2.load(path, "
                "network=module)."
            )
        return given if isinstance(given, WrappedModel) else WrappedModel(given)
    if not is_library_model(header.foreign):
        raise InputError(
            f"{path}: its network is '{header.foreign}', of a library that is not known here. {UPGRADE}"
        )
    if "." in header.foreign.partition(":")[2]:  # a hostile file could make us download others
        raise InputError(
            f"{path}: its network is '{header.foreign}', with weights that the file does not hold. It was changed: "
            "copy it again from its source."
        )
    return _empty_library_model(header.foreign, header, found)


def _empty_efficientnet(path: Path, header: Header, tensors: int) -> EfficientNet:
    assert header.architecture is not None
    layers = sum(stage.layers for stage in header.architecture.stages)
    try:
        if layers > tensors:  # a hostile file could make us build blocks without end
            raise ValueError(f"{layers} layers, but only {tensors} tensors")
        with torch.device("meta"):
            return EfficientNet(
                header.architecture, num_classes=header.num_classes, in_channels=header.in_channels
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its architecture cannot be built ({error_summary(error)}).") from error


def _empty_library_model(source: str, header: Header, found: Mapping[str, TensorLike]) -> WrappedModel:
    """As the library builds it for the file's classes; or as it builds it by default and adapted, if only that fits.

    They differ in auxiliary heads, which have the library's classes when pretrained weights were adapted.
    """
    built = _build(source, header, num_classes=header.num_classes, in_channels=header.in_channels)
    if not describe_differences(built.module.state_dict(), found):
        return built
    try:
        adapted = _build(source, header)
    except InputError:  # the library builds it without a classifier
        return built
    return built if describe_differences(adapted.module.state_dict(), found) else adapted


def _build(source: str, header: Header, **options: int) -> WrappedModel:
    """On the meta device if the library can build it there, otherwise with fresh weights."""

    def build() -> WrappedModel:
        network = build_library_model(source, **options)
        return adapt(network, num_classes=header.num_classes, in_channels=header.in_channels)

    try:
        with torch.device("meta"):
            network = build()
        if not _has_hidden_tensors(network):
            return network
    except RuntimeError:  # it needs values while it is built
        pass
    with torch.random.fork_rng(devices=[]):
        return build()


def _has_hidden_tensors(network: nn.Module) -> bool:
    """Whether meta tensors would remain after a state dict is loaded."""
    loaded = network.state_dict().keys()
    return any(name not in loaded for name, _ in network.named_buffers()) or any(
        isinstance(value, Tensor) and value.is_meta
        for module in network.modules()
        for value in vars(module).values()
    )


def describe_differences(wanted: Mapping[str, TensorLike], found: Mapping[str, TensorLike]) -> str:
    """Tensors of a model that a file lacks, has too many, or has in another shape or kind; "" if there are none."""

    def kind(tensor: TensorLike) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    def same(tensor: TensorLike, other: TensorLike) -> bool:
        floating = tensor.dtype.is_floating_point
        return tuple(tensor.shape) == tuple(other.shape) and floating == other.dtype.is_floating_point

    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [
        f"'{name}' is {kind(found[name])}, not {kind(tensor)}"
        for name, tensor in wanted.items()
        if name in found and not same(tensor, found[name])
    ]
    names = [f"missing {shorten(missing)}"] * bool(missing) + [f"unknown {shorten(extra)}"] * bool(extra)
    return "; ".join(names + wrong[:3])


def describe_changes(path: Path, header: Header, network: Network, tensors: Mapping[str, TensorLike]) -> str:
    """How a model differs from what ``load`` would build from its file; "" if not. Of other libraries, only tensors."""
    again = empty_network(path, header, tensors, None)
    different = describe_differences(module_of(again).state_dict(), tensors)
    if different or not isinstance(network, EfficientNet):
        return different
    built, now = dict(_computations(again)), dict(_computations(network))
    return "; ".join(
        f"'{name}' is {now.get(name, 'nothing')} instead of {built.get(name, 'nothing')}"
        for name in list(built | now)
        if built.get(name) != now.get(name)
    )


def _computations(network: nn.Module) -> Iterator[tuple[str, str]]:
    """What each layer computes besides its tensors: two models that differ here predict differently."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            padded = " padded as same" * isinstance(module, SameConv2d)
            yield name, f"Conv2d({str(module).partition('(')[2]}{padded}"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield name, f"batch-norm with epsilon {module.eps:g}"
        elif not (any(module.children()) or module.state_dict() or isinstance(module, _NO_OPS)):
            yield name, str(module)
