"""The folder that an evaluation's report goes into: nothing is lost there but an earlier report."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from efficientnetv2.data.shards.index import INDEX_NAME
from efficientnetv2.evaluation.html import is_page
from efficientnetv2.evaluation.predictions import PREDICTIONS_CSV as ANSWERS
from efficientnetv2.evaluation.predictions import SKIPPED, csv_columns, is_skipped_csv
from efficientnetv2.training.run_dir import REPORT_FILES, RUN_MARKERS
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import output_dir
from efficientnetv2.workflows.output_paths import (
    note_replaced,
    refuse_foreign_file,
    refuse_inside_data,
    refuse_replacing_data,
)


def default_check_dir(data: str) -> Path:
    """Where ``inspect`` writes its page, unless another folder is given.

    Args:
        data: DATA as it was typed.
    """
    place = Path(os.path.expanduser(data))
    # A folder's name may hold points: photos.v1 and photos.v2 are two sets.
    return Path("inspection") / ((place.name if place.is_dir() else place.stem) or "pictures")


def report_folder(out: Path, data: str) -> AbstractContextManager[None]:
    """The folder, made before the work and removed if that fails.

    Args:
        out: the folder.
        data: what is evaluated, which may lie there.

    Raises:
        InputError: it can't be written to, lies among the class folders of DATA, is a run's or a cross-validation's
            own, or holds a file of the user's by the name of one that will be written.
    """
    if any((out / name).is_file() for name in RUN_MARKERS):
        raise InputError(
            f"--output {out} is the folder of a run, whose own report would be lost. Give another folder, such as "
            f"{out / 'evaluation'}."
        )
    refuse_inside_data(data, out, "--output")
    refuse_replacing_data(data, out, (*REPORT_FILES, SKIPPED), "--output")
    if (out / INDEX_NAME).is_file():
        raise InputError(
            f"--output {out} is a folder of shards, which has a {SKIPPED} of its own. Give another folder."
        )
    for name, (ours, other) in _OURS.items():
        refuse_foreign_file(out / name, f"--output {out}:", ours, f"is {other}")
    note_replaced(out / "report.html")
    return output_dir(out, "--output")


def _is_answers(file: Path) -> bool:
    columns = set(csv_columns(file))
    return {"path", "true_label"} <= columns and bool({"predicted_label", "label"} & columns)


def _is_report(file: Path) -> bool:
    return b'"evaluated_on"' in file.read_bytes()


def _is_report_page(file: Path) -> bool:
    beside = file.with_suffix(".json")
    # Pages of earlier versions do not say whose they are.
    return is_page(file) or (beside.is_file() and _is_report(beside))


# Of what is written, how an earlier one of ours is told from a file of the user's.
_OURS = {
    ANSWERS: (_is_answers, "no table of an evaluation's answers"),
    SKIPPED: (is_skipped_csv, "no list of what could not be read"),
    "report.json": (_is_report, "no report of effnetv2"),
    "report.html": (_is_report_page, "no report of effnetv2"),
}
