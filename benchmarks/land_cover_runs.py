"""The trainings of ``benchmarks.land_cover``: with what they begin, on which folds, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from benchmarks.arms import same_numbers
from benchmarks.at_once import at_once
from benchmarks.finetune_land_cover import KNOWN
from benchmarks.record import RESULTS, hardware

from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.progress_bars import TrainingBar
from efficientnetv2.data.config import DataConfig
from efficientnetv2.nas.trial_process import exit_with_parent
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory
from efficientnetv2.workflows.crossval import run_crossval
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON, CrossValConfig
from efficientnetv2.workflows.train import train_and_report

SPLITS = {"spatial": "place", "stratified": "class"}
FOLDS = 5
# Images without an upright whose subject lies at the centre; how large and how long comes with the step.
ALWAYS = (
    *(
        setting
        for setting in KNOWN
        if not setting.startswith(("progressive.image_size", "epochs", "val_interval_epochs"))
    ),
    *same_numbers("cpu"),
)
SMALL = ("progressive.image_size={start: 96, end: 128}", "epochs=4", "val_interval_epochs=4")
FULL = ("progressive.image_size={start: 160, end: 288}", "epochs=10", "val_interval_epochs=10")
# Of a report, what is kept as it stands.
TOLD = (
    "top1", "macro_f1", "fold_mean", "linear_probe_top1", "linear_probe_macro_f1", "split_comparison", "wall_s",
)  # fmt: skip
PRETRAINING = {"aerial": ("epochs=20",), "both": ("epochs=5",)}


@dataclass(frozen=True)
class Work:
    """What is compared, and where it is kept.

    Args:
        images: the table.
        weights: of ImageNet.
        aerial: folder of aerial images.
        out: for all runs.
        kept: folder of what cross-validations came to.
        always, small, full: settings.
        members: of ``best``: the tries whose networks answer each fold together.
        workers: cross-validations at once.
    """

    pictures: str
    weights: str
    aerial: str
    out: Path
    kept: Path = RESULTS / "land_cover"
    always: tuple[str, ...] = ALWAYS
    small: tuple[str, ...] = SMALL
    full: tuple[str, ...] = FULL
    members: int = 3
    workers: int = 1

    def model_of(self, name: str) -> Path:
        """The weights that one of the pretrainings ends with."""
        return self.out / "pretrained" / name / "model.safetensors"

    def kept_of(self, asked: Validation) -> Path:
        """The file of what a cross-validation came to."""
        return self.kept / f"{asked.name}.json"

    def is_kept(self, asked: Validation) -> bool:
        """Whether it has been done."""
        return self.kept_of(asked).exists()

    def pretrained_of(self, asked: Validation) -> list[str]:
        """The pretrainings that a cross-validation begins with, or may choose."""
        words = [f"weights={asked.words.weights}", *asked.more.get("tries", ())]
        begun = {word.split()[0].removeprefix("weights=") for word in words}
        return [name for name in PRETRAINING if self.starts[name] in begun]

    @property
    def starts(self) -> dict[str, str]:
        """Weights to begin with, by name."""
        folders = {name: str(self.out / "pretrained" / name) for name in PRETRAINING}
        return {"imagenet": self.weights, **folders}

    def words(self, start: str, settings: Sequence[str], seed: int = 0) -> TrainOverrides:
        """A recipe from a start; ``none`` for none."""
        recipe = "quick" if start == "none" else "finetune"
        return TrainOverrides(
            model="efficientnetv2_b0", recipe=recipe, weights=start, seed=seed, settings=(*self.always, *settings)
        )


@dataclass(frozen=True)
class Validation:
    """A cross-validation.

    Args:
        name: of its folder, and of the file of what it came to.
        words: the recipe.
        split: kind of folds.
        more: of its plan.
        probe: fit linear probes on its folds too.
    """

    name: str
    words: TrainOverrides
    split: str
    more: dict[str, Any] = field(default_factory=dict)
    probe: bool = True

    @property
    def step(self) -> str:
        """The step that it is kept under; its figures are compared with each other."""
        return self.name.partition("/")[0]


def piece(work: Work, asked: str | Validation) -> dict[str, Any]:
    """A pretraining, by its name, or a cross-validation."""
    if isinstance(asked, str):
        pretrained(work, asked)
        return {}
    return validated(work, asked)


def pretrained(work: Work, name: str) -> None:
    """One of them."""
    start = "none" if name == "aerial" else work.weights
    out = work.out / "pretrained" / name
    small = [one for one in work.small if not one.startswith(("epochs", "val_interval_epochs"))]
    # Pooling is that of the images to come, whose subject lies at the centre; of these it does not.
    words = work.words(start, [*small, *PRETRAINING[name], "global_pool=avg"])
    with Screen(verbose=True) as screen, TrainingBar(screen) as bar:
        place = _place(out, (out / "recipe.yaml").exists(), probe=False)
        train_and_report(words, DataConfig(work.aerial), place, callbacks=[bar])


def validated(work: Work, asked: Validation) -> dict[str, Any]:
    """What a cross-validation came to: done, gone on with, or read."""
    kept, out = work.kept_of(asked), work.out / asked.name
    if not kept.exists():
        if not (out / "report.json").exists():
            print(f"\n{out}", flush=True)
            plan = CrossValConfig(folds=FOLDS, by=SPLITS[asked.split], **asked.more)
            place = _place(out, (out / CROSSVAL_JSON).exists(), probe=asked.probe)
            with Screen(verbose=True) as screen, TrainingBar(screen) as bar:
                run_crossval(asked.words, DataConfig(work.pictures), place, plan, callbacks=[bar])
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        names = {start: name for name, start in work.starts.items()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        began = {name: _digest(work.model_of(name)) for name in work.pretrained_of(asked)}
        whole = told(report) | chosen(report, names) | ({"pretrained": began} if began else {})
        whole["hardware"] = hardware()
        write_text_atomically(kept, json.dumps(whole, indent=1) + "\n")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a report."""
    support = {name: one["support"] for name, one in report["per_class"].items()}
    share = max(support.values()) / sum(support.values())
    return {name: report[name] for name in TOLD} | {
        "intervals": {name: report["intervals"][name] for name in ("top1", "macro_f1")},
        "per_class_f1": {name: one["f1"] for name, one in report["per_class"].items()},
        # Always the most frequent class: F1 of it alone, 0 of all others.
        "majority": {"top1": share, "macro_f1": 2 * share / (1 + share) / len(support)},
    }


