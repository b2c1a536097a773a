"""The CSV of ``--costs``: what each error costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.data.csv_dialect import match_names, read_cells
from efficientnetv2.metrics.cost_sensitive import ErrorCosts
from efficientnetv2.utils.errors import InputError, did_you_mean, shorten

_ABSTAIN = "no_answer"  # column of the cost of leaving an image to a person


def read_cost_matrix(file: Path, class_names: Sequence[str]) -> ErrorCosts:
    """Read costs: a row per true class, named in the first column, and a column per predicted class.

    A column ``no_answer``, equal in all rows, is the cost of leaving an image to a person.

    Raises:
        InputError: There is no such file, a class is missing or unknown, or a cost is not a number of at least 0.
    """
    first, second = (*class_names, "b")[:2]
    form = (
        f"It is a CSV with a row for each true class and a column for each predicted class: 'true,{first},{second},"
        f"...', then '{first},0,1,...'; a column {_ABSTAIN} has the cost of leaving an image to a person."
    )
    if not file.is_file():
        raise InputError(f"--costs {file}: there is no such file. {form}")
    try:
        table = read_cells(file)
    except ValueError as error:
        raise InputError(f"--costs {file} is no CSV ({error}). {form}") from error
    table = table.set_index(table.columns[0])
    columns = [*class_names, _ABSTAIN]
    table.index = pd.Index(match_names(table.index.astype(str).str.strip(), class_names))
    table.columns = pd.Index(match_names(table.columns.astype(str).str.strip(), columns))
    for what, names, known in (("row", table.index, class_names), ("column", table.columns, columns)):
        if unknown := [str(name) for name in names if name not in known]:
            raise InputError(
                f"--costs {file}: {what} '{unknown[0]}' is no class of the model{did_you_mean(unknown[0], known)} It "
                f"has {shorten(class_names, 10)}."
            )
        if missing := [name for name in class_names if name not in names]:
            raise InputError(f"--costs {file} has no {what} for {shorten(missing)}. {form}")
        if names.has_duplicates:
            twice = shorten(list(names[names.duplicated()]), 1)
            raise InputError(f"--costs {file}: {what} {twice} is there twice. Keep one.")
    costs = table.apply(pd.to_numeric, errors="coerce")
    invalid = ~(np.isfinite(costs) & (costs >= 0))
    if invalid.any(axis=None):
        row, column = np.argwhere(invalid.to_numpy())[0].tolist()
        raise InputError(
            f"--costs {file}: the cost of predicting '{list(table.columns)[column]}' for '{list(table.index)[row]}' "
            f"is '{table.iat[row, column]!s}'. Give a number of at least 0, with a decimal point."
        )
    abstain = None
    if _ABSTAIN in costs:
        values = costs[_ABSTAIN].unique()
        if len(values) > 1:
            raise InputError(
                f"--costs {file}: {_ABSTAIN} is {shorten([f'{value:g}' for value in values])}, but a person costs the "
                "same for every class. Give one value."
            )
        abstain = float(values[0])
    order = list(class_names)
    return ErrorCosts(costs.loc[order, order].to_numpy(dtype=np.float64), abstain)
