"""``effnetv2 data``: datasets as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from efficientnetv2.cli import options, parsing
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, between, flag, option, spread
from efficientnetv2.utils import shell
from efficientnetv2.utils.errors import pluralize

app = parsing.app(name="data", help="Pack images into shards, or write a balanced dataset.")


@app.command(cls=parsing.Command)
@spread
def pack(
    data: options.Data,
    out: Annotated[Path, argument("OUT", "New or empty folder for the shards.")],
    table: options.LabeledOptions,
    shard_mb: Annotated[
        float, option("Largest shard, in 1,000,000 bytes.", "MB", check=between(0.1, 1_000_000))
    ] = 1000.0,
    shard_images: Annotated[int | None, option("Most images of a shard.", "N", check=between(1))] = None,
    image_size: Annotated[
        int | None, option("Shrink larger images to this shorter side.", "PX", check=between(2))
    ] = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Pack labeled images into WebDataset tars with an index.

    OUT is then DATA of every other command, here or on a web server or object store. A run on shards equals the run
    on the files.

    Examples:
    - `effnetv2 data pack images.csv shards/ --image-size 384 --shard-mb 200`
    - `effnetv2 train shards/`
    """
    from efficientnetv2.data.shards.writer import PackOptions
    from efficientnetv2.workflows.data import pack_shards

    packing = PackOptions(round(shard_mb * 1_000_000), shard_images, image_size, seed, strict)
    with Screen(quiet=as_json) as screen:
        dataset, packed = pack_shards(table.source(data), out, packing)
        index = packed.index
        splits = index.table["split"].replace("", "without a split").value_counts()
        total = sum(shard.bytes for shard in index.shards)
        if as_json:
            print_json(
                {
                    "out": str(out), "num_images": len(index.table), "shards": [shard.name for shard in index.shards],
                    "bytes": total, "classes": list(dataset.class_names),
                    "splits": {str(split): int(count) for split, count in splits.items()},
                    "left_out": [{"path": path, "reason": reason} for path, reason in packed.skipped],
                }
            )  # fmt: skip
            return
        parts = ", ".join(f"{count} {split}" for split, count in splits.items())
        screen.say(
            f"{pluralize(len(index.table), 'image')} of {pluralize(len(dataset.class_names), 'class')} ({parts}) in "
            f"{pluralize(len(index.shards), 'shard')}, {total / 1e6:,.1f} MB: {out}"
        )
        train = ["effnetv2", "train", str(out), *shell.option_args(label_separator=dataset.separator)]
        screen.say(f"Train on them with: {shell.shell_join(train)}")


@app.command("balance", cls=parsing.Command)
@spread
def write_balanced(
    data: options.Data,
    out: Annotated[Path, argument("OUT", "New or empty folder; with --fewer a .csv file.")],
    table: options.OneLabelOptions,
    to: Annotated[
        Literal["equal", "sqrt", "effective"],
        option("Class proportions: equal, square roots of the counts, or effective numbers."),
    ] = "equal",
    fewer: Annotated[
        bool, flag("--fewer", "Leave out images of frequent classes instead of adding copies.")
    ] = False,
    recipe: Annotated[
        str, option("Recipe whose augmentation is used, at its last stage.", "NAME")
    ] = "finetune",
    settings: options.Settings = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Write a balanced training set, with augmented copies or fewer images.

    Validation and test images stay as they are. Training does not need this: train --set class_sampling=equal draws
    rare classes more often.

    Examples:
    - `effnetv2 data balance train.csv balanced/ --set augment.flip=d4`
    - `effnetv2 data balance photos/ fewer.csv --fewer`
    """
    from efficientnetv2.workflows.data import write_balanced

    with Screen(quiet=as_json) as screen:
        made = write_balanced(
            table.source(data), out,
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
        train = ["effnetv2", "train", str(made.table), *shell.option_args(bands=table.bands)]
        screen.say(f"Train on it with: {shell.shell_join([*train, '--set', 'class_sampling=null'])}")
