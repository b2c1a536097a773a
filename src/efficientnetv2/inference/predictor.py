"""From a file to a label: a model file and anything that is a picture.

>>> Predictor("runs/demo")(["forest.jpg"])[0].label  # doctest: +SKIP
'forest'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from efficientnetv2.base.answer import probabilities
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import RGB, Bands
from efficientnetv2.data import tiffs
from efficientnetv2.data.decode import eval_picture
from efficientnetv2.data.fitting import deep, elsewhere_deep, lacking, otherwise_stored, too_deep
from efficientnetv2.data.pictures import UnreadablePicture, is_deep
from efficientnetv2.data.raster import levels
from efficientnetv2.data.raster_files import ordinary_rule
from efficientnetv2.data.rasters import ordinary
from efficientnetv2.data.rasters import picture as raster_picture
from efficientnetv2.data.tiffs import is_raster
from efficientnetv2.inference.predict import check_classes, check_reads_files, predict
from efficientnetv2.metrics.several import applied
from efficientnetv2.models import modelfile
from efficientnetv2.models.network import Network

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """What a picture is taken for.

    Args:
        label: the most probable class.
        probability: of that class, 0 to 1.
        probabilities: of every class, in the model's order; they sum to 1 unless the model answers each class by
            itself (``sigmoid``, see ``base.answer``).
        labels: of a model that answers each class by itself all that the picture is given, the most probable first,
            maybe none (``metrics.several.applied``); of others ``label`` alone.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...]


class Predictor:
    """Answers for pictures of any kind; size, framing and normalisation are the model file's affair.

    Args:
        model: a model file, a run folder, or a network; without ``class_names`` its
            labels are the numbers of its outputs, from 0.
        device: to compute on.
        batch_images: how many pictures to compute at a time, ≥ 1.

    Raises:
        InputError: the model file can't be read, has no classes, or takes other channels than files have; or less than
            one picture at a time.
    """

    def __init__(
        self,
        model: str | Path | Network,
        *,
        device: str | torch.device = "cpu",
        batch_images: int = 32,
    ) -> None:
        if batch_images < 1:
            raise InputError(f"batch_images is {batch_images}, but is 1 or more.")
        self.network = model if isinstance(model, Network) else modelfile.load(model)
        file = None if isinstance(model, Network) else model
        check_classes(self.network, file)
        check_reads_files(self.network, file)
        self.device, self.batch_images = torch.device(device), batch_images

    def __call__(self, pictures: Picture | Sequence[Picture]) -> list[Prediction]:
        """A prediction for each picture, in order; for one picture, a list of one.

        Args:
            pictures: one of, or a sequence of: a path, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4)
                of uint8. An array of four dimensions is a sequence of pictures. A model that learnt rasters by a rule
                takes their paths, and arrays (H, W, bands) of the values that a raster holds. Of three bands uint8 is
                an ordinary picture, unless rasters of 8 bits trained beside deeper ones. A model that sees the first
                band alone takes PIL images of 16 or 32 bits too. In arrays and images what is not finite is missing:
                they do not say which other value is none.

        Raises:
            InputError: a picture that can't be read, or is of none of these kinds; or the network answers with NaN.
        """
        if isinstance(pictures, np.ndarray):
            pictures = list(pictures) if pictures.ndim == 4 else [pictures]
        elif isinstance(pictures, (str, Path, Image.Image)):
            pictures = [pictures]
        network = self.network
        names = network.class_names or tuple(str(number) for number in range(network.num_classes))
        preprocessing = self.network.preprocessing
        logits = predict(
            self.network, self._batches(pictures), preprocessing=preprocessing, device=self.device
        )
        return [self._prediction(names, row) for row in probabilities(logits, network.answer)]

    def _prediction(self, names: Sequence[str], row: Tensor) -> Prediction:
        best, shares = names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True))
        given: tuple[str, ...] = (best,)
        if self.network.answer == "sigmoid":
            mine = applied(row[None].numpy(), self.network.answer)[0]
            order = row.argsort(descending=True, stable=True).tolist()
            given = tuple(names[place] for place in order if mine[place])
        return Prediction(best, float(row.max()), shares, given)

    def _batches(self, pictures: Sequence[Picture]) -> Iterator[Tensor]:
        for start in range(0, len(pictures), self.batch_images):
            chunk = pictures[start : start + self.batch_images]
            arrays = [self._prepared(picture, start + place) for place, picture in enumerate(chunk)]
            yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    def _prepared(self, picture: Picture, place: int) -> npt.NDArray[np.uint8]:
        try:
            preprocessing = self.network.preprocessing
            bands = preprocessing.bands
            if bands is None and isinstance(picture, str | Path):
                bands = ordinary_rule(str(picture))
            if bands is not None and isinstance(picture, str | Path) and is_raster(str(picture)):
                return eval_picture(raster_picture(str(picture), bands), preprocessing)
            if isinstance(picture, Image.Image) and _is_deep(picture, bands):
                return eval_picture(_levels_of_image(picture, bands), preprocessing)
            if bands is not None and (bands.channels != RGB or _holds_values(picture, bands)):
                return eval_picture(_levels_of(picture, bands), preprocessing)
            readable = _readable(picture)
            if bands is not None and deep(bands) and is_deep(readable):
                raise UnreadablePicture(_named(picture), elsewhere_deep(bands))
            return eval_picture(readable, preprocessing)
        except UnreadablePicture as error:
            raise InputError(f"{error} (number {place}, from 0). Leave it out, or give another.") from error


