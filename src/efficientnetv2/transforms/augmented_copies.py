"""Augmented images as files: for tools that do not augment, and for people. Training augments in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import source_reader
from efficientnetv2.data.records import AUGMENTED_FROM, Ints
from efficientnetv2.data.sampler import class_members
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms.pipeline import AugmentPlan, augment_images, cache_sized_slices
from efficientnetv2.utils.io import write_atomically
from efficientnetv2.utils.random_key import Key

FOLDER = "augmented"
_QUALITY = 95  # of the JPEG, its colors at full resolution: a copy of a copy should not look like one. Ours.


def spread_copies(labels: Ints, wanted: Ints, *, key: Key) -> Ints:
    """How many copies each of (N,) images gets, so that each class has ``wanted``; within a class one more at most."""
    copies = np.zeros(len(labels), dtype=np.int64)
    for label, (number, rows) in enumerate(zip(wanted, class_members(labels, len(wanted)), strict=True)):
        if len(rows):
            each, more = divmod(int(number) - len(rows), len(rows))
            copies[rows] = each
            copies[key.fold("copies", label).generator().permutation(rows)[:more]] += 1
    return copies


def augmented_copies_of(
    image: npt.NDArray[np.uint8], *, row: int, count: int, setting: StepSettings, plan: AugmentPlan, key: Key
) -> Iterator[npt.NDArray[np.uint8]]:
    """Copies of an image (H, W, 3), each augmented as in training, but neither cropped nor mixed.

    ``row`` and ``key`` decide what is drawn. All copies of a large photograph at once would not fit into memory.
    """
    ids = (np.arange(count, dtype=np.int64) << 32) | row  # as data.sampler.BatchRequest counts draws
    images = torch.from_numpy(image.transpose(2, 0, 1).copy()).expand(count, -1, -1, -1)  # a view
    for part in cache_sized_slices(images):
        changed = augment_images(images[part].contiguous(), setting, key, ids[part], plan)
        yield from changed.permute(0, 2, 3, 1).contiguous().numpy()


def write_copies(
    dataset: ImageDataset,
    copies: Ints,
    folder: Path,
    *,
    setting: StepSettings,
    plan: AugmentPlan,
    key: Key,
    progress: Callable[[int], object] = lambda written: None,
) -> pd.DataFrame:
    """Write (N,) ``copies`` of the images into ``folder/augmented``, at the strength of ``setting``.

    Returns a row for each copy as in the dataset, with the original's path in ``augmented_from``.
    """
    reader = source_reader(dataset)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    rows: list[int] = []
    paths: list[str] = []
    for row in np.flatnonzero(copies).tolist():
        image, count = np.asarray(load_image(reader.source(row))), int(copies[row])
        made = augmented_copies_of(image, row=row, count=count, setting=setting, plan=plan, key=key)
        for number, copy in enumerate(made, start=1):
            paths.append(f"{FOLDER}/{row:06d}_{number}.jpg")
            save = partial(Image.fromarray(copy).save, format="JPEG", quality=_QUALITY, subsampling=0)
            write_atomically(folder / paths[-1], save)
            rows.append(row)
            progress(len(rows))
    table = dataset.table.iloc[rows].reset_index(drop=True)
    table[AUGMENTED_FROM] = table["path"].astype(object)
    return table.assign(path=paths)
