"""``effnetv2 shards``: pack pictures into tars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.utils import shell
from efficientnetv2.utils.errors import pluralize


def shards(
    data: options.Data,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder of the shards; new or empty.", show_default=False),
    ],
    shard_mb: Annotated[
        float,
        typer.Option(
            callback=options.between(0.1, 1_000_000), help="Most megabytes (1,000,000 bytes) of a shard."
        ),
    ] = 1000.0,
    shard_pictures: Annotated[
        int | None,
        typer.Option(
            callback=options.between(1),
            help="Most pictures of a shard. (Default: any number.)",
            show_default=False,
        ),
    ] = None,
    image_px: Annotated[
        int | None,
        typer.Option(
            callback=options.between(2),
            help="Shrink larger pictures to this shorter side. (Default: every file stays as it is.)",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order in the shards.")] = 0,
    path_column: options.PathColumn = "path",
    label_column: options.LabelColumn = "label",
    group_column: options.GroupColumn = None,
    labels: options.Labels = "exact",
    label_separator: options.LabelSeparator = None,
    layout: options.FolderLayout = "auto",
    strict: options.Strict = False,
    as_json: options.Json = False,
) -> None:
    """Pack labelled pictures into tars as WebDataset lays them out, with an index beside them.

    OUT is then DATA for every other command, here or copied to a web server or object store. Pictures are
    drawn through the index, over all shards at once: a run on shards does what the run on the files does.

    Examples:
    - `effnetv2 shards photos/ shards/`
    - `effnetv2 shards pictures.csv shards/ --image-px 384 --shard-mb 200`
    - `effnetv2 train shards/`
    - `effnetv2 train s3://bucket/shards/`
    """
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.data.shards.writer import PackOptions
    from efficientnetv2.workflows.shards import pack_shards

    packing = PackOptions(round(shard_mb * 1_000_000), shard_pictures, image_px, seed, strict)
    source = DataConfig(data, path_column, label_column, group_column, labels, label_separator, layout=layout)
    with Screen(quiet=as_json) as screen:
        dataset, packed = pack_shards(source, out, packing)
        index = packed.index
        splits = index.table["split"].replace("", "without a split").value_counts()
        total = sum(shard.bytes for shard in index.shards)
        if as_json:
            print_json(
                {
                    "out": str(out),
                    "pictures": len(index.table),
                    "shards": [shard.name for shard in index.shards],
                    "bytes": total,
                    "classes": list(dataset.class_names),
                    "splits": {str(split): int(count) for split, count in splits.items()},
                    "left_out": [{"path": path, "reason": reason} for path, reason in packed.skipped],
                }
            )
            return
        parts = ", ".join(f"{count} {split}" for split, count in splits.items())
        screen.say(
            f"{pluralize(len(index.table), 'picture')} of {pluralize(len(dataset.class_names), 'class')} ({parts}) in "
            f"{pluralize(len(index.shards), 'shard')}, {total / 1e6:,.1f} MB: {out}"
        )
        train = ["effnetv2", "train", str(out), *shell.option_args(label_separator=dataset.separator)]
        screen.say(f"Train on them with: {shell.shell_join(train)}")
