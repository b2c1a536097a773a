"""``effnetv2 train``: from pictures to a model file and a report."""

from __future__ import annotations

from typing import Annotated

import typer

from efficientnetv2.commands import options


def train(
    data: options.Data,
    model: options.Network = None,
    recipe: options.RecipeName = None,
    weights: options.Weights = None,
    epochs: options.Epochs = None,
    minutes: options.Minutes = None,
    image_px: options.ImagePx = None,
    batch_images: options.BatchImages = None,
    framing: options.Framing = None,
    cache: options.Cache = None,
    seed: options.Seed = None,
    settings: options.Settings = None,
    out: options.RunOut = None,
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
    label_separator: options.LabelSeparator = None,
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
    - `effnetv2 train photos/ --set minival=0.1 --set patience=5`
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
    train_and_report(
        words, Source(data, path_column, label_column, group_column, labels, label_separator), place
    )
