"""``effnetv2 bench``: how fast this machine trains, beside other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from efficientnetv2.commands import options
from efficientnetv2.progressive import IMAGE_PX

if TYPE_CHECKING:
    from efficientnetv2.commands.source import Source

bench = typer.Typer(
    help="Measure this machine: our speed beside that of timm and torchvision, where they are installed.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

# A network needs some pixels, batch-norm two pictures; the rest is there against slips of the keyboard. Ours.
_SIDE = options.between(8, IMAGE_PX[1])
_BATCH, _ONE = options.between(2, 1_000_000), options.between(1, 1_000_000)


# Optional here, unlike elsewhere.
_Data = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATA]",
        help="Pictures as for `train`: a folder per class, a table, shards. (Default: those of the clone this is run "
        "in.)",
        show_default=False,
    ),
]


def step(
    model: Annotated[str, typer.Option(help="A published network (effnetv2 models).")] = "efficientnetv2_b0",
    image_px: Annotated[int, typer.Option(callback=_SIDE, help="Side of the pictures.")] = 224,
    batch_images: Annotated[int, typer.Option(callback=_BATCH, help="Pictures of a step.")] = 32,
    rounds: Annotated[int, typer.Option(callback=_ONE, help="Of a step of each, one after the other.")] = 7,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled",
            help="Add the others compiled, as where ours compiles; takes minutes to begin.",
        ),
    ] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Time a training step: the same network, noise for pictures, AdamW, dropout and stochastic depth.

    Ours is the loop of `train`, precision as `train` would choose it. The others are plain loops: as people run
    them, and with channels-last memory, AdamW fused and 16 bits.

    Examples:
    - `effnetv2 bench step`
    - `effnetv2 bench step --model efficientnetv2_s --image-px 128 --compiled --json`
    """
    from efficientnetv2.commands.bench_job import bench_step
    from efficientnetv2.commands.bench_step import Work
    from efficientnetv2.inference.accelerate import pick_device

    work = Work(model, image_px, batch_images, rate=0.1, device=pick_device(device))
    bench_step(work, rounds=rounds, compiled=compiled, as_json=as_json)


def read(
    data: _Data = None,
    image_px: Annotated[
        list[int] | None,
        typer.Option(
            callback=_SIDE,
            metavar="PX",
            help="Side of the squares; may be repeated. (Default: 128 and 300.)",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(callback=_ONE, help="Of a round, spread over DATA.")] = 256,
    rounds: Annotated[int, typer.Option(callback=_ONE, help="Of each side, one after the other.")] = 7,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    as_json: options.Json = False,
) -> None:
    """Time the way of a picture on one core: from its file to an augmented float batch.

    Decoding, random crop, flip, RandAugment, normalising. Ours as `train` reads, and with `--cache ram`; timm's
    training transform; torchvision's transforms v2.

    Examples:
    - `effnetv2 bench input`
    - `effnetv2 bench input photos/ --image-px 224 --json`
    """
    from efficientnetv2.commands.bench_job import bench_input

    source = _source(data, path_column, label_column)
    bench_input(source, sizes_px=image_px or (128, 300), most=pictures, rounds=rounds, as_json=as_json)


def train(
    data: _Data = None,
    model: Annotated[str, typer.Option(help="A published network (effnetv2 models).")] = "efficientnetv2_b0",
    image_px: Annotated[int, typer.Option(callback=_SIDE, help="Side of the pictures.")] = 128,
    batch_images: Annotated[int, typer.Option(callback=_BATCH, help="Pictures of a step.")] = 32,
    rounds: Annotated[int, typer.Option(callback=_ONE, help="Of each side, one after the other.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(
            callback=_ONE,
            help="Of a round, after two that do not count and what is read ahead in them. (Default: 8, or as many as "
            "are read ahead.)",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            callback=options.between(0),
            help="Processes that read, of ours and of the tuned others. (Default: by the machine.)",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    as_json: options.Json = False,
) -> None:
    """Time training with its reading, and the share of it that waits for pictures.

    Ours is the loop of `train`. The others are plain loops around timm's network and loader: as its script runs them,
    and with channels-last memory, AdamW fused, 16 bits and fewer or more workers.

    Examples:
    - `effnetv2 bench train`
    - `effnetv2 bench train photos/ --model efficientnetv2_s --image-px 224 --json`
    """
    from efficientnetv2.commands.bench_job import bench_train
    from efficientnetv2.commands.bench_step import Work
    from efficientnetv2.inference.accelerate import pick_device

    work = Work(model, image_px, batch_images, rate=0.1, device=pick_device(device))
    source = _source(data, path_column, label_column)
    bench_train(work, source, rounds=rounds, steps=steps, workers=workers, as_json=as_json)


def _source(data: str | None, path_column: str, label_column: str) -> Source | None:
    from efficientnetv2.commands.source import Source

    return None if data is None else Source(data, path_column, label_column)
