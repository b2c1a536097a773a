"""What ``bench`` does: sides in turn, a table, JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from efficientnetv2.base.timing import Spread, alternate, ratio
from efficientnetv2.commands.bench_step import Work, our_losses, our_recipe, peers
from efficientnetv2.commands.outcome import versions
from efficientnetv2.commands.screen import Screen, answer

OURS = "efficientnetv2"


@dataclass(frozen=True)
class Steps:
    """Steps of all sides, measured.

    Args:
        note: what was chosen for ours.
        seconds: of a step: side -> one per round.
        first_s: of the first step, which compiles what is to be compiled.
        batch_images: of a step.
    """

    note: str
    seconds: dict[str, list[float]]
    first_s: dict[str, float]
    batch_images: int

    def images_per_s(self, side: str) -> Spread:
        """Median and quartiles over the rounds."""
        return Spread.of([self.batch_images / one for one in self.seconds[side]])

    def ahead_of(self, side: str) -> Spread:
        """How many times as fast ours is."""
        return ratio(self.seconds, of=OURS, to=side)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: per side images per second, our ratio over it, and the raw seconds."""
        return {
            "choice": self.note,
            "sides": {
                side: {
                    "images_per_s": asdict(self.images_per_s(side)),
                    "ours_ahead": asdict(self.ahead_of(side)),
                    "first_step_s": self.first_s[side],
                    "seconds": seconds,
                }
                for side, seconds in self.seconds.items()
            },
        }


def steps(work: Work, *, rounds: int, compiled: bool, say: Callable[[str], None]) -> Steps:
    """Time a training step of every side, in turn.

    Args:
        work: what each does.
        rounds: that count, after one that does not.
        compiled: the others compiled too.
        say: gets a line for what is being done.

    Raises:
        InputError: no such network, or a value outside its range.
    """
    recipe, note = our_recipe(work)
    say(note)
    loops: dict[str, Iterator[Tensor]] = {
        str(peer): peer.losses(work) for peer in peers(work, compiled=compiled)
    }
    loops[OURS] = our_losses(work, recipe)
    first_s = {}
    for side, loop in loops.items():
        began = time.perf_counter()
        next(loop)
        first_s[side] = time.perf_counter() - began
        say(f"{side} begins ({first_s[side]:.1f} s)")
    calls = {side: loop.__next__ for side, loop in loops.items()}
    wait = torch.cuda.synchronize if work.device.type == "cuda" else lambda: None
    return Steps(note, alternate(calls, rounds=rounds, wait=wait), first_s, work.batch_images)


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
        facts = {"model": work.model, "image_px": work.image_px, "batch_images": work.batch_images}
        answer(
            facts | {"device": str(work.device), "rounds": rounds, "versions": versions()} | found.to_json()
        )
    rows = [
        [
            side,
            f"{speed.median:.1f}",
            f"{speed.low:.1f} to {speed.high:.1f}",
            f"{found.ahead_of(side).median:.2f}",
        ]
        for side in found.seconds
        for speed in [found.images_per_s(side)]
    ]
    title = f"{work.model}, {work.image_px} px, {work.batch_images} pictures a step, {rounds} rounds"
    screen.table(title, ["side", "images/s", "quartiles", "ours is faster by"], rows)
