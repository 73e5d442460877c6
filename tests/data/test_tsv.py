"""TSV files with and without quotes around cells: each is read as it was written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.file_formats import TsvRules, read_file
from harness.data.tsv_quotes import is_quoted, quoted_rows

HEADER = ["text", "label"]
words = st.lists(st.sampled_from(["good", '"fine"', '5" nails', "a, b", '"', "é", "1.0", "don't"]), max_size=4)
cells = words.map(" ".join)
lines_of_text = st.lists(cells, min_size=1, max_size=2).map("\n".join)


def written(rows: Sequence[Sequence[str]], quoting: Literal[0, 1, 2, 3]) -> str:
    file = io.StringIO()
    csv.writer(file, "excel-tab", quoting=quoting, lineterminator="\n").writerows([HEADER, *rows])
    return file.getvalue()


def read(folder: Path, text: str) -> list[list[str]]:
    path = folder / "rows.tsv"
    path.write_bytes(text.encode())
    return [list(row.values()) for _, row in read_file(path)]


@given(
    st.lists(st.tuples(lines_of_text, cells), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_writer_of_tables_quotes_comes_back(rows: list[tuple[str, str]], quoting: Literal[0, 1, 2, 3]) -> None:
    text = written(rows, quoting)
    lines = text.splitlines(keepends=True)
    if '"' not in text:
        assert not is_quoted(lines, 1_000)
        return
    assert is_quoted(lines, 1_000)
    assert [row for _, row in quoted_rows(lines)] == [HEADER, *map(list, rows)]


@pytest.mark.parametrize(
    "texts",
    [
        ['5" nails', "good"],
        ['"yes" and "no"', "good"],
        ['"a', "b", 'c"'],  # two lone quotes swallow no row between them
        ['say ""', "x"],
        ['"a"" b', "x"],
        ['"yes"', "no"],  # needs no quotes, and its neighbours have none
        ['"yes, and more"', "no, and more"],
        ['"', "x"],
        ['"he said ""x"""', '5" nails'],  # one mark out of place, and all marks are text
    ],
)
@pytest.mark.parametrize("mark_first", [True, False])
def test_quotes_that_no_writer_would_leave_so_are_text(tmp_path: Path, texts: list[str], mark_first: bool) -> None:
    rows = [[text, "0"] if mark_first else ["0", text] for text in texts]
    assert read(tmp_path, "\n".join("\t".join(row) for row in [HEADER, *rows])) == rows


def test_spreadsheets_quote_commas_and_end_lines_with_two_characters(tmp_path: Path) -> None:
    text = '\ufefftext\tlabel\r\n"late, and ""broken"""\tbad\r\nfine\tgood\r\n"a, b"\tgood\r\n'
    assert read(tmp_path, text) == [['late, and "broken"', "bad"], ["fine", "good"], ["a, b", "good"]]
    assert read(tmp_path, text.replace('""broken""', "broken")) == [
        ["late, and broken", "bad"], ["fine", "good"], ["a, b", "good"],
    ]  # fmt: skip


def test_texts_quoted_and_numbers_not_is_a_writer_too(tmp_path: Path) -> None:
    assert read(tmp_path, '"text"\t"label"\n"fine"\t1.0\n"so so"\t\n') == [["fine", "1.0"], ["so so", ""]]


def test_a_file_known_to_break_is_read_without_regard_to_quotes(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"""a"" b"\t0\n"c\nd"\t1\n')
    rules = TsvRules(skips_broken=True)
    assert [row["text"] for _, row in read_file(path, rules)] == ['"""a"" b"', 'd"']
    assert rules.skipped == [f"{path}:3"]
