"""LaTeX that compiles, HTML that holds together, statistics in each format, hostile texts in all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from paths import GOLDEN
from stored_runs import answers, store

from harness.report.boards import collect_boards
from harness.report.published import find_published
from harness.report.statistics.significance import assess_board
from harness.report.table_cells import Cell, Column, Table
from harness.report.tables import WRITERS, render_boards
from harness.report.two_folders import compare_folders
from harness.report.two_folders_tables import render_comparison
from harness.report.writers.csv_json import _number
from harness.report.writers.latex import escape
from harness.results.predictions import PredictionFiles
from harness.results.store import ResultStore

HOSTILE = r"<script>alert('x')</script> & 50% of $x_1^2$ \input{/etc/passwd} ~ # {}|–≈±é→"


def with_statistics(root: Path, style: str) -> str:
    """A board of three methods on two benchmarks, one entry with a single run, beside published numbers."""
    for label, share, num_trained in (("prompt_a", 60, 500), ("prompt_b", 90, 1_500), ("whole", 93, 9_000)):
        for seed in (1, 2)[: 1 if label == "whole" else 2]:
            for task, num_rows in (("cb", 50), ("rte", 200), ("mrpc", 200)):
                made = answers((share + 2 * seed) * num_rows // 100, num_rows)
                store(root, label, task, seed, *made, num_trained=num_trained, backbone="t5-base")
    scanned = list(ResultStore(root).scan())
    boards = collect_boards((result for _, result in scanned), find_published("accept-2024:Table 13"))
    return render_boards(
        boards, style, True, [assess_board(board, PredictionFiles(scanned).test_answers) for board in boards]
    )


@pytest.mark.parametrize("style", ["markdown", "terminal", "latex", "html"])
def test_each_format_with_statistics_equals_its_golden_file(tmp_path: Path, style: str) -> None:
    text, path = with_statistics(tmp_path, style), GOLDEN / f"statistics.{style}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "if the change is meant, run once with UPDATE_GOLDEN=1 and read the difference"


def hostile_table() -> Table:
    cells = [Cell(HOSTILE, "best", HOSTILE, "2", HOSTILE, True, (1,)), Cell("[x]", "second")]
    columns = [Column("method"), Column(HOSTILE, HOSTILE, (1,))]
    return Table(HOSTILE, HOSTILE, columns, [cells, cells], 1, [HOSTILE], [HOSTILE])


def tables(text: str) -> list[list[str]]:
    """Lines of each tabular between its rules."""
    found = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    return [[line for line in body.splitlines() if line.endswith(r"\\")] for body in found]


def width(line: str) -> int:
    spans = [int(count) for count in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans)


@pytest.mark.parametrize("name", ["demo", "published", "statistics"])
def test_every_line_of_a_latex_table_has_all_columns(name: str) -> None:
    text = (GOLDEN / f"{name}.latex").read_text()
    for lines in tables(text):
        assert len({width(line) for line in lines}) == 1
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_columns_stand_under_their_benchmark() -> None:
    (lines,) = tables((GOLDEN / "statistics.latex").read_text())
    assert lines[0].startswith(r" &  &  & \multicolumn{2}{c}{GLUE} & \multicolumn{1}{c}{SuperGLUE} & ")
    assert r"\cmidrule(lr){4-5}\cmidrule(lr){6-6}" in (GOLDEN / "statistics.latex").read_text()
    assert '<th colspan="2" scope="colgroup">GLUE</th>' in (GOLDEN / "statistics.html").read_text()


def test_latex_prints_special_characters_as_they_are() -> None:
    assert escape(r"a_b & 5% {x} \y ~^|") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}\textbar{}"
    )
    assert escape("Müller –→") == "Müller --?"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles_alone_and_inside_a_paper(tmp_path: Path) -> None:
    (tmp_path / "alone.tex").write_text(WRITERS["latex"]([hostile_table()]))
    shutil.copy(GOLDEN / "statistics.latex", tmp_path / "golden.tex")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}\\begin{document}Before.\n"
        "\\input{golden.tex}\\input{alone.tex}After.\\end{document}\n"
    )
    for name in ("alone", "golden", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 1_000


class Reader(HTMLParser):
    """Collects what a page holds; fails on a tag that is closed without being open."""

    EMPTY = ("meta", "link", "img", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.links += [str(values[key]) for key in ("href", "src") if values.get(key)]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


@pytest.mark.parametrize("name", ["demo", "published", "statistics"])
def test_a_page_holds_together_and_loads_nothing(name: str) -> None:
    page = read((GOLDEN / f"{name}.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not page.tags & {"script", "img", "link", "iframe"}


def test_two_footnotes_of_one_entry_are_told_apart() -> None:
    table = Table("title", "", [Column("method"), Column("cb")], [[Cell("dept"), Cell("1.0", notes=(1, 2))]])
    table.notes = ["one", "two"]
    assert "1, 2" in read(WRITERS["html"]([table])).text
    assert r"\textsuperscript{1,2}" in WRITERS["latex"]([table])
    assert "[1] [2]" in WRITERS["markdown"]([table])


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("rerun with --rerun stale", "rerun with -{}-rerun stale"),
        ("[-4.4, 13.1]", "[$-$4.4, 13.1]"),
        ("accept-2024, 1e-3, 400–9,000", "accept-2024, 1e-3, 400--9,000"),
    ],
)
def test_latex_prints_hyphens_minus_signs_and_dashes_apart(text: str, printed: str) -> None:
    assert escape(text) == printed


def test_texts_in_markdown_are_no_markup_and_end_no_cell() -> None:
    text = WRITERS["markdown"]([hostile_table()])
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}


def test_texts_of_results_cannot_become_markup() -> None:
    page = read(WRITERS["html"]([hostile_table()]))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 13


@pytest.mark.parametrize("style", list(WRITERS))
def test_a_score_just_below_zero_has_no_sign_where_it_is_shown_as_zero(tmp_path: Path, style: str) -> None:
    """A Matthews correlation of -0.025, of 8,000 answers of which one more is wrong than right."""
    references = [["1"]] * 4_000 + [["0"]] * 4_000
    predictions = ["1"] * 2_000 + ["0"] * 2_000 + ["1"] * 2_001 + ["0"] * 1_999
    for seed in (1, 2):
        made = store(tmp_path, "prompt", "cola", seed, predictions, references, metric="matthews")
        assert made.test is not None
        assert -0.05 < made.test.score < 0
    scanned = list(ResultStore(tmp_path).scan())
    boards = collect_boards(result for _, result in scanned)
    text = render_boards(
        boards, style, True, [assess_board(board, PredictionFiles(scanned).test_answers) for board in boards]
    )
    assert re.search(r"[-−]0\.0(?!\d)", text) is None
    assert re.search(r"(?<![\d.])0\.0(?!\d)|[-−]0\.0\d", text), text


def test_a_difference_just_below_zero_has_no_sign_either(tmp_path: Path) -> None:
    for folder, right in (("a", 4_001), ("b", 4_000)):
        store(tmp_path / folder, "prompt", "cola", 1, *answers(right, 8_000))
    found = compare_folders(*(list(ResultStore(tmp_path / name).scan()) for name in "ab"))
    table = render_comparison(found, "a", "b", "terminal")
    assert "+0.0" in table
    assert re.search(r"-0\.0(?!\d)", table) is None, table


def test_a_number_that_a_file_rounds_to_zero_has_no_sign() -> None:
    assert [str(_number(value)) for value in (-0.00004, -0.00006, 0.5)] == ["0.0", "-0.0001", "0.5"]
