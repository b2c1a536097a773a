"""Tables 2 and 3: how fast a training step is, by picture size and batch, and by where Fused-MBConv stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import architecture, published
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.arch.variants import with_fused
from efficientnetv2.commands.reproduction import columns, table
from efficientnetv2.commands.reproduction.counts import Say, precision_of, rounds_of
from efficientnetv2.commands.reproduction.in_turn import OUT_OF_MEMORY, Name, in_turn
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.inference.accelerate import Precision, autocast, place
from efficientnetv2.models.network import EfficientNet

_CLASSES = 1000


def table_2(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B6's training speed at two sizes and two batches."""
    figures, headings = columns.figures("2"), columns.headings("2")
    spec = architecture("efficientnet_b6")
    precision = precision_of(scale, device)
    sizes, batches = (512, 380), (12, 24)
    steps = {
        (px, images): Step(spec, scale.px(px), scale.batch(images)) for px in sizes for images in batches
    }
    say(f"timing EfficientNet-B6, {len(steps)} kinds of steps in turn")
    found = speeds(steps, scale.rounds, device, precision)
    rows = [
        Row(
            f"{px} px",
            table.row_of(figures, f"train_px_{px}", headings),
            {f"images/s, batch {images}": found[px, images] for images in batches},
        )
        for px in sizes
    ]
    return Table(
        "2",
        "Table 2: smaller pictures and larger batches train faster (EfficientNet-B6)",
        tuple(rows),
        "top-1 on ImageNet; a TPU core, and one V100 in fp16; OOM: out of memory.",
        f"{table.untrained(scale.name)}{device}, {precision}, at {scale.px_share:g} of the size and "
        f"{scale.batch_share:g} of the batch ({scale.px(512)} and {scale.px(380)} px, "
        f"batches of {scale.batch(12)} and {scale.batch(24)}), "
        f"{rounds_of(scale.rounds)}; accuracy is not measured here.",
        scale.name,
    )


def table_3(scale: Scale, device: torch.device, say: Say) -> Table:
    """EfficientNet-B4 with Fused-MBConv in its first stages, its own kernels and 3x3 throughout."""
    figures, headings = columns.figures("3"), columns.headings("3")
    base, eval_px = architecture("efficientnet_b4"), published("efficientnet_b4").eval_px
    px, batch = scale.px(eval_px), scale.batch(32)
    variants: list[tuple[str, str | None, Architecture]] = [("no fused", "no_fused", base)]
    for stages in (3, 5, 7):
        variants.append(
            (f"fused stages 1-{stages}", f"fused_stage1-{stages}", with_fused(base, stages=stages))
        )
        variants.append(
            (f"fused stages 1-{stages}, all 3x3", None, with_fused(base, stages=stages, kernel=3))
        )
    precision = precision_of(scale, device)
    say(f"timing EfficientNet-B4, {len(variants)} variants in turn")
    found = speeds(
        {name: Step(spec, px, batch) for name, _, spec in variants}, scale.rounds, device, precision
    )
    rows = []
    for name, key, spec in variants:
        total = cost(spec, image_px=eval_px).total
        ours = {
            "parameters, M": Figure((total.parameters / 1e6,), "M"),
            "multiply-adds, B": Figure((total.multiply_adds / 1e9,), "B"),
            "images/s": found[name],
        }
        rows.append(Row(name, table.row_of(figures, key, headings) if key else {}, ours))
    return Table(
        "3",
        "Table 3: Fused-MBConv in the first stages of EfficientNet-B4",
        tuple(rows),
        "top-1 on ImageNet; training on a TPU core, and on one V100 in fp16.",
        f"{table.untrained(scale.name)}counted at {eval_px} px; steps on {device} in {precision} at {px} px, "
        f"batch {batch}, {rounds_of(scale.rounds)}; accuracy is not measured here.",
        scale.name,
    )


class Step(NamedTuple):
    """A training step whose speed is asked for.

    Args:
        spec: of the network, with 1,000 classes.
        image_px: size of the pictures.
        batch_images: of the step.
    """

    spec: Architecture
    image_px: int
    batch_images: int


def speeds(
    steps: Mapping[Name, Step], rounds: int, device: torch.device, precision: Precision
) -> dict[Name, Figure]:
    """Images per second of training steps, in turn: forward, backward and SGD on noise, channels-last.

    Args:
        steps: by any name.
        rounds: after two that warm up.
        device: to measure on.
        precision: to compute in.

    Returns:
        Of each one value per round; missing where memory ran out.
    """
    begin = {name: partial(_step, step, device, precision) for name, step in steps.items()}
    seconds = in_turn(begin, rounds, device)
    return {
        name: Figure(tuple(step.batch_images / one for one in seconds[name]), "images/s")
        if name in seconds
        else Figure(unit="images/s", why=OUT_OF_MEMORY)
        for name, step in steps.items()
    }


def _step(asked: Step, device: torch.device, precision: Precision) -> Callable[[], None]:
    network = place(EfficientNet(asked.spec, num_classes=_CLASSES).train(), device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(asked.batch_images, 3, asked.image_px, asked.image_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(asked.batch_images, device=device) % _CLASSES

    def step() -> None:
        with autocast(device, precision):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
