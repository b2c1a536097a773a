"""``effnetv2 demo``: the practitioner's story on the embedded pictures, told by the verbs themselves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.check import inspect
from efficientnetv2.cli.crossval import crossval
from efficientnetv2.cli.train import train
from efficientnetv2.utils.shell import shell_join

OUT = Path("runs/demo")
FOLDS = 3
IMAGES = 600  # of the demonstration

# Satellites have no upright; the cause of the loss stands at the picture's centre, so crops keep most of it and the
# centre's features stand beside the pooled ones; colour is evidence. The head comes first (a linear probe on embeddings
# that are computed once), then all of it is tuned for as many epochs as leave time for the folds. The three classes are
# far from equally frequent. Chosen on 444 other pictures of the same source (docs/land_cover.md), not on these.
SETTINGS = (
    "balance=sqrt",
    "classifier=probe",
    "pooling=mean+centre",
    "frozen_statistics=false",
    "optimizer.lr=0.001",
    "optimizer.head_lr=1",
    "augment.flip=symmetries",
    "progressive.image_px={start: 64, end: 128}",
    "epochs=6",
    "validate_epochs=6",
)
# Seconds of the whole demonstration on two cores with AVX-512, those of them that epochs decide, and a training step of
# 32 images at 64 px there. Source: benchmarks/results/land_cover_demo.
_WHOLE_S, _EPOCHS_S, _STEP_S = 152.0, 103.0, 0.14
# Seconds with one epoch and without the cross-validation, there. Ours: two fifths of the rest, a sixth of the training.
_SHORTEST_S = 24.0
# At most so long, as far as that can be estimated; with at most so many epochs. Ours.
MOST_S, _EPOCHS = 360.0, 6


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder of all that comes out; an earlier demo in runs/demo is replaced.")
    ] = OUT,
    seed: Annotated[int, typer.Option(help="Number that fixes everything random.")] = 0,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Inspect, train, cross-validate and report on 600 satellite pictures that come with the repository.

    Three classes of land cover after forest loss, with place and year, imbalanced; from weights that come with the
    repository too, on a CPU in a few minutes, without a network. Each step is a command of its own, printed before it
    runs; docs/land_cover.md tells what they show. Run it in a clone; it writes runs/demo/. With --json the last step
    answers.

    Examples:
    - `effnetv2 demo`
    - `effnetv2 demo --out my_demo --seed 1`
    """
    import json
    import sys
    import time

    from efficientnetv2.cli.console import Screen, print_json
    from efficientnetv2.utils.errors import format_duration

    pictures = embedded()
    screen = Screen(quiet=as_json)
    epochs, seconds = affordable(slowness() * _images(pictures) / IMAGES)
    told = story(pictures, out, seed=seed, workers=workers, epochs=epochs)
    make_room(out)
    screen.say(f"Time: about {format_duration(seconds)} on this machine")
    if epochs < _EPOCHS:
        screen.say(f"Epochs: {epochs} instead of {_EPOCHS} (for at most {format_duration(MOST_S)})")
    began = time.monotonic()
    for number, (title, verb, words) in enumerate(told, start=1):
        last = number == len(told)
        screen.say("")
        screen.say(f"Step {number} of {len(told)}: {title}")
        screen.say(shell_join(["effnetv2", verb.__name__, *words]))
        if verb is crossval:
            screen.say(_outlook_on_folds(out))
            if time.monotonic() - began + _folds_s(out) > MOST_S:
                screen.say(
                    f"Skipped (the demo would take more than {format_duration(MOST_S)}). To run it, type the command."
                )
                if as_json:
                    print_json(json.loads((out / "report.json").read_text(encoding="utf-8")))
                break
        screen.say("")
        with redirect_stdout(sys.stderr) if as_json and not last else nullcontext():
            _do(verb, [*words, "--json"] if as_json and last else words)
    for line in _outlook(pictures, out):
        screen.say(line)


def slowness() -> float:
    """How many times as long a training step takes here as on the machine that the demonstration was timed on."""
    import time

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
    """The epochs for which there is time, and the seconds that the demonstration takes with them.

    Where there is no time for the cross-validation, the seconds are those without it.

    Args:
        slow: How many times as long it takes as on the machine that it was timed on.
    """
    others, each = slow * (_WHOLE_S - _EPOCHS_S), slow * _EPOCHS_S / _EPOCHS
    epochs = max(1, min(_EPOCHS, int((MOST_S - others) / each)))
    seconds = others + epochs * each
    return epochs, seconds if seconds <= MOST_S else slow * _SHORTEST_S


def _images(table: Path) -> int:
    """Rows of a table."""
    import pandas as pd

    return len(pd.read_csv(table, usecols=["path"]))


def make_room(out: Path) -> None:
    """Remove what an earlier demonstration left in its own place, ``OUT``; all else is left alone.

    Args:
        out: folder of all that will come out.

    Raises:
        InputError: it holds something else: a run that no demonstration has begun, or files that none makes.
    """
    import shutil

    from efficientnetv2.training.run_dir import RUN_FILES
    from efficientnetv2.training.run_lock import validate_new_run_dir
    from efficientnetv2.utils.errors import InputError, shorten

    if out == OUT and _begun_by_a_demo(out):
        made = {*RUN_FILES, "inspection", "folds"}
        others = sorted({file.name for file in out.iterdir() if file.suffix != ".partial"} - made)
        if others:
            raise InputError(
                f"{out} holds {shorten(others, 3)} beside an earlier demonstration, and would be replaced as a whole. "
                f"Move that elsewhere, or give the demonstration another folder: effnetv2 demo --out {OUT}2"
            )
        shutil.rmtree(out)
    elif out == OUT and (out / "recipe.yaml").exists():
        raise InputError(
            f"{out} holds a run that no demonstration has begun, so it is left alone. Move it elsewhere, or give the "
            f"demonstration another folder: effnetv2 demo --out {OUT}2"
        )
    validate_new_run_dir(out)


