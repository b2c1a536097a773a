"""The examples in the docstrings of the API run on a tiny model."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import textwrap

import pytest
from tests.command_line import NETWORK
from tests.nas.tiny import SPACE
from tests.pages import run_python

import efficientnetv2 as ev2

# Replacements for examples that would take minutes.
_SHORTER = {
    '"efficientnetv2_b0", weights': f"{NETWORK!r}, weights",
    'output="runs/mine"': 'output="runs/another"',
    "image_size=64": "image_size=32, batch_size=8",
    "trials=2,": 'trials=2, space="space.json", settings={"minival": 0.25},',
}
NOT_RUN = {
    **dict.fromkeys(("create", "adapt"), "downloads weights"),
    **dict.fromkeys(("export", "Export", "benchmark"), "its own tests take minutes"),
    **dict.fromkeys(("convert", "Conversion", "push", "Push"), "needs a published architecture"),
    **dict.fromkeys(("compare", "Comparison"), "needs two runs of one dataset"),
    **dict.fromkeys(("pack", "PackResult", "balance", "BalancedTable"), "needs a new folder; its own tests run it"),
    **dict.fromkeys(("predict_map", "MapResult", "estimate_areas", "MapAreas"), "needs a raster and a map"),
    "CrossValidation": "needs one",
    "Study": "needs one",
    "Estimate": "as that of estimate",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documented):
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples") / "files"
    shutil.copytree(documented, folder, symlinks=True)
    (folder / "space.json").write_text(json.dumps(SPACE.to_json()))
    return folder


def example(name: str) -> str:
    """The example of a docstring."""
    documented = inspect.getdoc(getattr(ev2, name)) or ""
    (block,) = re.findall(r"^Example::\n\n((?:    .*\n|\n)+)", f"{documented}\n", re.MULTILINE)
    return textwrap.dedent(block)


@pytest.mark.parametrize("name", ev2.__all__)
def test_every_public_name_has_an_example_of_existing_names(name):
    tree = ast.parse(example(name))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ev2"
    }
    assert used <= set(ev2.__all__)
    assert any(isinstance(node, ast.Import) for node in tree.body)


@pytest.mark.parametrize("name", [name for name in ev2.__all__ if name not in NOT_RUN])
def test_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("efficientnetv2.utils.device.pick_workers", lambda device, sharing=1: 0)
    text = example(name)
    for long, short in _SHORTER.items():
        text = text.replace(long, short)
    run_python(text, name, {})
