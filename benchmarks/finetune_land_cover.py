"""Cross-validated fine-tuning on satellite images, compared with training from scratch in the same planned time.

Run: python -m benchmarks.finetune_land_cover PICTURES.csv WEIGHTS [--output OUT] [--only FOLD ...] [--record]

5 stratified folds. In each fold, every candidate is trained for half the epochs on three quarters of the other folds'
images, and evaluated on the last quarter. The better candidate is trained again on all other folds and predicts the
fold. The metrics are those of the predictions of all folds together. Training from scratch uses recipe quick in the
planned minutes that fine-tuning took in that fold. The plan uses speeds measured before, so the real time can differ.

Claims: ``finetune_land_cover_macro_f1`` and ``scratch_land_cover_macro_f1``.

The weights are not the only difference. quick runs with its defaults. KNOWN gives fine-tuning more: symmetries of the
square, TTA with eight transforms, pooling of the center, larger images. ``adapted`` was found to be better on folds of
these same images (docs/benchmarks/land-cover.md).

Finished work is saved in OUT (results/finetune_land_cover) and is not repeated. The repository contains the
predictions. Each file names its images, weights and recipe, and is refused for others. Older files lack these: they are
not checked, and their metrics are printed but not recorded. --only runs some folds and computes no metrics, so several
processes can share the work.
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
from efficientnetv2.inference.linear_probe import linear_probe
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
# Known about these images: no upright, the subject at the center, much else around it.
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
    """A callback that ignores all events."""

    def on_log(self, step, num_steps, settings, loss, images_per_s, seconds_left) -> None:
        """Ignore the event."""


def parts(dataset: ImageDataset, train_rows: np.ndarray, val_rows: np.ndarray) -> tuple[ImageDataset, ImageDataset]:
    """The parts train and val of a dataset, from their rows."""
    split = np.full(len(dataset), "", dtype=object)
    split[train_rows], split[val_rows] = "train", "val"
    marked = dataset.with_split(split)
    return marked.subset("train"), marked.subset("val")


def asked_of(train: ImageDataset, val: ImageDataset, weights: str | None) -> dict[str, Any]:
    """What predictions depend on besides the recipe: digests of images and weights, the same at any path."""
    is_file = weights is not None and Path(weights).is_file()
    digest = hashlib.blake2b(Path(weights).read_bytes(), digest_size=16).hexdigest() if is_file else weights
    return {"pictures": [train.digest(), val.digest()], "weights": digest}


def kept_or(file: Path, asked: dict[str, Any], make: Callable[[], dict]) -> dict:
    """The content of a file. If it does not exist, make the content and save it with ``asked``.

    Raises:
        SystemExit: The file was made for another request.
    """
    if file.exists():
        saved = json.loads(file.read_text())
        requested = json.loads(json.dumps(asked))  # as it was saved
        refuse_foreign_file(file, saved.get("asked", {}), requested, "move it away, or give another --output")
        return saved
    saved = {**make(), "hardware": hardware(DEVICE), "asked": asked}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(saved))
    return saved


def refuse_unchecked(out: Path) -> None:
    """Refuse to record files that do not name their images, weights and recipe.

    Args:
        out: Folder of all saved files.

    Raises:
        SystemExit: Names the files to delete.
    """
    files = sorted([*out.glob("fold*/*/answers.json"), *out.glob("fold*/probe.json")])
    if unchecked := [file for file in files if "asked" not in json.loads(file.read_text())]:
        names = "\n".join(map(str, unchecked))
        raise SystemExit(
            "Nothing is recorded of files that do not say which pictures, weights and recipe they are of. Delete them, "
            f"to have them made again, or leave --record out, to see what they come to:\n{names}"
        )


def trained(recipe, train: ImageDataset, val: ImageDataset, folder: Path, *, minutes: float | None = None) -> dict:
    """Train, predict and save, or read the saved predictions."""
    fields = {name: value for name, value in recipe.to_json().items() if name != "weights"}
    asked = asked_of(train, val, recipe.weights) | {"recipe": fields, "minutes": minutes}
    return kept_or(folder / "answers.json", asked, lambda: answered(recipe, train, val, folder, minutes))


def answered(recipe, train: ImageDataset, val: ImageDataset, folder: Path, minutes: float | None) -> dict:
    """Train and predict."""
    began = time.perf_counter()
    resolved = resolve_recipe(recipe, TrainingSet(len(train), train.class_names), Hardware(DEVICE))
    recipe = resolved.recipe
    preprocessing = replace(
        resolved.network.preprocessing,
        image_size=recipe.eval_image_size,
        crop_mode=recipe.crop_mode,
        crop_pct=1.0,
        tta=recipe.tta,
    )
    run_dir = RunDir(folder)
    setup = RunSetup(recipe, resolved.network, train, val, preprocessing, run_dir, DEVICE, workers=0)
    if minutes is not None:
        with tempfile.TemporaryDirectory() as scratch:
            rates = measure_timings(setup, Path(scratch))
        epochs = LengthBudget(recipe, ImageCounts(len(train), len(val)), minutes).epochs(rates)
        recipe = recipe.model_copy(update={"epochs": epochs})
        setup = replace(setup, recipe=recipe)
    run_dir.begin(recipe, train, {})
    result = Trainer(setup).fit()
    for file in run_dir.checkpoints.iterdir():
        file.unlink()
    return {
        "labels": result.predictions.labels.tolist(),
        "probabilities": result.predictions.probabilities.round(5).tolist(),
        "seconds": round(time.perf_counter() - began, 1),
        "epochs": recipe.epochs,
    }


def score(predictions: dict, class_names: tuple[str, ...]):
    """Metrics of saved predictions."""
    return classification_metrics(np.array(predictions["labels"]), np.array(predictions["probabilities"]), class_names)


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with overrides ``a.b=c``."""
    return validate_recipe(apply_overrides(recipe.to_json(), overrides), where=recipe.name)