def _begun_by_a_demo(out: Path) -> bool:
    """Whether the run in a folder was begun by this command, as its beginning says."""
    import json

    try:
        begun = json.loads((out / "beginning.json").read_text(encoding="utf-8"))
        return shlex.split(begun["command"])[:2] == ["effnetv2", "demo"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


Step = tuple[str, Callable[..., None], list[str]]


def story(pictures: Path, out: Path, *, seed: int, workers: int | None, epochs: int = _EPOCHS) -> list[Step]:
    """The steps: what each is for, its verb, the words that one types.

    Args:
        pictures: the table.
        out: folder of all that comes out.
        seed: of everything random.
        workers: processes that read pictures; None lets each verb choose.
        epochs: Epochs of each run.

    Raises:
        InputError: the weights are not beside the pictures.
    """
    data, weights = str(pictures), str(_starter(pictures))
    machine = ["--device", "cpu", *([] if workers is None else ["--workers", str(workers)])]
    seeded, folds = ["--seed", str(seed)], ["--by", "place", "--folds", str(FOLDS)]
    fewer = (setting.replace(f"epochs={_EPOCHS}", f"epochs={epochs}") for setting in SETTINGS)
    settings = [word for setting in fewer for word in ("--set", setting)]
    return [
        (
            "what is the matter with the pictures, before anything learns them",
            inspect,
            [data, "--out", str(out / "inspection")],
        ),
        (
            "from the weights that come with the repository to these classes, the rare one brought forward",
            train,
            [
                data,
                "--weights",
                weights,
                "--recipe",
                "finetune",
                *seeded,
                "--out",
                str(out),
                *machine,
                *settings,
            ],
        ),
        (
            "how good is that recipe where no network has been? Every picture answered once, whole places held out",
            crossval,
            [data, "--recipe", str(out / "recipe.yaml"), *folds, "--out", str(out / "folds"), *machine],
        ),
    ]


def _do(verb: Callable[..., None], words: list[str]) -> None:
    """What the program does with these words; errors and Ctrl-C come through, which ``main`` of Typer would swallow."""
    alone = typer.Typer(add_completion=False)
    alone.command()(verb)
    command = typer.main.get_command(alone)
    with command.make_context(verb.__name__, list(words)) as context:
        command.invoke(context)


def _outlook_on_folds(out: Path) -> str:
    """How long the folds' runs will train, as a sentence: like the one run before them, each on its part of all.

    Args:
        out: folder of that run, whose report says how long it took.
    """
    from efficientnetv2.utils.errors import format_duration

    how = "by how long that of step 2 did; probes come on top."
    return f"Its {FOLDS} runs train for about {format_duration(_folds_s(out))}, {how}"


def _folds_s(out: Path) -> float:
    """Seconds that the folds' runs will train, by those of the run before them."""
    import json

    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    # Every image by all folds but its own.
    learnt = (FOLDS - 1) * (told["train_pictures"] + told["pictures"])
    return float(told["wall_s"] * learnt / told["train_pictures"])


def _outlook(pictures: Path, out: Path) -> Iterable[str]:
    program, folds = _program(), out / "folds" / "report.html"
    return (
        "",
        "Open, in this order:",
        *(
            [f"  {folds}   how good, how sure, in a new place, what it confuses, where it looks"]
            if folds.exists()
            else []
        ),
        f"  {out / 'inspection' / 'inspection.html'}   what is the matter with the pictures",
        f"  {out / 'report.html'}   the one network to use, its training",
        "Next:",
        f"  {shell_join([*program, 'predict', str(out), str(pictures.parent / 'pictures')])}",
        f"  {shell_join([*program, 'train', 'YOUR_PICTURES'])}",
        "  docs/land_cover.md tells the story, and how it goes on to maps",
    )


def _program() -> list[str]:
    """This program, as one types it here."""
    import shutil
    import sys

    if shutil.which("effnetv2"):
        return ["effnetv2"]
    if Path(sys.argv[0]).name == "__main__.py":  # which nobody can run by its path
        return ["python", "-m", "efficientnetv2"]
    return [str(_from_here(Path(sys.argv[0]).absolute()))]


def _from_here(path: Path) -> Path:
    """An absolute path as one types it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _starter(pictures: Path) -> Path:
    from efficientnetv2.utils.errors import InputError

    weights = _from_here(pictures.absolute().parents[1] / "weights/efficientnetv2_b0.safetensors")
    if not weights.is_file():
        raise InputError(
            f"{weights} is not there, the weights that the demonstration begins with. They come with the repository: "
            "git checkout examples/weights"
        )
    return weights


def embedded() -> Path:
    """The pictures of the clone that this is run in, or of the one it was installed from.

    Raises:
        InputError: there is no clone.
    """
    from efficientnetv2.utils.errors import InputError

    places = [Path.cwd(), *Path.cwd().parents[:2], Path(__file__).resolve().parents[3]]
    for place in places:
        if (place / "examples/land_cover/pictures.csv").exists():
            return _from_here(place / "examples/land_cover/pictures.csv")
    raise InputError(
        "The demonstration pictures are not here: they come with the repository, not with the installed package. "
        "Run it in a clone, or train on pictures of your own: effnetv2 train DATA."
    )
