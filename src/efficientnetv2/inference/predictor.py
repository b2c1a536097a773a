"""From a file to a label: a model file and anything that is a picture.

>>> Predictor("runs/demo")(["forest.jpg"])[0].label  # doctest: +SKIP
'forest'
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from efficientnetv2.data import tiff_tags
from efficientnetv2.data.bands import channels_fault, load_raster
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.geotiff import mask_nodata, scale_to_uint8
from efficientnetv2.data.image_io import UnreadableImageError, is_high_bit_depth
from efficientnetv2.data.raster_checks import (
    bit_depth_fault,
    dtype_mismatch,
    is_high_bit_depth_rule,
    missing_bands_fault,
    not_geotiff_fault,
)
from efficientnetv2.data.readers import default_bands
from efficientnetv2.data.tiff_tags import is_raster
from efficientnetv2.inference.predict import embed, predict, require_classes, require_image_channels
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import RGB, Bands, Preprocessing
from efficientnetv2.transforms.normalize import normalise
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.probability import probabilities

# A path, the bytes of a file or a stream of them, a Pillow image, or an array.
ImageInput = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """What a picture is taken for.

    Args:
        label: the most probable class.
        probability: of that class, 0 to 1.
        probabilities: of every class, in the model's order; they sum to 1 unless the model answers each class by
            itself (``sigmoid``, see ``utils.probability``).
        labels: of a model that answers each class by itself all that the picture is given, the most probable first,
            maybe none (``metrics.multilabel.assigned_labels``); of others ``label`` alone.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...]


class Predictor:
    """Predictions for images of any kind; size, framing and normalization come from the model file.

    Example::

        predict = Predictor("runs/mine")
        predict(["a.jpg", "b.jpg"])[0].label
        predict.embed(["a.jpg", "b.jpg"]).shape  # (2, embed_dim)

    Args:
        model: A model file, a run (``Run`` or its folder), or a network (``create``, ``load``).
        device: Device to compute on, as ``--device`` takes it. "auto" takes a GPU where there is one. The network
            moves to this device and stays there.
        batch_images: Number of images to compute at a time, at least 1.

    Attributes:
        network: The network.
        device: The device it computes on.
        classes: Names of the classes, in the order of the network's outputs. A network without names has the numbers of
            its outputs, from 0.

    Raises:
        InputError: The model file can't be read, has no classes, or takes other channels than files have; there is no
            such device; or ``batch_images`` is less than 1.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Network,
        *,
        device: str | torch.device = "auto",
        batch_images: int = 32,
    ) -> None:
        if not isinstance(batch_images, int) or batch_images < 1:
            raise InputError(f"batch_images is {batch_images!r}, but is 1 or more.")
        if not isinstance(model, str | os.PathLike | Network):
            raise InputError(
                f"a {type(model).__name__} is no model. Give a model file, a run folder or a network; "
                "efficientnetv2.create(module) makes a network of a module."
            )
        self.device, self.batch_images = pick_device(str(device)), batch_images
        self.network = model if isinstance(model, Network) else model_file.load(model)
        self._file = None if isinstance(model, Network) else os.fspath(model)
        require_classes(self.network, self._file)
        require_image_channels(self.network, self._file)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        network = self.network
        return network.class_names or tuple(str(number) for number in range(network.num_classes))

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into the network's input; callable on an image."""
        return self.network.preprocessing

    def __repr__(self) -> str:
        """What it predicts, from what, and where."""
        model = type(self.network).__name__ if self._file is None else repr(self._file)
        count, px = count_of(len(self.classes), "class"), self.preprocessing.image_px
        return f"Predictor({model}: {count}, {px} px, device={str(self.device)!r})"

    def __call__(self, pictures: ImageInput | Iterable[ImageInput]) -> list[Prediction]:
        """A prediction for each image, in order; for one image, a list of one.

        Args:
            pictures: One image or an iterable of images. An image is a path, the bytes of a file, a binary stream (an
                open file, an upload of a web form), a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8.
                An array of four dimensions is a sequence of images. A model that learnt rasters by a rule
                takes their paths, and arrays (H, W, bands) of the values that a raster holds. Of three bands uint8 is
                an ordinary picture, unless rasters of 8 bits trained beside deeper ones. A model that sees the first
                band alone takes PIL images of 16 or 32 bits too. In arrays and images what is not finite is missing:
                they do not say which other value is none.

        Raises:
            InputError: An image can't be read, or is of none of these kinds; or the network gives NaN.
        """
        logits = predict(
            self.network, self._batches(pictures), preprocessing=self.preprocessing, device=self.device
        )
        names = self.classes
        return [self._prediction(names, row) for row in probabilities(logits, self.network.answer)]

    def embed(self, pictures: ImageInput | Iterable[ImageInput]) -> Tensor:
        """The embedding of each image, in order: what the classifier reads.

        Args:
            pictures: See ``__call__``.

        Returns:
            (N, embed_dim) float32 on the CPU.

        Raises:
            InputError: See ``__call__``.
        """
        return embed(
            self.network, self._batches(pictures), preprocessing=self.preprocessing, device=self.device
        )

    def _prediction(self, names: Sequence[str], row: Tensor) -> Prediction:
        best, shares = names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True))
        given: tuple[str, ...] = (best,)
        if self.network.answer == "sigmoid":
            mine = assigned_labels(row[None].numpy(), self.network.answer)[0]
            order = row.argsort(descending=True, stable=True).tolist()
            given = tuple(names[place] for place in order if mine[place])
        return Prediction(best, float(row.max()), shares, given)

    def _batches(self, pictures: ImageInput | Iterable[ImageInput]) -> Iterator[Tensor]:
        each, start = iter(_several(pictures)), 0
        while chunk := list(islice(each, self.batch_images)):
            arrays = [self._prepared(picture, start + place) for place, picture in enumerate(chunk)]
            start += len(chunk)
            yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _prepared(self, picture: ImageInput, place: int) -> npt.NDArray[np.uint8]:
        try:
            return _framed(picture, self.preprocessing)
        except UnreadableImageError as error:
            raise InputError(f"{error} (number {place}, from 0). Leave it out, or give another.") from error


