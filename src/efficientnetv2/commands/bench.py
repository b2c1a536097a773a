"""``effnetv2 bench``: how fast this machine trains, beside other libraries."""

from __future__ import annotations

from typing import Annotated

import typer

from efficientnetv2.commands import options

bench = typer.Typer(
    help="Measure this machine: our speed beside that of timm and torchvision, where they are installed.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def step(
    model: Annotated[str, typer.Option(help="A published network (effnetv2 models).")] = "efficientnetv2_b0",
    image_px: Annotated[int, typer.Option(min=8, help="Side of the pictures.")] = 224,
    batch_images: Annotated[int, typer.Option(min=2, help="Pictures of a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Of a step of each, one after the other.")] = 7,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Add the others compiled; takes minutes to begin.")
    ] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Time a training step: the same network, noise for pictures, AdamW, dropout and stochastic depth.

    Ours is the loop of `train`, precision as `train` would choose it. The others are plain loops: as people run
    them, and with channels-last memory and 16 bits.

    Examples:
    - `effnetv2 bench step`
    - `effnetv2 bench step --model efficientnetv2_s --image-px 128 --compiled --json`
    """
    from efficientnetv2.commands.bench_job import bench_step
    from efficientnetv2.commands.bench_step import Work
    from efficientnetv2.inference.accelerate import pick_device

    work = Work(model, image_px, batch_images, rate=0.1, device=pick_device(device))
    bench_step(work, rounds=rounds, compiled=compiled, as_json=as_json)
