"""Minutes to the same top-1: recipe ``quick``, timm's train script after tuning, torchvision's reference recipe.

Run: python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY --tune [--at-once 2]
     python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY [--seeds 3] [--record]

EfficientNetV2-B0 from scratch to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which the package does
not contain. Each program evaluates all images of val once, at the end, with its own preprocessing.

- timm: 10 epochs of its script with the values that ``--tune`` chose on images of train alone (a quarter of them for 20
  epochs; 2,000 other images choose; one run each). First the fastest of channels-last, bf16, compilation and 0 to 2
  workers (``benchmarks.epoch``). Then the optimizer, its learning rate (half, twice, and further while the best is at
  an end), the schedule, regularization with augmentation, and the batch size. Single runs choose the learning rate
  first. So timm also trains with the rate that tuning started from. The rate with the higher mean top-1 on val counts.
- torchvision: its reference recipe for 10 epochs (``benchmarks.reference_recipe``) with the same number of workers and
  the best learning rate, chosen in the same way.
- quick: ``effnetv2 train --recipe quick --weights none`` without tuning. For each peer, the first seed chooses the
  shortest of 2, 3, 4, 5, 6, 8, 10 epochs that reaches the peer's top-1. If the mean over all seeds does not reach the
  peer's mean, the next length follows. Then once more, for the epochs that 95 % of timm's minutes allow by the times of
  the first seed.

The claims:

- ``time_to_timm_top1_speedup``, ``time_to_torchvision_top1_speedup``: time of the peer / time of ``quick``. The length
  of ``quick`` is chosen on the evaluated seeds and images. The interval does not cover this choice.
- ``same_minutes_top1_gain_over_timm``: quick − timm in points, if the mean minutes of ``quick`` are at most timm's.

The runs of a seed take turns. They count if the pace of the machine is within a tenth before and after all of them.
Minutes are of training steps and waiting for images. OUT stores all runs; finished runs are read again. ``--at-once``
runs several trials of tuning at the same time, whose times are not used.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import SAME_PACE, gain, ratio, refuse_other_regime
from benchmarks.in_turn import (
    Claim,
    Rows,
    Side,
    mean_top1,
    our_side,
    peer_side,
    record_claims,
    refuse_drift,
    seconds,
    take_turns,
)
from benchmarks.paper.runs import Runs
from benchmarks.peers_training import Reference, Timm
from benchmarks.peers_tuning import CHOOSING, as_timm, at_first_rate, here, regime_of, tune
from benchmarks.record import RESULTS

from efficientnetv2.data.config import DataConfig
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

_SPEEDUP, _GAIN = "time_to_{}_top1_speedup", "same_minutes_top1_gain_over_{}"
LADDER = (2, 3, 4, 5, 6, 8, 10)
_ALLOWED = 0.95  # fraction of timm's minutes: the later seeds may be slower than the first


def timm_of(chosen: Mapping[str, Any], options: argparse.Namespace) -> Timm:
    """Return timm's script with the arguments that tuning chose."""
    parts = {name: tuple(arguments) for name, arguments in chosen["parts"].items()}
    return Timm(options.script, options.image_size, tuple(chosen["quick"]), parts)


def peers_of(options: argparse.Namespace, chosen: Mapping[str, Any]) -> dict[str, list[Side]]:
    """Return the sides of timm, one per learning rate, and of torchvision."""
    timm = timm_of(chosen["timm"], options)
    first = at_first_rate(timm)
    reference = Reference(options.image_size, chosen["torchvision"]["lr"], as_timm(timm))
    of = {"lengths": (options.epochs,), "pictures": options.pictures, "out": options.output}
    sides = [peer_side("timm", timm, **of)]
    if first.parts["optimizer"][-1] != timm.parts["optimizer"][-1]:
        sides.append(peer_side("timm_first_rate", first, **of))
    return {"timm": sides, "torchvision": [peer_side("torchvision", reference, **of)]}


@dataclass(frozen=True)
class Compared:
    """Runs of a peer, and of ``quick`` to the same top-1.

    Args:
        theirs: Rows of the peer's side with the highest mean top-1.
        lower: Rows of the peer's other sides.
        epochs: Epochs of ``quick``. None if no length reaches the peer's mean top-1.
        ours: Rows of ``quick`` with these epochs.
    """

    theirs: Rows
    lower: list[Rows]
    epochs: float | None
    ours: Rows


