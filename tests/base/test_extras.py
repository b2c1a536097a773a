"""A package of an extra is imported, or missed by the name of the extra."""

import math
import sys

import pytest

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import needed


def test_what_is_there_is_imported():
    assert needed("math", "keras", "Writing") is math


def test_what_is_missing_is_named_with_its_extra():
    with pytest.raises(
        InputError, match=r"Writing for Keras needs .*'no_such_package'.*efficientnetv2\[keras\]"
    ):
        needed("no_such_package.part", "keras", "Writing for Keras")


def test_a_package_that_is_there_but_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there_for_tests.py").write_text("import another_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_missing"):
        needed("half_there_for_tests", "keras", "Writing")
    assert "half_there_for_tests" not in sys.modules
