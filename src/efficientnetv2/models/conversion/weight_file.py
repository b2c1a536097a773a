"""The contents of another library's weight file, before the model in it is detected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from efficientnetv2.models import model_header
from efficientnetv2.models.conversion.layouts import Source
from efficientnetv2.models.efficientnet import Network, output_names
from efficientnetv2.models.model_header import CARRIED, Header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.probability import Activation


@dataclass(frozen=True, eq=False)
class WeightFile:
    """Tensors under the file's own names, in PyTorch's layout, and what the file states about the model.

    A Keras file cannot state how an image is cropped, a file of tensors not even the class names. So ``convert.write``
    embeds ``header`` where the libraries do not look. They drop it when they save the model again, so it is never older
    than the weights.
    """

    path: Path
    source: Source
    tensors: dict[str, Tensor]
    model: str | None = None  # the library's name
    batch_norm_epsilon: float | None = None
    preprocessing: Preprocessing | None = None
    stated: tuple[str, ...] = ()  # fields of ``preprocessing`` that the file states; the others are as published
    class_names: tuple[str, ...] = ()
    activation: Activation | None = None  # None if the file does not state it
    header: Header | None = None
    notes: tuple[str, ...] = ()  # how the file was read


def header_text(network: Network) -> str:
    """The header to embed. Without class names, a model gets the numbers of its outputs."""
    return Header.of(network, class_names=output_names(network)).text()


def parse_header(path: Path, text: Any) -> Header | None:
    """The header in an embedded text; None for None. Raises InputError if it is damaged or from a newer version."""
    if text is None:
        return None
    if not isinstance(text, str | bytes):
        raise InputError(f"{path}: the metadata '{CARRIED}' is damaged (not text). Save the file again.")
    return model_header.parse(path, text, CARRIED)[0]
