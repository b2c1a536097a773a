"""Tables that commands write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import write_atomically
from efficientnetv2.inference.predict import Predictions


def write_predictions(
    out: Path, predictions: Predictions, paths: Sequence[str], class_names: Sequence[str]
) -> pd.DataFrame:
    """Write a CSV: path, label, and the probability of each class.

    Args:
        out: the file; its folder must exist.
        predictions: n of them.
        paths: (n,) of the pictures.
        class_names: K names.

    Returns:
        What was written.

    Raises:
        InputError: it can't be written.
    """
    probabilities = predictions.probabilities
    table = pd.DataFrame({"path": list(paths)})
    table["label"] = [class_names[best] for best in probabilities.argmax(axis=1)]
    for column, name in enumerate(class_names):
        # A class may be called "path" or "label" itself.
        table[name if name not in {"path", "label"} else f"probability of {name}"] = probabilities[
            :, column
        ].round(6)
    try:
        write_atomically(out, lambda file: table.to_csv(file, index=False))
    except OSError as error:
        raise InputError(
            f"--out {out}: {error.strerror or error}. Give a file in a folder that exists."
        ) from error
    return table
