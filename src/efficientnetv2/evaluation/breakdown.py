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
    values = {
        "words": worst_slice(found),
        "shown": found[:_ROWS_OPEN],
        "more": found[_ROWS_OPEN:],
        "small": SMALL_SLICE,
        "count": len(found),
    }
    return TemplateSection("slices.html.j2", values, {"slices": [asdict(each) for each in found]})


def worst_slice(slices: Sequence[SliceMetrics]) -> str:
    """A sentence on the worst subgroup."""
    below = sum(each.below for each in slices)
    candidates = [each for each in slices if (each.below if below else not each.small)]
    if not candidates:
        return f"Each subgroup has fewer than {SMALL_SLICE} images: too few to say."
    worst = min(candidates, key=lambda each: each.top1)
    text = (
        f"The lowest top-1 is {percent(worst.top1)}, of {pluralize(worst.num_images, 'image')} with {worst.column} "
        f"{worst.value}"
    )
    if not below:
        return f"{text}. No subgroup is worse by more than chance explains."
    return f"{text}. Subgroups worse than the rest by more than chance explains: {below}."


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
    uncalibrated = (
        found.cheapest > found.most_probable
        and calibrated_cost_p_value(labels, probabilities, costs, key=key) < _CHANCE
    )
    values = {
        "figures": found, "constant": constant, "abstains": costs.no_answer is not None, "uncalibrated": uncalibrated,
    }  # fmt: skip
    return TemplateSection("costs.html.j2", values, {"costs": asdict(found) | {"constant_answer": constant}})
