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
    alike: list[tuple[int, ...]] = [(one.first, one.second) for one in pairs]
    likeness: dict[tuple[int, ...], str] = {
        (one.first, one.second): f"correlation {one.alike:.2f}" for one in pairs
    }
    findings = [
        *_harms(manifest, same, "same", {}),
        *_harms(manifest, alike, "near", likeness),
    ]
    facts = {
        "same_files": [[manifest.paths[row] for row in group] for group in same],
        "near_duplicates": [
            {
                "paths": [manifest.paths[one.first], manifest.paths[one.second]],
                "correlation": one.alike,
                "across_splits": crossing(manifest, (one.first, one.second)),
                "labels_differ": disagreeing(manifest, (one.first, one.second)),
            }
            for one in pairs
        ],
    }
    return Section(facts, findings), pairs


def _harms(
    manifest: Manifest, groups: Sequence[tuple[int, ...]], how: str, likeness: Mapping[tuple[int, ...], str]
) -> list[Finding]:
    """A finding for those that cross splits, one for those with several labels, one for the rest.

    A group that does both stands in both.
    """
    across = [group for group in groups if crossing(manifest, group)]
    unlike = [group for group in groups if disagreeing(manifest, group)]
    harmful = {*across, *unlike}
    rest = [group for group in groups if group not in harmful]
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
            tuple(found),
            tuple(likeness.get(one, "") for one in found),
        )
        for kind, severity, found, sentence, advice in kinds
        if found
    ]
