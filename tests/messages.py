"""Check which facts a message names, in any wording: a file, an option, a value, a number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Maximum number of characters between facts of one message. A whole HTML page can be a single line.
NEAR = 200


def mentions(text: str | Iterable[str], *facts: object) -> bool:
    """Return whether one line, or one of several texts, names all facts near each other in any order.

    An error and its hint count as one line.
    """
    first, *others = map(_pattern, facts)
    for line in text.replace("\nhint: ", " ").splitlines() if isinstance(text, str) else text:
        for found in re.finditer(first, line):
            around = line[max(0, found.start() - NEAR) : found.end() + NEAR]
            if all(re.search(fact, around) for fact in others):
                return True
    return False


def mentioning(*facts: object) -> str:
    """Return a pattern for ``pytest.raises(match=...)``. It matches texts with all facts, in any order."""
    return "(?s)" + "".join(f"(?=.*{_pattern(fact)})" for fact in facts)


def each_mentions(texts: Sequence[str], *facts: tuple[object, ...]) -> bool:
    """Return whether each text names the facts of its own tuple."""
    return len(texts) == len(facts) and all(mentions(text, *own) for text, own in zip(texts, facts, strict=True))


def _pattern(fact: object) -> str:
    """Return a pattern. Numbers match as a whole, so that 1 is not found in 12. Words may be capitalized."""
    text = re.escape(str(fact))
    if re.fullmatch(r"[-+]?\d+(?:[.,:]\d+)*", str(fact)):
        return rf"(?<!\d)(?<!\d[.,]){text}(?!\d)(?![.,]\d)"
    if re.fullmatch(r"[a-z][a-z\d -]*", str(fact)):
        return f"[{text[0]}{text[0].upper()}]{text[1:]}"
    return text
