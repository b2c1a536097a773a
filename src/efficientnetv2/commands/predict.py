"""``effnetv2 predict``: labels for pictures that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.commands import options
from efficientnetv2.commands.screen import Screen, answer


def predict(
    model: options.Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A picture, a folder of pictures (any depth), or a CSV or Parquet file with a path column, or "
            "shards (a folder, URL or pattern of tars).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    device: options.Device = "auto",
    workers: options.Workers = None,
    path_column: options.PathColumn = "path",
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Write path, label and the probability of each class for every picture.

    Examples:
    - `effnetv2 predict runs/demo new_photos/`
    - `effnetv2 predict model.safetensors list.csv --path-column file --out labels.csv`
    """
    from efficientnetv2.base.errors import InputError, count_of
    from efficientnetv2.commands.prepare import Source, tell
    from efficientnetv2.commands.tables import write_predictions
    from efficientnetv2.inference.accelerate import few_enough, pick_device, pick_workers
    from efficientnetv2.inference.predict import check_classes, check_reads_rgb, predict_manifest
    from efficientnetv2.models import modelfile

    screen = Screen(quiet=as_json)
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}. Make it, or give another place.")
    if out.absolute() == Path(data).absolute():
        raise InputError(f"--out {out} is DATA itself. Give another file.")
    on = pick_device(device)
    workers = pick_workers(on) if workers is None else few_enough(workers, say=screen.say)
    network = modelfile.load(model)
    check_classes(network, model)
    check_reads_rgb(network, model)
    manifest = Source(data, path_column).read(require_labels=False)
    tell(manifest, strict=strict, say=screen.say)
    with screen.counting("predicting", len(manifest)) as counted:
        predictions = predict_manifest(
            network,
            manifest,
            preprocessing=network.preprocessing,
            device=on,
            workers=workers,
            progress=counted,
            strict=strict,
        )
    for row, reason in predictions.unreadable:
        screen.say(f"Skipped {manifest.paths[row]}: {reason}.")
    if not len(predictions.samples):
        raise InputError(f"None of the {len(manifest)} pictures of {data} can be read.")
    table = write_predictions(
        out, predictions, [manifest.paths[row] for row in predictions.samples], network.class_names
    )
    if as_json:
        answer(table.to_dict(orient="records"))
        return
    counts = table["label"].value_counts()
    screen.say(
        f"{count_of(len(table), 'picture')}: "
        + ", ".join(f"{label} {count}" for label, count in counts.items())
    )
    screen.say(f"Written to {out}.")
