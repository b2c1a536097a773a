"""What the figures of a report do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from efficientnetv2.base.errors import count_of
from efficientnetv2.evaluation.answers import Beside, listed
from efficientnetv2.evaluation.page import percent
from efficientnetv2.metrics.classification import Figures
from efficientnetv2.metrics.intervals import Interval
from efficientnetv2.metrics.several import SeveralFigures
from efficientnetv2.metrics.slices import SMALL

if TYPE_CHECKING:
    from efficientnetv2.evaluation.report import Facts


def limits(
    figures: Figures | SeveralFigures, intervals: Mapping[str, Interval], facts: Facts, beside: Beside
) -> list[str]:
    """What the figures do not say, in sentences.

    Args:
        figures: of the pictures evaluated on.
        intervals: of them, with top-1's.
        facts: of the report.
        beside: what else is known.
    """
    low, high = intervals["top1"]
    whole, belong = "", "belong together (of one place, one day)"
    if beside.drawn_whole is not None:
        whole, belong = (
            f", {beside.drawn_whole} drawn as a whole",
            "belong together otherwise (of one day, one camera)",
        )
    found = [
        f"The intervals say what chance in the choice of these {figures.pictures:,} pictures leaves open{whole}: top-1 "
        f"may lie from {100 * low:.1f} to {percent(high)}. Another seed in training, labels that are wrong, and "
        f"pictures that {belong} add to that."
    ]
    few = [name for name, one in figures.per_class.items() if 0 < one.support < SMALL]
    if few:
        named = listed(few)
        found.append(f"Fewer than {SMALL} pictures stand behind each figure of {named}.")
    new = (beside.elsewhere is not None and beside.elsewhere.known) or (
        beside.apart is not None and beside.apart.new and beside.apart.by == "place"
    )
    found.append(
        f"Nothing here says how it does on pictures of other {'seasons' if new else 'places, seasons'} or cameras "
        "than those it was trained and evaluated on."
    )
    if not isinstance(figures, SeveralFigures):
        found.append(
            "Overall figures hold for pictures with this mix of classes; with another mix, precision and top-1 "
            "change, recall does not."
        )
    if facts.optimistic:
        both = ((facts.trainers, "trained"), (facts.choosers, "chose"))
        told = " and ".join(f"{who} {what} the network" for who, what in both if who)
        found.append(f"{told[0].upper()}{told[1:]}, so the figures are optimistic.")
    if facts.skipped:
        found.append(f"{count_of(facts.skipped, 'picture')} could not be read; nothing is known of them.")
    return found
