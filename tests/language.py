"""Count terms that the style guide forbids in pages, help texts and messages. ``make lint`` runs this check.

Each rule has one ceiling for each of these bodies. The check fails above a ceiling, and below a ceiling until the table
has the lower count. ``python -m tests.language --lower`` writes lower counts. The rules: docs/contributing/style.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.pages import PAGES, ROOT, prose

# Name of a rule, its pattern, and its ceilings for pages, help texts and messages.
RULES: tuple[tuple[str, str, tuple[int, int, int]], ...] = (
    ("write image, not picture", r"pictures?", (0, 0, 0)),
    ("write prediction, not answer", r"answer(s|ed|ing)?", (0, 0, 0)),
    ("write result or metric, not figure", r"figures?(?! \d)", (0, 0, 0)),
    ("write hyperparameter or value, not setting", r"settings?", (0, 0, 0)),
    ("write class or type, not kind", r"kinds?", (0, 0, 0)),
    ("write options or arguments, not words", r"words", (0, 0, 0)),
    ("write command, not verb", r"verbs?", (0, 0, 0)),
    ("write model or network connection, not network", r"networks?(?! (connection|share))", (0, 0, 6)),
    ("write trained or learned, not learnt", r"learnt", (0, 0, 0)),
    ("write prints, states, reports, not tells or says", r"told|tells?|said|says?", (0, 0, 0)),
    ("write is, not lies or stands", r"lies?|lay|stands?|stood", (0, 0, 0)),
    ("write continue or resume, not go on", r"(go(es)?|gone|went) on", (0, 0, 0)),
    ("write again, next to, also, fix", r"anew|beside|likewise|mend(s|ed)?|heed(ed)?", (0, 0, 0)),
    ("write estimate, split, biased", r"foret(ell|old)\w*|deals?|dealt|flatter\w*", (0, 0, 0)),
    ("repeat the noun, not so", r"(says?|said|called|meant|taken|asked|kept) so|so (many|few|much|long)", (0, 0, 0)),
    ("name the owner, not ours", r"ours|theirs|of (one's|your|his|its|their|my|our) own", (65, 2, 0)),
    ("name the action", r"at hand|by itself|by heart|as (it|they) (comes?|came)", (0, 0, 0)),
    ("write the positive form, not is no", r"(is|are) no(?! longer)", (1, 0, 24)),
    ("write must be, not but is", r"but (is|are|has to be)", (0, 0, 0)),
    ("write A − B or A / B, not A over B", r"[A-Z] over [A-Z]", (0, 0, 0)),
    ("write American spelling", r"(colour|centre|labell|licence|normalis|initialis|optimise)\w*", (0, 0, 0)),
)
BODIES = ("pages", "help", "messages")
# Limits for a body: words in a sentence, percent of longer sentences, and pro-forms in 100 words.
LONG_WORDS, LONG_PERCENT, PRO_FORMS_PERCENT = 25, 10.0, 3.5
PRO_FORMS = r"it|ones?|that of|those|such|the same|the others?|both|so"


def main(options: list[str]) -> int:
    """Print each violated rule. Return the exit code."""
    bodies = (pages(), "\n\n".join(help_texts()), "\n\n".join(map(plain, messages())))
    if options == ["--lower"]:
        lower_ceilings(bodies)
        return 0
    problems = [line for rule in RULES for line in check_rule(*rule, bodies)]
    for body, text in zip(BODIES, bodies, strict=True):
        problems += check_length(body, text)
    print("\n".join(problems) or "Language: every count is at its ceiling")
    return bool(problems)


def find(pattern: str, text: str) -> list[re.Match[str]]:
    """Find violations of a rule, except in paths, file names and compounds."""
    flags = 0 if "[A-Z]" in pattern else re.IGNORECASE
    return list(re.finditer(rf"(?<![\w./-])(?:{pattern})(?![\w-]|/|\.\w)", text, flags))


def check_rule(name: str, pattern: str, ceilings: tuple[int, ...], bodies: tuple[str, ...]) -> Iterator[str]:
    """Report each body above its ceiling with the violations, and each ceiling that is too high."""
    for body, text, ceiling in zip(BODIES, bodies, ceilings, strict=True):
        found = find(pattern, text)
        if len(found) > ceiling:
            yield f"{body}: {name}: {len(found)} times, at most {ceiling} are allowed"
            yield from (f"    …{' '.join(text[max(0, m.start() - 40) : m.end() + 40].split())}…" for m in found)
        if len(found) < ceiling:
            yield f"{body}: {name}: {len(found)} times, below {ceiling}. Run python -m tests.language --lower"


def lower_ceilings(bodies: tuple[str, ...]) -> None:
    """Write lower counts to the table in this file."""
    file = Path(__file__)
    source = file.read_text(encoding="utf-8")
    for name, pattern, ceilings in RULES:
        lower = tuple(min(len(find(pattern, text)), old) for text, old in zip(bodies, ceilings, strict=True))
        begin = source.index(str(ceilings), source.index(f'"{name}"'))
        source = source[:begin] + str(lower) + source[begin + len(str(ceilings)) :]
    file.write_text(source, encoding="utf-8")


def check_length(body: str, text: str) -> Iterator[str]:
    """Report too many long sentences or pro-forms."""
    lengths = {sentence: len(sentence.split()) for sentence in sentences(text)}
    long = [sentence for sentence, words in lengths.items() if words > LONG_WORDS]
    if 100 * len(long) > LONG_PERCENT * len(lengths):
        yield f"{body}: {len(long)} of {len(lengths)} sentences have more than {LONG_WORDS} words. The longest:"
        yield from (f"    {sentence}" for sentence in sorted(long, key=lengths.__getitem__)[:-4:-1])
    share = 100 * len(re.findall(rf"\b(?:{PRO_FORMS})\b", text, re.IGNORECASE)) / max(1, len(text.split()))
    if share > PRO_FORMS_PERCENT:
        yield f"{body}: {share:.1f} of 100 words are pro-forms, at most {PRO_FORMS_PERCENT} may be ({PRO_FORMS})"


def sentences(text: str) -> Iterator[str]:
    """Split a text into sentences and list items of at least three words."""
    for part in re.split(r"\n\s*\n|\n *(?:[-*]|\d+\.) ", text):
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z\"(\[])", " ".join(part.split())):
            if len(sentence.split()) >= 3:
                yield sentence


def pages() -> str:
    """Return the text of all pages except the style guide, which quotes forbidden terms."""
    return "\n\n".join(plain(prose(page)) for page in PAGES if page.name != "style.md")


def plain(text: str) -> str:
    """Remove code, link targets and markup from Markdown. Each table cell becomes a paragraph."""
    text = re.sub(r"<!--.*?-->|`[^`\n]+`", "X", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = [line.strip("|").replace("|", "\n\n") if line.startswith("|") else line for line in text.splitlines()]
    return re.sub(r"^(?:#+ .*|[\s:-]+)$", r"\n\g<0>\n", "\n".join(lines), flags=re.MULTILINE)


def help_texts() -> list[str]:
    """Return the help of each command, option and recipe field once, because commands share options."""
    from typer.main import get_command

    from efficientnetv2.cli.main import app
    from efficientnetv2.training.recipe_fields import all_fields

    texts = {*_helps(get_command(app)), *(field.meaning for field in all_fields())}
    return sorted(map(plain, texts))


def _helps(command: Any) -> Iterator[str]:
    yield command.help or ""
    yield from (getattr(param, "help", None) or "" for param in getattr(command, "params", []))
    for inner in getattr(command, "commands", {}).values():
        yield from _helps(inner)


def messages(folder: Path = ROOT / "src") -> Iterator[str]:
    """Return the texts of errors and log lines: the arguments of errors and of logger methods."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_message(node.func):
                yield " ".join(filter(None, map(_text, node.args)))


def _is_message(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value).endswith("logger") or function.attr.endswith(("Error", "BadParameter"))
    return isinstance(function, ast.Name) and function.id.endswith(("Error", "BadParameter"))


def _text(node: ast.expr) -> str:
    """Return the constant parts of a text, with X for other parts."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} {_text(node.orelse)}"
    return "X"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
