"""A package of an extra is imported, or missed with a command that brings it wherever this package is from."""

import math
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.messages import mentioning

from efficientnetv2.utils import optional_deps
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.optional_deps import extra_requirements, import_optional, import_torchvision


def test_what_is_there_is_imported():
    assert import_optional("math", "keras", "Writing") is math


def test_what_is_missing_is_named_with_what_pip_can_install():
    """Every word of the command is one that an index knows: the package's own name is not among them."""
    with pytest.raises(InputError, match=mentioning("no_such_package", "keras")) as error:
        import_optional("no_such_package.part", "keras", "Writing for Keras")
    command = str(error.value).partition("Install it with: pip install ")[2]
    words = [Requirement(word) for word in command.strip('"').split('" "')]
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert words == [Requirement(line) for line in sorted(stated["optional-dependencies"]["keras"])]


def test_an_extra_brings_its_own_packages_alone():
    assert [word.partition("<")[0] for word in extra_requirements("timm")] == ["timm"]
    assert extra_requirements("no such extra") == []


def test_what_is_not_expected_dataset_this_machine_is_said_to_be_missing(monkeypatch):
    lines = ["torch>=2", "thing>=1; extra == 'keras' and python_version < '3'", "colorama; os_name != 'none'"]
    monkeypatch.setattr(optional_deps, "requires", lambda _: lines)
    with pytest.raises(InputError, match=r"There is none for Python 3\.\d+\.\d+ on \w+\.$"):
        import_optional("no_such_package", "keras", "Reading")


def test_an_extra_that_came_after_the_installation():
    """As in a clone that was pulled: what is installed does not know it."""
    with pytest.raises(InputError, match=mentioning(".[brand-new]")):
        import_optional("no_such_package", "brand-new", "Reading")


def test_a_package_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there_for_tests.py").write_text("import another_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_missing"):
        import_optional("half_there_for_tests", "keras", "Writing")
    assert "half_there_for_tests" not in sys.modules


@pytest.fixture
def unfit_torchvision(tmp_path, monkeypatch):
    """torchvision with another torch than it was compiled for."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("unfit_torchvision")
def test_a_torchvision_that_does_not_fit_torch_is_told_with_both_versions_and_what_to_do():
    with pytest.raises(
        InputError,
        match=rf"torchvision {version('torchvision')} does not fit torch {version('torch')}.* "
        r"\(operator torchvision::nms does not exist\): install .*pip install --force-reinstall torch torchvision",
    ):
        import_torchvision("models")


@pytest.mark.usefixtures("unfit_torchvision")
def test_so_is_what_imports_torchvision_itself(tmp_path):
    (tmp_path / "on_torchvision_for_tests.py").write_text("import torchvision\n")
    with pytest.raises(InputError, match=mentioning("torch")):
        import_optional("on_torchvision_for_tests", "timm", "a network")


def test_a_package_that_fails_by_itself_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "failing_for_tests.py").write_text('raise RuntimeError("its own")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="its own"):
        import_optional("failing_for_tests", "keras", "Writing")
