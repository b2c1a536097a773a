"""``effnetv2 inspect``: what is the matter with a set of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.options import between


def inspect(
    data: options.Data,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for inspection.html and inspection.json; made if need be. (Default: inspection/NAME, "
            "where NAME is that of DATA.)",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="none|auto|NAME|FILE",
            help="A network that looks at the pictures (auto: the best published B0, or else what comes with the "
            "clone): it finds scenes that are there twice in other light or from another side, and labels that are "
            "probably wrong. Takes as long as predicting them all, and of hundreds of classes up to an hour more.",
        ),
    ] = "none",
    near_km: Annotated[
        float,
        typer.Option(callback=between(0, 20_000), help="Within which two pictures are of one place."),
    ] = 5.0,
    time_column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that holds a year or date. (Default: year, date, datetime, timestamp or time, "
            "where there is one.)",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    group_column: options.GroupColumn = None,
    labels: options.Labels = "exact",
    label_separator: options.LabelSeparator = None,
    bands: options.BandsSeen = None,
    nodata: options.NoData = None,
    layout: options.FolderLayout = "auto",
    as_json: options.Json = False,
) -> None:
    """Find what is wrong with a set of pictures before a network learns it.

    Counts by class and split, unreadable files, copies (within and across splits, with different labels), pictures of
    one place, moment or group, sizes, formats and colours that give the class away; with `--weights`, labels that are
    probably wrong. One page with pictures, and JSON. Nothing in DATA is changed.

    Examples:
    - `effnetv2 inspect photos/`
    - `effnetv2 inspect train.csv --group-column site --near-km 2 --out inspection/`
    - `effnetv2 inspect train.csv --weights auto --json`
    """
    from efficientnetv2.workflows.output_paths import refuse_within
    from efficientnetv2.workflows.report_folder import inspection_folder

    folder = out or inspection_folder(data)
    refuse_within(data, folder, "--out", verb="inspect" if out is None else None)
    from efficientnetv2.workflows.check import inspect_and_tell  # torch, which takes seconds
    from efficientnetv2.workflows.data_config import Source

    inspect_and_tell(
        Source(
            data,
            path_column,
            label_column,
            group_column,
            labels,
            label_separator,
            bands,
            layout,
            nodata=nodata,
        ),
        folder=folder,
        weights=weights,
        near_km=near_km,
        time_column=time_column,
        device=device,
        workers=workers,
        as_json=as_json,
    )
