"""Augmentation of a batch on the device: order, types, reproducibility, channels, mixing, normalization."""

from dataclasses import replace

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.messages import mentioning
from torchvision.transforms.v2 import functional as tv

from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC_MEAN, SYMMETRIC_STD, Preprocessing
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms import pipeline
from efficientnetv2.transforms.auto_augment import randaugment
from efficientnetv2.transforms.color import color_jitter
from efficientnetv2.transforms.geometric import cutout
from efficientnetv2.transforms.pipeline import (
    AugmentPlan,
    augment,
    binary_targets,
    cutmix,
    mix,
    mixup,
    multi_hot,
    normalize,
    soft_labels,
)
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

KEY, MIX = Key.of(0), Key.of(0).fold("mix", 3, 0)
STRONG = StepSettings(32, randaugment=10, mixup_alpha=0.2, cutmix_alpha=0.2, cutout=0.5, label_smoothing=0.1)
ALONE = StepSettings(32, randaugment=10, cutout=0.5, label_smoothing=0.1)

MIX_KEY = Key.of(0)


def group(count=12, px=32, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, px, px, channels), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(count) % 5


def run(images, labels, setting, ids=None, plan=AugmentPlan(), mix_key=MIX, mean=(0.5,) * 3, std=(0.25,) * 3):  # noqa: B008
    ids = np.arange(len(images)) if ids is None else ids
    preprocessing = Preprocessing(setting.image_size, mean=mean, std=std)
    return augment(images, labels, setting=setting, key=KEY, ids=ids, mix_key=mix_key, plan=plan,
                   preprocessing=preprocessing, num_classes=5)  # fmt: skip


def test_output_has_the_shape_and_type_of_a_model_input():
    out, soft = run(*group(), STRONG)
    assert out.shape == (12, 3, 32, 32)
    assert out.dtype == soft.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(soft.sum(1), torch.ones(12))


