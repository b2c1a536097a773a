"""`Predictor`: a model file that predicts paths, bytes, streams, PIL images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from efficientnetv2.data import raster_checks
from efficientnetv2.data.bands import load_raster
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.geotiff import mask_nodata, scale_to_uint8
from efficientnetv2.data.image_io import Source, UnreadableImageError, is_high_bit_depth
from efficientnetv2.data.loader import thread_map
from efficientnetv2.data.raster_checks import (
    bit_depth_fault,
    channels_fault,
    dtype_mismatch,
    is_high_bit_depth_rule,
    is_raster,
    missing_bands_fault,
    not_geotiff_fault,
)
from efficientnetv2.data.readers import default_bands
from efficientnetv2.inference.predict import Engine, PickEngine, embed, predict
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.models.efficientnet import Network, output_names, require_classes, require_image_channels
from efficientnetv2.models.factory import load_classifier
from efficientnetv2.preprocessing import RGB, Bands, Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.probability import probabilities

# A path, the bytes of a file, a binary stream, a PIL image or an array.
ImageInput = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """Prediction for an image.

    Attributes:
        label: The most probable class.
        probability: Probability of ``label``, 0 to 1.
        probabilities: Probability of every class, in the model's order. They sum to 1, except in a multi-label model
            with ``sigmoid``.
        labels: All labels, the most probable first: of a multi-label model with ``sigmoid`` maybe none, of others
            ``label`` alone.
        unknown_score: Cosine distance to the second-nearest validation image, 0 to 2. None if the model stores none.
        is_unknown: Whether the score is above the model's threshold: the image may belong to none of the classes.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    unknown_score: float | None = None
    is_unknown: bool | None = None