def chosen(report: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """What each fold has chosen, by names that are the same on every machine; nothing where nothing was to choose."""
    if not report["candidates"]:
        return {}
    return {
        "chosen": [[_named(one, names) for one in fold["chosen"]] for fold in report["folds"]],
        "tries": [
            {"settings": _named(one["settings"], names), "scores": one["scores"]} for one in report["candidates"]
        ],
    }


# Name of a pretraining -> step -> digest of its weights -> where these are: a file that was kept, or the weights.
Begun = dict[str, dict[str, dict[str, Path]]]


def begun_with(work: Work, asked: Sequence[Validation]) -> Begun:
    """With which weights cross-validations began: all that are kept, and those that are asked for and not yet done."""
    found: Begun = {}
    for file in sorted(work.kept.glob("*/**/*.json")):
        for name, digest in json.loads(file.read_text(encoding="utf-8")).get("pretrained", {}).items():
            step = file.relative_to(work.kept).parts[0]
            found.setdefault(name, {}).setdefault(step, {}).setdefault(digest, file)
    for one in asked:
        for name in () if work.is_kept(one) else work.pretrained_of(one):
            model = work.model_of(name)
            if model.exists():
                found.setdefault(name, {}).setdefault(one.step, {}).setdefault(_digest(model), model)
    return found


def refuse_other_starts(work: Work, asked: Sequence[Validation]) -> None:
    """Of one step, what begins with a pretraining of the same name begins with the same weights; of two it is said.

    Args:
        work: with what is kept.
        asked: cross-validations.

    Raises:
        SystemExit: they do not; names two of them, and the way out.
    """
    steps = {one.step for one in asked}
    names = {name for one in asked for name in work.pretrained_of(one)}
    for name, by_step in begun_with(work, asked).items():
        for step in sorted(steps & by_step.keys()):
            if len(by_step[step]) > 1:
                (one, first), (other, second), *_ = by_step[step].items()
                raise SystemExit(
                    f"{first} is of other weights called '{name}' ({one}) than {second} ({other}), and what the step "
                    f"'{step}' comes to is compared. To do all of it again, move {work.kept / step} and "
                    f"{work.out / step} away; to keep what is of the first, put its weights back as "
                    f"{work.model_of(name)} and move away what is of others."
                )
        which = {step: " and ".join(digests) for step, digests in by_step.items()}
        if name in names and len(set(which.values())) > 1:
            said = ", ".join(f"{step} {digests}" for step, digests in which.items())
            print(f"Note: '{name}' are different weights in different steps: {said}.", flush=True)


def each(does: Callable[[Work, Any], Any], work: Work, asked: Sequence[Any]) -> list[Any]:
    """What comes of each, in order; so many at a time, each in a process with its share of the processor.

    Raises:
        SystemExit: what ``refuse_other_starts`` refuses, before any of them begins.
    """
    refuse_other_starts(work, [one for one in asked if isinstance(one, Validation)])
    share = max(1, torch.get_num_threads() // work.workers)

    def processes(workers: int) -> Executor:
        return ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (share,))

    with closing(at_once(asked, partial(does, work), work.workers, processes)) as found:
        return [answer for _, answer in sorted(found, key=lambda pair: asked.index(pair[0]))]


def _begin_worker(threads: int) -> None:
    exit_with_parent()
    keep_freed_memory()  # as the program does
    torch.set_num_threads(threads)


def _place(out: Path, begun: bool, *, probe: bool) -> RunOptions:
    return RunOptions(out=out, resume=begun, device="cpu", workers=0, probe=probe)


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _named(settings: str, names: dict[str, str]) -> str:
    """Settings with a start's name in place of its path on this machine."""
    weights, _, rest = settings.partition(" ")
    return f"{names[weights.removeprefix('weights=')]} {rest}"
