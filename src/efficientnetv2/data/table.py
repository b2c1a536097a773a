"""Tables of images: CSV, TSV or Parquet with a column of paths and one of labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from efficientnetv2.data.csv_dialect import csv_names, read_csv
from efficientnetv2.data.file_probe import MAX_UNREADABLE, map_chunks
from efficientnetv2.data.label_rules import further_faults, join_lists
from efficientnetv2.data.open_image import is_folder, is_image
from efficientnetv2.data.records import (
    AUGMENTED_FROM,
    BLANK,
    ImageRecords,
    Ints,
    ReadOptions,
    missing_column,
    parse_split,
    validate_path_text,
)
from efficientnetv2.data.shards.index import SUFFIX, is_url
from efficientnetv2.data.shards.records import locate_paths, points_into_shards
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.io import MISSING_WORDS

# Columns that are recognized in any case (Split, LATITUDE), and the largest value of those in degrees.
_RECOGNIZED = ("split", "latitude", "longitude")
_MAX_DEGREES = {"latitude": 90, "longitude": 180}
# Names of the columns in published tables, in lower case without spaces, hyphens and underscores. Ours.
_ALIASES = {
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
    "label": ("label", "class", "classname", "target", "category", "species"),
}
# Where a message looks for a file whose path lacks its folder or its suffix. Ours.
_MAX_FOLDERS = 50
_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".tif", ".webp")


def read_table(file: Path, source: str, options: ReadOptions) -> ImageRecords:
    """List the rows of a table, whose paths are relative to its folder or point into shards.

    Without columns ``path`` and ``label``, columns of other usual names are used, with a note. Other columns stay.
    Raises InputError where a column is missing or ambiguous, a cell invalid, or over 5 % of the rows have no file.
    """
    validate_path_text(str(file))
    name = Path(source).name
    is_parquet = file.suffix.lower() == ".parquet"
    separator, names = (",", _parquet_names(file)) if is_parquet else csv_names(file)
    try:
        roles, notes = _roles(names, name, file.parent, options)
    except InputError:
        if not is_parquet:
            read_csv(file, separator, names, ())  # malformed tables are refused as such
        raise
    table = _read_parquet(file, roles) if is_parquet else read_csv(file, separator, names, roles)
    columns: list[str] = []
    for column in map(str, table.columns):  # another column of such a name gets the suffix _given
        role = roles.get(column, column.strip() or column)
        while column not in roles and (role in roles.values() or role in columns):
            role += "_given"
        columns.append(role)
    table = table.set_axis(columns, axis=1)
    rows = np.arange(2, len(table) + 2, dtype=np.int64)
    filled = ~table.isna().all(axis=1).to_numpy()  # blank lines count as lines
    table, rows = table[filled].reset_index(drop=True), rows[filled]
    if table.empty:
        raise InputError(f"{source} has a header but no rows. Add a row for each image.")
    table = _clean(table, file.parent, name, rows, options)
    for column, what in (("label", "class"), ("group", "group")):
        counts: dict[object, int] = {}
        if options.strict and column in table:
            cells = table[column]
            if column == "label" and options.label_separator:
                cells = cells.dropna().astype(str).str.split(options.label_separator, regex=False).explode()
            counts = cells.value_counts().to_dict()
        odd = [(value, count) for value, count in counts.items() if str(value).strip().casefold() in MISSING_WORDS]
        if odd:
            found = ", ".join(f"'{value}' ({pluralize(count, 'row')})" for value, count in odd)
            notes.append(f"Read as a {what}: {column} {found}. If the {column} is missing, empty the cell.")
    if options.strict:
        notes += _unread_columns(table)
    records = ImageRecords(root=file.parent, source=source, table=table, rows=rows, notes=tuple(notes))
    return locate_paths(records) if points_into_shards(table) else _with_files(records)


def _unread_columns(table: pd.DataFrame) -> list[str]:
    """Notes on columns that look like splits or locations, but have another name."""
    notes = []
    if not table["split"].any():
        for name in table.columns:
            cells = table[name].dropna()
            words = cells.unique() if pd.api.types.is_string_dtype(cells) else ()
            if all(parse_split(str(word)) for word in words) and len({parse_split(str(word)) for word in words}) > 1:
                notes.append(f"Column '{name}' is not read as splits. If it holds them, call it split.")
    plain = {str(name).strip().casefold(): name for name in table.columns}
    longitude = next((plain[word] for word in ("lon", "lng", "long") if word in plain), None)
    if "lat" in plain and longitude is not None and "latitude" not in plain:
        notes.append(
            f"Columns '{plain['lat']}' and '{longitude}' are not read as locations. If they hold degrees, call them "
            "latitude and longitude."
        )
    return notes


def validate_columns(path_column: str, label_column: str, group_column: str | None) -> None:
    """Raise InputError if two options name the same column."""
    named = {"path": path_column, "label": label_column, "group": group_column}
    for first, second in combinations(named, 2):
        if named[first] == named[second]:
            raise InputError(
                f"`{first}_column` and `{second}_column` both name the column '{named[first]}'. Name the column of "
                f"the {second} with `{second}_column`."
            )


def _parquet_names(file: Path) -> list[str]:
    try:
        return [str(name) for name in pq.read_schema(file).names]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{file.name} cannot be read as Parquet: {error}") from None


def _read_parquet(file: Path, roles: Mapping[str, str]) -> pd.DataFrame:
    column = next(name for name, role in roles.items() if role == "path")
    schema = pq.read_schema(file)
    dtype = schema.field(column).type
    if isinstance(dtype, pa.DictionaryType):
        dtype = dtype.value_type
    if not any(is_text(dtype) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise InputError(
            f"{file.name}: the column '{column}' holds {dtype}, not paths. Write each image to a file, and its path "
            "into the table."
        )
    # Without bytes, such as thumbnails, which no table of a run can hold.
    kept = [one.name for one in schema if one.name in roles or not _holds_bytes(one.type)]
    columns = None if len(kept) == len(schema) else kept
    try:
        table = pd.read_parquet(file, columns=columns, dtype_backend="numpy_nullable")
    except (OSError, ValueError) as error:
        raise InputError(f"{file.name} cannot be read as Parquet: {error}") from None
    # A pandas index, such as the paths, is a column like the others.
    unnamed = [f"__index_level_{level}__" for level in range(table.index.nlevels)]  # as pandas writes them
    table.index.names = [
        other if name is None and other in roles else name
        for name, other in zip(table.index.names, unnamed, strict=True)
    ]
    index = [level for level in table.index.names if level is not None and level not in table.columns]
    return table.reset_index(level=index) if index else table


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes, or hold some within."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in kinds) or any(
        _holds_bytes(kind.field(place).type) for place in range(kind.num_fields)
    )


def _roles(names: list[str], table: str, root: Path, options: ReadOptions) -> tuple[dict[str, str], list[str]]:
    """Column -> role (path, label, group, split, latitude, longitude), and a note on columns with other names."""
    wanted = {"path": options.path_column, "label": options.label_column}
    if options.group_column is not None:
        wanted["group"] = options.group_column
    plain = {name: re.sub(r"[\s_-]", "", name).casefold() for name in names if name not in wanted.values()}
    roles: dict[str, str] = {}
    missing = []
    for role, column in wanted.items():
        aliases = _ALIASES.get(role, ()) if column == role else ()
        alike = [column] if column in names else [name for name in plain if plain[name] in aliases]
        optional = role == column == "label" and not options.require_labels
        if len(alike) > 1 and not (optional and not options.strict):
            raise InputError(
                f"{table}: several columns may hold the {role}: {shorten(alike)}. Name one with `{role}_column`."
            )
        if len(alike) == 1:
            roles[alike[0]] = role
        elif not optional:
            missing.append(role)
    if missing:
        _refuse_without_header(names, table, root)
        raise missing_column(table, wanted[missing[0]], names, missing[0])
    renamed = [f"column '{name}' as the {role}" for name, role in roles.items() if name != wanted[role]]
    for role in _RECOGNIZED + (("group",) if options.group_column is None else ()):
        alike = [name for name in names if name not in roles and name.strip().casefold() == role]
        if len(set(alike)) > 1 and role not in alike:
            raise InputError(f"{table}: the columns {shorten(alike)} may all be the {role}. Rename all but one.")
        if alike:  # of Split and split, the exact name counts
            roles[role if role in alike else alike[0]] = role
    for column in [*roles, "group"]:
        places = [str(number) for number, name in enumerate(names, start=1) if name == column]
        if len(places) > 1:
            raise InputError(f"{table}: columns {' and '.join(places)} are all called '{column}'. Rename all but one.")
    return roles, [f"Read in {table}: {', '.join(renamed)}."] if renamed else []


def _refuse_without_header(names: list[str], table: str, root: Path) -> None:
    image = next((cell for cell in names if is_image(cell) or os.path.isfile(root / cell)), None)
    if image is not None:
        raise InputError(
            f"{table}, row 1: '{image}' is an image, so the table has no header. Add a first line such as path,label."
        )


def _clean(table: pd.DataFrame, root: Path, name: str, rows: Ints, options: ReadOptions) -> pd.DataFrame:
    """The table with the columns of ``ImageRecords``, path, label and split first."""
    if "label" in table:
        table["label"] = join_lists(
            table["label"],
            options.label_separator,
            where=lambda row: f"{name}, row {rows[row]}",
            checked=options.strict,
        )
    if "group" in table:  # 'P17 ' and P17 are one group
        table["group"] = table["group"].astype("string").str.strip()
    for column in {"path", "label", "split", "group"} & set(table.columns):
        table[column] = _text(table[column])
    if "label" not in table:
        table["label"] = np.nan
    for column in _MAX_DEGREES:
        if column in table:
            table[column] = _degrees(table[column], name, rows, checked=options.strict)
    table["split"] = _splits(table["split"], name, rows, checked=options.strict) if "split" in table else ""
    empty = np.flatnonzero(table["path"].isna())
    if len(empty):
        raise InputError(
            f"{name}, row {rows[empty[0]]}: the path is empty{_more(len(empty))}. Fill it in, or remove the "
            f"row.{further_faults(table, labels=options.require_labels)}"
        )
    table["path"] = _normal_paths(table["path"], root)
    if AUGMENTED_FROM in table:
        origins = _text(table[AUGMENTED_FROM])
        in_tars = table["path"].str.contains(f"{SUFFIX}#", case=False, regex=False).any()  # then it names members
        table[AUGMENTED_FROM] = origins if in_tars else _normal_paths(origins, root)
    first = ["path", "label", "split"]
    return table[first + [column for column in table.columns if column not in first]]


def _text(column: pd.Series[str]) -> pd.Series[str]:
    """Text, NaN for blank cells. "nan" is blank too, but not among labels: a class may be called so."""
    text = column.astype("string")
    blank = text.isna() | text.str.strip().isin([""] if column.name == "label" else BLANK)
    plain = text.astype(object)
    plain[blank.to_numpy(dtype=bool)] = np.nan
    return pd.Series(plain.tolist(), index=column.index, dtype=object if blank.all() else None)


def _degrees(column: pd.Series[float], name: str, rows: Ints, *, checked: bool) -> pd.Series[float]:
    """Degrees, NaN for none. If not ``checked``, as for prediction, other values are none."""
    degrees = pd.to_numeric(column, errors="coerce").astype("float64")
    limit = _MAX_DEGREES[str(column.name)]
    text = column.astype("string").str.strip().str.casefold()
    invalid = degrees.isna() & ~(text.isna() | text.isin(["", "nan"]).fillna(False)).to_numpy(dtype=bool)
    wrong = np.flatnonzero(invalid | (degrees.abs() > limit))
    if len(wrong) and checked:
        raise InputError(
            f"{name}, row {rows[wrong[0]]}: {column.name} is {column.iloc[int(wrong[0])]}{_more(len(wrong))}. It must "
            f"be a number of degrees from -{limit} to {limit}, with a decimal point."
        )
    return degrees.where(degrees.abs() <= limit)


def _splits(column: pd.Series[str], name: str, rows: Ints, *, checked: bool) -> pd.Series[str]:
    """Splits, '' for none. If not ``checked``, as for prediction, other words are none."""
    words = {word: parse_split(word) for word in column.dropna().unique()}
    if checked and (unknown := [word for word, split in words.items() if split is None]):
        wrong = np.flatnonzero(column.isin(unknown))
        raise InputError(
            f"{name}, row {rows[wrong[0]]}: {shorten(unknown)} is not a split{_more(len(wrong))}. A split is train "
            "(training), minival, val (valid, validation) or test (testing)."
        )
    return pd.Series([words.get(word) or "" for word in column], index=column.index)


def _more(count: int) -> str:
    return "" if count == 1 else f", also in {pluralize(count - 1, 'more row')}"


def _normal_paths(column: pd.Series[str], root: Path) -> pd.Series[str]:
    """Paths in one spelling, so that equal paths are equal texts. Cells may be empty."""
    if column.isna().all():
        return column
    # A backslash may belong to an existing file's name. Otherwise it separates folders, as on Windows.
    named = np.array(column.str.contains("\\", regex=False, na=False), dtype=bool) & (os.sep == "/")
    named[named] = map_chunks(lambda paths: [os.path.isfile(root / path) for path in paths], column[named].tolist())
    in_tar = np.array(column.str.contains(f"{SUFFIX}#", case=False, regex=False, na=False), dtype=bool)
    paths = column.where(named, column.str.replace("\\", "/", regex=False))
    if in_tar.any():  # the name of a member stays
        before_member = re.compile(rf"\\(?=.*{re.escape(SUFFIX)}#)", re.IGNORECASE)
        paths = paths.where(~in_tar | named, column.str.replace(before_member, "/", regex=True))
    paths = paths.str.removeprefix(root.as_posix().rstrip("/") + "/")
    detours = paths.str.contains(r"(?:^|/)\.{0,2}/", regex=True, na=False)  # ./a, a//b, a/../b
    loose = np.array(detours, dtype=bool) & ~in_tar
    loose[loose] = [not is_url(path) for path in paths[loose]]
    # Once per folder, not once per image.
    normal_folder = lru_cache(maxsize=None)(lambda folder: _normal_folder(folder, root))

    def normal(path: str) -> str:
        folder, name = os.path.split(path)
        return name if normal_folder(folder) == "." else f"{normal_folder(folder)}/{name}"

    return paths.where(~loose, paths[loose].map(normal).reindex(paths.index))


def _normal_folder(folder: str, root: Path) -> str:
    """Folder without detours, unless a symbolic link makes the shorter path a different folder."""
    short = os.path.normpath(folder)
    if short.split(os.sep).count("..") < folder.split("/").count(".."):
        same = os.path.realpath(root / short) == os.path.realpath(root / folder)
        short = short if same else folder
    return short.replace(os.sep, "/")


def _with_files(records: ImageRecords) -> ImageRecords:
    """The same rows, with paths in the Unicode form of the file names. Refuses more than 5 % of rows without file."""
    root, paths = Path(records.root), records.paths
    if (row := next((row for row, path in enumerate(paths) if is_url(path)), None)) is not None:
        raise InputError(
            f"{records.where(row)}: '{paths[row]}' is a URL. Download the images, and give the paths of their files. "
            "(Shards are read from URLs.)"
        )
    # In threads, since a network file system takes a while for each.
    absent = map_chunks(lambda rows: [not os.path.isfile(records.file(row)) for row in rows], range(len(records)))
    gone = np.flatnonzero(absent).tolist()
    respelled = {path: _other_form(path, root) for path in {paths[index] for index in gone}}
    gone = [index for index in gone if respelled[paths[index]] is None]
    if len(gone) > MAX_UNREADABLE * len(records):
        names, near = shorten([paths[index] for index in gone], 3), _near(paths[gone[0]], root)
        raise InputError(
            f"{records.where(gone[0])}: '{paths[gone[0]]}' does not exist under {root} (no file in {len(gone)} of "
            f"{pluralize(len(records), 'row')}: {names}). Correct the paths, which are relative to the table's "
            f"folder{near}."
        )
    found = {path: other for path, other in respelled.items() if other is not None}
    if not found:
        return records
    columns = [column for column in ("path", AUGMENTED_FROM) if column in records.table]

    def respell(path: str) -> str:
        return found.get(path, path)

    # Not ``replace``, which compares every path with every row.
    table = records.table.assign(**{name: records.table[name].map(respell, na_action="ignore") for name in columns})
    note = (
        f"Changed {pluralize(len(found), 'path')} of {Path(records.source).name} to the Unicode form of the files' "
        "names (NFC or NFD)."
    )
    return replace(records, table=table, notes=(*records.notes, note))


def _near(path: str, root: Path) -> str:
    below = sorted(entry.name for entry in os.scandir(root) if is_folder(entry))[:_MAX_FOLDERS]
    candidates = (os.path.join(folder, path + suffix) for folder in ("", *below) for suffix in _SUFFIXES)
    near = next((name for name in candidates if os.path.isfile(root / name)), None)
    return "" if near is None else f", such as '{near}'"


def _other_form(path: str, root: Path) -> str | None:
    """The path of an existing file in another Unicode form (NFC, NFD), or None."""
    forms = () if path.isascii() else (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.isfile(root / form)), None)
