"""``effnetv2 train DATA --minutes M`` with its defaults, against other tools in the same minutes.

Run: python -m benchmarks.newcomer NAME=TRAIN,TEST --minutes 6 --start offline --timm-train TIMM_TRAIN_PY
--peers-python PYTHON [PYTHON ...] [--record]

TRAIN and TEST are folders of class folders. TEST may be a table with groups. Then the intervals are over groups. START
is ``offline`` (``train`` chooses between the bundled weights and random weights) or a file of weights of
EfficientNetV2-B0. The peers start from this file, or with ``offline`` from the bundled weights:

- ``probe``: logistic regression of scikit-learn on the features, all training images, penalty by cross-validation.
- ``fastai``: ``vision_learner(...).fine_tune(epochs)``, defaults.
- ``autogluon``: AutoGluon MultiModal, preset medium_quality. Version 1.6.3 needs torch < 2.14, torchvision < 0.29 and
  timm < 1.0.7, and the other sides run with later versions. So AutoGluon needs a separate environment.
- ``timm``: train.py of timm with options for fine-tuning.

Each peer runs in the first PYTHON that has its library; this interpreter is tried last. A peer without its library is
"not measured". ``newcomer_sides`` has the details. Nothing is tuned on these images, but a first run on one set
changed the rule for the initial weights (docs/benchmarks/first-run.md). fastai and timm validate on the same fifth of
the training images; ``train`` and AutoGluon choose their validation images. All sides run one after another on all
processors, in another order for each seed. Runs of a seed count if the pace of the machine is within a tenth before and
after all of them. Finished runs are read again if data and weights are unchanged.

With several values of ``--timm-lr``, timm trains with each of them and seed 0, in the same minutes. The best on the
validation images is the learning rate of all seeds.

PREFIX is ``newcomer_NAME_START_Mmin``, where START is ``offline`` or ``weights``:

- ``PREFIX_minus_PEER_top1``: ours − peer in points, on TEST, over all seeds, with the interval of a paired bootstrap.
  The bootstrap draws an image with the predictions of all seeds.

results/newcomer.json has the same for macro-F1 and balanced accuracy, and the top-1 and the seconds of training of each
side and seed.

OUT (results/newcomer) has all files; only OUT/sides is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.arms import SAME_PACE, machines
from benchmarks.in_turn import paced, refuse_drift
from benchmarks.minutes_kept import Task, named_set, train
from benchmarks.newcomer_sides import LIBRARIES, MODEL, SIDES, Job
from benchmarks.peers_training import link_folders
from benchmarks.record import NO_GPU, RESULTS, forget, hardware, record, versions_of
from sklearn.model_selection import train_test_split

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.evaluation.evaluation_result import library_versions
from efficientnetv2.evaluation.predictions import CLUSTER_COLUMN, compare_predictions, load_predictions
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.conversion import convert
from efficientnetv2.training.initial_weights import BUNDLED, load_weights
from efficientnetv2.utils.io import write_text_atomically

_ROOT = Path(__file__).parents[1]
_LIBRARIES = {"fastai": "fastai", "autogluon": "autogluon.multimodal"}  # the others are in the dev environment


def weights_of(start: str) -> str:
    """Return the file of weights that the peers start from."""
    return str(BUNDLED / f"{MODEL.removeprefix('tf_')}.safetensors") if start == "offline" else start


def asked(task: Task) -> dict[str, Any]:
    """Return the conditions of the runs of all seeds: minutes, digests of both datasets, SHA-256 of the weights."""
    digests = {name: load_dataset(of).digest() for name, of in (("train", task.data), ("test", task.test))}
    weights = hashlib.sha256(Path(weights_of(task.start)).read_bytes()).hexdigest()
    return {"minutes": task.minutes, **digests, "weights_sha256": weights}


def prepare(task: Task, folder: Path) -> dict[str, str]:
    """Write the inputs of the peers: links to the training images, a table of the test images, weights for timm."""
    shutil.rmtree(folder, ignore_errors=True)  # links to other images
    folder.mkdir(parents=True)
    data, test = load_dataset(task.data), load_dataset(task.test)
    parts = train_test_split(np.arange(len(data)), test_size=0.2, stratify=data.labels, random_state=0)
    images = link_folders(data, *parts, folder / "images")
    table = pd.DataFrame({"path": test.paths, "true_label": [test.class_names[label] for label in test.labels]})
    table["file"] = [str((Path(test.root) / path).absolute()) for path in test.paths]
    table.to_csv(folder / "test.csv", index=False)
    model, _ = load_weights(weights_of(task.start))
    convert.write(folder / "weights", adapt(model, num_classes=0), "timm")
    if (found := json.loads((folder / "weights/config.json").read_text(encoding="utf-8"))["architecture"]) != MODEL:
        raise SystemExit(f"{task.start} has the weights of {found}; the peers are set up for {MODEL}.")
    return {"images": str(images), "test": str(folder / "test.csv"), "weights": str(folder / "weights")}


def run_peer(side: str, python: str, job: Job) -> dict[str, Any]:
    """Train and predict in a separate process, without an internet connection."""
    env = os.environ | NO_GPU | {"HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "benchmarks.newcomer_sides", side, json.dumps(asdict(job))]
    subprocess.run(command, check=True, env=env, cwd=_ROOT)
    facts = json.loads(Path(job.out, "side.json").read_text(encoding="utf-8"))
    versions = library_versions() | {name: facts[name] for name in ("torch", *LIBRARIES)}  # of its interpreter
    return {**facts, "hardware": hardware(), "versions": versions, "when": time.strftime("%Y-%m-%d")}


def run_ours(task: Task, folder: Path) -> dict[str, Any]:
    """Run ``train`` from its start: the measured pace does not cover a run that was stopped and resumed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)
    return train(task, folder, None, os.sched_getaffinity(0))


