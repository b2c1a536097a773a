"""Tables 1, 7 and 11: parameters and multiply-adds, counted, and the time of an answer, measured here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import NAMES, published
from efficientnetv2.base.errors import count_of
from efficientnetv2.base.timing import alternate
from efficientnetv2.commands.reproduction import table
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.inference.accelerate import place
from efficientnetv2.models.create import create

Say = Callable[[str], None]

# Key of paper.json, title, what the paper's speeds are, the column of the paper that ours stands beside.
_TABLES = {
    "1": ("table1_efficiency", "Table 1: parameters and multiply-adds of earlier networks", ""),
    "7": ("table7_imagenet", "Table 7: EfficientNetV2 on ImageNet", "infer_ms_v100_fp16_batch16"),
    "11": ("table11_scaling_down", "Table 11: small networks", "v100_fp16_batch128_img_s"),
}
_TABLE_1_COLUMNS = ["top1", "params_m", "flops_b"]
_UNITS = {"top1": "%", "params_m": "M", "flops_b": "B", "train_hours": "h"}
_HEADINGS = {
    "top1": "top-1 %",
    "params_m": "parameters, M",
    "flops_b": "multiply-adds, B",
    "train_hours": "hours",
}


def counted(name: str, scale: Scale, device: torch.device, say: Say) -> Table:
    """One of the three tables.

    Args:
        name: "1", "7" or "11".
        scale: of the measured times; what is counted is the paper's.
        device: to measure on.
        say: told what is going on.
    """
    key, title, paper_speed = _TABLES[name]
    figures = table.paper()[key]
    columns = figures.get("columns", _TABLE_1_COLUMNS)
    rows = [
        _row(network, dict(zip(columns, values, strict=True)), paper_speed, scale, device, say)
        for network, values in figures.items()
        if network != "columns"
    ]
    return Table(
        name,
        title,
        tuple(rows),
        "top-1 on ImageNet, hours on 32 TPUv3 cores, times on a V100 in fp16.",
        f"counted at each network's evaluation size with 1,000 classes; a picture's time on {device} in fp32 at a "
        f"batch of 1, {scale.px_share:g} of that size, median of {count_of(scale.rounds, 'round')}; accuracy is not "
        "measured here.",
    )


def _row(
    name: str, given: dict[str, Any], paper_speed: str, scale: Scale, device: torch.device, say: Say
) -> Row:
    paper = {
        _HEADINGS[column]: table.published(value, _UNITS[column])
        for column, value in given.items()
        if column in _UNITS
    }
    if paper_speed:
        per_second = paper_speed.endswith("img_s")
        speed = "images/s" if per_second else "ms"
        paper[speed] = table.published(given.get(paper_speed), speed)
    network = name.removesuffix("_21k")
    if network not in NAMES:
        why = "not a network of this family"
        return Row(name, paper, {_HEADINGS[column]: Figure(why=why) for column in ("params_m", "flops_b")})
    total = cost(published(network).architecture, image_px=published(network).eval_px).total
    ours = {
        _HEADINGS["params_m"]: Figure((total.parameters / 1e6,), "M"),
        _HEADINGS["flops_b"]: Figure((total.multiply_adds / 1e9,), "B"),
    }
    if paper_speed and name == network:
        say(f"timing {network}")
        ms = answer_ms(network, scale.px(published(network).eval_px), rounds=scale.rounds, device=device)
        ours[speed] = Figure(tuple(1e3 / one for one in ms) if per_second else tuple(ms), speed)
    return Row(name, paper, ours)


def answer_ms(name: str, image_px: int, *, rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of the answer to one picture, one per round.

    Args:
        name: of a network.
        image_px: of the picture.
        rounds: after two that warm up.
        device: to measure on.
    """
    network = place(create(name).eval(), device)
    picture = torch.zeros(1, 3, image_px, image_px, device=device)

    def ask() -> None:
        with torch.inference_mode():
            network(picture)

    seconds = alternate({name: ask}, rounds=rounds, warmup=2, wait=lambda: wait_for(device))
    return [1e3 * one for one in seconds[name]]


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
