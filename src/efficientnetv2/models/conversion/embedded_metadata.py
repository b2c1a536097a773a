"""The header of a model file, embedded in files for other libraries.

A Keras file cannot state how an image is cropped, a file of tensors not even the class names. So ``convert`` writes the
whole header where other libraries do not look: in the metadata of safetensors, in the ``_metadata`` of a state dict, in
Keras' ``metadata.json`` or as a small dataset of HDF5. Whoever saves such a model again drops the header, so it is
never older than its weights.
"""

from __future__ import annotations

from math import isclose
from pathlib import Path
from typing import Any

from efficientnetv2.models import model_card
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_card import CARRIED, Header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

_TOLERANCE = 1e-5  # relative, for values that Keras keeps as 32-bit floats. Ours


def text_of(network: EfficientNet) -> str:
    """The text to embed. Without class names, a model gets the numbers of its outputs."""
    numbers = tuple(str(number) for number in range(network.num_classes))
    return Header.of(
        network,
        preprocessing=network.preprocessing,
        class_names=network.class_names or numbers,
        recipe=network.recipe,
        metrics=network.metrics,
    ).text()


def parse(path: Path, text: Any) -> Header | None:
    """The header in an embedded text; None for None.

    Raises:
        InputError: It is damaged, or written by a newer version of this package.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(f"{path}: the metadata '{CARRIED}' is damaged (it is no text). Save the file again.")
    return model_card.parse(path, text, CARRIED)[0]


def contradictions(carried: Header, stated: Preprocessing, fields: tuple[str, ...]) -> dict[str, str]:
    """The given fields in which an embedded header differs from what the file states, each with both values.

    They are compared as precisely as the file can state them: timm in whole pixels, Keras in 32-bit floats.
    """
    found = {}
    for name in fields:
        ours, theirs = getattr(carried.preprocessing, name), getattr(stated, name)
        if name == "crop_fraction":
            same = round(carried.preprocessing.image_px / ours) == round(stated.image_px / theirs)
        elif name in ("mean", "std"):
            same = len(ours) == len(theirs) and all(
                isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
                for a, b in zip(ours, theirs, strict=True)
            )
        else:
            same = ours == theirs
        if not same:
            found[name] = f"{name} {theirs}, not {ours}"
    return found
