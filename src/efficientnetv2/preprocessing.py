"""How a picture becomes a network's input, said once and used everywhere.

Training, evaluation, prediction and maps read the same ``Preprocessing``; it travels
inside the model file, so that no caller has to know a mean or a size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.utils.errors import pluralize, short_repr

Framing = Literal["whole", "crop", "pad"]
Views = Literal["one", "symmetries"]

# ImageNet's channel statistics on [0, 1], as the released B0-B3 and V1 networks use them
# (google/automl, efficientnetv2).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Released S, M, L, XL: (x - 128) / 128 on 0..255; as a mean and std on [0, 1].
SYMMETRIC_MEAN = (128 / 255,) * 3
SYMMETRIC_STD = (128 / 255,) * 3

# 4,096 px is where a single image's activations outgrow today's GPUs. The others leave room for any statistics of
# values in [0, 1], and keep the input of a network finite. Ours.
MOST_PX = 4096
_MOST_MEAN = 1_000
_STD = (1e-6, 1e6)

RGB = 3  # channels of an ordinary picture: red, green, blue
# Of each band where nothing else is known: 8-bit values as they are, and the deviation of levels spread evenly.
_PLAIN = {"low": 0.0, "high": 255.0, "missing": 128, "spread": 255 / math.sqrt(12), "names": ""}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Bands:
    """How bands of a raster become the channels of a picture, 0 to 255: one rule for a whole set of pictures.

    Values between ``low`` and ``high`` are spread evenly over 0 to 255; what lies beyond is cut to these ends. Of each
    field but the last three there is one value for each channel; left out, they are those of plain 8-bit values.

    Args:
        numbers: of the bands, from 1, in the order of the channels; one may be taken several times. The first three
            are shown to people as red, green and blue.
        low: value of each that becomes 0.
        high: value of each that becomes 255; above ``low``.
        missing: level, 0 to 255, that stands for each where there is no data: their mean over the training pictures.
        spread: standard deviation of the levels of each, over the training pictures.
        names: what the training pictures call each band; where they call it nothing, red, green or blue if it was
            found as such, else ''.
        picture_m: metres of ground along a side of such a picture; None where that is not known.
        kinds: types that the training pictures were stored as, by numpy's names; the numbers of another mean something
            else. Empty where that is not known, as in model files of earlier versions.
        nodata: Values of any band that mean missing data, besides those that a file declares itself.

    Source: ours.
    """

    numbers: tuple[int, ...]
    low: tuple[float, ...] = Field(default=(), validate_default=True)
    high: tuple[float, ...] = Field(default=(), validate_default=True)
    missing: tuple[int, ...] = Field(default=(), validate_default=True)
    spread: tuple[float, ...] = Field(default=(), validate_default=True)
    names: tuple[str, ...] = Field(default=(), validate_default=True)
    picture_m: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kinds: tuple[str, ...] = ()
    nodata: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()

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

    @field_validator("missing")
    @classmethod
    def _level(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 <= level <= 255 for level in value):
            raise ValueError(f"missing is {value}, but a level lies in 0 to 255")
        return value

    @field_validator("spread")
    @classmethod
    def _deviation(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(math.isfinite(one) and one > 0 for one in value):
            raise ValueError(f"spread is {value}, but a deviation is finite and above 0")
        return value

    @model_validator(mode="after")
    def _ranges(self) -> Bands:
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"values from {low:g} to {high:g} are to become 0 to 255, but the second is to be above the first"
                )
        return self

    @property
    def channels(self) -> int:
        """Of a picture that is read by this rule."""
        return len(self.numbers)

    @property
    def shown(self) -> Bands:
        """The rule by which people see such rasters: of the first three channels; of fewer the first, as grey."""
        chosen = range(RGB) if self.channels >= RGB else (0,) * RGB

        def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[place] for place in chosen)

        return Bands(
            of(self.numbers), of(self.low), of(self.high), of(self.missing), of(self.spread), of(self.names),
            self.picture_m, self.kinds, self.nodata,
        )  # fmt: skip

    @property
    def listed(self) -> str:
        """The bands as a person lists them: ``1 B02, 2 B03``."""
        return ", ".join(
            f"{number} {name}".strip() for number, name in zip(self.numbers, self.names, strict=True)
        )


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Preprocessing:
    """From any picture to a float batch: frame, resize to a square, scale to [0, 1], normalise.

    Call it on an image for the input of the network::

        network = efficientnetv2.load("runs/mine")
        logits = network(network.preprocessing("a.jpg")[None])  # (1, num_classes)

    Args:
        image_px: height and width of the network's input, in pixels.
        framing: ``whole`` squeezes the whole picture into the square (nothing is cut off),
            ``crop`` cuts the centre square, ``pad`` keeps the shape and fills the rest with the mean.
        crop_fraction: with ``crop``, the side of the centre square over the picture's shorter side; with ``whole``
            what is kept of each side, 1 but for some of timm's weights; with ``pad`` it is 1.
        interpolation: of the resize; antialiased.
        mean: per channel, of values in [0, 1]; at least one.
        std: of the same channels, of values in [0, 1]; > 0.
        views: ``one`` looks at the picture as it is; ``symmetries`` at all eight flips and turns of the square, and
            averages the probabilities (for pictures without an upright; eight times the work).
        bands: how a raster (``data.geotiff``) becomes a picture; None where the pictures were ordinary ones.
    """

    image_px: int
    framing: Framing = "whole"
    crop_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    views: Views = "one"
    bands: Bands | None = None

    @field_validator("image_px")
    @classmethod
    def _positive(cls, value: int) -> int:
        if not 1 <= value <= MOST_PX:
            raise ValueError(
                f"image_px is {short_repr(value)}, but is at least 1 pixel and at most {MOST_PX:,}"
            )
        return value

    @field_validator("crop_fraction")
    @classmethod
    def _fraction(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError(f"crop_fraction is {value}, but lies in (0, 1]")
        return value

    @field_validator("mean")
    @classmethod
    def _offset(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(abs(v) <= _MOST_MEAN for v in value):
            raise ValueError(
                f"mean is {short_repr(value)}, but there is at least one channel, and each channel's is finite, from "
                f"-{_MOST_MEAN} to {_MOST_MEAN}"
            )
        return value

    @field_validator("std")
    @classmethod
    def _scale(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        low, high = _STD
        if not all(low <= v <= high for v in value):
            raise ValueError(
                f"std is {short_repr(value)}, but each channel's is finite and above 0, from {low:g} to {high:g}"
            )
        return value

    @model_validator(mode="after")
    def _same_channels(self) -> Preprocessing:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {pluralize(len(self.mean), 'value')} and std {len(self.std)}, but each channel has one "
                "of both"
            )
        if self.bands is not None and self.bands.channels != len(self.mean):
            raise ValueError(
                f"mean has {pluralize(len(self.mean), 'value')}, but pictures are made of "
                f"{pluralize(self.bands.channels, 'band')}"
            )
        return self

    def __call__(self, image: Any) -> Any:
        """An image as the network takes it. ``views`` is not applied: ``Predictor`` does that.

        Args:
            image: A path, the bytes of a file, a binary stream, a PIL image, or an array of uint8; see ``Predictor``.

        Returns:
            A torch tensor (C, image_px, image_px) of float32, normalized, on the CPU.

        Raises:
            InputError: The image can't be read, or is of no known kind.
        """
        # By name, when it is called: architectures use this module, and know nothing of torch or of files.
        return import_module("efficientnetv2.inference.predictor").preprocess_image(image, self)

    @property
    def channels(self) -> int:
        """Channels of the input, one mean and one std each."""
        return len(self.mean)

    def with_channels(self, channels: int) -> Preprocessing:
        """The same for pictures of other channels: mean and std repeat in turn; for one they are averaged.

        A rule for rasters does not fit them any more, and goes.

        Source: ours, beside the rule for weights in ``models.adapt``.
        """
        if channels == self.channels:
            return self
        if channels == 1:
            mean, std = ((sum(values) / len(values),) for values in (self.mean, self.std))
            return replace(self, mean=mean, std=std, bands=None)
        turns = -(-channels // self.channels)
        return replace(
            self, mean=(self.mean * turns)[:channels], std=(self.std * turns)[:channels], bands=None
        )

    def seeing(self, bands: Bands | None) -> Preprocessing:
        """The same for rasters read by a rule, or for ordinary pictures.

        Three channels are seen as red, green and blue, so their mean and std stay those that the weights know. Of any
        other number they are those of the rule, measured on the training pictures.

        Args:
            bands: the rule; None for ordinary pictures, of three channels.
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
        """Checked as if it had been made by hand.

        Raises:
            pydantic.ValidationError: an unknown field or a value out of range.
        """
        return TypeAdapter(cls).validate_python(plain)
