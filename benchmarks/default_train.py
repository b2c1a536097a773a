"""What ``train`` comes to with no flags but the data and the minutes, against the linear probe that it prints.

Run: python -m benchmarks.default_train NAME=PICTURES [NAME=PICTURES ...] --record

For each set of images ``effnetv2 train PICTURES --minutes 15`` runs as a user runs it. The network's answers to val
and the linear probe's are then compared on the same images: ``default_train_minus_probe_NAME_top1`` and ``_macro_f1``
in points, with the interval of a bootstrap of pairs. The probe is of the weights that the run itself took. Where it was
begun from scratch it prints none: then the probe is of the best weights at hand that it did not take, or where there
are none of random weights, and the record says so (``probe_of``). Of very many training images a probe learns
from a part, the network from all: ``probe_num_train_images`` of ``num_train_images``.

A run that was stopped goes on; one that is done is only read, and one of other images or minutes is refused.
Everything lies in OUT (results/default_train_NAME), of
which ``measured.json`` alone travels with the repository.
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
from efficientnetv2.inference.linear_probe import ProbeOptions, linear_probe
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.initial_weights import build_initial_model, weights_candidates
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.run_report import PROBE_DIR

_KEPT = ("top1", "macro_f1", "majority_top1", "epochs", "wall_s", "train_s", "images_per_s", "evaluated_on", "seed")


def command(pictures: str, minutes: float, run: Path) -> list[str]:
    """What a user types, and where the run is to lie."""
    resume = ["--resume"] if (run / "recipe.yaml").exists() else []
    words = ["train", pictures, "--minutes", f"{minutes:g}", "--output", str(run), *resume]
    return [sys.executable, "-m", "efficientnetv2", *words]


def train(pictures: str, minutes: float, run: Path) -> None:
    """Run it, in a process of its own; its lines and bars go where ours go."""
    subprocess.run(command(pictures, minutes, run), check=True)


def measured(pictures: str, minutes: float, out: Path) -> dict[str, Any]:
    """What a run came to: trained, or read where it has been.

    Raises:
        SystemExit: what lies there is of other images or of another length.
    """
    kept, run = out / "measured.json", out / "run"
    asked = {"minutes": minutes, "pictures_digest": load_dataset(pictures).digest()}
    advice = f"move {out} away, or give another --output"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        refuse_foreign_file(kept, found, asked, advice)
        return found
    out.mkdir(parents=True, exist_ok=True)
    begun(out / "about.json", asked, tuple(asked), advice)
    if not (run / "report.json").exists():
        train(pictures, minutes, run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    probe_of = "the weights that the run took"
    probe = json.loads((run / "run.json").read_text(encoding="utf-8")).get("linear_probe")
    learnt = None if probe is None else probe["num_train_images"]
    if learnt is None:
        probe_of, learnt = other_probe(pictures, run)
    row = {
        **asked,
        **{name: report.get(name) for name in _KEPT},
        "recipe": read_recipe(run / "recipe.yaml").name,
        "weights": Path(report["recipe"]["weights"]).name,
        "compared": [
            {**one, "weights": Path(one["weights"]).name}
            for one in report.get("weights_compared", {}).get("candidates", [])
        ],
        "num_train_images": report["num_train_images"],
        "probe_of": probe_of,
        "probe_num_train_images": learnt,
        **over_probe(run),
        "when": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": report["versions"],
    }
    write_text_atomically(kept, json.dumps(row, indent=1) + "\n")
    return row


def over_probe(run: Path) -> dict[str, Any]:
    """What the network has over the probe on the images that both have answered."""
    ours, theirs = load_predictions(run), load_predictions(run / PROBE_DIR)
    both = compare_predictions(ours, theirs)
    assert both is not None, "both answer val"
    shared = theirs.loc[theirs.index.isin(ours.index)]
    return {
        "pictures": both.num_images,
        "probe_top1": float((shared["predicted_label"] == shared["true_label"]).mean()),
        "over_probe": {"top1": asdict(both.top1), "macro_f1": asdict(both.macro_f1)},
    }


def other_probe(pictures: str, run: Path) -> tuple[str, int]:
    """Write down the answers of a probe that the run has not made; what it is of, and from how many it learnt."""
    recipe = read_recipe(run / "recipe.yaml")
    found = weights_candidates(recipe.model)[0]
    dataset = ImageDataset.from_csv(run / "dataset.csv", root=load_dataset(pictures).root, source=pictures)
    train, val = dataset.subset("train"), dataset.subset("val")
    begun = build_initial_model(
        recipe.model_copy(update={"weights": found.word}), class_names=train.class_names, device=torch.device("cpu")
    )
    kept = json.loads((run / "run.json").read_text(encoding="utf-8"))["preprocessing"]
    how = {**kept, "mean": begun.network.preprocessing.mean, "std": begun.network.preprocessing.std}
    fit = linear_probe(
        begun.network,
        train,
        val,
        Preprocessing.from_json(how),
        ProbeOptions(Key.of(recipe.seed).fold("probe"), balanced=True),
    )
    names, shown = val.class_names, fit.val_dataset.select(fit.val.samples)
    save_predictions(
        run / PROBE_DIR,
        pd.DataFrame(
            {
                "path": shown.paths,
                "label": [names[one] for one in fit.predicted],
                "true_label": [names[one] for one in fit.val.labels],
            }
        ),
    )
    return f"{found.title}, which the run did not begin with", fit.metrics.num_train_images


def told(name: str, row: Mapping[str, Any]) -> str:
    """What came out, in a sentence."""
    parts = [
        f"{figure} {100 * one['value']:+.1f} points ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
        for figure, one in row["over_probe"].items()
    ]
    # A record that was made before it said so has none.
    learnt, there = row.get("probe_num_train_images", row["num_train_images"]), row["num_train_images"]
    fewer = f", learnt from {learnt:,} of {there:,} training pictures" if learnt < there else ""
    return (
        f"{name}: {row['recipe']} from {row['weights']}, top-1 {row['top1']:.1%}; over the linear probe of "
        f"{row['probe_of']} ({row['probe_top1']:.1%}{fewer}): {', '.join(parts)}, on {row['pictures']} pictures."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=PICTURES")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the default_train_NAME")
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
            for figure, one in row["over_probe"].items():
                record(
                    f"default_train_minus_probe_{name}_{figure}",
                    100 * one["value"],
                    unit="points",
                    low=100 * one["low"],
                    high=100 * one["high"],
                    n=row["pictures"],
                    command=f"python -m benchmarks.default_train {name}=PICTURES --record",
                    on=machines([row]),
                    versions=versions_of([row]),
                )


if __name__ == "__main__":
    main()
