"""Tables 1, 7 and 11, Figures 1 and 5: parameters and multiply-adds, counted, and inference time, measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from benchmarks.paper import published
from benchmarks.paper.oom_safe_timing import OUT_OF_MEMORY, time_in_turn
from benchmarks.paper.published import HEADINGS
from benchmarks.paper.scale import Scale
from benchmarks.paper.table import Measurement, Row, Table, untrained

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.architectures.registry import get_model_info as published_network
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.factory import create
from efficientnetv2.utils.benchmark import interleave
from efficientnetv2.utils.device import Precision, autocast, lower_precision, place, synchronizer
from efficientnetv2.utils.errors import pluralize

Say = Callable[[str], None]

_PARAMS, _FLOPS = HEADINGS["params_m"], HEADINGS["flops_b"]
#: Batch size of Table 7's milliseconds (paper.json), which for M are those of Table 10 too.
LATENCY_BATCH = 16
# Seconds that the passes of a network take in a round together, where one pass takes less. Ours.
_ROUND_S = 0.3
_FOREIGN = "not a network of this family"
_COUNTED = "counted at each network's evaluation size with 1,000 classes"


class Timing(NamedTuple):
    """How inference is timed: images of a forward pass and precision."""

    batch: int
    precision: Precision

    @classmethod
    def of(cls, scale: Scale, device: torch.device, *, paper_batch: int) -> Timing:
        """The paper's batch at its scale, otherwise a single image."""
        return cls(paper_batch if scale.name == "paper" else 1, precision_of(scale, device))


def precision_of(scale: Scale, device: torch.device) -> Precision:
    """16 bits on hardware that multiplies them, as the paper's V100 does fp16; otherwise, and at scale tiny, fp32."""
    return "fp32" if scale.name == "tiny" else lower_precision(device) or "fp32"


# Table -> unit and batch size of the times that are measured.
_TIMES = {"1": ("ms", 1), "7": ("ms", LATENCY_BATCH), "11": ("images/s", 128), "figure5": ("ms", LATENCY_BATCH)}
# Table -> what is not measured; accuracy alone otherwise.
_NOT_MEASURED = {
    "figure1": "accuracy and hours are not measured here, and ours are drawn at the paper's top-1.",
    "figure5": "accuracy is not measured here, and ours are drawn at the paper's top-1.",
}


def counted(name: str, scale: Scale, device: torch.device, say: Say) -> Table:
    """Table 1, 7 or 11, or the columns of Table 7 that "figure1" or "figure5" draws; only times depend on scale."""
    networks = {key: key.removesuffix("_21k") for key in published.rows(name)}
    columns = {heading for heading, _ in published.headings(name).values()}
    times: dict[str, Measurement] = {}
    unit, note = "", _COUNTED
    if name in _TIMES:
        unit, batch = _TIMES[name]
        timing = Timing.of(scale, device, paper_batch=batch)
        note = counted_note(scale, device, timing)
        times = latencies(list(dict.fromkeys(networks.values())), unit, scale, device, timing, say)
    rows: list[Row] = []
    for key, network in networks.items():
        ours = {heading: size for heading, size in network_sizes(network).items() if heading in columns}
        if unit:
            why = "the same network is timed in an earlier row"
            ours[unit] = times.pop(network, Measurement(unit=unit, why=why))
        rows.append(Row(key, published.row(name, key), ours))
    not_measured = _NOT_MEASURED.get(name, "accuracy is not measured here.")
    return published.table(name, rows, f"{untrained(scale.name)}{note}; {not_measured}", scale.name)


def counted_note(scale: Scale, device: torch.device, timing: Timing) -> str:
    """How the values of ``network_sizes`` and ``latencies`` were made."""
    timed = "an image's time" if timing.batch == 1 else f"the time of {timing.batch} images"
    return (
        f"{_COUNTED}; {timed} on {device} in {timing.precision} at "
        f"a batch of {timing.batch}, {scale.size_factor:g} of that size, all of them in turn, "
        f"{rounds_note(scale.latency_rounds)}"
    )


def axis_note(scale: Scale, device: torch.device, timing: Timing) -> str:
    """How times were measured, short enough for the label of an axis."""
    return f"{device}, {timing.precision}, batch {timing.batch}, {scale.size_factor:g} of the size"


def rounds_note(rounds: int) -> str:
    """What is shown of times."""
    return f"median of {pluralize(rounds, 'round')} ± standard deviation"


def params_and_flops(architecture: Architecture, image_size: int) -> dict[str, Measurement]:
    """Heading -> parameters in millions, and multiply-adds in billions at an image size."""
    total = count_flops(architecture, image_size=image_size).total
    return {
        _PARAMS[0]: Measurement((total.parameters / 1e6,), "M"),
        _FLOPS[0]: Measurement((total.multiply_adds / 1e9,), "B"),
    }


def network_sizes(network: str) -> dict[str, Measurement]:
    """``params_and_flops`` of a published network at its evaluation size; missing for one of another family."""
    if network not in NAMES:
        return {heading: Measurement(unit=unit, why=_FOREIGN) for heading, unit in (_PARAMS, _FLOPS)}
    found = published_network(network)
    return params_and_flops(found.architecture, found.eval_image_size)


def latencies(
    networks: Sequence[str], unit: str, scale: Scale, device: torch.device, timing: Timing, say: Say
) -> dict[str, Measurement]:
    """Inference speed of each network, timed in turn, in "ms" per forward pass or "images/s".

    Each network has its published evaluation size, reduced by the scale. Missing for networks of another family and
    where memory runs out.
    """
    sizes = {name: scale.px(published_network(name).eval_image_size) for name in networks if name in NAMES}
    say(f"timing the inference of {pluralize(len(sizes), 'network')} in turn")
    seconds = latency_s(sizes, rounds=scale.latency_rounds, device=device, timing=timing)

    def measurement(name: str) -> Measurement:
        if name not in seconds:
            return Measurement(unit=unit, why=OUT_OF_MEMORY if name in sizes else _FOREIGN)
        per_pass = seconds[name]
        return Measurement(tuple(1e3 * s if unit == "ms" else timing.batch / s for s in per_pass), unit)

    return {name: measurement(name) for name in networks}


def latency_s(sizes: Mapping[str, int], *, rounds: int, device: torch.device, timing: Timing) -> dict[str, list[float]]:
    """Network -> seconds of a forward pass, one per round; networks that run out of memory are left out.

    A round has several short passes of a network in a row: the first one finds the weights of the other networks in
    the processor's cache.
    """
    passes: dict[str, int] = {}

    def begin(name: str) -> Callable[[], None]:
        network, px = place(create(name).eval(), device), sizes[name]
        # Of an empty image an untrained network computes only zeros, which are faster to multiply.
        noise = torch.randn(timing.batch, 3, px, px, generator=torch.Generator().manual_seed(0))
        images = noise.to(device).contiguous(memory_format=torch.channels_last)

        def infer() -> None:
            with torch.inference_mode(), autocast(device, timing.precision):
                for _ in range(passes.get(name, 1)):
                    network(images)

        [first] = interleave({name: infer}, rounds=1, wait=synchronizer(device))[name]
        passes[name] = max(1, round(_ROUND_S / first))
        return infer

    seconds = time_in_turn({name: partial(begin, name) for name in sizes}, rounds, device)
    return {name: [one / passes[name] for one in taken] for name, taken in seconds.items()}
