"""Pack a dataset into shards."""

from __future__ import annotations

import logging
from pathlib import Path

from efficientnetv2.data.config import DataConfig, report_notes
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.data.shards.writer import PackOptions, PackResult, write_shards
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import progress
from efficientnetv2.workflows.output_paths import is_inside_data

_logger = logging.getLogger(__name__)


def pack_shards(source: DataConfig, out: Path, packing: PackOptions) -> tuple[ImageDataset, PackResult]:
    """Pack labeled images into shards; returns the dataset and the result.

    Raises:
        InputError: ``out`` is a URL, not empty, or within the dataset; or the dataset is wrong.
    """
    if is_url(str(out).replace(":/", "://", 1)):
        raise InputError(f"OUT {out}: shards are written to this machine. Give a folder, then upload it.")
    folder = out.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds something already" if folder.is_dir() else "is a file"
        raise InputError(f"OUT {out} {what}. Give a new or empty folder.")
    if is_inside_data(source.data, folder):
        raise InputError(
            f"OUT {out} lies in DATA {source.data}: the shards would become part of it. Give a folder beside it."
        )
    dataset = source.read(for_training=False)
    report_notes(dataset, strict=packing.strict)
    with progress("packing", len(dataset)) as update:
        packed = write_shards(dataset, folder, packing, progress=update, called=source.words)
    for path, reason in packed.skipped:
        _logger.info(f"Left out {path}: {reason}.")
    return dataset, packed
