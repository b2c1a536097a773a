"""Peers of ``newcomer``: each trains on folders of images from the same weights, then predicts the test images.

Run: python -m benchmarks.newcomer_sides SIDE JOB

JOB is a JSON text with the fields of ``Job``. The interpreter needs torch and the library of the side. fastai and
timm's script train for a number of epochs. A pilot of some steps measures how many epochs fit into the minutes. The
pilot and the prediction do not count as time of the side.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
BATCH_SIZE, WORKERS, PILOT_STEPS = 64, 2, 12  # the batch size is the default of fastai
MODEL = "tf_efficientnetv2_b0"
LIBRARIES = ("torchvision", "numpy", "pillow", "scikit-learn")  # whose versions are kept, with torch
# A validation step has no backward pass. Ours.
_VALIDATION_STEP = 1 / 3

Predict = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Job:
    """Inputs of a side: each side has the same images, weights and minutes.

    Args:
        images: Folder with train/ and val/, each with a folder per class.
        test: CSV file with the columns path, file and true_label.
        weights: Folder of a timm model without a classifier.
        out: Folder for predictions.csv and side.json.
        minutes: Time for training.
        seed: Random seed.
        timm_train: train.py of timm; only the side ``timm`` needs it.
        timm_lr: Learning rate of timm.
    """

    images: str
    test: str
    weights: str
    out: str
    minutes: float
    seed: int
    timm_train: str = ""
    timm_lr: str = "5e-4"

    @property
    def file(self) -> str:
        """File of the weights."""
        return f"{self.weights}/model.safetensors"

    @property
    def image_size(self) -> int:
        """Image size of the weights."""
        config = json.loads(Path(self.weights, "config.json").read_text(encoding="utf-8"))
        return int(config["pretrained_cfg"]["input_size"][1])

    @property
    def labeled(self) -> tuple[list[str], list[str]]:
        """All training images and their labels."""
        files = sorted(Path(self.images).glob("*/*/*"))
        return list(map(str, files)), [file.parent.name for file in files]

    def epochs(self, epoch_s: float, pilot_s: float) -> int:
        """Number of epochs nearest to the time that is left."""
        return max(1, round((60 * self.minutes - (time.monotonic() - BEGAN - pilot_s)) / epoch_s))


def fit_probe(job: Job) -> tuple[Predict, dict[str, Any]]:
    """Logistic regression on the features of the weights; an inner cross-validation chooses the penalty."""
    import timm
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = timm.create_model(f"local-dir:{job.weights}", pretrained=True)
    files, labels = job.labeled
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1]},
        cv=StratifiedKFold(3, shuffle=True, random_state=job.seed),
    )
    search.fit(_outputs(model, files), labels)
    return lambda files: search.predict(_outputs(model, files)).tolist(), {"chosen": search.best_params_}


def train_fastai(job: Job) -> tuple[Predict, dict[str, Any]]:
    """``vision_learner(...).fine_tune(epochs)`` with the default learning rate and augmentation."""
    from fastai.vision import all as vision

    class Pilot(vision.Callback):
        """Record the times after the first training steps, then stop."""

        def before_fit(self) -> None:
            self.times: list[float] = []

        def after_batch(self) -> None:
            if self.training:
                self.times.append(time.monotonic())
            if len(self.times) > PILOT_STEPS:
                raise vision.CancelFitException

    def learner() -> Any:
        vision.set_seed(job.seed)
        data = vision.ImageDataLoaders.from_folder(
            job.images, valid="val", item_tfms=vision.Resize(job.image_size), batch_tfms=vision.aug_transforms(),
            bs=BATCH_SIZE, num_workers=WORKERS,
        )  # fmt: skip
        overlay = {"file": job.file, "num_classes": -1}
        return vision.vision_learner(data, MODEL, metrics=vision.accuracy, pretrained_cfg_overlay=overlay)

    started, pilot, learn = time.monotonic(), Pilot(), learner()
    learn.unfreeze()
    learn.fit(1 + PILOT_STEPS, cbs=pilot)  # enough with one step per epoch
    steps = len(learn.dls.train) + _VALIDATION_STEP * len(learn.dls.valid)
    pilot_s = time.monotonic() - started
    step_s = statistics.median(later - earlier for earlier, later in pairwise(pilot.times))
    epochs = max(2, job.epochs(steps * step_s, pilot_s))
    learn = learner()
    learn.fine_tune(epochs - 1)  # after one epoch with a frozen backbone

    def predict(files: list[str]) -> list[str]:
        scores = learn.get_preds(dl=learn.dls.test_dl(files))[0]
        return [learn.dls.vocab[row] for row in scores.argmax(dim=1).tolist()]

    return predict, {"epochs": epochs, "pilot_s": pilot_s, "fastai": version("fastai")}


def train_autogluon(job: Job) -> tuple[Predict, dict[str, Any]]:
    """``MultiModalPredictor.fit`` with preset medium_quality, from these weights instead of the preset's."""
    import pandas as pd
    import torch
    from autogluon.multimodal import MultiModalPredictor
    from safetensors.torch import load_file

    torch.save(load_file(job.file), Path(job.weights, "pytorch_model.bin"))  # AutoGluon reads no other name
    files, labels = job.labeled
    predictor = MultiModalPredictor(label="label", path=f"{job.out}/autogluon")
    predictor.fit(
        pd.DataFrame({"image": files, "label": labels}), presets="medium_quality", seed=job.seed,
        time_limit=60 * job.minutes - (time.monotonic() - BEGAN),
        hyperparameters={"model.timm_image.checkpoint_name": job.weights},
    )  # fmt: skip
    return (
        lambda files: predictor.predict(pd.DataFrame({"image": files}), as_pandas=False).tolist(),
        {"autogluon": version("autogluon.multimodal")},
    )


