"""Table 6 and Figure 4: the settings of each stage of progressive learning, from the schedules that training uses."""

from __future__ import annotations

import torch
from benchmarks.paper import published
from benchmarks.paper.params_flops import Say
from benchmarks.paper.scale import Scale
from benchmarks.paper.table import Measurement, Row, Table, untrained
from matplotlib.figure import Figure

from efficientnetv2.progressive.presets import paper_schedule

_SIZES = ("s", "m", "l")
_SETTINGS = {"image_size": "image px", "randaugment": "RandAugment", "mixup_alpha": "mixup", "dropout": "dropout"}
# Inches: wide enough for four panels, narrow enough for a page. Ours.
_FIGSIZE = (9.0, 2.4)


def table_6(scale: Scale, device: torch.device, say: Say) -> Table:
    """Least and most of each setting: the paper's, and those of the first and last stage of our schedule."""
    headings = [heading for heading, _ in published.headings("6").values()]
    rows = []
    for size in _SIZES:
        schedule = paper_schedule(f"efficientnetv2_{size}")
        for name, label in _SETTINGS.items():
            ends = [getattr(schedule.stage(stage), name) for stage in (0, schedule.stages - 1)]
            ours = {heading: Measurement((float(end),)) for heading, end in zip(headings, ends, strict=True)}
            key = f"{size.upper()}, {label}"
            rows.append(Row(key, published.row("6", key), ours))
    note = (
        f"{untrained(scale.name)}what the recipes efficientnetv2_s_paper, _m_paper and _l_paper train with, the same "
        "at every scale."
    )
    return published.table("6", rows, note, scale.name)


def figure_4(scale: Scale, device: torch.device, say: Say) -> Table:
    """The settings of S over the run, stage by stage."""
    schedule = paper_schedule("efficientnetv2_s")
    rows = []
    for number in range(schedule.stages):
        stage = schedule.stage(number)
        ours = {label: Measurement((float(getattr(stage, name) or 0),)) for name, label in _SETTINGS.items()}
        rows.append(Row(f"stage {number}", {}, ours))
    note = (
        f"{untrained(scale.name)}the recipe efficientnetv2_s_paper, the same at every scale; figure.png shows S, M "
        "and L."
    )
    return published.table("figure4", rows, note, scale.name)


def draw_schedules() -> Figure:
    """All three schedules over the run, a panel per setting."""
    figure = Figure(figsize=_FIGSIZE, layout="constrained")
    panels = figure.subplots(1, len(_SETTINGS))
    for panel, (name, label) in zip(panels, _SETTINGS.items(), strict=True):
        for size in _SIZES:
            schedule = paper_schedule(f"efficientnetv2_{size}")
            values = [getattr(schedule.stage(stage), name) or 0 for stage in range(schedule.stages)]
            edges = [stage / schedule.stages for stage in range(schedule.stages + 1)]
            panel.stairs(values, edges, label=size.upper(), baseline=None)
        panel.set_title(label)
        panel.set_xlabel("fraction of the run")
    panels[0].legend()
    return figure
