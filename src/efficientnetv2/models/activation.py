"""What any network would do with a picture, run without values: its shapes, and the memory of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from efficientnetv2.base.errors import InputError
from efficientnetv2.models.foreign import Foreign
from efficientnetv2.models.network import Network


def dry_run(module: nn.Module, *, in_channels: int, image_px: int, images: int = 1) -> Any:
    """A module's answer on the device ``meta``: shapes without values, in no time and no memory.

    Args:
        module: on any device, in any mode; left as it was.
        in_channels: of the pictures.
        image_px: their side.
        images: how many.

    Returns:
        What ``module`` returns, of meta tensors.

    Raises:
        InputError: the module cannot take such pictures, or asks for values on its way.
    """
    return _answer(module, _valueless(module), in_channels, image_px, images)


def _valueless(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def _answer(
    module: nn.Module, weights: dict[str, Tensor], in_channels: int, image_px: int, images: int
) -> Any:
    pictures = torch.empty(images, in_channels, image_px, image_px, device="meta")
    try:
        with torch.device("meta"):
            return torch.func.functional_call(module, weights, (pictures,))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (
            str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        )
        inner = module.module if isinstance(module, Foreign) else module  # by the name that its owner knows
        raise InputError(
            f"{type(inner).__name__} cannot take {in_channels} x {image_px} x {image_px} px ({reason}). Give another "
            "size: many networks take only the one that they were made for."
        ) from error


def activation_bytes(network: Network, image_px: int) -> int:
    """What one picture makes the forward pass keep for the backward pass.

    Counted by what autograd really puts aside, so it holds for any network, frozen parts too (they keep nothing).
    Weights and running statistics do not count. See ``arch.cost.Cost.activation_bytes`` for ours, from its table.

    Args:
        network: on any device, in any mode; left as it was.
        image_px: side of the picture.

    Raises:
        InputError: the network cannot take pictures of that size.
    """
    weights = _valueless(network)
    known = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    kept: dict[int, torch.UntypedStorage] = {}  # by address; held, so that no address is used twice
    images = 2  # batch-norm refuses a single number per channel

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with _in_training(network), torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        _answer(network, weights, network.in_channels, image_px, images)
    return sum(storage.nbytes() for storage in kept.values()) // images


def trains_one(network: Network, image_px: int) -> bool:
    """Whether a pass of training goes through with a single picture.

    Args:
        network: that takes several pictures of that size; left as it was.
        image_px: side of the picture.
    """
    with _in_training(network):
        try:
            dry_run(network, in_channels=network.in_channels, image_px=image_px)
        except InputError:
            return False
    return True


@contextmanager
def _in_training(network: Network) -> Iterator[None]:
    """Each module's mode is given back afterwards."""
    training = {module for module in network.modules() if module.training}
    network.train()
    try:
        yield
    finally:
        for module in network.modules():
            module.training = module in training
