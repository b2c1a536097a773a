"""``effnetv2 models``: every published network, with what it costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json

Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="List the weights that can be had by name instead: top-1, megabytes, licence, where from.",
    ),
]

Fetch = Annotated[
    str | None,
    typer.Option("--fetch", metavar="NAME", help="Download pretrained weights and print where the file is."),
]


def models(pretrained: Pretrained = False, fetch: Fetch = None, as_json: options.Json = False) -> None:
    """List every published network: parameters, multiply-adds, and the size they are counted at.

    Examples:
    - `effnetv2 models`
    - `effnetv2 models --json`
    - `effnetv2 models --pretrained`
    - `effnetv2 models --fetch efficientnetv2_b0.in1k`
    """
    if fetch is not None:
        _fetch(fetch, as_json=as_json)
        return
    rows = _pretrained() if pretrained else _published()
    if as_json:
        print_json(rows)
    elif pretrained:
        _show_pretrained(rows)
    else:
        _show_published(rows)


def _fetch(name: str, *, as_json: bool) -> None:
    """Download weights into the cache, and say where the file is and how another machine uses it."""
    from efficientnetv2.models import hub
    from efficientnetv2.utils.shell import shell_join

    screen = Screen()
    with screen:
        path = hub.fetch(name)
    megabytes = round(path.stat().st_size / 1e6, 1)
    if as_json:
        print_json({"name": name, "path": str(path), "megabytes": megabytes})
        return
    carried = f"{name}{path.suffix}"
    screen.say(f"File: {path} ({megabytes:g} MB)")
    screen.say(f"To train from it: {shell_join(['effnetv2', 'train', 'DATA', '--weights', name])}")
    screen.say(f"For a machine without a network, copy it: {shell_join(['cp', str(path), carried])}")
    screen.say(f"Train there with: {shell_join(['effnetv2', 'train', 'DATA', '--weights', carried])}")


def _published() -> list[dict[str, Any]]:
    from efficientnetv2.architectures.flops import count_flops
    from efficientnetv2.architectures.registry import NAMES, published

    rows: list[dict[str, Any]] = []
    for name in NAMES:
        network = published(name)
        total = count_flops(network.architecture, image_px=network.eval_px).total
        rows.append(
            {
                "name": name,
                "parameters": total.parameters,
                "multiply_adds": total.multiply_adds,
                "eval_px": network.eval_px,
            }
        )
    return rows


def _show_published(rows: list[dict[str, Any]]) -> None:
    Screen().table(
        "Published networks (1,000 classes; multiply-adds for one picture at the size they are evaluated at)",
        ["name", "parameters", "multiply-adds", "at px"],
        [
            [
                row["name"],
                f"{row['parameters']:,}",
                f"{row['multiply_adds'] / 1e9:,.2f} G",
                str(row["eval_px"]),
            ]
            for row in rows
        ],
    )


def _pretrained() -> list[dict[str, Any]]:
    from efficientnetv2.architectures.flops import FLOAT_BYTES, count_flops
    from efficientnetv2.architectures.registry import published
    from efficientnetv2.models import hub
    from efficientnetv2.models.pretrained import Pretrained as Weights
    from efficientnetv2.models.pretrained import about, names

    def megabytes(entry: Weights) -> float:
        table = published(entry.model).architecture
        total = count_flops(table, image_px=entry.preprocessing.image_px, num_classes=entry.num_classes).total
        return round(total.parameters * FLOAT_BYTES / 1e6, 1)

    user = hub.Hub()
    return [
        {
            "name": name,
            "model": entry.model,
            "image_px": entry.preprocessing.image_px,
            "num_classes": entry.num_classes,
            "top1_percent": entry.top1_percent,
            "megabytes_about": megabytes(entry),
            "licence": entry.licence,
            "source": entry.source,
            "url": hub.url(name, user),
            "cached": None if (path := hub.cached(name, user)) is None else str(path),
        }
        for name, entry in ((name, about(name)) for name in names())
    ]


def _show_pretrained(rows: list[dict[str, Any]]) -> None:
    screen = Screen()
    screen.table(
        "Pretrained weights (top-1 on ImageNet-1k as their source publishes it; more in docs/weights.md)",
        ["name", "at px", "top-1 %", "about MB", "licence", "source", "cached"],
        [
            [
                row["name"],
                str(row["image_px"]),
                "" if row["top1_percent"] is None else f"{row['top1_percent']:.1f}",
                f"{row['megabytes_about']:.0f}",
                row["licence"].partition(" ")[0],
                row["source"],
                "yes" if row["cached"] else "no",
            ]
            for row in rows
        ],
    )
    screen.say(
        "About MB: of the download, four bytes for each parameter. Cached: whether the file is on this machine; "
        "else it is fetched when it is asked for. No top-1: of classes other than ImageNet-1k's, to go on from."
    )
