"""``effnetv2 demo``: check, train and cross-validate on the bundled images, by the commands themselves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import option
from efficientnetv2.utils.errors import InputError, format_duration, shorten
from efficientnetv2.utils.shell import option_args, shell_join

OUT = Path("runs/demo")
FOLDS = 3
IMAGES = 600  # of the demonstration

# Satellite images have no orientation, their subject is at the center, and color is evidence. The head comes first (a
# linear probe), then all layers are tuned. Chosen on 444 other images of the same source; see
# benchmarks/results/demo_tuning.md.
SETTINGS = (
    "class_sampling=sqrt",
    "head_init=linear_probe",
    "global_pool=avg+center",
    "freeze_bn=false",
    "optimizer.lr=0.001",
    "optimizer.head_lr_mult=1",
    "augment.flip=d4",
    "progressive.image_size={start: 64, end: 128}",
    "epochs=6",
    "val_interval_epochs=6",
)
# Seconds of the whole demonstration on two cores with AVX-512, those of them that epochs decide, and a training step of
# 32 images at 64 px there. Source: benchmarks/results/land_cover_demo.
_WHOLE_S, _EPOCHS_S, _STEP_S = 152.0, 103.0, 0.14
# Seconds with one epoch and without the cross-validation, there. Ours: two fifths of the rest, a sixth of the training.
_SHORTEST_S = 24.0
# At most so long, as far as that can be estimated; with at most so many epochs. Ours.
MOST_S, _EPOCHS = 360.0, 6


def demo(
    context: typer.Context,
    out: Annotated[Path, option("Folder; runs/demo is replaced.", "FOLDER", "--output")] = OUT,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Check, train and cross-validate on 600 bundled satellite images.

    It takes a few minutes on a CPU, without a network, in a clone of the repository. Each step is a command, printed
    before it runs; docs/tutorials/land-cover.md explains them.

    Examples:
    - `effnetv2 demo`
    - `effnetv2 demo --output my_demo --seed 1`
    """
    from efficientnetv2.data.dataset import load_dataset

    images = bundled_images()
    screen = Screen(quiet=as_json)
    epochs, seconds = affordable(slowness() * len(load_dataset(images)) / IMAGES)
    steps = story(images, out, seed=seed, workers=workers, epochs=epochs)
    make_room(out)
    screen.say(f"Time: about {format_duration(seconds)} on this machine")
    if epochs < _EPOCHS:
        screen.say(f"Epochs: {epochs} instead of {_EPOCHS} (for at most {format_duration(MOST_S)})")
    began = time.monotonic()
    for number, (title, command, words) in enumerate(steps, start=1):
        is_last = number == len(steps)
        screen.say(f"\nStep {number} of {len(steps)}: {title}")
        screen.say(shell_join(["effnetv2", command, *words]))
        if command == "crossval":
            folds_s = crossval_seconds(out)
            screen.say(f"Time: about {format_duration(folds_s)} for {FOLDS} runs, and for linear probes")
            if time.monotonic() - began + folds_s > MOST_S:
                limit = format_duration(MOST_S)
                screen.say(f"Skipped (the demo would take more than {limit}). To run it, type the command.")
                if as_json:
                    print_json(json.loads((out / "report.json").read_text(encoding="utf-8")))
                break
        screen.say("")
        with redirect_stdout(sys.stderr) if as_json and not is_last else nullcontext():
            run(context, command, [*words, "--json"] if as_json and is_last else words)
    for line in next_lines(images, out):
        screen.say(line)


def run(context: Any, name: str, words: list[str]) -> None:
    """Run a command of the program with these words; its errors end the demo as they end the command."""
    command = context.find_root().command.commands[name]
    with command.make_context(name, list(words)) as own:
        command.invoke(own)