class Predictor:
    """Predictions for images of any kind; size, crop mode and normalization come from the model file.

    Example::

        import efficientnetv2 as ev2

        predict = ev2.Predictor("runs/mine")
        predict(["new_photos/0001.jpg"])[0].label
        predict.embed(["new_photos/0001.jpg"]).shape  # (1, embed_dim)

    Args:
        model: A model file, a run (``Run`` or its folder), a name of pretrained weights ("efficientnetv2_s.in1k"), or
            a network (``create``, ``load``).
        device: Device to compute on: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps". The network
            moves to this device and stays there.
        batch_size: Number of images to compute at a time, at least 1.
        engine: What computes: "torch", "onnxruntime", "openvino", "openvino-bf16" (extras), or "auto" for the fastest
            installed one that agrees with PyTorch on the first batch. "openvino-bf16" computes in bfloat16, faster and
            less exactly; "auto" never takes it. Others than "torch" export the network at the first call, which takes
            seconds; later changes of the network do not count. ``embed`` always uses PyTorch.

    Attributes:
        network: The network.
        device: The device it computes on.
        classes: Names of the classes, in the order of the network's outputs. A network without names has the numbers of
            its outputs, from 0.

    Raises:
        InputError: The model file can't be read or downloaded, has no classes, or takes other channels than files have;
            there is no such device; ``batch_size`` is less than 1; or the engine is unknown or does not fit the device.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Network,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        engine: Engine = "torch",
    ) -> None:
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise InputError(f"`batch_size` must be 1 or more, not {batch_size!r}.")
        if not isinstance(model, str | os.PathLike | Network):
            raise InputError(
                f"type {type(model).__name__} is not a model. Give a model file, a run folder or a model; "
                "efficientnetv2.create(module) makes a model of a module."
            )
        self.device, self.batch_size = pick_device(str(device)), batch_size
        if isinstance(model, Network):
            self.network, self._file = model, None
            require_classes(model)
            require_image_channels(model)
        else:
            self._file = os.path.expanduser(os.fspath(model))
            self.network = load_classifier(self._file)
        self._pick_engine: PickEngine | None = None
        if engine != "torch":  # by name: exporters use this package
            engines = import_module("efficientnetv2.exporters.engines")
            self._pick_engine = engines.engine_picker(engine, self.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return output_names(self.network)

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into the network's input; callable on an image."""
        return self.network.preprocessing

    def __repr__(self) -> str:
        model = type(self.network).__name__ if self._file is None else repr(self._file)
        count, px = pluralize(len(self.classes), "class"), self.preprocessing.image_size
        return f"Predictor({model}: {count}, {px} px, device={str(self.device)!r})"

    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> list[Prediction]:
        """Predict each image, in order; a single image gives a list of one.

        Args:
            images: One image or an iterable of images. An image is a path, the bytes of a file, a binary stream, a
                PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4). An array of four dimensions is a batch.
                A model of rasters takes their paths, and arrays (H, W, bands) with the values of the raster, in the
                order of the ``bands`` that it was trained with. A uint8 array of three bands is an ordinary image,
                unless the training set had 8-bit and deeper rasters, or 8-bit rasters with ``nodata``. A model of the
                first band alone also takes PIL images of 16 or 32 bits. In these and in arrays of rasters, values that
                are not finite and the ``nodata`` values of the training count as missing. What a file declares as
                missing is not known there.

        Raises:
            InputError: An image can't be read, or is none of these; the network gives NaN; or, at the first call, the
                engine is not installed, fails or disagrees with PyTorch.
        """
        return self._predict(self._batches(images), self._pick_engine)

    def embed(self, images: ImageInput | Iterable[ImageInput]) -> Tensor:
        """Compute the embedding of each image: what the classifier reads, (N, embed_dim) float32 on the CPU.

        Args:
            images: See ``__call__``.

        Raises:
            InputError: See ``__call__``.
        """
        return embed(self.network, self._batches(images), preprocessing=self.preprocessing, device=self.device)

    def decode(self, image: ImageInput) -> npt.NDArray[np.uint8]:
        """An image as the model sees it, (image_size, image_size, C) uint8. Threads may call it at the same time.

        Args:
            image: One image, see ``__call__``.

        Raises:
            UnreadableImageError: The image can't be read.
            InputError: It is no image.
        """
        return _load(image, self.preprocessing)

    def predict_decoded(
        self, images: Sequence[npt.NDArray[np.uint8]], pick_engine: PickEngine | None = None
    ) -> list[Prediction]:
        """Predict images that ``decode`` has read, as one batch, in order.

        Args:
            images: One image or more.
            pick_engine: What computes; see ``inference.predict.predict``. None: the engine of the predictor.

        Raises:
            InputError: The network gives NaN.
        """
        return self._predict([torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)], pick_engine or self._pick_engine)

    def _predict(self, batches: Iterable[Tensor], pick_engine: PickEngine | None) -> list[Prediction]:
        network, names = self.network, self.classes
        outputs = predict(
            network,
            batches,
            preprocessing=self.preprocessing,
            device=self.device,
            pick_engine=pick_engine,
            unknown=True,
        )
        rows = probabilities(outputs[:, : len(names)], network.activation)
        predictions = [self._prediction(names, row, values) for row, values in zip(rows, rows.tolist(), strict=True)]
        if (detector := network.unknown) is None:
            return predictions
        return [
            replace(prediction, unknown_score=score, is_unknown=score > detector.threshold)
            for prediction, score in zip(predictions, outputs[:, -1].tolist(), strict=True)
        ]

    def _prediction(self, names: Sequence[str], row: Tensor, values: Sequence[float]) -> Prediction:
        best, by_class = int(row.argmax()), dict(zip(names, values, strict=True))
        labels: tuple[str, ...] = (names[best],)
        if self.network.activation == "sigmoid":
            assigned = assigned_labels(row[None].numpy(), self.network.activation)[0]
            order = row.argsort(descending=True, stable=True).tolist()
            labels = tuple(names[index] for index in order if assigned[index])
        return Prediction(names[best], values[best], by_class, labels)

    def _batches(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Tensor]:
        remaining, start = iter(_as_images(images)), 0
        while chunk := [_frame(image) for image in islice(remaining, self.batch_size)]:
            # Threads must not share an image: Pillow reads its file when the image is first used.
            opened = [id(image) for image in chunk if isinstance(image, Image.Image)]
            threads = 1 if len(set(opened)) < len(opened) else min(len(chunk), torch.get_num_threads())
            pixels = thread_map(partial(self._read, chunk, start), len(chunk), threads)
            start += len(chunk)
            yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def _read(self, chunk: Sequence[ImageInput], start: int, index: int) -> npt.NDArray[np.uint8]:
        try:
            return _load(chunk[index], self.preprocessing)
        except UnreadableImageError as error:
            raise InputError(f"{error} (images[{start + index}]). Leave it out.") from error


def preprocess_image(image: ImageInput, preprocessing: Preprocessing) -> Tensor:
    """``Preprocessing.__call__``: an image as (C, image_size, image_size) float32, normalized, on the CPU."""
    try:
        loaded = torch.from_numpy(np.stack([_load(image, preprocessing)])).permute(0, 3, 1, 2)
    except UnreadableImageError as error:
        raise InputError(f"{error}. Give another image.") from error
    return normalize(loaded, mean=preprocessing.mean, std=preprocessing.std)[0].contiguous()


