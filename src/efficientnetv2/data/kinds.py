"""Which kind of DATA was given, and its listing: a folder, a table, a packed set, shards, a picture, a standard set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from efficientnetv2.base.errors import InputError, did_you_mean
from efficientnetv2.data import cifar, folders, standard, tables
from efficientnetv2.data.listing import Listing, is_picture
from efficientnetv2.data.shards import opening

# What pictures and their tables often come in that is not read, and what makes it so. Ours.
_FIRST = {
    **dict.fromkeys((".zip", ".rar", ".7z"), "Unpack it first, and give the folder."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save its sheet as CSV in UTF-8 first, and give that."),
}


def listing_of(
    data: str,
    *,
    path_column: str,
    label_column: str,
    group_column: str | None,
    label_separator: str | None,
    require_labels: bool,
    strict: bool,
    layout: folders.Layout = "auto",
    empty_classes: bool = False,
) -> Listing:
    """What DATA lists, as it stands there; no rule but those of its kind is applied yet.

    Args:
        data: as ``manifest.read`` has it, and likewise:
        path_column: of a table.
        label_column: of a table or shards.
        group_column: of a table.
        label_separator: of a table or shards.
        require_labels: False for prediction.
        strict: take the labels that there are as training would.
        layout: of a folder: what its sub-folders are.
        empty_classes: leave out class folders without an image instead of refusing them.

    Raises:
        InputError: there is no such DATA, it is of no kind that is read, or what is of its kind is refused.
    """
    if layout != "auto" and not _is_plain_folder(data):
        raise InputError(
            f"--layout {layout}: {data} is no folder of images. Give a folder, or leave the option out."
        )
    if opening.is_shards(data):
        if path_column != "path":
            raise InputError(
                f"{data} is a set of shards, which know their pictures. Leave --path-column {path_column} out."
            )
        return opening.read_shards(
            data, label_column=label_column, group_column=group_column, require_labels=require_labels,
            label_separator=label_separator, strict_labels=strict,
        )  # fmt: skip
    place = Path(os.path.expanduser(data)).absolute()
    named = {"--path-column": path_column != "path", "--label-column": label_column != "label"}
    named["--group-column"] = group_column is not None
    if place.is_dir():
        _refuse_columns(f"{data} is a folder", named)
        if cifar.is_packed(place):
            return cifar.read_packed(place, data)
        return folders.read_folder(
            place,
            data,
            require_labels=require_labels,
            classes_first=strict,
            layout=layout,
            empty_classes=empty_classes,
        )
    if not place.is_file():
        if data in standard.NAMES:
            _refuse_columns(f"{data} is a standard set", named)
            return standard.read_standard(data)
        if set("*?[") & set(data):
            raise InputError(
                f"data path '{data}' does not exist, and patterns of images are not expanded. Give their folder "
                f"({place.parent}), or a CSV file with a column path."
            )
        beside = os.listdir(place.parent) if place.parent.is_dir() else []
        near = did_you_mean(place.name, [*beside, *standard.NAMES])
        what = "a folder" if require_labels else "a picture, a folder of pictures"
        raise InputError(
            f"data path '{data}' does not exist{near} Give {what}, a CSV or Parquet file, shards, "
            f"or one of the standard sets {', '.join(standard.NAMES)}."
        )
    if place.suffix.lower() in folders.TABLE_SUFFIXES:
        return tables.read_table(
            place, data, path_column=path_column, label_column=label_column, group_column=group_column,
            require_labels=require_labels, label_separator=label_separator, strict_labels=strict,
        )  # fmt: skip
    if not is_picture(place.name):
        fix = _FIRST.get(place.suffix.lower(), "If it is a picture, convert it to JPEG first.")
        raise InputError(
            f"'{data}' is neither a folder, a CSV, TSV or Parquet file, nor a picture of a kind that is opened here. "
            f"{fix}"
        )
    if require_labels:
        raise InputError(
            f"'{data}' is a single picture without a label. Give a folder or a table of labelled ones."
        )
    _refuse_columns(f"{data} is a picture", named)
    return folders.read_picture(place, data)


def _is_plain_folder(data: str) -> bool:
    place = Path(os.path.expanduser(data))
    return place.is_dir() and not opening.is_shards(data) and not cifar.is_packed(place)


def _refuse_columns(what: str, named: Mapping[str, bool]) -> None:
    """Refuse options that name columns where there are none: nobody is to believe that they were heeded.

    Args:
        what: DATA is, as the beginning of a message.
        named: option -> whether it names a column.
    """
    if said := [option for option, given in named.items() if given]:
        raise InputError(f"{what}, which has no columns. Give a table, or leave {' and '.join(said)} out.")
