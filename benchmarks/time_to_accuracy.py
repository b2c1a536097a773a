"""How many minutes to the same top-1: our short recipe, timm's train script tuned, torchvision's reference recipe.

Run: python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY --tune [--at-once 2]
     python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY [--only timm] [--seeds 3] [--record]

EfficientNetV2-B0 from scratch to 128 px. TIMM_TRAIN_PY is the train.py of timm's repository, which the package does
not contain. Each side answers all images of val, once, at its end, in its own way of cutting them.

- timm: 10 epochs of its script with what ``--tune`` found best on images of train alone (a quarter of them for 20
  epochs, half the steps; 2,000 others choose; one run each): the fastest of channels-last, bf16, compiling and 0 to 2
  workers (``benchmarks.epoch``), then the optimizer, its rate (half and twice, and further as long as the best lies at
  an end), the schedule, regularization with augmentation, and the batch, each with the best of what came before. The
  rate is chosen first, by single runs; so the same at the rate that it began from goes the whole length too, and of
  the two the one with the higher mean on val counts, which is in timm's favour.
- torchvision: its reference recipe cut to 10 epochs (``benchmarks.reference_recipe``), as many workers, with the best
  rate, looked for in the same way.
- ours: ``effnetv2 train --recipe quick --weights none``, as it comes, for 2, 3, 4, 5, 6, 8, 10 epochs until the mean
  top-1 is at least theirs; a length whose first seed is more than three points below it gets no further seeds. That
  length says how many minutes we need; the speedup is over it, seed by seed. So its interval is of the minutes alone:
  that the length was found by means over the same seeds, whose top-1 scatters, is not in it. Then ours for as many
  epochs as timm's minutes allow by their mean, or for up to a tenth fewer where those have been run already; of these
  the top-1 alone is compared.

Minutes are of the training steps, waiting for images included, validation and start-up not. What is done is kept in
OUT and not done again; runs whose minutes are compared have to be of one kind of machine and one version of torch.
The sides take turns, seed by seed, and a seed is refused whose sides met the machine at paces that differ by more than
a tenth (``changed_pace``).
``--at-once`` shares the cores among so many runs of tuning, whose seconds nothing uses; ``--only timm`` leaves
torchvision for another sitting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.arms import (
    HARDLY_VALIDATED,
    SAME_PACE,
    Paired,
    gain,
    machines,
    measured,
    ratio,
    refuse_incomparable_times,
    refuse_other_regime,
)
from benchmarks.paper import page as paper_page
from benchmarks.paper.runs import Cell, Runs
from benchmarks.peers_training import Reference, Timm, once
from benchmarks.peers_tuning import CHOOSING, as_timm, at_first_rate, here, regime_of, tune
from benchmarks.record import RESULTS, forget, hardware, record, versions_of
from benchmarks.regimes import HOPELESS

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

Rows = list[dict[str, Any]]  # one per seed
_SEEDS = 3
_SIDES = ("timm", "torchvision")
_SPEEDUP, _GAIN = "time_to_{}_top1_speedup", "same_minutes_top1_gain_over_timm"
_CLAIMS = (_SPEEDUP.format("timm"), _SPEEDUP.format("torchvision"), _GAIN)  # all that can be made
_LADDER = (2, 3, 4, 5, 6, 8, 10)


def timm_of(chosen: Mapping[str, Any], options: argparse.Namespace) -> Timm:
    """Timm's script with the words that tuning chose."""
    parts = {name: tuple(words) for name, words in chosen["parts"].items()}
    return Timm(options.script, options.image_size, tuple(chosen["quick"]), parts)


def peers(
    side: str, options: argparse.Namespace, chosen: Mapping[str, Any], seeds: Iterable[int] | None = None
) -> list[Rows]:
    """The full-length runs of timm's or torchvision's side, a row per seed each; the last one counts.

    ``seeds`` None is all.
    """
    seeds = tuple(range(options.seeds) if seeds is None else seeds)
    timm = timm_of(chosen["timm"], options)
    if side == "torchvision":
        reference = Reference(options.image_size, chosen["torchvision"]["lr"], as_timm(timm))
        return [_rows(side, reference, options, seeds)]
    found, first = [_rows(side, timm, options, seeds)], at_first_rate(timm)
    if first.parts["optimizer"][-1] != timm.parts["optimizer"][-1]:
        found.append(_rows("timm_first_rate", first, options, seeds))
    return sorted(found, key=mean_top1)


