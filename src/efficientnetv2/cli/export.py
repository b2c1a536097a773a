"""``effnetv2 export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import between, flag, option


def export(
    model: options.Model,
    format: Annotated[
        Literal["onnx", "openvino", "torch", "triton"], option("Format.", "onnx|openvino|torch|triton")
    ] = "onnx",
    output: Annotated[Path | None, option("File or folder to write.  [default: next to the model]", "PATH")] = None,
    input: Annotated[
        Literal["float", "uint8"],
        option("float: normalized images. uint8: raw images, preprocessed in the model.", "float|uint8"),
    ] = "float",
    half: Annotated[bool, flag("--half", "Store weights in half precision.")] = False,
    data: Annotated[
        str | None, option("Images to compare on.  [default: the validation images of the run]", "DATA")
    ] = None,
    num_images: Annotated[int, option("Number of images to compare on, at most.", "N", check=between(1))] = 200,
    overwrite: Annotated[bool, flag("--overwrite", "Replace the output if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Export a model to ONNX, OpenVINO, torch.export or Triton, checked from image file to label.

    Examples:
    - `effnetv2 export runs/demo`
    - `effnetv2 export runs/demo --format openvino --half`
    - `effnetv2 export model.safetensors --input uint8 --data photos/`
    """
    from efficientnetv2.workflows import export as workflow

    with Screen(quiet=as_json) as screen:
        made = workflow.export(
            model, format, output, input=input, half=half, data=data, num_images=num_images, overwrite=overwrite
        )
        agreement = made.agreement
        screen.say(
            f"{made.path}: {made.size_bytes / 1e6:.1f} MB, {agreement.milliseconds:.1f} ms per image in {made.runtime}."
        )
        screen.say(
            f"Compared with the original on {agreement.num_images} images: {agreement.label_agreement:.1%} equal "
            f"labels from file to label; largest difference of a probability {agreement.max_difference:.1g} on "
            f"equal pixels, {agreement.max_difference_from_file:.1g} from file."
        )
    if as_json:
        print_json(made.to_json())
