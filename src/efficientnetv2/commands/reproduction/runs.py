"""Tables 5, 8, 10, 12 and 13: whole runs, each a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.commands.reproduction import table
from efficientnetv2.commands.reproduction.cells import MINUTES, TOP1, Cell, Runs
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table

HOURS = "hours"
_ONLY = "run"  # the column of a table with one run a row


def table_5(scale: Scale, runs: Runs) -> Table:
    """Picture size against the magnitude of RandAugment."""
    sizes = {128: "128 px", 192: "192 px", 300: "300 px"}
    steps = {"tiny": 3, "small": 1000, "paper": None}[scale.name]
    figures = table.paper()["table5_size_vs_randaugment"]
    cells = [
        _cell(
            scale, f"magnitude {magnitude}", sizes[px], "efficientnetv2_b0", steps,
            progressive={"stages": 1, "image_px": scale.px(px), "randaugment": magnitude},
        )
        for magnitude in (5, 10, 15) for px in sizes
    ]  # fmt: skip
    found = runs.of(cells)
    rows = [
        Row(
            f"magnitude {magnitude}",
            {
                name: table.published(value, "%")
                for name, value in zip(sizes.values(), figures[f"magnitude_{magnitude}"], strict=True)
            },
            {name: found[f"magnitude {magnitude}", name][TOP1] for name in sizes.values()},
        )
        for magnitude in (5, 10, 15)
    ]
    return _table(
        "5",
        "Table 5: larger pictures want more RandAugment (top-1 in %)",
        rows,
        scale,
        runs,
        _sizes(scale, sizes),
    )


def table_8(scale: Scale, runs: Runs) -> Table:
    """Transfer: the paper's recipe from given weights to another set."""
    figures = table.paper()["table8_transfer"]
    settings = {
        "tiny": ("steps=3", "batch_images=16", "progressive.image_px=32", "eval_px=32"),
        # The paper's rate is for a batch of 512; in proportion.
        "small": (
            "steps=1500", "batch_images=64", "optimizer.lr=1.25e-4", "progressive.image_px=96", "eval_px=96",
        ),
        "paper": (),
    }[scale.name]  # fmt: skip
    models = {"efficientnetv2_s": "efficientnetv2_s" if scale.name == "paper" else "efficientnetv2_b0"}
    if scale.name == "paper":
        models |= {name: name for name in ("efficientnetv2_m", "efficientnetv2_l")}
    column = runs.source.data if runs.source.data in figures["columns"] else "these pictures"
    cells = [Cell(row, column, "transfer_paper", model, settings) for row, model in models.items()]
    if runs.weights is None and scale.name != "paper":
        raise InputError(
            "Table 8 is about going on from trained weights: name some of efficientnetv2_b0 with --weights FILE or "
            "--weights NAME (effnetv2 models --pretrained), or --weights none to see that everything runs."
        )
    found = runs.of(cells)
    rows = []
    for row in (name for name in figures if name != "columns"):
        paper = dict(
            zip(figures["columns"], (table.published(one, "%") for one in figures[row]), strict=True)
        )
        mine = found[row, column][TOP1] if row in models else Figure(why=f"not run at scale {scale.name}")
        rows.append(Row(row, paper, {column: mine}))
    beside = "" if scale.name == "paper" else "EfficientNetV2-B0 in the place of S."
    return _table("8", "Tables 8 and 9: transfer (top-1 in %)", rows, scale, runs, beside)


def table_10(scale: Scale, runs: Runs) -> Table:
    """Both families with the same training, progressive learning included."""
    figures = table.paper()["table10_same_training"]
    models = {"efficientnet_b7": "efficientnet_b1", "efficientnetv2_m": "efficientnetv2_b0"}
    sizes = {"tiny": (32, 64), "small": (64, 128), "paper": (128, 380)}[scale.name]
    steps = {"tiny": 4, "small": 3000, "paper": None}[scale.name]
    cells = [
        _cell(
            scale, row, _ONLY, row if scale.name == "paper" else model, steps,
            recipe="efficientnetv2_m_paper",
            progressive={"stages": 2 if scale.name == "tiny" else 4, "image_px": sizes},
        )
        for row, model in models.items()
    ]  # fmt: skip
    found = runs.of(cells)
    rows = []
    for row in models:
        given = dict(zip(figures["columns"], figures[row], strict=True))
        paper = {TOP1: table.published(given["top1"], "%"), HOURS: table.published(given["train_hours"], "h")}
        rows.append(Row(row, paper, found[row, _ONLY]))
    beside = (
        ""
        if scale.name == "paper"
        else "EfficientNet-B1 in the place of B7 and EfficientNetV2-B0 in that of M."
    )
    return _table("10", "Table 10: the same training for both families", rows, scale, runs, beside)