def preprocess_image(picture: ImageInput, preprocessing: Preprocessing) -> Tensor:
    """An image as a network takes it: ``Preprocessing.__call__``.

    Args:
        picture: One image, see ``Predictor.__call__``.
        preprocessing: Of the network.

    Returns:
        (C, image_px, image_px) float32, normalized, on the CPU.

    Raises:
        InputError: The image can't be read, or is of no known kind.
    """
    try:
        framed = torch.from_numpy(np.stack([_framed(picture, preprocessing)])).permute(0, 3, 1, 2)
    except UnreadableImageError as error:
        raise InputError(f"{error}. Give another image.") from error
    return normalise(framed, mean=preprocessing.mean, std=preprocessing.std)[0].contiguous()


def _several(pictures: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """One image as a sequence of one. A stream is one image, though its lines can be iterated."""
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, str | Path | bytes | bytearray | memoryview | Image.Image) or _is_stream(
        pictures
    ):
        return [pictures]  # type: ignore[list-item]
    if isinstance(pictures, Mapping) or not isinstance(pictures, Iterable):
        raise InputError(
            f"a {type(pictures).__name__} is no image and no sequence of images. Give a list of paths, PIL images or "
            "uint8 arrays (H, W, 3)."
        )
    return pictures


def _is_stream(picture: object) -> bool:
    return callable(getattr(picture, "read", None))


