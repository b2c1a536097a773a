"""Batch-norm of several groups in one pass: each as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientnetv2.models.blocks import BatchNorm2d

GROUPS, IMAGES, CHANNELS = 3, 4, 5


def pair(momentum):
    ours, theirs = BatchNorm2d(CHANNELS, epsilon=1e-3), nn.BatchNorm2d(CHANNELS, eps=1e-3)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
        ours.running_mean.normal_()
    theirs.load_state_dict(ours.state_dict())
    ours.momentum = theirs.momentum = momentum
    return ours.train(), theirs.train()


def pictures():
    """Groups that differ widely, so that mixing their statistics would show."""
    torch.manual_seed(0)
    x = torch.randn(GROUPS, IMAGES, CHANNELS, 6, 6) * torch.tensor([1.0, 5.0, 0.2]).view(-1, 1, 1, 1, 1)
    return (x + torch.tensor([0.0, 10.0, -3.0]).view(-1, 1, 1, 1, 1)).flatten(0, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_group_is_normalised_as_pytorch_would_alone(layout):
    ours, theirs = pair(momentum=1.0)
    x = pictures().contiguous(memory_format=layout)
    weights = torch.randn_like(x)
    ours.groups = GROUPS
    together = x.clone().requires_grad_()
    (ours(together) * weights).sum().backward()
    alone = x.clone().requires_grad_()
    parts = [theirs(part) for part in alone.chunk(GROUPS)]
    (torch.cat(parts) * weights).sum().backward()
    torch.testing.assert_close(ours(x), torch.cat([theirs(part) for part in x.chunk(GROUPS)]))
    torch.testing.assert_close(together.grad, alone.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    assert ours(x).is_contiguous(memory_format=layout)


def test_the_running_statistics_move_towards_the_mean_over_the_groups():
    """Momentum 0.25: three quarters of what was there, a quarter of the groups' mean."""
    ours, _ = pair(momentum=0.25)
    x = pictures()
    before_mean, before_variance = ours.running_mean.clone(), ours.running_var.clone()
    ours.groups = GROUPS
    ours(x)
    means = torch.stack([part.mean((0, 2, 3)) for part in x.chunk(GROUPS)])
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in x.chunk(GROUPS)])
    torch.testing.assert_close(ours.running_mean, 0.75 * before_mean + 0.25 * means.mean(0))
    torch.testing.assert_close(ours.running_var, 0.75 * before_variance + 0.25 * variances.mean(0))


def test_in_evaluation_and_with_one_group_it_is_pytorchs_own():
    ours, theirs = pair(momentum=0.1)
    x = pictures()
    assert torch.equal(ours(x), theirs(x))
    ours.groups = GROUPS
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert set(ours.state_dict()) == set(theirs.state_dict())
