"""``effnetv2 demo``: the whole story on the embedded pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efficientnetv2.commands import options

OUT = Path("runs/demo")

# Satellites have no upright; the three classes are far from equally frequent; the cause of the loss stands at the
# picture's centre, so crops keep most of it. Small pictures leave time for many epochs; three tenths held out make
# the interval narrow enough to tell something.
SETTINGS = (
    "epochs=80",
    "holdout=0.3",
    "balance=sqrt",
    "augment.flip=symmetries",
    "crop_area_min=0.6",
    "progressive.image_px={start: 48, end: 96}",
    "progressive.px_multiple=16",
    "validate_epochs=20",
)


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an earlier demo in runs/demo is replaced.")
    ] = OUT,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Train on 600 satellite pictures that come with the repository, and show what comes out.

    Three classes of land cover after forest loss, imbalanced, from scratch, on a CPU in a few minutes.
    Run it in a clone of the repository; it writes runs/demo/.
    """
    import os
    import shlex
    import shutil
    import sys

    from efficientnetv2.commands.beginning import Place
    from efficientnetv2.commands.prepare import Source
    from efficientnetv2.commands.screen import Screen
    from efficientnetv2.commands.train_job import train_and_report
    from efficientnetv2.commands.words import Words

    pictures = embedded()
    screen = Screen(quiet=as_json)
    if out == OUT and (out / "recipe.yaml").exists():
        shutil.rmtree(out)  # only the demo's own place is cleared
    words = Words(recipe="quick", seed=seed, settings=SETTINGS)
    place = Place(out=out, device="cpu", workers=workers, as_json=as_json)
    command = [
        "effnetv2",
        "train",
        str(pictures),
        "--recipe",
        "quick",
        "--seed",
        str(seed),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    screen.say(shlex.join([*command, *(word for setting in SETTINGS for word in ("--set", setting))]))
    train_and_report(words, Source(str(pictures)), place)
    screen.say("")
    screen.say("Next:")
    screen.say(f"  open {out / 'report.html'}")
    program = "effnetv2" if shutil.which("effnetv2") else os.path.relpath(sys.argv[0])
    screen.say(f"  {program} predict {out} {pictures.parent / 'pictures'}")
    screen.say(f"  {program} train YOUR_PICTURES")


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
            found = place / "examples/land_cover/pictures.csv"
            return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
    raise InputError(
        "The demonstration pictures are not here: they come with the repository, not with the installed package. "
        f"Run it in a clone, or {otherwise}."
    )
