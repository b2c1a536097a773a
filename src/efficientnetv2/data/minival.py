"""Minival: training pictures that are set aside to choose by, so that val chooses nothing."""

from __future__ import annotations

import numpy as np

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.data.levels import levels_of
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.splits import deal_by_level, how_dealt, refuse_single


def with_minival(
    manifest: Manifest, *, size: int | float, contents: Ints | None = None
) -> tuple[Manifest, str]:
    """Set train pictures aside as minival, by which a run chooses the weights that it keeps; val chooses nothing.

    The rule: each class gives its share of them, to the picture (largest remainders first, at least one), under the
    rules of ``splits.with_holdout`` on what stays together. Which they are depends on the pictures' own paths alone,
    neither on a seed nor on an order: runs of other seeds choose by the same ones, and so does the same data in shards.

    Args:
        manifest: after ``splits.with_holdout``.
        size: a number of pictures (int), or a share of those in train (float, between 0 and 1).
        contents: as for ``splits.with_holdout``.

    Returns:
        The manifest with these pictures in minival, and a sentence. Pictures given as minival are taken instead.

    Raises:
        InputError: there are fewer than a class needs, more than train can spare, or a class has one picture; or
            pictures have several labels, so that those of a class cannot be counted out.
    """
    if manifest.separator is not None:
        raise InputError(
            f"minival is {size}, which counts out pictures of each class, but these have several labels each. Train "
            "without it (--set minival=null)."
        )
    split = manifest.split.copy()
    if given := int((split == "minival").sum()):
        return manifest, f"The {given} pictures given as minival choose the weights to keep."
    train = np.flatnonzero(manifest.in_train)
    train = train[np.argsort([manifest.paths[row].rpartition(".tar#")[2] for row in train], kind="stable")]
    part = manifest.select(train)
    levels = levels_of(part, None if contents is None else np.asarray(contents)[train])
    without = "train without minival (--set minival=null)"
    refuse_single(part, levels[-1].clusters, "choose by", without)
    quotas = _quotas(part, round(size * len(train)) if isinstance(size, float) else size)
    target = np.stack([np.bincount(part.labels) - quotas, quotas]).astype(np.float64)
    both = "both in train and in minival"
    level, parts = deal_by_level(part, levels, target, Key.of(0).fold("minival"), both=both, instead=without)
    split[train[parts == 1]] = "minival"
    held, how = int((parts == 1).sum()), how_dealt(levels, level, parts == 1)
    return manifest.with_split(split), (
        f"Minival: {held} of {len(train)} training pictures, {how}, are not trained on but choose the weights to keep."
    )


def _quotas(part: Manifest, count: int) -> Ints:
    """(K,) how many of so many pictures each class gives: its share, but at least one and not all.

    Raises:
        InputError: there are not so many, or not enough for each class.
    """
    sizes, classes = np.bincount(part.labels), len(part.class_names)
    if not classes <= count <= len(part) - classes:
        raise InputError(
            f"{part.source}: minival would be {count} of {len(part)} training pictures, but of each of the {classes} "
            "classes at least one has to stand in minival and one to stay in train. Give a number from "
            f"{classes} to {len(part) - classes} or a share (--set minival=0.1), or none (--set minival=null)."
        )
    ideal = count * sizes / len(part)
    quotas = np.clip(np.floor(ideal).astype(np.int64), 1, sizes - 1)
    while rest := count - int(quotas.sum()):
        able = quotas < sizes - 1 if rest > 0 else quotas > 1
        step = 1 if rest > 0 else -1
        quotas[np.argmax(np.where(able, step * (ideal - quotas), -np.inf))] += step
    return quotas
