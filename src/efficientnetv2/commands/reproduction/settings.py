"""Table 6 and Figure 4: what holds at each stage, from the schedules that training uses."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from efficientnetv2.commands.reproduction import columns, table
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.presets import paper

_SIZES = ("s", "m", "l")
_QUANTITIES = {
    "image_px": "image px",
    "randaugment": "RandAugment",
    "mixup_alpha": "mixup",
    "dropout": "dropout",
}
# Of a figure: wide enough for four panels, narrow enough for a page. Ours.
_INCHES = (9.0, 2.4)


def table_6(scale: Scale) -> Table:
    """Least and most of each quantity: the paper's, and those of the first and last stage of our schedule."""
    figures = columns.figures("6")
    least, most = (heading for heading, _ in columns.headings("6").values())
    rows = []
    for size in _SIZES:
        plan, given = paper(f"efficientnetv2_{size}"), figures[size.upper()]
        for name, words in _QUANTITIES.items():
            first, last = getattr(plan.stage(0), name), getattr(plan.stage(plan.stages - 1), name)
            low, high = given[name]
            rows.append(
                Row(
                    f"{size.upper()}, {words}",
                    {least: Figure((float(low),)), most: Figure((float(high),))},
                    {least: Figure((float(first),)), most: Figure((float(last),))},
                )
            )
    return Table(
        "6",
        "Table 6: settings of progressive learning",
        tuple(rows),
        f"{figures['stages']} stages of about {figures['epochs_per_stage']} epochs.",
        f"{table.untrained(scale.name)}what the recipes efficientnetv2_s_paper, _m_paper and _l_paper train with, the "
        "same at every scale.",
        scale.name,
    )


def figure_4(scale: Scale) -> Table:
    """The settings of S over the run, stage by stage."""
    plan = paper("efficientnetv2_s")
    rows = []
    for stage in range(plan.stages):
        setting = plan.stage(stage)
        ours = {words: Figure((float(getattr(setting, name) or 0),)) for name, words in _QUANTITIES.items()}
        rows.append(Row(f"stage {stage}", {}, ours))
    return Table(
        "figure4",
        "Figure 4: size and regularization grow together (EfficientNetV2-S)",
        tuple(rows),
        "drawn, without figures.",
        f"{table.untrained(scale.name)}the recipe efficientnetv2_s_paper, the same at every scale; figure.png shows S, "
        "M and L.",
        scale.name,
    )


def draw_settings() -> Drawing:
    """All three schedules over the run, a panel per quantity."""
    drawing = Drawing(figsize=_INCHES, layout="constrained")
    panels = drawing.subplots(1, len(_QUANTITIES))
    for panel, (name, words) in zip(panels, _QUANTITIES.items(), strict=True):
        for size in _SIZES:
            plan = paper(f"efficientnetv2_{size}")
            values = [getattr(plan.stage(stage), name) or 0 for stage in range(plan.stages)]
            edges = [stage / plan.stages for stage in range(plan.stages + 1)]
            panel.stairs(values, edges, label=size.upper(), baseline=None)
        panel.set_title(words)
        panel.set_xlabel("share of the run")
    panels[0].legend()
    return drawing
