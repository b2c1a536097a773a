"""Fine-tuning on satellite images, cross-validated: given weights, and from scratch in as many planned minutes.

Run: python -m benchmarks.finetune_land_cover PICTURES.csv WEIGHTS [--output OUT] [--only FOLD ...] [--record]

5 stratified folds. In each fold every candidate setting is trained, for half the epochs, on three quarters of the
other folds' images and scored on the last quarter; the better one is trained again on all of the other folds and
answers the fold. The answers of the five folds together give the figure. From scratch: recipe quick, in what was
planned as the same minutes as this took in that fold; the plan goes by rates measured beforehand, so that it may have
taken more or fewer.

The difference is not that of the weights alone: quick comes as it is, without what KNOWN gives the other side
(symmetries of the square, eight views to answer by, the centre pooled next to the whole, larger images). And that
statistics had better adapt (`adapted`) was found on folds of these same images (docs/benchmarks/land-cover.md).

What is done is kept in OUT (results/finetune_land_cover) and not done again; the answers in it travel with the
repository. Each says which images, weights and recipe it is of, and is refused for others; those that were kept
before they said so are not checked, so that they are shown and not recorded. --only does some of the folds and leaves
the figures to a later call, so that one process a core can share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.arms import machines
from benchmarks.record import RESULTS, hardware, record, refuse_foreign_file
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.inference.linear_probe import ProbeOptions, linear_probe
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.metric_intervals import bootstrap_intervals
from efficientnetv2.training.initial_weights import load_weights
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import apply_overrides, validate_recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.training.run_setup import ImageCounts, RunSetup
from efficientnetv2.training.time_budget import LengthBudget
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.processes import keep_freed_memory
from efficientnetv2.utils.random_key import Key

DEVICE = torch.device("cpu")
FOLDS = 5
# What is known of such images beforehand: they have no upright, the subject lies at the centre, much else around it.
KNOWN = [
    "augment.flip=d4",
    "tta=d4",
    "global_pool=avg+center",
    "head_init=random",
    "freeze_bn=false",
    "crop_scale_min=0.7",
    "progressive.randaugment=null",
    "progressive.image_size={start: 160, end: 256}",
    "epochs=8",
    "val_interval_epochs=8",
]
CHOOSING = ["epochs=4", "val_interval_epochs=4"]
CANDIDATES = {"frozen": ["freeze_bn=true"], "adapted": ["freeze_bn=false"]}


class _Quiet:
    """Watches nothing."""

    def on_log(self, step, num_steps, settings, loss, images_per_s, seconds_left) -> None:
        """Said nowhere."""


def parts(dataset: ImageDataset, learning: np.ndarray, answering: np.ndarray) -> tuple[ImageDataset, ImageDataset]:
    """Two parts of a dataset, marked as train and val."""
    split = np.full(len(dataset), "", dtype=object)
    split[learning], split[answering] = "train", "val"
    marked = dataset.with_split(split)
    return marked.subset("train"), marked.subset("val")


def asked_of(train: ImageDataset, val: ImageDataset, weights: str | None) -> dict[str, Any]:
    """What decides an answer next to the recipe, the same wherever the files lie: digests of images and weights."""
    there = weights is not None and Path(weights).is_file()
    digest = hashlib.blake2b(Path(weights).read_bytes(), digest_size=16).hexdigest() if there else weights
    return {"pictures": [train.digest(), val.digest()], "weights": digest}


def kept_or(file: Path, asked: dict[str, Any], make: Callable[[], dict]) -> dict:
    """What a file keeps, or what is made and kept there, with what was asked for.

    Raises:
        SystemExit: it keeps what was asked for otherwise.
    """
    if file.exists():
        found = json.loads(file.read_text())
        now = json.loads(json.dumps(asked))  # as it was kept
        refuse_foreign_file(file, found.get("asked", {}), now, "move it away, or give another --output")
        return found
    found = {**make(), "hardware": hardware(DEVICE), "asked": asked}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found


def refuse_unchecked(out: Path) -> None:
    """What does not say of which images, weights and recipe it is can't be claimed of those that are given.

    Args:
        out: folder of all that was kept.

    Raises:
        SystemExit: names the files to delete.
    """
    files = sorted([*out.glob("fold*/*/answers.json"), *out.glob("fold*/probe.json")])
    if unchecked := [file for file in files if "asked" not in json.loads(file.read_text())]:
        named = "\n".join(map(str, unchecked))
        raise SystemExit(
            "Nothing is recorded of files that do not say which pictures, weights and recipe they are of. Delete them, "
            f"to have them made again, or leave --record out, to see what they come to:\n{named}"
        )


def trained(recipe, train: ImageDataset, val: ImageDataset, folder: Path, *, minutes: float | None = None) -> dict:
    """Train, answer, keep; or what was kept of that."""
    decided = {name: value for name, value in recipe.to_json().items() if name != "weights"}
    asked = asked_of(train, val, recipe.weights) | {"recipe": decided, "minutes": minutes}
    return kept_or(folder / "answers.json", asked, lambda: answered(recipe, train, val, folder, minutes))


def answered(recipe, train: ImageDataset, val: ImageDataset, folder: Path, minutes: float | None) -> dict:
    """Train and answer."""
    began = time.perf_counter()
    settled = resolve_recipe(recipe, TrainingSet(len(train), train.class_names), Hardware(DEVICE))
    recipe = settled.recipe
    preprocessing = replace(
        settled.network.preprocessing,
        image_size=recipe.eval_image_size,
        crop_mode=recipe.crop_mode,
        crop_pct=1.0,
        tta=recipe.tta,
    )
    runs = RunDir(folder)
    job = RunSetup(recipe, settled.network, train, val, preprocessing, runs, DEVICE, workers=0)
    if minutes is not None:
        with tempfile.TemporaryDirectory() as scratch:
            rates = measure_timings(job, Path(scratch))
        epochs = LengthBudget(recipe, ImageCounts(len(train), len(val)), minutes).epochs(rates)
        recipe = recipe.model_copy(update={"epochs": epochs})
        job = replace(job, recipe=recipe)
    runs.begin(recipe, train, {})
    result = Trainer(job).fit()
    for file in runs.checkpoints.iterdir():
        file.unlink()
    return {
        "labels": result.predictions.labels.tolist(),
        "probabilities": result.predictions.probabilities.round(5).tolist(),
        "seconds": round(time.perf_counter() - began, 1),
        "epochs": recipe.epochs,
    }


def score(answers: dict, class_names: tuple[str, ...]):
    """Figures of kept answers."""
    return classification_metrics(np.array(answers["labels"]), np.array(answers["probabilities"]), class_names)


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with fields changed by ``a.b=c``."""
    return validate_recipe(apply_overrides(recipe.to_json(), settings), where=recipe.name)


