"""A small slice of ``make parity``: its rows for two networks, at small sizes; every one says what it should."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("timm")
pytest.importorskip("keras")

from benchmarks.parity import LOGITS, SHAPES, logit_rows, passes

EVEN_PX, ODD_PX = 96, 75  # 75 becomes 38, 19, 10, 5, 3


@pytest.mark.parametrize(
    "name", ["efficientnetv2_b0", pytest.param("efficientnetv2_s", marks=pytest.mark.slow)]
)
def test_every_row_says_what_it_should(name):
    rows = list(logit_rows(name, (EVEN_PX, ODD_PX)))
    assert not [row for row in rows if not passes(row)]
    sides = {"timm", "keras"} | ({"torchvision"} if name == "efficientnetv2_s" else set())
    assert {row["against"] for row in rows} == sides
    assert {row["what"] for row in rows} == {
        "read", "written", "round trip", "wrong padding", "wrong epsilon", "wrong preprocessing",
    }  # fmt: skip


def test_a_failing_row_is_seen():
    assert not passes({"what": "read", "distance": 2e-4})
    assert not passes({"what": "wrong padding", "distance": 2e-4})
    assert not passes({"what": "round trip", "identical": False})


def test_the_table_covers_what_is_promised():
    assert {f"efficientnetv2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")} <= set(LOGITS)
    assert {"efficientnet_b0", "efficientnet_b4"} <= set(LOGITS)
    assert {"efficientnetv2_xl", *(f"efficientnet_b{number}" for number in range(8))} <= set(SHAPES)
