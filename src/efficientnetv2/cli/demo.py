"""``effnetv2 demo``: check and train on the bundled images, by the commands themselves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import option
from efficientnetv2.utils.errors import InputError, shorten
from efficientnetv2.utils.io import entry_names, shown_path
from efficientnetv2.utils.shell import option_args, shell_join

OUT = Path("runs/demo")
WEIGHTS = Path("weights/efficientnetv2_b0.safetensors")  # in the folder examples
# Of the training. Ours: with the check two minutes on two cores with AVX-512, eight on two without.
EPOCHS = 12


def demo(
    context: typer.Context,
    out: Annotated[Path, option("Folder; an earlier demo in runs/demo is deleted.", "FOLDER", "--output")] = OUT,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Check and train on 2,500 bundled satellite images.

    It takes two to eight minutes on two CPU cores, and needs no network connection.
    Each step is a command, printed before it runs.

    Examples:
    - `effnetv2 demo`
    - `effnetv2 demo --output my_demo --seed 1`
    """
    images = bundled_images()
    screen = Screen(quiet=as_json)
    steps = story(images, out, seed=seed, workers=workers)
    make_room(out)
    for number, (title, command, words) in enumerate(steps, start=1):
        is_last = number == len(steps)
        screen.say(f"\nStep {number} of {len(steps)}: {title}")
        screen.say(shell_join(["effnetv2", command, *words]))
        screen.say("")
        with redirect_stdout(sys.stderr) if as_json and not is_last else nullcontext():
            run(context, command, [*words, "--json"] if as_json and is_last else words)
    for line in next_lines(out):
        screen.say(line)


def run(context: Any, name: str, words: list[str]) -> None:
    """Run a command of the program with these words; its errors end the demo as they end the command."""
    command = context.find_root().command.commands[name]
    with command.make_context(name, list(words)) as own:
        command.invoke(own)


def make_room(out: Path) -> None:
    """Remove an earlier demo in its own place, ``OUT``."""
    from efficientnetv2.training.run_dir import RUN_FILES, is_running, validate_new_run_dir

    fix = f"Move it, or use another folder: effnetv2 demo --output {OUT}2"
    if out == OUT and _is_demo(out):
        if is_running(out):
            raise InputError(f"{out} has a demo that another process is running. Wait until it ends.")
        names = {name for name in entry_names(out) if not name.endswith(".partial")}
        others = sorted(names - {*RUN_FILES, "inspection"})
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


def story(images: Path, out: Path, *, seed: int, workers: int | None) -> list[tuple[str, str, list[str]]]:
    """The steps: a title, a command, and its words."""
    weights = shown_path(images.absolute().parent / WEIGHTS)
    train = option_args(weights=weights, epochs=EPOCHS, seed=seed, output=out, workers=workers)
    return [
        ("check the images", "check", [str(images), "--output", str(out / "inspection")]),
        (f"train for {EPOCHS} epochs from the bundled weights", "train", [str(images), *train]),
    ]


def next_lines(out: Path) -> Iterator[str]:
    """What to open, and what to type next."""
    yield "\nOpen:"
    yield f"  {out / 'report.html'}   report of the model"
    yield f"  {out / 'inspection' / 'inspection.html'}   dataset check"
    yield "Next:"
    yield f"  {shell_join(['effnetv2', 'predict', str(out), 'NEW_IMAGES'])}"
    yield f"  {shell_join(['effnetv2', 'train', 'YOUR_IMAGES'])}"


def bundled_images() -> Path:
    """The folder of images in the clone that this is run in, or of the package; the weights are in both."""
    from efficientnetv2.training.initial_weights import EXAMPLES

    for place in [*(folder / "examples" for folder in (Path.cwd(), *Path.cwd().parents[:2])), EXAMPLES]:
        if (place / "satellite").is_dir() and (place / WEIGHTS).is_file():
            return Path(shown_path(place / "satellite"))
    raise InputError(
        f"{EXAMPLES} has no satellite/ or no {WEIGHTS}. In a clone: git checkout examples. Otherwise install again."
    )
