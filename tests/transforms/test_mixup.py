"""Mixup and cutmix: labels say what the pictures show."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.messages import mentioning

from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms.mixup import cutmix, mix, mixup
from efficientnetv2.utils.rng import Key

KEY = Key.of(0)


def constant_pictures(count, px=16, channels=3):
    """Picture i is i + 1 everywhere and of class i: what a mix contains can be read off."""
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, channels, px, px)
    return images.contiguous(memory_format=torch.channels_last), torch.eye(count)


def own_share(images, count):
    """How much of itself each picture holds, from the pixels: its partner is the group reversed."""
    own, partner = torch.arange(1.0, count + 1), torch.arange(float(count), 0, -1)
    return (images.mean((1, 2, 3)) - partner) / (own - partner)


@pytest.mark.parametrize("operation", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [1e-4, 0.2, 1.0, 5.0])
def test_the_label_is_the_share_of_the_picture(operation, alpha):
    images, labels = constant_pictures(10)
    mixed, soft = operation(images, labels, alpha=alpha, key=KEY)
    shares = own_share(mixed, 10)
    assert soft.diag() == pytest.approx(shares, abs=1e-5)
    assert soft.flip(1).diag() == pytest.approx(1 - shares, abs=1e-5)
    assert soft.sum(1) == pytest.approx(torch.ones(10))


@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0.01, 10))
def test_rows_of_labels_sum_to_one_whatever_is_mixed(seed, count, alpha):
    images, labels = constant_pictures(count, px=6)
    setting = StepSettings(6, mixup_alpha=alpha, cutmix_alpha=alpha)
    mixed, soft = mix(images, labels, setting, Key.of(seed))
    assert torch.allclose(soft.sum(1), torch.ones(count))
    assert float(mixed.min()) >= 1 - 1e-5
    assert float(mixed.max()) <= count + 1e-4


def test_mixup_weights_are_folded_beta():
    """max(w, 1 - w) of w from Beta(0.4, 0.4): by Kolmogorov-Smirnov."""
    images, labels = constant_pictures(2000, px=1, channels=1)
    soft = mixup(images, labels, alpha=0.4, key=KEY)[1]
    weights = soft.diag().double().numpy()
    assert weights.min() >= 0.5
    beta = stats.beta(0.4, 0.4)
    assert stats.kstest(weights, lambda w: np.clip(2 * beta.cdf(w) - 1, 0, 1)).pvalue > 1e-3


def test_cutmix_pastes_one_box_of_the_pictures_shape():
    images, labels = constant_pictures(64, px=40)
    mixed = cutmix(images, labels, alpha=1.0, key=KEY)[0]
    own = torch.arange(1.0, 65)[:, None, None]
    pasted = mixed[:, 0] != own
    assert bool((mixed[:, 0][pasted] == (65 - own).expand(64, 40, 40)[pasted]).all())
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    for edges in (rows, columns):
        assert bool(((edges[:, 1:] & ~edges[:, :-1]).sum(1) + edges[:, 0] <= 1).all())  # one run each
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & pasted.any((1, 2))
    assert int(inside.sum()) > 5
    assert torch.equal(rows[inside].sum(1), columns[inside].sum(1))


def test_boxes_that_fit_have_one_minus_the_weight_of_the_area():
    """Over wholly inner boxes of 200 px pictures, sides are sqrt(1 - w) within 2 pixels."""
    images, labels = constant_pictures(60, px=200, channels=1)
    weights = KEY.generator().beta(1.0, 1.0, 60)
    pasted = cutmix(images, labels, alpha=1.0, key=KEY)[0][:, 0] != torch.arange(1.0, 61)[:, None, None]
    rows, columns = pasted.any(2), pasted.any(1)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert int(inside.sum()) > 5
    sides = rows.sum(1)[inside].numpy()
    assert np.abs(sides - 200 * np.sqrt(1 - weights[inside.numpy()])).max() <= 2


def test_with_both_on_the_first_half_is_blended_and_the_second_pasted():
    images, labels = constant_pictures(8)
    mixed, soft = mix(images, labels, StepSettings(16, mixup_alpha=1.0, cutmix_alpha=1.0), KEY)
    assert all(len(picture.unique()) == 1 for picture in mixed[:4])  # a blend of constants is constant
    assert any(len(picture.unique()) == 2 for picture in mixed[4:])
    assert float(soft[:4, 4:].abs().sum() + soft[4:, :4].abs().sum()) == 0  # partners stay within the half
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_off_is_untouched_and_one_alone_is_that_one():
    images, labels = constant_pictures(4)
    assert mix(images, labels, StepSettings(16), KEY)[0] is images
    only_mixup = mix(images, labels, StepSettings(16, mixup_alpha=0.5), KEY)
    assert torch.equal(only_mixup[0], mixup(images, labels, alpha=0.5, key=KEY.fold("mixup"))[0])
    only_cutmix = mix(images, labels, StepSettings(16, cutmix_alpha=0.5), KEY)
    assert torch.equal(only_cutmix[1], cutmix(images, labels, alpha=0.5, key=KEY.fold("cutmix"))[1])


@pytest.mark.parametrize("operation", [mixup, cutmix])
def test_the_same_key_gives_the_same_mix_and_another_another(operation):
    images, labels = constant_pictures(6)
    first, again = (operation(images, labels, alpha=1.0, key=KEY)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, operation(images, labels, alpha=1.0, key=Key.of(1))[0])


@pytest.mark.parametrize("operation", [mixup, cutmix])
def test_wrong_use_is_refused(operation):
    images, labels = constant_pictures(4)
    with pytest.raises(ValueError, match="alpha is 0"):
        operation(images, labels, alpha=0.0, key=KEY)
    with pytest.raises(ValueError, match=mentioning("4", "3", "label")):
        operation(images, labels[:3], alpha=0.2, key=KEY)