def _is_deep(image: Image.Image, bands: Bands | None) -> bool:
    """Whether an image is a band of values, of which Pillow would keep the upper bits.

    Files of other formats are read so by their paths too, in training as here. Without the extra geo, so are TIFFs
    where the model has no rule (``raster_files.ordinary_rule``).
    """
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return deep and image.format in ("TIFF", None) and (bands is not None or tiffs.readable())


def _holds_values(picture: Picture, bands: Bands) -> bool:
    """Whether an array holds a raster's values, to be read by its rule; else it is an ordinary picture.

    8 bits are values where rasters of them were measured for the rule, beside deeper ones.
    """
    if not isinstance(picture, np.ndarray):
        return False
    measured = deep(bands) and "uint8" in bands.kinds and picture.ndim == 3 and picture.shape[2] == RGB
    return picture.dtype != np.uint8 or measured


def _named(picture: Picture) -> str:
    """The file of a picture, where it has one."""
    if isinstance(picture, str | Path):
        return str(picture)
    return str(getattr(picture, "filename", "") or "the picture")


def _levels_of_image(image: Image.Image, bands: Bands | None) -> npt.NDArray[np.uint8]:
    """An image of one band by its rule, refused as the raster of this band would be."""
    values = np.asarray(image)
    if bands is None:
        fault = too_deep(values.dtype.name)
    elif max(bands.numbers) > 1:
        fault = lacking("1 band", bands)
    else:
        fault = otherwise_stored(values.dtype.name, bands)
    if bands is None or fault:
        raise UnreadablePicture(_named(image), fault)
    return _levels_of(np.stack([values] * bands.channels, axis=2), bands)


def _levels_of(picture: Picture, bands: Bands) -> npt.NDArray[np.uint8]:
    """An array of bands by their rule; all else is refused."""
    if not isinstance(picture, np.ndarray):
        raise UnreadablePicture(_named(picture), ordinary(bands))
    if picture.ndim != 3 or picture.shape[2] != bands.channels or not picture.size:
        raise InputError(
            f"an array {picture.dtype} {picture.shape} is no picture of this model. Give one (H, W, {bands.channels}): "
            f"the values of bands {bands.listed}, as a raster holds them."
        )
    # Of three bands, values of 0 to 1 for those of 0 to 255 are a usual mistake; other arrays are taken at their word.
    if bands.channels == RGB and (fault := otherwise_stored(picture.dtype.name, bands)):
        raise UnreadablePicture("the picture", fault)
    values = picture.transpose(2, 0, 1)
    return levels(values, np.isfinite(values), bands)


def _readable(picture: Picture) -> str | Path | Image.Image:
    if not isinstance(picture, np.ndarray):
        if not isinstance(picture, (str, Path, Image.Image)):
            raise InputError(
                f"a {type(picture).__name__} is no picture. Give a path, a PIL image or a uint8 array "
                "(H, W, 3)."
            )
        return picture
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    if picture.dtype != np.uint8 or not fits or not picture.size:
        raise InputError(
            f"an array {picture.dtype} {picture.shape} is no picture. Give uint8 values 0 to 255 of shape "
            "(H, W, 3), or (H, W) for grey; multiply values in [0, 1] by 255 first."
        )
    return Image.fromarray(picture)
