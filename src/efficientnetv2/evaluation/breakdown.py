"""The report sections on subgroups and on costs of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy.typing as npt

from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.metrics.cost_sensitive import ABSTAIN, ErrorCosts, calibrated_cost_p_value, cost_metrics
from efficientnetv2.metrics.subgroups import SMALL_SLICE, SliceMetrics
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.rng import Key

# One-sided significance level, as of a 95 % interval.
_CHANCE = 0.025
# Rows of the table that are shown; the rest unfolds. Ours.
_ROWS_OPEN = 15


def subgroup_section(found: Sequence[SliceMetrics]) -> TemplateSection:
    """The section on one or more subgroups."""
    return TemplateSection(
        "slices.html.j2",
        {
            "words": worst_slice(found),
            "shown": found[:_ROWS_OPEN],
            "more": found[_ROWS_OPEN:],
            "small": SMALL_SLICE,
            "count": len(found),
        },
        {"slices": [asdict(each) for each in found]},
    )


def worst_slice(slices: Sequence[SliceMetrics]) -> str:
    """A sentence on the worst subgroup."""
    below = sorted((each for each in slices if each.below), key=lambda each: each.top1)
    large = below or [each for each in slices if not each.small]
    if not large:
        return f"Each subgroup has fewer than {SMALL_SLICE} images: too few to say."
    worst = large[0]
    right = (
        f"Of the {pluralize(worst.num_images, 'image')} with {worst.column} {worst.value}, {percent(worst.top1)} are "
        "classified correctly"
    )
    if not below:
        return (
            f"No subgroup is worse by more than chance explains. The lowest: {right[0].lower()}{right[1:]}."
        )
    more = len(below) - 1
    others = f", and so {'is' if more == 1 else 'are'} {pluralize(more, 'more subgroup')}" if more else ""
    return f"{right}: worse than the rest by more than chance explains{others}."


def subgroup_verdict(found: Sequence[SliceMetrics]) -> str:
    """Whether the model is equally good in all subgroups, in a word or two."""
    if below := sum(each.below for each in found):
        return f"No, {below} of {len(found)} worse."
    return "Too few images to tell." if all(each.small for each in found) else "Yes."


def cost_section(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    costs: ErrorCosts,
    class_names: Sequence[str],
    *,
    key: Key,
) -> TemplateSection:
    """The section on costs of (N, K) probabilities for (N,) labels."""
    found = cost_metrics(labels, probabilities, costs)
    constant = None if found.constant_answer == ABSTAIN else class_names[found.constant_answer]
    words = (
        f"The mean cost of an image is {found.cheapest:.4g} with predictions of least expected cost, and "
        f"{found.most_probable:.4g} with the most probable class. {percent(found.changed)} of the predictions differ"
    )
    words += (
        "." if costs.no_answer is None else f", {percent(found.left)} of the images are left to a person."
    )
    if (
        found.cheapest > found.most_probable
        and calibrated_cost_p_value(labels, probabilities, costs, key=key) < _CHANCE
    ):
        words += (
            " Chance does not explain the higher cost: the probabilities are not calibrated, see Calibration."
        )
    return TemplateSection(
        "costs.html.j2",
        {"figures": found, "constant": constant, "words": words},
        {"costs": asdict(found) | {"constant_answer": constant}},
    )
