"""``effnetv2 check`` and ``effnetv2 data``: the check of a dataset, and datasets as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from efficientnetv2.cli import options, parsing
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, between, flag, option, spread
from efficientnetv2.utils import shell
from efficientnetv2.utils.errors import escape_controls, pluralize

if TYPE_CHECKING:
    from efficientnetv2.checks.dataset_check import CheckResult
    from efficientnetv2.checks.issues import Issue

app = parsing.app(name="data", help="Pack images into shards, or write a balanced dataset.")

# Classes on the screen; kinds of findings whose groups are named, how many groups, and images of each. Ours.
_CLASSES_SHOWN = 30
_NAMED, _GROUPS_NAMED = ("same_", "near_", "lookalike", "unreadable"), 5
_SEVERITIES = {"wrong": "Error", "doubtful": "Warning", "note": "Note"}


@app.command(cls=parsing.Command)
@spread
def pack(
    data: options.Data,
    output: Annotated[Path, argument("OUT", "New or empty folder for the shards.")],
    table: options.LabeledOptions,
    shard_mb: Annotated[float, option("Largest shard.", "MB", check=between(0.1, 1_000_000))] = 1000.0,
    shard_images: Annotated[int | None, option("Most images of a shard.", "N", check=between(1))] = None,
    image_size: Annotated[int | None, option("Shrink to this shorter side.", "PX", check=between(2))] = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Pack labeled images into WebDataset tars with an index.

    OUT is then DATA of the other commands (of `data balance` only with --fewer), here or on a web server or object
    store. Without --image-size, a run on shards equals the run on the files.

    Examples:
    - `effnetv2 data pack images.csv shards/ --image-size 384 --shard-mb 200`
    - `effnetv2 train shards/`
    """
    from efficientnetv2.data.shards.writer import PackOptions
    from efficientnetv2.workflows.data import pack_shards

    packing = PackOptions(round(shard_mb * 1_000_000), shard_images, image_size, seed, strict)
    with Screen(quiet=as_json) as screen:
        dataset, packed = pack_shards(table.data_config(data), output, packing)
        written = packed.to_json()
        if as_json:
            print_json({"out": str(output), "classes": list(dataset.class_names)} | written)
            return
        parts = ", ".join(f"{count} {split}" for split, count in written["splits"].items())
        screen.say(
            f"{pluralize(written['num_images'], 'image')} of {pluralize(len(dataset.class_names), 'class')} ({parts}) "
            f"in {pluralize(len(written['shards']), 'shard')}, {written['bytes'] / 1e6:,.1f} MB: {output}"
        )
        train = ["effnetv2", "train", str(output), *shell.option_args(label_separator=dataset.separator)]
        screen.say(f"Train on them with: {shell.shell_join(train)}")


@app.command("balance", cls=parsing.Command)
@spread
def write_balanced(
    data: options.Data,
    output: Annotated[Path, argument("OUT", "New or empty folder; with --fewer a .csv file.")],
    table: options.OneLabelOptions,
    to: Annotated[
        Literal["equal", "sqrt", "effective"],
        option("Class proportions: equal, square roots of the counts, or effective numbers."),
    ] = "equal",
    fewer: Annotated[bool, flag("--fewer", "Leave out images of frequent classes instead.")] = False,
    recipe: Annotated[str, option("Recipe of the augmentation.", "NAME")] = "finetune",
    settings: options.Settings = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Write a balanced training set, with augmented copies or fewer images.

    Validation and test images stay as they are. Training does not need this: train --set class_sampling=equal draws
    rare classes more often.

    Examples:
    - `effnetv2 data balance train.csv balanced/ --set progressive.randaugment=5`
    - `effnetv2 data balance photos/ fewer.csv --fewer`
    """
    from efficientnetv2.workflows.data import write_balanced

    with Screen(quiet=as_json) as screen:
        made = write_balanced(
            table.data_config(data), output,
            to=to, fewer=fewer, recipe=recipe, settings=tuple(settings or ()), seed=seed, strict=strict
        )  # fmt: skip
        if as_json:
            print_json(made.to_json())
        else:
            rows = [[name, str(before), str(after)] for name, (before, after) in made.counts.items()]
            screen.table("Training images", ["class", "before", "after"], rows)
        left_out = pluralize(sum(before - after for before, after in made.counts.values()), "image")
        written = pluralize(made.copies, "augmented image")
        what = f"{left_out} left out, none written" if fewer else f"{written} written"
        screen.say(f"{what}. Table: {made.table}")
        train = ["effnetv2", "train", str(made.table), *shell.option_args(bands=table.bands, nodata=table.nodata)]
        screen.say(f"Train on it with: {shell.shell_join([*train, '--set', 'class_sampling=null'])}")


@spread
def check(
    data: options.Data,
    table: options.CheckOptions,
    out: Annotated[
        Path | None, option("Folder for the page and its JSON.  [default: inspection/NAME]", "FOLDER", "--output")
    ] = None,
    weights: Annotated[str, option("Model for label errors: none, auto, a name, a file.", "NAME")] = "none",
    near_km: Annotated[float, option("Distance that is one location.", "KM", check=between(0, 20_000))] = 5.0,
    time_column: options.TimeColumn = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Find duplicates, leakage and, with --weights, label errors in a dataset.

    Examples:
    - `effnetv2 check photos/`
    - `effnetv2 check train.csv --group-column site --near-km 2`
    """
    from efficientnetv2.data.config import default_check_dir
    from efficientnetv2.workflows.arguments import refuse_inside_data

    folder = out or default_check_dir(data)
    refuse_inside_data(data, folder, "--output", command="check" if out is None else None)
    from efficientnetv2.workflows.check import CheckOptions, run_check  # torch, which takes seconds

    def show(found: CheckResult) -> None:
        if as_json:
            print_json(found.to_json())
        _print_check(found, screen)

    chosen = CheckOptions(folder, weights, near_km, time_column, device, workers)
    with Screen(quiet=as_json) as screen:
        run_check(table.data_config(data), chosen, show)


def _print_check(found: CheckResult, screen: Screen) -> None:
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
    for group, caption in list(zip(finding.groups, finding.captions, strict=True))[:_GROUPS_NAMED]:
        names = [escape_controls(paths[row]) for row in group[:_GROUPS_NAMED]]
        names += [f"{len(group) - len(names):,} more"] if len(group) > len(names) else []
        screen.say(f"  {' = '.join(names)}" + (f": {caption}" if caption else ""))
    if len(finding.groups) > _GROUPS_NAMED:
        screen.say(f"  and {len(finding.groups) - _GROUPS_NAMED:,} more in inspection.json")
