"""What copies of pictures do to a set: they cross splits, they carry two labels, or they only weigh double."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from efficientnetv2.base.keys import Key
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.portraits import Portraits
from efficientnetv2.evaluation.inspect.duplicates import Pair, near, same_files
from efficientnetv2.evaluation.inspect.found import (
    Finding,
    Section,
    Severity,
    crossing,
    disagreeing,
    how_many,
    joined,
    share,
)

_KIND = {"same": "the same file", "near": "nearly the same picture"}


def copies(manifest: Manifest, looked: Portraits, *, key: Key) -> tuple[Section, list[Pair]]:
    """Exact and near duplicates, told apart by the harm they do; and the pairs of near ones.

    Args:
        manifest: of the pictures.
        looked: at them.
        key: of the search for near ones.
    """
    same = [tuple(group) for group in same_files(looked)]
    pairs = near(looked, key=key)
    alike = _between(manifest, same, pairs)
    likeness = {
        way: f"correlation {one.alike:.2f}" for one, ways in zip(pairs, alike, strict=True) for way in ways
    }
    findings = [
        *_harms(manifest, [[group] for group in same], "same", {}),
        *_harms(manifest, alike, "near", likeness),
    ]
    facts = {
        "same_files": [[manifest.paths[row] for row in group] for group in same],
        "near_duplicates": [
            {
                "paths": [manifest.paths[one.first], manifest.paths[one.second]],
                "correlation": one.alike,
                "across_splits": any(crossing(manifest, way) for way in ways),
                "labels_differ": any(disagreeing(manifest, way) for way in ways),
            }
            for one, ways in zip(pairs, alike, strict=True)
        ],
    }
    return Section(facts, findings), pairs


def _between(
    manifest: Manifest, same: Sequence[tuple[int, ...]], pairs: Sequence[Pair]
) -> list[list[tuple[int, ...]]]:
    """Of each pair of near copies, the pairs that it stands for where its pictures are there several times as files.

    The pair itself first; of equal files one of each split and label, for the others of these do no other harm.
    """
    files = {row: group for group in same for row in group}

    def each_kind(row: int) -> list[int]:
        kinds = {
            (manifest.split[one], str(manifest.targets[one])): one for one in reversed(files.get(row, (row,)))
        }
        return [row, *sorted(set(kinds.values()) - {row})]

    return [
        [
            (min(first, second), max(first, second))
            for first in each_kind(one.first)
            for second in each_kind(one.second)
        ]
        for one in pairs
    ]


def _harms(
    manifest: Manifest,
    found: Sequence[Sequence[tuple[int, ...]]],
    how: str,
    likeness: Mapping[tuple[int, ...], str],
) -> list[Finding]:
    """A finding for those that cross splits, one for those with several labels, one for the rest.

    A group that does both stands in both.

    Args:
        manifest: of the pictures.
        found: each in all groups that it stands for, of which the first that does harm is told.
        how: the copies are: a key of ``_KIND``.
        likeness: how alike a group is, in words.
    """
    each_across = [next((group for group in ways if crossing(manifest, group)), None) for ways in found]
    each_unlike = [next((group for group in ways if disagreeing(manifest, group)), None) for ways in found]
    across = [group for group in each_across if group is not None]
    unlike = [group for group in each_unlike if group is not None]
    told = zip(found, each_across, each_unlike, strict=True)
    rest = [ways[0] for ways, crosses, differs in told if crosses is None and differs is None]
    # Pairs of one picture have it in common: five that are alike are ten pairs, of which four add nothing.
    repeated = len(manifest) - len(np.unique(joined(len(manifest), rest)))
    what = _KIND[how]
    grave: Severity = "wrong" if how == "same" else "doubtful"
    kinds: tuple[tuple[str, Severity, list[tuple[int, ...]], str, str], ...] = (
        (
            f"{how}_across_splits",
            grave,
            across,
            f"{how_many(across)} in two splits: {what} is learnt and then asked for",
            "Remove them from one of the splits: the figure on the other is too good.",
        ),
        (
            f"{how}_other_label",
            grave,
            unlike,
            f"{how_many(unlike)} with different labels: {what}, called two things",
            "At least one label of each is wrong, or the picture shows several things. Look at them.",
        ),
        (
            f"{how}_picture",
            "note",
            rest,
            f"{how_many(rest)} of {what}, labels and splits agreeing: "
            + share(repeated, len(manifest)) + " add nothing",
            "Automatic splits keep equal files together."
            if how == "same"
            else "Give them one value in a column group and name it with --group-column, so that no split parts them.",
        ),
    )  # fmt: skip
    return [
        Finding(
            kind,
            severity,
            f"{sentence}.",
            advice,
            tuple(groups),
            tuple(likeness.get(one, "") for one in groups),
        )
        for kind, severity, groups, sentence, advice in kinds
        if groups
    ]