def slowness() -> float:
    """Time of a training step / its time on the machine where the demo was timed."""
    import torch

    from efficientnetv2.models.factory import create
    from efficientnetv2.utils.device import autocast, lower_precision, place

    cpu = torch.device("cpu")
    network = place(create("efficientnetv2_b0", num_classes=3).train(), cpu)
    images = torch.zeros(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(3):  # the first one prepares the kernels
        began = time.perf_counter()
        with autocast(cpu, lower_precision(cpu) or "fp32"):
            loss = network(images).float().square().mean()
        loss.backward()
        times.append(time.perf_counter() - began)
    return min(times) / _STEP_S


def affordable(slow: float) -> tuple[int, float]:
    """Epochs that fit into the time, and the seconds of the demo, of the shortest one if nothing fits."""
    others, each = slow * (_WHOLE_S - _EPOCHS_S), slow * _EPOCHS_S / _EPOCHS
    epochs = max(1, min(_EPOCHS, int((MOST_S - others) / each)))
    seconds = others + epochs * each
    return epochs, seconds if seconds <= MOST_S else slow * _SHORTEST_S


def make_room(out: Path) -> None:
    """Remove an earlier demo in its own place, ``OUT``."""
    from efficientnetv2.training.run_dir import RUN_FILES
    from efficientnetv2.training.run_paths import validate_new_run_dir

    fix = f"Move it, or use another folder: effnetv2 demo --output {OUT}2"
    if out == OUT and _is_demo(out):
        known = {*RUN_FILES, "inspection", "folds"}
        others = sorted({file.name for file in out.iterdir() if file.suffix != ".partial"} - known)
        if others:
            raise InputError(f"{out} has other files next to an earlier demo ({shorten(others, 3)}). {fix}")
        shutil.rmtree(out)
    elif out == OUT and (out / "recipe.yaml").exists():
        raise InputError(f"{out} has a run that the demo did not make. {fix}")
    validate_new_run_dir(out)


def _is_demo(out: Path) -> bool:
    """Whether the run in a folder was started by this command."""
    try:
        started = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return shlex.split(started["command"])[:2] == ["effnetv2", "demo"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def story(
    images: Path, out: Path, *, seed: int, workers: int | None, epochs: int = _EPOCHS
) -> list[tuple[str, str, list[str]]]:
    """The steps: a title, a command, and its words."""
    weights = _from_here(images.absolute().parents[1] / "weights/efficientnetv2_b0.safetensors")
    if not weights.is_file():
        raise InputError(f"{weights} is missing. In a clone: git checkout examples/weights. Otherwise install again.")
    data, machine = str(images), option_args(device="cpu", workers=workers)
    settings = [setting.replace(f"epochs={_EPOCHS}", f"epochs={epochs}") for setting in SETTINGS]
    train = [data, *option_args(weights=weights, recipe="finetune", seed=seed, output=out), *machine]
    train += [word for setting in settings for word in ("--set", setting)]
    folds = [data, "--recipe", str(out / "recipe.yaml"), "--by", "place", "--folds", str(FOLDS)]
    return [
        ("check the images", "check", [data, "--output", str(out / "inspection")]),
        ("train from the bundled weights, rare classes oversampled", "train", train),
        (
            "cross-validate: predict each image once, with whole locations held out",
            "crossval",
            [*folds, "--output", str(out / "folds"), *machine],
        ),
    ]


def crossval_seconds(out: Path) -> float:
    """Seconds that the folds' runs will train, by those of the run before them."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    # Every image by all folds but its own.
    images = (FOLDS - 1) * (report["num_train_images"] + report["num_images"])
    return float(report["wall_s"] * images / report["num_train_images"])


def next_lines(images: Path, out: Path) -> Iterator[str]:
    """What to open, and what to type next."""
    folds = out / "folds" / "report.html"
    yield "\nOpen, in this order:"
    if folds.exists():
        yield f"  {folds}   cross-validated metrics, with intervals"
    yield f"  {out / 'inspection' / 'inspection.html'}   dataset check"
    yield f"  {out / 'report.html'}   report of the final model"
    yield "Next:"
    yield f"  {shell_join(['effnetv2', 'predict', str(out), str(images.parent / 'pictures')])}"
    yield f"  {shell_join(['effnetv2', 'train', 'YOUR_IMAGES'])}"
    yield "  docs/tutorials/land-cover.md explains each step"


def _from_here(path: Path) -> Path:
    """An absolute path as one types it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def bundled_images() -> Path:
    """The table of images in the clone that this is run in, or of the package."""
    from efficientnetv2.training.initial_weights import EXAMPLES

    for place in [*(folder / "examples" for folder in (Path.cwd(), *Path.cwd().parents[:2])), EXAMPLES]:
        if (place / "land_cover/pictures.csv").exists():
            return _from_here(place / "land_cover/pictures.csv")
    raise InputError(f"{EXAMPLES} has no images. Install efficientnetv2 again.")
