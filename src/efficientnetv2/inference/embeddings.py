"""Files of embeddings (Parquet: path, embedding), and the images in them that are nearest to others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically

_COLUMNS = ["path", "embedding"]
# Similarities in memory at a time, 64 MB. Ours.
_AT_ONCE = 2**24


def write_embeddings(file: Path, paths: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """Write a row per image: its path and its (d,) embedding. Raises InputError if the file can't be written."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"path": pa.array(paths, pa.string()), "embedding": values})
    try:
        write_atomically(file, lambda partial: pq.write_table(table, partial))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}. Give a file elsewhere as `embeddings`.") from error


def is_embeddings_file(file: Path) -> bool:
    """Whether a file is what ``write_embeddings`` writes, by its columns and their types."""
    try:
        schema = pq.read_schema(file)
        return bool(schema.names == _COLUMNS and pa.types.is_fixed_size_list(schema.field("embedding").type))
    except (OSError, pa.ArrowException):
        return False


def nearest_images(embeddings: str | os.PathLike[str], queries: npt.ArrayLike, *, k: int = 5) -> pd.DataFrame:
    """Find the images whose embeddings have the highest cosine similarity to each query.

    Example::

        import efficientnetv2 as ev2

        ev2.predict("runs/mine", "new_photos/", embeddings="embeddings.parquet")
        queries = ev2.Predictor("runs/mine").embed(["new_photos/0001.jpg"])
        print(ev2.nearest_images("embeddings.parquet", queries, k=3))

    Args:
        embeddings: A file of ``predict(..., embeddings=...)``.
        queries: Embeddings of the same model, (n, d) or (d,), as ``Predictor.embed`` gives them.
        k: Number of images per query. A file with fewer images gives all.

    Returns:
        Rows with the number of the query (from 0), the path and the similarity (-1 to 1), the nearest first.

    Raises:
        InputError: ``embeddings`` is not such a file, or the queries have another width.
    """
    if not is_embeddings_file(file := Path(os.path.expanduser(embeddings))):
        write = "effnetv2 predict MODEL IMAGES --embeddings NEW.parquet"
        raise InputError(f"{file} is not a file of embeddings. Write one: {write}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"`k` must be 1 or more, not {k!r}.")
    table = pq.read_table(file).combine_chunks()
    column = table["embedding"].combine_chunks()
    vectors, wanted = column.flatten().to_numpy().reshape(-1, column.type.list_size), np.atleast_2d(np.asarray(queries))
    if wanted.ndim != 2 or wanted.shape[1] != vectors.shape[1]:
        raise InputError(
            f"`queries` have the shape {wanted.shape}, but {file} has embeddings of {vectors.shape[1]} numbers. Use "
            "the same model for both."
        )
    units, wanted = _unit(vectors), _unit(wanted)
    rows, found = max(1, _AT_ONCE // max(1, len(units))), []
    for start in range(0, max(1, len(wanted)), rows):  # once without queries
        similarity = wanted[start : start + rows] @ units.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        found.append((nearest, np.take_along_axis(similarity, nearest, axis=1)))
    places, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pd.DataFrame(
        {
            "query": np.repeat(np.arange(len(places)), places.shape[1]),
            "path": table["path"].to_numpy()[places.ravel()],
            "similarity": values.ravel().round(6),
        }
    )


def _unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The vectors with length 1, in float32; a zero vector stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: npt.NDArray[np.float32] = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return units
