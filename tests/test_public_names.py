import subprocess
import sys

import pytest
from tests.messages import mentioning

import efficientnetv2


@pytest.mark.parametrize("name", efficientnetv2.__all__)
def test_public_name_exists_and_is_documented(name):
    assert getattr(efficientnetv2, name).__doc__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=mentioning("no attribute", "nothing")):
        _ = efficientnetv2.nothing


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("efficientnetv2", "torch"),
        ("efficientnetv2.cli.main", "torch"),
        ("efficientnetv2.workflows.results", "torch"),
        ("efficientnetv2.serving", "torch"),
        ("efficientnetv2.serving", "fastapi"),
        ("efficientnetv2.serving.app", "matplotlib"),
        ("efficientnetv2.workflows.predict", "sklearn"),
        ("efficientnetv2.workflows.predict_map", "sklearn"),
    ],
)
def test_import_does_not_load_slow_packages(module, heavy):
    script = f"import {module}, sys; print({heavy!r} in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


def test_each_module_has_a_docstring():
    script = (
        "import pkgutil, importlib, efficientnetv2\n"
        "for m in pkgutil.walk_packages(efficientnetv2.__path__, 'efficientnetv2.'):\n"
        "    assert importlib.import_module(m.name).__doc__, m.name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
