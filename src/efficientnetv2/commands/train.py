"""``effnetv2 train``: from pictures to a model file and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.commands import options


def train(
    data: options.Data,
    model: Annotated[
        str | None,
        typer.Option(
            help="A published network (effnetv2 models), or one of another library: timm:resnet50, "
            "torchvision:resnet50. (Default: that of the weights; else efficientnetv2_b0, with a GPU _s.)",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A named recipe (effnetv2 recipes) or a recipe.yaml. (Default: finetune with weights, else quick.)",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none|NAME|FILE",
            help="To start from: a name (effnetv2 models --pretrained), a model file or run folder, or weights of "
            "timm, torchvision, Keras or the authors. (Default: auto, the best that can be had.)",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the pictures.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Instead of --epochs: as many as fit, from a short measurement.", show_default=False
        ),
    ] = None,
    image_px: Annotated[
        int | None,
        typer.Option(help="Picture size of the last stage; earlier ones scale.", show_default=False),
    ] = None,
    batch_images: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures a step; the learning rate follows.", show_default=False),
    ] = None,
    framing: Annotated[
        str | None,
        typer.Option(metavar="whole|crop|pad", help="How a picture meets the square.", show_default=False),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="ram|disk",
            help="Decode each picture once and keep it, shrunk to what crops need: in memory for this run, or on disk "
            "for later ones too. (Default: decode it each time.)",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help="Any other field of the recipe (effnetv2 recipes NAME shows them); may be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. (Default: a new one under runs/.)", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest under runs/.")
    ] = False,
    device: options.Device = "auto",
    workers: options.Workers = None,
    memory_gib: options.MemoryGib = None,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    group_column: options.GroupColumn = None,
    labels: options.Labels = "exact",
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Train a classifier on pictures and report honestly how good it is.

    With no other word it chooses a recipe and a network that suit the machine, holds out a fifth of the
    pictures (whole places and groups, where they are known), and writes model, report and log into a new
    folder under runs/.

    Examples:
    - `effnetv2 train photos/`
    - `effnetv2 train pictures.csv --label-column species --minutes 15`
    - `effnetv2 train photos/ --model efficientnetv2_s --epochs 30 --image-px 300`
    - `effnetv2 train photos/ --weights efficientnetv2_s.in21k_ft_in1k`
    - `effnetv2 train photos/ --weights theirs.pth --set freeze_stages=all`
    - `effnetv2 train photos/ --set progressive.stages=1 --set optimizer.lr=0.001`
    - `effnetv2 train photos/ --cache ram`
    - `effnetv2 train photos/ --resume`
    """
    from efficientnetv2.commands.beginning import Place
    from efficientnetv2.commands.prepare import Source
    from efficientnetv2.commands.train_job import train_and_report
    from efficientnetv2.commands.words import Words

    words = Words(
        model=model,
        recipe=recipe,
        weights=weights,
        epochs=epochs,
        minutes=minutes,
        image_px=image_px,
        batch_images=batch_images,
        framing=framing,
        seed=seed,
        cache=cache,
        settings=tuple(settings or ()),
    )
    place = Place(out, resume, device, workers, memory_gib, strict, as_json)
    train_and_report(words, Source(data, path_column, label_column, group_column, labels), place)
