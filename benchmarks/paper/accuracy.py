"""Tables 5, 10, 12 and 13: accuracies of whole training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper import params_flops, published
from benchmarks.paper.published import HEADINGS
from benchmarks.paper.runs import MINUTES, TOP1, Cell, Runs
from benchmarks.paper.scale import Scale
from benchmarks.paper.table import Measurement, Row, Table

from efficientnetv2.architectures.registry import get_model_info as published_network
from efficientnetv2.progressive.presets import paper_schedule as preset
from efficientnetv2.training.initial_weights import model_title as network_title
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import pluralize

_ONLY = "run"  # the column of a table with one run a row
_SMALL = "efficientnetv2_b0"  # replaces the paper's networks below its scale

# Below the paper's scale: its rate, warm-up, moving average and minival are made for 350 epochs of a million images.
_BELOW_PAPER = (
    "batch_size=32", "optimizer.name=adamw", "optimizer.lr=2e-3", "optimizer.weight_decay=0.05",
    "optimizer.beta2=0.99", "optimizer.epsilon=1e-8", "optimizer.clip_norm=1.0", "schedule.name=cosine",
    "schedule.warmup_epochs=1", "ema_decay=0.998", "batch_norm_momentum=0.9", "init=zero_residual",
    "eval_image_size=null", "crop_pct=1.0", "crop_mode=squash", "train_crop_mode=null", "crop_scale_min=0.35",
    "minival=null", "expected_dataset=null",
)  # fmt: skip
# The same in words.
_BELOW_PAPER_NOTE = (
    "length, sizes, optimizer, schedule, batch, initialisation, moving average, batch-norm momentum, smallest crop, "
    "crop mode, evaluation size and minival"
)


_SIZES_5 = {128: "128 px", 192: "192 px", 300: "300 px"}
_MAGNITUDES = {magnitude: f"magnitude {magnitude}" for magnitude in (5, 10, 15)}


def cells_5(scale: Scale) -> list[Cell]:
    """The runs of Table 5, by magnitude and then by size."""
    whole = scale.name == "paper"
    return [
        _cell(
            scale,
            row,
            column,
            None if whole else _SMALL,
            {"tiny": 3, "small": 1000, "paper": None}[scale.name],
            recipe="efficientnetv2_s_paper" if whole else "quick",
            more=("eval_image_size=null",) if whole else (),
            progressive={"stages": 1, "image_size": scale.px(px), "randaugment": magnitude},
        )
        for magnitude, row in _MAGNITUDES.items()
        for px, column in _SIZES_5.items()
    ]


def table_5(scale: Scale, runs: Runs) -> Table:
    """Image size against the magnitude of RandAugment."""
    whole, cells = scale.name == "paper", cells_5(scale)
    found = runs.measurements(cells)
    rows = [
        Row(
            row,
            published.row("5", f"magnitude_{magnitude}"),
            {column: found[row, column][TOP1] for column in _SIZES_5.values()},
        )
        for magnitude, row in _MAGNITUDES.items()
    ]
    note = (
        # A network of the paper's search space, which it does not publish.
        "S in the place of the paper's network: its row of Table 6 ends at 300 px and magnitude 15. Evaluated at the "
        "size of training."
        if whole
        else "Sizes " + ", ".join(f"{scale.px(px)} px for {px}" for px in _SIZES_5) + "."
    )
    return table_of_runs("5", rows, scale, runs, cells, note)


def table_10(scale: Scale, runs: Runs) -> Table:
    """Both families with the same training, progressive learning included."""
    whole = scale.name == "paper"
    models = {"efficientnet_b7": "efficientnet_b1", "efficientnetv2_m": _SMALL}
    sizes = {"tiny": (32, 64), "small": (64, 128), "paper": (128, 380)}[scale.name]
    cells = [
        _cell(
            scale,
            row,
            _ONLY,
            row if whole else model,
            {"tiny": 4, "small": 3000, "paper": None}[scale.name],
            recipe="efficientnetv2_m_paper",
            more=_evaluated_as_published(row) if whole else (),
            progressive={"stages": 2 if scale.name == "tiny" else 4, "image_size": sizes},
        )
        for row, model in models.items()
    ]
    found = runs.measurements(cells)
    device = pick_device(runs.device)
    timing = params_flops.Timing.of(scale, device, paper_batch=params_flops.LATENCY_BATCH)
    latencies = params_flops.latencies(list(models), "ms", scale, device, timing, runs.say)
    rows = [
        Row(
            row,
            published.row("10", row),
            _in_paper_units(found[row, _ONLY], scale) | params_flops.network_sizes(row) | {"ms": latencies[row]},
        )
        for row in models
    ]
    evaluated = (
        "Each evaluated at its own size."
        if whole
        else "EfficientNet-B1 in the place of B7 and EfficientNetV2-B0 in that of M in training."
    )
    note = (
        f"{evaluated} Images growing from {sizes[0]} to {sizes[1]} px. Parameters, multiply-adds and time are of B7 "
        f"and M: {params_flops.counted_note(scale, device, timing)}."
    )
    return table_of_runs("10", rows, scale, runs, cells, note)


def _evaluated_as_published(model: str) -> tuple[str, ...]:
    """Settings of the size at which its multiply-adds and time are counted; the recipe has that of M."""
    of = published_network(model).preprocessing
    return f"eval_image_size={of.image_size}", f"crop_mode={of.crop_mode}", f"crop_pct={of.crop_pct}"


def table_12(scale: Scale, runs: Runs) -> Table:
    """Progressive learning for networks that are not EfficientNetV2."""
    models = list(published.rows("12"))
    sizes = {"tiny": (32, 64), "small": (48, 96), "paper": None}[scale.name]
    steps = {"tiny": 2, "small": 1500, "paper": None}[scale.name]
    columns = {"baseline": 1, "progressive": 2 if scale.name == "tiny" else 4}
    cells = []
    for row in ["resnet50_224"] if scale.name == "small" else models:
        for column, stages in columns.items():
            progressive: dict[str, object] = {"stages": stages} | ({"image_size": sizes} if sizes else {})
            recipe = f"{row}_progressive"
            cells.append(_cell(scale, row, column, None, steps, recipe=recipe, progressive=progressive))
    found = runs.measurements(cells)
    absent = dict.fromkeys((TOP1, MINUTES), Measurement(why=f"not run at scale {scale.name}"))
    rows = []
    for row in models:
        ours = {
            f"{column}, {name}": one
            for column in columns
            for name, one in _in_paper_units(found.get((row, column), absent), scale).items()
        }
        rows.append(Row(row, published.row("12", row), ours))
    note = f"Images growing from {sizes[0]} to {sizes[1]} px." if sizes else ""
    return table_of_runs("12", rows, scale, runs, cells, note)


def _in_paper_units(of_run: Mapping[str, Measurement], scale: Scale) -> dict[str, Measurement]:
    """A run's measurements, at scale paper with hours, as in the paper."""
    if scale.name != "paper":
        return dict(of_run)
    hours, unit = HEADINGS["train_hours"]
    minutes = of_run[MINUTES]
    return {TOP1: of_run[TOP1], hours: replace(minutes, values=tuple(one / 60 for one in minutes.values), unit=unit)}