def _rows(side: str, trained: Timm | Reference, options: argparse.Namespace, seeds: Iterable[int]) -> Rows:
    rows: Rows = []
    for seed in seeds:
        of = {"epochs": options.epochs, "seed": seed}
        rows.append(
            once(
                options.output / "sides" / f"{side}_{seed}.json",
                lambda of=of: {
                    **trained.trained(options.pictures, **of),
                    "hardware": hardware(),
                    "versions": library_versions(),
                },
                {**trained.asked(options.pictures, **of), "seed": seed},
            )
        )
        print(f"seed {seed}: {side} {rows[-1]['top1']:.1%} in {rows[-1]['train_s']:.0f} s", flush=True)
    return rows


def our_cell(epochs: float, image_size: int, model: str = "efficientnetv2_b0") -> Cell:
    """A run of recipe ``quick`` from half of this size on, validated at its end alone."""
    settings = (
        f"epochs={epochs:g}", *HARDLY_VALIDATED,
        f"progressive.image_size={{start: {image_size / 2:g}, end: {image_size}}}",
    )  # fmt: skip
    return Cell(f"ours {epochs:g} epochs", "run", "quick", model, settings)


def ours(runs: Runs, epochs: float, image_size: int) -> Rows:
    """Our side at one length, one row per seed."""
    rows = [measured(runs, our_cell(epochs, image_size), seed) for seed in range(runs.seeds)]
    minutes = statistics.fmean(row["train_s"] for row in rows) / 60
    print(f"ours, {epochs:g} epochs: {mean_top1(rows):.1%} in {minutes:.1f} minutes", flush=True)
    return rows


def take_turns(sides: Iterable[str], options: argparse.Namespace, chosen: Mapping[str, Any], runs: Runs) -> None:
    """Run theirs and then ours, seed by seed; what is run is kept, and read where the sides are compared.

    With each seed ours goes through the lengths until it reaches the best of theirs with that seed.
    """
    for seed in range(options.seeds):
        best = max(mean_top1(rows) for side in sides for rows in peers(side, options, chosen, [seed]))
        for epochs in _LADDER:
            if measured(runs, our_cell(epochs, options.image_size), seed)["top1"] >= best:
                break


def _within(out: Path, allowed: float) -> float:
    """The longest length kept in ``out`` of nine tenths to all of these epochs; where there is none, these."""
    kept = (float(json.loads(file.read_text(encoding="utf-8"))["epochs"]) for file in out.glob("*/measured.json"))
    return max((epochs for epochs in kept if 0.9 * allowed <= epochs <= allowed), default=allowed)


def mean_top1(rows: Sequence[Mapping[str, Any]]) -> float:
    """Over the seeds."""
    return statistics.fmean(row["top1"] for row in rows)


def seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of training, one per seed."""
    return [row["train_s"] for row in rows]


def climbed(runs: Runs, image_size: int, top1: float) -> dict[float, Rows]:
    """Ours, longer and longer until the mean top-1 is at least this; epochs -> rows.

    A length whose first seed is hopelessly below it is left out, but for the last.
    """
    found: dict[float, Rows] = {}
    for epochs in _LADDER:
        first = ours(replace(runs, seeds=1), epochs, image_size)
        if mean_top1(first) < top1 - HOPELESS and epochs < _LADDER[-1]:
            continue
        found[epochs] = ours(runs, epochs, image_size)
        if mean_top1(found[epochs]) >= top1:
            break
    return found


@dataclass(frozen=True)
class Claim:
    """What is said of two sides.

    Args:
        figure: the comparison.
        unit: of it.
        rows: the runs that it is made of.
    """

    figure: Paired
    unit: str
    rows: Rows


def claims(theirs: Mapping[str, Rows], ladder: Mapping[float, Rows], same: Rows) -> dict[str, Claim]:
    """By name; there is no speedup where no length of ours reached their top-1, or where the machine changed its pace.

    Raises:
        SystemExit: two runs whose times are compared were made on different kinds of machine or with different torches.
    """
    found = {}
    for side, rows in theirs.items():
        enough = [mine for mine in ladder.values() if mean_top1(mine) >= mean_top1(rows)]
        if enough:
            refuse_incomparable_seeds(rows, enough[0])
        if enough and not changed_pace(rows, enough[0]):
            speedup = ratio(seconds(rows), seconds(enough[0]))
            found[_SPEEDUP.format(side)] = Claim(speedup, "ratio", [*rows, *enough[0]])
    pairs = [[100 * row["top1"] for row in rows] for rows in (same, theirs["timm"])]
    found[_GAIN] = Claim(gain(*pairs), "points", [*same, *theirs["timm"]])
    return found


def claims_of(raw: Mapping[str, Any]) -> dict[str, Claim]:
    """The claims of what ``time_to_accuracy.json`` keeps."""
    ladder = {float(epochs): rows for epochs, rows in raw["ours"].items()}
    return claims({side: raw[side] for side in _SIDES}, ladder, raw["ours_same_minutes"])


def refuse_incomparable_seeds(theirs: Rows, mine: Rows) -> None:
    """Refuse minutes that were taken on different kinds of machine or with different torches, seed by seed."""
    for pair in zip(theirs, mine, strict=True):
        refuse_incomparable_times(pair)


def changed_pace(theirs: Rows, mine: Rows) -> str:
    """Whether the sides of a seed met the machine at paces that differ by more than a tenth: what to do, or "".

    A side does the same work with every seed. So its pace with a seed is the median of its seconds on that kind of
    machine over its seconds with that seed.
    """
    for one, other in zip(theirs, mine, strict=True):
        paces = _pace(one, theirs), _pace(other, mine)
        if max(paces) > SAME_PACE * min(paces):
            return (
                f"With seed {one['seed']} their run had {paces[0]:.2f} times its usual pace on this machine, ours "
                f"{paces[1]:.2f} times its own, so the times do not compare: delete both in OUT, and run this again."
            )
    return ""


def _pace(run: Mapping[str, Any], rows: Rows) -> float:
    alike: list[float] = [row["train_s"] for row in rows if row["hardware"] == run["hardware"]]
    return statistics.median(alike) / float(run["train_s"])


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("script", type=Path, help="train.py of timm's repository")
    parser.add_argument("--tune", action="store_true", help="choose the others' settings, and stop")
    parser.add_argument("--at-once", type=int, default=1, help="runs of tuning at a time")
    parser.add_argument("--only", choices=_SIDES[:1], help="against timm alone")
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_accuracy")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw figures")
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
    if options.record and (not whole or options.seeds < 2 or options.tune or options.only):
        parser.error("--record is for the whole measurement, both sides and 2 seeds or more, not for --tune.")
    options.pictures, options.tuned = options.pictures.absolute(), options.output / "tuned.json"
    if not options.tune and not options.tuned.exists():
        parser.error(f"{options.tuned} does not exist: run the same with --tune first.")
    return options


def main() -> None:
    options = _parsed()
    if options.tune:
        write_text_atomically(options.tuned, json.dumps(tune(options), indent=1) + "\n")
        return
    chosen = json.loads(options.tuned.read_text(encoding="utf-8"))
    if "regime" in chosen:  # told later than the first were tuned
        refuse_other_regime(options.tuned, chosen, regime_of(options))
    if (on := chosen["timm"].get("on", "a machine that was not kept")) != here():
        print(f"Timm's format, compiling and workers were the fastest on {on}; --tune would try them here.")
    runs = Runs(DataConfig(str(options.pictures)), options.seeds, "none", "cpu", options.output / "ours", print)
    theirs: dict[str, Rows] = {}
    lower: dict[str, Rows] = {}
    climbs: dict[str, dict[float, Rows]] = {}
    sides = (options.only,) if options.only else _SIDES
    take_turns(sides, options, chosen, runs)
    for side in sides:
        *less, theirs[side] = peers(side, options, chosen)
        lower |= {f"{side}_lower": rows for rows in less}
        climbs[side] = climbed(runs, options.image_size, mean_top1(theirs[side]))
        longest_of_side = list(climbs[side].values())[-1]
        refuse_incomparable_seeds(theirs[side], longest_of_side)
        if advice := changed_pace(theirs[side], longest_of_side):
            raise SystemExit(advice)
    longest, last = list(climbs["timm"].items())[-1]
    allowed = longest * statistics.fmean(seconds(theirs["timm"])) / statistics.fmean(seconds(last))
    same = ours(runs, _within(runs.out, round(allowed, 1)), options.image_size)
    ladder = dict(sorted((epochs, rows) for climb in climbs.values() for epochs, rows in climb.items()))
    found = claims(theirs, ladder, same)
    for name, claim in found.items():
        print(f"{name}: {claim.figure} {claim.unit}")
    if options.record:
        _record(found, {"tuned": chosen, **theirs, **lower, "ours": ladder, "ours_same_minutes": same})


def _record(found: Mapping[str, Claim], raw: Mapping[str, Any]) -> None:
    seeds = len(raw["timm"])
    whole = {"when": time.strftime("%Y-%m-%d")} | dict(raw)
    (RESULTS / "time_to_accuracy.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    more = "" if seeds == _SEEDS else f" --seeds {seeds}"
    record_claims(found, _CLAIMS, f"python -m benchmarks.time_to_accuracy IMAGENETTE TIMM_TRAIN_PY{more} --record")
    paper_page.write()


def record_claims(found: Mapping[str, Claim], names: Iterable[str], command: str) -> None:
    """Write the claims of these names; one that an earlier run made and this one did not reach is taken out."""
    for name in names:
        if name in found:
            of = found[name]
            on, versions = machines(of.rows), versions_of(of.rows)
            record(name, unit=of.unit, command=command, on=on, versions=versions, **asdict(of.figure))
        else:
            forget(name)


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
