"""Our numbers beside published ones, in every cell that both have."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from stored_runs import answers, store
from test_report import result
from typer.testing import CliRunner

from harness.cli import app
from harness.report.aggregate import Board, collect
from harness.report.fidelity import compare_with_published, lay_out_fidelity
from harness.report.published import FOLDER, find, load, names

METHODS = Path(__file__).resolve().parent.parent / "methods"


def board(*labels: str, record: str = "accept-2024") -> Board:
    runs = [
        result(label, task, seed, 50, 80 + 2 * seed, backbone="t5-base", num_train=250)
        for label in labels
        for seed in (1, 2)
        for task in ("cb", "rte", "wic")
    ]
    return collect(runs, find(record))[0]


def test_every_common_cell_is_compared() -> None:
    found = compare_with_published(board("lora", "mine"))
    cells = {item.task: item for item in found}
    assert set(cells) == {"cb", "rte", "wic"}
    assert cells["cb"].published == 92.9
    assert (cells["cb"].ours, cells["cb"].num_runs) == (83, 2)
    assert cells["cb"].difference == pytest.approx(83 - 92.9)
    assert {item.method for item in found} == {"lora"}


@pytest.mark.parametrize(
    ("label", "published"),
    [
        ("finetune", {"Fine-tuning"}),
        ("accept", {"ACCEPT"}),
        ("dept", {"DePT"}),
        ("adapter", {"Adapter"}),
        ("adapter_drop", {"AdapterDrop"}),
        ("prompt_tuning", {"PT", "PT (re-tuned)"}),
        ("prefix_tuning", set()),
    ],
)
def test_a_method_is_found_under_its_published_name(label: str, published: set[str]) -> None:
    assert {item.published_method for item in compare_with_published(board(label))} == published


def test_names_that_no_rule_finds_are_in_a_record_and_have_a_file() -> None:
    printed = {number.method for name in names() for number in load(name)}
    for published, file in json.loads((FOLDER / "methods.json").read_text()).items():
        assert published in printed
        assert (METHODS / f"{file}.py").exists()


def test_a_dash_in_the_paper_and_a_failure_of_ours_are_no_cells() -> None:
    assert {item.task for item in compare_with_published(board("lst"))} == {"rte"}
    failed = result("lora", "cb", 1, 0, None, backbone="t5-base")
    assert compare_with_published(collect([failed], find("accept-2024"))[0]) == []


def test_a_table_tells_source_and_mean_difference() -> None:
    table = lay_out_fidelity(board("lora"))
    row = [cell.text for cell in table.rows[0]]
    assert row == ["lora", "LoRA", "rte (Acc.)", "75.5", "83.0", "+7.5", "2"]
    assert table.notes == ["published: Lin et al. 2024, arXiv:2410.12847, Table 1; cited there from Shi & Lipani 2024"]
    gaps = [item.difference for item in compare_with_published(board("lora"))]
    assert f"3 cells: ours are {sum(gaps) / 3:+.1f} points" in table.remarks[0]


def test_nothing_in_common_is_said() -> None:
    assert "No measured method is among the published ones." in lay_out_fidelity(board("mine")).remarks
    (other,) = collect([result("lora", "cb", 1, 1, 50)], find("accept-2024"))
    assert "accept-2024 has no score on tiny for these tasks." in lay_out_fidelity(other).remarks


def test_the_command_prints_tables_and_records(tmp_path: Path) -> None:
    store(tmp_path, "lora", "rte", 1, *answers(80), backbone="t5-base")
    arguments = ["report", str(tmp_path), "--fidelity", "accept-2024", "--format"]
    text = CliRunner().invoke(app, [*arguments, "terminal"]).output
    assert "+4.5" in text
    (row,) = csv.DictReader(io.StringIO(CliRunner().invoke(app, [*arguments, "csv"]).output))
    assert (row["published"], row["ours"]) == ("75.5", "80.0")
    clash = CliRunner().invoke(app, ["report", str(tmp_path), "--fidelity", "accept-2024", "--tuning"])
    assert clash.exit_code != 0
