"""``effnetv2 models``: every published network, with what it costs."""

from __future__ import annotations

from typing import Any

from efficientnetv2.commands import options
from efficientnetv2.commands.screen import Screen, answer


def models(as_json: options.Json = False) -> None:
    """List every published network: parameters, multiply-adds, and the size they are counted at.

    Examples:
    - `effnetv2 models`
    - `effnetv2 models --json`
    """
    from efficientnetv2.arch.cost import cost
    from efficientnetv2.arch.published import NAMES, published

    rows: list[dict[str, Any]] = []
    for name in NAMES:
        network = published(name)
        total = cost(network.architecture, image_px=network.eval_px).total
        rows.append(
            {
                "name": name,
                "parameters": total.parameters,
                "multiply_adds": total.multiply_adds,
                "eval_px": network.eval_px,
            }
        )
    if as_json:
        answer(rows)
        return
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
