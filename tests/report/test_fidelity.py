"""Our numbers beside published ones, in every cell that both have."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from paths import METHODS
from stored_runs import answers, store
from test_report import result
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.report.agreement import disagreements, parse_count
from harness.report.boards import Board, Entry, collect_boards
from harness.report.fidelity import compare_with_published, fidelity_of, lay_out_fidelity
from harness.report.published import FOLDER, find_published, load_record, record_names
from harness.results.schema import ParamCounts, Result
from harness.suite.blocks import Draw
from harness.suite.cell import Mixture, Part

TRAINED = {
    "lora": 3_538_944,
    "finetune": 222_903_552,
    "adapter": 1_855_104,
    "adapter_drop": 1_101_984,
    "lst": 3_878_712,
}
"""On T5-base; 76,800 of any other method here."""


def run(
    method: str, task: str, seed: int, test: float, *, label: str = "", trained: int | None = None, **changes: object
) -> Result:
    """A run on T5-base that trained as many parameters as are printed; `changes` are fields of its cell."""
    made = result(method, task, seed, 50, test, backbone="t5-base", num_train=250)
    cell = made.cell.model_copy(update={"label": label or method, **changes})
    count = TRAINED.get(method, 76_800) if trained is None else trained
    ids = {"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id}
    return made.model_copy(update={**ids, "params": ParamCounts(num_trained=count, num_kept=count)})


def board(*labels: str, record: str = "accept-2024") -> Board:
    runs = [
        run(label, task, seed, 80 + 2 * seed) for label in labels for seed in (1, 2) for task in ("cb", "rte", "wic")
    ]
    return collect_boards(runs, find_published(record))[0]


def few(method: str, task: str, k: int, test: float) -> Result:
    return run(method, task, 1, test, few_shot=Draw(k=k, rule="balanced", select_with="dev", seed=1))


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
    printed = {number.method for name in record_names() for number in load_record(name)}
    for published, file in json.loads((FOLDER / "methods.json").read_text()).items():
        assert published in printed
        assert (METHODS / f"{file}.py").exists()


def test_a_dash_in_the_paper_and_a_failure_of_ours_are_no_cells() -> None:
    assert {item.task for item in compare_with_published(board("lst"))} == {"rte"}
    failed = result("lora", "cb", 1, 0, None, backbone="t5-base")
    assert compare_with_published(collect_boards([failed], find_published("accept-2024"))[0]) == []


def test_a_table_tells_source_and_mean_difference() -> None:
    table = lay_out_fidelity(board("lora"))
    row = [cell.text for cell in table.rows[0]]
    assert row == ["lora", "LoRA", "rte (Acc.)", "75.5", "83.0", "+7.5", "2"]
    assert table.notes == ["published: Lin et al. 2024, arXiv:2410.12847, Table 1; cited there from Shi & Lipani 2024"]
    gaps = [item.difference for item in compare_with_published(board("lora"))]
    assert f"3 cells: ours are {sum(gaps) / 3:+.1f} points" in table.remarks[0]


def test_nothing_in_common_is_said() -> None:
    assert "No measured method is among the published ones." in lay_out_fidelity(board("mine")).remarks
    (other,) = collect_boards([result("lora", "cb", 1, 1, 50)], find_published("accept-2024"))
    assert "accept-2024 has no score on tiny for these tasks." in lay_out_fidelity(other).remarks


def test_the_command_prints_tables_and_records(tmp_path: Path) -> None:
    store(tmp_path, "lora", "rte", 1, *answers(80), backbone="t5-base", num_trained=TRAINED["lora"])
    arguments = ["fidelity", "accept-2024", str(tmp_path), "--format"]
    text = CliRunner().invoke(app, [*arguments, "terminal"]).output
    assert "+4.5" in text
    (row,) = csv.DictReader(io.StringIO(CliRunner().invoke(app, [*arguments, "csv"]).output))
    assert (row["published"], row["ours"]) == ("75.5", "80.0")


def test_each_k_stands_beside_its_own_k_alone() -> None:
    runs = [few(m, t, k, 50 + k) for m in ("dept", "accept") for t in ("cb", "boolq") for k in (4, 16, 32)]
    (made,) = collect_boards(runs, find_published("accept-2024"))
    found = compare_with_published(made)
    assert len(found) == len(runs)
    for item in found:
        k = round(item.ours - 50)
        assert item.method.endswith(f"(k={k})")
        assert item.published_method.endswith(f"(k={k})")


def test_whole_splits_and_draws_do_not_meet() -> None:
    (made,) = collect_boards([few("dept", "cb", 16, 60), run("dept", "boolq", 1, 80)], find_published("accept-2024"))
    assert {(item.task, item.published_method) for item in compare_with_published(made)} == {
        ("cb", "DePT (k=16)"),
        ("boolq", "DePT"),
    }


def test_the_mean_is_over_cells_of_the_same_settings() -> None:
    runs = [few("accept", "cb", 16, 90.0), few("accept", "cb", 32, 83.3)]
    table = lay_out_fidelity(collect_boards(runs, find_published("accept-2024"))[0])
    (sixteen,) = (n.value for n in load_record("accept-2024") if (n.method, n.task, n.k_shot) == ("ACCEPT", "cb", 16))
    assert sixteen is not None
    assert f"2 cells: ours are {(90 - sixteen) / 2:+.1f} points" in table.remarks[0]


@pytest.mark.parametrize(
    ("ours", "record", "reason"),
    [
        # plain vectors: only the printed count tells how many
        (run("prompt_tuning", "cb", 1, 60, trained=15_360), "accept-2024", "15,360 parameters, published with 76.8K"),
        # the same count at any length, but the record's protocol says which one the paper used
        (run("accept", "cb", 1, 60, hp={"prompt_length": 20}), "accept-2024", "prompt_length is 20, published with 60"),
        # the log of the published run says both
        (run("dept", "boolq", 1, 60, hp={"prompt_length": 60, "rank": 30}), "dept-code",
         "hp.prompt_length is 60, published with 40, hp.rank is 30, published with 45"),
    ],
    ids=["parameters", "protocol", "log"],
)  # fmt: skip
def test_other_settings_are_not_compared_and_said(ours: Result, record: str, reason: str) -> None:
    (made,) = collect_boards([ours], find_published(record))
    found = fidelity_of(made)
    assert found.comparisons == []
    assert any(reason in text for text in found.left_out)
    remarks = lay_out_fidelity(made).remarks
    assert any(reason in text for text in remarks)
    assert "No measured row was made with the settings of a published one." in remarks


def test_a_mixture_is_not_a_training_on_one_task() -> None:
    mixture = Mixture(parts=[Part(task="cb", task_version=1)], sampling="equal", temperature=1)
    entry = Entry(runs=[run("lora", "cb", 1, 60, mixture=mixture)])
    numbers = {n.note: n for n in find_published("accept-2024").numbers if n.task == "cb" and n.k_shot is None}
    record = find_published("accept-2024")
    assert "several tasks at once" in disagreements(entry, numbers[""], record)[0]
    assert not any("at once" in text for text in disagreements(entry, numbers["multi-task training"], record))


def test_the_settings_of_a_log_are_compared() -> None:
    runs = [run("dept", "boolq", 1, 80, hp={"prompt_length": 40, "rank": 45})]
    assert [item.task for item in compare_with_published(collect_boards(runs, find_published("dept-code"))[0])] == [
        "boolq"
    ]


def test_of_several_rows_that_fit_the_one_with_the_methods_name_counts() -> None:
    plain, variant = run("lora", "cb", 1, 90), run("lora", "cb", 1, 20, label="lora_variant")
    other = run("lora", "cb", 1, 10, label="lora_other")
    assert [
        item.ours for item in compare_with_published(collect_boards([plain, variant], find_published("accept-2024"))[0])
    ] == [90]
    found = fidelity_of(collect_boards([variant, other], find_published("accept-2024"))[0])
    assert found.comparisons == []
    assert sorted(text.partition(" beside")[0] for text in found.left_out) == ["lora_other", "lora_variant"]


@pytest.mark.parametrize(("text", "count"), [("76.8K", 76_800), ("76,800", 76_800), ("1.9M", 1.9e6), ("", None)])
def test_printed_counts_are_read(text: str, count: float | None) -> None:
    assert parse_count(text) == (None if count is None else pytest.approx(count))


def test_the_seed_that_chose_is_left_out_on_request(tmp_path: Path) -> None:
    for seed, lr, index, share in ((1, 0.1, 0, 80), (1, 0.2, 1, 70), (2, 0.1, 0, 90)):
        store(tmp_path, "lora", "rte", seed, *answers(share), backbone="t5-base", num_trained=TRAINED["lora"], lr=lr,
              index=index, dev=50.0 - index)  # fmt: skip
    arguments = ["fidelity", "accept-2024", str(tmp_path), "--format"]
    (row,) = json.loads(CliRunner().invoke(app, [*arguments, "json"]).output)
    assert (row["ours"], row["num_runs"]) == (85, 2)
    (row,) = json.loads(CliRunner().invoke(app, [*arguments, "json", "--report-seeds", "others"]).output)
    assert (row["ours"], row["num_runs"]) == (90, 1)
    text = CliRunner().invoke(app, [*arguments, "terminal", "--report-seeds", "others"]).output
    assert "seed that chose a grid point is left out" in " ".join(text.split())
