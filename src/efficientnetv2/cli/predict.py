"""``effnetv2 predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, between, option


def predict(
    model: options.Model,
    data: Annotated[
        str, argument("DATA", "An image, a folder (any depth), a CSV or Parquet file with a path column, or shards.")
    ],
    out: Annotated[Path, option("Table to write.", "CSV", "--output")] = Path("predictions.csv"),
    rank: Annotated[Path | None, option("Rank images to label next (active learning), with a page.", "CSV")] = None,
    abstain_below: Annotated[
        float | None, option("Leave the label empty if the top probability is below P.", "P", check=between(0, 1))
    ] = None,
    tta: options.Tta = None,
    label_separator: Annotated[
        str | None, option("Multi-label models: write all predicted labels, joined by this.", "TEXT")
    ] = None,
    embeddings: Annotated[Path | None, option("Write the embedding of each image.", "PARQUET")] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    path_column: Annotated[str, option("Column of the image path.", "NAME")] = "path",
    label_column: Annotated[str, option("Column of the label, for --rank.", "NAME")] = "label",
    strict: options.Strict = False,
    engine: options.Engine = "auto",
    as_json: options.Json = False,
) -> None:
    """Predict the classes of new images, and write a CSV file.

    The file has the predicted class and the probability of each class. With more than 1,000 classes, it has the
    five most probable. An earlier file of predictions of the same classes is replaced.
    Repeat a stopped command to continue it.

    Examples:
    - `effnetv2 predict runs/demo new_photos/`
    - `effnetv2 predict runs/demo new_photos/ --abstain-below 0.8 --output labels.csv`
    - `effnetv2 predict runs/demo unlabeled/ --rank unlabeled/next.csv`
    """
    from efficientnetv2.data.config import DataConfig
    from efficientnetv2.workflows.batch_predict import InferenceOptions
    from efficientnetv2.workflows.predict import PredictOptions, predict_and_write

    chosen = PredictOptions(out, rank, abstain_below, tta, label_separator, embeddings)
    inference = InferenceOptions(device, workers, strict, engine)
    with Screen(quiet=as_json):
        table = predict_and_write(model, DataConfig(data, path_column, label_column), chosen, inference)
    if as_json and table is not None:
        print_json(table.to_dict(orient="records"))
