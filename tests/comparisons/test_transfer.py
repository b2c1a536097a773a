"""Transfer: what of the paper's recipe is kept, and what is claimed."""

from __future__ import annotations

import pytest
from benchmarks.transfer import OURS, PAPER, arms, claims

from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.recipes import named


def recipe(arm, px=96, epochs=3):
    return with_settings(named(arm), arms(px, epochs)[arm].settings)


def test_the_papers_recipe_keeps_all_but_size_length_and_batch():
    """Rate 0.001 for 512 pictures, so 0.000125 for 64; no weight decay, cosine, cutout as it is."""
    cut, whole = recipe(PAPER), named(PAPER)
    assert cut.optimizer.lr == pytest.approx(0.001 / 8)
    assert cut.optimizer.model_copy(update={"lr": whole.optimizer.lr}) == whole.optimizer
    assert cut.schedule == whole.schedule
    assert cut.progressive.last.cutout == whole.progressive.last.cutout == 0.5
    assert (cut.epochs, cut.steps, cut.batch_images) == (3, None, 64)


@pytest.mark.parametrize("arm", [PAPER, OURS])
def test_both_end_at_the_same_size_and_are_asked_at_it(arm):
    made = recipe(arm)
    assert (made.progressive.last.image_px, made.eval_px, made.epochs) == (96, 96, 3)


def test_finetune_grows_in_its_own_proportion():
    """128 to 224 px is 4 to 7: from 55 px to 96, in multiples of 32."""
    plan = recipe(OURS).progressive
    assert [plan.stage(number).image_px for number in range(3)] == [64, 64, 96]


def test_the_claims_by_hand():
    found = claims(
        {PAPER: [{"top1": 0.94}, {"top1": 0.95}], OURS: [{"top1": 0.95}, {"top1": 0.97}]}, probe=0.9
    )
    values = {name: (pytest.approx(one.value), unit) for name, (one, unit) in found.items()}
    assert values == {
        "transfer_paper_cifar10_top1": (0.945, "fraction"),
        "finetune_cifar10_top1": (0.96, "fraction"),
        "finetune_cifar10_top1_gain_over_transfer_paper": (1.5, "points"),
        "finetune_cifar10_top1_gain_over_probe": (6.0, "points"),
    }
    low, high = (getattr(found["finetune_cifar10_top1"][0], end) for end in ("low", "high"))
    assert low < 0.95 < 0.97 < high  # of two seeds little is known
