"""Sections of a report beyond those that every report has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Section:
    """Sentences and a table under a heading. Sentences that begin with ``!`` are warnings."""

    template: ClassVar[str] = "section.html.j2"
    data: ClassVar[Mapping[str, Any]] = {}

    title: str
    sentences: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class TemplateSection:
    """A section with a template of its own, and the keys that it adds to ``report.json``.

    The template is a file of ``evaluation/templates`` and reads a value as ``part.NAME``.
    """

    template: str
    values: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None
