"""``effnetv2 demo``: the practitioner's story on the embedded pictures, told by the verbs themselves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.base.typed import typed
from efficientnetv2.commands import options
from efficientnetv2.commands.crossval import crossval
from efficientnetv2.commands.inspect import inspect
from efficientnetv2.commands.train import train

OUT = Path("runs/demo")
FOLDS = 3

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
    import sys

    from efficientnetv2.commands.screen import Screen

    pictures = embedded()
    screen = Screen(quiet=as_json)
    told = story(pictures, out, seed=seed, workers=workers)
    make_room(out)
    for number, (title, verb, words) in enumerate(told, start=1):
        last = number == len(told)
        screen.say("")
        screen.say(f"Step {number} of {len(told)}: {title}")
        screen.say(typed(["effnetv2", verb.__name__, *words]))
        if verb is crossval:
            screen.say(_outlook_on_folds(out))
        screen.say("")
        with redirect_stdout(sys.stderr) if as_json and not last else nullcontext():
            _do(verb, [*words, "--json"] if as_json and last else words)
    for line in _outlook(pictures, out):
        screen.say(line)


def make_room(out: Path) -> None:
    """Remove what an earlier demonstration left in its own place, ``OUT``; all else is left alone.

    Args:
        out: folder of all that will come out.

    Raises:
        InputError: it holds something else: a run that no demonstration has begun, or files that none makes.
    """
    import shutil

    from efficientnetv2.base.errors import InputError, some
    from efficientnetv2.training.folder import RUN_FILES
    from efficientnetv2.training.runs import refuse_occupied

    if out == OUT and _begun_by_a_demo(out):
        made = {*RUN_FILES, "inspection", "folds"}
        others = sorted({file.name for file in out.iterdir() if file.suffix != ".partial"} - made)
        if others:
            raise InputError(
                f"{out} holds {some(others, 3)} beside an earlier demonstration, and would be replaced as a whole. "
                f"Move that elsewhere, or give the demonstration another folder: effnetv2 demo --out {OUT}2"
            )
        shutil.rmtree(out)
    elif out == OUT and (out / "recipe.yaml").exists():
        raise InputError(
            f"{out} holds a run that no demonstration has begun, so it is left alone. Move it elsewhere, or give the "
            f"demonstration another folder: effnetv2 demo --out {OUT}2"
        )
    refuse_occupied(out)


def _begun_by_a_demo(out: Path) -> bool:
    """Whether the run in a folder was begun by this command, as its beginning says."""
    import json

    try:
        begun = json.loads((out / "beginning.json").read_text(encoding="utf-8"))
        return shlex.split(begun["command"])[:2] == ["effnetv2", "demo"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


Step = tuple[str, Callable[..., None], list[str]]


def story(pictures: Path, out: Path, *, seed: int, workers: int | None) -> list[Step]:
    """The steps: what each is for, its verb, the words that one types.

    Args:
        pictures: the table.
        out: folder of all that comes out.
        seed: of everything random.
        workers: processes that read pictures; None lets each verb choose.

    Raises:
        InputError: the weights are not beside the pictures.
    """
    data, weights = str(pictures), str(_starter(pictures))
    machine = ["--device", "cpu", *([] if workers is None else ["--workers", str(workers)])]
    seeded, folds = ["--seed", str(seed)], ["--by", "place", "--folds", str(FOLDS)]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
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
    import json

    from efficientnetv2.commands.screen import duration

    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    learnt = (FOLDS - 1) * (
        told["train_pictures"] + told["pictures"]
    )  # every picture by all folds but its own
    seconds = told["wall_s"] * learnt / told["train_pictures"]
    return f"Its {FOLDS} runs train for about {duration(seconds)}, by how long that of step 2 did; probes come on top."


def _outlook(pictures: Path, out: Path) -> Iterable[str]:
    program = _program()
    return (
        "",
        "Open, in this order:",
        f"  {out / 'folds' / 'report.html'}   how good, how sure, in a new place, what it confuses, where it looks",
        f"  {out / 'inspection' / 'inspection.html'}   what is the matter with the pictures",
        f"  {out / 'report.html'}   the one network to use, its training",
        "Next:",
        f"  {typed([*program, 'predict', str(out), str(pictures.parent / 'pictures')])}",
        f"  {typed([*program, 'train', 'YOUR_PICTURES'])}",
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
    from efficientnetv2.base.errors import InputError

    weights = _from_here(pictures.absolute().parents[1] / "weights/efficientnetv2_b0.safetensors")
    if not weights.is_file():
        raise InputError(
            f"{weights} is not there, the weights that the demonstration begins with. They come with the repository: "
            "git checkout examples/weights"
        )
    return weights


def embedded(*, otherwise: str = "train on pictures of your own: effnetv2 train DATA") -> Path:
    """The pictures of the clone that this is run in, or of the one it was installed from.

    Args:
        otherwise: what one can do without them.

    Raises:
        InputError: there is no clone.
    """
    from efficientnetv2.base.errors import InputError

    places = [Path.cwd(), *Path.cwd().parents[:2], Path(__file__).resolve().parents[3]]
    for place in places:
        if (place / "examples/land_cover/pictures.csv").exists():
            return _from_here(place / "examples/land_cover/pictures.csv")
    raise InputError(
        "The demonstration pictures are not here: they come with the repository, not with the installed package. "
        f"Run it in a clone, or {otherwise}."
    )
