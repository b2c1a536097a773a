"""Check a dataset before training: `efficientnetv2.check`."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch

from efficientnetv2.base.files import read_object
from efficientnetv2.commands.inspect_job import inspect_and_tell
from efficientnetv2.commands.report_folder import inspection_folder
from efficientnetv2.commands.within import refuse_within
from efficientnetv2.evaluation.inspect import page
from efficientnetv2.workflows.arguments import (
    PathLike,
    TableArguments,
    api,
    notes_screen,
    number,
    path_of,
    path_text,
    refuse_launched,
    refuse_unknown,
    source_of,
)
from efficientnetv2.workflows.results import html_table


class DatasetCheck:
    """What is wrong with a dataset, as `check` found it.

    Args:
        path: Folder that `check` wrote.

    Attributes:
        path: The folder.

    Raises:
        InputError: On first use, where it holds no check.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @cached_property
    def report(self) -> dict[str, Any]:
        """All that was found and counted, as plain values."""
        return read_object(self.path / page.JSON_NAME, "findings", "copies", fix="Check the dataset again.")

    @property
    def report_path(self) -> Path:
        """The HTML page, with the images."""
        return self.path / page.PAGE_NAME

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Findings, the gravest first.

        Each has a ``kind``, a ``severity`` ("wrong", "doubtful" or "note"), a ``sentence``, ``advice``, and the groups
        of ``pictures`` it is about.
        """
        return list(self.report["findings"])

    @property
    def duplicates(self) -> list[list[str]]:
        """Groups of images that are the same: identical files, then near-duplicates."""
        copies = self.report["copies"]
        return [*copies["same_files"], *(pair["paths"] for pair in copies["near_duplicates"])]

    @property
    def leakage(self) -> list[dict[str, Any]]:
        """Findings of images that belong together, but are in two splits: duplicates, groups, locations, times."""
        return [finding for finding in self.findings if finding["kind"].endswith("_across_splits")]

    @property
    def label_errors(self) -> list[dict[str, Any]]:
        """Labels that are probably wrong, the most probable first: path, label, suggested, probability.

        They are found with ``weights`` only.
        """
        return list(self.report.get("network", {}).get("suspected_labels", []))

    def __repr__(self) -> str:
        counts = [
            f"{name}={len(getattr(self, name))}"
            for name in ("findings", "duplicates", "leakage", "label_errors")
        ]
        return f"DatasetCheck({str(self.path)!r}, {', '.join(counts)})"

    def _repr_html_(self) -> str:
        rows = [(one["severity"], one["sentence"], one["advice"]) for one in self.findings]
        title = f"{self.report['data']}: {self.report['pictures']:,} images, {len(rows)} findings"
        return html_table(title, ["severity", "finding", "advice"], rows, self.report_path)


@api
def check(
    data: PathLike,
    *,
    output: PathLike | None = None,
    weights: PathLike = "none",
    near_km: float = 5.0,
    time_column: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    **table: Unpack[TableArguments],
) -> DatasetCheck:
    """Find duplicates, data leakage, label errors and unreadable images of a dataset, which it leaves unchanged.

    Example::

        import efficientnetv2 as ev2

        found = ev2.check("photos/")
        for finding in found.findings:
            print(finding["severity"], finding["sentence"])

    Args:
        data: Dataset, see `train`. Labels may be missing.
        output: Folder for the page and its JSON. None takes ``inspection/NAME``, by the name of ``data``.
        weights: Model that looks at the images, to find label errors and images of one scene: "auto", a name or a
            file. "none" finds neither.
        near_km: Distance in km within which two images are of one location.
        time_column: Column of a year or date. None finds it.
        device: Device to compute on, see `train`.
        workers: Processes that read images, see `train`.
        table: How ``data`` is read, see `train`.

    Raises:
        InputError: An argument or a file that the caller can fix.
    """
    refuse_launched("check")
    refuse_unknown(check, table, TableArguments)
    source = source_of(data, table)
    folder = path_of("output", output) or inspection_folder(source.data)
    refuse_within(source.data, folder, "--out", verb="inspect" if output is None else None)
    inspect_and_tell(
        source,
        folder=folder,
        weights=path_text("weights", weights),
        near_km=number("near_km", near_km, 0, 20_000, whole=False),
        time_column=time_column,
        device=str(device),
        workers=number("workers", workers, 0),
        as_json=False,
        screen=notes_screen(),
    )
    return DatasetCheck(folder)
