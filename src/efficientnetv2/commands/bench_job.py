"""What ``bench`` does: sides in turn, tables, JSON."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from torch import Tensor

from efficientnetv2.base.errors import count_of
from efficientnetv2.base.timing import alternate, waiting
from efficientnetv2.commands.bench_input import CACHED, Reading, able, one_core
from efficientnetv2.commands.bench_pictures import some_pictures
from efficientnetv2.commands.bench_sides import COLUMNS, OURS, Sides
from efficientnetv2.commands.bench_step import LIBRARIES, Work, our_losses, our_recipe, peers
from efficientnetv2.commands.bench_train import WARM_UP, fair_steps, loops, trained
from efficientnetv2.commands.outcome import versions
from efficientnetv2.commands.screen import Screen, answer
from efficientnetv2.commands.source import Source
from efficientnetv2.inference.accelerate import few_enough

# Pictures that steps are trained on, so that not all of a large set has to be looked at first. Ours.
_MOST_TRAINED = 1024


@dataclass(frozen=True)
class Steps(Sides):
    """Steps of all sides, measured.

    Args:
        note: what was chosen for ours.
        first_s: of the first step, which compiles what is to be compiled.
    """

    note: str
    first_s: dict[str, float]

    def side_json(self, side: str) -> dict[str, Any]:
        """The first step too."""
        return super().side_json(side) | {"first_step_s": self.first_s[side]}

    def to_json(self) -> dict[str, Any]:
        """The choice too."""
        return {"choice": self.note} | super().to_json()


def steps(
    work: Work,
    *,
    rounds: int,
    compiled: bool,
    say: Callable[[str], None],
    libraries: Sequence[str] = LIBRARIES,
) -> Steps:
    """Time a training step of every side, in turn.

    Args:
        work: what each does.
        rounds: that count, after one that does not.
        compiled: the others compiled too.
        say: gets a line for what is being done.
        libraries: whose steps stand beside ours.

    Raises:
        InputError: no such network, or a value outside its range.
    """
    recipe, note = our_recipe(work)
    say(note)
    loops: dict[str, Iterator[Tensor]] = {
        str(peer): peer.losses(work)
        for peer in peers(work, compiled=compiled or recipe.compile is True, libraries=libraries)
    }
    loops[OURS] = our_losses(work, recipe)
    first_s, wait = {}, waiting(work.device)
    for side, loop in loops.items():
        began = time.perf_counter()
        next(loop)
        wait()
        first_s[side] = time.perf_counter() - began
        say(f"{side} begins ({first_s[side]:.1f} s)")
    calls = {side: loop.__next__ for side, loop in loops.items()}
    return Steps(alternate(calls, rounds=rounds, wait=wait), work.batch_images, note, first_s)


def bench_step(work: Work, *, rounds: int, compiled: bool, as_json: bool) -> None:
    """Measure, print a table; with JSON, the answer on stdout.

    Args:
        work: what each side does.
        rounds: that count.
        compiled: the others compiled too.
        as_json: print JSON.

    Raises:
        InputError: no such network, or a value outside its range.
    """
    screen = Screen(quiet=as_json)
    found = steps(work, rounds=rounds, compiled=compiled, say=screen.say)
    if as_json:
        answer(_facts(work, rounds) | found.to_json())
    batch = count_of(work.batch_images, "picture")
    title = f"{work.model}, {work.image_px} px, {batch} a step, {count_of(rounds, 'round')}"
    screen.table(title, COLUMNS, [found.row(side) for side in found.seconds])


def bench_input(
    source: Source | None, *, sizes_px: Sequence[int], most: int, rounds: int, as_json: bool
) -> None:
    """Measure reading and augmenting on one core, print a table for each size; with JSON, the answer on stdout.

    Args:
        source: of the pictures; None takes those that come with a clone.
        sizes_px: sides of the squares.
        most: pictures of a round.
        rounds: that count, after two that do not.
        as_json: print JSON.

    Raises:
        InputError: the pictures can't be had, or there is no memory to keep them decoded.
    """
    screen = Screen(quiet=as_json)
    manifest = some_pictures(source, most=most, least=1, say=screen.say)
    found = {}
    with one_core():
        for image_px in sizes_px:
            sides = able(Reading(manifest, image_px).sides(), screen.say)
            total = len(sides) * (1 + rounds) * len(manifest)
            with screen.counting(f"{image_px} px", total) as counted:
                calls = _counting(sides, len(manifest), counted)
                found[image_px] = Sides(alternate(calls, rounds=rounds), len(manifest))
    if as_json:
        sizes = [{"image_px": px, **_with_cached(measured)} for px, measured in found.items()]
        facts = {"data": manifest.source, "pictures": len(manifest), "rounds": rounds}
        answer(facts | {"versions": _versions(), "sizes": sizes})
    for image_px, measured in found.items():
        title = (
            f"File to augmented batch on one core, {image_px} px, {count_of(len(manifest), 'picture')}, "
            f"{count_of(rounds, 'round')}"
        )
        rows = [
            [*measured.row(side), f"{measured.ahead_of(side, ours=CACHED).median:.2f}"]
            for side in measured.seconds
        ]
        screen.table(title, [*COLUMNS, "cached by"], rows)


def bench_train(
    work: Work,
    source: Source | None,
    *,
    rounds: int,
    steps: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Measure training with its reading, print a table; with JSON, the answer on stdout.

    Args:
        work: what each side does; its classes are those of the pictures.
        source: of the pictures; None takes those that come with a clone.
        rounds: of each side.
        steps: of a round that count; None takes as many as are fair.
        workers: processes that read; None leaves it to each side.
        as_json: print JSON.

    Raises:
        InputError: the pictures can't be had or are fewer than a batch, or no such network.
    """
    screen = Screen(quiet=as_json)
    workers = None if workers is None else few_enough(workers, say=screen.say)
    manifest = some_pictures(
        source, most=max(_MOST_TRAINED, 2 * work.batch_images), least=work.batch_images, say=screen.say
    )
    work = replace(work, num_classes=len(manifest.class_names))
    steps = fair_steps(work, workers) if steps is None else steps
    total = (1 + len(loops(work, workers))) * rounds * (WARM_UP + steps) * work.batch_images
    with screen.counting("training", total) as counted:
        found = trained(
            work, manifest, rounds=rounds, steps=steps, workers=workers, say=screen.say, counted=counted
        )
    if as_json:
        facts = {"data": manifest.source, "pictures": len(manifest), "steps": steps}
        answer(_facts(work, rounds) | facts | found.to_json())
    title = (
        f"{work.model}, {work.image_px} px, {count_of(rounds, 'round')} of {count_of(steps, 'step')} of "
        f"{count_of(work.batch_images, 'picture')}"
    )
    rows = [[*found.row(side), f"{100 * found.waiting_share(side).median:.1f} %"] for side in found.seconds]
    screen.table(title, [*COLUMNS, "waiting"], rows)


def _facts(work: Work, rounds: int) -> dict[str, Any]:
    facts = {"model": work.model, "image_px": work.image_px, "batch_images": work.batch_images}
    return facts | {"device": str(work.device), "rounds": rounds, "versions": _versions()}


def _with_cached(sides: Sides) -> dict[str, Any]:
    plain = sides.to_json()
    for side, values in plain["sides"].items():
        values["cached_ahead"] = asdict(sides.ahead_of(side, ours=CACHED))
    return plain


def _counting(
    sides: Mapping[str, Callable[[], None]], images: int, counted: Callable[[int], None]
) -> dict[str, Callable[[], None]]:
    """The sides, each telling how many pictures all of them have done so far."""
    rounds = itertools.count(1)

    def telling(work: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            work()
            counted(next(rounds) * images)

        return call

    return {side: telling(work) for side, work in sides.items()}


def _versions() -> dict[str, str]:
    return versions() | ({"timm": version("timm")} if importlib.util.find_spec("timm") else {})
