"""Pages of the documentation and their fenced blocks."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# All pages for readers: the site, and the Markdown files of the repository.
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
)
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([\w+-]*)")
_SHELL = {"", "bash", "sh", "shell", "console"}
_COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:srun )?(?:effnetv2|torchrun .*-m efficientnetv2|docker run .* efficientnetv2) (.*)$"
)


@dataclass(frozen=True)
class Block:
    """Fenced block with its first line and its language."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page without the indentation of lists and tabs."""
    found: list[Block] = []
    fence, begin = None, 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if fence is None:
            fence, begin = _FENCE.match(line), number + 1
        elif set(line.strip()) == {fence[2][0]} and len(line.strip()) >= len(fence[2]):
            text = "".join(f"{one.removeprefix(fence[1])}\n" for one in lines[begin:number])
            found.append(Block(page, begin + 1, fence[3], text))
            fence = None
    assert fence is None, f"{name(page)}:{begin}: a block without an end"
    return found


def prose(page: Path) -> str:
    """Return the text of a page outside its blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in reversed(blocks(page)):
        lines[block.line - 2 : block.line + block.text.count("\n")] = [""]
    return "\n".join(lines)


def shell_lines(page: Path) -> list[str]:
    """Return the lines of all shell blocks of a page. Continued lines are joined."""
    text = "".join(block.text for block in blocks(page) if block.language in _SHELL)
    return re.sub(r"\\\n *", "", text).splitlines()


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each ``effnetv2`` command in the shell blocks of a page, also after a launcher."""
    found = [_COMMAND.match(line) for line in shell_lines(page)]
    return [shlex.split(one[1], comments=True) for one in found if one is not None]


def code_spans(page: Path) -> list[str]:
    """Return the code spans in the sentences of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def run_python(text: str, where: str, names: dict[str, Any]) -> None:
    """Run a block with these names. A value with a literal as its comment, as in ``x + 1  # 3``, must equal it."""
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), where, "exec"), names)
            continue
        value = eval(compile(ast.Expression(statement.value), where, "eval"), names)
        _, _, comment = lines[statement.end_lineno - 1][statement.end_col_offset :].partition("# ")
        try:
            stated = ast.literal_eval(comment)
        except (SyntaxError, ValueError):
            continue
        assert "..." in comment or value == stated, f"{where}: {value}"


def documented_keys(heading: str) -> dict[str, set[str]]:
    """Key -> names in backticks of its row, from the table below a heading of docs/reference/output-files.md."""
    page = (ROOT / "docs/reference/output-files.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {key: set(re.findall("`([a-z0-9_]+)`", content)) for keys, content in cells for key in keys.split("`")[1::2]}
