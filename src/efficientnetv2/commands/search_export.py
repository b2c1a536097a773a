"""What ``search export`` does: write a network found as a file, and say how it is trained."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from efficientnetv2.arch import files
from efficientnetv2.arch.growth import Grown, grow, growth_of
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.typed import typed
from efficientnetv2.commands.replacing import refuse_others, tell_replaced
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.search_screen import figures
from efficientnetv2.commands.search_show import Read
from efficientnetv2.commands.words import Words, begin_recipe
from efficientnetv2.nas.results import Row, best

# The head of a file that was written here: whose network it is, and how it was grown.
_WRITTEN = re.compile(r"# Trial (?P<trial>\d+) of the search [^\n]*(?:\n# Grown by (?P<grown>\S+): )?")


def export_found(
    path: Path, storage: str | None, wait: float, *, out: Path | None, trial: int | None, grown_by: str | None
) -> None:
    """Write a network as a file.

    Raises:
        InputError: there is no study, no such trial, no such way to grow, the file can't be written, or the study's own
            has been changed by hand.
    """
    screen = Screen()
    if grown_by is not None:
        growth_of(grown_by)  # refused before the study is read
    read = Read.of(path, storage, wait, screen)
    if trial is None:
        row = best(read.rows)[0]
    else:
        row = next((one for one in read.rows if one.number == trial), None) or _missing(trial, read)
    network, told, larger = _exported(read, row, grown_by)
    target = _place(read, out)
    tell_replaced(target, screen)
    files.write(target, network, comment=told)
    screen.say(f"{told}.")
    screen.say(f"Written: {target}")
    if read.folder.pictures_file.exists():
        sized = [] if larger is None else _sizes(larger)
        words = ["effnetv2", "train", str(read.folder.pictures_file), "--model", str(target), *sized]
        words += _bands(read)
        # Else those that chose among networks, which the table calls minival, would be left aside.
        words += ["--set", "minival=0.1"]
        screen.say(f"Train it fully, judged by pictures that the search did not see: {typed(words)}")


def _exported(read: Read, row: Row, grown_by: str | None) -> tuple[Architecture, str, Grown | None]:
    """The network of a trial as it is written, what its file says of it, and what it was grown to."""
    plan = read.study.plan
    network = plan.space.decode(row.point)
    told = f"Trial {row.number} of the search {read.study.name}: {figures(row.measurement)}; reward {row.reward:.4f}"
    if grown_by is None:
        return network, told, None
    eval_px = plan.recipe.eval_px or plan.recipe.progressive.last.image_px
    larger = grow(network, growth_of(grown_by), eval_px=eval_px)
    sizes = f"for pictures of {larger.eval_px} px, which training ends at {larger.train_px} px for"
    return larger.architecture, f"{told}.\nGrown by {grown_by}: {sizes}", larger


def _bands(read: Read) -> list[str]:
    """Words of ``train`` for the bands that the networks were compared on; the list of pictures does not say them."""
    bands = read.study.plan.bands
    if bands is None and read.folder.file.exists():  # begun before plans kept them
        said = read.folder.source().bands
    else:
        said = ",".join(map(str, bands or ())) or None
    return [] if said is None else ["--bands", said]


def _sizes(grown: Grown) -> list[str]:
    """Words of ``train`` for the pictures of a larger network; they begin at its stride where they would below it."""
    train_px, stride = grown.train_px, grown.architecture.stride
    words = Words(model=grown.architecture, image_px=train_px)
    recipe, _ = begin_recipe(words, torch.device("cpu"), lambda line: None)
    said = ["--image-px", str(train_px), "--set", f"eval_px={grown.eval_px}"]
    if recipe.progressive.stage(0).image_px < stride:
        said += ["--set", f"progressive.image_px={{start: {stride}, end: {train_px}}}"]
    return said


def _place(read: Read, out: Path | None) -> Path:
    why = "a network's table may have been changed by hand"
    if out is None:
        folder = read.folder
        folder.make()  # of a study that other machines work for there may be none here
        found = folder.path / "found.yaml"
        if found.exists() and not _as_written(read, found):
            raise InputError(
                f"{found} is not as it was exported: {why}, and would be lost. Give another file (--out), or remove it."
            )
        return found
    if not files.is_architecture_file(str(out)):
        raise InputError(
            f"--out {out}: give a file that ends in .yaml, .yml or .json, so that train knows it."
        )
    refuse_others(out, "--out", lambda file: False, why)
    return out


def _as_written(read: Read, file: Path) -> bool:
    """Whether a file is to the letter what an export of the trial that its head names writes."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    head = _WRITTEN.match(text)
    row = None if head is None else next((one for one in read.rows if str(one.number) == head["trial"]), None)
    if head is None or row is None:
        return False
    try:
        network, told, _ = _exported(read, row, head["grown"])
    except InputError:  # no such way to grow
        return False
    return text == files.text_of(network, comment=told)


def _missing(trial: int, read: Read) -> Row:
    numbers = [row.number for row in read.rows]
    there = f"0 to {max(numbers)}" if numbers else "none"
    raise InputError(f"--trial {trial}: no such trial has ended; there are {there}.")
