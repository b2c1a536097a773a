"""One stage of a search space: what may be decided about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.architectures.spec import Operator, Stage
from efficientnetv2.utils.errors import InputError

Kind = Literal["mbconv", "fused"]
Option = int | float | str | None
Point = tuple[int, ...]

SE = 0.25  # width of squeeze-excite in MBConv blocks: arXiv:2104.00298, Table 4

# Of a stage, in the order of the columns of the paper's Table 4.
FIELDS = ("kind", "kernel", "expand", "se", "channels", "layers")
BY_KIND = "by kind"


class Decision(NamedTuple):
    """One choice of a search.

    Args:
        name: of stage and field: ``stage2.kind``. Stages count from 1 as in the paper's Table 4, and keep the
            backbone's number when one before them is removed.
        options: at least two, different from each other.
    """

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StageChoices:
    """What may be decided about one stage; a field with a single option is fixed and no decision.

    A *part* is a stage's share of a point: an index for each of its decisions, in the order of ``FIELDS``.

    Args:
        channels: that its blocks give out.
        layers: how many blocks; 0 removes the stage.
        kinds: of block.
        kernels: k of its kxk convolution, odd.
        expands: inner channels over input channels.
        se: widths of squeeze-excite over the block's input channels, None for none; or ``by kind``: 0.25 in
            MBConv and none in Fused-MBConv, as in the paper's networks.

    Raises:
        pydantic.ValidationError: no option, one given twice, or one that no stage can have.
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    kinds: tuple[Kind, ...] = ("mbconv", "fused")
    kernels: tuple[int, ...] = (3, 5)
    expands: tuple[int, ...] = (1, 4, 6)
    se: tuple[float | None, ...] | Literal["by kind"] = "by kind"

    @model_validator(mode="after")
    def _possible(self) -> StageChoices:
        for field, options in self.options.items():
            if not options:
                raise ValueError(f"{field} has no option, but a stage needs at least one")
            if len(set(options)) < len(options):
                raise ValueError(f"{field} is one of {listed(options)}, where one is given twice")
        if min(self.layers) < 0 or max(self.layers) == 0:
            raise ValueError(
                f"layers is one of {listed(self.layers)}, but 0 (no stage) or more, and not 0 alone"
            )
        first = {field: options[0] for field, options in self.options.items()}
        for field, options in self.options.items():
            for option in options:
                made({**first, field: option, "layers": 1}, stride=1)  # refuses what no stage can have
        return self

    @cached_property
    def options(self) -> dict[str, tuple[Option, ...]]:
        """Of every field, in the order of ``FIELDS``."""
        se: tuple[Option, ...] = (BY_KIND,) if isinstance(self.se, str) else self.se
        every = (self.kinds, self.kernels, self.expands, se, self.channels, self.layers)
        return dict(zip(FIELDS, every, strict=True))

    @cached_property
    def decided(self) -> dict[str, tuple[Option, ...]]:
        """The fields that are decisions, with their options."""
        return {field: options for field, options in self.options.items() if len(options) > 1}

    @property
    def removable(self) -> bool:
        """Whether the stage may have 0 layers."""
        return 0 in self.layers

    @cached_property
    def parts(self) -> tuple[Point, ...]:
        """Every different stage once, and once that there is none where that may be."""
        every = itertools.product(*(range(len(options)) for options in self.decided.values()))
        return tuple(part for part in every if self.canonical(part) == part)

    def values(self, part: Point) -> dict[str, Option]:
        """The option that every field has, decided or fixed."""
        first = {field: options[0] for field, options in self.options.items()}
        decided = zip(part, self.decided.items(), strict=True)
        return first | {field: options[index] for index, (field, options) in decided}

    def canonical(self, part: Point) -> Point:
        """With index 0 for all else where there are 0 layers."""
        return tuple(index if counts else 0 for index, counts in zip(part, self.effective(part), strict=True))

    def effective(self, part: Point) -> tuple[bool, ...]:
        """Whether each decision has an effect: with 0 layers only the number of layers has."""
        if not self._gone(part):
            return (True,) * len(part)
        return (*(False,) * (len(part) - 1), True)

    def part(self, stage: Stage | None, number: int) -> Point:
        """Where a stage lies among the choices.

        Args:
            stage: None where there is none.
            number: of the stage, from 1, for the message.

        Raises:
            InputError: it is none of them; says in which field.
        """
        if stage is None:
            return self.canonical((*(0,) * (len(self.decided) - 1), self.layers.index(0)))
        operator = stage.operator
        found: dict[str, Option] = {
            "kind": operator.kind,
            "kernel": operator.kernel,
            "expand": operator.expand,
            "se": operator.se,
            "channels": stage.channels,
            "layers": stage.layers,
        }
        if self.se == BY_KIND and operator.se == se_of(operator.kind):
            found["se"] = BY_KIND
        for field, options in self.options.items():
            if found[field] not in options:
                raise InputError(
                    f"stage {number}: {field} is {_shown(found[field])}, but in this space {listed(options)}"
                )
        return tuple(options.index(found[field]) for field, options in self.decided.items())

    def near(self, part: Point) -> Iterator[Point]:
        """The parts one decision away; from and to a stage that is removed, every part is one away.

        Args:
            part: a canonical one.
        """
        gone = self._gone(part)
        for other in self.parts:
            apart = sum(mine != theirs for mine, theirs in zip(part, other, strict=True))
            if apart == 1 or gone != self._gone(other):
                yield other

    def _gone(self, part: Point) -> bool:
        return self.removable and self.layers[part[-1]] == 0  # removable: the layers are decided, and last


def se_of(kind: Kind) -> float | None:
    """Squeeze-excite as the paper's networks have it (arXiv:2104.00298, Table 4)."""
    return SE if kind == "mbconv" else None


def made(values: Mapping[str, Any], *, stride: int) -> Stage:
    """A stage of one option for each field.

    Raises:
        pydantic.ValidationError: no stage can have one of them.
    """
    se = se_of(values["kind"]) if values["se"] == BY_KIND else values["se"]
    operator = Operator(values["kind"], values["expand"], values["kernel"], se)
    return Stage(operator, stride, values["channels"], values["layers"])


def listed(options: Iterable[object]) -> str:
    """Options in words: ``3, 5 or 7``, ``1 to 12`` where there are many in a row; None is ``none``."""
    options = list(options)
    first = options[0]
    if len(options) > 3 and isinstance(first, int) and options == list(range(first, first + len(options))):
        return f"{first} to {options[-1]}"
    shown = [_shown(option) for option in options]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _shown(option: object) -> str:
    return "none" if option is None else str(option)