def table_12(scale: Scale, runs: Runs) -> Table:
    """Progressive learning for networks that are not EfficientNetV2."""
    figures = table.paper()["table12_progressive_for_other_networks"]
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
        given = dict(zip(figures["columns"], figures[row], strict=True))
        paper = {
            f"{side}, {name}": table.published(given[f"{side}_{key}"], unit)
            for side in ("baseline", "progressive")
            for name, key, unit in ((TOP1, "top1", "%"), (HOURS, "hours", "h"))
        }
        ours = {
            f"{side}, {name}": found[row, side][name]
            if row in run
            else Figure(why=f"not run at scale {scale.name}")
            for side in ("baseline", "progressive")
            for name in (TOP1, MINUTES)
        }
        rows.append(Row(row, paper, ours))
    beside = f"Pictures growing from {sizes[0]} to {sizes[1]} px." if sizes else ""
    return _table("12", "Table 12: progressive learning for other networks", rows, scale, runs, beside)


def table_13(scale: Scale, runs: Runs) -> Table:
    """Progressive and random resizing, with regularization that stands still and that follows the size."""
    figures = table.paper()["table13_adaptive_regularization"]
    sizes = {"tiny": (32, 64), "small": (48, 96), "paper": (128, 380)}[scale.name]
    epochs = {"tiny": None, "small": 10, "paper": 350}[scale.name]
    orders: dict[str, dict[str, object]] = {
        "progressive_resize": {"order": "growing"},
        # A size every 8 of 350 epochs.
        "random_resize_every_8_epochs": {"order": "random", "turns": 4 if scale.name == "tiny" else 44},
    }
    # Vanilla is the regularization of the end throughout.
    kinds: dict[str, dict[str, object]] = {
        "vanilla": {"randaugment": 15, "dropout": 0.3},
        "adaptive": {"randaugment": (5, 15), "dropout": (0.1, 0.3)},
    }
    cells = [
        _cell(
            scale, row, column, "efficientnetv2_b0" if scale.name != "paper" else None,
            4 if epochs is None else None,
            recipe="quick" if scale.name != "paper" else "efficientnetv2_s_paper",
            more=() if epochs is None else (f"epochs={epochs}",),
            progressive={"stages": 4, "image_px": sizes} | order | kind,
        )
        for row, order in orders.items() for column, kind in kinds.items()
    ]  # fmt: skip
    found = runs.of(cells)
    rows = [
        Row(
            row,
            {
                name: table.published(one, "%")
                for name, one in zip(figures["columns"], figures[row], strict=True)
            },
            {name: found[row, name][TOP1] for name in kinds},
        )
        for row in orders
    ]
    beside = (
        f"EfficientNetV2-B0, sizes between {sizes[0]} and {sizes[1]} px." if scale.name != "paper" else ""
    )
    return _table("13", "Table 13: adaptive regularization (top-1 in %)", rows, scale, runs, beside)


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
        # The paper's rate, warm-up, moving average and minival are made for 350 epochs of a million pictures.
        settings += [
            "batch_images=32", "optimizer.kind=adamw", "optimizer.lr=2e-3", "optimizer.weight_decay=0.05",
            "optimizer.decay=0.99", "optimizer.epsilon=1e-8", "optimizer.clip_norm=1.0", "schedule.kind=cosine",
            "schedule.warmup_epochs=1", "ema_decay=0.998", "batch_norm_momentum=0.9", "initialisation=calm",
            "eval_px=null", "crop_fraction=1.0", "framing=whole", "crop_area_min=0.35",
            "minival=null", "made_for=null",
        ]  # fmt: skip
    if scale.name == "tiny":
        settings += ["batch_images=8", "validate_images=32", "holdout=0.1"]
    return Cell(row, column, recipe, model, (*settings, *more))


def _written(value: object) -> str:
    """A value as ``--set`` takes it: a pair is a ramp."""
    return f"{{start: {value[0]}, end: {value[1]}}}" if isinstance(value, tuple) else str(value)


def _sizes(scale: Scale, sizes: Mapping[int, str]) -> str:
    if scale.px_share == 1:
        return ""
    return "EfficientNetV2-B0; sizes " + ", ".join(f"{scale.px(px)} px for {px}" for px in sizes) + "."


def _table(name: str, title: str, rows: Sequence[Row], scale: Scale, runs: Runs, beside: str) -> Table:
    seeds = count_of(runs.seeds, "seed")
    data = Path(runs.source.data)  # where it lies on this machine is nobody's business
    ours = f"scale {scale.name} on {data.name if data.is_absolute() else data}, {seeds}. {beside}".strip()
    if scale.name == "tiny":
        ours += " A few steps, which show that everything runs; the accuracies mean nothing."
    return Table(name, title, tuple(rows), "ImageNet; hours on 32 TPUv3 cores.", ours)
