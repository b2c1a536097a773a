"""Checked values from plain JSON, as a study keeps them; what is wrong is said with its place."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from efficientnetv2.base.errors import InputError, complaint

Value = TypeVar("Value")


def checked(kind: type[Value], plain: Any, what: str) -> Value:
    """A value as if it had been made by hand.

    Args:
        kind: of the value: a pydantic dataclass.
        plain: what JSON gave.
        what: the message begins with it: ``a search space``.

    Raises:
        InputError: an unknown field, or a value out of range; says where.
    """
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise InputError(f"{what} cannot be read: {complaint(error.errors())}.") from error
