"""The site of the documentation: every page is in it, every link leads somewhere, and the notebook runs."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import harness
from harness.errors import UserError

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` for a copy of the repository."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    for name in ("docs", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "benchmarks").mkdir()
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml", "benchmarks/README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_every_page_is_in_the_site_and_no_link_is_dead(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages
    start = (tmp_path / "site" / "index.html").read_text()
    assert 'href="methods.html"' in start, "the README's docs/methods.md is a page of the site"
    assert "fonts.googleapis" not in start, "nothing is loaded from elsewhere"


@pytest.mark.parametrize(
    "line", ["[a](no-such-page.md)", "[a](install.md#no-such-heading)"], ids=["a page", "a heading"]
)
def test_a_dead_link_ends_the_build(tmp_path: Path, line: str) -> None:
    folder = copied(tmp_path)
    with (folder / "docs" / "quick-tour.md").open("a") as page:
        page.write(f"\n{line}\n")
    done = build(folder, tmp_path / "site")
    assert done.returncode != 0
    assert line.split("(")[1][:-1].split("#")[-1] in done.stderr


def test_every_cell_of_the_notebook_shows_what_it_printed() -> None:
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"], "".join(cell["source"])
            assert "error" not in {output["output_type"] for output in cell["outputs"]}
            assert "stderr" not in {output.get("name") for output in cell["outputs"]}, (
                "a warning, or a path of a machine"
            )


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    names: dict[str, object] = {}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for cell in CELLS:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert "8 cells trained, 0 failed" in shown.getvalue()


def test_a_suite_is_run_by_its_name_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quickstart"):
        harness.run("quickstrat", results=tmp_path / "out")
    done = harness.run(
        "quickstart", methods=["majority"], tasks=["micro_sentiment"], results=tmp_path / "out", quiet=True
    )
    assert (done.num_trained, done.num_failed) == (2, 0)
