"""Pictures to measure on: some of DATA, or those that come with a clone; and how other libraries open them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands.demo import embedded
from efficientnetv2.commands.source import Source
from efficientnetv2.data.check import check
from efficientnetv2.data.listing import packed
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.readers import Reader


def some_pictures(source: Source | None, *, most: int, least: int, say: Callable[[str], None]) -> Manifest:
    """Training pictures of DATA, spread evenly over it, each looked at.

    Args:
        source: of the pictures; None takes those that come with a clone.
        most: of them.
        least: that are needed.
        say: gets a line for what is found.

    Raises:
        InputError: DATA can't be read, holds too few pictures, or no encoded ones.
    """
    source = source or Source(str(embedded(otherwise="name pictures of your own as DATA")))
    manifest = source.read()
    for note in manifest.notes:
        say(note)
    training = np.flatnonzero(manifest.in_train)
    if len(training):
        training = training[np.linspace(0, len(training) - 1, min(most, len(training))).astype(np.int64)]
    chosen = manifest.select(training)
    if manifest.shards is None and any(packed(chosen.file(row)) for row in range(len(chosen))):
        raise InputError(
            f"{manifest.source}: its pictures are stored as bare pixels, so there is nothing to decode that could be "
            "compared. Name a folder, table or shards of JPEG or PNG files as DATA."
        )
    chosen = chosen.select(check(chosen).readable)
    if len(chosen) < least:
        found = f"{len(chosen)} readable training pictures"
        if len(training) == most:
            found += f" among the {most} that were looked at"
        smaller = ", or take a smaller --batch-images" if least > 1 else ""
        raise InputError(
            f"{manifest.source} has {found}, but {least} are needed at least. Name more pictures as DATA{smaller}."
        )
    say(f"Measured on {len(chosen)} of {len(manifest)} pictures in {manifest.source}.")
    return chosen


def opened(reader: Reader, sample: int) -> Image.Image:
    """A picture as people open it with Pillow, nothing decoded yet.

    Args:
        reader: of the originals.
        sample: position in the manifest.
    """
    source = reader.source(sample)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))


def content(reader: Reader, sample: int) -> bytes:
    """The encoded bytes of a picture.

    Args:
        reader: of the originals.
        sample: position in the manifest.
    """
    source = reader.source(sample)
    return source if isinstance(source, bytes) else Path(str(source)).read_bytes()
