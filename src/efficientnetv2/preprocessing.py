"""From an image to a model's input. A ``Preprocessing`` is part of the model file: no caller needs a mean or a size."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.utils.errors import pluralize, short_repr

CropMode = Literal["squash", "center", "border"]
Interpolation = Literal["bilinear", "bicubic"]
TTA = Literal["none", "d4"]

# ImageNet's channel statistics on [0, 1], as the released B0-B3 and V1 networks use them
# (google/automl, efficientnetv2).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Released S, M, L, XL: (x - 128) / 128 on 0..255; as a mean and std on [0, 1].
SYMMETRIC_MEAN = (128 / 255,) * 3
SYMMETRIC_STD = (128 / 255,) * 3

# 4,096 px is where a single image's activations outgrow today's GPUs. The others leave room for any statistics of
# values in [0, 1], and keep the input of a network finite. Ours.
MAX_IMAGE_SIZE = 4096
_MAX_MEAN, _MIN_STD, _MAX_STD = 1_000, 1e-6, 1e6
_LIMITS: dict[str, tuple[float, float, str]] = {
    "image_size": (1, MAX_IMAGE_SIZE, f"at least 1 pixel and at most {MAX_IMAGE_SIZE:,}"),
    "crop_pct": (math.ulp(0.0), 1, "in (0, 1]"),
    "mean": (-_MAX_MEAN, _MAX_MEAN, f"a finite number per channel, from -{_MAX_MEAN} to {_MAX_MEAN}"),
    "std": (_MIN_STD, _MAX_STD, f"a finite number above 0 per channel, from {_MIN_STD:g} to {_MAX_STD:g}"),
}

RGB = 3  # channels of an ordinary image: red, green, blue
# Of each band where nothing else is known: 8-bit values as they are, and the deviation of levels spread evenly.
_PLAIN = {"low": 0.0, "high": 255.0, "missing": 128, "spread": 255 / math.sqrt(12), "names": ""}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Bands:
    """How the bands of a raster become the channels of an image, 0 to 255: one rule for a whole dataset.

    Values between ``low`` and ``high`` are spread evenly over 0 to 255; values beyond are cut. Fields up to ``names``
    have one value per channel; left out, they are those of plain 8-bit values. Source: ours.
    """

    numbers: tuple[int, ...]  # of the bands, from 1; the first three are shown to people as red, green and blue
    low: tuple[float, ...] = Field(default=(), validate_default=True)  # value that becomes 0
    high: tuple[float, ...] = Field(default=(), validate_default=True)  # value that becomes 255
    # Level, 0 to 255, for missing data: the mean over the training images; and their standard deviation.
    missing: tuple[int, ...] = Field(default=(), validate_default=True)
    spread: tuple[float, ...] = Field(default=(), validate_default=True)
    names: tuple[str, ...] = Field(default=(), validate_default=True)  # of the bands; '' without a name
    ground_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # metres of ground along a side
    kinds: tuple[str, ...] = ()  # numpy's names of the types of the training images; empty if unknown
    nodata: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()  # besides what a file declares itself

    @field_validator("numbers")
    @classmethod
    def _counted_from_one(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError(f"bands are {value}, but there is at least one, and they are counted from 1")
        return value

    @field_validator("low", "high", "missing", "spread", "names")
    @classmethod
    def _one_each(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        count, name = len(info.data.get("numbers", value)), str(info.field_name)
        if value and len(value) != count:
            raise ValueError(f"{name} has {pluralize(len(value), 'value')} for {pluralize(count, 'band')}")
        return value or (_PLAIN[name],) * count

    @model_validator(mode="after")
    def _in_range(self) -> Bands:
        if not all(0 <= level <= 255 for level in self.missing):
            raise ValueError(f"missing is {self.missing}, but must be from 0 to 255")
        if not all(math.isfinite(value) and value > 0 for value in self.spread):
            raise ValueError(f"spread is {self.spread}, but must be finite and above 0")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"low is {low:g} and high {high:g}, but high must be above low")
        return self

    @property
    def channels(self) -> int:
        """Channels of an image that is read by this rule."""
        return len(self.numbers)

    @property
    def shown(self) -> Bands:
        """The rule by which people see such rasters: the first three channels; of fewer the first, as gray."""
        places = range(RGB) if self.channels >= RGB else (0,) * RGB
        per_channel = "numbers", "low", "high", "missing", "spread", "names"
        fields: dict[str, Any] = {name: tuple(getattr(self, name)[place] for place in places) for name in per_channel}
        return replace(self, **fields)

    @property
    def listed(self) -> str:
        """The bands for people: ``1 B02, 2 B03``."""
        return ", ".join(f"{number} {name}".strip() for number, name in zip(self.numbers, self.names, strict=True))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Preprocessing:
    """From any image to a float batch: crop, resize to a square, scale to [0, 1], normalize.

    Example::

        import efficientnetv2 as ev2

        network = ev2.load("runs/mine")
        logits = network(network.preprocessing("new_photos/0001.jpg")[None])  # (1, num_classes)

    Args:
        image_size: Height and width of the input.
        crop_mode: ``squash`` squeezes the whole image into the square, ``center`` cuts the center square, ``border``
            keeps the shape and fills the rest with the mean.
        crop_pct: With ``center``, the side of the center square over the image's shorter side; with ``squash`` the
            fraction of each side that is kept, 1 except for some of timm's weights; with ``border`` it is 1.
        interpolation: Of the resize; antialiased.
        mean: Per channel, for values in [0, 1].
        std: Per channel, for values in [0, 1]; above 0.
        tta: ``none`` predicts on the image as it is; ``d4`` averages the probabilities of all eight flips and
            turns of the square (for images without an upright; eight times the work).
        bands: How a raster (``data.geotiff``) becomes an image; None for ordinary images.

    Raises:
        pydantic.ValidationError: A value outside its range, or mean, std and bands of different lengths.
    """

    image_size: int
    crop_mode: CropMode = "squash"
    crop_pct: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    tta: TTA = "none"
    bands: Bands | None = None

    @field_validator("image_size", "crop_pct", "mean", "std")
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        low, high, rule = _LIMITS[str(info.field_name)]
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(low <= number <= high for number in values):
            raise ValueError(f"{info.field_name} is {short_repr(value)}, but must be {rule}")
        return value

    @model_validator(mode="after")
    def _same_channels(self) -> Preprocessing:
        means = pluralize(len(self.mean), "value")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {means} and std {len(self.std)}, but each channel has one of both")
        if self.bands is not None and self.bands.channels != len(self.mean):
            bands = pluralize(self.bands.channels, "band")
            raise ValueError(f"mean has {means}, but images are made of {bands}")
        return self

    def __call__(self, image: Any) -> Any:
        """A path, bytes, a stream, a PIL image or an array as the model's input (C, image_size, image_size) float32.

        ``tta`` is not applied: ``Predictor`` does that. Raises InputError for what can't be read as an image.
        """
        # By name, when it is called: architectures use this module, and know nothing of torch or of files.
        return import_module("efficientnetv2.inference.predictor").preprocess_image(image, self)

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return len(self.mean)

    def with_channels(self, channels: int) -> Preprocessing:
        """The same for other channels: mean and std repeat in turn, and are averaged for one. ``bands`` is removed.

        Source: ours, as the rule for weights in ``models.adapt``.
        """
        if channels == self.channels:
            return self

        def adapted(values: tuple[float, ...]) -> tuple[float, ...]:
            if channels == 1:
                return (sum(values) / len(values),)
            return tuple(values[channel % len(values)] for channel in range(channels))

        return replace(self, mean=adapted(self.mean), std=adapted(self.std), bands=None)

    def seeing(self, bands: Bands | None) -> Preprocessing:
        """The same for rasters read by a rule, or for ordinary images (None).

        Three channels count as red, green and blue, so mean and std stay those that the weights know. Otherwise they
        are those of the rule, measured on the training images.
        """
        if bands is None or bands.channels == RGB:
            return replace(self.with_channels(RGB), bands=bands)
        mean, std = (tuple(level / 255 for level in levels) for levels in (bands.missing, bands.spread))
        return replace(self, mean=mean, std=std, bands=bands)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` gives an equal ``Preprocessing``."""
        plain: dict[str, Any] = TypeAdapter(Preprocessing).dump_python(self, mode="json")
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Preprocessing:
        """Read plain JSON values. Raises pydantic.ValidationError for an unknown field or a value out of range."""
        return TypeAdapter(cls).validate_python(plain)
