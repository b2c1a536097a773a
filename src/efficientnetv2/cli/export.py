"""``effnetv2 export`` and ``effnetv2 push``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import advanced, argument, between, flag, option
from efficientnetv2.utils.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from efficientnetv2.exporters.verify import AccuracyDifference
    from efficientnetv2.workflows.export import Export

_CLASSES = 10  # classes whose F1 changes most. Ours
_LAYERS = 3  # names of float layers, so that they fit on a line. Ours
# Columns of numbers of the table of formats.
_BENCHMARK = {
    "megabytes": ".1f", "accuracy": ".1%", "label_agreement": ".1%", "max_difference": ".1g",
    "milliseconds": ".1f", "images_per_s": ".0f"
}  # fmt: skip


def export(
    model: options.Model,
    format: Annotated[
        Literal["onnx", "openvino", "torch", "triton", "web", "litert", "executorch", "coreml"],
        option("onnx, openvino, torch, triton, web (a page), litert, executorch or coreml.", "FORMAT"),
    ] = "onnx",
    output: Annotated[Path | None, option("File or folder to write.  [default: next to the model]", "PATH")] = None,
    input: Annotated[
        Literal["float", "uint8"],
        option("float: normalized images. uint8: raw images, preprocessed in the model.", "float|uint8"),
    ] = "float",
    half: options.Half = False,
    int8: Annotated[bool, flag("--int8", "Quantize to 8 bits, and measure the loss of accuracy.")] = False,
    data: Annotated[
        str | None, option("Images to compare on.  [default: of the run, validation images first]", "DATA")
    ] = None,
    calibration: Annotated[
        str | None, advanced("Images for --int8.  [default: training images of the run]", "DATA")
    ] = None,
    num_images: Annotated[
        int | None,
        advanced(
            "Images to compare on, at most.  [default: 200; with --int8 2,000; with --benchmark 500]",
            "N",
            check=between(1),
        ),
    ] = None,
    runtime: Annotated[
        Path | None, option("npm package onnxruntime-web for --format web: file of npm pack, or folder.", "PATH")
    ] = None,
    benchmark: Annotated[bool, flag("--benchmark", "Compare all installed formats. Writes no file.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", "Replace an earlier export.")] = False,
    path_column: Annotated[str, advanced("Column of the image path, in a table.", "NAME")] = "path",
    label_column: Annotated[str, advanced("Column of the label, in a table.", "NAME")] = "label",
    as_json: options.Json = False,
) -> None:
    """Export a model for servers, browsers or phones.

    Examples:
    - `effnetv2 export runs/demo`
    - `effnetv2 export runs/demo --format openvino --int8`
    - `effnetv2 export model.safetensors --input uint8 --data photos/`
    - `effnetv2 export runs/demo --format web --runtime onnxruntime-web-1.30.0.tgz`
    - `effnetv2 export runs/demo --format litert`
    - `effnetv2 export runs/demo --benchmark`
    """
    from efficientnetv2.workflows import benchmark as benchmark_workflow
    from efficientnetv2.workflows import export as workflow

    columns = {"path_column": path_column, "label_column": label_column}
    with Screen(quiet=as_json) as screen:
        if benchmark:
            if (
                output is not None or half or int8 or overwrite or input != "float" or format != "onnx"
                or runtime is not None
            ):  # fmt: skip
                raise InputError(
                    "`benchmark` compares all formats and writes no file. Leave `format`, `output`, `input`, `half`, "
                    "`int8`, `runtime` and `overwrite` out."
                )
            table = benchmark_workflow.benchmark(model, data, calibration=calibration, num_images=num_images, **columns)
            _print_benchmark(table, screen)
            if as_json:
                print_json(table.astype(object).where(table.notna(), None).to_dict(orient="records"))
            return
        made = workflow.export(
            model,
            format,
            output,
            input=input,
            half=half,
            int8=int8,
            data=data,
            calibration=calibration,
            num_images=num_images,
            runtime=runtime,
            overwrite=overwrite,
            **columns,
        )
        _print_export(made, screen)
    if as_json:
        print_json(made.to_json())


def push(
    model: Annotated[str, argument("MODEL", "A model.safetensors or a run folder.")],
    repo: Annotated[str | None, argument("[REPO]", "Repository on the hub, owner/name.")] = None,
    output: Annotated[Path | None, option("Also write the files here; without REPO, only here.", "FOLDER")] = None,
    evaluation: Annotated[
        Path | None,
        option("Result of evaluate --output, for the model card.  [default: the report of the run]", "FOLDER"),
    ] = None,
    license: Annotated[str | None, option("License of the model on the hub, such as apache-2.0.", "NAME")] = None,
    private: Annotated[bool, flag("--private", "Make a new repository private.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", "Replace the files in REPO (a new commit) and in FOLDER.")] = False,
    as_json: options.Json = False,
) -> None:
    """Share a model on the Hugging Face Hub, for timm and transformers.

    Examples:
    - `effnetv2 push runs/demo owner/name`
    - `effnetv2 push runs/demo owner/name --evaluation evaluation/ --license apache-2.0`
    - `effnetv2 push runs/demo --output for_the_hub`
    """
    from efficientnetv2.workflows import push as workflow

    with Screen(quiet=as_json) as screen:
        pushed = workflow.push(
            model, repo, output=output, evaluation=evaluation, license=license, private=private, overwrite=overwrite
        )
        for note in pushed.notes:
            screen.say(f"Note: {note.rstrip('.')}.")
        screen.say(f"Written to {' and '.join(str(place) for place in (pushed.url, pushed.folder) if place)}.")
        name = f"local-dir:{output}" if repo is None else f"hf_hub:{repo}"
        screen.say(f'In timm: timm.create_model("{name}", pretrained=True)')
        if pushed.opens_in_transformers:
            screen.say(f'In transformers: pipeline("image-classification", model="{repo or output}")')
    if as_json:
        print_json(pushed.to_json())


def _print_export(made: Export, screen: Screen) -> None:
    agreement = made.agreement
    if agreement is None:
        screen.say(f"{made.path}: {made.size_bytes / 1e6:.1f} MB, verified: false (Core ML packages are not compared).")
        return
    screen.say(
        f"{made.path}: {made.size_bytes / 1e6:.1f} MB, {agreement.milliseconds:.1f} ms per image in {made.runtime}."
    )
    screen.say(
        f"Compared with the original on {agreement.num_images} images: {agreement.label_agreement:.1%} equal labels "
        f"from file to label; largest difference of a probability {agreement.max_difference:.1g} on equal pixels, "
        f"{agreement.max_difference_from_file:.1g} from file."
    )
    if made.precision == "int8":
        count, names = len(made.float_layers), ", ".join(made.float_layers[:_LAYERS])
        rest = ", … (all: --json)" if count > _LAYERS else ""
        screen.say(f"Layers in float: {count}{': ' if names else ''}{names}{rest}.")
        if made.accuracy is None:
            screen.say(
                "The loss of accuracy is not known: the images have no labels of the model's classes, or several each, "
                "which only a model in its run folder can compare."
            )
        else:
            _print_accuracy(made.accuracy, screen)


def _print_accuracy(accuracy: AccuracyDifference, screen: Screen) -> None:
    screen.say(
        f"Accuracy on {accuracy.num_images} labeled images: {accuracy.accuracy:.1%}, int8 minus original "
        f"{accuracy.difference.points}; 95 % interval."
    )
    rows = [
        [name, f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}"]
        for name, one in sorted(accuracy.f1.items(), key=lambda item: item[1].value)[:_CLASSES]
    ]
    screen.table("F1 by class, int8 minus original, the largest losses first", ["class", "difference", "95 %"], rows)


def _print_benchmark(table: pd.DataFrame, screen: Screen) -> None:
    """A row per format; a format that failed has its error below."""
    from efficientnetv2.metrics.confidence_intervals import Difference

    def cells(row: dict[str, Any]) -> list[str]:
        ends = row["difference"], row["low"], row["high"]
        texts = ["–" if math.isnan(row[name]) else format(row[name], form) for name, form in _BENCHMARK.items()]
        texts.insert(2, "–" if math.isnan(ends[0]) else Difference(*ends).points)
        return [row["format"], row["precision"], *texts]

    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict(orient="records")]
    columns = [
        "format",
        "precision",
        "MB",
        "accuracy",
        "minus PyTorch (95 %)",
        "equal labels",
        "largest difference",
        "ms",
        "images/s",
    ]
    screen.table("Formats", columns, [cells(row) for row in rows])
    for row in rows:
        if row["error"]:
            screen.say(f"{row['format']}, {row['precision']}: {row['error']}")
