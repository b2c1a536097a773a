"""Land cover, cross-validated in new places and among like pictures: what each start and each way of balancing gives.

Run: python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL [--out runs/land_cover_folds] [--only STEP ...]

PICTURES.csv has columns path, label, latitude and longitude; WEIGHTS were trained on ImageNet; AERIAL is a folder of
aerial pictures to learn from first. Steps:

pretrain   V2-B0 on AERIAL: from scratch, and from WEIGHTS
wide       every start (from scratch, WEIGHTS, aerial, both), with and without balancing, small (128 px, 4 epochs), on
           5 folds by spatial blocks and on 5 stratified ones; beside each the linear probe and the most frequent class
balancing  every way of balancing, from WEIGHTS, small, 3 seeds, by spatial blocks
best       in every fold the start and the balancing that are best inside its training pictures, small; these at full
           size answer the fold. Both kinds of folds. This is the figure to quote.

What is done is kept in OUT and not done again; a stopped run goes on. With `best` done the claims go into
results/summary.json, all else into results/land_cover.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.finetune_land_cover import KNOWN
from benchmarks.record import RESULTS, interval, record

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.crossval_job import crossvalidate
from efficientnetv2.commands.crossval_plan import FILE, Plan
from efficientnetv2.commands.prepare import Source
from efficientnetv2.commands.train_job import train_and_report
from efficientnetv2.commands.words import Words

STEPS = ("pretrain", "wide", "balancing", "best")
SPLITS = {"spatial": "place", "stratified": "class"}
FOLDS, SEEDS = 5, 3
# Pictures without an upright whose subject lies at the centre; how large and how long comes with the step.
ALWAYS = tuple(
    setting
    for setting in KNOWN
    if not setting.startswith(("progressive.image_px", "epochs", "validate_epochs"))
)
SMALL = ("progressive.image_px={start: 96, end: 128}", "epochs=4", "validate_epochs=4")
FULL = ("progressive.image_px={start: 160, end: 288}", "epochs=10", "validate_epochs=10")
FROM_SCRATCH = (
    "epochs=16",
    "validate_epochs=16",
)  # of the same pictures; without weights four epochs are nothing
PRETRAINING = {"aerial": ("epochs=20",), "both": ("epochs=5",)}
BALANCED = ("balance=null", "balance=equal")
BALANCING = (
    "balance=null",
    "balance=sqrt",
    "balance=effective",
    "balance=equal",
    "balance=equal rare_randaugment=2 progressive.randaugment=2",
    "balance=null class_weights=equal",
    "balance=null class_weights=effective",
    "balance=null logit_adjustment=1",
)


@dataclass(frozen=True)
class Work:
    """What is compared, and where it is kept.

    Args:
        pictures: the table.
        weights: of ImageNet.
        aerial: folder of aerial pictures.
        out: for all runs.
        always, small, full: settings.
    """

    pictures: str
    weights: str
    aerial: str
    out: Path
    always: tuple[str, ...] = ALWAYS
    small: tuple[str, ...] = SMALL
    full: tuple[str, ...] = FULL

    @property
    def starts(self) -> dict[str, str]:
        """Weights to begin with, by name."""
        folders = {name: str(self.out / "pretrained" / name) for name in PRETRAINING}
        return {"imagenet": self.weights, **folders}

    def words(self, start: str, settings: Sequence[str], seed: int = 0) -> Words:
        """A recipe from a start; ``none`` for none."""
        recipe = "quick" if start == "none" else "finetune"
        return Words(
            model="efficientnetv2_b0",
            recipe=recipe,
            weights=start,
            seed=seed,
            settings=(*self.always, *settings),
        )


def pretrain(work: Work) -> None:
    """The two starts that have seen aerial pictures."""
    for name, settings in PRETRAINING.items():
        start = "none" if name == "aerial" else work.weights
        out = work.out / "pretrained" / name
        small = [one for one in work.small if not one.startswith(("epochs", "validate_epochs"))]
        # Pooling is that of the pictures to come, whose subject lies at the centre; of these it does not.
        words = work.words(start, [*small, *settings, "pooling=mean"])
        train_and_report(words, Source(work.aerial), _place(out, (out / "recipe.yaml").exists()))


def wide(work: Work) -> dict[str, Any]:
    """Every start, with and without balancing, small, on both kinds of folds."""
    found: dict[str, Any] = {}
    for split, (name, start), balance in product(
        SPLITS, {"scratch": "none", **work.starts}.items(), BALANCED
    ):
        longer = FROM_SCRATCH if start == "none" else ()
        words = work.words(start, [*work.small, *longer, balance])
        report = validated(work, work.out / "wide" / split / f"{name}_{_slug(balance)}", words, split)
        found.setdefault(split, {})[f"{name} {balance}"] = told(report)
    return found


def balancing(work: Work) -> dict[str, Any]:
    """Every way of balancing over several seeds, from ImageNet's weights: macro-F1 less that without."""
    each: dict[str, list[float]] = {}
    for balance, seed in product(BALANCING, range(SEEDS)):
        words = work.words(work.weights, [*work.small, *balance.split()], seed)
        report = validated(work, work.out / "balancing" / f"{_slug(balance)}_{seed}", words, "spatial")
        each.setdefault(balance, []).append(report["macro_f1"])
    without = each[BALANCING[0]]
    return {
        balance: {
            "macro_f1": values,
            "gain": statistics.fmean(gains),
            "gain_interval": interval(gains) if len(set(gains)) > 1 else (gains[0], gains[0]),
        }
        for balance, values in each.items()
        for gains in [[value - base for value, base in zip(values, without, strict=True)]]
    }


