"""What limits the figure on land cover: labels, places, years, the rare class, or how many images there are.

Run: python -m benchmarks.land_cover_limits FOLDER

FOLDER is what ``benchmarks.land_cover`` kept its runs in (its ``--output``); of ``best`` both kinds of folds have to be
done there. From their answers, each to an image that its networks had not seen:

both         how many images are answered wrongly with both kinds of folds, and how many would be if the two were
             wrong independently of each other: what chance or a better training could mend is not wrong twice
neighbours   of the images with another within 5 km: how often the nearest has the same label, and top-1 where it has
             and where it has not
learnt near  top-1 by whether an image within 5 km was learnt from, at the same kind of folds
labels       how many labels are doubted by confident learning (cleanlab), of all and of the mistakes
years        top-1 before 2012 and from 2012 on, and of each class
classes      of each class: images, recall, precision, and where its mistakes go
labelled     what twice the images would bring, by the linear probe's curve

What it finds goes into results/land_cover_limits.json.
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
RECENT = 2012  # the years from here on are the later half of the images


@dataclass(frozen=True)
class Share:
    """So many of so many.

    Args:
        part: how many.
        of: of how many.
        value: their share; None of none.
        low, high: its 95 % interval (Wilson).
    """

    part: int
    of: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def counted(cls, which: np.ndarray) -> Share:
        """Of a mask, those that are set."""
        if not len(which):
            return cls(0, 0, None, None, None)
        value = float(which.mean())
        return cls(int(which.sum()), len(which), value, *wilson_interval(value, len(which)))


@dataclass(frozen=True, eq=False)
class Answers:
    """What the folds of one kind answered.

    Args:
        dataset: of the images; its ``fold`` says who answered.
        labels: (n,) true.
        probabilities: (n, K).
    """

    dataset: ImageDataset
    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """Of a cross-validation that is done."""
        dataset = ImageDataset.from_csv(folder / "dataset.csv", root=folder, source=str(folder))
        table = pd.read_csv(folder / "predictions.csv")
        # Both list the images in the order of the table that they were dealt from.
        pairs = zip(dataset.paths, table["path"], strict=True)
        assert all(known.endswith(answered) for known, answered in pairs), "answers are of other pictures"
        probabilities = table[list(dataset.class_names)].to_numpy(dtype=np.float64)
        return cls(dataset, dataset.labels, probabilities)

    @property
    def right(self) -> np.ndarray:
        """(n,) whether the most probable class is the label's."""
        return np.equal(self.probabilities.argmax(axis=1), self.labels)


def both_wrong(one: Answers, other: Answers) -> dict[str, Any]:
    """Mistakes that both kinds of folds make."""
    wrong = [~one.right, ~other.right]
    shared = wrong[0] & wrong[1]
    same = one.probabilities.argmax(axis=1)[shared] == other.probabilities.argmax(axis=1)[shared]
    return {
        "wrong": [int(each.sum()) for each in wrong],
        "wrong_in_both": int(shared.sum()),
        "if_independent": float(wrong[0].mean() * wrong[1].mean() * len(shared)),
        "with_the_same_answer": int(same.sum()),
    }


def neighbors(given: Answers) -> dict[str, Any]:
    """Labels of the nearest image, and what that means for the answers."""
    places = Places.of(given.dataset)
    assert places is not None, "the pictures have places"
    everyone = np.ones(len(given.labels), dtype=bool)
    near = places.nearest_km(everyone, everyone) <= NEAR_KM
    alike = np.zeros(len(near), dtype=bool)
    for label in np.unique(given.labels):
        own = given.labels == label
        # The nearest of all is of the own class where none of another class is nearer.
        alike |= own & (places.nearest_km(own, own) <= places.nearest_km(own, ~own))
    learnt = np.zeros(len(near), dtype=bool)
    folds = given.dataset.table["fold"].to_numpy()
    for fold in np.unique(folds):
        learnt |= places.nearest_km(folds == fold, folds != fold) <= NEAR_KM
    return {
        "near": Share.counted(near),
        "nearest_has_the_label": Share.counted(alike[near]),
        "top1_where_it_has": Share.counted(given.right[near & alike]),
        "top1_where_it_has_not": Share.counted(given.right[near & ~alike]),
        "top1_learnt_near": Share.counted(given.right[learnt]),
        "top1_not_learnt_near": Share.counted(given.right[~learnt]),
    }


def doubted(given: Answers) -> dict[str, Any]:
    """Labels off the diagonal of the confident joint (arXiv:1911.00068), by the folds' own probabilities."""
    issues = find_label_issues(given.labels, given.probabilities, filter_by="confident_learning", n_jobs=1)
    names = given.dataset.class_names
    return {
        "of_all": Share.counted(issues),
        "of_the_mistakes": Share.counted(issues[~given.right]),
        "by_class": {name: Share.counted(issues[given.labels == at]) for at, name in enumerate(names)},
    }


def years(given: Answers) -> dict[str, Any]:
    """Top-1 of earlier and later years."""
    recent = given.dataset.table["year"].astype(int).to_numpy() >= RECENT
    told: dict[str, Any] = {
        f"before_{RECENT}": Share.counted(given.right[~recent]),
        f"from_{RECENT}": Share.counted(given.right[recent]),
    }
    for at, name in enumerate(given.dataset.class_names):
        own = given.labels == at
        told[name] = {
            f"before_{RECENT}": Share.counted(given.right[own & ~recent]),
            f"from_{RECENT}": Share.counted(given.right[own & recent]),
        }
    return told


def classes(given: Answers) -> dict[str, Any]:
    """Recall, precision and confusions of each class."""
    names, answers = given.dataset.class_names, given.probabilities.argmax(axis=1)
    return {
        name: {
            "recall": Share.counted(given.right[given.labels == at]),
            "precision": Share.counted(given.right[answers == at]),
            "called": {other: int((answers[given.labels == at] == place).sum()) for place, other in enumerate(names)},
        }
        for at, name in enumerate(names)
    }


def limits(folder: Path) -> dict[str, Any]:
    """All of it, by the kind of folds.

    Args:
        folder: of the runs.
    """
    answers = {kind: Answers.read(folder / "best" / kind) for kind in KINDS}
    found: dict[str, Any] = {"both": both_wrong(*answers.values())}
    for kind, given in answers.items():
        report = json.loads((folder / "best" / kind / "report.json").read_text(encoding="utf-8"))
        found[kind] = {
            "neighbours": neighbors(given),
            "labels": doubted(given),
            "years": years(given),
            "classes": classes(given),
            "labelled": report["data_scaling_curve"],
        }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return asdict(value) if isinstance(value, Share) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    text = json.dumps(_plain(limits(parser.parse_args().folder)), indent=1)
    write_text_atomically(RESULTS / "land_cover_limits.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
