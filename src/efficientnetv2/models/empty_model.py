"""The network of a model file before its weights: no memory is taken twice, and nothing drawn in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from efficientnetv2.models import wrappers
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.blocks import DropPath
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.models.layers import SameConv2d
from efficientnetv2.models.model_card import UPGRADE, Header, reason
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError, some

_NOTHING = (nn.Dropout, DropPath, nn.Identity)  # change nothing in evaluation


class Shaped(Protocol):
    """A tensor, or what a file says of one."""

    @property
    def dtype(self) -> torch.dtype:
        """Its numbers."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""


def module_of(network: Network) -> nn.Module:
    """What holds the weights under their own names."""
    return network.module if isinstance(network, WrappedModel) else network


def empty_network(path: Path, words: Header, found: Mapping[str, Shaped], given: nn.Module | None) -> Network:
    """The network that a model file is of: those of the file take the place of its weights.

    Args:
        path: for messages.
        words: what the file says.
        found: its tensors, not yet read.
        given: a module as it was saved, where nothing else can make it again.

    Returns:
        Without memory for its weights, if possible; else with fresh ones.

    Raises:
        InputError: it cannot be built, or is of a library that is not known here, or nobody gave the module, or one
            was given to a file that needs none.
    """
    if given is not None and (words.architecture is not None or words.foreign is not None):
        raise InputError(
            f"{path} says itself what its network is, so the module that was given would stay as it is. Leave network "
            "out, and take the one that load returns."
        )
    if words.architecture is not None:
        return _empty_ours(path, words, len(found))
    if words.foreign is not None:
        if not wrappers.is_library_model(words.foreign):
            raise InputError(
                f"{path}: its network is '{words.foreign}', of a library that is not known here. {UPGRADE}"
            )
        if "." in words.foreign.partition(":")[2]:  # else a hostile file could have us fetch others
            raise InputError(
                f"{path}: its network is '{words.foreign}', which names weights beside those that it holds, as no file "
                "of this package does. It was changed: take it again from where it came."
            )
        return _empty_foreign(words.foreign, words, found)
    if given is None:
        raise InputError(
            f"{path} holds the weights of a module of one's own, which only its code can make. Make it, and load "
            "with efficientnetv2.load(path, network=module)."
        )
    return given if isinstance(given, WrappedModel) else WrappedModel(given)


def _empty_ours(path: Path, words: Header, tensors: int) -> EfficientNet:
    assert words.architecture is not None
    layers = sum(stage.layers for stage in words.architecture.stages)
    try:
        if layers > tensors:  # else a hostile file could have us build blocks without end
            raise ValueError(f"{layers} layers, but only {tensors} tensors")
        with torch.device("meta"):
            return EfficientNet(
                words.architecture, num_classes=words.num_classes, in_channels=words.in_channels
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its architecture cannot be built ({reason(error)}).") from error


def _empty_foreign(source: str, words: Header, found: Mapping[str, Shaped]) -> WrappedModel:
    """As its library builds it for the classes and channels; or else fitted to them, if that is what the file holds.

    The two differ in a network of several heads: those beside the classifier have as many classes as it when
    built so, and keep the library's when weights were pretrained and fitted.
    """
    built_for = _empty_built(source, words, num_classes=words.num_classes, in_channels=words.in_channels)
    if not any(faults(built_for.module.state_dict(), found)):
        return built_for
    try:
        fitted = _empty_built(source, words)
    except InputError:  # its library builds it without a classifier
        return built_for
    return built_for if any(faults(fitted.module.state_dict(), found)) else fitted


def _empty_built(source: str, words: Header, **build: int) -> WrappedModel:
    """Without memory where its library can build it so; else with fresh weights."""

    def built() -> WrappedModel:
        network = wrappers.build(source, **build)
        return adapt(network, num_classes=words.num_classes, in_channels=words.in_channels)

    try:
        with torch.device("meta"):
            network = built()
        if not _has_hidden_tensors(network):
            return network
    except RuntimeError:  # asks for values while it is being built
        pass
    with torch.random.fork_rng(devices=[]):
        return built()


def _has_hidden_tensors(network: nn.Module) -> bool:
    """Whether tensors without values would stay behind when a state dict is loaded."""
    loaded = network.state_dict().keys()
    return any(name not in loaded for name, _ in network.named_buffers()) or any(
        isinstance(value, Tensor) and value.is_meta
        for module in network.modules()
        for value in vars(module).values()
    )


def faults(
    wanted: Mapping[str, Shaped], found: Mapping[str, Shaped]
) -> tuple[list[str], list[str], list[str]]:
    """Names that the file lacks, names that it has too many, and what is of another shape or kind.

    Args:
        wanted: the tensors of a network, with or without values.
        found: those of a file, of which only the header was read, or is to be written.
    """

    def kind(one: Shaped) -> str:
        return f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}"

    wrong = [
        f"'{name}' is {kind(there)}, not {kind(tensor)}"
        for name, tensor in wanted.items()
        if (there := found.get(name)) is not None
        and (
            tuple(there.shape) != tuple(tensor.shape)
            or there.dtype.is_floating_point != tensor.dtype.is_floating_point
        )
    ]
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    return missing, extra, wrong


def misfits(wanted: Mapping[str, Shaped], found: Mapping[str, Shaped]) -> str:
    """What ``faults`` finds, in words; '' where it finds nothing."""
    missing, extra, wrong = faults(wanted, found)
    names = [f"missing {some(missing)}"] * bool(missing) + [f"unknown {some(extra)}"] * bool(extra)
    return "; ".join(names + wrong[:3])


def changes(path: Path, words: Header, network: Network, tensors: Mapping[str, Shaped]) -> str:
    """How a network differs from the one that ``load`` would make of its file, in words; '' where it does not.

    Args:
        path: for messages.
        words: what the file will say.
        network: to write; of another's network only the tensors are compared.
        tensors: to write.

    Raises:
        InputError: see ``empty_network``.
    """
    again = empty_network(path, words, tensors, None)
    different = misfits(module_of(again).state_dict(), tensors)
    if different or not isinstance(network, EfficientNet):
        return different
    made, now = dict(_computing(again)), dict(_computing(network))
    return "; ".join(
        f"'{name}' is {now.get(name, 'nothing')} instead of {made.get(name, 'nothing')}"
        for name in list(made | now)
        if made.get(name) != now.get(name)
    )


def _computing(network: nn.Module) -> Iterator[tuple[str, str]]:
    """What each layer of ours computes besides its tensors, so that two that differ here predict differently."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            yield (
                name,
                f"Conv2d({str(module).partition('(')[2]}"
                + " padded as same" * isinstance(module, SameConv2d),
            )
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield name, f"batch-norm with epsilon {module.eps:g}"
        elif not (any(module.children()) or module.state_dict() or isinstance(module, _NOTHING)):
            yield name, str(module)
