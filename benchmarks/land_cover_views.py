"""Land cover on spatial folds by more than one crop: models of the whole image, of its center, and their mean.

Run: python -m benchmarks.land_cover_views PICTURES.csv WEIGHTS [--output OUT] [--only VIEW ...] [--record]

PICTURES.csv has columns path, label, latitude and longitude. WEIGHTS were trained on ImageNet. Each view trains one
EfficientNetV2-B0 per fold for 10 epochs, with the settings of ``benchmarks.land_cover`` and ``class_sampling=equal``,
which nine of its ten folds chose. All views have the same folds:

whole     160 to 288 px
center    the middle half of each side (the cause of the loss of forest is at the center), 96 to 160 px
middle    the middle three quarters of each side, 128 to 224 px
larger    the whole image, 192 to 320 px

The mean of ``whole`` and ``center`` was declared as the result before any view had run. Its claims are
``land_cover_macro_f1_spatial_two_views`` and ``land_cover_top1_spatial_two_views``. The mean of all finished views is
printed too. A stopped view resumes from OUT. The predictions of finished views are in results/land_cover_views/ and are
not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.arms import machines
from benchmarks.land_cover_runs import ALWAYS, FOLDS
from benchmarks.record import RESULTS, hardware, record, refuse_foreign_file
from PIL import Image

from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.progress_bars import TrainingBar
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.metrics.classification import classification_metrics
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.crossval import run_crossval
from efficientnetv2.workflows.crossval_config import CROSSVAL_JSON, CrossValConfig

# View -> fraction of each side, first and last image size.
VIEWS = {"whole": (1.0, 160, 288), "center": (0.5, 96, 160), "middle": (0.75, 128, 224), "larger": (1.0, 192, 320)}
DECLARED = ("whole", "center")
MODEL, EPOCHS = "efficientnetv2_b0", 10
_QUALITY = 95  # of the cropped JPEG files: ours


def settings_of(view: str) -> tuple[str, ...]:
    """Recipe overrides of a view."""
    _, first, last = VIEWS[view]
    sizes = f"progressive.image_size={{start: {first}, end: {last}}}"
    return (*ALWAYS, sizes, f"epochs={EPOCHS}", f"val_interval_epochs={EPOCHS}", "class_sampling=equal")


def crop_center(pictures: Path, fraction: float, folder: Path) -> Path:
    """Write the middle of all images with their table to a folder, and return the table."""
    table = pd.read_csv(pictures)
    for path in table["path"]:
        target = folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(pictures.parent / path) as image:
                margins = [round(side * (1 - fraction) / 2) for side in image.size]
                box = (*margins, *(side - margin for side, margin in zip(image.size, margins, strict=True)))
                image.crop(box).save(target, quality=_QUALITY)
    table.to_csv(folder / pictures.name, index=False)
    return folder / pictures.name


def predicted(view: str, options: argparse.Namespace) -> dict[str, Any]:
    """Predictions of all folds of a view: run, resume or read them.

    Raises:
        SystemExit: The saved predictions are of other images or settings.
    """
    settings, file = settings_of(view), RESULTS / f"land_cover_views/{view}.json"
    asked = {
        "pictures": load_dataset(str(options.pictures)).digest(),
        "weights": hashlib.blake2b(options.weights.read_bytes(), digest_size=16).hexdigest(),
        "settings": [setting for setting in settings if not setting.startswith("precision=")],  # of the processor
    }
    if not file.exists():
        fraction, out = VIEWS[view][0], options.output / view
        table = options.pictures
        if fraction < 1:
            table = crop_center(options.pictures, fraction, options.output / f"{view}_images")
        overrides = TrainOverrides(model=MODEL, recipe="finetune", weights=str(options.weights), settings=settings)
        begun = (out / CROSSVAL_JSON).exists()
        with Screen(verbose=True) as screen, TrainingBar(screen) as bar:
            run_options = RunOptions(out=out, resume=begun, device="cpu", workers=0, probe=False)
            run_crossval(
                overrides, DataConfig(str(table)), run_options, CrossValConfig(FOLDS, "place"), callbacks=[bar]
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        saved_now = asked | predictions_in(out) | {"hardware": hardware()}
        write_text_atomically(file, json.dumps(saved_now) + "\n")
    saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    refuse_foreign_file(file, saved, asked, "move it away")
    return saved


def predictions_in(folder: Path) -> dict[str, Any]:
    """Paths, labels, probabilities and spatial clusters of all predictions of a cross-validation, ordered by path."""
    table = pd.read_csv(folder / "predictions.csv").sort_values("path")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    names = list(report["per_class"])
    return {
        "classes": names,
        "paths": table["path"].tolist(),
        "labels": [names.index(label) for label in table["true_label"]],
        "probabilities": table[names].round(5).to_numpy().tolist(),
        "clusters": table["cluster"].tolist(),
        "wall_s": report["wall_s"],
    }


def mean_metrics(views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics with intervals of the mean of the predicted probabilities.

    Args:
        views: Predictions of ``predicted``.
    """
    first = views[0]
    for name in ("classes", "paths", "labels", "clusters"):
        assert all(view[name] == first[name] for view in views), f"views differ in {name}"
    labels = np.array(first["labels"])
    probabilities = np.mean([view["probabilities"] for view in views], axis=0)
    metrics = classification_metrics(labels, probabilities, tuple(first["classes"]))
    clusters = np.array(first["clusters"])
    intervals = metric_intervals(metrics, labels, probabilities, clusters=clusters, key=Key.of(0).fold("views"))
    return {name: {"value": getattr(metrics, name), "interval": intervals[name]} for name in ("macro_f1", "top1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/land_cover_views"))
    parser.add_argument("--only", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    if options.record and not set(DECLARED) <= set(options.only):
        parser.error(f"--record needs the views {' and '.join(DECLARED)}.")
    views = {view: predicted(view, options) for view in options.only}
    means = {(name,): mean_metrics([view]) for name, view in views.items()}
    for names in dict.fromkeys([DECLARED, tuple(views)]):
        if len(names) > 1 and set(names) <= views.keys():
            means[names] = mean_metrics([views[name] for name in names])
    for names, found in means.items():
        print(" + ".join(names), *(f"{name} {one['value']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
              for name, one in found.items()))  # fmt: skip
    if options.record:
        command = f"python -m benchmarks.land_cover_views PICTURES.csv WEIGHTS --only {' '.join(DECLARED)}"
        on = machines([views[name] for name in DECLARED])
        for name, unit in (("macro_f1", "F1"), ("top1", "fraction")):
            one = means[DECLARED][name]
            low, high = one["interval"]
            record(
                f"land_cover_{name}_spatial_two_views", one["value"], unit=unit, low=low, high=high, n=FOLDS,
                command=command, on=on,
            )  # fmt: skip


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
