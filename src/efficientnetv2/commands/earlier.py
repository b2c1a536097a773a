"""The run before this one: whether it is better than that."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from efficientnetv2.base.errors import InputError
from efficientnetv2.commands.crossval_plan import FILE as CROSSVAL
from efficientnetv2.evaluation.answered import read_answers

# Of the newest runs beside this one, how many are looked at: ours.
_LOOKED_AT = 20
# What a folder of a run, or of a cross-validation, begins with.
_KINDS = ("beginning.json", CROSSVAL)


def last_before(folder: Path, answers: pd.DataFrame) -> tuple[str, pd.DataFrame] | None:
    """The newest finished run beside a run that answered the same pictures, with its answers; None without one.

    Of a cross-validation it is another cross-validation.

    Args:
        folder: of the run.
        answers: its own, as ``evaluation.answered.read_answers`` gives them.
    """
    kind = next((name for name in _KINDS if (folder / name).exists()), None)
    if kind is None:
        return None
    own = folder.resolve()
    reports = sorted(
        own.parent.glob("*/report.json"), key=lambda file: (file.stat().st_mtime_ns, file), reverse=True
    )
    for report in [one for one in reports if one.parent != own and (one.parent / kind).exists()][:_LOOKED_AT]:
        try:
            if json.loads(report.read_text(encoding="utf-8"))["pictures"] != len(answers):
                continue
            theirs = read_answers(report.parent)
        except (InputError, OSError, ValueError, KeyError):  # unfinished, or of another version
            continue
        if theirs.index.symmetric_difference(answers.index).empty:
            labels = theirs.loc[answers.index, "true_label"]
            if (labels == answers["true_label"]).all():
                return report.parent.name, theirs
    return None
