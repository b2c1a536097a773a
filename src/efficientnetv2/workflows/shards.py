"""Pack the pictures of a data set into shards."""

from __future__ import annotations

import logging
from pathlib import Path

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.writer import PackOptions, PackResult, write_shards
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.progress import progress
from efficientnetv2.workflows.output_paths import lies_within

_logger = logging.getLogger(__name__)


def pack_shards(source: DataConfig, out: Path, packing: PackOptions) -> tuple[ImageDataset, PackResult]:
    """Pack labelled pictures into shards, and return both.

    Raises:
        InputError: anything a user can mend.
    """
    place = _place(source.data, out)
    dataset = source.read(for_training=False)
    report_notes(dataset, strict=packing.strict)
    with progress("packing", len(dataset)) as counted:
        packed = write_shards(dataset, place, packing, progress=counted, called=source.words)
    for path, reason in packed.skipped:
        _logger.info(f"Left out {path}: {reason}.")
    return dataset, packed


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
