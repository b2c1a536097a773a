"""What a model reached on those of the pictures alone that neither trained nor chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnetv2.base.keys import Key
from efficientnetv2.commands.seen import Seen
from efficientnetv2.evaluation.hanging import Whole
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.reach import intervals_of
from efficientnetv2.metrics.several import MEANS_OVER_CLASSES, mean_over_classes, measured
from efficientnetv2.metrics.slices import SMALL


@dataclass(frozen=True)
class Unseen:
    """Figures of the pictures that neither trained nor chose a model, where others did.

    Args:
        words: for people.
        told: for programs: how many there are, their figures, their 95 % intervals.
    """

    words: str
    told: Mapping[str, Any]


def on_unseen(
    predictions: Predictions, known: Seen, class_names: Sequence[str], whole: Whole | None = None
) -> Unseen | None:
    """The figures of those alone; of an ensemble, of those that trained or chose no member of it.

    Args:
        predictions: of all pictures.
        known: which of them trained or chose the model, in the same order.
        class_names: of the network.
        whole: what hangs together among all pictures, in the same order; None where nothing does.

    Returns:
        None where there is nothing to part: all or none did, it is not known of each, or fewer than 30 did neither.
    """
    rows = known.unseen
    if rows is None or not SMALL <= len(rows) < known.of:
        return None
    labels, shares = predictions.labels[rows], predictions.probabilities[rows]
    found = measured(labels, shares, class_names, predictions.answer)
    clusters = None if whole is None else whole.clusters[rows]
    intervals = intervals_of(found, labels, shares, clusters=clusters, key=Key.of(0).fold("unseen"))
    name, mean = mean_over_classes(found)
    figures = {"top1": found.top1, name: mean}
    reach = {one: intervals[one] for one in figures if one in intervals}

    def said(one: str) -> str:
        low_high = f" ({reach[one][0]:.1%} to {reach[one][1]:.1%})" if one in reach else ""
        return f"{figures[one]:.1%}{low_high}"

    which = "neither trained nor chose it" if known.chose else "did not train it"
    return Unseen(
        f"On the {len(rows):,} of these {known.of:,} pictures that {which}: top-1 {said('top1')}, "
        f"{MEANS_OVER_CLASSES[name]} {said(name)}; 95 % intervals.",
        {"pictures": len(rows), **figures, "intervals": reach},
    )
