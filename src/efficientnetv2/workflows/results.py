"""What training and evaluation return: metrics, confidence intervals, predictions and a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import escape

from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import absolute_path, link_to, read_object, shown_path

if TYPE_CHECKING:  # torch, which takes seconds
    from efficientnetv2.models.efficientnet import Network

# Metrics of a report, the most important first; a report of several labels per image has other ones.
_METRICS = (
    "top1", "top5", "macro_f1", "balanced_accuracy", "mean_average_precision", "f1_micro", "f1_macro", "ece",
    "majority_top1",
)  # fmt: skip
_REPR_METRICS = 3  # Metrics of a repr. Ours.
# Columns of predictions that hold text, whatever it looks like.
_TEXT = ("path", "predicted_label", "true_label", *(f"predicted_label_{place}" for place in range(2, 6)))


class Result:
    """Metrics, confidence intervals and predictions on labeled images; what is not given is read from ``path``."""

    _noun, _file = "an evaluation", ""
    _reasons: int | None = 1  # how many of the report's notes say why metrics are optimistic; None: all

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        report: dict[str, Any] | None = None,
        predictions: pd.DataFrame | None = None,
    ) -> None:
        self.path = None if path is None else absolute_path(path)
        if report is not None:
            self.report = report
        if predictions is not None:
            self.predictions = predictions

    @cached_property
    def report(self) -> dict[str, Any]:
        """Contents of ``report.json``: metrics, facts and findings as plain values."""
        self._require_folder()
        return read_object(Path(self.path or "") / "report.json", "top1", "intervals", fix=self._fix)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per image: path, predicted_label, probability, true_label, and the probability of each class.

        Of more than 1,000 classes it has the five most probable instead. Where images belong together, the last column,
        ``cluster``, says which.
        """
        self._require_folder()
        file = Path(self.path or "") / "predictions.csv"
        try:
            return pd.read_csv(file, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {error}. {self._fix}") from error

    @property
    def metrics(self) -> dict[str, float]:
        """Top-1 accuracy, mean F1 over classes, expected calibration error and others, from 0 to 1."""
        return {name: self.report[name] for name in _METRICS if self.report.get(name) is not None}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % confidence intervals (low, high) of metrics; bootstrapped by cluster where images belong together."""
        found = self.report["intervals"].items()
        return {name: (low, high) for name, (low, high) in found if low is not None and high is not None}

    @property
    def report_path(self) -> Path | None:
        """The HTML report; None where none was written."""
        return None if self.path is None else self.path / "report.html"

    @property
    def _fix(self) -> str:
        return "Evaluate again."

    def _require_folder(self) -> None:
        """Refuse a folder that does not exist: there is nothing to resume or to evaluate again."""
        if not self._has_folder:
            raise InputError(f"{self.path} does not exist. Give the folder of {self._noun}.")
        if self.path is not None and self._file and not (self.path / self._file).exists():
            raise InputError(f"{self.path} has no {self._file}. Give the folder of {self._noun}.")

    @property
    def _has_folder(self) -> bool:
        return self.path is None or self.path.is_dir()

    @property
    def _warning(self) -> str:
        """Why the metrics are optimistic; '' if nothing is known."""
        if not self.report.get("optimistic"):
            return ""
        notes = self.report.get("notes") or ["these images trained or selected the model"]
        return f"optimistic: {' '.join(notes[: self._reasons]).removesuffix('.')}"

    @property
    def _finished(self) -> bool:
        return "report" in vars(self) or (self.path is not None and (self.path / "report.json").is_file())

    def __repr__(self) -> str:
        shown = [] if self.path is None else [repr(shown_path(self.path))]
        try:
            if self._finished:
                shown += [f"{name}={value:.3f}" for name, value in list(self.metrics.items())[:_REPR_METRICS]]
                shown += [self._warning] * bool(self._warning)
            else:
                shown.append("not finished" if self._has_folder else "no such folder")
        except InputError:
            shown.append("cannot be read")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        try:
            intervals = self.intervals if self._finished else None
        except InputError:
            intervals = None
        if intervals is None:
            return f"<code>{escape(repr(self))}</code>"
        rows = [
            (name, f"{value:.3f}", "–".join(f"{end:.3f}" for end in intervals.get(name, ())))
            for name, value in self.metrics.items()
        ]
        place = "" if self.path is None else shown_path(self.path)
        title = f"{type(self).__name__} {place}: {self.report['num_images']:,} images"
        title += f" ({self._warning})" if self._warning else ""
        return html_table(title, ["metric", "value", "95 % interval"], rows, self.report_path)


class TrainedResult(Result):
    """A report in the folder of what was trained; usable as a path."""

    path: Path
    _function: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def report_path(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def _fix(self) -> str:
        call = f"efficientnetv2.{self._function}(DATA, output={str(self.path)!r}, resume=True)"
        return f"If it has not finished, resume it: {call}"

    @cached_property
    def model(self) -> Network:
        """The trained model, on the CPU and in evaluation mode. It is read when it is first used."""
        from efficientnetv2.models import model_file

        return model_file.load(self.path)


class Run(TrainedResult):
    """A training run.

    A run stands for its folder: wherever a path is taken, as by `evaluate` or `Predictor`, a run can be passed.

    Example::

        import efficientnetv2 as ev2

        run = ev2.Run("runs/mine")
        run.metrics["top1"], run.report_path
        errors = run.predictions.query("predicted_label != true_label")  # of validation, one label per image

    Args:
        path: Folder of the run.

    Raises:
        InputError: On first use of a result, where the run has not finished or does not exist.
    """

    _function, _noun, _file = "train", "a run", "recipe.yaml"


class CrossValidation(TrainedResult):
    """A cross-validation: its metrics are of the out-of-fold predictions of all folds.

    Its `model` averages the probabilities of the models of the folds.

    Example::

        import efficientnetv2 as ev2

        folds = ev2.CrossValidation("runs/folds")
        folds.metrics["macro_f1"], folds.intervals["macro_f1"], folds.report_path

    Args:
        path: Folder of the cross-validation.

    Raises:
        InputError: On first use of a result, where the cross-validation has not finished or does not exist.
    """

    _function, _noun, _file = "cross_validate", "a cross-validation", "crossval.json"

    @property
    def folds(self) -> list[dict[str, Any]]:
        """Metrics of each fold."""
        folds: list[dict[str, Any]] = self.report["folds"]
        return folds


class Evaluation(Result):
    """Metrics of a model on labeled images, as `evaluate` returns them.

    Example::

        import efficientnetv2 as ev2

        evaluation = ev2.evaluate("runs/mine", "test/", output="evaluation/")
        evaluation = ev2.Evaluation("evaluation/")  # later
        evaluation.metrics["top1"], evaluation.intervals["top1"]

    Args:
        path: Folder that `evaluate` wrote. None where it wrote none.
        report: Content of ``report.json``. None reads it when it is first used.
        predictions: Content of ``predictions.csv``. None reads it when it is first used.
    """

    _reasons = None


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], report: Path | None = None) -> str:
    """A table for notebooks, every text escaped, with a link to a report."""
    link = ""
    if report is not None:
        # Jupyter serves files below its folder; browsers open no file: link of its pages.
        link = f'<p><a href="{escape(link_to(report, Path.cwd()))}">{escape(shown_path(report))}</a></p>'
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return f"<p><b>{escape(title)}</b></p><table><tr>{head}</tr>{body}</table>{link}"