def fold(dataset: ImageDataset, number: int, learning: np.ndarray, answering: np.ndarray, options) -> dict:
    """One fold: choose, train, answer; from scratch in what is planned as the same minutes; the linear probe."""
    out = options.output / f"fold{number}"
    finetune = changed(get_recipe("finetune"), [*KNOWN, f"weights={options.weights}"])
    draw = StratifiedShuffleSplit(1, test_size=0.25, random_state=number)
    inner, choosing = next(draw.split(learning, dataset.labels[learning]))
    inner_parts = parts(dataset, learning[inner], learning[choosing])
    inner_f1 = {}
    for name, settings in CANDIDATES.items():
        answers = trained(changed(finetune, [*settings, *CHOOSING]), *inner_parts, out / f"inner_{name}")
        inner_f1[name] = score(answers, dataset.class_names).macro_f1
        print(f"fold {number}, choosing: {name} {inner_f1[name]:.3f} ({answers['seconds']:.0f} s)", flush=True)
    best = max(inner_f1, key=lambda name: inner_f1[name])
    outer = parts(dataset, learning, answering)
    tuned = trained(changed(finetune, CANDIDATES[best]), *outer, out / f"finetune_{best}")
    print(f"fold {number}: {best} {score(tuned, dataset.class_names).macro_f1:.3f}", flush=True)
    scratch = trained(get_recipe("quick"), *outer, out / "scratch", minutes=tuned["seconds"] / 60)
    print(f"fold {number}: from scratch {score(scratch, dataset.class_names).macro_f1:.3f}", flush=True)
    probe = kept_or(out / "probe.json", asked_of(*outer, options.weights), lambda: probed(options.weights, *outer))
    return {
        "fold": number,
        "inner_macro_f1": inner_f1,
        "chosen": best,
        "finetune": tuned,
        "scratch": scratch,
        "probe": probe,
    }


