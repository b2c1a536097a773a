"""What processes tell each other after a step, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from efficientnetv2.training.distributed import World, gathered

Note = TypeVar("Note")


class Notes(Generic[Note]):
    """What everybody has to say after a step: whether to stop, and anything else, which is rare.

    An answer comes a step later, so that nobody waits for it; but it comes to all after the same step.

    Args:
        world: of processes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._noted: list[Note] = []
        self._asked: tuple[dist.Work, Tensor] | None = None

    def after_step(self, *, stop: bool, noted: Sequence[Note], last: bool) -> tuple[bool, list[Note]]:
        """Called by all after every step.

        Args:
            stop: whether this process wants all to stop.
            noted: what it has to tell.
            last: whether no step comes after; then the answer is of this one.

        Returns:
            Whether all stop now, and what there was to tell, from all of them.
        """
        if not self._world.many:
            return stop, list(noted)
        self._noted += noted
        stops, tells = self._answer()
        self._ask(stop)
        if last:
            now = self._answer()
            stops, tells = stops or now[0], tells or now[1]
        if not tells:
            return stops, []
        told = [note for notes in gathered(self._world, self._noted) for note in notes]
        self._noted = []
        return stops, told

    def _ask(self, stop: bool) -> None:
        flags = torch.tensor([int(stop), int(bool(self._noted))])
        work = dist.all_reduce(flags, async_op=True)
        assert work is not None
        self._asked = (work, flags)

    def _answer(self) -> tuple[bool, bool]:
        if self._asked is None:
            return False, False
        work, flags = self._asked
        work.wait()
        self._asked = None
        return bool(flags[0]), bool(flags[1])
