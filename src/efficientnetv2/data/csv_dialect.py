"""Read and write CSV as spreadsheets do: separated by commas, semicolons (in much of Europe) or tabs."""

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
    """Separator and column names of a table. The separator is the commonest in the first row.

    The file is UTF-8, with or without a byte order mark. Raises UnicodeDecodeError.
    """
    with open(file, encoding="utf-8-sig") as lines:
        header = lines.readline().rstrip("\r\n")
    separator = max(_SEPARATORS, key=_QUOTED.sub("", header).count)
    return separator, next(csv.reader([header], delimiter=separator), [])


def read_cells(file: Path) -> pd.DataFrame:
    """The rows of a table as text, '' for empty cells, without blank rows. The index is the row number in the file.

    Raises ValueError if the file is not UTF-8, empty, or has rows with more cells than names.
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
    """Write a table as CSV, atomically, without its index. Raises OSError."""
    # Python's writer does not quote a carriage return, which readers take for the end of a line.
    cells = [table[name] for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    texts = [pd.Series(table.columns), *cells]
    ends = any(text.astype("string").str.contains("\r", regex=False).any() for text in texts)
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if ends else csv.QUOTE_MINIMAL
    write_atomically(file, lambda partial: table.to_csv(partial, index=False, lineterminator="\n", quoting=quoting))


def match_names(cells: Iterable[str], names: Sequence[str]) -> list[str]:
    """Cells in the spelling of the distinct names that look the same.

    An "ä" may be one letter or two (NFC, NFD), depending on the system. Cells that are a name, or look like none or
    several, stay.
    """

    def composed(text: str) -> str:
        return unicodedata.normalize("NFC", text.strip())

    alike = Counter(map(composed, names))
    spelled = {composed(name): name for name in names if alike[composed(name)] == 1}
    exact = set(names)
    return [cell if cell in exact else spelled.get(composed(cell), cell) for cell in cells]
