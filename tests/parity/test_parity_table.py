"""A small part of ``make parity``: the rows of two architectures at small sizes."""

import json
import os
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("timm")
pytest.importorskip("keras")

from benchmarks import parity
from benchmarks.parity import LOGITS, SHAPES, logit_rows, passes

EVEN_PX, ODD_PX = 96, 75  # 75 becomes 38, 19, 10, 5, 3


@pytest.mark.parametrize("name", ["efficientnetv2_b0", pytest.param("efficientnetv2_s", marks=pytest.mark.slow)])
def test_every_row_passes(name):
    rows = list(logit_rows(name, (EVEN_PX, ODD_PX)))
    assert not [row for row in rows if not passes(row)]
    sides = {"timm", "keras"} | ({"torchvision"} if name == "efficientnetv2_s" else set())
    assert {row["against"] for row in rows} == sides
    assert {row["what"] for row in rows} == {
        "read", "written", "round trip", "wrong padding", "wrong epsilon", "wrong preprocessing",
    }  # fmt: skip


def test_failing_row_is_detected():
    assert not passes({"what": "read", "distance": 2e-4})
    assert not passes({"what": "wrong padding", "distance": 2e-4})
    assert not passes({"what": "round trip", "identical": False})


def test_table_has_all_promised_architectures():
    assert {f"efficientnetv2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")} <= set(LOGITS)
    assert {"efficientnet_b0", "efficientnet_b4"} <= set(LOGITS)
    assert {"efficientnetv2_xl", *(f"efficientnet_b{number}" for number in range(8))} <= set(SHAPES)


@pytest.fixture
def computed(tmp_path, monkeypatch):
    """The architectures with computed rows, which all pass. Rows are saved in a separate folder."""
    came = []

    def rows_of(name):
        came.append(name)
        yield {"network": name, "against": "timm", "what": "shapes", "identical": True}

    monkeypatch.setattr(parity, "rows_of", rows_of)
    monkeypatch.setattr(parity, "KEPT", tmp_path / "kept")
    return came


@pytest.mark.parametrize("changed", ["versions", "code", "scripts"])
def test_saved_rows_are_used_only_for_the_same_code_and_versions(changed, computed):
    by = parity.made_by()
    assert list(parity.kept_rows("efficientnetv2_b0", by)) == list(parity.kept_rows("efficientnetv2_b0", by))
    assert computed == ["efficientnetv2_b0"], "the second time they are read"
    other = by | {changed: by[changed] | {"timm": "0.0"} if changed == "versions" else "other"}
    assert len(list(parity.kept_rows("efficientnetv2_b0", other))) == 1
    assert len(computed) == 2
    list(parity.kept_rows("efficientnetv2_b0", other))
    assert len(computed) == 2, "what was made anew is kept"


def test_rows_without_versions_are_computed_again(computed, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/efficientnetv2_b0.json").write_text(json.dumps([{"network": "efficientnetv2_b0"}]))
    assert [row["what"] for row in parity.kept_rows("efficientnetv2_b0", parity.made_by())] == ["shapes"]


def test_record_has_the_versions_of_its_rows(computed, tmp_path, monkeypatch):
    """Two complete runs. The second has other versions and no rows of the first."""
    monkeypatch.setattr(parity, "RESULT", tmp_path / "parity.json")
    monkeypatch.setattr(sys, "argv", ["parity"])
    for made in ("1.0", "2.0"):
        monkeypatch.setattr(parity, "version", lambda package, made=made: made)
        assert parity.main() == 0
        assert set(json.loads((tmp_path / "parity.json").read_text())["versions"].values()) == {made}
    names = list(dict.fromkeys([*LOGITS, *SHAPES]))
    assert computed == [*names, *names]