def _framed(picture: ImageInput, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image of any kind as (image_px, image_px, C) levels."""
    bands = preprocessing.bands
    if isinstance(picture, bytearray | memoryview):
        picture = bytes(picture)
    if _is_stream(picture):
        picture = _content(picture)
    if isinstance(picture, bytes) and tiff_tags.is_tiff(picture):
        return _framed_tiff(picture, preprocessing)
    if bands is None and isinstance(picture, str | Path):
        bands = default_bands(str(picture))
    if bands is not None and isinstance(picture, str | Path) and is_raster(str(picture)):
        return load_eval_image(load_raster(str(picture), bands), preprocessing)
    if isinstance(picture, Image.Image) and _is_deep(picture, bands):
        return load_eval_image(_levels_of_image(picture, bands), preprocessing)
    if bands is not None and (bands.channels != RGB or _holds_values(picture, bands)):
        return load_eval_image(_levels_of(picture, bands), preprocessing)
    readable = _readable(picture)
    if bands is not None and is_high_bit_depth_rule(bands) and is_high_bit_depth(readable):
        raise UnreadableImageError(_named(picture), not_geotiff_fault(bands))
    return load_eval_image(readable, preprocessing)


def _content(stream: object) -> bytes:
    """What a stream holds from where it stands."""
    content = stream.read()  # type: ignore[attr-defined]
    if not isinstance(content, bytes):
        raise InputError(
            f"{type(stream).__name__}.read() gives a {type(content).__name__}, but has to give bytes. Open the file "
            'with mode "rb", or give its bytes.'
        )
    return content


def _framed_tiff(content: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The bytes of a TIFF, read as the file is: it may need a rule for rasters, which reads files alone."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        path.write_bytes(content)
        try:
            return _framed(path, preprocessing)
        except UnreadableImageError as error:
            raise UnreadableImageError(_named(content), error.reason) from error


def _is_deep(image: Image.Image, bands: Bands | None) -> bool:
    """Whether an image is a band of values, of which Pillow would keep the upper bits.

    Files of other formats are read so by their paths too, in training as here. Without the extra geo, so are TIFFs
    where the model has no rule (``data.readers.default_bands``).
    """
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return deep and image.format in ("TIFF", None) and (bands is not None or tiff_tags.has_gdal())


def _holds_values(picture: ImageInput, bands: Bands) -> bool:
    """Whether an array holds a raster's values, to be read by its rule; else it is an ordinary picture.

    8 bits are values where rasters of them were measured for the rule, beside deeper ones.
    """
    if not isinstance(picture, np.ndarray):
        return False
    measured = (
        is_high_bit_depth_rule(bands)
        and "uint8" in bands.kinds
        and picture.ndim == 3
        and picture.shape[2] == RGB
    )
    return picture.dtype != np.uint8 or measured


def _named(picture: ImageInput) -> str:
    """The file of a picture, where it has one."""
    if isinstance(picture, str | Path):
        return str(picture)
    return str(getattr(picture, "filename", "") or "the picture")


def _levels_of_image(image: Image.Image, bands: Bands | None) -> npt.NDArray[np.uint8]:
    """An image of one band by its rule, refused as the raster of this band would be."""
    values = np.asarray(image)
    if bands is None:
        fault = bit_depth_fault(values.dtype.name)
    elif max(bands.numbers) > 1:
        fault = missing_bands_fault("1 band", bands)
    else:
        fault = dtype_mismatch(values.dtype.name, bands)
    if bands is None or fault:
        raise UnreadableImageError(_named(image), fault)
    return _levels_of(np.stack([values] * bands.channels, axis=2), bands)


def _levels_of(picture: ImageInput, bands: Bands) -> npt.NDArray[np.uint8]:
    """An array of bands by their rule; all else is refused."""
    if not isinstance(picture, np.ndarray):
        raise UnreadableImageError(_named(picture), channels_fault(bands))
    if picture.ndim != 3 or picture.shape[2] != bands.channels or not picture.size:
        raise InputError(
            f"an array {picture.dtype} {picture.shape} is no picture of this model. Give one (H, W, {bands.channels}): "
            f"the values of bands {bands.listed}, as a raster holds them."
        )
    # Of three bands, values of 0 to 1 for those of 0 to 255 are a usual mistake; other arrays are taken at their word.
    if bands.channels == RGB and (fault := dtype_mismatch(picture.dtype.name, bands)):
        raise UnreadableImageError("the picture", fault)
    values = picture.transpose(2, 0, 1)
    return scale_to_uint8(values, mask_nodata(values, np.isfinite(values), bands.nodata), bands)


def _readable(picture: ImageInput) -> str | Path | bytes | Image.Image:
    if not isinstance(picture, np.ndarray):
        if not isinstance(picture, str | Path | bytes | Image.Image):
            raise InputError(
                f"a {type(picture).__name__} is no picture. Give a path, the bytes of a file, a PIL image or a uint8 "
                "array (H, W, 3)."
            )
        return picture
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    if picture.dtype != np.uint8 or not fits or not picture.size:
        raise InputError(
            f"an array {picture.dtype} {picture.shape} is no picture. Give uint8 values 0 to 255 of shape "
            "(H, W, 3), or (H, W) for grey; multiply values in [0, 1] by 255 first."
        )
    return Image.fromarray(picture)
