"""Output shapes, stride and activation memory of any model, by a pass on the meta device without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.errors import InputError, error_summary

# Image sizes whose maps are compared to find the stride: powers of two far above any published stride. Ours.
_STRIDE_SIZES = (512, 1024)


def infer_shapes(
    module: nn.Module, *, in_channels: int, image_size: int, images: int = 1, state: dict[str, Tensor] | None = None
) -> Any:
    """A module's output for images of ``image_size``, as meta tensors. Raises InputError if it refuses the size."""
    batch = torch.empty(images, in_channels, image_size, image_size, device="meta")
    try:
        with torch.device("meta"):
            return torch.func.functional_call(module, _meta_state(module) if state is None else state, (batch,))
    # A module may look for parts that other sizes or channels do not have.
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        name = module.display_name() if isinstance(module, Network) else type(module).__name__
        raise InputError(
            f"{name} cannot take {in_channels} x {image_size} x {image_size} px ({error_summary(error).rstrip('.')}). "
            "Give another size: many models take only one."
        ) from error


def _meta_state(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def activation_bytes(network: Network, image_size: int) -> int:
    """Bytes per image that the forward pass keeps for the backward pass, of any model.

    Counts what autograd saves, without weights and running statistics; frozen parts save nothing. Raises InputError if
    the model cannot take images of that size.
    """
    state = _meta_state(network)
    known = {tensor.untyped_storage()._cdata for tensor in state.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # by address; held so that no address is used twice
    images = 2  # batch-norm refuses a single value per channel

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage
        return tensor

    with _in_mode(network, training=True), torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        infer_shapes(network, in_channels=network.in_channels, image_size=image_size, images=images, state=state)
    return sum(storage.nbytes() for storage in saved.values()) // images


def stride(network: Network) -> int | None:
    """Image side over map side where the maps are smallest; None if the model has one input size, or no maps.

    Measured by how much square maps grow between two image sizes, so that borders and fixed parts do not count.
    """
    try:
        small, large = (_map_sides(network, px) for px in _STRIDE_SIZES)
    except InputError:
        return None
    grown = [after - before for before, after in zip(small, large, strict=True) if after > before]
    return round((_STRIDE_SIZES[1] - _STRIDE_SIZES[0]) / min(grown)) if grown else None


def _map_sides(network: Network, image_size: int) -> list[int]:
    """Side of the output of each leaf module in order of the pass; 0 if it is not a square map."""
    sides: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        square = len(shape) == 4 and shape[2] in (shape[1], shape[3])  # channels first or last
        sides.append(shape[2] if square else 0)

    leaves = [module for module in network.modules() if next(module.children(), None) is None]
    # In evaluation: in training, some models have further classifiers with maps of their own.
    with ExitStack() as stack, _in_mode(network, training=False), torch.no_grad():
        for module in leaves:
            stack.enter_context(module.register_forward_hook(record))
        infer_shapes(network, in_channels=network.in_channels, image_size=image_size)
    return sides


def trains_one(network: Network, image_size: int) -> bool:
    """Whether a training pass accepts a batch of one image; the size itself must be accepted."""
    with _in_mode(network, training=True):
        try:
            infer_shapes(network, in_channels=network.in_channels, image_size=image_size)
        except InputError:
            return False
    return True


@contextmanager
def _in_mode(network: Network, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; each module's own mode is restored."""
    training_before = {module for module in network.modules() if module.training}
    network.train(training)
    try:
        yield
    finally:
        for module in network.modules():
            module.training = module in training_before
