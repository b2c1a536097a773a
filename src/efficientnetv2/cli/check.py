"""``effnetv2 check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import between, option, spread
from efficientnetv2.utils.errors import escape_controls, pluralize

if TYPE_CHECKING:
    from efficientnetv2.checks.issues import Issue
    from efficientnetv2.checks.report import CheckResult

# Classes on the screen; kinds of findings whose groups are named, how many groups, and images of each. Ours.
_CLASSES_SHOWN = 30
_NAMED, _GROUPS_NAMED = ("same_", "near_", "lookalike", "unreadable"), 5
_SEVERITIES = {"wrong": "Error", "doubtful": "Warning", "note": "Note"}


@spread
def check(
    data: options.Data,
    table: options.CheckOptions,
    out: Annotated[
        Path | None,
        option("Folder for the page and its JSON.  [default: inspection/NAME]", "FOLDER", "--output"),
    ] = None,
    weights: Annotated[
        str,
        option(
            "Model that finds label errors and images of one scene: none, auto, a name, or a file.", "NAME"
        ),
    ] = "none",
    near_km: Annotated[float, option("Distance that is one location.", "KM", check=between(0, 20_000))] = 5.0,
    time_column: options.TimeColumn = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Find duplicates, leakage and label errors in a dataset.

    Examples:
    - `effnetv2 check photos/`
    - `effnetv2 check train.csv --group-column site --near-km 2`
    """
    from efficientnetv2.data.config import default_check_dir
    from efficientnetv2.workflows.output_paths import refuse_inside_data

    folder = out or default_check_dir(data)
    refuse_inside_data(data, folder, "--output", command="check" if out is None else None)
    from efficientnetv2.workflows.check import CheckOptions, run_check  # torch, which takes seconds

    def show(found: CheckResult) -> None:
        if as_json:
            print_json(found.to_json())
        _print(found, screen)

    chosen = CheckOptions(folder, weights, near_km, time_column, device, workers)
    with Screen(quiet=as_json) as screen:
        run_check(table.source(data), chosen, show)


def _print(found: CheckResult, screen: Screen) -> None:
    from efficientnetv2.checks.dataset_statistics import class_table, column_headings

    dataset, table = found.dataset, class_table(found.dataset)
    if len(table):
        more = f" (the first {_CLASSES_SHOWN} of {len(table)})" if len(table) > _CLASSES_SHOWN else ""
        rows = [[str(name), *(f"{number:,}" for number in row)] for name, row in table.iterrows()]
        screen.table(f"Images by class{more}", ["class", *column_headings(table)], rows[:_CLASSES_SHOWN])
    screen.say(f"{pluralize(len(dataset), 'image')}, {pluralize(len(found.issues), 'finding')}.")
    for finding in found.issues:
        screen.say(f"{_SEVERITIES[finding.severity]}: {finding.sentence} {finding.advice}".rstrip())
        if finding.kind.startswith(_NAMED):
            _print_groups(finding, dataset.paths, screen)


def _print_groups(finding: Issue, paths: Sequence[str], screen: Screen) -> None:
    """The first groups of a finding by their paths."""
    captions = finding.captions or ("",) * len(finding.groups)
    for group, caption in list(zip(finding.groups, captions, strict=True))[:_GROUPS_NAMED]:
        names = [escape_controls(paths[row]) for row in group[:_GROUPS_NAMED]]
        names += [f"{len(group) - len(names):,} more"] if len(group) > len(names) else []
        screen.say(f"  {' = '.join(names)}" + (f": {caption}" if caption else ""))
    if len(finding.groups) > _GROUPS_NAMED:
        screen.say(f"  and {len(finding.groups) - _GROUPS_NAMED:,} more on the page")
