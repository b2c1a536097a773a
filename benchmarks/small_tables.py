"""The paper's Tables 8, 12 and 13 at scale small, with the figures of comparisons that are made in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.runs import MINUTES, TOP1
from benchmarks.paper.table import Measurement, Row, Table
from benchmarks.regimes import STRENGTHS, Regime

from efficientnetv2.utils.errors import pluralize

Rows = Sequence[Mapping[str, Any]]  # what ``benchmarks.arms.measured`` says, one per seed
_ORDERS = {"progressive_resize": "growing", "random_resize_every_8_epochs": "random"}
_SIDES = {"baseline": "fixed", "progressive": "progressive"}
_HERE = "resnet50_224"  # the row of Table 12 that is trained in small
_TRANSFERRED = "efficientnetv2_s", "cifar10"  # the row and column of Table 8 that are
_NOT_RUN = Measurement(why="not run at scale small")


def table_8(rows: Rows, *, image_size: int, epochs: float, batch_size: int, answered: str) -> Table:
    """Transfer by the paper's recipe: CIFAR-10.

    Args:
        rows: of EfficientNetV2-B0, which stands in for S.
        image_size: of training and of the answers.
        epochs: of all of train.
        batch_size: of a step.
        answered: the split that was.
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
    says = (
        "EfficientNetV2-B0 in the place of S by recipe transfer_paper on all training pictures of CIFAR-10 for "
        f"{epochs:g} epochs at {image_size} px, batches of {batch_size} and a rate in proportion, "
        f"{pluralize(len(rows), 'seed')}. Answered is all of {answered}."
    )
    return published.table("8", made, says, "small", len(rows))


def table_12(found: Mapping[str, Rows], choices: Mapping[str, str], regime: Regime) -> Table:
    """Progressive learning for other networks: ResNet-50.

    Args:
        found: arm of ``benchmarks.progressive`` -> rows.
        choices: The same keys -> what tuning chose, in words.
        regime: of the runs.
    """
    rows = tuple(
        Row(name, published.row("12", name), _sides(found if name == _HERE else None)) for name in published.rows("12")
    )
    said = "; ".join(f"{side}: {choices[arm]}" for side, arm in _SIDES.items())
    says = (
        f"{_trained('ResNet-50', regime, found['fixed'])} Chosen for each side by other pictures of train: strength of "
        f"regularization, rate and shares of the stages ({said}; {_strengths()})."
    )
    return published.table("12", rows, says, "small", len(found["fixed"]))


def _sides(found: Mapping[str, Rows] | None) -> dict[str, Measurement]:
    kinds = {TOP1: ("top1", 100.0, "%"), MINUTES: ("train_s", 1 / 60, "minutes")}
    if found is None:
        return {f"{side}, {name}": _NOT_RUN for side in _SIDES for name in kinds}
    return {
        f"{side}, {name}": Measurement(tuple(scale * row[key] for row in found[arm]), unit)
        for side, arm in _SIDES.items()
        for name, (key, scale, unit) in kinds.items()
    }


def table_13(
    found: Mapping[str, Mapping[str, Rows]], choices: Mapping[str, Mapping[str, str]], regime: Regime, *, turns: int
) -> Table:
    """Adaptive regularization.

    Args:
        found: order of ``benchmarks.adaptive`` -> kind of regularization -> rows.
        choices: The same keys -> the strength that tuning chose.
        regime: of the runs.
        turns: sizes that a run at random draws.
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
    said = "; ".join(f"{order}, {kind}: {choices[order][kind]}" for order in _ORDERS.values() for kind in kinds)
    first = found["growing"][kinds[0]]
    says = (
        f"{_trained('EfficientNetV2-B0', regime, first)} At random a size is drawn every {regime.epochs / turns:.1f} "
        f"epochs, {turns} times in all, as often as in the paper's run. The strength of regularization was chosen for "
        f"each cell by other pictures of train ({said}; {_strengths()})."
    )
    return published.table("13", rows, says, "small", len(first))


def _trained(network: str, regime: Regime, rows: Rows) -> str:
    pictures = "all pictures" if regime.pictures is None else f"{regime.pictures:,} pictures"
    return (
        f"{network} by recipe quick on {pictures} of Imagenette for {regime.epochs:g} epochs, sizes between "
        f"{regime.image_size // 2} and {regime.image_size} px, {len(rows)} seeds."
    )


def _strengths() -> str:
    told = [
        f"{name} is RandAugment {size:.2g} and dropout {out:.2g}" for name, (size, out) in STRENGTHS.items() if size
    ]
    return ", ".join(told) + " at the end"
