"""What short runs leave as it is, and long ones do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientnetv2.models.create import create
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.recipes import named
from efficientnetv2.training.short import ADAPTING_STEPS, with_statistics


def settled(epochs, *settings, weights="some.safetensors"):
    recipe = with_settings(named("finetune"), [f"epochs={epochs}", f"weights={weights}", *settings])
    network = create("efficientnetv2_b0", num_classes=3).train()
    after, notes = with_statistics(recipe, recipe, network, images=32)  # an epoch is a step
    network(torch.randn(2, 3, 32, 32))
    moved = any(
        module.running_mean.abs().max() > 0
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    return after.frozen_statistics, moved, notes


@pytest.mark.parametrize(
    ("epochs", "frozen"), [(1, True), (ADAPTING_STEPS - 1, True), (ADAPTING_STEPS, False)]
)
def test_statistics_move_where_there_are_steps_enough(epochs, frozen):
    kept, moved, notes = settled(epochs)
    assert kept is frozen
    assert moved is not frozen
    assert bool(notes) is frozen


def test_what_is_asked_for_stays_and_from_scratch_nothing_is_kept():
    assert settled(1, "frozen_statistics=false")[:2] == (False, True)
    assert settled(1, weights="none") == ("auto", True, [])  # which settle() makes false
