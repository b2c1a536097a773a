"""The whole of an inspection: every section, in order; for programs and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnetv2.base.counting import Counting, uncounted
from efficientnetv2.base.keys import Key
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.portraits import Portraits
from efficientnetv2.data.shards.checking import Damage
from efficientnetv2.evaluation.inspect.copies import copies
from efficientnetv2.evaluation.inspect.counts import counts
from efficientnetv2.evaluation.inspect.duplicates import same_files
from efficientnetv2.evaluation.inspect.embedded import lookalikes
from efficientnetv2.evaluation.inspect.found import Finding, Section, in_order
from efficientnetv2.evaluation.inspect.groups import by_group, made_from_one, members
from efficientnetv2.evaluation.inspect.labels import doubted_labels
from efficientnetv2.evaluation.inspect.looks import looks
from efficientnetv2.evaluation.inspect.places import NEAR_KM, by_place
from efficientnetv2.evaluation.inspect.times import by_time
from efficientnetv2.evaluation.page import plain
from efficientnetv2.inference.predict import Embeddings


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a set of pictures.

    Args:
        manifest: of them.
        looked: at them.
        sections: by name: ``counts``, ``looks``, ``copies``, ``place``, ``time``, ``group``, ``network``, and
            ``shards`` where some are damaged.
        weights: what embedded them; None if nothing did.
    """

    manifest: Manifest
    looked: Portraits
    sections: Mapping[str, Section]
    weights: str | None = None

    @property
    def findings(self) -> list[Finding]:
        """Of all sections, the gravest first."""
        return in_order([one for section in self.sections.values() for one in section.findings])

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was said on reading, what was found, then what was counted."""
        paths = self.manifest.paths
        found = [
            {
                "kind": one.kind,
                "severity": one.severity,
                "sentence": one.sentence,
                "advice": one.advice,
                "pictures": [[paths[row] for row in group] for group in one.groups],
                "remarks": list(one.captions) if any(one.captions) else [],
            }
            for one in self.findings
        ]
        values: dict[str, Any] = plain(
            {
                "data": self.manifest.source,
                "pictures": len(self.manifest),
                "weights": self.weights,
                "notes": self.manifest.notes,
                "findings": found,
                **{name: section.facts for name, section in self.sections.items()},
            }
        )
        return values


def inspected(
    manifest: Manifest,
    looked: Portraits,
    *,
    key: Key,
    near_km: float = NEAR_KM,
    time_column: str | None = None,
    embeddings: Embeddings | None = None,
    weights: str | None = None,
    damage: Damage | None = None,
    counting: Counting = uncounted,
) -> Inspection:
    """Everything that can be said of pictures that have been looked at.

    Args:
        manifest: of the pictures, labelled or not.
        looked: at all of them.
        key: of the draws: of the search for duplicates, and of folds.
        near_km: within which two places are one.
        time_column: see ``times.by_time``.
        embeddings: of those that can be read; without them nothing is said of labels.
        weights: what gave those.
        damage: Damage of the shards that hold the pictures; None where the pictures are files.
        counting: shows how far what takes long is: what is made of the embeddings.

    Raises:
        InputError: the time column is none.
    """
    duplicated, near = copies(manifest, looked, key=key.fold("near"))
    sections = {
        "counts": counts(manifest),
        "looks": looks(manifest, looked),
        "copies": duplicated,
        "place": by_place(manifest, near_km=near_km),
        "time": by_time(manifest, column=time_column),
        "group": by_group(manifest),
    }
    if damage is not None and damage.notes:
        sections["shards"] = Section({}, _damaged(damage))
    if embeddings is not None:
        # A copy has the label of its origin, the wrong one too: learnt from, it would bear that out.
        known = [
            *same_files(looked),
            *([pair.first, pair.second] for pair in near),
            *made_from_one(manifest),
        ]
        alike, scenes = lookalikes(manifest, embeddings, known, counting=counting)
        together: list[Sequence[int]] = [*known, *scenes, *members(manifest)]
        doubted = doubted_labels(manifest, embeddings, together, key=key.fold("labels"), counting=counting)
        sections["network"] = Section({**alike.facts, **doubted.facts}, [*alike.findings, *doubted.findings])
    return Inspection(manifest, looked, sections, weights)


def _damaged(damage: Damage) -> list[Finding]:
    """A finding for each damaged shard."""
    advice = "Bring the shard back whole."
    return [Finding("damaged_shard", "wrong", note, advice) for note in damage.notes]
