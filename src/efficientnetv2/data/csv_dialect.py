"""CSV as spreadsheets write it: parted by commas, in much of Europe by semicolons, or by tabs."""

from __future__ import annotations

import csv
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from efficientnetv2.utils.io import write_atomically

_SEPARATORS = ",;\t"
_QUOTED = re.compile(r'"[^"]*"')


def read_header(file: Path) -> tuple[str, list[str]]:
    """What parts the cells of a table, and the names of its columns.

    It is what stands most often between the names in the first row.

    Args:
        file: text in UTF-8, with a byte order mark or without.

    Raises:
        UnicodeDecodeError: it is no such text.
    """
    with open(file, encoding="utf-8-sig") as lines:
        header = lines.readline().rstrip("\r\n")
    separator = max(_SEPARATORS, key=_QUOTED.sub("", header).count)
    return separator, next(csv.reader([header], delimiter=separator), [])


def read_cells(file: Path) -> pd.DataFrame:
    """A table whose cells are all text, '' where one is empty.

    Args:
        file: as for ``read_header``.

    Returns:
        Its rows but the blank ones, indexed by their numbers in the file, whose header is row 1.

    Raises:
        ValueError: it is no such text, it is empty, or a row has more cells than there are names.
    """
    separator, _ = read_header(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            table = pd.read_csv(
                file, sep=separator, encoding="utf-8-sig", dtype=str, index_col=False, keep_default_na=False,
                skip_blank_lines=False, skipinitialspace=True,
            )  # fmt: skip
        except pd.errors.ParserWarning as error:
            raise ValueError(str(error).strip()) from error
    table.index = pd.Index(np.arange(2, len(table) + 2))
    return table[(table != "").any(axis=1)]


def write_table(file: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all, with plain line ends.

    Args:
        file: as for ``write_atomically``.
        table: its index is left out.

    Raises:
        OSError: it can't be written.
    """
    # Python's writer leaves a lone carriage return as it is, which every reader takes for the end of a line.
    cells = [table[name] for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    texts = [pd.Series(table.columns), *cells]
    ends = any(text.astype("string").str.contains("\r", regex=False).any() for text in texts)
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if ends else csv.QUOTE_MINIMAL
    write_atomically(
        file, lambda partial: table.to_csv(partial, index=False, lineterminator="\n", quoting=quoting)
    )


def find_column(cells: Iterable[str], names: Sequence[str]) -> list[str]:
    """Cells in the spelling of the names that they read like.

    An "ä" may be one letter or two (NFC, NFD), according to the system that a table was written on, and look the same.

    Args:
        cells: of a table.
        names: all different.

    Returns:
        As many; a cell that is a name itself, or reads like none of them or like several, as it is.
    """
    alike = Counter(map(_composed, names))
    spelt = {_composed(name): name for name in names if alike[_composed(name)] == 1}
    exact = set(names)
    return [cell if cell in exact else spelt.get(_composed(cell), cell) for cell in cells]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
