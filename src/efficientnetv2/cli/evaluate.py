"""``effnetv2 evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import between, option, spread


@spread
def evaluate(
    model: options.Model,
    data: options.Data,
    table: options.LabeledOptions,
    split: Annotated[
        Literal["train", "minival", "val", "test", "all"] | None,
        option("train, minival, val, test or all.  [default: test, else val, else all]", "NAME"),
    ] = None,
    out: Annotated[
        Path | None, option("Folder for report.html, report.json and predictions.csv.", "FOLDER", "--output")
    ] = None,
    image_size: Annotated[int | None, option("Image size.  [default: the model's]", "PX")] = None,
    sizes: Annotated[str | None, option("Image sizes to compare.", "PX,PX", "--eval-sizes")] = None,
    tta: options.Tta = None,
    slices: Annotated[
        str | None, option("Columns of subgroups, or none.  [default: those with few values]", "NAME,NAME")
    ] = None,
    costs: Annotated[
        Path | None, option("Cost of each mistake: a row per true class, a column per prediction.", "CSV")
    ] = None,
    abstain_below: Annotated[
        float | None, option("Report the metrics above this probability.", "P", check=between(0, 1))
    ] = None,
    calibrate: Annotated[Path | None, option("Fit a temperature, and write the model.", "FILE")] = None,
    baseline: Annotated[Path | None, option("Evaluation of the same images, to compare with.", "RUN")] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    strict: options.Strict = False,
    engine: options.Engine = "auto",
    as_json: options.Json = False,
) -> None:
    """Evaluate a model on labeled images, with confidence intervals.

    Examples:
    - `effnetv2 evaluate runs/demo test.csv --output evaluation/`
    - `effnetv2 evaluate model.safetensors test.csv --baseline evaluations/before`
    """
    from efficientnetv2.cli.result_tables import ResultPrinter
    from efficientnetv2.workflows.batch_predict import InferenceOptions
    from efficientnetv2.workflows.evaluate import evaluate_and_report
    from efficientnetv2.workflows.evaluate_options import EvaluateOptions

    chosen = EvaluateOptions(split, out, image_size, sizes, tta, slices, costs, abstain_below, calibrate, baseline)
    inference = InferenceOptions(device, workers, strict, engine)
    with Screen(quiet=as_json) as screen:
        on_result = ResultPrinter(screen, as_json=as_json)
        evaluate_and_report(model, table.data_config(data), chosen, inference, on_result)