def best(work: Work) -> dict[str, Any]:
    """Start and balancing chosen inside the training folds, small; full size answers."""
    tries = tuple(f"weights={start} {balance}" for start in work.starts.values() for balance in BALANCED)
    found = {}
    for split in SPLITS:
        words = work.words(work.weights, work.full)
        report = validated(
            work, work.out / "best" / split, words, split, tries=tries, try_settings=work.small
        )
        names = {start: name for name, start in work.starts.items()}
        found[split] = told(report) | {
            "chosen": [_named(fold["chosen"], names) for fold in report["folds"]],
            "tries": [
                {"settings": _named(one["settings"], names), "scores": one["scores"]}
                for one in report["tries"]
            ],
        }
    return found


def validated(work: Work, out: Path, words: Words, split: str, **more: Any) -> dict[str, Any]:
    """The report of a cross-validation: done, gone on with, or read."""
    if not (out / "report.json").exists():
        print(f"\n{out}", flush=True)
        plan = Plan(folds=FOLDS, by=SPLITS[split], **more)
        crossvalidate(words, Source(work.pictures), _place(out, (out / FILE).exists()), plan)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a report."""
    support = {name: one["support"] for name, one in report["per_class"].items()}
    share = max(support.values()) / sum(support.values())
    names = (
        "top1",
        "macro_f1",
        "over_folds",
        "linear_probe",
        "linear_probe_macro_f1",
        "splits_compared",
        "wall_s",
    )
    return {name: report[name] for name in names} | {
        "intervals": {name: report["intervals"][name] for name in ("top1", "macro_f1")},
        "per_class_f1": {name: one["f1"] for name, one in report["per_class"].items()},
        # Always the most frequent class: F1 of it alone, 0 of all others.
        "majority": {"top1": share, "macro_f1": 2 * share / (1 + share) / len(support)},
    }


def claim(found: dict[str, Any], command: str) -> None:
    """The figures to quote."""
    for split, one in found.items():
        for figure in ("macro_f1", "top1"):
            low, high = one["intervals"][figure]
            record(
                f"land_cover_{figure}_{split}", one[figure], unit="F1" if figure == "macro_f1" else "fraction",
                low=low, high=high, n=FOLDS, command=command,
            )  # fmt: skip


def _place(out: Path, begun: bool) -> Place:
    return Place(out=out, resume=begun, device="cpu", workers=0)


def _slug(settings: str) -> str:
    return settings.replace(" ", "_").replace("=", "-").replace(".", "-")


def _named(settings: str, names: dict[str, str]) -> str:
    """Settings with a start's name in place of its path on this machine."""
    weights, _, rest = settings.partition(" ")
    return f"{names[weights.removeprefix('weights=')]} {rest}"


def main(words: Sequence[str] | None = None) -> None:
    """The steps, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("aerial")
    parser.add_argument("--out", type=Path, default=Path("runs/land_cover_folds"))
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    given = parser.parse_args(words)
    run(Work(given.pictures, given.weights, given.aerial, given.out), given.only)


def run(work: Work, steps: Sequence[str] = STEPS) -> None:
    """So many of the steps; what they come to is kept after each."""
    file = RESULTS / "land_cover.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if "pretrain" in steps:
        pretrain(work)
    for name, step in (("wide", wide), ("balancing", balancing), ("best", best)):
        if name in steps:
            kept[name] = step(work)
            write_text_atomically(file, json.dumps(kept, indent=1) + "\n")
    if "best" in steps:
        claim(kept["best"], "python -m benchmarks.land_cover PICTURES.csv WEIGHTS AERIAL")
    print(json.dumps({name: kept[name] for name in steps if name in kept}, indent=1))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
