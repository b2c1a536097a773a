"""``effnetv2 plan``: what a run will take, before it is begun."""

from __future__ import annotations

from efficientnetv2.commands import options


def plan(
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
    """Foretell the time, memory and disk of a run, by stage.

    Takes the words of `train`, prepares the run as `train` would, does a few steps of every picture size on
    this machine, and works out the rest. It leaves nothing behind.

    Examples:
    - `effnetv2 plan photos/`
    - `effnetv2 plan photos/ --model efficientnetv2_s --epochs 30 --image-px 300`
    - `effnetv2 plan photos/ --cache disk --json`
    """
    from efficientnetv2.commands.beginning import Place
    from efficientnetv2.commands.plan_job import plan_and_tell
    from efficientnetv2.commands.prepare import Source
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
    place = Place(out, False, device, workers, memory_gib, strict, as_json)
    plan_and_tell(
        words, Source(data, path_column, label_column, group_column, labels, label_separator), place
    )
