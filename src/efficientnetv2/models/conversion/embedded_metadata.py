"""What a model file says beside its weights, carried in the files of others and read back.

A file of Keras cannot say how a picture is framed, one of tensors not even what a class is called. So ``convert``
writes a model file's whole header into each file that it makes for others, where they do not look: among the
metadata of safetensors, in the ``_metadata`` of a state dict, in Keras' ``metadata.json`` or as a small data set of
HDF5. Whoever saves such a network again leaves it out, so that it is never older than its weights.
"""

from __future__ import annotations

from math import isclose
from pathlib import Path
from typing import Any

from efficientnetv2.models import model_card, model_file
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_card import CARRIED, Header
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError

_TOLERANCE = 1e-5  # relative, of what Keras keeps as 32-bit floats. Ours


def text_of(network: EfficientNet) -> str:
    """The text to write under ``header.CARRIED``.

    Args:
        network: without class names it gets the numbers of its outputs, from 0.

    Raises:
        InputError: its names, channels, recipe or metrics do not fit together.
    """
    numbers = tuple(str(number) for number in range(network.num_classes))
    return model_file.header_of(
        network,
        preprocessing=network.preprocessing,
        class_names=network.class_names or numbers,
        recipe=network.recipe,
        metrics=network.metrics,
    ).text()


def parse(path: Path, text: Any) -> Header | None:
    """What lies under ``header.CARRIED``; None for None.

    Raises:
        InputError: it is damaged, or written by a newer version of this package.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(f"{path}: the metadata '{CARRIED}' is damaged (it is no text). Save the file again.")
    return model_card.parse(path, text, CARRIED)[0]


def contradictions(carried: Header, stated: Preprocessing, fields: tuple[str, ...]) -> dict[str, str]:
    """Fields of the preprocessing that the file itself states otherwise.

    Args:
        carried: what this package wrote.
        stated: by the file in its own way, as far as that can say it: timm in whole pixels, Keras in short floats.
        fields: of ``stated``, which the file really states.

    Returns:
        By their names both values, in words.
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
