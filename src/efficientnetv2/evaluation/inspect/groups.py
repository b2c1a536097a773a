"""Pictures of one group, which say the same thing twice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from efficientnetv2.base.errors import count_of, some
from efficientnetv2.data.copies import families
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.found import Finding, Section, share, splits_of

_SHOWN = 100  # groups listed picture by picture


def members(manifest: Manifest) -> list[list[int]]:
    """Rows of each group in the column ``group``, if there is one."""
    if "group" not in manifest.table:
        return []
    return [np.asarray(rows).tolist() for rows in manifest.table.groupby("group").indices.values()]


def made_from_one(manifest: Manifest) -> list[list[int]]:
    """Rows of each picture with what was made from it (``data.copies``), two or more each."""
    family = families(manifest)
    if family is None:
        return []
    rows = pd.Series(np.arange(len(manifest))).groupby(family).agg(list)
    return [together for together in rows if len(together) > 1]


def by_group(manifest: Manifest) -> Section:
    """Groups that splits part, and groups that tell the label.

    Args:
        manifest: its column ``group`` counts, if it has one.
    """
    if "group" not in manifest.table or not manifest.table["group"].notna().any():
        return Section({})
    table = pd.DataFrame(
        {"group": manifest.table["group"], "label": manifest.labels, "split": splits_of(manifest)}
    )
    known = table.dropna(subset="group")
    groups = known.groupby("group")
    parted = groups["split"].nunique()
    parted = parted[parted > 1]
    several = groups.size() > 1
    labelled = known[known["label"] >= 0]
    pure = labelled.groupby("group")["label"].nunique().reindex(several[several].index) == 1
    facts = {
        "groups": len(several),
        "of_one_picture": int((~several).sum()),
        "across_splits": [str(name) for name in parted.index],
        "of_one_label": int(pure.sum()),
    }
    findings = []
    if len(parted):
        rows = tuple(tuple(known.index[known["group"] == name].tolist()) for name in parted.index[:_SHOWN])
        findings.append(
            Finding(
                "group_across_splits",
                "wrong",
                f"{count_of(len(parted), 'group')} of {len(several):,} lie in two splits: {some(parted.index)}.",
                "Put each whole into one split: its pictures are not independent, so the figure is too good.",
                rows,
            )
        )
    if len(pure) > 1 and pure.all() and labelled["label"].nunique() > 1:
        findings.append(
            Finding(
                "group_tells_label",
                "note",
                f"Each of the {len(pure):,} groups of several pictures has one label only.",
                "Whether a network knows the class or recognises the group shows only on groups that it has not seen: "
                "keep them whole when pictures are held out.",
            )
        )
    if len(known) < len(table):
        lost = table.index[table["group"].isna()]
        findings.append(
            Finding(
                "no_group",
                "note",
                f"{share(len(lost), len(table))} have no group; each counts as one of its own.",
                "",
                tuple((int(row),) for row in lost),
            )
        )
    return Section(facts, findings)
