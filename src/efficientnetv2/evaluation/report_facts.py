"""Parts of a report beyond the figures that every report has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Section:
    """Something more to say on the page: sentences and a table.

    Args:
        title: its heading.
        sentences: in order; those that begin with ``!`` are warnings.
        columns: of a table, the first of words.
        rows: its cells; empty for no table.
    """

    template: ClassVar[str] = "section.html.j2"
    told: ClassVar[Mapping[str, Any]] = {}

    title: str
    sentences: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class TemplateSection:
    """A part of the page that has a template of its own, and what programs read of it.

    Args:
        template: a file of ``evaluation/templates``; it knows the values as ``part.NAME``.
        values: for the template.
        told: further keys of ``report.json``.
    """

    template: str
    values: Mapping[str, Any]
    told: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """A value by its name, as the template asks for it."""
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None
