"""Compare ``train`` with only data and minutes with the linear probe that ``train`` prints.

Run: python -m benchmarks.default_train NAME=PICTURES [NAME=PICTURES ...] --record

PICTURES is a dataset. For each dataset, ``effnetv2 train PICTURES --minutes 15`` runs as a user runs it. The model and
the linear probe are compared on the same val images. Claims: ``default_train_minus_probe_NAME_top1`` and ``_macro_f1``,
model − probe (points), with the interval of a paired bootstrap.

The probe uses the weights that the run started from. A run from scratch prints no probe. Then the probe uses the best
other available weights, or random weights if there are none (``probe_of``). With very many training images, the probe
is trained on ``probe_num_train_images`` of ``num_train_images``.

Stopped runs are resumed and finished runs are read. A run of other images or minutes is refused. All files are in OUT
(results/default_train_NAME). The repository contains only ``measured.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from benchmarks.arms import machines
from benchmarks.record import RESULTS, begun, hardware, record, refuse_foreign_file, versions_of

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.evaluation.predictions import compare_predictions, load_predictions, save_predictions
from efficientnetv2.inference.linear_probe import linear_probe
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.initial_weights import build_initial_model, weights_candidates
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.run_report import PROBE_DIR

_COPIED = ("top1", "macro_f1", "majority_top1", "epochs", "wall_s", "train_s", "images_per_s", "evaluated_on", "seed")


def command(pictures: str, minutes: float, run: Path) -> list[str]:
    """The command of a user, with the folder of the run."""
    resume = ["--resume"] if (run / "recipe.yaml").exists() else []
    arguments = ["train", pictures, "--minutes", f"{minutes:g}", "--output", str(run), *resume]
    return [sys.executable, "-m", "efficientnetv2", *arguments]


def train(pictures: str, minutes: float, run: Path) -> None:
    """Run the command in its own process. Its output goes to our output."""
    subprocess.run(command(pictures, minutes, run), check=True)


def measured(pictures: str, minutes: float, out: Path) -> dict[str, Any]:
    """The result of a run: train it, or read it if it is saved.

    Raises:
        SystemExit: The saved run has other images or minutes.
    """
    file, run = out / "measured.json", out / "run"
    requested = {"minutes": minutes, "pictures_digest": load_dataset(pictures).digest()}
    advice = f"move {out} away, or give another --output"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        refuse_foreign_file(file, found, requested, advice)
        return found
    out.mkdir(parents=True, exist_ok=True)
    begun(out / "about.json", requested, tuple(requested), advice)
    if not (run / "report.json").exists():
        train(pictures, minutes, run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    probe_of = "the weights that the run took"
    probe = json.loads((run / "run.json").read_text(encoding="utf-8")).get("linear_probe")
    num_probe_images = None if probe is None else probe["num_train_images"]
    if num_probe_images is None:
        probe_of, num_probe_images = other_probe(pictures, run)
    row = {
        **requested,
        **{name: report.get(name) for name in _COPIED},
        "recipe": read_recipe(run / "recipe.yaml").name,
        "weights": Path(report["recipe"]["weights"]).name,
        "compared": [
            {**one, "weights": Path(one["weights"]).name}
            for one in report.get("weights_compared", {}).get("candidates", [])
        ],
        "num_train_images": report["num_train_images"],
        "probe_of": probe_of,
        "probe_num_train_images": num_probe_images,
        **over_probe(run),
        "when": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": report["versions"],
    }
    write_text_atomically(file, json.dumps(row, indent=1) + "\n")
    return row


def over_probe(run: Path) -> dict[str, Any]:
    """Model − probe, on the images that both have predicted."""
    ours, theirs = load_predictions(run), load_predictions(run / PROBE_DIR)
    comparison = compare_predictions(ours, theirs)
    assert comparison is not None, "both answer val"
    shared = theirs.loc[theirs.index.isin(ours.index)]
    return {
        "pictures": comparison.num_images,
        "probe_top1": float((shared["predicted_label"] == shared["true_label"]).mean()),
        "over_probe": {"top1": asdict(comparison.top1), "macro_f1": asdict(comparison.macro_f1)},
    }


def other_probe(pictures: str, run: Path) -> tuple[str, int]:
    """Save predictions of a probe on other weights. Return the weights' title and the number of training images."""
    recipe = read_recipe(run / "recipe.yaml")
    candidate = weights_candidates(recipe.model)[0]
    dataset = ImageDataset.from_csv(run / "dataset.csv", root=load_dataset(pictures).root, source=pictures)
    train, val = dataset.subset("train"), dataset.subset("val")
    initial = build_initial_model(
        recipe.model_copy(update={"weights": candidate.word}), class_names=train.class_names, device=torch.device("cpu")
    )
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))["preprocessing"]
    values = {**saved, "mean": initial.network.preprocessing.mean, "std": initial.network.preprocessing.std}
    fit = linear_probe(
        initial.network,
        train,
        val,
        Preprocessing.from_json(values),
        key=Key.of(recipe.seed).fold("probe"),
        balanced=True,
    )
    names, evaluated = val.class_names, fit.val_dataset.select(fit.val.samples)
    save_predictions(
        run / PROBE_DIR,
        pd.DataFrame(
            {
                "path": evaluated.paths,
                "label": [names[label] for label in fit.predicted],
                "true_label": [names[label] for label in fit.val.labels],
            }
        ),
    )
    return f"{candidate.title}, which the run did not begin with", fit.metrics.num_train_images


def told(name: str, row: Mapping[str, Any]) -> str:
    """The result as a sentence."""
    parts = [
        f"{metric} {100 * gain['value']:+.1f} points ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for metric, gain in row["over_probe"].items()
    ]
    # Older records lack the number of probe images.
    num_learned, num_images = row.get("probe_num_train_images", row["num_train_images"]), row["num_train_images"]
    note = f", learnt from {num_learned:,} of {num_images:,} training pictures" if num_learned < num_images else ""
    return (
        f"{name}: {row['recipe']} from {row['weights']}, top-1 {row['top1']:.1%}; over the linear probe of "
        f"{row['probe_of']} ({row['probe_top1']:.1%}{note}): {', '.join(parts)}, on {row['pictures']} pictures."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=PICTURES")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the folders default_train_NAME")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    if options.record and options.minutes != 15:
        parser.error("--record is for 15 minutes.")
    for given in options.sets:
        name, separator, pictures = given.partition("=")
        if not (name.isidentifier() and separator and pictures):
            parser.error(f"'{given}' is not NAME=PICTURES, where NAME is a word for the figure's name.")
        row = measured(pictures, options.minutes, options.output / f"default_train_{name}")
        print(told(name, row), flush=True)
        if options.record:
            for metric, difference in row["over_probe"].items():
                record(
                    f"default_train_minus_probe_{name}_{metric}",
                    100 * difference["value"],
                    unit="points",
                    low=100 * difference["low"],
                    high=100 * difference["high"],
                    n=row["pictures"],
                    command=f"python -m benchmarks.default_train {name}=PICTURES --record",
                    on=machines([row]),
                    versions=versions_of([row]),
                )


if __name__ == "__main__":
    main()
