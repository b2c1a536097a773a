"""Activation recomputation: less memory and the same training."""

from __future__ import annotations

import pytest
import torch
from tests.messages import mentioning
from tests.training.test_loop import SMALL, running
from tests.training.test_microbatch import PLAN, SGD, noisy

from efficientnetv2.models.factory import create
from efficientnetv2.models.output_shapes import activation_bytes
from efficientnetv2.training.initial_weights import build_model
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.errors import InputError


def network(stages):
    torch.manual_seed(0)
    small = create(SMALL, num_classes=3)
    small.checkpoint_stages(stages)
    return small


@pytest.mark.parametrize("ghost_batch_size", [2, 8])
def test_recomputing_changes_neither_dropout_nor_statistics(ghost_batch_size):
    """One ghost batch of 8, or 4 of 2 (two per pass), with stochastic depth and dropout of 0.4."""

    def trained(stages):
        _, state, done = running(
            PLAN,
            4,
            network=network(stages),
            pictures=noisy,
            microbatches=MicrobatchPlan({32: 2, 48: 2}) if ghost_batch_size == 2 else MicrobatchPlan(),
            **SGD | {"ghost_batch_size": ghost_batch_size},
        )
        return [float(one.loss) for one in done], state.state_dict()

    losses, kept = trained(0)
    again_losses, again = trained(3)
    assert again_losses == pytest.approx(losses, abs=1e-6)
    for name, tensor in again["network"].items():
        torch.testing.assert_close(tensor, kept["network"][name], rtol=1e-5, atol=1e-6, msg=name)
    assert again["network"]["stem.norm.num_batches_tracked"] == 4


def test_each_block_is_computed_twice_in_a_training_step_only():
    calls = []
    small = network(1).train()
    for number, block in enumerate(small.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    small(torch.randn(4, 3, 32, 32)).sum().backward()
    assert sorted(calls) == [0, 0, 1, 1, 2, 3, 4, 5], "two blocks in the first of three stages"
    calls.clear()
    with torch.no_grad():
        small(torch.randn(4, 3, 32, 32))
    small.eval()(torch.randn(4, 3, 32, 32))
    assert len(calls) == 12


def test_recomputing_all_stages_halves_the_activation_memory():
    assert activation_bytes(network(3), 64) < activation_bytes(network(0), 64) / 2


def test_number_of_recomputed_stages_is_from_the_recipe():
    recipe = get_recipe("quick").model_copy(update={"checkpoint_stages": 2})
    assert build_model(recipe, SMALL, num_classes=3).recomputed == {0, 1, 2, 3}
    with pytest.raises(InputError, match=mentioning("checkpoint_stages", "4", "3")):
        build_model(recipe.model_copy(update={"checkpoint_stages": 4}), SMALL, num_classes=3)


def test_models_of_other_libraries_cannot_recompute():
    pytest.importorskip("timm")
    recipe = get_recipe("quick").model_copy(update={"checkpoint_stages": 1})
    with pytest.raises(InputError, match="only models of this package"):
        build_model(recipe, "timm:resnet18", num_classes=3)