def fold(dataset: ImageDataset, number: int, train_rows: np.ndarray, test_rows: np.ndarray, options) -> dict:
    """One fold: choose, train and predict; train from scratch in the same planned minutes; fit the linear probe."""
    out = options.output / f"fold{number}"
    finetune = changed(get_recipe("finetune"), [*KNOWN, f"weights={options.weights}"])
    splitter = StratifiedShuffleSplit(1, test_size=0.25, random_state=number)
    fit_rows, choice_rows = next(splitter.split(train_rows, dataset.labels[train_rows]))
    inner_parts = parts(dataset, train_rows[fit_rows], train_rows[choice_rows])
    inner_f1 = {}
    for name, overrides in CANDIDATES.items():
        predictions = trained(changed(finetune, [*overrides, *CHOOSING]), *inner_parts, out / f"inner_{name}")
        inner_f1[name] = score(predictions, dataset.class_names).macro_f1
        print(f"fold {number}, choosing: {name} {inner_f1[name]:.3f} ({predictions['seconds']:.0f} s)", flush=True)
    best = max(inner_f1, key=lambda name: inner_f1[name])
    outer = parts(dataset, train_rows, test_rows)
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
    fit = linear_probe(network, train, val, preprocessing, key=Key.of(0), balanced=True)
    return vars(fit.metrics)


def pooled(folds: list[dict], arm: str, class_names: tuple[str, ...]) -> dict:
    """Metrics of the predictions of all folds together, and of each fold."""
    predictions = {key: [one for each in folds for one in each[arm][key]] for key in ("labels", "probabilities")}
    metrics = score(predictions, class_names)
    intervals = bootstrap_intervals(metrics, key=Key.of(0).fold("intervals"))
    each = [score(one[arm], class_names).macro_f1 for one in folds]
    return {
        "macro_f1": metrics.macro_f1,
        "macro_f1_interval": intervals["macro_f1"],
        "top1": metrics.top1,
        "top1_interval": intervals["top1"],
        "per_class_f1": {name: one.f1 for name, one in metrics.per_class.items()},
        "macro_f1_by_fold": each,
        "seconds_by_fold": [one[arm]["seconds"] for one in folds],
        "epochs_by_fold": [one[arm]["epochs"] for one in folds],
        "hardware": machines(one[arm] for one in folds),
    }


def main() -> None:
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
    splits = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(dataset.labels, dataset.labels))
    if options.only is not None:
        for number in options.only:
            fold(dataset, number, *splits[number], options)
        return
    folds = [fold(dataset, number, *rows, options) for number, rows in enumerate(splits)]
    result = {arm: pooled(folds, arm, dataset.class_names) for arm in ("finetune", "scratch")}
    inner_f1 = {name: [fold_result["inner_macro_f1"][name] for fold_result in folds] for name in CANDIDATES}
    result |= {
        "settings": KNOWN,
        "settings_while_choosing": CHOOSING,
        "inner_macro_f1": inner_f1,
        "chosen": [fold_result["chosen"] for fold_result in folds],
        "linear_probe": [fold_result["probe"] for fold_result in folds],
    }
    print(json.dumps(result, indent=1))
    if options.record:
        keep(result)


def keep(result: dict[str, Any]) -> None:
    """Record the claims and write the raw results."""
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
