"""Predict the classes of images: `efficientnetv2.predict`."""

from __future__ import annotations

import pandas as pd
import torch

from efficientnetv2.commands.predict_job import predict_and_write
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


@api
def predict(
    model: PathLike,
    data: PathLike,
    *,
    output: PathLike | None = None,
    rank: PathLike | None = None,
    abstain_below: float | None = None,
    tta: TTA | None = None,
    label_separator: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    strict: bool = False,
    path_column: str = "path",
    label_column: str = "label",
) -> pd.DataFrame:
    """Predict the class of every image of a dataset. For single images in a loop or a service, use `Predictor`.

    Example::

        import efficientnetv2 as ev2

        table = ev2.predict("runs/mine", "new_photos/")
        print(table[["path", "label", "probability"]])

    Args:
        model: A run, a cross-validation, or the path of one or of a model file.
        data: An image, a folder of images, a table with a column of paths, or shards.
        output: CSV to write as well. Predictions that were interrupted are then resumed.
        rank: CSV to write with the images in the order in which labels would help most.
        abstain_below: Probability below which the label of an image stays empty.
        tta: Test-time augmentation: "none", or "d4" for all eight flips and rotations. None takes that of the model.
        label_separator: For a multi-label model: give each image all its labels, with this text between them.
        device: Device to compute on, see `train`.
        workers: Processes that read images, see `train`.
        strict: Stop at the first unreadable image instead of skipping it.
        path_column: Column of a table with the path of the image.
        label_column: Column of a table with the label. Only ``rank`` uses labels.

    Returns:
        A row per readable image: path, label, probability, and the probability of each class; of more than 1,000
        classes the five most probable.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_launched("predict")
    table = predict_and_write(
        path_text("model", model),
        source_of(data, {"path_column": path_column, "label_column": label_column}),
        out=path_of("output", output),
        rank=path_of("rank", rank),
        device=str(device),
        workers=number("workers", workers, 0),
        strict=strict,
        as_json=False,
        abstain_below=number("abstain_below", abstain_below, 0, 1, whole=False),
        views=views_of(tta),
        separator=label_separator,
        screen=notes_screen(),
    )
    assert table is not None, "this is the only process"
    return table
