"""``effnetv2 models``."""

from __future__ import annotations

from typing import Annotated, Any

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import flag, option
from efficientnetv2.utils.shell import shell_join


def models(
    pretrained: Annotated[bool, flag("--pretrained", "List pretrained weights instead.")] = False,
    fetch: Annotated[str | None, option("Download weights, and print where the file is.", "NAME")] = None,
    as_json: options.Json = False,
) -> None:
    """List the published models, or pretrained weights.

    Examples:
    - `effnetv2 models --pretrained`
    - `effnetv2 models --fetch efficientnetv2_b0.in1k`
    """
    if fetch is not None:
        _fetch(fetch, as_json=as_json)
        return
    from efficientnetv2.workflows.model_list import pretrained_weights, published_models

    rows = pretrained_weights() if pretrained else published_models()
    if as_json:
        print_json(rows)
    elif pretrained:
        _print_pretrained(rows)
    else:
        Screen().table(
            "Published models (1,000 classes; MACs of one image at the evaluation size)",
            ["name", "parameters", "MACs", "px"],
            [
                [
                    row["name"],
                    f"{row['parameters']:,}",
                    f"{row['multiply_adds'] / 1e9:,.2f} G",
                    str(row["eval_image_size"]),
                ]
                for row in rows
            ],
        )


def _fetch(name: str, *, as_json: bool) -> None:
    """Download weights into the cache, and print how another machine uses the file."""
    from efficientnetv2.models import hub

    with Screen() as screen:
        path = hub.fetch(name)
    megabytes = round(path.stat().st_size / 1e6, 1)
    if as_json:
        print_json({"name": name, "path": str(path), "megabytes": megabytes})
        return
    copy = f"{name}{path.suffix}"
    screen.say(f"File: {path} ({megabytes:g} MB)")
    screen.say(f"To train from it: {shell_join(['effnetv2', 'train', 'DATA', '--weights', name])}")
    screen.say(f"For a machine without a network, copy it: {shell_join(['cp', str(path), copy])}")
    screen.say(f"Train there with: {shell_join(['effnetv2', 'train', 'DATA', '--weights', copy])}")


def _print_pretrained(rows: list[dict[str, Any]]) -> None:
    screen = Screen()
    screen.table(
        "Pretrained weights (ImageNet-1k top-1 as published by their source; see docs/weights.md)",
        ["name", "px", "top-1 %", "about MB", "license", "source", "cached"],
        [
            [
                row["name"],
                str(row["image_size"]),
                "" if row["top1_percent"] is None else f"{row['top1_percent']:.1f}",
                f"{row['megabytes_about']:.0f}",
                row["license"].partition(" ")[0],
                row["source"],
                "yes" if row["cached"] else "no",
            ]
            for row in rows
        ],
    )
    screen.say(
        "Weights that are not cached are downloaded when used. Those without top-1 have other classes."
    )
