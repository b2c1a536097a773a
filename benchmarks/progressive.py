"""Progressive learning with adaptive regularization against a fixed image size, from scratch on Imagenette.

Run: python -m benchmarks.progressive IMAGENETTE [--regime paper|short|resnet50] --tune [fixed|progressive]
     python -m benchmarks.progressive IMAGENETTE [--regime paper|short|resnet50] [--seeds 5] [--second-processor]
         [--record]

Regime paper: V2-B0, 1,000 training images (other images for each seed), 60 epochs. Training without regularization
overfits, as on ImageNet after 350 epochs. Regime short: V2-B0, all images, 10 epochs. Regime resnet50: torchvision's
ResNet-50 at 96 px, all images, 6 epochs (the paper's Table 12 at small scale). Each run evaluates val once, at the end.

Arms, with the same images, seeds and recipe ``quick``:

- fixed: 128 px (ResNet-50: 96 px), with the final regularization throughout.
- progressive: four stages from half of this size. RandAugment and dropout grow from a third of their final value
  (ResNet-50 has no dropout layer). The first stage may be longer than the others, except in regime short.
- fixed, equal time: as fixed, for the epochs that take the time of progressive with the same seed.

``--tune`` comes first. For fixed and for progressive, it tries up to five strengths of regularization from none on, and
stops at a top-1 of more than three points below the best. (The strength slight of fixed is the mean of light in
progressive.) Then it tries half and twice the learning rate with the best strength, and further rates while the best is
at an end. If the best rate is not the recipe's, it tries the strengths again. The images are from train: some to fit,
2,000 others to choose by, one run each. Of the longer first stages of progressive, it takes the fastest within a point
of the best, because they exist for speed. OUT/tuned.json stores the choices. ``--tune fixed`` and
``--tune progressive`` try only the candidates of one arm, so that two processes can share the work. ``--tune`` then
reads their results.

NAME is b0_imagenette, b0_imagenette_short or resnet50_imagenette:

- ``progressive_speedup_NAME``, ``progressive_wall_speedup_NAME``: time of fixed / time of progressive for the same
  epochs. The first counts training steps and waiting for images. The second also counts validation, saving and
  evaluation.
- ``progressive_top1_gain_NAME``: progressive − fixed for the same epochs, in points.
- ``progressive_top1_gain_equal_time_NAME``: progressive − fixed in the same time, in points.

OUT stores each run. A stopped run resumes; a finished run is read again. Only the results are committed.
``others_cores`` is the number of cores that other programs used at the same time. ``--record`` also draws
docs/images/progressive_REGIME.png: top-1 against minutes, and the minutes at each image size.

``--second-processor`` measures the choices of the first record again on another processor. The names of its claims and
files end in _second_processor, and nothing is drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import progressive_figure, small_tables
from benchmarks.arms import (
    NOTHING_SELECTED,
    Paired,
    gain,
    machines,
    measured,
    ratio,
    refuse_incomparable_times,
    refuse_other_pace,
    refuse_other_regime,
    refuse_to_record_elsewhere,
    same_numbers,
)
from benchmarks.paper import page as paper_page
from benchmarks.paper.records import write_record
from benchmarks.paper.runs import Cell, Runs
from benchmarks.peers_tuning import NEARLY, beyond_ends
from benchmarks.record import RESULTS, record, versions_of
from benchmarks.regimes import (
    REGIMES,
    Regime,
    add_smaller,
    each_seed,
    regularized,
    smaller,
    strengths,
    to_tune,
    try_strengths,
)

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

RATES = (2e-3, 1e-3, 4e-3)  # the recipe's rate first
FIXED, PROGRESSIVE, EQUAL_TIME = "fixed", "progressive", "fixed, equal time"
BOTH = (FIXED, PROGRESSIVE)


@dataclass(frozen=True)
class Choice:
    """Result of tuning.

    Args:
        strength: Name in ``STRENGTHS``.
        lr: Peak learning rate.
        shares: Relative numbers of steps of the stages of progressive. None means equal numbers.
    """

    strength: str
    lr: float
    shares: tuple[int, ...] | None = None

    @property
    def column(self) -> str:
        """Name of a run with this choice."""
        return f"{self.strength} {self.lr:g}" + (f" {' '.join(map(str, self.shares))}" if self.shares else "")


def cell(row: str, column: str, choice: Choice, regime: Regime, epochs: float, device: str = "cpu") -> Cell:
    """Return an arm: recipe ``quick`` with another schedule and learning rate."""
    settings = [
        *same_numbers(device), *NOTHING_SELECTED, f"epochs={epochs:.6g}", f"optimizer.lr={choice.lr:g}",
        f"batch_size={regime.batch_size}",
        f"progressive.stages={4 if row == PROGRESSIVE else 1}",
        f"progressive.image_size={{start: {regime.image_size / 2:g}, end: {regime.image_size}}}",
        *regularized(choice.strength, growing=True),  # with one stage, a ramp has its final value
    ]  # fmt: skip
    if regime.size_multiple is not None:
        settings.append(f"progressive.size_multiple={regime.size_multiple}")
    if row == PROGRESSIVE and choice.shares is not None:
        settings.append(f"progressive.stage_fractions={list(choice.shares)}")
    return Cell(row, column, "quick", regime.model, tuple(settings))


def tuned(dataset: ImageDataset, regime: Regime, runs: Runs, arms: Sequence[str] = BOTH) -> dict[str, Any]:
    """Try the candidates of these arms; return the results and the choices."""
    runs = to_tune(dataset, regime, runs)
    return {"regime": asdict(regime), "arms": {arm: _tuned_arm(arm, regime, runs) for arm in arms}}


def _tuned_arm(arm: str, regime: Regime, runs: Runs) -> dict[str, Any]:
    tried: dict[Choice, float] = {}

    def top1(choice: Choice) -> float:
        if choice not in tried:
            candidate = cell(arm, choice.column, choice, regime, regime.tune_epochs, runs.device)
            tried[choice] = measured(runs, candidate, 0)["top1"]
            print(f"tuning {arm}: {choice.column}: {tried[choice]:.1%}", flush=True)
        return tried[choice]

    def of_strengths(lr: float) -> dict[str, float]:
        return try_strengths(strengths(growing=arm == PROGRESSIVE), lambda name: top1(Choice(name, lr)))

    found = of_strengths(RATES[0])
    strength = max(found, key=lambda name: found[name])
    rates = beyond_ends({lr: top1(Choice(strength, lr)) for lr in RATES}, lambda lr: top1(Choice(strength, lr)))
    lr = max(rates, key=lambda one: rates[one])
    if lr != RATES[0]:
        of_strengths(lr)
    chosen = best = max(tried, key=lambda choice: tried[choice])
    for shares in regime.shares if arm == PROGRESSIVE else ():
        top1(replace(best, shares=shares))
    for choice, reached in tried.items():  # the fastest come last
        chosen = choice if choice.shares and reached >= max(tried.values()) - NEARLY else chosen
    print(f"{arm}: chosen {chosen.column} ({tried[chosen]:.1%})", flush=True)
    return {"chosen": asdict(chosen), "tried": [asdict(choice) | {"top1": top1} for choice, top1 in tried.items()]}


def compared(
    dataset: ImageDataset, regime: Regime, choices: Mapping[str, Choice], runs: Runs
) -> dict[str, list[dict[str, Any]]]:
    """Run all arms with all seeds; return arm -> results of ``measured``, one per seed."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (FIXED, PROGRESSIVE, EQUAL_TIME)}
    for seed, here in each_seed(dataset, regime, runs):
        for arm in BOTH:
            found[arm].append(measured(here, cell(arm, "run", choices[arm], regime, regime.epochs, runs.device), seed))
        # Their times decide the epochs of the third arm.
        refuse_incomparable_times([found[arm][-1] for arm in BOTH])
        refuse_other_pace(found[FIXED][-1], found[PROGRESSIVE][-1], here.out)
        spent, whole = found[PROGRESSIVE][-1]["train_s"], found[FIXED][-1]["train_s"]
        epochs = regime.epochs * spent / whole
        shorter = cell(EQUAL_TIME, "run", choices[FIXED], regime, epochs, runs.device)
        found[EQUAL_TIME].append(measured(here, shorter, seed))
        refuse_incomparable_times([rows[-1] for rows in found.values()])
        if not math.isclose(found[EQUAL_TIME][-1]["epochs"], epochs, rel_tol=1e-3):
            raise SystemExit(
                f"{here.folder(shorter, seed)} is of other times than those that are there now: delete it, and run "
                "this again."
            )
        results = ", ".join(
            f"{arm} {rows[-1]['top1']:.1%} in {rows[-1]['train_s']:.0f} s (others had "
            f"{rows[-1]['others_cores']:.1f} cores)"
            for arm, rows in found.items()
        )
        print(f"seed {seed}: {results}", flush=True)
    return found


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]], of: str) -> dict[str, tuple[Paired, str]]:
    """Compute the claims.

    Args:
        found: Arm -> rows, one per seed.
        of: End of each name.

    Returns:
        Name -> comparison and unit: training time, whole time and top-1 for the same epochs, top-1 in the same time.
    """

    def values(arm: str, name: str, scale: float = 1.0) -> list[float]:
        return [scale * row[name] for row in found[arm]]

    top1 = {arm: values(arm, "top1", 100) for arm in found}
    return {
        f"progressive_speedup_{of}": (ratio(values(FIXED, "train_s"), values(PROGRESSIVE, "train_s")), "ratio"),
        f"progressive_wall_speedup_{of}": (ratio(values(FIXED, "wall_s"), values(PROGRESSIVE, "wall_s")), "ratio"),
        f"progressive_top1_gain_{of}": (gain(top1[PROGRESSIVE], top1[FIXED]), "points"),
        f"progressive_top1_gain_equal_time_{of}": (gain(top1[PROGRESSIVE], top1[EQUAL_TIME]), "points"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="Imagenette: train/ and val/ with a folder per class")
    parser.add_argument("--regime", choices=REGIMES, default="paper")
    parser.add_argument(
        "--tune", nargs="?", const="both", choices=("both", *BOTH),
        help="choose strengths and rates, and stop",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, help="default: 5, for resnet50 3")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/progressive_REGIME")
    parser.add_argument("--second-processor", action="store_true", help="record it beside the first processor's")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and the raw results")
    add_smaller(parser)
    options = parser.parse_args()
    regime = smaller(REGIMES[options.regime], options)
    seeds = regime.seeds if options.seeds is None else options.seeds
    if options.record and (regime != REGIMES[options.regime] or seeds < 2 or options.tune):
        parser.error("--record is for a whole regime and 2 seeds or more, and not for --tune.")
    refuse_to_record_elsewhere(parser, options)
    first = RESULTS / f"progressive_{options.regime}"
    out = options.output or Path(f"{first}{_suffix(options)}")
    out.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(options.pictures)
    runs = Runs(DataConfig(options.pictures), seeds, "none", options.device, out, print)
    chosen_file = (first if options.second_processor else out) / "tuned.json"
    if options.tune == "both":
        both = tuned(dataset, regime, runs)
        write_text_atomically(chosen_file, json.dumps(both, indent=1) + "\n")
        return
    if options.tune:
        tuned(dataset, regime, runs, (options.tune,))
        return
    if not chosen_file.exists():
        parser.error(f"{chosen_file} does not exist: run the same with --tune first.")
    chosen = json.loads(chosen_file.read_text(encoding="utf-8"))
    refuse_other_regime(chosen_file, chosen, asdict(regime))
    choices = {arm: _chosen(**arm_tuning["chosen"]) for arm, arm_tuning in chosen["arms"].items()}
    found = compared(dataset, regime, choices, runs)
    paired = claims(found, regime.claimed + _suffix(options))
    for name, (value, unit) in paired.items():
        print(f"{name}: {value} {unit}")
    if options.record:
        _record(options, regime, chosen, choices, found)


def _record(
    options: argparse.Namespace,
    regime: Regime,
    chosen: Mapping[str, Any],
    choices: Mapping[str, Choice],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Write the raw results, the claims, the plot and the page."""
    rows = [row for rows in found.values() for row in rows]
    on = machines(rows)
    raw = {"when": time.strftime("%Y-%m-%d"), "hardware": on, "regime": asdict(regime), "tuned": chosen, "arms": found}
    (RESULTS / f"progressive_{options.regime}{_suffix(options)}.json").write_text(json.dumps(raw, indent=1) + "\n")
    more = "" if options.seeds in (None, regime.seeds) else f" --seeds {options.seeds}"
    more += " --second-processor" if options.second_processor else ""
    command = f"python -m benchmarks.progressive IMAGENETTE --regime {options.regime}{more} --record"
    for name, (value, unit) in claims(found, regime.claimed + _suffix(options)).items():
        record(name, unit=unit, command=command, on=on, versions=versions_of(rows), **asdict(value))
    if options.second_processor:
        return
    progressive_figure.write(options.regime)
    if options.regime == "resnet50":
        made = small_tables.table_12(found, {arm: one.column for arm, one in choices.items()}, regime)
        write_record("12", made, "small", command, on)
    paper_page.write()


def _suffix(options: argparse.Namespace) -> str:
    return "_second_processor" if options.second_processor else ""


def _chosen(strength: str, lr: float, shares: Sequence[int] | None) -> Choice:
    return Choice(strength, lr, None if shares is None else tuple(shares))


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    main()
