"""Invalid preprocessing is refused, in Python and from a file."""

from dataclasses import replace

import pytest
from pydantic import ValidationError
from tests.messages import mentioning

from efficientnetv2.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value", "facts"),
    [
        ("image_size", 0, ("at least 1 pixel",)),
        ("crop_pct", 0.0, ("0", "1")),
        ("crop_pct", 1.01, ("0", "1")),
        ("crop_pct", NAN, ("0", "1")),
        ("mean", (), ("()", "finite", "per channel")),
        ("mean", (0.5, NAN, 0.5), ("finite",)),
        ("mean", (0.5, INFINITE, 0.5), ("finite",)),
        ("mean", (0.5,), ("1", "3")),
        ("std", (0.2,), ("3", "1")),
        ("std", (), ("()", "above 0", "per channel")),
        ("std", (0.2, 0.0, 0.2), ("above 0",)),
        ("std", (0.2, NAN, 0.2), ("above 0",)),
        ("std", (0.2, INFINITE, 0.2), ("above 0",)),
    ],
)
def test_invalid_preprocessing_is_refused(field, value, facts):
    with pytest.raises(ValidationError, match=mentioning(*facts)):
        Preprocessing(**{"image_size": 224, field: value})
    with pytest.raises(ValidationError, match=mentioning(*facts)):
        replace(Preprocessing(image_size=224), **{field: value})
    with pytest.raises(ValidationError, match=mentioning(*facts)):
        Preprocessing.from_json(Preprocessing(image_size=224).to_json() | {field: value})


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_number_of_channels_can_be_changed(channels):
    preprocessing = Preprocessing(image_size=224, crop_mode="border").with_channels(channels)
    assert preprocessing.channels == channels == len(preprocessing.std)
    if channels == 1:
        assert preprocessing.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    else:
        assert preprocessing.mean == tuple(IMAGENET_MEAN[number % 3] for number in range(channels))
        assert preprocessing.std == tuple(IMAGENET_STD[number % 3] for number in range(channels))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