def table_13(scale: Scale, runs: Runs) -> Table:
    """Progressive and random resizing, with constant regularization and with regularization that follows the size."""
    whole, tiny = scale.name == "paper", scale.name == "tiny"
    orders: dict[str, dict[str, object]] = {
        "progressive_resize": {"order": "growing"},
        # A size every 8 of 350 epochs.
        "random_resize_every_8_epochs": {"order": "random", "random_draws": 4 if tiny else 44},
    }
    sizes, regularizations = _regularization(scale)
    cells = [
        _cell(
            scale,
            row,
            column,
            None if whole else _SMALL,
            4 if tiny else None,
            # The paper names no network; its last result is M's top-1 of Tables 7 and 10.
            recipe="efficientnetv2_m_paper" if whole else "quick",
            more=("epochs=10",) if scale.name == "small" else (),
            progressive={"stages": 4, "image_size": sizes} | order | regularization,
        )
        for row, order in orders.items()
        for column, regularization in regularizations.items()
    ]
    found = runs.measurements(cells)
    rows = [
        Row(row, published.row("13", row), {name: found[row, name][TOP1] for name in regularizations}) for row in orders
    ]
    note = f"Sizes between {sizes[0]:g} and {sizes[1]:g} px."
    return table_of_runs("13", rows, scale, runs, cells, note)


