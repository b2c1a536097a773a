"""``effnetv2 inspect``: what is the matter with a set of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import between
from efficientnetv2.utils.errors import escape_controls, pluralize

if TYPE_CHECKING:
    from efficientnetv2.checks.issues import Issue
    from efficientnetv2.checks.report import CheckResult
    from efficientnetv2.data.dataset import ImageDataset

# Kinds of findings whose groups are named on the screen, and how many of each, and images of a group. Ours.
_CLASSES_SHOWN = 30
_NAMED, _GROUPS_NAMED = ("same_", "near_", "lookalike", "unreadable"), 5
_WORDS = {"wrong": "To mend", "doubtful": "To look at", "note": "Good to know"}


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
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.workflows.check import run_check  # torch, which takes seconds

    def tell(found: CheckResult) -> None:
        if as_json:
            print_json(found.to_json())
        _print(found, screen)

    with Screen(quiet=as_json) as screen:
        run_check(
            DataConfig(
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
            on_result=tell,
        )


def _print(found: CheckResult, screen: Screen) -> None:
    from efficientnetv2.checks.class_counts import class_table, column_headings

    dataset, table = found.dataset, class_table(found.dataset)
    if len(table):
        more = f" (the first {_CLASSES_SHOWN} of {len(table)})" if len(table) > _CLASSES_SHOWN else ""
        rows = [[str(name), *(f"{number:,}" for number in row)] for name, row in table.iterrows()]
        screen.table(f"Pictures by class{more}", ["class", *column_headings(table)], rows[:_CLASSES_SHOWN])
    findings = found.findings
    screen.say(f"{pluralize(len(dataset), 'picture')}, {pluralize(len(findings), 'finding')}.")
    for one in findings:
        screen.say(f"{_WORDS[one.severity]}: {one.sentence} {one.advice}".rstrip())
        if one.kind.startswith(_NAMED):
            _name_groups(one, dataset, screen)


def _name_groups(finding: Issue, dataset: ImageDataset, screen: Screen) -> None:
    """The first groups of a finding by their paths."""
    captions = finding.captions or ("",) * len(finding.groups)
    for group, caption in list(zip(finding.groups, captions, strict=True))[:_GROUPS_NAMED]:
        names = [escape_controls(dataset.paths[row]) for row in group[:_GROUPS_NAMED]]
        more = len(group) - len(names)
        paths = " = ".join([*names, *([f"{more:,} more"] if more > 0 else [])])
        screen.say(f"  {paths}: {caption}" if caption else f"  {paths}")
    if len(finding.groups) > _GROUPS_NAMED:
        screen.say(f"  and {len(finding.groups) - _GROUPS_NAMED:,} more on the page")
