"""Limits of the land-cover metrics: labels, places, years, the rare class, or the number of images.

Run: python -m benchmarks.land_cover_limits FOLDER [--record]

FOLDER is the ``--output`` of ``benchmarks.land_cover``. It must have both types of folds of the step ``best``. Each
prediction is by models that were not trained on the image.

both          Images with a wrong prediction in both types of folds, and their expected number if the errors were
              independent. Better training cannot be expected to fix errors that occur in both.
neighbours    Images with another within 5 km: how often the nearest has the same label, and top-1 with and without
trained near  Top-1 by whether the training images of the fold have an image within 5 km
labels        Number of likely label errors (confident learning, cleanlab), of all images and of wrong predictions
years         Top-1 before 2012 and from 2012 on, overall and per class
classes       For each class: number of images, recall, precision, and confusions
labelled      Expected gain of twice the images, from the curve of the linear probe

The results are in results/land_cover_limits.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.record import RESULTS
from cleanlab.filter import find_label_issues

from efficientnetv2.checks.split_leakage import NEAR_KM, Places
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.metrics.confidence_intervals import wilson_interval
from efficientnetv2.utils.io import write_text_atomically

KINDS = ("spatial", "stratified")
RECENT = 2012  # first year of the later half of the images


@dataclass(frozen=True)
class Share:
    """A fraction and its counts.

    Args:
        part: Numerator.
        of: Denominator.
        value: The fraction, or None if the denominator is 0.
        low, high: 95 % interval (Wilson).
    """

    part: int
    of: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def counted(cls, mask: np.ndarray) -> Share:
        """The fraction of True in a mask."""
        if not len(mask):
            return cls(0, 0, None, None, None)
        value = float(mask.mean())
        return cls(int(mask.sum()), len(mask), value, *wilson_interval(value, len(mask)))


@dataclass(frozen=True, eq=False)
class Answers:
    """Predictions of one type of folds.

    Args:
        dataset: The images. Its ``fold`` names the model that predicted an image.
        labels: (n,) true class ids.
        probabilities: (n, K).
    """

    dataset: ImageDataset
    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """Read a finished cross-validation."""
        dataset = ImageDataset.from_csv(folder / "dataset.csv", root=folder, source=str(folder))
        table = pd.read_csv(folder / "predictions.csv")
        # Both files have the order of the table that was split.
        pairs = zip(dataset.paths, table["path"], strict=True)
        assert all(full.endswith(path) for full, path in pairs), "answers are of other pictures"
        probabilities = table[list(dataset.class_names)].to_numpy(dtype=np.float64)
        return cls(dataset, dataset.labels, probabilities)

    @property
    def right(self) -> np.ndarray:
        """(n,) whether the most probable class is the label."""
        return np.equal(self.probabilities.argmax(axis=1), self.labels)


def both_wrong(one: Answers, other: Answers) -> dict[str, Any]:
    """Images with a wrong prediction in both types of folds."""
    wrong = [~one.right, ~other.right]
    shared = wrong[0] & wrong[1]
    same = one.probabilities.argmax(axis=1)[shared] == other.probabilities.argmax(axis=1)[shared]
    return {
        "wrong": [int(mask.sum()) for mask in wrong],
        "wrong_in_both": int(shared.sum()),
        "if_independent": float(wrong[0].mean() * wrong[1].mean() * len(shared)),
        "with_the_same_answer": int(same.sum()),
    }


def neighbors(answers: Answers) -> dict[str, Any]:
    """Labels of the nearest images, and top-1 by these labels."""
    places = Places.of(answers.dataset)
    assert places is not None, "the pictures have places"
    all_images = np.ones(len(answers.labels), dtype=bool)
    near = places.nearest_km(all_images, all_images) <= NEAR_KM
    alike = np.zeros(len(near), dtype=bool)
    for label in np.unique(answers.labels):
        in_class = answers.labels == label
        # The nearest image has the same class if no image of another class is nearer.
        alike |= in_class & (places.nearest_km(in_class, in_class) <= places.nearest_km(in_class, ~in_class))
    trained_near = np.zeros(len(near), dtype=bool)
    folds = answers.dataset.table["fold"].to_numpy()
    for fold in np.unique(folds):
        trained_near |= places.nearest_km(folds == fold, folds != fold) <= NEAR_KM
    return {
        "near": Share.counted(near),
        "nearest_has_the_label": Share.counted(alike[near]),
        "top1_where_it_has": Share.counted(answers.right[near & alike]),
        "top1_where_it_has_not": Share.counted(answers.right[near & ~alike]),
        "top1_learnt_near": Share.counted(answers.right[trained_near]),
        "top1_not_learnt_near": Share.counted(answers.right[~trained_near]),
    }


def doubted(answers: Answers) -> dict[str, Any]:
    """Likely label errors: off the diagonal of the confident joint (arXiv:1911.00068) of all folds."""
    issues = find_label_issues(answers.labels, answers.probabilities, filter_by="confident_learning", n_jobs=1)
    names = answers.dataset.class_names
    return {
        "of_all": Share.counted(issues),
        "of_the_mistakes": Share.counted(issues[~answers.right]),
        "by_class": {name: Share.counted(issues[answers.labels == at]) for at, name in enumerate(names)},
    }


def years(answers: Answers) -> dict[str, Any]:
    """Top-1 of earlier and later years, overall and per class."""
    recent = answers.dataset.table["year"].astype(int).to_numpy() >= RECENT
    results: dict[str, Any] = {
        f"before_{RECENT}": Share.counted(answers.right[~recent]),
        f"from_{RECENT}": Share.counted(answers.right[recent]),
    }
    for at, name in enumerate(answers.dataset.class_names):
        in_class = answers.labels == at
        results[name] = {
            f"before_{RECENT}": Share.counted(answers.right[in_class & ~recent]),
            f"from_{RECENT}": Share.counted(answers.right[in_class & recent]),
        }
    return results


def classes(answers: Answers) -> dict[str, Any]:
    """Recall, precision and confusions of each class."""
    names, predicted = answers.dataset.class_names, answers.probabilities.argmax(axis=1)
    return {
        name: {
            "recall": Share.counted(answers.right[answers.labels == row]),
            "precision": Share.counted(answers.right[predicted == row]),
            "called": {
                other: int((predicted[answers.labels == row] == column).sum()) for column, other in enumerate(names)
            },
        }
        for row, name in enumerate(names)
    }


def limits(folder: Path) -> dict[str, Any]:
    """All results, by type of folds.

    Args:
        folder: Folder of the runs.
    """
    by_kind = {kind: Answers.read(folder / "best" / kind) for kind in KINDS}
    found: dict[str, Any] = {"both": both_wrong(*by_kind.values())}
    for kind, answers in by_kind.items():
        report = json.loads((folder / "best" / kind / "report.json").read_text(encoding="utf-8"))
        found[kind] = {
            "neighbours": neighbors(answers),
            "labels": doubted(answers),
            "years": years(answers),
            "classes": classes(answers),
            "labelled": report["data_scaling_curve"],
        }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return asdict(value) if isinstance(value, Share) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", action="store_true", help="replace the record in benchmarks/results")
    options = parser.parse_args()
    text = json.dumps(_plain(limits(options.folder)), indent=1)
    if options.record:
        write_text_atomically(RESULTS / "land_cover_limits.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