def _as_images(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """A single image as a sequence. A stream is an image, though its lines can be iterated."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image) or _is_stream(images):
        return [images]  # type: ignore[list-item]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise InputError(
            f"type {type(images).__name__} is neither an image nor a sequence of images. Give a list of paths, PIL "
            "images or uint8 arrays (H, W, 3)."
        )
    return images


def _frame(image: ImageInput) -> ImageInput:
    """An image of several frames as it is now: Pillow's iterators give one object for all frames."""
    if not isinstance(image, Image.Image):
        return image
    try:
        if not getattr(image, "is_animated", False):  # of a GIF, this reads the file
            return image
        frame = image.copy()
    except Exception:  # Pillow raises nearly everything; described where the image is decoded
        return image
    frame.format = image.format  # decides how 16 bits are read
    return frame


def _is_stream(image: object) -> bool:
    return callable(getattr(image, "read", None))


def _load(image: ImageInput, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image of any kind as (image_size, image_size, C) levels."""
    bands = preprocessing.bands
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if _is_stream(image):
        content = image.read()  # type: ignore[union-attr]
        if not isinstance(content, bytes):
            kind = type(image).__name__
            raise InputError(f'{kind}.read() must give bytes, not {type(content).__name__}. Open it with mode "rb".')
        image = content
    if isinstance(image, bytes) and raster_checks.is_tiff(image) and (bands is not None or raster_checks.has_gdal()):
        return _load_tiff(image, preprocessing)
    if bands is None and isinstance(image, str | Path):
        bands = default_bands(str(image))
    if bands is not None and isinstance(image, str | Path) and is_raster(str(image)):
        return load_eval_image(load_raster(str(image), bands), preprocessing)
    if isinstance(image, Image.Image) and _is_high_bit_depth_band(image, bands):
        return load_eval_image(_levels_of_pil(image, bands), preprocessing)
    if bands is not None and (bands.channels != RGB or _holds_raster_values(image, bands)):
        return load_eval_image(_levels_of_array(image, bands), preprocessing)
    readable = _readable(image)
    if bands is not None and is_high_bit_depth_rule(bands) and is_high_bit_depth(readable):
        raise UnreadableImageError(_name_of(image), not_geotiff_fault(bands))
    return load_eval_image(readable, preprocessing)


def _load_tiff(content: bytes, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """A TIFF in memory, through a file: GDAL reads rasters from files."""
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.tif"
            path.write_bytes(content)
            return _load(path, preprocessing)
    except UnreadableImageError as error:
        raise UnreadableImageError(_name_of(content), error.reason) from error
    except OSError as error:
        fault = f"needs a temporary folder ({error.strerror or error}): set TMPDIR to one that can be written"
        raise UnreadableImageError(_name_of(content), fault) from error


def _is_high_bit_depth_band(image: Image.Image, bands: Bands | None) -> bool:
    """Whether a PIL image is read as a raster: a single band of 16 or 32 bits, of which Pillow would drop the lower."""
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return deep and image.format in ("TIFF", None) and (bands is not None or raster_checks.has_gdal())


def _holds_raster_values(image: ImageInput, bands: Bands) -> bool:
    """Whether an array holds values of a raster; uint8 RGB only of 8-bit rasters with deeper ones or ``nodata``."""
    if not isinstance(image, np.ndarray):
        return False
    if image.dtype != np.uint8:
        return True
    is_rgb = image.ndim == 3 and image.shape[2] == RGB
    return is_rgb and "uint8" in bands.kinds and (is_high_bit_depth_rule(bands) or bool(bands.nodata))


def _name_of(image: ImageInput) -> str:
    if isinstance(image, str | Path):
        return str(image)
    return str(getattr(image, "filename", "") or "the image")


def _levels_of_pil(image: Image.Image, bands: Bands | None) -> npt.NDArray[np.uint8]:
    """A PIL image of a single band, refused for the reasons that a raster of this band would be."""
    values = np.asarray(image)
    if bands is None:
        fault = bit_depth_fault(values.dtype.name)
    elif max(bands.numbers) > 1:
        fault = missing_bands_fault("1 band", bands)
    else:
        fault = dtype_mismatch(values.dtype.name, bands)
    if bands is None or fault:
        raise UnreadableImageError(_name_of(image), fault)
    return _levels_of_array(np.stack([values] * bands.channels, axis=2), bands)


def _levels_of_array(image: ImageInput, bands: Bands) -> npt.NDArray[np.uint8]:
    """An array (H, W, bands) scaled to uint8; anything else is refused."""
    if not isinstance(image, np.ndarray):
        raise UnreadableImageError(_name_of(image), channels_fault(bands))
    if image.ndim != 3 or image.shape[2] != bands.channels or not image.size:
        raise InputError(
            f"an array {image.dtype} {image.shape} is not an image for this model. Give one (H, W, {bands.channels}): "
            f"the values of bands {bands.listed}, as a raster holds them."
        )
    # As of a file, though floats of other rasters may have their values; RGB values of 0 to 1 are a usual mistake.
    is_checked = bands.channels == RGB or image.dtype == np.uint8
    if is_checked and (fault := dtype_mismatch(image.dtype.name, bands)):
        raise UnreadableImageError("the image", fault)
    values = image.transpose(2, 0, 1)
    return scale_to_uint8(values, mask_nodata(values, np.isfinite(values), bands.nodata), bands)


def _readable(image: ImageInput) -> Source:
    """An ordinary image as ``load_eval_image`` takes it."""
    if not isinstance(image, np.ndarray):
        if not isinstance(image, str | Path | bytes | Image.Image):
            raise InputError(
                f"type {type(image).__name__} is not an image. Give a path, the bytes of a file, a PIL image or a "
                "uint8 array (H, W, 3)."
            )
        return image
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not fits or not image.size:
        raise InputError(
            f"an array {image.dtype} {image.shape} is not an image. Give uint8 of 0 to 255, (H, W, 3) or (H, W)."
        )
    return image if image.shape[2:] == (RGB,) else Image.fromarray(image)
