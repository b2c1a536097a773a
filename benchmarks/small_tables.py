"""The paper's Tables 8, 12 and 13 at scale small, with results of our comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.runs import MINUTES, TOP1
from benchmarks.paper.table import Measurement, Row, Table
from benchmarks.regimes import STRENGTHS, Regime

from efficientnetv2.utils.errors import pluralize

Rows = Sequence[Mapping[str, Any]]  # results of ``benchmarks.arms.measured``, one per seed
_ORDERS = {"progressive_resize": "growing", "random_resize_every_8_epochs": "random"}
_SIDES = {"baseline": "fixed", "progressive": "progressive"}
_HERE = "resnet50_224"  # the trained row of Table 12
_TRANSFERRED = "efficientnetv2_s", "cifar10"  # the trained cell of Table 8
_NOT_RUN = Measurement(why="not run at scale small")


def table_8(rows: Rows, *, image_size: int, epochs: float, batch_size: int, answered: str) -> Table:
    """Transfer with the paper's recipe: CIFAR-10.

    Args:
        rows: Results of EfficientNetV2-B0, which replaces S.
        image_size: Image size of training and evaluation.
        epochs: Epochs of all of train.
        batch_size: Images per step.
        answered: Evaluated split.
    """
    columns = [heading for heading, _ in published.headings("8").values()]
    top1 = Measurement(tuple(100 * row["top1"] for row in rows), "%")
    made = tuple(
        Row(
            name,
            published.row("8", name),
            {column: top1 if (name, column) == _TRANSFERRED else _NOT_RUN for column in columns},
        )
        for name in published.rows("8")
    )
    caption = (
        "EfficientNetV2-B0 in the place of S by recipe transfer_paper on all training pictures of CIFAR-10 for "
        f"{epochs:g} epochs at {image_size} px, batches of {batch_size} and a rate in proportion, "
        f"{pluralize(len(rows), 'seed')}. Answered is all of {answered}."
    )
    return published.table("8", made, caption, "small", len(rows))


def table_12(found: Mapping[str, Rows], choices: Mapping[str, str], regime: Regime) -> Table:
    """Progressive learning for other architectures: ResNet-50.

    Args:
        found: Arm of ``benchmarks.progressive`` -> rows.
        choices: Arm -> choice of tuning, as text.
        regime: Regime of the runs.
    """
    rows = tuple(
        Row(name, published.row("12", name), _sides(found if name == _HERE else None)) for name in published.rows("12")
    )
    chosen = "; ".join(f"{side}: {choices[arm]}" for side, arm in _SIDES.items())
    caption = (
        f"{_trained('ResNet-50', regime, found['fixed'])} Chosen for each side by other pictures of train: strength of "
        f"regularization, rate and shares of the stages ({chosen}; {_strengths()})."
    )
    return published.table("12", rows, caption, "small", len(found["fixed"]))


def _sides(found: Mapping[str, Rows] | None) -> dict[str, Measurement]:
    metrics = {TOP1: ("top1", 100.0, "%"), MINUTES: ("train_s", 1 / 60, "minutes")}
    if found is None:
        return {f"{side}, {name}": _NOT_RUN for side in _SIDES for name in metrics}
    return {
        f"{side}, {name}": Measurement(tuple(scale * row[key] for row in found[arm]), unit)
        for side, arm in _SIDES.items()
        for name, (key, scale, unit) in metrics.items()
    }


def table_13(
    found: Mapping[str, Mapping[str, Rows]], choices: Mapping[str, Mapping[str, str]], regime: Regime, *, turns: int
) -> Table:
    """Adaptive regularization.

    Args:
        found: Order of ``benchmarks.adaptive`` -> type of regularization -> rows.
        choices: Order -> type of regularization -> strength that tuning chose.
        regime: Regime of the runs.
        turns: Number of sizes that a run in random order draws.
    """
    kinds = [heading for heading, _ in published.headings("13").values()]
    rows = tuple(
        Row(
            name,
            published.row("13", name),
            {kind: Measurement(tuple(100 * row["top1"] for row in found[order][kind]), "%") for kind in kinds},
        )
        for name, order in _ORDERS.items()
    )
    chosen = "; ".join(f"{order}, {kind}: {choices[order][kind]}" for order in _ORDERS.values() for kind in kinds)
    first = found["growing"][kinds[0]]
    caption = (
        f"{_trained('EfficientNetV2-B0', regime, first)} At random a size is drawn every {regime.epochs / turns:.1f} "
        f"epochs, {turns} times in all, as often as in the paper's run. The strength of regularization was chosen for "
        f"each cell by other pictures of train ({chosen}; {_strengths()})."
    )
    return published.table("13", rows, caption, "small", len(first))


def _trained(model: str, regime: Regime, rows: Rows) -> str:
    images = "all pictures" if regime.pictures is None else f"{regime.pictures:,} pictures"
    return (
        f"{model} by recipe quick on {images} of Imagenette for {regime.epochs:g} epochs, sizes between "
        f"{regime.image_size // 2} and {regime.image_size} px, {len(rows)} seeds."
    )


def _strengths() -> str:
    descriptions = [
        f"{name} is RandAugment {size:.2g} and dropout {out:.2g}" for name, (size, out) in STRENGTHS.items() if size
    ]
    return ", ".join(descriptions) + " at the end"
