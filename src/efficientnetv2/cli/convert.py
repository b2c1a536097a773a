"""``effnetv2 convert``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, between, flag, option
from efficientnetv2.preprocessing import TTA, CropMode
from efficientnetv2.progressive.schedule import IMAGE_SIZE

_of_input = partial(option, panel="What IN does not state, or states wrongly")


def _numbers(text: str | None) -> str | None:
    """A callback that checks numbers with commas."""
    try:
        [float(part) for part in (text or "0").split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"invalid value '{text}' (must be a number per channel, such as 0.485,0.456,0.406)"
        ) from None
    return text


def convert(
    source: Annotated[
        Path, argument("IN", "Model file, run, or weights of timm, torchvision, Keras or google/automl.")
    ],
    output: Annotated[
        Path, argument("OUT", "A .safetensors file; for others also .pth, .h5, .keras, or a folder for timm.")
    ],
    to: Annotated[
        Literal["timm", "torchvision", "keras"] | None, option("Library that will read OUT.  [default: a model file]")
    ] = None,
    model: Annotated[str | None, option("Model of IN, if the file does not state it.", "NAME")] = None,
    half: options.Half = False,
    overwrite: Annotated[bool, flag("--overwrite", "Replace OUT if it exists.")] = False,
    as_json: options.Json = False,
    class_names: Annotated[str | None, _of_input("File of names, or names with commas.", "NAME,NAME")] = None,
    image_size: Annotated[int | None, _of_input("Image size.", "PX", check=between(*IMAGE_SIZE))] = None,
    crop_mode: Annotated[CropMode | None, _of_input("Squeeze, cut the center, or add margins.")] = None,
    crop_pct: Annotated[float | None, _of_input("Kept part of the shorter side, with squash of both.", "X")] = None,
    interpolation: Annotated[Literal["bilinear", "bicubic"] | None, _of_input("Resize interpolation.")] = None,
    mean: Annotated[str | None, _of_input("Mean per channel, in [0, 1].", "X,X,X", check=_numbers)] = None,
    std: Annotated[str | None, _of_input("Standard deviation per channel.", "X,X,X", check=_numbers)] = None,
    tta: Annotated[TTA | None, _of_input("Average over flips and turns.", "none|d4")] = None,
) -> None:
    """Convert weights from and to timm, torchvision and Keras.

    Examples:
    - `effnetv2 convert tf_efficientnetv2_s.safetensors s.safetensors`
    - `effnetv2 convert runs/demo for_timm --to timm`
    - `effnetv2 convert trees.keras trees.safetensors --class-names oak,elm --crop-mode squash`
    """
    from efficientnetv2.workflows import convert as workflow

    given = {
        "image_size": image_size, "crop_mode": crop_mode, "crop_pct": crop_pct, "interpolation": interpolation,
        "mean": mean, "std": std, "tta": tta
    }  # fmt: skip
    preprocessing: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in {"mean", "std"} & preprocessing.keys():
        preprocessing[name] = tuple(map(float, preprocessing[name].split(",")))
    with Screen(quiet=as_json) as screen:
        made = workflow.convert(
            source, output, to=to, model=model, class_names=class_names, preprocessing=preprocessing,
            half=half, overwrite=overwrite
        )  # fmt: skip
        screen.say(f"Recognized: {made.recognized}.")
        for line in workflow.describe_network(made.network):
            screen.say(line)
        for note in made.notes:
            screen.say(f"Note: {note.rstrip('.')}.")
        screen.say(f"Written to {output}.")
        if to == "timm" and output.is_dir():
            screen.say(f'In timm: timm.create_model("local-dir:{output}", pretrained=True)')
    if as_json:
        print_json(made.to_json())
