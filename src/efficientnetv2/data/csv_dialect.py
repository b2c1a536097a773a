"""Read and write CSV as spreadsheets do: separated by commas, semicolons (in much of Europe) or tabs."""

from __future__ import annotations

import csv
import io
import itertools
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import write_atomically

_SEPARATORS = ",;\t"
_HEADER_LINES = 100  # at most, so that a quotation mark alone is no header of the whole file
_QUOTED = re.compile(r'"[^"]*"')
_CODE = r"^\s*[+-]?(?:0\d|\d{16})"  # as a number, it loses a leading zero or, beside empty cells, the last digits


def read_header(file: Path) -> tuple[str, list[str]]:
    """Separator and column names of a table. The separator is the commonest in the first row, which may have breaks.

    The file is UTF-8, with or without a byte order mark. Raises UnicodeDecodeError.
    """
    with open(file, encoding="utf-8-sig") as lines:
        header = first = lines.readline()
        is_quoted = header.count('"') % 2
        for line in itertools.islice(lines, _HEADER_LINES if is_quoted else 0):
            header += line
            is_quoted = (is_quoted + line.count('"')) % 2
            if not is_quoted:
                break
    header = (first if is_quoted else header).rstrip("\n")
    separator = max(_SEPARATORS, key=_QUOTED.sub("", header).count)
    return separator, next(csv.reader(io.StringIO(header), delimiter=separator), [])


def csv_names(file: Path) -> tuple[str, list[str]]:
    """Separator and names of the columns of a dataset's table. Raises InputError if there are none."""
    try:
        separator, names = read_header(file)
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8 text. Save it as CSV in UTF-8.") from None
    if not any(names) or names[0] == "sep=":  # some programs write this for Excel
        what = "is empty" if not any(names) else f"begins with 'sep={separator}'"
        raise InputError(f"{file.name} {what}. Its first line must name the columns, such as path,label.")
    return separator, names


def read_csv(file: Path, separator: str, names: list[str], roles: Collection[str]) -> pd.DataFrame:
    """The table of a dataset; columns with roles are text. Raises InputError for malformed rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                file, sep=separator, encoding="utf-8-sig", dtype=str, index_col=False,
                keep_default_na=False, na_values=[""],  # 'NA' and 'None' may be classes
                skip_blank_lines=False,
            )  # fmt: skip
            return with_numbers(table, {*roles, "group"})
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8 text. Save it as CSV in UTF-8.") from None
    except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
        problem = str(error).strip()
        if isinstance(error, pd.errors.ParserWarning):
            problem = f"rows have more cells than the first line names ({shorten(names)})"
        raise InputError(f"{file.name} is not a valid table: {problem}. Correct the rows.") from None


def with_numbers(table: pd.DataFrame, text: Collection[str]) -> pd.DataFrame:
    """A table of text with numbers and True or False as such, except columns in ``text`` and of codes such as 007."""
    for name in table.columns.difference([*text]):
        cells = table[name]
        numbers = pd.to_numeric(cells, errors="coerce")
        if numbers.notna().sum() == cells.notna().sum() and not cells.str.contains(_CODE, na=False).any():
            table[name] = numbers
        elif cells.dropna().isin(["True", "False"]).all():  # as ``write_table`` writes them
            table[name] = cells.map({"True": True, "False": False})
    return table


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
