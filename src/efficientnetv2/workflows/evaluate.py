"""Evaluate a model on labeled images: `efficientnetv2.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from efficientnetv2.commands.asking import Asking
from efficientnetv2.commands.evaluate_job import evaluate_and_report
from efficientnetv2.workflows.arguments import (
    TTA,
    PathLike,
    api,
    notes_screen,
    number,
    path_of,
    path_text,
    refuse_launched,
    source_of,
    views_of,
)
from efficientnetv2.workflows.results import Evaluation


@api
def evaluate(
    model: PathLike,
    data: PathLike,
    *,
    split: Literal["train", "minival", "val", "test", "all"] | None = None,
    output: PathLike | None = None,
    image_size: int | None = None,
    sizes: Sequence[int] = (),
    tta: TTA | None = None,
    slices: Sequence[str] | None = None,
    costs: PathLike | None = None,
    abstain_below: float | None = None,
    calibrate: PathLike | None = None,
    baseline: PathLike | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    strict: bool = False,
    path_column: str = "path",
    label_column: str = "label",
    group_column: str | None = None,
    labels: Literal["exact", "casefold"] = "exact",
    label_separator: str | None = None,
    layout: Literal["auto", "classes", "splits"] = "auto",
) -> Evaluation:
    """Evaluate a model on labeled images that it was not trained on.

    Example::

        import efficientnetv2 as ev2

        result = ev2.evaluate("runs/mine", "test/", output="evaluation/")
        low, high = result.intervals["top1"]
        print(result.metrics["top1"], low, high, result.report_path)

    Args:
        model: A run, a cross-validation, or the path of one or of a model file.
        data: Labeled dataset, see `train`.
        split: Part of the dataset. None takes "test" where there is one, else "val", else all of it.
        output: Folder for the report and the predictions. None writes neither.
        image_size: Image size in pixels. None takes that of the model.
        sizes: Further image sizes to compare.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        slices: Columns of the dataset to report metrics by. None takes those with few values or numbers, () none.
        costs: CSV with the cost of each mistake: a row per true class, a column per predicted class.
        abstain_below: Probability below which an image is left to a person.
        calibrate: Model file to write, its temperature fitted on these images.
        baseline: A run, or the folder of another evaluation, to compare with on the same images.
        device: Device to compute on, see `train`.
        workers: Processes that read images, see `train`.
        strict: Stop at the first unreadable image instead of skipping it.
        path_column: Column of a table with the path of the image.
        label_column: Column of a table with the label.
        group_column: Column whose equal values are drawn as a whole by intervals. None takes "group", if there is one.
        labels: "casefold" merges labels that differ only by case, surrounding spaces or Unicode encoding.
        label_separator: Text between the labels of an image that has several.
        layout: Meaning of the sub-folders of ``data``: "auto", "classes" or "splits".

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_launched("evaluate")
    table = {
        "path_column": path_column, "label_column": label_column, "group_column": group_column, "labels": labels,
        "label_separator": label_separator, "layout": layout,
    }  # fmt: skip
    folder = path_of("output", output)
    outcome = evaluate_and_report(
        path_text("model", model),
        source_of(data, table),
        split=split,
        out=folder,
        device=str(device),
        workers=number("workers", workers, 0),
        strict=strict,
        as_json=False,
        image_px=number("image_size", image_size, 1),
        sizes=",".join(map(str, sizes)) or None,
        views=views_of(tta),
        asking=Asking(
            None if slices is None else ",".join(slices) or "none",
            path_of("costs", costs),
            number("abstain_below", abstain_below, 0, 1, whole=False),
            path_of("baseline", baseline),
            path_of("calibrate", calibrate),
        ),
        screen=notes_screen(),
    )
    assert outcome is not None, "this is the only process"
    return Evaluation(folder, outcome.to_json(), outcome.table())
