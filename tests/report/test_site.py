"""The pages of the leaderboard, read as files: what they say, that every link leads somewhere, what names can do."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_pages import Document, check_links
from site_runs import HOSTILE, STRANGE, write_runs
from stored_runs import answers, store
from test_report import beside
from typer.testing import CliRunner

from harness.cli.commands import app, main
from harness.cli.report import judge, marked
from harness.method.method import Method
from harness.method.registry import discover
from harness.report.figures.colours import method_looks
from harness.report.site import write
from harness.report.site.cells import facts_of
from harness.report.site.grids import Item, board_grid
from harness.report.site.method_files import read_method_file, read_method_files
from harness.report.site.names import slug
from harness.report.table_cells import Cell
from harness.report.tables import render_boards
from harness.results.schema import AnsweringCost, AnsweringForm
from harness.results.several_folders import Gathered
from harness.results.store import ResultStore


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "results"
    write_runs(folder)
    return folder


@pytest.fixture(scope="module")
def site(results: Path) -> Path:
    """The pages; predictions of one run were changed after it, those of another are gone."""
    changed, gone = sorted(results.glob("demo/boolq/lora/tiny/*.parquet"))
    changed.write_bytes(b"PAR1 something else")
    gone.unlink()
    out = results.parent / "site"
    done = CliRunner().invoke(app, ["site", str(results), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"{len(list(out.rglob('*.html')))} pages" in done.output
    return out


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {path: Document(path) for path in site.rglob("*.html")}


def page(documents: dict[Path, Document], site: Path, address: str) -> Document:
    return documents[site / address]


def cells_of(results: Path, site: Path, **wanted: object) -> list[Path]:
    """Pages of the cells with these fields."""
    found = [result for _, result in ResultStore(results).scan()]
    fitting = [r for r in found if all(getattr(r.cell, key) == value for key, value in wanted.items())]
    return [next(site.glob(f"cells/**/{result.cell_id}.html")) for result in fitting]


def test_every_link_leads_to_a_page_and_a_place_in_it_and_none_but_papers_leaves(
    site: Path, documents: dict[Path, Document]
) -> None:
    check_links(site, documents)


def test_every_page_can_be_reached_from_the_first(site: Path, documents: dict[Path, Document]) -> None:
    seen, ahead = set(), [site / "index.html"]
    while ahead:
        path = ahead.pop()
        if path not in seen and path.suffix == ".html":
            seen.add(path)
            local = [a.partition("#")[0] for a in documents[path].addresses if not a.startswith("https://")]
            ahead += [(path.parent / address).resolve() for address in local if address]
    assert {path.resolve() for path in seen} == {path.resolve() for path in documents}


def test_texts_of_others_are_text_and_never_markup(site: Path, documents: dict[Path, Document]) -> None:
    for path, document in documents.items():
        assert "img" not in document.tags, path
        for text in document.scripts:
            assert not text.strip() or isinstance(json.loads(text), dict), f"{path} holds a script of its own"
    index = page(documents, site, "index.html")
    assert STRANGE in index.text
    names = [row["name"] for text in index.scripts if text.strip() for row in json.loads(text)["rows"]]
    assert STRANGE in names
    assert sum(HOSTILE in document.text for document in documents.values()) >= 2, "answers on pages of cells"
    assert all(len(path.name) < 100 for path in site.rglob("*"))


@settings(max_examples=50)
@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_have_different_safe_files(one: str, other: str) -> None:
    for name in (one, other):
        assert re.fullmatch(r"[a-z0-9_-]+", slug(name))
    assert (slug(one) == slug(other)) == (one == other)


def test_a_name_that_looks_like_the_file_of_another_gets_another_file() -> None:
    assert slug("lora") == "lora"
    assert len({slug("LoRA"), slug(slug("LoRA")), slug("lora"), slug("../lora"), slug("lo/ra")}) == 5


def test_failed_missing_single_and_mixed_results_each_say_so(site: Path, documents: dict[Path, Document]) -> None:
    text = page(documents, site, "index.html").text
    for note in (
        "1 of 1 runs failed: FloatingPointError: the training loss became nan <b>",
        "1 of 3 runs failed",
        "tasks of this row were run under different protocols: accept-2024; ept-2025",
        "rows of this column were made with different protocols: not comparable",
        "runs differ in method source; rerun them with --rerun stale",
        "50 of 100 answers unreadable, so wrong",
        "Entries with one run are not compared: one run cannot speak of a method",
        "not tested against the best of the column: predictions are missing, were changed",
        "51 stored runs, 2 of them failed",
        "rte: 0 to 3 of 200 dev and test rows also stand in train, which rewards memory",
    ):
        assert note in text
    assert "rte: 0 to 3 of 200 dev and test rows also stand in train" in page(documents, site, "tasks/rte.html").text
    task = page(documents, site, "tasks/rte.html").text
    assert "100 dev and 100 test rows, fingerprint f, 3 of dev and test also in training" in task
    assert "fingerprint f; rte: all 100 dev rows have the label 'yes'" in task
    method = page(documents, site, "methods/lora.html").text
    assert "made with another version of this file" in method


def test_the_table_says_what_the_other_formats_say(results: Path, site: Path, documents: dict[Path, Document]) -> None:
    scanned = list(ResultStore(results).scan())
    boards = marked(Gathered(scanned), None)
    verdicts = judge(boards, scanned)
    entry = next(row for row in boards[1].rows if row.label == "finetune").entries["rte"]
    shown = [cell.split() for cell in page(documents, site, "index.html").cells]
    assert [f"{entry.mean:.1f}±{entry.std:.1f}", "(2)"] in [cell[:2] for cell in shown]
    assert (site / "data" / "leaderboards.csv").read_text() == render_boards(boards, "csv", significance=verdicts)
    stored = json.loads((site / "data" / "leaderboards.json").read_text())
    assert stored[1]["rows"] == json.loads(render_boards(boards, "json", significance=verdicts))[1]["rows"]
    assert stored[1]["statistics"]["tied_with_best"]


def test_the_downloads_have_a_line_per_run_with_its_page(results: Path, site: Path) -> None:
    found = [result for _, result in ResultStore(results).scan()]
    lines = list(csv.DictReader((site / "data" / "runs.csv").read_text().splitlines()))
    assert [line["cell_id"] for line in lines] == [result.cell_id for result in found]
    assert [line["cell_id"] for line in json.loads((site / "data" / "runs.json").read_text())] == [
        result.cell_id for result in found
    ]
    for line in lines:
        assert (site / line["page"]).is_file()
        assert (results / line["file"]).is_file()
    statuses = {(line["row"], line["grid"]): line["status"] for line in lines}
    assert statuses["ept", "lr=0.1"] == "in the table"
    assert statuses["ept", "lr=0.2"] == "another grid point won on dev"
    assert statuses["bitfit", ""] == "failed: FloatingPointError"


def test_the_page_of_a_cell_holds_what_its_result_holds(
    results: Path, site: Path, documents: dict[Path, Document]
) -> None:
    (path,) = cells_of(results, site, label="lora", backbone="big", task="cb")
    result = next(r for _, r in ResultStore(results).scan() if r.cell_id == path.stem)
    document = documents[path]
    assert result.files.predictions is not None
    for part in (result.files.predictions, "Scores of step 10", "97.00", "recipe.warmup_steps", "3,145,728,000"):
        assert part in document.text
    assert document.cells[-4:] == ["19", "1", "1", "yes"]
    (curve,) = (json.loads(text) for text in document.scripts if text)
    assert curve == {"label": "dev Acc.", "steps": [10], "dev": [50.0], "loss": [None], "selected": 10}


def test_changed_and_missing_predictions_are_not_shown(
    results: Path, site: Path, documents: dict[Path, Document]
) -> None:
    texts = [documents[path].text for path in cells_of(results, site, label="lora", backbone="tiny", task="boolq")]
    assert sum("their SHA-256 is another" in text for text in texts) == 1
    assert sum("cannot be read: FileNotFoundError" in text for text in texts) == 1


def test_a_failure_has_its_traceback(results: Path, site: Path, documents: dict[Path, Document]) -> None:
    (path,) = cells_of(results, site, label="bitfit")
    for part in ("FloatingPointError at step 7: the training loss became nan <b>", "line 1", "no predictions"):
        assert part in documents[path].text


def test_what_is_read_from_the_source_is_what_an_import_gives() -> None:
    read = read_method_files()
    for name, registered in discover().items():
        file, cls = read.pop(name), registered.cls
        assert cls is not None
        assert file.sha256 == registered.spec.source_sha256
        assert file.summary == registered.summary
        assert (file.paper_key, file.paper_url) == (cls.paper.key, cls.paper.url)
        assert (dict(file.paper_params), file.paper_note) == (cls.paper.params, cls.paper.params_note)
        if issubclass(cls, Method):
            fields = dataclasses.fields(cls.HP)
            assert [item.name for item in file.settings] == [field.name for field in fields]
            for item, field in zip(file.settings, fields, strict=True):
                made = field.default_factory() if callable(field.default_factory) else field.default
                assert eval(item.default) == made
            swept = {f"recipe.{key}" for key in cls.defaults.recipe} | {f"hp.{key}" for key in cls.defaults.hp}
            assert set(file.defaults) == swept
    assert not read


def test_a_file_that_is_no_method_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "other.py").write_text("class A:\n    name = 'another'\n")
    (tmp_path / "mine.py").write_text('"""Mine."""\n\nclass A:\n    name = "mine"\n    paper = make()\n')
    assert read_method_file(tmp_path / "broken.py") is None
    assert set(read_method_files([tmp_path])) - set(read_method_files()) == {"mine"}


def test_published_rows_stand_apart_and_never_win() -> None:
    board = beside("accept-2024")
    grid = board_grid(board, None, method_looks(["best", "worst"]))
    assert grid.apart == 2
    assert len(grid.rows) == 2 + len(board.published)
    assert all("published" in row[0].cell.text and not row[0].href for row in grid.rows[2:])
    assert not any(item.cell.rank for row in grid.rows[2:] for item in row)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("1,960", 1960),
        ("37,536 (kept 9,600)", 37536),
        ("95.0", 95),
        ("-3.5", -3.5),
        ("–", None),
        ("", None),
        ("1e+03", 1000),
    ],
)
def test_entries_sort_by_the_number_that_is_printed(text: str, order: float | None) -> None:
    assert Item(Cell(text)).order == order


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--out'"),
        (["--out", "file"], "--out: is a file, not a folder"),
        (["--out", "full"], "--out: holds other things than a page"),
        (["--out", "new", "--tuning"], "No such option: --tuning"),
        (["--out", "new", "--methods-dir", "nowhere"], "--methods-dir: no such folder"),
        (["--out", "file/below"], "--out: cannot be written"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    arguments: list[str], message: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full", "mine.txt").write_text("mine")
    one = next(results.glob("demo/cb/majority/tiny/*.json"))
    store = Path("runs", "demo", "cb", "majority", "tiny")
    store.mkdir(parents=True)
    (store / one.name).write_bytes(one.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["harness", "site", "runs", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_other_processes_write_the_same_pages(
    results: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MANY", 1)
    monkeypatch.setattr(write, "CHUNK", 30)
    out = tmp_path / "site"
    done = CliRunner().invoke(app, ["site", str(results), "--out", str(out)])
    assert done.exit_code == 0, done.output
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert all((site / file).read_bytes() == (out / file).read_bytes() for file in files)


def test_a_new_page_takes_the_place_of_the_old_one_without_torch(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    code = (
        "import sys; from harness.cli.commands import app\n"
        "for _ in range(2): app(['site', *sys.argv[1:]], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    single = tmp_path / "runs"
    one = next(results.glob("demo/cb/majority/tiny/*.json"))
    single.mkdir()
    (single / one.name).write_bytes(one.read_bytes())
    done = subprocess.run([sys.executable, "-c", code, str(single), "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]
    assert len(list(out.rglob("*.html"))) == 4


def test_the_page_of_a_cell_holds_what_answering_costs_and_who_asked_for_the_cell(tmp_path: Path) -> None:
    result = store(tmp_path, "one", "cb", 1, *answers(60), repeat=2)
    form = AnsweringForm(ms_per_row=1.5, peak_bytes=9, disk_bytes=3)
    cost = AnsweringCost(num_rows=4, num_rounds=5, batch_tokens=64, bare=form, beside=form, not_merged="a prompt")
    cell = result.cell.model_copy(update={"study": "tpe-abc"})
    found = {
        facts.title: dict(facts.items)
        for facts in facts_of(tmp_path / "x.json", result.model_copy(update={"answering": cost, "cell": cell}))
    }
    assert found["What answering costs"]["beside.ms_per_row"] == "1.5"
    assert found["What answering costs"]["not_merged"] == "a prompt"
    assert (found["Settings"]["search"], found["Settings"]["repeat"]) == ("tpe-abc", "2")
