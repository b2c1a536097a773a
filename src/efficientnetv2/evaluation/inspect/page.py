"""The inspection as one HTML page with pictures, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.base.keys import Key
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation import seeing
from efficientnetv2.evaluation.inspect.counts import by_class, headings
from efficientnetv2.evaluation.inspect.drawings import draw_places, draw_times, legend
from efficientnetv2.evaluation.inspect.found import Finding
from efficientnetv2.evaluation.inspect.inspection import Inspection
from efficientnetv2.evaluation.page import is_page, json_text, rendered

JSON_NAME, PAGE_NAME = "inspection.json", "inspection.html"
# All ours, for a page of 2 MB at most: groups shown of each finding, pictures of each group, classes with pictures,
# pictures of each of them, rows of a table of classes, sides and quality of pictures.
_GROUPS, _OF_A_GROUP = 12, 4
_CLASSES, _OF_A_CLASS, _ROWS = 30, 4, 1000
_PX, _QUALITY = 128, 75


@dataclass(frozen=True)
class _Shown:
    """A picture on the page."""

    address: str | None
    path: str
    label: str
    split: str


def write(
    folder: str | Path,
    inspection: Inspection,
    *,
    picture: Callable[[int], Image.Image | None],
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Write ``inspection.json`` and ``inspection.html``.

    Args:
        folder: there is one.
        inspection: what was found.
        picture: of a row of the manifest, of any size; None if it can't be read.
        command: that gives this again.
        versions: of what computed it.
    """
    write_text_atomically(Path(folder) / JSON_NAME, json_text(inspection.to_json()))
    page = _page(inspection, picture, command, versions)
    write_text_atomically(Path(folder) / PAGE_NAME, page)


def is_inspection(file: Path) -> bool:
    """Whether a file that is there is an ``inspection.json`` that ``write`` made."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and {"data", "pictures", "weights", "findings"} <= told.keys()


def is_inspection_page(file: Path) -> bool:
    """Likewise the page; those of earlier versions do not say whose they are, but have the other beside them."""
    beside = file.with_name(JSON_NAME)
    return is_page(file) or (beside.is_file() and is_inspection(beside))


def _page(
    inspection: Inspection,
    picture: Callable[[int], Image.Image | None],
    command: str,
    versions: Mapping[str, str],
) -> str:
    manifest = inspection.manifest
    table = by_class(manifest)
    largest = table.index[np.sort(np.argsort(-table.sum(axis=1).to_numpy(), kind="stable")[:_ROWS])]
    brightened = any(one.kind in ("dark", "bright") for one in inspection.findings)
    addresses: dict[int, str | None] = {}

    def shown(row: int) -> _Shown:
        if row not in addresses:
            addresses[row] = seeing.shown(picture(row), dim=brightened, px=_PX, quality=_QUALITY)
        label = manifest.table["label"].iloc[row]
        text = "no label" if manifest.labels[row] < 0 else str(label)
        return _Shown(addresses[row], manifest.paths[row], text, manifest.split[row])

    looks = inspection.sections["looks"].facts
    rows = set(largest)
    colours = {name: one for name, one in looks["by_class"].items() if name in rows}
    return rendered(
        "inspection.html.j2",
        source=manifest.source,
        pictures=len(manifest),
        classes=manifest.class_names,
        notes=manifest.notes,
        findings=[(one, _groups(one, shown)) for one in inspection.findings],
        wrong=sum(one.severity == "wrong" for one in inspection.findings),
        doubtful=sum(one.severity == "doubtful" for one in inspection.findings),
        weights=inspection.weights,
        brightened=seeing.NOTE if brightened else None,
        splits=headings(table),
        by_class=[
            (str(name), [int(number) for number in row]) for name, row in table.loc[largest].iterrows()
        ],
        total=max(1, int(table.to_numpy().sum())),
        examples={name: [shown(row) for row in rows] for name, rows in _examples(inspection).items()},
        looks={**looks, "by_class": colours},
        place=inspection.sections["place"].facts,
        time=inspection.sections["time"].facts,
        group=inspection.sections["group"].facts,
        legend=legend(manifest),
        map=draw_places(manifest),
        times=draw_times(manifest, inspection.sections["time"].facts.get("column")),
        command=command,
        versions=versions,
    )


def _groups(finding: Finding, shown: Callable[[int], _Shown]) -> list[tuple[str, list[_Shown], int]]:
    """Of the first groups: what is said of each, its first pictures, and how many more there are."""
    captions = finding.captions or ("",) * len(finding.groups)
    return [
        (caption, [shown(row) for row in group[:_OF_A_GROUP]], max(0, len(group) - _OF_A_GROUP))
        for caption, group in zip(captions[:_GROUPS], finding.groups[:_GROUPS], strict=True)
    ]


def _examples(inspection: Inspection) -> dict[str, list[int]]:
    """A few readable pictures of each of the largest classes, drawn at random, always the same."""
    manifest: Manifest = inspection.manifest
    labels = np.full(len(manifest), -1)
    labels[inspection.looked.readable] = manifest.labels[inspection.looked.readable]
    numbers = np.bincount(labels[labels >= 0], minlength=len(manifest.class_names))
    chosen: dict[str, list[int]] = {}
    for label in np.argsort(-numbers, kind="stable")[:_CLASSES]:
        rows = np.flatnonzero(labels == label)
        drawn = Key.of(0).fold("examples", int(label)).generator().permutation(len(rows))[:_OF_A_CLASS]
        chosen[manifest.class_names[int(label)]] = sorted(rows[drawn].tolist())
    return chosen
