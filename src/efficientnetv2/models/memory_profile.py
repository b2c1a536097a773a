"""What any network would do with a picture, run without values: its shapes, and the memory of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.utils.errors import InputError

# Pictures of two sizes, px: powers of two that no published network's stride comes near. Ours.
_FAR_APART = (512, 1024)


def infer_shapes(module: nn.Module, *, in_channels: int, image_px: int, images: int = 1) -> Any:
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
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        # Of other channels or sizes than a module was written for it may ask for parts that are not there.
        reason = (
            str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        )
        inner = (
            module.module if isinstance(module, WrappedModel) else module
        )  # by the name that its owner knows
        raise InputError(
            f"{type(inner).__name__} cannot take {in_channels} x {image_px} x {image_px} px ({reason}). Give another "
            "size: many networks take only the one that they were made for."
        ) from error


def activation_bytes(network: Network, image_px: int) -> int:
    """What one picture makes the forward pass keep for the backward pass.

    Counted by what autograd really puts aside, so it holds for any network, frozen parts too (they keep nothing).
    Weights and running statistics do not count. Ours: ``architectures.flops.Cost.activation_bytes``.

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

    with (
        _in_mode(network, training=True),
        torch.enable_grad(),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        _answer(network, weights, network.in_channels, image_px, images)
    return sum(storage.nbytes() for storage in kept.values()) // images


def stride(network: Network) -> int | None:
    """The side of the square of pixels of which any network makes one number, where its maps are smallest.

    Seen in how much its modules' square maps grow from pictures of 512 px to those of 1,024: edges, and what has one
    size for all pictures, do not count.

    Args:
        network: on any device, in any mode; left as it was.

    Returns:
        None of a network that takes pictures of one size, or that has no maps.
    """
    try:
        small, large = (_map_sides(network, px) for px in _FAR_APART)
    except InputError:
        return None
    grown = [two - one for one, two in zip(small, large, strict=True) if two > one]
    return round((_FAR_APART[1] - _FAR_APART[0]) / min(grown)) if grown else None


def _map_sides(network: Network, image_px: int) -> list[int]:
    """Of what each module without parts gives in a pass, in order: its side, 0 of what is no square map."""
    sides: list[int] = []

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        sides.append(_side(tuple(output.shape)) if isinstance(output, Tensor) else 0)

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(see) for module in leaves]
    try:
        # As it answers: some have further classifiers in training, each with maps of its own.
        with _in_mode(network, training=False), torch.no_grad():
            infer_shapes(network, in_channels=network.in_channels, image_px=image_px)
    finally:
        for hook in hooks:
            hook.remove()
    return sides


def _side(shape: tuple[int, ...]) -> int:
    """Of a square map, its channels before its sides or behind them; 0 of what is none."""
    if len(shape) != 4:
        return 0
    _, first, second, last = shape
    if second == last:
        return second
    return first if first == second else 0


def trains_one(network: Network, image_px: int) -> bool:
    """Whether a pass of training goes through with a single picture.

    Args:
        network: that takes several pictures of that size; left as it was.
        image_px: side of the picture.
    """
    with _in_mode(network, training=True):
        try:
            infer_shapes(network, in_channels=network.in_channels, image_px=image_px)
        except InputError:
            return False
    return True


@contextmanager
def _in_mode(network: Network, *, training: bool) -> Iterator[None]:
    """Each module's own mode is given back afterwards."""
    own = {module for module in network.modules() if module.training}
    network.train(training)
    try:
        yield
    finally:
        for module in network.modules():
            module.training = module in own
