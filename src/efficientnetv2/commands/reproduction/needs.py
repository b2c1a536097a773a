"""What the runs of a table need, asked for before the first of them: other libraries, standard sets, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import needed, of_torchvision
from efficientnetv2.commands.reproduction.cells import Cell, Runs
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Table
from efficientnetv2.data import standard
from efficientnetv2.models import hub, pretrained
from efficientnetv2.models.foreign import is_foreign
from efficientnetv2.training.named import load_weights
from efficientnetv2.training.recipes import named

# A library, a set or weights, and what asks for it.
_Need = tuple[str, Callable[[str], object]]


def refuse_missing(table: Callable[[Scale, Runs], Table], scale: Scale, runs: Runs) -> None:
    """All that a table's runs need is here, but for those that are done; nothing is trained.

    Args:
        table: of runs, as it is made.
        scale: of the runs.
        runs: what they have in common.

    Raises:
        InputError: some of it is not; names all that is missing.
    """
    try:
        table(scale, _Asking(**vars(runs)))
    except _AllHere:
        return


class _AllHere(Exception):  # noqa: N818 - it is no error: it ends the asking
    """Every cell has been asked for what it needs."""


@dataclass(frozen=True)
class _Asking(Runs):
    """Runs that ask for what cells need, and are never begun."""

    def of(self, cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, Figure]]:
        """See ``Runs.of``, of which this is the part before the first run.

        Raises:
            InputError: something is missing.
            _AllHere: nothing is.
        """
        needs = dict.fromkeys(need for cell in cells if not self._done(cell) for need in self._needs(cell))
        missing = []
        for word, ask in needs:
            try:
                ask(word)
            except InputError as error:
                missing.append(str(error))
        if missing:
            raise InputError(f"Before the first run: {' '.join(dict.fromkeys(missing))}")
        raise _AllHere

    def _done(self, cell: Cell) -> bool:
        return all((self.folder(cell, seed) / "report.json").exists() for seed in range(self.seeds))

    def _needs(self, cell: Cell) -> Iterator[_Need]:
        model = cell.model or named(cell.recipe).model
        if isinstance(model, str) and is_foreign(model):
            yield model, _library
        data = self.source.data if cell.data is None else cell.data
        if data in standard.NAMES and not Path(data).exists():
            yield data, standard.read_standard
        weights = self._weights(cell)
        if weights is not None and weights not in ("none", "auto"):
            yield weights, _given


def _library(model: str) -> None:
    if model.startswith("timm:"):
        needed("timm", "timm", f"the network '{model}'")
    else:
        of_torchvision("models")


def _given(weights: str) -> None:
    """Weights of that name or in that file; fetched into the cache if need be."""
    if weights in pretrained.names():
        hub.fetch(weights)
    elif not Path(weights).exists():
        load_weights(weights)
