"""Compile a model, and check its gradients."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan, chunks
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import Precision, autocast
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import error_summary, pluralize

_logger = logging.getLogger(__name__)

# How far each weight's gradient may lie from fp32's: so many times as far as the plain network's in the same precision,
# and so many roundings of its own length, and this share of all gradients'. Ours, for these reasons:
# - Both networks round independently. The lengths of two such errors of n numbers have the ratio sqrt(F(n, n)), which
#   is above 3 once in 3,000 times for n = 12, the shortest bias of V2-B0, and never for the hundreds of most weights.
#   But the batch norm of few values makes a few roundings larger, and then the errors of all weights. So the plain
#   network computes several gradients, of images that differ by a rounding. In bf16, with 4 images of 32 px, one
#   gradient refused one of eight correct networks, and three refused one of 20. With 8 images of 64 px, none was.
# - A gradient of a network of 50 layers goes through some 150 roundings (convolution, norm, activation each), which
#   add up like a random walk to 12. It counts where plain and exact are the same: in fp32.
# - The shift of a norm that another one follows has the gradient 0, and so nothing but the rounding of a sum: of
#   32 x 112 x 112 numbers sqrt(400,000) 2^-24 = 4e-5 of one of them, and of all gradients less.
# A wrong alarm costs the speed of compiling, a wrong network the run.
_NOISE, _GRADIENTS, _ROUNDINGS, _NOTHING = 3.0, 3, 12.0, 1e-5
# One rounding, of a number of 8 and 11 bits. GPUs multiply fp32 in TF32 of 11 bits by default.
_ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-11}


def compile_model(
    network: nn.Module,
    recipe: Recipe,
    device: torch.device,
    microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS,
    *,
    world: World = SINGLE_PROCESS,
) -> nn.Module:
    """What PyTorch compiles of a network, for every stage of a recipe.

    A network that does not compile, or gives other gradients, is returned as it is, with a warning. Its weights and
    statistics stay.
    """
    assert recipe.precision != "auto", "resolve_recipe() comes first"
    assert isinstance(network, Network), "its number of channels is known"
    # Dropout and stochastic depth draw as they do uncompiled.
    call = cast(nn.Module, torch.compile(network, dynamic=False, options={"fallback_random": True}))
    group, groups = recipe.group_size, len(world.groups(recipe.num_groups))
    plan = recipe.progressive
    settings = [plan.stage(index) for index in range(plan.stages)]
    settings += [plan.last] if plan.continuous else []  # the largest images, with which no stage begins
    programs = [
        (setting, count) for setting in settings for count in _passes(groups, microbatches.at(setting.image_size))
    ]
    tensors = [*network.parameters(), *network.buffers()]
    before = [tensor.clone() for tensor in tensors]
    reason = None
    # By default PyTorch stops after 8 programs of a function, those of other models included.
    config = torch._dynamo.config
    every_program = config.patch(recompile_limit=config.accumulated_recompile_limit)
    try:
        with every_program, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for number, (setting, count) in enumerate(programs, start=1):
                apply_regularization(network, setting)
                px, began = setting.image_size, time.perf_counter()
                size = f"{pluralize(count * group, 'image')} of {px} px"
                _logger.info(f"Compiling ({number} of {len(programs)}): passes of {size} ...")
                if not _Trial(network, recipe.precision, group, count, device).agrees(call, px):
                    reason = f"at {px} px it then gives other gradients"
                    break
                _logger.info(f"Compiled in {time.perf_counter() - began:.0f} s; the gradients agree.")
    except Exception as error:  # a compiler raises whatever the machine lacks
        reason = error_summary(error)
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
    if reason is not None:
        warnings.warn(f"The model does not compile here ({reason}), so it trains uncompiled.", stacklevel=2)
        return network
    return call


def _passes(groups: int, microbatches: int) -> list[int]:
    """Groups of each pass of a step. Each number is compiled by itself, and one of them may come out wrong."""
    full, rest = divmod(groups, microbatches)
    return [microbatches] * (full > 0) + [rest] * (rest > 0)


@dataclass(frozen=True)
class _Trial:
    """Random images through a network whose weights may be changed."""

    network: Network
    precision: Precision
    ghost_batch_size: int
    groups: int
    device: torch.device

    def agrees(self, call: Callable[[Tensor], Tensor], image_size: int) -> bool:
        """Whether the compiled network gives the gradients of the plain one, up to the noise of the precision.

        A compiler may be wrong without an error. The weights are moved a little first, as most gradients of a
        zero-initialized residual network are 0.
        """
        with torch.no_grad():
            for weight in self.network.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        shape = (self.ghost_batch_size * self.groups, self.network.in_channels, image_size, image_size)
        images = torch.randn(shape, device=self.device).to(memory_format=torch.channels_last)
        # As many groups as 16 bits have memory for would not fit in fp32. Groups are independent, so that one after
        # another they have the same gradients.
        exact = self._gradients(self.network, images, "fp32", microbatches=1)
        noise = torch.zeros_like(_norms(exact))
        for near in self._rounded(images):  # not all at once, as the gradients of each take memory
            plain = self._gradients(self.network, near, self.precision, microbatches=1)
            noise = torch.maximum(noise, _norms(plain, exact))
        del plain
        compiled = self._gradients(call, images, self.precision, microbatches=self.groups)
        lengths = _norms(exact)
        allowed = _NOISE * noise + _ROUNDINGS * _ROUNDING[self.precision] * lengths
        allowed += _NOTHING * torch.linalg.vector_norm(lengths)
        return bool((_norms(compiled, exact) <= allowed).all())

    def _rounded(self, images: Tensor) -> Iterator[Tensor]:
        """The images, and others that differ from them by at most a rounding of the device's products."""
        rounding = 2.0**-24 if (self.precision, self.device.type) == ("fp32", "cpu") else _ROUNDING[self.precision]
        yield images
        for _ in range(_GRADIENTS - 1):
            yield images * (1 + rounding * (2 * torch.rand_like(images) - 1))

    def _gradients(
        self, call: Callable[[Tensor], Tensor], images: Tensor, precision: Precision, *, microbatches: int
    ) -> list[Tensor]:
        """A gradient per weight, of a loss of all classes, for (groups * ghost_batch_size, C, S, S) images."""
        for seeds in chunks(range(self.groups), microbatches):
            part = images[seeds[0] * self.ghost_batch_size : (seeds[-1] + 1) * self.ghost_batch_size]
            with ghost_batches(self.network, images=self.ghost_batch_size, seeds=seeds):
                with autocast(self.device, precision):
                    logits = call(part)
                loss = logits.float().square().mean() * (len(seeds) / self.groups)
                loss.backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        self.network.zero_grad(set_to_none=True)
        return grads


def _norms(tensors: list[Tensor], others: list[Tensor] | None = None) -> Tensor:
    """(tensors,) norm of each tensor, or of its difference from another."""
    if others is not None:
        tensors = [tensor - other for tensor, other in zip(tensors, others, strict=True)]
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
