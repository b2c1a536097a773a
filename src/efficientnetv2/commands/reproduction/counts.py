"""Tables 1, 7 and 11, Figures 1 and 5: parameters and multiply-adds, counted, and an answer's time, measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.published import NAMES, published
from efficientnetv2.base.errors import count_of
from efficientnetv2.base.timing import alternate, waiting
from efficientnetv2.commands.reproduction import columns, table
from efficientnetv2.commands.reproduction.columns import HEADINGS
from efficientnetv2.commands.reproduction.in_turn import OUT_OF_MEMORY, in_turn
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.inference.accelerate import Precision, autocast, lower_precision, place
from efficientnetv2.models.create import create

Say = Callable[[str], None]

_PARAMETERS, _MULTIPLY_ADDS = HEADINGS["params_m"], HEADINGS["flops_b"]


class _Kind(NamedTuple):
    """What is known of one of the tables: its title, the unit and batch of its times, what both sides are of.

    Without a unit no answer is timed.
    """

    title: str
    speed: str | None
    batch: int
    paper_says: str
    not_measured: str = "accuracy is not measured here."


class Timing(NamedTuple):
    """How answers are timed: as the paper's column at its scale, below it one picture in fp32.

    Args:
        batch: pictures of a pass.
        precision: that it computes in.
    """

    batch: int
    precision: Precision

    @classmethod
    def of(cls, scale: Scale, device: torch.device, *, paper_batch: int) -> Timing:
        """What a scale asks for where the paper's column is of that batch."""
        return cls(paper_batch if scale.name == "paper" else 1, precision_of(scale, device))


def precision_of(scale: Scale, device: torch.device) -> Precision:
    """16 bits on what multiplies them in hardware, as the paper's V100 does fp16; else, and at scale tiny, fp32."""
    return "fp32" if scale.name == "tiny" else lower_precision(device) or "fp32"


#: Pictures of a pass in Table 7's milliseconds (paper.json), which for M are those of Table 10 too.
LATENCY_BATCH = 16


_TABLES = {
    "1": _Kind(
        "Table 1: parameters, multiply-adds and time of earlier networks",
        "ms",
        1,
        "top-1 on ImageNet; no times.",
    ),
    "7": _Kind(
        "Table 7: EfficientNetV2 on ImageNet",
        "ms",
        LATENCY_BATCH,
        "top-1 on ImageNet, milliseconds on a V100 in fp16 at a batch of 16, hours of training on 32 TPUv3 cores.",
    ),
    "11": _Kind(
        "Table 11: small networks",
        "images/s",
        128,
        "top-1 on ImageNet, images/s on a V100 in fp16 at a batch of 128.",
    ),
    "figure1": _Kind(
        "Figure 1: accuracy against training time and parameters",
        None,
        LATENCY_BATCH,
        "top-1 on ImageNet, hours of training on 32 TPUv3 cores.",
        "accuracy and hours are not measured here, and ours are drawn at the paper's top-1.",
    ),
    "figure5": _Kind(
        "Figure 5: accuracy against parameters, multiply-adds and latency",
        "ms",
        LATENCY_BATCH,
        "top-1 on ImageNet, milliseconds on a V100 in fp16 at a batch of 16.",
        "accuracy is not measured here, and ours are drawn at the paper's top-1.",
    ),
}
# About what a network's passes of a round take together, where one takes less. Ours.
_ROUND_S = 0.3
_STRANGE = "not a network of this family"
_COUNTED = "counted at each network's evaluation size with 1,000 classes"


def counted(name: str, scale: Scale, device: torch.device, say: Say) -> Table:
    """One of the three tables, or the columns of Table 7 that a figure draws.

    Args:
        name: "1", "7", "11", "figure1" or "figure5".
        scale: of the measured times; what is counted is the paper's.
        device: to measure on.
        say: told what is going on.
    """
    kind = _TABLES[name]
    figures, headings = columns.figures(name), columns.headings(name)
    networks = {row: row.removesuffix("_21k") for row in figures if row != "columns"}
    asked = {heading for heading, _ in headings.values()}
    ours = {
        network: {heading: figure for heading, figure in sizes(network).items() if heading in asked}
        for network in networks.values()
    }
    timing = Timing.of(scale, device, paper_batch=kind.batch)
    if kind.speed is not None:
        for network, figure in answers(list(ours), kind.speed, scale, device, timing, say).items():
            ours[network][kind.speed] = figure
    rows: list[Row] = []
    seen: set[str] = set()
    for row, network in networks.items():
        here = ours[network]
        if kind.speed is not None and network in seen and network in NAMES:
            why = "the same network is timed in an earlier row"
            here = here | {kind.speed: Figure(unit=kind.speed, why=why)}
        rows.append(Row(row, table.row_of(figures, row, headings), here))
        seen.add(network)
    return Table(
        name,
        kind.title,
        tuple(rows),
        kind.paper_says,
        f"{table.untrained(scale.name)}{_COUNTED if kind.speed is None else how_counted(scale, device, timing)}; "
        f"{kind.not_measured}",
        scale.name,
    )


