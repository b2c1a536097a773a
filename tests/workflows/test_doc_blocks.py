"""The Python blocks of the docs run, page by page. Blocks marked ``# not run`` use existing names."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import shutil
from importlib import import_module

import pytest
from tests.pages import PAGES, ROOT, blocks, name, run_python
from tests.recipes import with_overrides

import efficientnetv2 as ev2
from efficientnetv2.training.recipes import get_recipe

NOT_RUN = "# not run"
BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "python"]
# The README has the output of a run of half an hour and no mark.
RUN = dict.fromkeys(one.page for one in BLOCKS if not one.text.startswith(NOT_RUN) and one.page != ROOT / "README.md")
SLOW = {"docs/tutorials/notebook.md", "docs/how-to/own-training-loop.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if name(page) in SLOW else [], id=name(page)) for page in RUN]
)
def test_blocks_of_a_page_run(page, documented, tmp_path, monkeypatch):
    """In order and with shared names, as in a notebook. Values equal those in comments."""
    folder = tmp_path / "clone"
    shutil.copytree(documented, folder, symlinks=True)
    monkeypatch.chdir(folder)
    names = {"__name__": "page"}
    for block in BLOCKS:
        if block.page == page and not block.text.startswith(NOT_RUN):
            run_python(block.text, str(block), names)


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in BLOCKS), ids=name)
def test_blocks_use_existing_names(page):
    """Names are bound earlier on the page. Names of this package exist and accept the arguments."""
    bound = set(dir(builtins)) | {"self"}
    for block in BLOCKS:
        if block.page != page:
            continue
        tree = ast.parse(block.text, str(block))
        nodes = list(ast.walk(tree))
        bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
        bound |= {node.name for node in nodes if isinstance(node, ast.AsyncFunctionDef)}
        bound |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert sorted(used - bound) == [], str(block)
        for node in nodes:
            _check_package_names(node, block)


def _check_package_names(node, block):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efficientnetv2"):
        module = import_module(node.module)
        assert [one.name for one in node.names if not hasattr(module, one.name)] == [], str(block)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ev2":
        assert node.attr in ev2.__all__, f"{block}: ev2.{node.attr}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        function = getattr(ev2, node.func.attr, None)
        if function is None or ast.unparse(node.func.value) != "ev2":
            return
        keywords = {one.arg: None for one in node.keywords if one.arg is not None}
        inspect.signature(function).bind_partial(*node.args, **keywords)
        for keyword in node.keywords:
            if keyword.arg == "settings" and isinstance(keyword.value, ast.Dict):
                fields = ast.literal_eval(keyword.value)
                with_overrides(get_recipe("finetune"), [f"{key}={json.dumps(one)}" for key, one in fields.items()])
