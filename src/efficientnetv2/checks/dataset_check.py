"""All checks of a dataset, and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from efficientnetv2.checks.dataset_statistics import class_count_section, image_stats_section
from efficientnetv2.checks.duplicates import duplicate_section, exact_duplicates, lookalike_section
from efficientnetv2.checks.image_stats import ImageStats
from efficientnetv2.checks.issues import CheckSection, Issue, Severity, issue
from efficientnetv2.checks.label_errors import label_error_section
from efficientnetv2.checks.split_leakage import (
    augmentation_families,
    group_members,
    group_section,
    location_section,
    time_section,
)
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.shards.reader import ShardDamage
from efficientnetv2.evaluation.distribution_shift import NEAR_KM
from efficientnetv2.evaluation.html import json_values
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.random_key import Key


@dataclass(frozen=True, eq=False)
class CheckResult:
    """Everything that was found in a dataset, in sections by their key of ``inspection.json``."""

    dataset: ImageDataset
    stats: ImageStats
    sections: Mapping[str, CheckSection]
    weights: str | None = None  # of the embeddings

    @property
    def issues(self) -> list[Issue]:
        """All issues, the most severe first."""
        found = [each for section in self.sections.values() for each in section.issues]
        return sorted(found, key=lambda each: get_args(Severity).index(each.severity))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        paths = self.dataset.paths
        found = [
            {
                "kind": each.kind,
                "severity": each.severity,
                "sentence": each.sentence,
                "advice": each.advice,
                "images": [[paths[row] for row in group] for group in each.groups],
                "notes": list(each.captions) if any(each.captions) else [],
            }
            for each in self.issues
        ]
        values: dict[str, Any] = json_values(
            {
                "data": self.dataset.source,
                "schema_version": SCHEMA_VERSION,
                "num_images": len(self.dataset),
                "weights": self.weights,
                "notes": self.dataset.notes,
                "findings": found,
                **{name: section.facts for name, section in self.sections.items()},
            }
        )
        return values


def check_dataset(
    dataset: ImageDataset,
    stats: ImageStats,
    *,
    key: Key,
    near_km: float = NEAR_KM,
    time_column: str | None = None,
    embeddings: Embeddings | None = None,
    weights: str | None = None,
    trained: str | None = None,
    damage: ShardDamage | None = None,
) -> CheckResult:
    """Run all checks; without embeddings of the readable images, labels are not checked.

    ``trained`` is a sentence on images that trained the weights.

    Raises InputError if the time column has no times.
    """
    duplicates, near = duplicate_section(dataset, stats, key=key.fold("near"))
    sections = {
        "counts": class_count_section(dataset),
        "image_stats": image_stats_section(dataset, stats),
        "duplicates": duplicates,
        "place": location_section(dataset, near_km=near_km),
        "time": time_section(dataset, column=time_column),
        "group": group_section(dataset),
    }
    if damage is not None and damage.notes:
        sections["shards"] = CheckSection({}, [issue("damaged_shard", note) for note in damage.notes])
    if embeddings is not None:
        # A copy has the label of its original: in training it would confirm a wrong one.
        copies = [*exact_duplicates(stats), *(pair for pair, _ in near), *augmentation_families(dataset)]
        lookalikes, scenes = lookalike_section(dataset, embeddings, copies)
        together: list[Sequence[int]] = [*copies, *scenes, *group_members(dataset)]
        label_errors = label_error_section(dataset, embeddings, together, key=key.fold("labels"))
        sections["network"] = CheckSection(
            {**lookalikes.facts, **label_errors.facts},
            [*lookalikes.issues, *label_errors.issues, *([issue("trained_weights", trained)] if trained else [])],
        )
    return CheckResult(dataset, stats, sections, weights)