def how_counted(scale: Scale, device: torch.device, timing: Timing) -> str:
    """What the figures of ``sizes`` and ``answers`` are of."""
    timed = "a picture's time" if timing.batch == 1 else f"the time of {timing.batch} pictures"
    return (
        f"{_COUNTED}; {timed} on {device} in {timing.precision} at "
        f"a batch of {timing.batch}, {scale.px_share:g} of that size, all of them in turn, "
        f"{rounds_of(scale.answer_rounds)}"
    )


def how_timed(scale: Scale, device: torch.device, timing: Timing) -> str:
    """The same of times alone, in few words: for an axis."""
    return f"{device}, {timing.precision}, batch {timing.batch}, {scale.px_share:g} of the size"


def rounds_of(rounds: int) -> str:
    """What is told of a time."""
    return f"median of {count_of(rounds, 'round')} ± standard deviation"


def sizes(network: str) -> dict[str, Figure]:
    """Heading -> parameters and multiply-adds of a network by name; missing of one that is not ours."""
    if network not in NAMES:
        return {heading: Figure(unit=unit, why=_STRANGE) for heading, unit in (_PARAMETERS, _MULTIPLY_ADDS)}
    total = cost(published(network).architecture, image_px=published(network).eval_px).total
    return {
        _PARAMETERS[0]: Figure((total.parameters / 1e6,), "M"),
        _MULTIPLY_ADDS[0]: Figure((total.multiply_adds / 1e9,), "B"),
    }


def answers(
    networks: Sequence[str], unit: str, scale: Scale, device: torch.device, timing: Timing, say: Say
) -> dict[str, Figure]:
    """How fast some networks answer, timed in turn; missing of one that is not ours, and where memory ran out.

    Args:
        networks: by name, each at its published evaluation size, which the scale cuts.
        unit: "ms" of a pass, or "images/s".
        scale: of the time.
        device: to measure on.
        timing: pictures of a pass, and the precision.
        say: told what is going on.
    """
    ours = {name: scale.px(published(name).eval_px) for name in networks if name in NAMES}
    say(f"timing the answers of {count_of(len(ours), 'network')} in turn")
    seconds = answer_s(ours, rounds=scale.answer_rounds, device=device, timing=timing)

    def figure(name: str) -> Figure:
        if name not in ours:
            return Figure(unit=unit, why=_STRANGE)
        if name not in seconds:
            return Figure(unit=unit, why=OUT_OF_MEMORY)
        return Figure(tuple(1e3 * one if unit == "ms" else timing.batch / one for one in seconds[name]), unit)

    return {name: figure(name) for name in networks}


def answer_s(
    sizes_px: Mapping[str, int], *, rounds: int, device: torch.device, timing: Timing
) -> dict[str, list[float]]:
    """Seconds of the answers to the pictures of a pass, one per round, of every network that memory sufficed for.

    Each round has several passes of a network one after the other, where they are short: the first finds the weights of
    the others in the processor's cache.

    Args:
        sizes_px: network by name -> size of its pictures.
        rounds: after one that warms up.
        device: to measure on.
        timing: pictures of the pass, and the precision.
    """
    passes: dict[str, int] = {}

    def begin(name: str) -> Callable[[], None]:
        network, px = place(create(name).eval(), device), sizes_px[name]
        # Of an empty picture all that an untrained network computes is zeros, which are no fair work.
        noise = torch.randn(timing.batch, 3, px, px, generator=torch.Generator().manual_seed(0))
        pictures = noise.to(device).contiguous(memory_format=torch.channels_last)

        def ask() -> None:
            with torch.inference_mode(), autocast(device, timing.precision):
                for _ in range(passes.get(name, 1)):
                    network(pictures)

        [first] = alternate({name: ask}, rounds=1, wait=waiting(device))[name]
        passes[name] = max(1, round(_ROUND_S / first))
        return ask

    seconds = in_turn({name: partial(begin, name) for name in sizes_px}, rounds, device, warmup=1)
    return {name: [one / passes[name] for one in each] for name, each in seconds.items()}
