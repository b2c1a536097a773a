"""How the program takes its words: what typer says of them, in ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup, TyperOption

from efficientnetv2.base.errors import rule_of

# What typer raises of words that do not go together; it gives no name to it of its own.
_WRONG_USE: Any = BadParameter.__mro__[1]


class _Untyped:
    """A command whose flags, ``--help`` too, show no type: they take no value, of whatever type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See ``TyperCommand``."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in params:
            if isinstance(option, TyperOption) and option.is_flag and option.metavar is None:
                option.metavar = ""
        return params


class Verb(_Untyped, TyperCommand):
    """A command whose flags show no type, and whose wrong values are told by our rules."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words, read.

        Raises:
            BadParameter: one that its option does not take; says what was given, and the rule.
        """
        given = tuple(args)  # for reading takes from the list
        try:
            return super().parse_args(ctx, args)
        except BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                problem = error.__cause__.errors()[0]
                error.message = f"it is {problem['input']!r}, but {rule_of(problem)}."
            raise
        except _WRONG_USE as error:
            if hasattr(error, "possibilities"):  # there is no such option
                error.message += self._as_a_field(error.option_name.lstrip("-").replace("-", "_"))
            elif apart := _taken_apart(given):
                error.message += (
                    f". The shell has taken --set {apart} apart: put a value with spaces or braces in quotes, "
                    'as in --set "progressive.image_px={start: 64, end: 128}"'
                )
            raise

    def _as_a_field(self, word: str) -> str:
        """Where to look for an unknown option that may be a field of the recipe: ``--lr`` of others is one.

        Args:
            word: as a field would be called.
        """
        if not word.isidentifier() or not any("--set" in option.opts for option in self.params):
            return ""
        return f". A field of the recipe is said by --set FIELD=VALUE: effnetv2 recipes --field {word} looks for it."


class Verbs(_Untyped, TyperGroup):
    """Commands under one name, whose own flags show no type."""


def _taken_apart(words: Sequence[str]) -> str | None:
    """The ``--set`` of which a shell seems to have made several words; None where there is none.

    Args:
        words: of a command. At a space a value ends with its braces open; of braces without spaces bash makes a word
            for each part, all of them with the field's name in front.
    """
    said = [word for option, word in pairwise(words) if option == "--set"]
    said += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    for setting in said:
        field = setting.partition("=")[0]
        opened = any(setting.count(left) > setting.count(right) for left, right in ("{}", "[]"))
        if opened or any(word.startswith(f"{field}=") for word in words if word not in said):
            return setting
    return None
