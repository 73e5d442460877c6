"""The record of published numbers: complete, in the harness's own words, and consistent with itself."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict

import pytest
from paths import ROOT
from typing_help import present

from harness.data.metrics import METRICS
from harness.report.published import FOLDER, Number, load_record, record_names

TASKS = {
    "GLUE": ["mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola"],
    "SuperGLUE": ["multirc", "boolq", "wic", "wsc", "cb"],
    "MRQA": ["naturalquestions", "hotpotqa", "searchqa", "newsqa"],
}
OTHERS = ["record", "copa", "squad", "scitail", "average", ""]
NUMBERS = [(name, number) for name in record_names() for number in load_record(name)]


def table(record: str, name: str) -> dict[tuple[str, str, int | None], dict[str, Number]]:
    """(method, benchmark, k) -> task -> number, of one table."""
    found: dict[tuple[str, str, int | None], dict[str, Number]] = defaultdict(dict)
    for number in load_record(record):
        if number.table == name:
            found[(number.method, number.benchmark, number.k_shot)][number.task] = number
    return found


def values(numbers: dict[str, Number]) -> dict[str, float]:
    return {task: number.value for task, number in numbers.items() if number.value is not None}


def test_there_are_three_records() -> None:
    assert {name: len(load_record(name)) for name in record_names()} == {
        "accept-2024": 528,
        "dept-code": 118,
        "ept-2025": 62,
    }


@pytest.mark.parametrize("name", record_names())
def test_the_columns_of_a_file_are_the_fields_of_a_number(name: str) -> None:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(Number.__dataclass_fields__)


def test_every_number_has_a_source_and_known_names() -> None:
    for name, number in NUMBERS:
        assert number.source, name
        assert number.table, name
        assert number.role in ("main", "ablation", "claim", "size"), number
        assert number.task in [*OTHERS, *(task for tasks in TASKS.values() for task in tasks)], number
        assert number.backbone in ("t5-base", "t5-3b", "llama-2-7b", ""), number
        assert (number.split != "") == (number.metric in METRICS or number.metric == "mean"), number
        assert number.k_shot in (None, 4, 16, 32), number


def test_every_score_is_in_percent_and_in_the_metric_of_its_task() -> None:
    expected = {"stsb": "pearson", "cola": "matthews", "multirc": "f1", "average": "mean"}
    expected |= dict.fromkeys(TASKS["MRQA"], "token_f1")
    for name, number in NUMBERS:
        if number.split and number.value is not None:
            assert 10 <= number.value <= 100, number
        if number.split and name == "accept-2024":
            assert number.metric == expected.get(number.task, "accuracy"), number


def test_a_table_has_one_number_per_method_task_and_metric() -> None:
    keys = [
        (name, n.table, n.method, n.benchmark, n.task, n.metric, n.split, n.k_shot, n.backbone) for name, n in NUMBERS
    ]
    assert len(set(keys)) == len(keys)


# printed averages that are one unit of the last digit off the mean of their printed cells
OFF = {
    ("Table 1", "Fine-tuning", "GLUE"), ("Table 1", "HyperFormer(m)", "SuperGLUE"),
    ("Table 15", "ACCEPT, target-task init", "MRQA"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "digits"), [("Table 1", 1), ("Table 2", 1), ("Table 13", 1), ("Table 15", 2)])
def test_printed_averages_are_the_means_of_their_cells(name: str, digits: int) -> None:
    checked = 0
    for (method, benchmark, _), numbers in table("accept-2024", name).items():
        printed = values(numbers).pop("average", None)
        cells = [value for task, value in values(numbers).items() if task != "average"]
        if printed is None:
            assert not cells
            continue
        assert sorted(numbers) == sorted([*TASKS[benchmark], "average"])
        mean = statistics.fmean(cells)
        unit = 10**-digits
        off = (name, method, benchmark) in OFF
        assert abs(mean - printed) <= (unit if off else unit / 2) + 1e-9, (method, benchmark, mean, printed)
        assert not off or abs(mean - printed) > unit / 2 - 1e-9, "no longer off"
        checked += 1
    assert checked == {"Table 1": 31, "Table 2": 10, "Table 13": 6, "Table 15": 3}[name]


def test_the_printed_accept_row_is_the_best_of_its_three_initialisations() -> None:
    for benchmark in ("GLUE", "SuperGLUE"):
        strategies = [
            values(row) for (_, where, _), row in table("accept-2024", "Table 13").items() if where == benchmark
        ]
        printed = values(table("accept-2024", "Table 1")[("ACCEPT", benchmark, None)])
        for task in TASKS[benchmark]:
            assert printed[task] == max(row[task] for row in strategies), task


def test_the_dept_cells_of_accept_are_the_single_runs_of_depts_repository() -> None:
    printed = {
        number.task: number
        for number in load_record("accept-2024")
        if number.method == "DePT" and number.table in ("Table 1", "Table 2") and number.task != "average"
    }
    runs = [number for number in load_record("dept-code") if number.split == "test"]
    for task, number in printed.items():
        logged = next(run.value for run in runs if run.task == task and run.metric == number.metric)
        assert logged is not None
        assert number.value == round(logged, 1), task
    assert len(printed) == 17


def test_the_tables_of_granularity_agree() -> None:
    full, short = table("accept-2024", "Table 12"), table("accept-2024", "Table 5")
    assert len(short) == 12
    for key, numbers in short.items():
        assert values(numbers) == values(full[key])
        assert round(present(numbers["rte"].value) * 139 / 100, 1) % 1 == 0, "a share of the 139 test rows"


def test_the_package_carries_the_records() -> None:
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["harness"]
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"*.csv", "published_numbers/", "/harness/report/published_numbers"} & set(ignored)
