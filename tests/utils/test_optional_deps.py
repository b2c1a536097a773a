"""Optional packages: import, or an error with the install command."""

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


def test_installed_package_is_imported():
    assert import_optional("math", "keras", "Writing") is math


def test_missing_package_is_an_error_with_the_pip_command():
    """The command has packages of the index only, not this package."""
    with pytest.raises(InputError, match=mentioning("no_such_package", "keras")) as error:
        import_optional("no_such_package.part", "keras", "Writing for Keras")
    command = str(error.value).partition("Install it with: pip install ")[2]
    requirements = [Requirement(word) for word in command.strip('"').split('" "')]
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert requirements == [Requirement(line) for line in sorted(stated["optional-dependencies"]["keras"])]


def test_extra_has_only_its_own_packages():
    assert [word.partition("<")[0] for word in extra_requirements("timm")] == ["timm"]
    assert extra_requirements("no such extra") == []


@pytest.mark.parametrize("other", [(), ("other>=1; extra == 'keras'",)])
def test_package_without_a_build_for_this_machine_is_an_error(other, monkeypatch):
    lines = ["torch>=2", "No-such.package>=1; extra == 'keras' and python_version < '3'", "colorama; os_name != 'none'"]
    lines += other
    monkeypatch.setattr(optional_deps, "requires", lambda _: lines)
    with pytest.raises(InputError, match=r"There is none for Python 3\.\d+\.\d+ on \w+\.$"):
        import_optional("no_such_package", "keras", "Reading")


def test_extra_newer_than_the_installation_is_named():
    """After a pull, the installed metadata does not have the extra."""
    with pytest.raises(InputError, match=mentioning(".[brand-new]")):
        import_optional("no_such_package", "brand-new", "Reading")


def test_broken_package_is_not_reported_as_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there_for_tests.py").write_text("import another_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_missing"):
        import_optional("half_there_for_tests", "keras", "Writing")
    assert "half_there_for_tests" not in sys.modules


@pytest.fixture
def unfit_torchvision(tmp_path, monkeypatch):
    """torchvision compiled for another version of torch."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("unfit_torchvision")
def test_incompatible_torchvision_is_an_error_with_versions_and_command():
    with pytest.raises(
        InputError,
        match=rf"torchvision {version('torchvision')} does not fit torch {version('torch')}.* "
        r"\(operator torchvision::nms does not exist\): install .*pip install --force-reinstall torch torchvision",
    ):
        import_torchvision("models")


@pytest.mark.usefixtures("unfit_torchvision")
def test_package_that_imports_incompatible_torchvision_is_an_error(tmp_path):
    (tmp_path / "on_torchvision_for_tests.py").write_text("import torchvision\n")
    with pytest.raises(InputError, match=mentioning("torch")):
        import_optional("on_torchvision_for_tests", "timm", "a network")


def test_other_import_errors_are_raised_unchanged(tmp_path, monkeypatch):
    (tmp_path / "failing_for_tests.py").write_text('raise RuntimeError("its own")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="its own"):
        import_optional("failing_for_tests", "keras", "Writing")
