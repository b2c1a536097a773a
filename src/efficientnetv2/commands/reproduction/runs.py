"""Tables 5, 10, 12 and 13: whole runs, each a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import count_of
from efficientnetv2.commands.reproduction import columns, counts, table
from efficientnetv2.commands.reproduction.cells import MINUTES, TOP1, Cell, Runs
from efficientnetv2.commands.reproduction.columns import HEADINGS
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.inference.accelerate import pick_device
from efficientnetv2.presets import paper as preset
from efficientnetv2.training.named import title as network_title
from efficientnetv2.training.recipes import named

_ONLY = "run"  # the column of a table with one run a row
_SMALL = "efficientnetv2_b0"  # in the place of the paper's networks, below its scale

# Below the paper's scale: its rate, warm-up, moving average and minival are made for 350 epochs of a million pictures.
_BELOW_PAPER = (
    "batch_images=32", "optimizer.kind=adamw", "optimizer.lr=2e-3", "optimizer.weight_decay=0.05",
    "optimizer.decay=0.99", "optimizer.epsilon=1e-8", "optimizer.clip_norm=1.0", "schedule.kind=cosine",
    "schedule.warmup_epochs=1", "ema_decay=0.998", "batch_norm_momentum=0.9", "initialisation=calm",
    "eval_px=null", "crop_fraction=1.0", "framing=whole", "crop_framing=null", "crop_area_min=0.35",
    "minival=null", "made_for=null",
)  # fmt: skip
# The same in words.
_OTHERWISE = (
    "length, sizes, optimizer, schedule, batch, initialisation, moving average, batch-norm momentum, smallest crop, "
    "framing, evaluation size and minival"
)


def table_5(scale: Scale, runs: Runs) -> Table:
    """Picture size against the magnitude of RandAugment."""
    sizes = {128: "128 px", 192: "192 px", 300: "300 px"}
    steps = {"tiny": 3, "small": 1000, "paper": None}[scale.name]
    figures, headings = columns.figures("5"), columns.headings("5")
    whole = scale.name == "paper"
    cells = [
        _cell(
            scale, f"magnitude {magnitude}", sizes[px], None if whole else _SMALL, steps,
            recipe="efficientnetv2_s_paper" if whole else "quick",
            more=("eval_px=null",) if whole else (),
            progressive={"stages": 1, "image_px": scale.px(px), "randaugment": magnitude},
        )
        for magnitude in (5, 10, 15) for px in sizes
    ]  # fmt: skip
    found = runs.of(cells)
    rows = [
        Row(
            f"magnitude {magnitude}",
            table.row_of(figures, f"magnitude_{magnitude}", headings),
            {name: found[f"magnitude {magnitude}", name][TOP1] for name in sizes.values()},
        )
        for magnitude in (5, 10, 15)
    ]
    beside = (
        # A network of the paper's search space, which it does not publish.
        "S in the place of the paper's network: its row of Table 6 ends at 300 px and magnitude 15. Evaluated at the "
        "size of training."
        if whole
        else "Sizes " + ", ".join(f"{scale.px(px)} px for {px}" for px in sizes) + "."
    )
    title = "Table 5: larger pictures want more RandAugment (top-1 in %)"
    return table_of_runs("5", title, rows, scale, runs, cells, beside, "top-1 on ImageNet, mean ± spread.")


def table_10(scale: Scale, runs: Runs) -> Table:
    """Both families with the same training, progressive learning included."""
    figures, headings = columns.figures("10"), columns.headings("10")
    models = {"efficientnet_b7": "efficientnet_b1", "efficientnetv2_m": _SMALL}
    sizes = {"tiny": (32, 64), "small": (64, 128), "paper": (128, 380)}[scale.name]
    steps = {"tiny": 4, "small": 3000, "paper": None}[scale.name]
    cells = [
        _cell(
            scale, row, _ONLY, row if scale.name == "paper" else model, steps,
            recipe="efficientnetv2_m_paper",
            more=_evaluated_as_published(row) if scale.name == "paper" else (),
            progressive={"stages": 2 if scale.name == "tiny" else 4, "image_px": sizes},
        )
        for row, model in models.items()
    ]  # fmt: skip
    found = runs.of(cells)
    device = pick_device(runs.device)
    timing = counts.Timing.of(scale, device, paper_batch=counts.LATENCY_BATCH)
    timed = counts.answers(list(models), "ms", scale, device, timing, runs.say)
    rows = [
        Row(
            row,
            table.row_of(figures, row, headings),
            _as_in_the_paper(found[row, _ONLY], scale) | counts.sizes(row) | {"ms": timed[row]},
        )
        for row in models
    ]
    beside = (
        "Each evaluated at its own size. "
        if scale.name == "paper"
        else "EfficientNet-B1 in the place of B7 and EfficientNetV2-B0 in that of M in training. "
    )
    beside += f"Pictures growing from {sizes[0]} to {sizes[1]} px. "
    beside += (
        f"Parameters, multiply-adds and time are of B7 and M: {counts.how_counted(scale, device, timing)}."
    )
    paper_says = "top-1 on ImageNet, hours on 32 TPUv3 cores, milliseconds of an answer."
    title = "Table 10: the same training for both families"
    return table_of_runs("10", title, rows, scale, runs, cells, beside, paper_says)


def _evaluated_as_published(model: str) -> tuple[str, ...]:
    """Settings of the size at which its multiply-adds and time are counted: the recipe names that of M."""
    seen = published(model).preprocessing
    return f"eval_px={seen.image_px}", f"framing={seen.framing}", f"crop_fraction={seen.crop_fraction}"


def table_12(scale: Scale, runs: Runs) -> Table:
    """Progressive learning for networks that are not EfficientNetV2."""
    figures, headings = columns.figures("12"), columns.headings("12")
    recipes = {
        "resnet50_224": "resnet50_224_progressive",
        "resnet50_380": "resnet50_380_progressive",
        "resnet152_380": "resnet152_380_progressive",
        "efficientnet_b4": "efficientnet_b4_progressive",
        "efficientnet_b5": "efficientnet_b5_progressive",
    }
    run = ["resnet50_224"] if scale.name == "small" else list(recipes)
    sizes = {"tiny": (32, 64), "small": (48, 96), "paper": None}[scale.name]
    steps = {"tiny": 2, "small": 1500, "paper": None}[scale.name]
    cells = []
    for row in run:
        for column, stages in (("baseline", 1), ("progressive", 2 if scale.name == "tiny" else 4)):
            settings: dict[str, object] = {"stages": stages} | ({"image_px": sizes} if sizes else {})
            cells.append(_cell(scale, row, column, None, steps, recipe=recipes[row], progressive=settings))
    found = runs.of(cells)
    rows = []
    for row in recipes:
        absent = dict.fromkeys((TOP1, MINUTES), Figure(why=f"not run at scale {scale.name}"))
        ours = {
            f"{side}, {name}": figure
            for side in ("baseline", "progressive")
            for name, figure in _as_in_the_paper(found.get((row, side), absent), scale).items()
        }
        rows.append(Row(row, table.row_of(figures, row, headings), ours))
    beside = f"Pictures growing from {sizes[0]} to {sizes[1]} px." if sizes else ""
    paper_says = "top-1 on ImageNet, hours on 32 TPUv3 cores."
    title = "Table 12: progressive learning for other networks"
    return table_of_runs("12", title, rows, scale, runs, cells, beside, paper_says)


def _as_in_the_paper(figures: Mapping[str, Figure], scale: Scale) -> dict[str, Figure]:
    """What a run came to, at the paper's scale in the paper's hours."""
    if scale.name != "paper":
        return dict(figures)
    hours, unit = HEADINGS["train_hours"]
    minutes = figures[MINUTES]
    return {
        TOP1: figures[TOP1],
        hours: replace(minutes, values=tuple(one / 60 for one in minutes.values), unit=unit),
    }


def table_13(scale: Scale, runs: Runs) -> Table:
    """Progressive and random resizing, with regularization that stands still and that follows the size."""
    figures, headings = columns.figures("13"), columns.headings("13")
    # The paper names no network; what it ends with is M's top-1 of Tables 7 and 10.
    recipe = "efficientnetv2_m_paper" if scale.name == "paper" else "quick"
    orders: dict[str, dict[str, object]] = {
        "progressive_resize": {"order": "growing"},
        # A size every 8 of 350 epochs.
        "random_resize_every_8_epochs": {"order": "random", "turns": 4 if scale.name == "tiny" else 44},
    }
    sizes, kinds = _regularized(scale)
    cells = [
        _cell(
            scale, row, column, _SMALL if scale.name != "paper" else None,
            4 if scale.name == "tiny" else None,
            recipe=recipe,
            more=("epochs=10",) if scale.name == "small" else (),
            progressive={"stages": 4, "image_px": sizes} | order | kind,
        )
        for row, order in orders.items() for column, kind in kinds.items()
    ]  # fmt: skip
    found = runs.of(cells)
    rows = [
        Row(row, table.row_of(figures, row, headings), {name: found[row, name][TOP1] for name in kinds})
        for row in orders
    ]
    beside = f"Sizes between {sizes[0]:g} and {sizes[1]:g} px."
    title = "Table 13: adaptive regularization (top-1 in %)"
    return table_of_runs("13", title, rows, scale, runs, cells, beside, "top-1 on ImageNet, mean ± spread.")


def _regularized(scale: Scale) -> tuple[tuple[float, float], dict[str, dict[str, object]]]:
    """Table 13's sizes, and its regularization: as at the end throughout, or growing with the size."""
    if scale.name == "paper":
        plan = preset("efficientnetv2_m")
        end = {name: getattr(plan.last, name) for name in ("randaugment", "mixup_alpha", "dropout")}
        return (plan.stage(0).image_px, plan.last.image_px), {"vanilla": end, "adaptive": {}}
    return (32, 64) if scale.name == "tiny" else (48, 96), {
        "vanilla": {"randaugment": 15, "dropout": 0.3},
        "adaptive": {"randaugment": (5, 15), "dropout": (0.1, 0.3)},
    }


