"""``effnetv2 augment``: pictures as the network gets them in training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import spread


@spread
def augment(
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write. (Default: augmented.png.)", show_default=False)
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(help="How many, side by side, of all classes in turn.", callback=options.between(1, 24)),
    ] = 8,
    device: options.Device = "auto",
    strict: options.Strict = False,
) -> None:
    """Draw a sheet of what each stage of the recipe feeds to the network.

    The words of `train` decide the recipe. The sheet is made by the same code as training: the crop is drawn, decoded
    and resized, then flips, colours, RandAugment, holes, and mixing with the partners of the group. Above stands each
    picture as evaluation sees it. Look whether the subject is still there, and whether colours are still possible.

    Examples:
    - `effnetv2 augment photos/`
    - `effnetv2 augment train.csv --set augment.flip=symmetries --set crop_area_min=0.7 --out sheet.png`
    - `effnetv2 augment photos/ --recipe efficientnetv2_s_paper --pictures 6`
    """
    from efficientnetv2.workflows.augmentation_preview import draw_sheet

    with Screen():
        draw_sheet(recipe.words(), table.source(data), out, pictures=pictures, device=device, strict=strict)
