"""Fine-tuning on satellite pictures, cross-validated: given weights against from scratch in the same minutes.

Run: python -m benchmarks.finetune_land_cover PICTURES.csv WEIGHTS [--out OUT] [--only FOLD ...]

5 stratified folds. In each fold every candidate setting is trained, for half the epochs, on three quarters of the
other folds' pictures and scored on the last quarter; the better one is trained again on all of the other folds and
answers the fold. The answers of the five folds together give the figure. From scratch: recipe quick, for the minutes
that this took in that fold.

What is done is kept in OUT (results/finetune_land_cover) and not done again; the answers in it travel with the
repository. With all folds done the claims go into results/summary.json. --only does some of the folds and leaves the
figures to a later call, so that one process a core can share the work.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.record import RESULTS, record
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.keys import Key
from efficientnetv2.data.manifest import Manifest, read
from efficientnetv2.inference.probe import linear_probe
from efficientnetv2.metrics.classification import figures
from efficientnetv2.metrics.intervals import bootstrap
from efficientnetv2.training.changes import with_settings
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.job import Job
from efficientnetv2.training.named import load_weights
from efficientnetv2.training.plan import epochs_within
from efficientnetv2.training.rates import measure
from efficientnetv2.training.recipes import named
from efficientnetv2.training.run import run
from efficientnetv2.training.settle import settle

DEVICE = torch.device("cpu")
FOLDS = 5
# What is known of such pictures beforehand: they have no upright, the subject lies at the centre, much else around it.
KNOWN = [
    "augment.flip=symmetries",
    "eval_views=symmetries",
    "pooling=mean+centre",
    "classifier=fresh",
    "frozen_statistics=false",
    "crop_area_min=0.7",
    "progressive.randaugment=null",
    "progressive.image_px={start: 160, end: 256}",
    "epochs=8",
    "validate_epochs=8",
]
CHOOSING = ["epochs=4", "validate_epochs=4"]
CANDIDATES = {"frozen": ["frozen_statistics=true"], "adapted": ["frozen_statistics=false"]}


class _Quiet:
    """Watches nothing."""

    def progress(self, done, of, setting, images_per_s, seconds_left, loss) -> None:
        """Said nowhere."""


def parts(manifest: Manifest, learning: np.ndarray, answering: np.ndarray) -> tuple[Manifest, Manifest]:
    """Two parts of a manifest, marked as train and val."""
    split = np.full(len(manifest), "", dtype=object)
    split[learning], split[answering] = "train", "val"
    marked = manifest.with_split(split)
    return marked.subset("train"), marked.subset("val")


def trained(recipe, train: Manifest, val: Manifest, folder: Path, *, minutes: float | None = None) -> dict:
    """Train, answer, keep; or what was kept of that."""
    kept = folder / "answers.json"
    if kept.exists():
        return json.loads(kept.read_text())
    began = time.perf_counter()
    settled = settle(recipe, images=len(train), class_names=train.class_names, device=DEVICE)
    recipe = settled.recipe
    preprocessing = replace(
        settled.network.preprocessing,
        image_px=recipe.eval_px,
        framing=recipe.framing,
        crop_fraction=1.0,
        views=recipe.eval_views,
    )
    runs = RunFolder(folder, lambda line: None)
    job = Job(recipe, settled.network, train, val, preprocessing, runs, DEVICE, workers=0)
    if minutes is not None:
        with tempfile.TemporaryDirectory() as scratch:
            rates = measure(job, Path(scratch))
        epochs = epochs_within(minutes, recipe, rates, images=len(train), val_images=len(val))
        recipe = recipe.model_copy(update={"epochs": epochs})
        job = replace(job, recipe=recipe)
    runs.begin(recipe, train, {})
    result = run(job, resumed=False, watch=_Quiet())
    for file in runs.checkpoints.iterdir():
        file.unlink()
    answers = {
        "labels": result.predictions.labels.tolist(),
        "probabilities": result.predictions.probabilities.round(5).tolist(),
        "seconds": round(time.perf_counter() - began, 1),
        "epochs": recipe.epochs,
    }
    kept.write_text(json.dumps(answers))
    return answers


def score(answers: dict, class_names: tuple[str, ...]):
    """Figures of kept answers."""
    return figures(np.array(answers["labels"]), np.array(answers["probabilities"]), class_names)


def fold(manifest: Manifest, number: int, learning: np.ndarray, answering: np.ndarray, options) -> dict:
    """One fold: choose, train, answer; from scratch in the same minutes; the linear probe."""
    out = options.out / f"fold{number}"
    finetune = with_settings(named("finetune"), [*KNOWN, f"weights={options.weights}"])
    draw = StratifiedShuffleSplit(1, test_size=0.25, random_state=number)
    inner, choosing = next(draw.split(learning, manifest.labels[learning]))
    inner_parts = parts(manifest, learning[inner], learning[choosing])
    inner_f1 = {}
    for name, settings in CANDIDATES.items():
        answers = trained(
            with_settings(finetune, [*settings, *CHOOSING]), *inner_parts, out / f"inner_{name}"
        )
        inner_f1[name] = score(answers, manifest.class_names).macro_f1
        print(
            f"fold {number}, choosing: {name} {inner_f1[name]:.3f} ({answers['seconds']:.0f} s)", flush=True
        )
    best = max(inner_f1, key=lambda name: inner_f1[name])
    outer = parts(manifest, learning, answering)
    tuned = trained(with_settings(finetune, CANDIDATES[best]), *outer, out / f"finetune_{best}")
    print(f"fold {number}: {best} {score(tuned, manifest.class_names).macro_f1:.3f}", flush=True)
    scratch = trained(named("quick"), *outer, out / "scratch", minutes=tuned["seconds"] / 60)
    print(f"fold {number}: from scratch {score(scratch, manifest.class_names).macro_f1:.3f}", flush=True)
    probe = out / "probe.json"
    if not probe.exists():
        network, _ = load_weights(options.weights)
        preprocessing = replace(network.preprocessing, image_px=256, framing="whole", crop_fraction=1.0)
        found = linear_probe(
            network, *outer, preprocessing=preprocessing, key=Key.of(0), balanced=True, device=DEVICE
        ).probe
        probe.write_text(json.dumps(vars(found)))
    return {
        "fold": number,
        "inner_macro_f1": inner_f1,
        "chosen": best,
        "finetune": tuned,
        "scratch": scratch,
        "probe": json.loads(probe.read_text()),
    }


def pooled(folds: list[dict], arm: str, class_names: tuple[str, ...]) -> dict:
    """Figures of all folds' answers together, and of each."""
    together = {key: [one for each in folds for one in each[arm][key]] for key in ("labels", "probabilities")}
    whole = score(together, class_names)
    intervals = bootstrap(whole, key=Key.of(0).fold("intervals"))
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
    }


def main() -> None:
    """All folds, then the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures")
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetune_land_cover")
    parser.add_argument("--only", type=int, nargs="+", choices=range(FOLDS), metavar="FOLD")
    options = parser.parse_args()
    manifest = read(options.pictures)
    dealt = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(manifest.labels, manifest.labels))
    if options.only is not None:
        for number in options.only:
            fold(manifest, number, *dealt[number], options)
        return
    folds = [fold(manifest, number, *two, options) for number, two in enumerate(dealt)]
    result = {arm: pooled(folds, arm, manifest.class_names) for arm in ("finetune", "scratch")}
    inner = {name: [one["inner_macro_f1"][name] for one in folds] for name in CANDIDATES}
    result |= {
        "settings": KNOWN,
        "settings_while_choosing": CHOOSING,
        "inner_macro_f1": inner,
        "chosen": [one["chosen"] for one in folds],
        "linear_probe": [one["probe"] for one in folds],
    }
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
        )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
