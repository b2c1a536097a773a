"""Options that several commands share, as one parameter: a dataclass that is spread into an option for each field."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

Answer = TypeVar("Answer")


def spread(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """The command as typer is to see it: each parameter that is a dataclass becomes an option for each of its fields.

    In ``--help`` the options of one dataclass stand together, under its ``panel``.

    Args:
        command: its parameters are annotated as typer wants them, or with a dataclass whose fields are; every field has
            a default and the name of no other option.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {
        name: hints[name] for name in inspect.signature(command).parameters if _is_group(hints.get(name))
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def gathered(**given: Any) -> Answer:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        return command(**given)

    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    gathered.__annotations__ = {one.name: one.annotation for one in parameters}
    return gathered


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_in_panel(hints[field.name], group.panel),
        )
        for field in dataclasses.fields(group)
    ]


def _in_panel(hint: Any, panel: str) -> Any:
    """The annotation with its option under a heading of ``--help``."""
    assert get_origin(hint) is Annotated, hint
    kind, *notes = get_args(hint)
    placed = []
    for note in notes:
        if isinstance(note, OptionInfo):
            note = copy.copy(note)
            note.rich_help_panel = panel
        placed.append(note)
    return Annotated[kind, *placed]
