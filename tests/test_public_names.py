import subprocess
import sys

import pytest

import efficientnetv2


@pytest.mark.parametrize("name", efficientnetv2.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(efficientnetv2, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = efficientnetv2.nothing


@pytest.mark.parametrize("words", ["import efficientnetv2", "import efficientnetv2.cli"])
def test_importing_the_package_and_its_command_line_does_not_import_torch(words):
    script = f"{words}; import sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


def test_every_module_says_what_it_is_for():
    script = (
        "import pkgutil, importlib, efficientnetv2\n"
        "for m in pkgutil.walk_packages(efficientnetv2.__path__, 'efficientnetv2.'):\n"
        "    assert importlib.import_module(m.name).__doc__, m.name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
