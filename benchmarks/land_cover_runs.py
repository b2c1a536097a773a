"""Trainings of ``benchmarks.land_cover``: initial weights, folds, and saved results."""

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
# Images have no upright and the subject at the center. Each step adds image sizes and epochs.
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
# Fields that are copied from a report.
TOLD = (
    "top1", "macro_f1", "fold_mean", "linear_probe_top1", "linear_probe_macro_f1", "split_comparison", "wall_s",
)  # fmt: skip
PRETRAINING = {"aerial": ("epochs=20",), "both": ("epochs=5",)}


@dataclass(frozen=True)
class Work:
    """Inputs and folders of the comparison.

    Args:
        pictures: The table of images.
        weights: Weights of ImageNet.
        aerial: Folder of aerial images.
        out: Folder of all runs.
        kept: Folder of the results of cross-validations.
        always, small, full: Recipe overrides.
        members: Number of models in ``best`` whose predictions are averaged in each fold.
        workers: Cross-validations at a time.
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
        """The final weights of a pretraining."""
        return self.out / "pretrained" / name / "model.safetensors"

    def kept_of(self, requested: Validation) -> Path:
        """The file with the results of a cross-validation."""
        return self.kept / f"{requested.name}.json"

    def is_kept(self, requested: Validation) -> bool:
        """Whether the cross-validation is finished."""
        return self.kept_of(requested).exists()

    def pretrained_of(self, requested: Validation) -> list[str]:
        """The pretrainings that a cross-validation starts from, or can choose."""
        candidates = [f"weights={requested.words.weights}", *requested.more.get("tries", ())]
        starts = {candidate.split()[0].removeprefix("weights=") for candidate in candidates}
        return [name for name in PRETRAINING if self.starts[name] in starts]

    @property
    def starts(self) -> dict[str, str]:
        """Name -> initial weights."""
        folders = {name: str(self.out / "pretrained" / name) for name in PRETRAINING}
        return {"imagenet": self.weights, **folders}

    def words(self, start: str, settings: Sequence[str], seed: int = 0) -> TrainOverrides:
        """Overrides for a training from these weights. ``none`` trains from scratch."""
        recipe = "quick" if start == "none" else "finetune"
        return TrainOverrides(
            model="efficientnetv2_b0", recipe=recipe, weights=start, seed=seed, settings=(*self.always, *settings)
        )


@dataclass(frozen=True)
class Validation:
    """A cross-validation.

    Args:
        name: Name of its folder and of its result file.
        words: Training overrides.
        split: Type of folds.
        more: Further fields of its config.
        probe: Also fit linear probes on its folds.
    """

    name: str
    words: TrainOverrides
    split: str
    more: dict[str, Any] = field(default_factory=dict)
    probe: bool = True

    @property
    def step(self) -> str:
        """The step that it belongs to. Results of a step are compared with each other."""
        return self.name.partition("/")[0]


def piece(work: Work, requested: str | Validation) -> dict[str, Any]:
    """Run a pretraining, given by name, or a cross-validation."""
    if isinstance(requested, str):
        pretrained(work, requested)
        return {}
    return validated(work, requested)


def pretrained(work: Work, name: str) -> None:
    """Run a pretraining."""
    start = "none" if name == "aerial" else work.weights
    out = work.out / "pretrained" / name
    small = [setting for setting in work.small if not setting.startswith(("epochs", "val_interval_epochs"))]
    # Average pooling, because the subject of these images is not at the center.
    overrides = work.words(start, [*small, *PRETRAINING[name], "global_pool=avg"])
    with Screen(verbose=True) as screen, TrainingBar(screen) as bar:
        run_options = _run_options(out, (out / "recipe.yaml").exists(), probe=False)
        train_and_report(overrides, DataConfig(work.aerial), run_options, callbacks=[bar])


def validated(work: Work, requested: Validation) -> dict[str, Any]:
    """The result of a cross-validation: run, resume or read it."""
    file, out = work.kept_of(requested), work.out / requested.name
    if not file.exists():
        if not (out / "report.json").exists():
            print(f"\n{out}", flush=True)
            plan = CrossValConfig(folds=FOLDS, by=SPLITS[requested.split], **requested.more)
            run_options = _run_options(out, (out / CROSSVAL_JSON).exists(), probe=requested.probe)
            with Screen(verbose=True) as screen, TrainingBar(screen) as bar:
                run_crossval(requested.words, DataConfig(work.pictures), run_options, plan, callbacks=[bar])
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        names = {start: name for name, start in work.starts.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        digests = {name: _digest(work.model_of(name)) for name in work.pretrained_of(requested)}
        result = told(report) | chosen(report, names) | ({"pretrained": digests} if digests else {})
        result["hardware"] = hardware()
        write_text_atomically(file, json.dumps(result, indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def told(report: dict[str, Any]) -> dict[str, Any]:
    """The saved part of a report."""
    support = {name: metrics["support"] for name, metrics in report["per_class"].items()}
    share = max(support.values()) / sum(support.values())
    return {name: report[name] for name in TOLD} | {
        "intervals": {name: report["intervals"][name] for name in ("top1", "macro_f1")},
        "per_class_f1": {name: metrics["f1"] for name, metrics in report["per_class"].items()},
        # Always predict the most frequent class. The F1 of all other classes is 0.
        "majority": {"top1": share, "macro_f1": 2 * share / (1 + share) / len(support)},
    }


def chosen(report: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The choice of each fold, with names that are equal on all machines. Empty without candidates."""
    if not report["candidates"]:
        return {}
    return {
        "chosen": [[_named(candidate, names) for candidate in fold["chosen"]] for fold in report["folds"]],
        "tries": [
            {"settings": _named(candidate["settings"], names), "scores": candidate["scores"]}
            for candidate in report["candidates"]
        ],
    }