def probed(weights: str, train: ImageDataset, val: ImageDataset) -> dict:
    """The linear probe of the weights on a fold."""
    network, _ = load_weights(weights)
    preprocessing = replace(network.preprocessing, image_size=256, crop_mode="squash", crop_pct=1.0)
    fitted = linear_probe(network, train, val, preprocessing, ProbeOptions(Key.of(0), balanced=True))
    return vars(fitted.metrics)


def pooled(folds: list[dict], arm: str, class_names: tuple[str, ...]) -> dict:
    """Figures of all folds' answers together, and of each."""
    together = {key: [one for each in folds for one in each[arm][key]] for key in ("labels", "probabilities")}
    whole = score(together, class_names)
    intervals = bootstrap_intervals(whole, key=Key.of(0).fold("intervals"))
    each = [score(one[arm], class_names).macro_f1 for one in folds]
    return {
        "macro_f1": whole.macro_f1,
        "macro_f1_interval": intervals["macro_f1"],
        "top1": whole.top1,
        "top1_interval": intervals["top1"],
        "per_class_f1": {name: one.f1 for name, one in whole.per_class.items()},
        "macro_f1_by_fold": each,
        "seconds_by_fold": [one[arm]["seconds"] for one in folds],
        "epochs_by_fold": [one[arm]["epochs"] for one in folds],
        "hardware": machines(one[arm] for one in folds),
    }


def main() -> None:
    """All folds, then the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("--output", type=Path, default=RESULTS / "finetune_land_cover")
    parser.add_argument("--only", type=int, nargs="+", choices=range(FOLDS), metavar="FOLD")
    parser.add_argument("--record", action="store_true", help="write results/summary.json and finetune_land_cover.json")
    options = parser.parse_args()
    if options.record and options.only is not None:
        parser.error("--record is for all folds: leave out --only.")
    if options.record:
        refuse_unchecked(options.output)
    dataset = load_dataset(options.pictures)
    dealt = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(dataset.labels, dataset.labels))
    if options.only is not None:
        for number in options.only:
            fold(dataset, number, *dealt[number], options)
        return
    folds = [fold(dataset, number, *two, options) for number, two in enumerate(dealt)]
    result = {arm: pooled(folds, arm, dataset.class_names) for arm in ("finetune", "scratch")}
    inner = {name: [one["inner_macro_f1"][name] for one in folds] for name in CANDIDATES}
    result |= {
        "settings": KNOWN,
        "settings_while_choosing": CHOOSING,
        "inner_macro_f1": inner,
        "chosen": [one["chosen"] for one in folds],
        "linear_probe": [one["probe"] for one in folds],
    }
    print(json.dumps(result, indent=1))
    if options.record:
        keep(result)


def keep(result: dict[str, Any]) -> None:
    """The claims, and the raw figures next to them."""
    (RESULTS / "finetune_land_cover.json").write_text(json.dumps(result, indent=1) + "\n")
    command = "python -m benchmarks.finetune_land_cover PICTURES.csv WEIGHTS"
    for arm in ("finetune", "scratch"):
        low, high = result[arm]["macro_f1_interval"]
        record(
            f"{arm}_land_cover_macro_f1",
            result[arm]["macro_f1"],
            unit="F1",
            low=low,
            high=high,
            n=FOLDS,
            command=command,
            on=result[arm]["hardware"],
        )


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
