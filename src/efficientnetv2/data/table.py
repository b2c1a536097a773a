"""Tables of pictures: CSV, TSV or Parquet with a column of paths and one of labels."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from efficientnetv2.data.augmented_copies import AUGMENTED_FROM
from efficientnetv2.data.csv_dialect import read_header
from efficientnetv2.data.file_probe import MAX_UNREADABLE, map_chunks
from efficientnetv2.data.multilabel import join_lists
from efficientnetv2.data.records import (
    BLANK,
    ImageRecords,
    Ints,
    is_image,
    packed_record,
    parse_split,
    validate_path_text,
)
from efficientnetv2.data.shards.index import SUFFIX
from efficientnetv2.data.shards.open import lists_shards, read_listed
from efficientnetv2.utils.errors import InputError, count_of, did_you_mean, some

# Asking for files waits for the disk. Ours.
_THREADS = 8
_MEANT = ("split", "latitude", "longitude")
# Other names of the columns, by ``_plain``, that published tables have. Ours.
_USUAL = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
    "label": ("label", "class", "classname", "target", "category", "species"),
}
# How programs write a missing value, in lower case (pandas, R, Python, databases). Ours.
_MISSING_WORDS = frozenset(("nan", "na", "n/a", "<na>", "none", "null"))
# Where a file is looked for whose path lacks its folder or its suffix. Ours.
_FOLDERS_SEARCHED = 50
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".webp")
# Rows without a file that a message names. Ours.
_ROWS_NAMED = 3
_LABEL = (
    "label"  # a column that may be missing where labels are not required; any other was asked for by name
)


def read_table(
    file: Path,
    source: str,
    *,
    path_column: str,
    label_column: str,
    group_column: str | None,
    require_labels: bool,
    label_separator: str | None = None,
    strict_labels: bool = True,
) -> ImageRecords:
    """List the rows of a table. Paths are relative to the table's folder; other columns are kept.

    A path may point into a shard (``train-000000.tar#its/own/path.jpg``), as in the dataset of a run on shards.
    Without columns ``path`` and ``label`` those of the usual names are taken, as ``filename`` and ``class``, with a
    note. A few rows may lack their file: whoever opens the file finds out.
    The columns ``split``, ``latitude`` and ``longitude`` are known in any case (Split, LATITUDE). Groups lose the space
    around them, as labels and splits do. Lists of labels are joined by ``label_separator``; without one they are
    refused if ``strict_labels`` asks labels to make sense (``several.from_lists``).

    Raises:
        InputError: the file is no such table; a column is missing, or several are called so; more than 5 % of the
            rows have no file; a cell of path, split, latitude or longitude makes no sense; it lies where no table can
            name; or what ``shards.listed.read_listed`` refuses.
    """
    validate_path_text(str(file))
    name, asked = Path(source).name, {"path": path_column, "label": label_column}
    parquet = file.suffix.lower() == ".parquet"
    separator, names = (",", _parquet_names(file)) if parquet else _csv_names(file)
    try:
        roles, notes = _roles(
            names, name, asked | ({} if group_column is None else {"group": group_column}), file.parent,
            label_wanted=require_labels, strict=strict_labels,
        )  # fmt: skip
    except InputError:
        if not parquet:
            _csv(file, separator, names, ())  # a table that is not well-formed is refused as that
        raise
    raw = _parquet(file, roles) if parquet else _csv(file, separator, names, roles)
    table, rows = _filled(_renamed(raw, roles), source)
    if "label" in table:
        table["label"] = join_lists(
            table["label"],
            label_separator,
            where=lambda row: f"{name}, row {rows[row]}",
            checked=strict_labels,
        )
    table = _tidy(table, file.parent, name, rows)
    notes += _like_missing(table["label"]) if strict_labels else ()
    listing = ImageRecords(root=file.parent, source=source, table=table, rows=rows, notes=notes)
    if lists_shards(listing.table):
        return read_listed(listing)
    return _with_files(listing)


def validate_columns(path_column: str, label_column: str, group_column: str | None) -> None:
    """One column does not hold two things.

    Raises:
        InputError: two options name the same one.
    """
    named = {"path": path_column, "label": label_column, "group": group_column}
    for one, two in combinations(named, 2):
        if named[one] == named[two]:
            raise InputError(
                f"--{one}-column and --{two}-column both name the column '{named[one]}', but it does not hold both. "
                f"Name the one that holds the {two} with --{two}-column"
                f"{', or leave that out' if two == 'group' else ''}."
            )


def _filled(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, Ints]:
    """Rows that are not blank, and their numbers in the file."""
    rows = np.arange(2, len(table) + 2, dtype=np.int64)
    filled = ~table.isna().all(axis=1).to_numpy()  # blank lines are no rows, but count as lines
    table, rows = table[filled].reset_index(drop=True), rows[filled]
    if table.empty:
        raise InputError(f"{source} has a header but no rows. Add a row for each picture.")
    return table, rows


def _tidy(table: pd.DataFrame, root: Path, name: str, rows: Ints) -> pd.DataFrame:
    """Every column as a ``ImageRecords`` has it, path, label and split first."""
    if "group" in table:  # 'P17 ' is P17: a group that a space parts would stand on both sides
        table["group"] = table["group"].astype("string").str.strip()
    for column in ("path", "label", "split", "group"):
        if column in table:
            table[column] = _text(table[column])
    if "label" not in table:
        table["label"] = np.nan
    for column in ("latitude", "longitude"):
        if column in table:
            table[column] = _degrees(table[column], name, rows)
    table["split"] = _splits(table["split"], name, rows) if "split" in table else ""
    table["path"] = _paths(table["path"], root, name, rows)
    if AUGMENTED_FROM in table:
        table[AUGMENTED_FROM] = _tidy_paths(_text(table[AUGMENTED_FROM]), root)
    first = ["path", "label", "split"]
    return table[first + [column for column in table.columns if column not in first]]


def _csv_names(file: Path) -> tuple[str, list[str]]:
    """What parts the cells, and the names of the columns."""
    try:
        separator, names = read_header(file)
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8 text. Save it as CSV in UTF-8.") from None
    if not any(names):
        raise InputError(
            f"{file.name} is empty in its first line. It needs a header with path and label, and rows."
        )
    if names[:1] == ["sep="]:  # as some programs write for Excel
        raise InputError(
            f"{file.name} begins with a line 'sep={separator}', but its first row names the columns. Delete that line."
        )
    return separator, names


def _csv(file: Path, separator: str, names: list[str], roles: Collection[str]) -> pd.DataFrame:
    text = {name: str for name in names if name in roles}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                file, sep=separator, encoding="utf-8-sig", dtype={**text, "group": str}, index_col=False,
                keep_default_na=False, na_values=[""],  # 'NA' and 'None' may well be classes
                skip_blank_lines=False, low_memory=False,
            )  # fmt: skip
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8 text. Save it as CSV in UTF-8.") from None
    except pd.errors.ParserWarning:
        raise InputError(
            f"{file.name} is no well-formed table: rows have more cells than its first row, which names the columns "
            f"({some(names)}), has names. Delete what stands above the names, or name every column."
        ) from None
    except pd.errors.ParserError as error:
        raise InputError(
            f"{file.name} is no well-formed table: {str(error).strip()}. Correct the row."
        ) from None


def _parquet_names(file: Path) -> list[str]:
    try:
        return [str(name) for name in pq.read_schema(file).names]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{file.name} cannot be read as Parquet: {error}") from None


def _parquet(file: Path, roles: Mapping[str, str]) -> pd.DataFrame:
    column = next(name for name, role in roles.items() if role == "path")
    kind = pq.read_schema(file).field(column).type
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        within = kind.names if pa.types.is_struct(kind) else []
        images = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or "bytes" in within
        what = "the images themselves" if images else f"values of the type {kind}"
        raise InputError(
            f"{file.name}: the column '{column}' holds {what}, not paths. Write each image to a file, and a table of "
            "their paths and labels."
        )
    try:
        table = pd.read_parquet(file, dtype_backend="numpy_nullable")  # whole-number labels stay whole
    except (OSError, ValueError) as error:
        raise InputError(f"{file.name} cannot be read as Parquet: {error}") from None
    # What pandas was told to go by, such as the paths, is a column like the others.
    named = [level for level in table.index.names if level is not None and level not in table.columns]
    return table.reset_index(level=named) if named else table


def _roles(
    names: list[str],
    table: str,
    asked: Mapping[str, str],
    root: Path,
    *,
    label_wanted: bool,
    strict: bool,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Column -> what it holds (path, label, group, split, latitude, longitude), and a note on columns taken unasked.

    Of two that are called alike but for case or space (Split, split) the one that is called exactly so is meant.
    """
    roles: dict[str, str] = {}
    missing, taken = [], []
    for role, column in asked.items():
        if column in names:
            roles[column] = role
            continue
        usual = _USUAL.get(role, ()) if column == role else ()
        alike = [one for one in names if _plain(one) in usual and one not in asked.values()]
        optional = role == _LABEL == column and not label_wanted
        if len(set(alike)) > 1 and not (optional and not strict):
            raise InputError(
                f"{table}: several columns may hold the {role}: {some(dict.fromkeys(alike))}. Name one with "
                f"--{role}-column."
            )
        if len(set(alike)) == 1:
            roles[alike[0]] = role
            taken.append(f"column '{alike[0]}' as the {role}")
        elif not optional:
            missing.append((role, column))
    if missing:
        _refuse_without_header(names, table, root)
        raise InputError(_no_columns(table, missing, names))
    for meaning in _MEANT:
        alike = [one for one in names if one not in roles and one.strip().casefold() == meaning]
        if len(set(alike)) > 1 and meaning not in alike:
            raise InputError(
                f"{table}: the columns {some(alike)} may all be the {meaning}. Rename all but one of them."
            )
        if alike:
            roles[meaning if meaning in alike else alike[0]] = meaning
    for column in [*roles, "group"]:
        places = [str(number) for number, one in enumerate(names, start=1) if one == column]
        if len(places) > 1:
            raise InputError(
                f"{table}: columns {' and '.join(places)} are all called '{column}'. Rename all but one of them."
            )
    return roles, ((f"Read in {table}: {', '.join(taken)}.",) if taken else ())


def _plain(name: str) -> str:
    """A column's name in lower case, without what stands between its words."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _refuse_without_header(names: list[str], table: str, root: Path) -> None:
    """Refuse a first row of cells in the place of names: one of the cells is an image."""
    places = [number for number, cell in enumerate(names) if is_image(cell) or os.path.isfile(root / cell)]
    if not places:
        return
    header = ["path" if number == places[0] else f"column{number + 1}" for number in range(len(names))]
    if len(names) == 2:
        header[1 - places[0]] = "label"
    raise InputError(
        f"{table}, row 1: '{names[places[0]]}' is an image, so the table has no header. Add a first line that names "
        f"the columns, such as {','.join(header)}"
    )


def _renamed(raw: pd.DataFrame, roles: Mapping[str, str]) -> pd.DataFrame:
    """Columns by the names that the rest of the package knows; a stranger of that name steps aside."""
    names: list[str] = []
    for column in map(str, raw.columns):
        name = roles.get(column, column)
        while column not in roles and (name in roles.values() or name in names):
            name += "_given"
        names.append(name)
    return raw.set_axis(names, axis=1)


def _like_missing(labels: pd.Series[str]) -> tuple[str, ...]:
    """A note on classes that are called as programs write a missing value."""
    counts = labels.value_counts()
    odd = [
        f"'{name}' ({count_of(int(counts[name]), 'row')})" for name in counts.index if _is_like_missing(name)
    ]
    if not odd:
        return ()
    return (
        f"Taken as a class: label {', '.join(odd)}. If it means that the label is missing, empty the cell.",
    )


def _is_like_missing(label: str) -> bool:
    return label.strip().casefold() in _MISSING_WORDS


def _text(column: pd.Series[str]) -> pd.Series[str]:
    """As text, NaN where a cell is blank; but in labels also what a missing number looks like as text: exactly so.

    A province or a patient may be called Nan, and a class nan.
    """
    text = column.astype("string")
    blank = text.isna() | text.str.strip().isin([""] if column.name == "label" else BLANK)
    plain = text.astype(object)
    plain[blank.to_numpy(dtype=bool)] = np.nan
    return pd.Series(plain.tolist(), index=column.index, dtype=object if blank.all() else None)


def _degrees(column: pd.Series[float], name: str, rows: Ints) -> pd.Series[float]:
    degrees = pd.to_numeric(column, errors="coerce").astype("float64")
    limit = 90 if column.name == "latitude" else 180
    text = column.astype("string").str.strip().str.casefold()
    strange = degrees.isna() & ~(text.isna() | text.isin(["", "nan"]).fillna(False)).to_numpy(dtype=bool)
    wrong = np.flatnonzero(strange | (degrees.abs() > limit))
    if len(wrong):
        first = int(wrong[0])
        # As spreadsheets of much of Europe write numbers.
        comma = " Write its decimals behind a point." if "," in str(column.iloc[first]) else ""
        raise InputError(
            f"{name}, row {rows[first]}: {column.name} is {column.iloc[first]}, but is a number of degrees "
            f"from -{limit} to {limit}.{_more(len(wrong))}{comma} "
            "Correct it, or rename the column if it means something else."
        )
    return degrees


def _splits(column: pd.Series[str], name: str, rows: Ints) -> pd.Series[str]:
    words = {word: parse_split(word) for word in column.dropna().unique()}
    unknown = [word for word, split in words.items() if split is None]
    if unknown:
        wrong = np.flatnonzero(column.isin(unknown))
        named = f"split '{column.iloc[wrong[0]]}' is not one of"
        if len(unknown) > 1:
            named = f"splits {some(unknown)} are not among"
        raise InputError(
            f"{name}, row {rows[wrong[0]]}: {named} train (training), "
            f"minival, val (valid, validation) and test (testing).{_more(len(wrong))} Correct it, or rename the column."
        )
    return pd.Series([words.get(word) or "" for word in column], index=column.index)


def _paths(column: pd.Series[str], root: Path, name: str, rows: Ints) -> pd.Series[str]:
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise InputError(
            f"{name}, row {rows[empty[0]]}: the path is empty.{_more(len(empty))} "
            "Fill it in, or remove the row."
        )
    return _tidy_paths(column, root)


def _tidy_paths(column: pd.Series[str], root: Path) -> pd.Series[str]:
    """Paths in one spelling, so that equal ones are equal texts; a cell may be empty."""
    if column.isna().all():
        return column
    paths = column.where(_called_so(column, root), column.str.replace("\\", "/", regex=False))
    paths = paths.str.removeprefix(root.as_posix().rstrip("/") + "/")
    loose = paths.str.contains(r"(?:^|/)\.{0,2}/", regex=True, na=False)  # ./a, a//b, a/../b
    # A URL, or a name that a tar gives.
    loose &= ~paths.str.contains(f"{SUFFIX}#", case=False, regex=False, na=False)
    # Once for each folder, not for each of its pictures.
    folder_of = lru_cache(maxsize=None)(lambda folder: _tidy_folder(folder, root))

    def tidy(path: str) -> str:
        folder, name = os.path.split(path)
        return name if folder_of(folder) == "." else f"{folder_of(folder)}/{name}"

    tidied = paths[loose].map(tidy)
    return paths.where(~loose, tidied.reindex(paths.index))


def _called_so(column: pd.Series[str], root: Path) -> pd.Series[bool]:
    """Whether a backslash belongs to a file's name, as it may but on Windows; else it is how Windows writes a path."""
    slashed = np.array(column.str.contains("\\", regex=False, na=False), dtype=bool)
    slashed &= os.sep == "/"
    slashed[slashed] = map_chunks(
        lambda paths: [(root / path).is_file() for path in paths], column[slashed].tolist(), _THREADS
    )
    return pd.Series(slashed, index=column.index)


def _tidy_folder(folder: str, root: Path) -> str:
    """A folder without detours; as it is where a link on the way makes the short way another one."""
    short = os.path.normpath(folder)
    if short.split(os.sep).count("..") < folder.split("/").count(".."):
        there, meant = (os.path.realpath(root / one) for one in (short, folder))
        short = short if there == meant else folder
    return short.replace(os.sep, "/")


def _with_files(listing: ImageRecords) -> ImageRecords:
    """The same rows, their paths as the files' names encode them.

    Raises:
        InputError: more than 5 % have no file, or one of a larger file that packs images.
    """
    containers: dict[str, bool] = {}  # a packed file is looked up once, not once for each of its pictures

    def missing(index: int, path: str) -> bool:
        record = packed_record(path) if "#" in path else None
        if record is None:
            return not os.path.isfile(listing.file(index))
        if record[0] not in containers:
            containers[record[0]] = not os.path.isfile(os.path.join(listing.root, record[0]))
        return containers[record[0]] and not os.path.isfile(listing.file(index))

    # Over a network each answer takes a while.
    absent = map_chunks(
        lambda rows: [missing(index, path) for index, path in rows], list(enumerate(listing.paths)), _THREADS
    )
    gone = [index for index, one in enumerate(absent) if one]
    named = {
        path: _encoded_otherwise(path, listing.root) for path in {listing.paths[index] for index in gone}
    }
    gone = [index for index in gone if named[listing.paths[index]] is None]
    records = any(packed_record(listing.paths[index]) for index in gone)  # a file of many images is missing
    if gone and (records or len(gone) > MAX_UNREADABLE * len(listing)):
        others = [listing.paths[index] for index in gone[1:_ROWS_NAMED]]
        further = f", also {some(others)}" if others else ""
        near = _near(listing.paths[gone[0]], Path(listing.root))
        raise InputError(
            f"{listing.where(gone[0])}: '{listing.paths[gone[0]]}' does not exist under {listing.root} "
            f"({len(gone)} of {len(listing)} rows have no file{further}). "
            f"Paths are relative to the table's folder{near}: correct them, or remove the rows."
        )
    named = {path: other for path, other in named.items() if other is not None}
    if not named:
        return listing
    columns = [column for column in ("path", AUGMENTED_FROM) if column in listing.table]
    table = listing.table.assign(**{name: listing.table[name].replace(named) for name in columns})
    note = (
        f"{count_of(len(named), 'path')} of {Path(listing.source).name} encode letters otherwise than the files' names "
        "do (Unicode NFC and NFD): they go by the files' names."
    )
    return replace(listing, table=table, notes=(*listing.notes, note))


def _near(path: str, root: Path) -> str:
    """Words on a file that a path may mean: it lacks its folder, its suffix, or both."""
    below = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())[:_FOLDERS_SEARCHED]
    for folder in ("", *below):
        for suffix in ("", *_SUFFIXES):
            near = os.path.join(folder, path + suffix)
            if os.path.isfile(root / near):
                return f", and there is '{near}'"
    return ""


def _encoded_otherwise(path: str, root: Path | str) -> str | None:
    """The same path in the other of the two encodings of letters with accents, if a file is called so; else None."""
    if path.isascii():  # has one encoding, and there may be very many of them over a network
        return None
    spelled = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((one for one in spelled if os.path.isfile(os.path.join(root, one))), None)


def _no_columns(name: str, missing: list[tuple[str, str]], known: list[str]) -> str:
    lacking = [f"has no column '{column}'{did_you_mean(column, known)}" for _, column in missing]
    options = " and ".join(f"the {role} with --{role}-column" for role, _ in missing)
    return (
        f"{name} {' It '.join(lacking)} Its columns are {some(known, 20)}. Name the one that holds {options}."
    )


def _more(count: int) -> str:
    return "" if count == 1 else f" So it is in {count_of(count - 1, 'more row')}."
