"""Settings that a recipe takes and that do nothing in the run at hand."""

from __future__ import annotations

from efficientnetv2.data.balance import BETA
from efficientnetv2.training.learning import Schedule
from efficientnetv2.training.recipe import Recipe

VAIN = "Without effect here: "  # what the sentence begins with


def idle(recipe: Recipe, *, scratch: bool, processes: int) -> list[str]:
    """What was set and has no effect, in a sentence; none where all has.

    Args:
        recipe: as it was asked for.
        scratch: whether the network begins without weights.
        processes: that share the run.
    """
    found = []
    if scratch and recipe.optimizer.unfreeze is not None:
        found.append("optimizer.unfreeze (from scratch all layers learn from the beginning)")
    if scratch and recipe.classifier == "probe":
        found.append("classifier=probe (from scratch there is nothing that a probe could be of)")
    if recipe.sync_batch_norm and processes == 1:
        found.append("sync_batch_norm (there is one process)")
    if recipe.time_shares is not None and recipe.progressive.stages == 1:
        found.append("time_shares (there is one stage)")
    if recipe.effective_beta != BETA and "effective" not in (recipe.balance, recipe.class_weights):
        found.append("effective_beta (neither balance nor class_weights is effective)")
    found += _of_schedule(recipe.schedule)
    if recipe.compile is True and recipe.progressive.continuous:
        found.append(
            "compile for most of the run (the setting changes at every step; PyTorch compiles a few of them, in the "
            "middle of training)"
        )
    return [f"{VAIN}{'; '.join(found)}."] if found else []


def _of_schedule(schedule: Schedule) -> list[str]:
    """Numbers of another kind of schedule."""
    usual = Schedule(kind=schedule.kind)
    of_kinds = {"staircase": ("factor", "every_epochs"), "cosine": ("final",)}
    return [
        f"schedule.{name} (a {kind}'s, and schedule.kind is {schedule.kind})"
        for kind, names in of_kinds.items()
        if kind != schedule.kind
        for name in names
        if getattr(schedule, name) != getattr(usual, name)
    ]