def compared(
    peers: Mapping[str, Sequence[Side]], quick: Side, options: argparse.Namespace
) -> tuple[dict[str, Compared], Rows]:
    """Run each peer against ``quick`` to the same top-1, and ``quick`` in the minutes of the first peer.

    Returns:
        Comparison by peer, and the rows of ``quick`` in the minutes of the first peer.

    Raises:
        SystemExit: The machine, its pace or the version of torch changed within a seed.
    """
    sides = [side for of_peer in peers.values() for side in of_peer]
    starts = {side.name: quick.first_length(side.run(side.lengths[0], 0)["top1"]) for side in sides}
    timed, *_ = peers.values()
    start = starts[timed[0].name]
    allowed_s = _ALLOWED * min(side.run(side.lengths[0], 0)["train_s"] for side in timed)
    allowed = math.floor(10 * start * allowed_s / quick.run(start, 0)["train_s"]) / 10
    turns = [(side, side.lengths[0]) for side in sides]
    turns += [(quick, epochs) for epochs in dict.fromkeys([*starts.values(), allowed])]
    runs = take_turns(turns, options.seeds, options.pace_limit)
    rows = {(side.name, epochs): of for (side, epochs), of in zip(turns, runs, strict=True)}
    found = {}
    for name, of_peer in peers.items():
        *lower, best = sorted(of_peer, key=lambda side: mean_top1(rows[side.name, side.lengths[0]]))
        theirs = rows[best.name, best.lengths[0]]
        epochs, ours = quick.reaching(mean_top1(theirs), starts[best.name], options.seeds) or (None, [])
        for pair in zip(theirs, ours, strict=False):  # none if no length reaches it
            refuse_drift(pair, options.pace_limit)
        found[name] = Compared(theirs, [rows[side.name, side.lengths[0]] for side in lower], epochs, ours)
    return found, rows[quick.name, allowed]


def claims(found: Mapping[str, Compared], same: Rows) -> dict[str, Claim]:
    """Compute speedups by peer, and the gain of ``quick`` over the first peer if ``quick`` is not slower."""
    claimed = {
        _SPEEDUP.format(name): Claim(ratio(seconds(one.theirs), seconds(one.ours)), "ratio", [*one.theirs, *one.ours])
        for name, one in found.items()
        if one.ours
    }
    name, first = next(iter(found.items()))
    minutes = [statistics.fmean(seconds(rows)) / 60 for rows in (first.theirs, same)]
    print(f"Same minutes: {name} {minutes[0]:.1f}, quick {minutes[1]:.1f}")
    if minutes[1] <= minutes[0]:
        pairs = [[100 * row["top1"] for row in rows] for rows in (same, first.theirs)]
        claimed[_GAIN.format(name)] = Claim(gain(*pairs), "points", [*same, *first.theirs])
    return claimed


def measure(peers: Mapping[str, Sequence[Side]], options: argparse.Namespace, chosen: Mapping[str, Any]) -> None:
    """Run what is missing, print the claims, and record them with --record. The minutes of the first peer count."""
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", options.output, print)
    found, same = compared(peers, our_side(runs, options.image_size, options.ladder), options)
    claimed = claims(found, same)
    for name, claim in claimed.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        raw: dict[str, Any] = {"when": time.strftime("%Y-%m-%d"), "tuned": chosen, "ours_same_minutes": same}
        raw["ours"] = {one.epochs: one.ours for one in found.values() if one.ours}
        for name, one in found.items():
            raw |= {name: one.theirs} | ({f"{name}_lower": one.lower[0]} if one.lower else {})
        write_text_atomically(RESULTS / f"{options.program}.json", json.dumps(raw, indent=1) + "\n")
        command = f"python -m benchmarks.{options.program} IMAGENETTE TIMM_TRAIN_PY --seeds {options.seeds} --record"
        record_claims(claimed, [form.format(name) for form in (_SPEEDUP, _GAIN) for name in found], command)


def tuned(options: argparse.Namespace) -> dict[str, Any]:
    """Read the results of ``--tune`` in OUT.

    Raises:
        SystemExit: There are no results, or they are from other values.
    """
    file = options.output / "tuned.json"
    if not file.exists():
        raise SystemExit(f"{file} does not exist: run the same with --tune first.")
    chosen: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "regime" in chosen:  # the first files do not have it
        refuse_other_regime(file, chosen, regime_of(options))
    if (on := chosen["timm"].get("on", "a machine that was not kept")) != here():
        print(f"Timm's format, compilation and workers were the fastest on {on}.")
    return chosen


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--tune", action="store_true", help="choose the peers' values, and stop")
    parser.add_argument("--at-once", type=int, default=1, help="runs of tuning at a time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_accuracy")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw rows")
    parser.set_defaults(program="time_to_accuracy", ladder=LADDER, pace_limit=SAME_PACE)
    smaller = parser.add_argument_group("smaller, to see that it runs; not to be recorded")
    defaults = {
        "epochs": 10,
        "image-size": 128,
        "tune-epochs": 20,
        "tune-pictures": 2400,
        "tune-answers": CHOOSING,
        "tune-updates": 12,
    }
    for name, value in defaults.items():
        smaller.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    whole = all(getattr(options, name.replace("-", "_")) == value for name, value in defaults.items())
    if options.record and (not whole or options.seeds < 2 or options.tune):
        parser.error("--record is for the whole measurement with 2 seeds or more, not for --tune.")
    options.pictures = options.pictures.absolute()
    return options


def main() -> None:
    options = _parsed()
    if options.tune:
        write_text_atomically(options.output / "tuned.json", json.dumps(tune(options), indent=1) + "\n")
    else:
        chosen = tuned(options)
        measure(peers_of(options, chosen), options, chosen)


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