def _cell(
    scale: Scale,
    row: str,
    column: str,
    model: str | None,
    steps: int | None,
    *,
    recipe: str = "quick",
    more: tuple[str, ...] = (),
    progressive: Mapping[str, object],
) -> Cell:
    """A run of a recipe with another schedule; below the paper's scale with a batch and an optimizer that suit it."""
    settings = [f"progressive.{name}={_written(value)}" for name, value in progressive.items()]
    if "image_px" in progressive and scale.name != "paper":
        settings += ["progressive.px_multiple=16"]
    if steps is not None:
        settings += ["epochs=auto", f"steps={steps}"]
    if scale.name != "paper" and recipe != "quick":
        settings += _BELOW_PAPER
    if scale.name == "tiny":
        settings += ["batch_images=8", "validate_images=32", "holdout=0.1"]
    return Cell(row, column, recipe, model, (*settings, *more))


def _written(value: object) -> str:
    """A value as ``--set`` takes it: a pair is a ramp."""
    return f"{{start: {value[0]}, end: {value[1]}}}" if isinstance(value, tuple) else str(value)


def table_of_runs(
    name: str,
    title: str,
    rows: Sequence[Row],
    scale: Scale,
    runs: Runs,
    cells: Sequence[Cell],
    beside: str,
    paper_says: str,
) -> Table:
    """A table whose accuracies were trained.

    Args:
        name: as on the command line.
        title: what it shows.
        rows: in the paper's order.
        scale: of the runs.
        runs: what they have in common.
        cells: that were run.
        beside: what else there is to say of ours; sentences.
        paper_says: what the paper's figures are measured on.
    """
    data = Path(runs.source.data)  # where it lies on this machine is nobody's business
    ours = (
        f"scale {scale.name} on {data.name if data.is_absolute() else data}, {count_of(runs.seeds, 'seed')}. "
        f"{_trained(cells)} {beside}"
    ).strip()
    ours += " Answered is val, held out of train where the pictures have none." if name != "8" else ""
    if scale.name == "tiny":
        ours += " A few steps, which show that everything runs; the accuracies mean nothing."
    return Table(name, title, tuple(rows), paper_says, ours, scale.name, runs.seeds)


def _trained(cells: Sequence[Cell]) -> str:
    """Which networks were trained by which recipes, in a sentence."""
    networks: dict[str, dict[str, None]] = {}
    for cell in cells:
        model = network_title(cell.model or named(cell.recipe).model)
        networks.setdefault(f"recipe {cell.recipe}", {})[model] = None
    told = "; ".join(f"{' and '.join(models)} by {recipe}" for recipe, models in networks.items()) + "."
    if not any(set(_BELOW_PAPER) <= set(cell.settings) for cell in cells):
        return told
    return (
        f"{told} Of {'that recipe' if len(networks) == 1 else 'those recipes'} {_OTHERWISE} are others here."
    )
