"""Conversion between logits and probabilities."""

import pytest
import torch

from efficientnetv2.utils.probability import probabilities, to_logits


@pytest.mark.parametrize("answer", ["softmax", "sigmoid"])
def test_logits_and_probabilities_convert_both_ways(answer):
    logits = torch.tensor([[0.0, 2.0, -3.0], [5.0, -5.0, 1.0]])
    expected = probabilities(logits, answer)
    torch.testing.assert_close(probabilities(to_logits(expected, answer), answer), expected)
    sums = expected.sum(dim=1)
    assert torch.allclose(sums, torch.ones(2)) == (answer == "softmax")


def test_probabilities_by_hand():
    logits = torch.tensor([[0.0, 3.0]]).log1p()  # 0 and ln 4
    assert probabilities(logits, "softmax")[0].tolist() == pytest.approx([1 / 5, 4 / 5])
    assert probabilities(logits, "sigmoid")[0].tolist() == pytest.approx([1 / 2, 4 / 5])
    assert to_logits(torch.tensor([[0.5, 0.8]]), "sigmoid")[0].tolist() == pytest.approx([0.0, 1.386294], abs=1e-6)


@pytest.mark.parametrize("answer", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_probabilities_0_and_1_have_finite_logits(answer, kind):
    expected = torch.tensor([[0.0, 1.0]], dtype=kind)
    logits = to_logits(expected, answer)
    assert logits.isfinite().all()
    torch.testing.assert_close(probabilities(logits, answer), expected, atol=1e-6, rtol=0)
