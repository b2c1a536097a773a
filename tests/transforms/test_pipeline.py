"""The whole way of a batch on the device: order, types, reproducibility, channels."""

from dataclasses import replace

import numpy as np
import pydantic
import pytest
import torch
from scipy import stats

from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import StepSettings
from efficientnetv2.transforms import pipeline
from efficientnetv2.transforms.pipeline import AugmentPlan, augment, binary_targets, multi_hot, soft_labels
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

KEY, MIX = Key.of(0), Key.of(0).fold("mix", 3, 0)
STRONG = StepSettings(32, randaugment=10, mixup_alpha=0.2, cutmix_alpha=0.2, cutout=0.5, label_smoothing=0.1)
ALONE = StepSettings(32, randaugment=10, cutout=0.5, label_smoothing=0.1)


def group(count=12, px=32, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, px, px, channels), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(count) % 5


def run(images, labels, setting, ids=None, plan=AugmentPlan(), mix_key=MIX, mean=(0.5,) * 3, std=(0.25,) * 3):  # noqa: B008
    ids = np.arange(len(images)) if ids is None else ids
    preprocessing = Preprocessing(setting.image_size, mean=mean, std=std)
    return augment(images, labels, setting=setting, key=KEY, ids=ids, mix_key=mix_key, plan=plan,
                   preprocessing=preprocessing, num_classes=5)  # fmt: skip


def test_what_comes_out_is_what_a_network_takes():
    out, soft = run(*group(), STRONG)
    assert out.shape == (12, 3, 32, 32)
    assert out.dtype == soft.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(soft.sum(1), torch.ones(12))


def test_with_everything_off_it_only_normalizes():
    images, labels = group()
    plan = AugmentPlan(flip="none")
    out, soft = run(images, labels, StepSettings(32), plan=plan, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)
    assert torch.allclose(out, (images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(soft, torch.eye(5)[labels])


def test_the_same_keys_and_ids_give_the_same_bits_and_the_input_is_left_alone():
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


def test_without_mixing_a_picture_can_be_reproduced_alone():
    images, labels = group()
    together = run(images, labels, ALONE)[0]
    for i in (0, 5, 11):
        assert torch.equal(together[i], run(images[i : i + 1], labels[i : i + 1], ALONE, ids=[i])[0][0])


def test_large_batches_are_worked_on_in_portions_and_come_out_the_same(monkeypatch):
    images, labels = group()
    together = run(images, labels, STRONG)[0]
    monkeypatch.setattr(pipeline, "_PORTION_BYTES", 5 * images[0].numel() + 1)
    assert [part.stop - part.start for part in pipeline.cache_sized_slices(images)] == [5, 5, 5]
    assert torch.equal(run(images, labels, STRONG)[0], together)


def test_each_switch_changes_the_pictures():
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


def test_label_smoothing_is_shared_by_all_classes():
    """0.1 over 5 classes: 0.9 + 0.02 for the true one."""
    soft = soft_labels(multi_hot(torch.tensor([2]), 5), 0.1)
    assert soft[0].tolist() == pytest.approx([0.02, 0.02, 0.92, 0.02, 0.02])


def test_several_labels_share_the_target():
    """arXiv:2104.00298, section 5.2: normalized to sum 1. Smoothed: 0.9 / 3 + 0.02 for each true one."""
    labels = torch.tensor([[0, 3, 4], [2, -1, -1], [1, 0, -1]])
    soft = soft_labels(multi_hot(labels, 5), 0.0)
    third = 1 / 3
    assert soft[0].tolist() == pytest.approx([third, 0, 0, third, third])
    assert soft[1:].tolist() == [[0, 0, 1, 0, 0], [0.5, 0.5, 0, 0, 0]]
    assert soft_labels(multi_hot(labels, 5), 0.1)[0].tolist() == pytest.approx([0.32, 0.02, 0.02, 0.32, 0.32])
    assert torch.equal(multi_hot(labels[:, 0], 5), multi_hot(labels[:, :1], 5))


def test_mixed_pictures_of_multilabel_count_them_before_they_are_normalized():
    """As released: w of a picture of one label and 1 - w of one of three make w / (w + 3 (1 - w)) for the one."""
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


def test_where_the_hole_is_has_nothing_to_do_with_the_flip():
    """Pictures with a white left edge and holes of half the side: a 2 x 2 table, by chi-square."""
    images = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    images[..., :1] = 255
    out = run(images, torch.zeros(400, dtype=torch.long), StepSettings(32, cutout=0.5))[0][:, 0]
    mirrored = out[:, :, 0].sum(1) < out[:, :, -1].sum(1)
    holes = (out[:, :, 2:-2] != out.min()).float().sum(2)  # per row
    low = holes[:, 16:].sum(1) > holes[:, :16].sum(1)
    table = [[int((a & b).sum()) for b in (low, ~low)] for a in (mirrored, ~mirrored)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_are_flipped_erased_mixed_and_randaugmented(channels):
    images, labels = group(channels=channels)
    fitting = {
        "plan": AugmentPlan(flip="d4", color=0.2),
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
    }
    out = run(images, labels, StepSettings(32, cutout=0.5, mixup_alpha=0.2, randaugment=5), **fitting)[0]
    assert out.shape == (12, channels, 32, 32)


def test_a_mean_for_other_channels_is_refused():
    with pytest.raises(InputError, match="4 channels"):
        run(*group(channels=4), StepSettings(32))


@pytest.mark.parametrize(
    ("field", "value"), [("randaugment_layers", 0), ("color", 1.5), ("flip", "vertical"), ("blur", 1)]
)
def test_impossible_plans_are_refused(field, value):
    with pytest.raises(pydantic.ValidationError, match=field):
        AugmentPlan(**{field: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_cpu_does():
    images, labels = group(48, px=64)
    setting = StepSettings(
        64, randaugment=10, mixup_alpha=0.2, cutmix_alpha=0.2, cutout=0.5, label_smoothing=0.1
    )
    here, there = run(images, labels, setting), run(images.cuda(), labels.cuda(), setting)
    assert torch.allclose(here[1], there[1].cpu(), atol=1e-6)
    # A gray level may round otherwise, and a nearest neighbor be the other one, in few places.
    different = (here[0] - there[0].cpu()).abs() > 1.5 / (255 * 0.25)
    assert float(different.float().mean()) < 0.005


def test_yes_or_no_has_each_label_whole_and_is_smoothed_towards_a_half():
    """0.1: 1 becomes 0.95, 0 becomes 0.05, and so many labels there are so many of the one."""
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


def test_mixed_pictures_are_of_each_class_as_much_as_of_each_other():
    """w of a picture of 0 and 3, 1 - w of one of 1 and 3: all of 3, and no class beyond 0 to 1."""
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
