"""What ``shards`` does: read the dataset, pack it, say what came of it."""

from __future__ import annotations

from pathlib import Path

from efficientnetv2.cli.console import Screen, answer
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.writer import Packing, pack
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.shell import options, typed
from efficientnetv2.workflows.data_config import Source, tell
from efficientnetv2.workflows.output_paths import lies_within


def pack_and_tell(source: Source, out: Path, packing: Packing, *, as_json: bool) -> None:
    """Everything that ``effnetv2 shards`` does.

    Raises:
        InputError: anything a user can mend.
    """
    screen = Screen(quiet=as_json)
    place = _place(source.data, out)
    dataset = source.read(for_training=False)
    tell(dataset, strict=packing.strict, say=screen.say)
    with screen.counting("packing", len(dataset)) as counted:
        packed = pack(dataset, place, packing, progress=counted, called=source.words)
    for path, reason in packed.skipped:
        screen.say(f"Left out {path}: {reason}.")
    index = packed.index
    splits = index.table["split"].replace("", "without a split").value_counts()
    total = sum(shard.bytes for shard in index.shards)
    if as_json:
        answer(
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
        f"{count_of(len(index.table), 'picture')} of {count_of(len(dataset.class_names), 'class')} ({parts}) in "
        f"{count_of(len(index.shards), 'shard')}, {total / 1e6:,.1f} MB: {out}"
    )
    train = ["effnetv2", "train", str(out), *options(label_separator=dataset.separator)]
    screen.say(f"Train on them with: {typed(train)}")


def _place(data: str, out: Path) -> Path:
    """OUT spelled out.

    Raises:
        InputError: it is not new or empty, not on this machine, or a part of what it is made from.
    """
    if is_url(str(out).replace(":/", "://", 1)):
        raise InputError(
            f"OUT is {out}, but shards are written to this machine. Give a folder, then copy it up."
        )
    place = out.resolve()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "holds something already" if place.is_dir() else "is a file"
        raise InputError(f"OUT {out} {what}. Give a new or empty folder.")
    if lies_within(data, place):
        raise InputError(
            f"OUT {out} lies in DATA {data}: the shards would become part of what they are made from. "
            "Give a folder beside it."
        )
    return place