# Name of a pretraining -> step -> digest of its weights -> file with this digest: a result, or the weights.
Starts = dict[str, dict[str, dict[str, Path]]]


def begun_with(work: Work, requested: Sequence[Validation]) -> Starts:
    """Initial weights of all saved cross-validations, and of the requested ones that are not finished."""
    found: Starts = {}
    for file in sorted(work.kept.glob("*/**/*.json")):
        for name, digest in json.loads(file.read_text(encoding="utf-8")).get("pretrained", {}).items():
            step = file.relative_to(work.kept).parts[0]
            found.setdefault(name, {}).setdefault(step, {}).setdefault(digest, file)
    for validation in requested:
        for name in () if work.is_kept(validation) else work.pretrained_of(validation):
            model = work.model_of(name)
            if model.exists():
                found.setdefault(name, {}).setdefault(validation.step, {}).setdefault(_digest(model), model)
    return found


def refuse_other_starts(work: Work, requested: Sequence[Validation]) -> None:
    """Refuse different weights of one pretraining within a step. Between steps, print a note.

    Args:
        work: Folders of saved results.
        requested: Requested cross-validations.

    Raises:
        SystemExit: Weights differ within a step. The message names two files and the fix.
    """
    steps = {one.step for one in requested}
    names = {name for one in requested for name in work.pretrained_of(one)}
    for name, by_step in begun_with(work, requested).items():
        for step in sorted(steps & by_step.keys()):
            if len(by_step[step]) > 1:
                (one, first), (other, second), *_ = by_step[step].items()
                raise SystemExit(
                    f"{first} is of other weights called '{name}' ({one}) than {second} ({other}), and what the step "
                    f"'{step}' comes to is compared. To do all of it again, move {work.kept / step} and "
                    f"{work.out / step} away; to keep what is of the first, put its weights back as "
                    f"{work.model_of(name)} and move away what is of others."
                )
        by_digest = {step: " and ".join(digests) for step, digests in by_step.items()}
        if name in names and len(set(by_digest.values())) > 1:
            text = ", ".join(f"{step} {digests}" for step, digests in by_digest.items())
            print(f"Note: '{name}' are different weights in different steps: {text}.", flush=True)


def each(function: Callable[[Work, Any], Any], work: Work, requested: Sequence[Any]) -> list[Any]:
    """Results of a function for each request, in order. Each process gets its part of the processor.

    Raises:
        SystemExit: ``refuse_other_starts`` refuses. Nothing has started.
    """
    refuse_other_starts(work, [request for request in requested if isinstance(request, Validation)])
    share = max(1, torch.get_num_threads() // work.workers)

    def processes(workers: int) -> Executor:
        return ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (share,))

    with closing(at_once(requested, partial(function, work), work.workers, processes)) as found:
        return [result for _, result in sorted(found, key=lambda pair: requested.index(pair[0]))]


def _begin_worker(threads: int) -> None:
    exit_with_parent()
    keep_freed_memory()  # as the program does
    torch.set_num_threads(threads)


def _run_options(out: Path, begun: bool, *, probe: bool) -> RunOptions:
    return RunOptions(out=out, resume=begun, device="cpu", workers=0, probe=probe)


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _named(overrides: str, names: dict[str, str]) -> str:
    """Overrides with the name of the weights instead of their path on this machine."""
    weights, _, rest = overrides.partition(" ")
    return f"{names[weights.removeprefix('weights=')]} {rest}"