def test_without_augmentation_images_are_only_normalized():
    images, labels = group()
    plan = AugmentPlan(flip="none")
    out, soft = run(images, labels, StepSettings(32), plan=plan, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)
    assert torch.allclose(out, (images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(soft, torch.eye(5)[labels])


def test_equal_keys_and_ids_give_equal_bits_and_the_input_is_unchanged():
    images, labels = group()
    before = images.clone()
    first, second = run(images, labels, STRONG), run(images, labels, STRONG)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(images, before)
    next_epoch = run(images, labels, STRONG, ids=np.arange(12) + 2**32)
    assert not torch.equal(first[0], next_epoch[0])
    other_step = run(images, labels, STRONG, mix_key=Key.of(0).fold("mix", 4, 0))
    assert not torch.equal(first[1], other_step[1])


def test_without_mixing_an_image_is_reproducible_alone():
    images, labels = group()
    together = run(images, labels, ALONE)[0]
    for i in (0, 5, 11):
        assert torch.equal(together[i], run(images[i : i + 1], labels[i : i + 1], ALONE, ids=[i])[0][0])


def test_processing_in_slices_gives_the_same_result(monkeypatch):
    images, labels = group()
    together = run(images, labels, STRONG)[0]
    monkeypatch.setattr(pipeline, "_PORTION_BYTES", 5 * images[0].numel() + 1)
    assert [part.stop - part.start for part in pipeline.cache_sized_slices(images)] == [5, 5, 5]
    assert torch.equal(run(images, labels, STRONG)[0], together)


def test_each_augmentation_changes_the_images():
    images, labels = group()
    plain = run(images, labels, StepSettings(32), plan=AugmentPlan(flip="none"))[0]
    plans = [AugmentPlan(), AugmentPlan(flip="d4"), AugmentPlan(flip="none", color=0.4)]
    plans.append(AugmentPlan(flip="none", autoaugment=True))
    settings = [
        StepSettings(32, randaugment=9),
        StepSettings(32, cutout=0.5),
        StepSettings(32, mixup_alpha=1),
        StepSettings(32, cutmix_alpha=1),
    ]
    variants = [run(images, labels, StepSettings(32), plan=plan)[0] for plan in plans]
    variants += [run(images, labels, setting, plan=AugmentPlan(flip="none"))[0] for setting in settings]
    for variant in variants:
        assert not torch.equal(variant, plain)
    for i, variant in enumerate(variants):
        assert not any(torch.equal(variant, other) for other in variants[:i])


def test_label_smoothing_is_spread_over_all_classes():
    """0.1 over 5 classes: 0.9 + 0.02 for the label."""
    soft = soft_labels(multi_hot(torch.tensor([2]), 5), 0.1)
    assert soft[0].tolist() == pytest.approx([0.02, 0.02, 0.92, 0.02, 0.02])


def test_multilabel_targets_sum_to_one():
    """arXiv:2104.00298, section 5.2: normalized to sum 1. Smoothed: 0.9 / 3 + 0.02 for each label."""
    labels = torch.tensor([[0, 3, 4], [2, -1, -1], [1, 0, -1]])
    soft = soft_labels(multi_hot(labels, 5), 0.0)
    third = 1 / 3
    assert soft[0].tolist() == pytest.approx([third, 0, 0, third, third])
    assert soft[1:].tolist() == [[0, 0, 1, 0, 0], [0.5, 0.5, 0, 0, 0]]
    assert soft_labels(multi_hot(labels, 5), 0.1)[0].tolist() == pytest.approx([0.32, 0.02, 0.02, 0.32, 0.32])
    assert torch.equal(multi_hot(labels[:, 0], 5), multi_hot(labels[:, :1], 5))


def test_multilabel_mixing_is_before_normalization():
    """As released: weight w for an image of one label and 1 - w for one of three give w / (w + 3 (1 - w))."""
    images, _ = group(2)
    labels = torch.tensor([[0, -1, -1], [1, 2, 3]])
    _, soft = run(images, labels, StepSettings(32, mixup_alpha=1.0))
    kept = soft[0, 0] / soft[0, 1]  # w : 1 - w
    weight = kept / (1 + kept)
    assert 0.5 <= weight < 1
    assert soft[0].tolist() == pytest.approx(
        [float(one / (weight + 3 * (1 - weight))) for one in (weight, *[1 - weight] * 3)] + [0.0], abs=1e-5
    )
    assert torch.allclose(soft.sum(1), torch.ones(2))


def test_cutout_position_is_independent_of_the_flip():
    """Images with a white left edge and holes of half the side: chi-square test of a 2 x 2 table."""
    images = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    images[..., :1] = 255
    out = run(images, torch.zeros(400, dtype=torch.long), StepSettings(32, cutout=0.5))[0][:, 0]
    mirrored = out[:, :, 0].sum(1) < out[:, :, -1].sum(1)
    holes = (out[:, :, 2:-2] != out.min()).float().sum(2)  # per row
    low = holes[:, 16:].sum(1) > holes[:, :16].sum(1)
    table = [[int((a & b).sum()) for b in (low, ~low)] for a in (mirrored, ~mirrored)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channel_counts_support_flip_cutout_mixing_and_randaugment(channels):
    images, labels = group(channels=channels)
    fitting = {"plan": AugmentPlan(flip="d4", color=0.2), "mean": (0.5,) * channels, "std": (0.25,) * channels}
    out = run(images, labels, StepSettings(32, cutout=0.5, mixup_alpha=0.2, randaugment=5), **fitting)[0]
    assert out.shape == (12, channels, 32, 32)


def test_mean_with_another_number_of_channels_is_rejected():
    with pytest.raises(InputError, match="4 channels"):
        run(*group(channels=4), StepSettings(32))


@pytest.mark.parametrize(
    ("field", "value"), [("randaugment_layers", 0), ("color", 1.5), ("flip", "vertical"), ("blur", 1)]
)
def test_invalid_plans_are_rejected(field, value):
    with pytest.raises(pydantic.ValidationError, match=field):
        AugmentPlan(**{field: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_result_equals_the_cpu_result():
    images, labels = group(48, px=64)
    setting = StepSettings(64, randaugment=10, mixup_alpha=0.2, cutmix_alpha=0.2, cutout=0.5, label_smoothing=0.1)
    here, there = run(images, labels, setting), run(images.cuda(), labels.cuda(), setting)
    assert torch.allclose(here[1], there[1].cpu(), atol=1e-6)
    # In a few places gray levels round differently, or another nearest neighbor is used.
    different = (here[0] - there[0].cpu()).abs() > 1.5 / (255 * 0.25)
    assert float(different.float().mean()) < 0.005


def test_binary_targets_are_1_per_label_and_smoothed_towards_one_half():
    """0.1: 1 becomes 0.95 and 0 becomes 0.05, for any number of labels."""
    hot = multi_hot(torch.tensor([[0, 3, 4], [2, -1, -1]]), 5)
    assert binary_targets(hot, 0.0).tolist() == [[1, 0, 0, 1, 1], [0, 0, 1, 0, 0]]
    assert binary_targets(hot, 0.1)[0].tolist() == pytest.approx([0.95, 0.05, 0.05, 0.95, 0.95])


def each_by_itself(images, labels, setting):
    ids = np.arange(len(images))
    preprocessing, plan = Preprocessing(setting.image_size), AugmentPlan()
    return augment(
        images, labels, setting=setting, key=KEY, ids=ids, mix_key=MIX, plan=plan,
        preprocessing=preprocessing, num_classes=5, targets=binary_targets,
    )[1]  # fmt: skip


def test_mixed_binary_targets_are_at_most_1_per_class():
    """w for labels 0 and 3, 1 - w for labels 1 and 3: class 3 has 1."""
    images, _ = group(2)
    labels = torch.tensor([[0, 3], [1, 3]])
    for setting in (StepSettings(32, mixup_alpha=1.0), StepSettings(32, cutmix_alpha=1.0)):
        _, shares = run(images, labels, setting)
        targets = each_by_itself(images, labels, setting)
        assert torch.allclose(targets, 2 * shares), "the same partner and weight, but not shared"
        weight = float(targets[0, 0])
        assert 0 < weight < 1
        assert targets[0].tolist() == pytest.approx([weight, 1 - weight, 0, 1, 0])
        smoothed = each_by_itself(images, labels, replace(setting, label_smoothing=0.2))
        assert torch.allclose(smoothed, 0.8 * targets + 0.1)


def _images(n: int, channels: int = 3, height: int = 5, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    nhwc = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return nhwc.permute(0, 3, 1, 2)


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("channels_last", [True, False])
def test_normalize_equals_torchvision(n, channels_last):
    images = _images(n) if channels_last else _images(n).contiguous()
    ours = normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    theirs = tv.normalize(images.double() / 255, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    assert ours.dtype == torch.float32
    assert ours.shape == images.shape
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def test_released_preprocessing_of_s_is_from_minus_1_to_127_over_128():
    """(x - 128) / 128, as in the released code for S, M, L and XL."""
    ends = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    out = normalize(ends, mean=SYMMETRIC_MEAN, std=SYMMETRIC_STD)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([-1.0, 0.0, 127 / 128]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_memory_format_is_preserved(channels):
    images = _images(4, channels, height=6, width=6)
    floats = {"mean": [0.5] * channels, "std": [0.2] * channels}
    assert normalize(images, **floats).is_contiguous(memory_format=torch.channels_last)
    assert normalize(images.contiguous(), **floats).is_contiguous()


def test_slice_of_a_larger_batch_is_normalized_correctly():
    large = _images(2, height=9, width=9)
    cut = large[:, :, 2:7, 1:5]
    expected = normalize(cut.contiguous(), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(normalize(cut, mean=IMAGENET_MEAN, std=IMAGENET_STD), expected)
    assert large.dtype == torch.uint8


def test_each_channel_has_its_own_mean():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    out = normalize(images, mean=(0.1, 0.2, 0.4), std=(0.5, 0.5, 0.8))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-0.2, -0.4, -0.5]))


def test_wrong_channels_and_floats_are_rejected():
    with pytest.raises(InputError, match=r"4 channels.*3 means"):
        normalize(_images(1, channels=4), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(TypeError, match="float32"):
        normalize(_images(1).float(), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def constant_pictures(count, px=16, channels=3):
    """Image i has the value i + 1 and class i, so a mix shows its parts."""
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, channels, px, px)
    return images.contiguous(memory_format=torch.channels_last), torch.eye(count)


def own_share(images, count):
    """Weight of each image in its mix, from the pixels. Its partner is at the same place from the end."""
    own, partner = torch.arange(1.0, count + 1), torch.arange(float(count), 0, -1)
    return (images.mean((1, 2, 3)) - partner) / (own - partner)


@pytest.mark.parametrize("operation", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [1e-4, 0.2, 1.0, 5.0])
def test_label_weight_equals_the_weight_of_the_image(operation, alpha):
    images, labels = constant_pictures(10)
    mixed, soft = operation(images, labels, alpha=alpha, key=MIX_KEY)
    shares = own_share(mixed, 10)
    assert soft.diag() == pytest.approx(shares, abs=1e-5)
    assert soft.flip(1).diag() == pytest.approx(1 - shares, abs=1e-5)
    assert soft.sum(1) == pytest.approx(torch.ones(10))


@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0.01, 10))
def test_mixed_labels_sum_to_one(seed, count, alpha):
    images, labels = constant_pictures(count, px=6)
    setting = StepSettings(6, mixup_alpha=alpha, cutmix_alpha=alpha)
    mixed, soft = mix(images, labels, setting, Key.of(seed))
    assert torch.allclose(soft.sum(1), torch.ones(count))
    assert float(mixed.min()) >= 1 - 1e-5
    assert float(mixed.max()) <= count + 1e-4


def test_mixup_weights_are_folded_beta():
    """max(w, 1 - w) for w from Beta(0.4, 0.4): Kolmogorov-Smirnov test."""
    images, labels = constant_pictures(2000, px=1, channels=1)
    soft = mixup(images, labels, alpha=0.4, key=MIX_KEY)[1]
    weights = soft.diag().double().numpy()
    assert weights.min() >= 0.5
    beta = stats.beta(0.4, 0.4)
    assert stats.kstest(weights, lambda w: np.clip(2 * beta.cdf(w) - 1, 0, 1)).pvalue > 1e-3


def test_cutmix_pastes_one_box_in_the_shape_of_the_image():
    images, labels = constant_pictures(64, px=40)
    mixed = cutmix(images, labels, alpha=1.0, key=MIX_KEY)[0]
    own = torch.arange(1.0, 65)[:, None, None]
    pasted = mixed[:, 0] != own
    assert bool((mixed[:, 0][pasted] == (65 - own).expand(64, 40, 40)[pasted]).all())
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    for edges in (rows, columns):
        assert bool(((edges[:, 1:] & ~edges[:, :-1]).sum(1) + edges[:, 0] <= 1).all())  # one interval each
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & pasted.any((1, 2))
    assert int(inside.sum()) > 5
    assert torch.equal(rows[inside].sum(1), columns[inside].sum(1))


def test_complete_cutmix_boxes_have_area_1_minus_the_weight():
    """Boxes inside images of 200 px have sides of sqrt(1 - w), within 2 pixels."""
    images, labels = constant_pictures(60, px=200, channels=1)
    weights = MIX_KEY.generator().beta(1.0, 1.0, 60)
    pasted = cutmix(images, labels, alpha=1.0, key=MIX_KEY)[0][:, 0] != torch.arange(1.0, 61)[:, None, None]
    rows, columns = pasted.any(2), pasted.any(1)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert int(inside.sum()) > 5
    sides = rows.sum(1)[inside].numpy()
    assert np.abs(sides - 200 * np.sqrt(1 - weights[inside.numpy()])).max() <= 2


def test_with_mixup_and_cutmix_each_is_applied_to_half_of_the_batch():
    images, labels = constant_pictures(8)
    mixed, soft = mix(images, labels, StepSettings(16, mixup_alpha=1.0, cutmix_alpha=1.0), MIX_KEY)
    assert all(len(picture.unique()) == 1 for picture in mixed[:4])  # a blend of constant images is constant
    assert any(len(picture.unique()) == 2 for picture in mixed[4:])
    assert float(soft[:4, 4:].abs().sum() + soft[4:, :4].abs().sum()) == 0  # partners are in the same half
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_mix_without_an_alpha_changes_nothing_and_with_one_applies_it():
    images, labels = constant_pictures(4)
    assert mix(images, labels, StepSettings(16), MIX_KEY)[0] is images
    only_mixup = mix(images, labels, StepSettings(16, mixup_alpha=0.5), MIX_KEY)
    assert torch.equal(only_mixup[0], mixup(images, labels, alpha=0.5, key=MIX_KEY.fold("mixup"))[0])
    only_cutmix = mix(images, labels, StepSettings(16, cutmix_alpha=0.5), MIX_KEY)
    assert torch.equal(only_cutmix[1], cutmix(images, labels, alpha=0.5, key=MIX_KEY.fold("cutmix"))[1])


@pytest.mark.parametrize("operation", [mixup, cutmix])
def test_mix_depends_only_on_the_key(operation):
    images, labels = constant_pictures(6)
    first, again = (operation(images, labels, alpha=1.0, key=MIX_KEY)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, operation(images, labels, alpha=1.0, key=Key.of(1))[0])


@pytest.mark.parametrize("operation", [mixup, cutmix])
def test_invalid_mixing_arguments_are_rejected(operation):
    images, labels = constant_pictures(4)
    with pytest.raises(ValueError, match="alpha is 0"):
        operation(images, labels, alpha=0.0, key=MIX_KEY)
    with pytest.raises(ValueError, match=mentioning("4", "3", "label")):
        operation(images, labels[:3], alpha=0.2, key=MIX_KEY)


def test_operations_have_the_arguments_of_plan_and_setting():
    """None of them is the default."""
    (images, _), ids = group(), np.arange(12)
    plan = AugmentPlan(
        flip="none", color=0.3, randaugment_preset="monotone", randaugment_layers=3, randaugment_colors="possible",
        cutout_fill="mean",
    )  # fmt: skip
    changed = pipeline.augment_images(images, StepSettings(32, randaugment=7, cutout=0.4), KEY, ids, plan)
    wanted = color_jitter(images, KEY.fold("colour"), ids, strength=0.3)
    wanted = randaugment(
        wanted, magnitude=7, key=KEY.fold("randaugment"), ids=ids, preset="monotone", layers=3, colors="possible"
    )
    wanted = cutout(wanted, fraction=0.4, key=KEY.fold("cutout"), ids=ids, fill="mean")
    assert torch.equal(changed, wanted)
