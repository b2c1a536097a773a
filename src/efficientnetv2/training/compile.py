"""Compile a model for the stages of a recipe."""

from __future__ import annotations

import logging
import time
import warnings
from typing import cast

import torch
from torch import nn

from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ghost_batch import ghost_batches
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.training.microbatch import ONE_GROUP_PER_PASS, MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import autocast
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import error_summary, pluralize

_logger = logging.getLogger(__name__)


def compile_model(
    network: nn.Module,
    recipe: Recipe,
    device: torch.device,
    microbatches: MicrobatchPlan = ONE_GROUP_PER_PASS,
    *,
    world: World = SINGLE_PROCESS,
) -> nn.Module:
    """What PyTorch compiles of a network, for every stage of a recipe.

    A network that does not compile is returned as it is, with a warning. Its weights and statistics stay.
    """
    assert recipe.precision != "auto", "resolve_recipe() comes first"
    assert isinstance(network, Network), "its number of channels is known"
    group, groups = recipe.group_size, len(world.groups(recipe.num_groups))
    plan = recipe.progressive
    settings = [plan.stage(index) for index in range(plan.stages)]
    settings += [plan.last] if plan.continuous else []  # the largest images, with which no stage begins
    programs = [
        (setting, count) for setting in settings for count in _passes(groups, microbatches.at(setting.image_size))
    ]
    buffers = list(network.buffers())
    before = [tensor.clone() for tensor in buffers]
    # By default PyTorch stops after 8 programs of a function, those of other models included.
    config = torch._dynamo.config
    every_program = config.patch(recompile_limit=config.accumulated_recompile_limit)
    try:
        # Dropout and stochastic depth draw as they do uncompiled.
        call = cast(nn.Module, torch.compile(network, dynamic=False, options={"fallback_random": True}))
        with every_program, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for number, (setting, count) in enumerate(programs, start=1):
                apply_regularization(network, setting)
                px, began = setting.image_size, time.perf_counter()
                size = f"{pluralize(count * group, 'image')} of {px} px"
                _logger.info(f"Compiling ({number} of {len(programs)}): passes of {size} ...")
                images = torch.randn(count * group, network.in_channels, px, px, device=device)
                images = images.to(memory_format=torch.channels_last)
                with ghost_batches(network, images=group, seeds=range(count)):
                    with autocast(device, recipe.precision):
                        logits = call(images)
                    logits.float().square().mean().backward()
                _logger.info(f"Compiled in {time.perf_counter() - began:.0f} s.")
    except Exception as error:  # a compiler raises whatever the machine lacks
        reason = error_summary(error)
        warnings.warn(f"The model does not compile here ({reason}), so it trains uncompiled.", stacklevel=2)
        return network
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for tensor, value in zip(buffers, before, strict=True):
                tensor.copy_(value)
    return call


def _passes(groups: int, microbatches: int) -> list[int]:
    """Groups of each pass of a step. Each number is compiled by itself."""
    full, rest = divmod(groups, microbatches)
    return [microbatches] * (full > 0) + [rest] * (rest > 0)