def chosen_lr(rates: list[str], val_top1: Callable[[str], float]) -> tuple[str, dict[str, float]]:
    """Return the learning rate with the best top-1 on the validation images, and that of each; one rate is not run."""
    tried = {rate: val_top1(rate) for rate in rates} if len(rates) > 1 else {}
    return max(tried, key=lambda rate: tried[rate], default=rates[0]), tried


def interpreter(side: str, pythons: list[str]) -> str | None:
    """Return the first interpreter with the library of a side."""
    test = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    library = _LIBRARIES.get(side)
    for python in [*pythons, sys.executable] if library else [sys.executable]:
        if not library or not subprocess.run([python, "-c", test, library], stderr=subprocess.DEVNULL).returncode:
            return python
    return None


def pooled(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Join the predictions of several seeds in one table, where the predictions of an image are one cluster."""
    own = [table.assign(**{CLUSTER_COLUMN: table.get(CLUSTER_COLUMN, table.index.to_series())}) for table in tables]
    return pd.concat([table.set_axis(f"{seed}/" + table.index) for seed, table in enumerate(own)])


def top1(table: pd.DataFrame) -> float:
    """Compute the fraction of right labels."""
    return float((table["predicted_label"] == table["true_label"]).mean())


def differences(ours: list[pd.DataFrame], theirs: list[pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Compute ours − theirs in points, by metric, with the ends of its interval, over all seeds."""
    both = compare_predictions(pooled(ours), pooled(theirs))
    assert both is not None, "both predict the test images"
    found = {name: asdict(getattr(both, name)) for name in ("top1", "macro_f1", "balanced_accuracy")}
    return {name: {end: 100 * one[end] for end in ("value", "low", "high")} for name, one in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=named_set, metavar="NAME=TRAIN,TEST")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--start", default="offline", help="offline, or a file of weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="peers to measure")
    parser.add_argument("--peers-python", nargs="+", default=[], help="interpreters with the libraries of the peers")
    parser.add_argument("--timm-train", default="", help="train.py of timm")
    parser.add_argument("--timm-lr", nargs="+", default=[Job.timm_lr], help="learning rates to choose from")
    parser.add_argument("--output", type=Path, default=RESULTS / "newcomer")
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    name, data, test = options.set
    start = "offline" if options.start == "offline" else "weights"
    out = options.output.resolve()
    whole = Task(data, test, options.minutes, options.start)
    inputs, decides = prepare(whole, out / f"{name}_{start}_peers"), asked(whole)
    timm_train = str(Path(options.timm_train).resolve()) if options.timm_train else ""
    pythons = {side: interpreter(side, options.peers_python) for side in options.sides}
    missing = [side for side, python in pythons.items() if python is None or (side == "timm" and not timm_train)]
    for side in missing:
        print(f"{side}: not measured ({'no --timm-train' if side == 'timm' else 'not installed'})", flush=True)
    sides = ["ours", *(side for side in options.sides if side not in missing)]
    run_name = f"{name}_{start}_{options.minutes:g}min"

    def job_of(side: str, folder: Path, seed: int, rate: str) -> partial[dict[str, Any]]:
        job = Job(
            **inputs, out=str(folder / "test"), minutes=options.minutes, seed=seed, timm_train=timm_train, timm_lr=rate
        )
        return partial(run_peer, side, pythons[side], job)

    def val_top1(rate: str) -> float:
        folder = out / f"{run_name}_timm_lr_{rate}"
        run = job_of("timm", folder, 0, rate)
        return float(paced(out / "sides" / f"{folder.name}.json", run, {**decides, "lr": rate})["val_top1"])

    lr, tried = chosen_lr(options.timm_lr if "timm" in sides else options.timm_lr[:1], val_top1)
    for rate, one in tried.items():
        print(f"timm, learning rate {rate}: top-1 {one:.1%} on the validation images", flush=True)
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    tables: dict[str, list[pd.DataFrame]] = {side: [] for side in sides}
    for seed in range(options.seeds):
        first = seed % len(sides)
        for side in sides[first:] + sides[:first]:
            folder = out / f"{run_name}_{side}_{seed}"
            run = partial(run_ours, replace(whole, seed=seed), folder)
            if side != "ours":
                run = job_of(side, folder, seed, lr)
            conditions = {**decides, "seed": seed, **({"lr": lr} if side == "timm" else {})}
            rows[side].append(paced(out / "sides" / f"{folder.name}.json", run, conditions))
            tables[side].append(load_predictions(folder / "test"))
        # Not the versions: the peers have their own torch.
        compared = ("seed", "hardware", "pace", "file")
        refuse_drift([{key: rows[side][seed][key] for key in compared} for side in sides], SAME_PACE)
    every = [row for side in sides for row in rows[side]]
    chosen = f"--sides {' '.join(options.sides)} " if options.sides != list(SIDES) else ""
    rates = f"--timm-lr {' '.join(options.timm_lr)} " if "timm" in sides and options.timm_lr != [Job.timm_lr] else ""
    typed = (
        f"python -m benchmarks.newcomer {name}=TRAIN,TEST --minutes {options.minutes:g} "
        f"--start {start.replace('weights', 'WEIGHTS')} --seeds {options.seeds} {chosen}{rates}"
        "--timm-train TIMM_TRAIN_PY --peers-python PYTHON --record"
    )
    measured = {
        "hardware": machines(every),
        "command": typed,
        "test_images": len(tables["ours"][0]),
        "sides": {
            side: {"top1": [top1(one) for one in tables[side]], "wall_s": [row["wall_s"] for row in rows[side]]}
            for side in sides
        },
        **({"timm_lr_tried": tried} if tried else {}),
        "minus": {side: differences(tables["ours"], tables[side]) for side in sides[1:]},
    }
    for side, one in measured["sides"].items():
        print(f"{side}: top-1 {_span([100 * value for value in one['top1']])} %, {_span(one['wall_s'])} s of training")
    for side, found in measured["minus"].items():
        for metric, one in found.items():
            print(f"ours - {side}, {metric}: {one['value']:+.1f} points ({one['low']:+.1f} to {one['high']:+.1f})")
    if options.record:
        keep(f"newcomer_{run_name}", measured, versions_of(every))


def _span(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)"


def keep(prefix: str, measured: dict[str, Any], versions: dict[str, str]) -> None:
    """Record the claims, and add the other results to newcomer.json."""
    for side in SIDES:
        claim = f"{prefix}_minus_{side}_top1"
        if side in measured["minus"]:
            record(
                claim, **measured["minus"][side]["top1"], unit="points", n=measured["test_images"],
                command=measured["command"], on=measured["hardware"], versions=versions,
            )  # fmt: skip
        else:
            forget(claim)
    file = RESULTS / "newcomer.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    text = json.dumps(dict(sorted((saved | {prefix.removeprefix("newcomer_"): measured}).items())), indent=1)
    write_text_atomically(file, text + "\n")


if __name__ == "__main__":
    main()