def train_timm(job: Job) -> tuple[Predict, dict[str, Any]]:
    """Run train.py of timm with its options for speed.

    Optimizer, schedule and crops are usual for fine-tuning, and were not tuned here. The result has the top-1 on the
    validation images (``val_top1``), by which ``newcomer`` can choose the learning rate.
    """
    import timm
    import torch
    from benchmarks.peers_training import Timm, top1_of
    from timm.data import create_dataset

    from efficientnetv2.utils.device import lower_precision

    bf16 = ("--amp", "--amp-dtype", "bfloat16") if lower_precision(torch.device("cpu")) else ()
    parts: dict[str, tuple[str, ...]] = {
        "weights": ("--pretrained", "--pretrained-path", job.file),
        "optimizer": ("--opt", "adamw", "--opt-kwargs", "fused=True", "--lr", job.timm_lr, "--weight-decay", "0.05"),
        "schedule": ("--warmup-epochs", "1"),
        "augmentation": ("--scale", "0.35", "1", "--drop", "0.2"),
        "loading": ("--batch-size", str(BATCH_SIZE), "--workers", str(WORKERS)),
        "speed": ("--channels-last", *bf16),  # the fastest without compilation (benchmarks.epoch)
    }
    script = Timm(Path(job.timm_train), job.image_size, parts=parts)
    out, images = Path(job.out, "timm"), Path(job.images)
    started = time.monotonic()
    epoch_s = _epoch_s(
        script.with_part("log", ("--log-interval", "1")).command(images, epochs=99, seed=job.seed, output=out / "pilot")
    )
    pilot_s = time.monotonic() - started
    epochs = job.epochs(epoch_s, pilot_s)
    if epochs < 3:
        script = script.with_part("schedule", ("--warmup-epochs", "0"))
    subprocess.run(script.command(images, epochs=epochs, seed=job.seed, output=out / "run"), check=True)
    classes = sorted((found := create_dataset("", root=job.images, split="train").reader.class_to_idx), key=found.get)
    [last] = (out / "run").glob("*/last.pth.tar")
    val_top1 = top1_of(last.with_name("summary.csv"))
    model = timm.create_model(MODEL, num_classes=len(classes), checkpoint_path=str(last))
    size = (3, job.image_size, job.image_size)
    return (
        lambda files: [classes[row] for row in _outputs(model, files, input_size=size).argmax(axis=1)],
        {
            "epochs": epochs,
            "pilot_s": pilot_s,
            "lr": job.timm_lr,
            "precision": "bf16" if bf16 else "fp32",
            "val_top1": val_top1,
        },
    )


def _outputs(model: Any, files: list[str], **args: Any) -> Any:
    """(N, D) outputs of a timm model, with the preprocessing of timm."""
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(args, model=model))
    batches = torch.utils.data.DataLoader(
        [*files], BATCH_SIZE, num_workers=WORKERS,
        collate_fn=lambda paths: torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]),
    )  # fmt: skip
    with torch.inference_mode():
        return torch.cat([model.eval()(batch) for batch in batches]).numpy()


def _epoch_s(command: Sequence[str]) -> float:
    """Return the seconds of an epoch of timm's script, stopped after some steps. RuntimeError if it ends before."""
    steps, seconds, last = 0, [], deque(maxlen=20)
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **piped) as run:
        for line in run.stdout:
            print(line, end="")
            last.append(line)
            if found := re.search(r"Train: \d+ \[ *\d+/(\d+) .*Time: ([\d.]+)s", line):
                steps, seconds = int(found[1]), [*seconds, float(found[2])]
            if len(seconds) > PILOT_STEPS:
                os.killpg(run.pid, signal.SIGTERM)
                break
        else:
            raise RuntimeError("".join(last))
    return steps * statistics.median(seconds[1:])


SIDES = {"probe": fit_probe, "fastai": train_fastai, "autogluon": train_autogluon, "timm": train_timm}


def main() -> None:
    import pandas as pd
    import torch

    side, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    torch.manual_seed(job.seed)
    shutil.rmtree(job.out, ignore_errors=True)  # of an interrupted run
    Path(job.out).mkdir(parents=True)
    test = pd.read_csv(job.test, dtype=str, keep_default_na=False)
    predict, facts = SIDES[side](job)
    facts["wall_s"] = round(time.monotonic() - BEGAN - facts.pop("pilot_s", 0), 1)
    test["predicted_label"] = predict(test.pop("file").tolist())
    test.to_csv(Path(job.out, "predictions.csv"), index=False)
    facts |= {"image_size": job.image_size, "torch": torch.__version__}
    facts |= {library: version(library) for library in ("timm", *LIBRARIES)}
    Path(job.out, "side.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
