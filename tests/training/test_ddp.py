"""Sharing of ghost batches among processes, by arithmetic."""

from __future__ import annotations

import pytest
import torch
from tests.messages import mentions
from tests.training.test_loop import CPU, SMALL, recipe_of
from torch import nn

from efficientnetv2.models.factory import create
from efficientnetv2.progressive.schedule import ProgressiveSchedule
from efficientnetv2.training import ddp
from efficientnetv2.training.ddp import evenly_shared, validate_sharing
from efficientnetv2.training.train_state import EMA
from efficientnetv2.utils.distributed import World, convert_sync_batch_norm
from efficientnetv2.utils.errors import InputError

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, 32),  # the largest that fits
        (4, 16),  # 4 ghost batches of 16
        (3, 16),  # 4 ghost batches are enough for 3 processes; no divisor of 64 gives a multiple of 3
        (64, 1),  # one image each
        (100, 32),  # too many processes, rejected later
    ],
)
def test_largest_ghost_batch_size_that_shares_a_batch_of_64(processes, expected):
    assert evenly_shared([1, 2, 4, 8, 16, 32], batch_size=64, processes=processes)[-1] == expected


@pytest.mark.parametrize(
    ("device", "machines", "threads", "expected"),
    [
        (CPU, 1, 4, 4),  # the cores are divided: four run at once
        (CPU, 2, 4, 8),
        (CPU, 1, 16, 1),  # each process uses all cores: four are as fast as one
        (CPU, 1, 6, 2),
        (CPU, 1, 1, 4),
        (GPU, 2, 16, 8),
    ],
)
def test_parallel_speed_of_four_processes_per_machine(device, machines, threads, expected, monkeypatch):
    monkeypatch.setattr(ddp, "cores", lambda: 16)
    monkeypatch.setattr(ddp.torch, "get_num_threads", lambda: threads)
    world = World(size=4 * machines, local_size=4)
    assert ddp.parallel_speed(world, device) == expected


def refused(group, processes, *, batch=24, device=CPU, begun=False, least=1, is_set=True, **changes):
    recipe = recipe_of(ProgressiveSchedule(image_size=32), batch_size=batch, ghost_batch_size=group, **changes)
    with pytest.raises(InputError) as error:
        validate_sharing(recipe, device, World(size=processes), least=least, is_set=is_set, begun=begun)
    return str(error.value)


def test_fewer_ghost_batches_than_processes_are_rejected_with_a_fix():
    message = refused(8, 5)
    assert mentions(message, "5", "3", "group")
    assert mentions(message, "ghost_batch_size=4"), "6 groups of 4 are enough for 5 processes"
    assert mentions(message, "at most 3")
    assert mentions(refused(24, 2), "only 1")
    assert mentions(refused(8, 30), "batch_size=30")


def test_advice_keeps_the_fewest_images_of_a_group():
    """Mixup needs two; an open group size could be as small."""
    message = refused(8, 8, batch=8, least=2, is_set=False)
    assert mentions(message, "at most 4", "batch_size=16")
    assert "ghost_batch_size=1" not in message


def test_resumed_run_with_too_many_processes_suggests_fewer_processes():
    message = refused(8, 5, begun=True)
    assert "=" not in message
    assert message.endswith("Start at most 3.")


def test_uneven_shares_are_allowed():
    validate_sharing(
        recipe_of(ProgressiveSchedule(image_size=32), batch_size=24, ghost_batch_size=6), CPU, World(size=3)
    )


def test_sync_batch_norm_needs_gpus_with_even_shares():
    assert "for GPUs" in refused(6, 2, sync_batch_norm=True)
    assert mentions(refused(6, 3, device=GPU, sync_batch_norm=True), "3", "4")
    recipe = recipe_of(ProgressiveSchedule(image_size=32), batch_size=24, ghost_batch_size=6, sync_batch_norm=True)
    validate_sharing(recipe, GPU, World(size=2))
    validate_sharing(recipe, CPU, World())


def test_sync_batch_norm_conversion_keeps_the_activations_of_timm():
    pytest.importorskip("timm")
    network = create("timm:test_efficientnet", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        convert_sync_batch_norm(network, World(size=2))
        assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
        assert torch.equal(network(images), before)


def test_sync_batch_norm_conversion_keeps_weights_and_their_order():
    network = create(SMALL, num_classes=3)
    average = EMA(network, 0.5)
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    convert_sync_batch_norm(network, World(size=2))
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before
    with torch.no_grad():
        network.stem.norm.running_mean.fill_(1.0)
    average.update(network, step=10**6)
    assert average.network.stem.norm.running_mean.unique().tolist() == [0.5]