def _regularization(scale: Scale) -> tuple[tuple[float, float], dict[str, dict[str, object]]]:
    """Table 13's sizes, and its two regularizations: constant at the final strength, or growing with the size."""
    if scale.name == "paper":
        schedule = preset("efficientnetv2_m")
        final = {name: getattr(schedule.last, name) for name in ("randaugment", "mixup_alpha", "dropout")}
        sizes = schedule.stage(0).image_size, schedule.last.image_size
        return sizes, {"vanilla": final, "adaptive": {}}
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
    recipe: str,
    more: tuple[str, ...] = (),
    progressive: Mapping[str, object],
) -> Cell:
    """A run of a recipe with another schedule, below the paper's scale with a batch size and optimizer that suit it."""
    settings = [f"progressive.{name}={_as_setting(value)}" for name, value in progressive.items()]
    if "image_size" in progressive and scale.name != "paper":
        settings += ["progressive.size_multiple=16"]
    if steps is not None:
        settings += ["epochs=auto", f"steps={steps}"]
    if scale.name != "paper" and recipe != "quick":
        settings += _BELOW_PAPER
    if scale.name == "tiny":
        settings += ["batch_size=8", "val_max_images=32", "val_fraction=0.1"]
    return Cell(row, column, recipe, model, (*settings, *more))


def _as_setting(value: object) -> str:
    """A value as ``--set`` takes it: a pair is a ramp."""
    return f"{{start: {value[0]}, end: {value[1]}}}" if isinstance(value, tuple) else str(value)


def table_of_runs(name: str, rows: Sequence[Row], scale: Scale, runs: Runs, cells: Sequence[Cell], note: str) -> Table:
    """A table of trained accuracies; ``note`` is what else there is to say of ours, in sentences."""
    data = Path(runs.source.data)  # only its name: the folder is of no interest elsewhere
    ours = (
        f"scale {scale.name} on {data.name if data.is_absolute() else data}, {pluralize(runs.seeds, 'seed')}. "
        f"{_recipes_note(cells)} {note}"
    ).strip()
    ours += " Evaluated on val, held out of train where the images have none." if name != "8" else ""
    if scale.name == "tiny":
        ours += " A few steps, which show that everything runs; the accuracies mean nothing."
    return published.table(name, rows, ours, scale.name, runs.seeds)


def _recipes_note(cells: Sequence[Cell]) -> str:
    """Which models were trained with which recipes, in a sentence."""
    models: dict[str, dict[str, None]] = {}
    for cell in cells:
        model = network_title(cell.model or get_recipe(cell.recipe).model)
        models.setdefault(f"recipe {cell.recipe}", {})[model] = None
    note = "; ".join(f"{' and '.join(of)} by {recipe}" for recipe, of in models.items()) + "."
    if any(set(_BELOW_PAPER) <= set(cell.settings) for cell in cells):
        which = "that recipe" if len(models) == 1 else "those recipes"
        note += f" Here {_BELOW_PAPER_NOTE} differ from {which}."
    return note
