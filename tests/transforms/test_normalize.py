"""Normalizing agrees with torchvision's arithmetic and keeps the memory order."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC_MEAN, SYMMETRIC_STD
from efficientnetv2.transforms.normalize import normalize
from efficientnetv2.utils.errors import InputError


def _images(n: int, channels: int = 3, height: int = 5, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    nhwc = torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)
    return nhwc.permute(0, 3, 1, 2)


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_numbers_are_torchvisions(n, channels_last):
    images = _images(n) if channels_last else _images(n).contiguous()
    ours = normalize(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    theirs = tv.normalize(images.double() / 255, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    assert ours.dtype == torch.float32
    assert ours.shape == images.shape
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def test_released_s_sees_minus_one_to_127_over_128():
    """(x - 128) / 128, as the released S, M, L, XL take it."""
    ends = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    out = normalize(ends, mean=SYMMETRIC_MEAN, std=SYMMETRIC_STD)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([-1.0, 0.0, 127 / 128]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_memory_order_is_kept(channels):
    images = _images(4, channels, height=6, width=6)
    floats = {"mean": [0.5] * channels, "std": [0.2] * channels}
    assert normalize(images, **floats).is_contiguous(memory_format=torch.channels_last)
    assert normalize(images.contiguous(), **floats).is_contiguous()


def test_a_cut_out_of_a_larger_batch_is_not_mixed_up():
    large = _images(2, height=9, width=9)
    cut = large[:, :, 2:7, 1:5]
    expected = normalize(cut.contiguous(), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert torch.equal(normalize(cut, mean=IMAGENET_MEAN, std=IMAGENET_STD), expected)
    assert large.dtype == torch.uint8


def test_each_channel_has_its_own_mean():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    out = normalize(images, mean=(0.1, 0.2, 0.4), std=(0.5, 0.5, 0.8))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-0.2, -0.4, -0.5]))


def test_wrong_channels_and_floats_are_refused():
    with pytest.raises(InputError, match=r"4 channels.*3 means"):
        normalize(_images(1, channels=4), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(TypeError, match="float32"):
        normalize(_images(1).float(), mean=IMAGENET_MEAN, std=IMAGENET_STD)
