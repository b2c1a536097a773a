"""The file of ``--costs``: what each mistake costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.data.csv_dialect import match_names, read_cells
from efficientnetv2.metrics.cost_sensitive import ErrorCosts
from efficientnetv2.utils.errors import InputError, did_you_mean, shorten

#: Name of the column that says what it costs to leave a picture to a person.
NO_ANSWER_COLUMN = "no_answer"


def read_cost_matrix(file: Path, class_names: Sequence[str]) -> ErrorCosts:
    """Costs from a CSV: a row for each true class, named in the first column, and a column for each answer.

    A column ``no_answer``, the same in every row, is what it costs to leave a picture to a person.

    Args:
        file: the CSV.
        class_names: that the network knows.

    Raises:
        InputError: there is no such file, a class is missing or unknown, or a cost is no number or below 0.
    """
    if not file.is_file():
        raise InputError(f"--costs {file}: there is no such file. {_how(class_names)}")
    try:
        table = read_cells(file)
    except ValueError as error:
        raise InputError(f"--costs {file} is no CSV ({error}). {_how(class_names)}") from error
    table = table.set_index(table.columns[0])
    known = [*class_names, NO_ANSWER_COLUMN]
    table.index = pd.Index(match_names(table.index.astype(str).str.strip(), class_names))
    table.columns = pd.Index(match_names(table.columns.astype(str).str.strip(), known))
    for what, names, wanted in (("row", table.index, class_names), ("column", table.columns, known)):
        for name in names:
            if name not in wanted:
                raise InputError(
                    f"--costs {file}: {what} '{name}' is no class of the model{did_you_mean(name, wanted)} It knows "
                    f"{shorten(class_names, 10)}."
                )
        lacking = [name for name in class_names if name not in names]
        if lacking:
            raise InputError(f"--costs {file} has no {what} for {shorten(lacking)}. {_how(class_names)}")
        if names.has_duplicates:
            raise InputError(
                f"--costs {file}: {what} {shorten(list(names[names.duplicated()]), 1)} stands there twice. Keep one."
            )
    numbers = table.apply(pd.to_numeric, errors="coerce")
    bad = ~(np.isfinite(numbers) & (numbers >= 0))
    if bad.any(axis=None):
        row, column = (int(place) for place in np.argwhere(bad.to_numpy())[0])
        true, answer, given = list(table.index)[row], list(table.columns)[column], str(table.iat[row, column])
        raise InputError(
            f"--costs {file}: the cost of answering '{answer}' where '{true}' is true is '{given}', but is "
            "a number of at least 0, its decimals behind a point."
        )
    no_answer = None
    if NO_ANSWER_COLUMN in numbers:
        values = numbers[NO_ANSWER_COLUMN].unique()
        if len(values) > 1:
            raise InputError(
                f"--costs {file}: {NO_ANSWER_COLUMN} is {shorten([f'{one:g}' for one in values])}, but a person "
                "costs the same whatever the picture shows. Give one value."
            )
        no_answer = float(values[0])
    order = list(class_names)
    return ErrorCosts(numbers.loc[order, order].to_numpy(dtype=np.float64), no_answer)


def _how(class_names: Sequence[str]) -> str:
    first, second = (*class_names, "b")[:2]
    return (
        f"It is a CSV with a row for each true class and a column for each answer: 'true,{first},{second},...', then "
        f"'{first},0,1,...'; a column {NO_ANSWER_COLUMN} says what leaving a picture to a person costs."
    )
