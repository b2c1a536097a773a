"""The pages of the documentation, and the fenced blocks in them."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# All that a reader meets: the site, and what the repository shows.
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
    """A fenced block: where its text begins, and what the fence calls its language."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, without the indentation of lists and tabs."""
    found: list[Block] = []
    fence, begun = None, 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if fence is None:
            fence, begun = _FENCE.match(line), number + 1
        elif set(line.strip()) == {fence[2][0]} and len(line.strip()) >= len(fence[2]):
            text = "".join(f"{one.removeprefix(fence[1])}\n" for one in lines[begun:number])
            found.append(Block(page, begun + 1, fence[3], text))
            fence = None
    assert fence is None, f"{name(page)}:{begun}: a block without an end"
    return found


def prose(page: Path) -> str:
    """A page's text outside its blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in reversed(blocks(page)):
        lines[block.line - 2 : block.line + block.text.count("\n")] = [""]
    return "\n".join(lines)


def shell_lines(page: Path) -> list[str]:
    """Every line in a page's shell blocks; lines that end in a backslash are joined with the next."""
    text = "".join(block.text for block in blocks(page) if block.language in _SHELL)
    return re.sub(r"\\\n *", "", text).splitlines()


def commands(page: Path) -> list[list[str]]:
    """The words after ``effnetv2`` of every command in a page's shell blocks, under a launcher too."""
    found = [_COMMAND.match(line) for line in shell_lines(page)]
    return [shlex.split(one[1], comments=True) for one in found if one is not None]


def code_spans(page: Path) -> list[str]:
    """Every piece of code within a page's sentences."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def run_python(text: str, where: str, names: dict[str, Any]) -> None:
    """Run a block with these names; a value whose comment is a value, as ``x + 1  # 3``, has to be that."""
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
