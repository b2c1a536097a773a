"""The file of ``--costs``."""

from __future__ import annotations

import unicodedata

import pytest
from tests.messages import mentioning

from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.evaluate_options import read_cost_matrix

NAMES = ("oak", "elm")


@pytest.mark.parametrize(
    "text",
    [
        "true,elm,oak,no_answer\nelm,0,2,0.5\noak,3,0,0.5\n",
        "true;elm;oak;no_answer\n\nelm;0;2;0.5\n;;;\noak;3;0;0.5\n;;;\n",
        '"true"\t"elm"\t"oak"\t"no_answer"\n"elm"\t0\t2\t0.5\n"oak"\t3\t0\t0.5\n',
        "true, elm, oak, no_answer\nelm, 0, 2, 0.5\noak, 3, 0, 0.5\n",
    ],
)
def test_costs_are_read_as_a_spreadsheet_writes_them(text, tmp_path):
    (tmp_path / "costs.csv").write_text(text, encoding="utf-8-sig")
    costs = read_cost_matrix(tmp_path / "costs.csv", NAMES)
    assert costs.matrix.tolist() == [[0, 3], [2, 0]]
    assert costs.no_answer == 0.5


def test_a_name_is_known_however_its_letters_are_composed(tmp_path):
    """An umlaut as one letter and as two, both ways round."""
    one, two = (unicodedata.normalize(form, "Wälder") for form in ("NFC", "NFD"))
    assert one != two
    for names, written in (((one, "elm"), two), ((two, "elm"), one)):
        (tmp_path / "costs.csv").write_text(f"true,{written},elm\n{written},0,2\nelm,3,0\n", encoding="utf-8")
        assert read_cost_matrix(tmp_path / "costs.csv", names).matrix.tolist() == [[0, 2], [3, 0]]
    both = f"true,{one},{two}\n{one},0,2\n{two},3,0\n"
    (tmp_path / "costs.csv").write_text(both, encoding="utf-8")
    assert read_cost_matrix(tmp_path / "costs.csv", (one, two)).matrix.tolist() == [[0, 2], [3, 0]], (
        "two classes stay two"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "true;elm;oak\nelm;0;0,5\noak;1;0\n",
            ("elm", "0,5", "0"),
        ),
        ("", ("costs.csv", "CSV")),
        ("true,elm,oak\nelm,0,1,1\n", ("costs.csv", "CSV")),
        ("true;elm;oak\n;;\n", ("costs.csv", "oak", "elm")),
    ],
)
def test_costs_that_are_none_are_refused(text, said, tmp_path):
    (tmp_path / "costs.csv").write_text(text)
    with pytest.raises(InputError, match=mentioning(*said)):
        read_cost_matrix(tmp_path / "costs.csv", NAMES)
