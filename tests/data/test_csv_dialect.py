"""CSV files as spreadsheets write them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.messages import mentioning

from efficientnetv2.data.csv_dialect import read_cells, read_header, write_table


@pytest.mark.parametrize(
    ("header", "separator", "names"),
    [
        ("path,label", ",", ["path", "label"]),
        ("path;label;x", ";", ["path", "label", "x"]),
        ("path\tlabel", "\t", ["path", "label"]),
        ('"a;b;c","d;e"', ",", ["a;b;c", "d;e"]),
        ('"says ""a;b"""\t"c,d"', "\t", ['says "a;b"', "c,d"]),
        ('path;"taken\n, on";label', ";", ["path", "taken\n, on", "label"]),
        ('path;size 5"', ";", ["path", 'size 5"']),
        ("path", ",", ["path"]),
        ("", ",", []),
    ],
)
def test_separator_is_found_from_the_header(header, separator, names, tmp_path):
    (tmp_path / "a.csv").write_text(f"{header}\n1\n", encoding="utf-8-sig")
    assert read_header(tmp_path / "a.csv") == (separator, names)


def test_rows_keep_their_numbers_and_blank_rows_are_skipped(tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n\nNA;1\n;\n2\n ; \n")
    table = read_cells(tmp_path / "a.csv")
    assert table.index.tolist() == [3, 5]
    assert table.to_numpy().tolist() == [["NA", "1"], ["2", ""]]


@given(
    st.lists(st.tuples(*[st.text(st.sampled_from('a,;"\r\n é'), max_size=5)] * 2), min_size=1, max_size=4),
    st.sampled_from(["b", "b\r", "b,"]),
)
def test_table_is_read_back_as_written(rows, name):
    """Cells may have line breaks, for example folder names of a script with Windows line endings."""
    table = pd.DataFrame(rows, columns=["a", name]).assign(number=range(len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "a.csv", table)
        read = pd.read_csv(Path(folder) / "a.csv", keep_default_na=False, skip_blank_lines=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ("No columns",)),
        (b"\xff\xfe", ("0xff",)),
        (b"a,b\n1,2,3\n", ("Length of header",)),
        (b"a,b\n1,2\n1,2,3,4\n", ("line 3",)),
    ],
)
def test_invalid_csv_is_an_error_with_the_cause(content, names, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=mentioning(*names)):
        read_cells(tmp_path / "a.csv")
