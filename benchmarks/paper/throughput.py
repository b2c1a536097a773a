"""Tables 2 and 3: the speed of a training step by image size and batch size, and by Fused-MBConv stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from benchmarks.paper import published
from benchmarks.paper.oom_safe_timing import OUT_OF_MEMORY, time_in_turn
from benchmarks.paper.params_flops import Say, params_and_flops, precision_of, rounds_note
from benchmarks.paper.scale import Scale
from benchmarks.paper.table import Measurement, Row, Table, untrained
from torch.nn import functional

from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.registry import get_model_info as published_network
from efficientnetv2.architectures.spec import Architecture, fused_mbconv
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.utils.device import Precision, autocast, place

_CLASSES = 1000


class Step(NamedTuple):
    """A training step, of a network with 1,000 classes."""

    architecture: Architecture
    image_size: int
    batch_size: int


def table_2(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B6's training speed at two image sizes and two batch sizes."""
    b6, precision = get_architecture("efficientnet_b6"), precision_of(scale, device)
    sizes, batches = (512, 380), (12, 24)
    steps = {f"{px} px, batch {batch}": Step(b6, scale.px(px), scale.batch(batch)) for px in sizes for batch in batches}
    say(f"timing EfficientNet-B6, {len(steps)} kinds of steps in turn")
    found = images_per_s(steps, scale.rounds, device, precision)
    rows = [
        Row(
            f"{px} px",
            published.row("2", f"train_px_{px}"),
            {f"images/s, batch {batch}": found[f"{px} px, batch {batch}"] for batch in batches},
        )
        for px in sizes
    ]
    note = (
        f"{untrained(scale.name)}{device}, {precision}, at {scale.size_factor:g} of the size and "
        f"{scale.batch_factor:g} of the batch ({scale.px(512)} and {scale.px(380)} px, "
        f"batches of {scale.batch(12)} and {scale.batch(24)}), "
        f"{rounds_note(scale.rounds)}; accuracy is not measured here."
    )
    return published.table("2", rows, note, scale.name)


def table_3(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B4 with Fused-MBConv in its first stages, with its own kernels and with 3x3 throughout."""
    b4, eval_image_size = (get_architecture("efficientnet_b4"), published_network("efficientnet_b4").eval_image_size)
    px, batch, precision = scale.px(eval_image_size), scale.batch(32), precision_of(scale, device)
    variants: dict[str, tuple[str | None, Architecture]] = {"no fused": ("no_fused", b4)}
    for stages in (3, 5, 7):
        name = f"fused stages 1-{stages}"
        variants[name] = f"fused_stage1-{stages}", with_fused(b4, stages=stages)
        variants[f"{name}, all 3x3"] = None, with_fused(b4, stages=stages, kernel=3)
    say(f"timing EfficientNet-B4, {len(variants)} variants in turn")
    steps = {name: Step(variant, px, batch) for name, (_, variant) in variants.items()}
    found = images_per_s(steps, scale.rounds, device, precision)
    rows = [
        Row(
            name,
            published.row("3", key) if key else {},
            params_and_flops(variant, eval_image_size) | {"images/s": found[name]},
        )
        for name, (key, variant) in variants.items()
    ]
    note = (
        f"{untrained(scale.name)}counted at {eval_image_size} px; steps on {device} in {precision} at {px} px, "
        f"batch {batch}, {rounds_note(scale.rounds)}; accuracy is not measured here."
    )
    return published.table("3", rows, note, scale.name)


def with_fused(architecture: Architecture, *, stages: int, kernel: int | None = None) -> Architecture:
    """The architecture with Fused-MBConv without squeeze-excite in its first ``stages``.

    ``kernel`` is that of the fused blocks; None keeps each stage's own, as the paper's parameter counts do.
    """
    made = [
        replace(stage, operator=fused_mbconv(expand=stage.operator.expand, kernel=kernel or stage.operator.kernel))
        for stage in architecture.stages[:stages]
    ]
    return replace(architecture, stages=(*made, *architecture.stages[stages:]))


def images_per_s(
    steps: Mapping[str, Step], rounds: int, device: torch.device, precision: Precision
) -> dict[str, Measurement]:
    """Images per second of each step, timed in turn: forward, backward and SGD on noise in channels-last memory."""
    begin = {name: partial(_step, step, device, precision) for name, step in steps.items()}
    seconds = time_in_turn(begin, rounds, device)
    return {
        name: Measurement(tuple(step.batch_size / one for one in seconds[name]), "images/s")
        if name in seconds
        else Measurement(unit="images/s", why=OUT_OF_MEMORY)
        for name, step in steps.items()
    }


def _step(of: Step, device: torch.device, precision: Precision) -> Callable[[], None]:
    model = place(EfficientNet(of.architecture, num_classes=_CLASSES).train(), device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(of.batch_size, 3, of.image_size, of.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(of.batch_size, device=device) % _CLASSES

    def step() -> None:
        with autocast(device, precision):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
