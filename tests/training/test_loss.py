"""The loss of classes that are answered each by itself, worked by hand and beside torch's own."""

import math

import pytest
import torch
from torch.nn import functional

from efficientnetv2.training.losses import binary_cross_entropy, cross_entropy


def test_two_pictures_by_hand():
    """At logit 0 a class costs ln 2 whatever its target; at ln 3, probability 3/4, a yes costs ln 4/3 and a no ln 4."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.5]])
    first, second = math.log(2) + math.log(4 / 3), math.log(4) + math.log(2)
    assert float(binary_cross_entropy(logits, targets)) == pytest.approx((first + second) / 2)


def test_it_is_torchs_own_times_the_classes():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 5, generator=generator) * 9, torch.rand(7, 5, generator=generator)
    own = functional.binary_cross_entropy_with_logits(logits, targets)
    assert float(binary_cross_entropy(logits, targets)) == pytest.approx(5 * float(own))
    assert binary_cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 200])
def test_a_class_that_is_wrong_pulls_as_hard_as_in_cross_entropy_however_many_there_are(classes):
    logits = torch.full((1, classes), -20.0)
    logits[0, 1] = 20.0  # sure of the second, but it is of the first
    targets = functional.one_hot(torch.tensor([0]), classes).float()
    pulls = []
    for loss in (binary_cross_entropy, cross_entropy):
        there = logits.clone().requires_grad_()
        loss(there, targets).backward()
        pulls.append(there.grad[0, :2])
    torch.testing.assert_close(pulls[0], pulls[1])
    assert pulls[0].tolist() == pytest.approx([-1, 1])
