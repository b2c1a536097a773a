"""Comparison of runs: metrics, training time, and differences with confidence intervals."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from efficientnetv2.evaluation.plot_style import default_style, is_titled, png
from efficientnetv2.evaluation.run_comparison import (
    FinishedRun,
    RunComparison,
    UnpairedComparison,
    compare_runs,
    compare_unpaired,
)
from efficientnetv2.evaluation.training_plots import draw_costs, draw_hyperparameters, draw_top1_over_time, stage_costs
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import check_writable_dir, read_object_or_empty, write_atomically, write_text_atomically
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.workflows.arguments import PathLike, api, note_replaced, path_of, path_text, refuse_foreign_file

_logger = logging.getLogger(__name__)

# Keys of report.json.
_METRICS = ("top1", "macro_f1", "optimistic", "epochs", "wall_s", "images_per_s", "split_by")
_JSON_NAME = "comparison.json"
_PLOTS = ("accuracy_over_time.png", "settings.png", "stage_costs.png")
_TITLE = "effnetv2 compare"  # in the plots, which are recognized by it


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs, and the differences of each run after the first to the first.

    Example::

        import efficientnetv2 as ev2

        found = ev2.compare(["runs/fixed", "runs/progressive"])
        print(found.paired[0].over.top1)

    Attributes:
        runs: Finished runs with their report and predictions.
        paired: Differences on the same images; None for a run on other images.
        unpaired: Differences of independent samples; None for a run on the same images, or with other classes.
    """

    runs: tuple[FinishedRun, ...]
    paired: tuple[RunComparison | None, ...]
    unpaired: tuple[UnpairedComparison | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; differences as fractions."""
        rows = [
            {
                "run": run.name,
                **{key: run.report.get(key) for key in _METRICS},
                "top1_interval": run.report["intervals"]["top1"],
                "train_s": None if run.train_s is None else round(run.train_s, 2),
                "sizes": list(run.sizes),
            }
            for run in self.runs
        ]
        first, others = self.runs[0].name, self.runs[1:]
        gains, unpaired = (
            [
                {"run": run.name, "over": first, **difference.to_json()}
                for run, difference in zip(others, found, strict=True)
                if difference is not None
            ]
            for found in (self.paired, self.unpaired)
        )
        return {"schema_version": SCHEMA_VERSION, "runs": rows, "gains": gains, "unpaired": unpaired}

    def __repr__(self) -> str:
        runs = ", ".join(f"{run.name}: top1={run.report['top1']:.3f}" for run in self.runs)
        return f"Comparison({runs})"


@api
def compare(runs: Sequence[PathLike], *, output: PathLike | None = None) -> Comparison:
    """Compare finished runs, cross-validations or evaluations with the first of them.

    Differences are paired on the same images; on different images, runs are compared as independent samples.
    Intervals bootstrap whole locations or groups where a run held these out.

    Example::

        import efficientnetv2 as ev2

        found = ev2.compare(["runs/fixed", "runs/progressive"])
        print(found.paired[0].over.top1)

    Args:
        runs: Two folders or more.
        output: Folder for comparison.json and, of training runs, plots of accuracy, hyperparameters and cost.

    Raises:
        InputError: Fewer than two runs, a run that is not finished, or a folder that cannot be written to.
    """
    is_one = isinstance(runs, str | os.PathLike)
    folders = [Path(path_text("runs", run)) for run in ([runs] if is_one else runs)]
    if len(folders) < 2:
        raise InputError("compare takes two runs or more. Give their folders: effnetv2 compare RUN RUN")
    out = path_of("output", output)
    if out is not None:
        check_writable_dir(out, "`output`")
        why = "is of no comparison of effnetv2 compare"
        refuse_foreign_file(out / _JSON_NAME, f"`output={out}`:", _is_comparison, why)
        for name in _PLOTS:
            refuse_foreign_file(out / name, f"`output={out}`:", lambda file: is_titled(file, _TITLE), why)
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    first, *others = [FinishedRun.read(folder, name) for folder, name in zip(folders, names, strict=True)]
    paired = tuple(compare_runs(run, first) for run in others)
    unpaired = tuple(
        None if difference is not None else compare_unpaired(run, first)
        for run, difference in zip(others, paired, strict=True)
    )
    found = Comparison((first, *others), paired, unpaired)
    if out is not None:
        note_replaced(out / _JSON_NAME)
        _write(out, found)
        _logger.info(f"Comparison: {out}")
    return found


def _is_comparison(file: Path) -> bool:
    return read_object_or_empty(file).keys() - {"schema_version", "unpaired"} == {"runs", "gains"}


@default_style()
def _write(out: Path, found: Comparison) -> None:
    histories = {run.name: run.history for run in found.runs}
    costs = {name: stage_costs(history) for name, history in histories.items()}
    figures = (draw_top1_over_time(histories), draw_hyperparameters(histories), draw_costs(costs))
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out / _JSON_NAME, json.dumps(found.to_json(), indent=2) + "\n")
    for name, figure in zip(_PLOTS, figures, strict=True):
        if figure is None:
            (out / name).unlink(missing_ok=True)  # of an earlier comparison
        else:
            write_atomically(out / name, partial(Path.write_bytes, data=png(figure, title=_TITLE)))
