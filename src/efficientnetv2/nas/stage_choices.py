"""One stage of a search space: the options of each of its fields.

A *part* is a stage's share of a point: one index for each of its decisions, in the order of ``FIELDS``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from efficientnetv2.architectures.spec import Operator, Stage
from efficientnetv2.utils.errors import InputError, first_error

Kind = Literal["mbconv", "fused"]
Option = int | float | str | None
Point = tuple[int, ...]
Value = TypeVar("Value")

SE = 0.25  # Squeeze-excite ratio of MBConv blocks. Source: arXiv:2104.00298, Table 4.
FIELDS = ("kind", "kernel", "expand", "se", "channels", "layers")  # The columns of the paper's Table 4.
_BY_KIND = "by kind"


class Decision(NamedTuple):
    """One choice of a search: a name such as ``stage2.kind``, and at least two different options.

    Stages count from 1 as in the paper's Table 4, and keep the backbone's number where one before them is removed.
    """

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class StageChoices:
    """The options of one stage. A field with a single option is fixed, and no decision.

    ``layers`` of 0 removes the stage. ``se`` are squeeze-excite ratios, None for none; or ``by kind``: 0.25 in MBConv
    and none in Fused-MBConv.
    Raises pydantic.ValidationError: no option, an option given twice, or one that no stage can have.
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    kinds: tuple[Kind, ...] = ("mbconv", "fused")
    kernels: tuple[int, ...] = (3, 5)
    expands: tuple[int, ...] = (1, 4, 6)
    se: tuple[float | None, ...] | Literal["by kind"] = "by kind"

    @model_validator(mode="after")
    def _validate(self) -> StageChoices:
        for field, options in self.options.items():
            if not options or len(set(options)) < len(options):
                raise ValueError(f"{field} is one of {format_options(options)}, but must have different options")
        if min(self.layers) < 0 or max(self.layers) == 0:
            raise ValueError(
                f"layers is one of {format_options(self.layers)}, but must be at least 0 (no stage), and not only 0"
            )
        first = {field: options[0] for field, options in self.options.items()}
        for field, options in self.options.items():
            for option in options:  # Refuses what no stage can have.
                build_stage({**first, field: option, "layers": 1}, stride=1)
        return self

    @cached_property
    def options(self) -> dict[str, tuple[Option, ...]]:
        """The options of every field, in the order of ``FIELDS``."""
        se: tuple[Option, ...] = (_BY_KIND,) if isinstance(self.se, str) else self.se
        values = (self.kinds, self.kernels, self.expands, se, self.channels, self.layers)
        return dict(zip(FIELDS, values, strict=True))

    @cached_property
    def decided(self) -> dict[str, tuple[Option, ...]]:
        """The options of the fields that are decisions."""
        return {field: options for field, options in self.options.items() if len(options) > 1}

    @property
    def removable(self) -> bool:
        """Whether the stage may have 0 layers."""
        return 0 in self.layers

    @cached_property
    def parts(self) -> tuple[Point, ...]:
        """Every different stage once, "removed" included where that is possible."""
        parts = itertools.product(*(range(len(options)) for options in self.decided.values()))
        return tuple(part for part in parts if self.canonical(part) == part)

    def values(self, part: Point) -> dict[str, Option]:
        """The option of every field, decided or fixed."""
        first = {field: options[0] for field, options in self.options.items()}
        decided = zip(part, self.decided.items(), strict=True)
        return first | {field: options[index] for index, (field, options) in decided}

    def canonical(self, part: Point) -> Point:
        """The part with index 0 for all other decisions where there are 0 layers."""
        return tuple(index * counts for index, counts in zip(part, self.effective(part), strict=True))

    def effective(self, part: Point) -> tuple[bool, ...]:
        """Which decisions have an effect: with 0 layers only the last one, the number of layers."""
        is_removed = self._is_removed(part)
        return tuple(not is_removed or place == len(part) - 1 for place in range(len(part)))

    def encode(self, stage: Stage | None, number: int) -> Point:
        """The part of a stage, None for a removed one. Raises InputError with its ``number``."""
        if stage is None:
            return self.canonical((*(0,) * (len(self.decided) - 1), self.layers.index(0)))
        operator = stage.operator
        by_kind = self.se == _BY_KIND and operator.se == default_se(operator.kind)
        se = _BY_KIND if by_kind else operator.se
        values = (operator.kind, operator.kernel, operator.expand, se, stage.channels, stage.layers)
        found = dict(zip(FIELDS, values, strict=True))
        for field, options in self.options.items():
            if found[field] not in options:
                raise InputError(
                    f"stage {number}: {field} is {format_options([found[field]])}, but in this space "
                    f"{format_options(options)}"
                )
        return tuple(options.index(found[field]) for field, options in self.decided.items())

    def neighbors(self, part: Point) -> Iterator[Point]:
        """The parts one decision away from a canonical part; a removed stage is one away from every other part."""
        for other in self.parts:
            num_changes = sum(mine != theirs for mine, theirs in zip(part, other, strict=True))
            if num_changes == 1 or self._is_removed(part) != self._is_removed(other):
                yield other

    def _is_removed(self, part: Point) -> bool:
        return self.removable and self.layers[part[-1]] == 0  # Where removable, layers is decided, and last.


def default_se(kind: Kind) -> float | None:
    """The squeeze-excite ratio of the paper's networks. Source: arXiv:2104.00298, Table 4."""
    return SE if kind == "mbconv" else None


def build_stage(values: Mapping[str, Any], *, stride: int) -> Stage:
    """A stage of one option for each field. Raises pydantic.ValidationError."""
    se = default_se(values["kind"]) if values["se"] == _BY_KIND else values["se"]
    operator = Operator(values["kind"], values["expand"], values["kernel"], se)
    return Stage(operator, stride, values["channels"], values["layers"])


def format_options(options: Iterable[object]) -> str:
    """Options as text: ``3, 5 or 7``, or ``1 to 12`` for more than three in a row."""
    options = list(options)
    first = options[0] if options else None
    if len(options) > 3 and isinstance(first, int) and options == list(range(first, first + len(options))):
        return f"{first} to {options[-1]}"
    shown = ["none" if option is None else str(option) for option in options]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def validate_json(kind: type[Value], plain: Any, what: str) -> Value:
    """A pydantic dataclass from plain JSON values. Raises InputError, which names ``what`` and the field."""
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise InputError(f"{what} cannot be read: {first_error(error.errors())}.") from error
