"""The baselines that answer without a backbone: what they must score, on every kind of task, in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_help import present

from harness.data.metrics import compute_metrics
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.method.method import Rule
from harness.method.registry import discover, get_class
from harness.results.schema import Result
from harness.results.store import ResultStore, read_predictions
from harness.runner.run_suite import run
from harness.train.method_contract import check_method_file

pytestmark = pytest.mark.usefixtures("few_rows")

RULES = ["majority", "random_guess"]
KINDS = {"micro_sentiment": "classification", "micro_similarity": "regression", "micro_qa": "text"}
Floor = dict[tuple[str, str, int], tuple[Result, pd.DataFrame]]
SUITE = """\
suite: floor
backbones: [micro-t5]
tasks: [micro_sentiment, micro_similarity, micro_qa]
seeds: [1, 2]
methods: [majority, random_guess]
"""


def rule(name: str, labels: list[str]) -> Rule:
    cls = get_class(discover(), name)
    assert issubclass(cls, Rule)
    return cls(labels)


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Floor:
    """Result and test predictions per task, rule and seed, of a suite run from its file."""
    folder = tmp_path_factory.mktemp("floor")
    (folder / "floor.yaml").write_text(SUITE)
    assert run(folder / "floor.yaml", results=folder / "results", quiet=True).num_failed == 0
    found = {}
    for path, result in ResultStore(folder / "results").scan():
        rows = read_predictions(path)
        found[(result.cell.task, result.cell.label, result.cell.seed)] = (result, rows[rows["split"] == "test"])
    return found


def test_the_tasks_tried_are_of_every_kind() -> None:
    assert {all_tasks()[name].kind for name in KINDS} == set(KINDS.values()) == {"classification", "regression", "text"}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_meets_the_contract(name: str) -> None:
    assert all(finding.ok for finding in check_method_file(discover()[name].path))


@pytest.mark.parametrize("task", KINDS)
def test_majority_scores_the_share_of_the_most_frequent_target(floor: Floor, task: str) -> None:
    data = load_task(all_tasks()[task], None)
    target = Counter(example.target for example in data.train).most_common(1)[0][0]
    for seed in (1, 2):
        result, rows = floor[(task, "majority", seed)]
        assert set(rows["prediction"]) == {target}
        metrics = present(result.test).metrics
        share = 100 * sum(target == refs[0] for refs in rows["references"]) / len(rows)
        if KINDS[task] == "classification":
            assert metrics["accuracy"] == pytest.approx(share)
        elif KINDS[task] == "text":
            assert metrics["exact_match"] == pytest.approx(share)
        else:
            assert metrics["pearson"] == metrics["spearman"] == 0.0


@pytest.mark.parametrize("task", KINDS)
def test_random_guess_draws_readable_answers_anew_for_each_seed(floor: Floor, task: str) -> None:
    data = load_task(all_tasks()[task], None)
    choices = set(data.task.targets) or {example.target for example in data.train}
    first, second = (floor[(task, "random_guess", seed)][1]["prediction"].tolist() for seed in (1, 2))
    assert set(first) | set(second) <= choices
    assert first != second
    assert present(floor[(task, "random_guess", 1)][0].test).num_unreadable == 0


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_random_guess_scores_one_over_the_number_of_labels_whatever_was_trained_on(seed: int, count: int) -> None:
    labels = [f"label {index}" for index in range(count)]
    answers = rule("random_guess", labels).answers([labels[0]] * 50, 4_000, seed)
    references = [[labels[index % count]] for index in range(4_000)]
    expected = 100 / count
    spread = 100 * (1 / count * (1 - 1 / count) / 4_000) ** 0.5
    got = compute_metrics(["accuracy"], answers, references, labels)["accuracy"]
    assert abs(got - expected) < 6 * spread  # six standard deviations of a binomial share


def test_random_guess_draws_texts_as_often_as_they_stand_in_train() -> None:
    answers = rule("random_guess", []).answers(["Rome"] * 3 + ["Paris"], 8_000, 7)
    assert Counter(answers)["Rome"] / 8_000 == pytest.approx(0.75, abs=0.03)
    assert set(answers) == {"Rome", "Paris"}


def test_ties_of_majority_go_to_the_first_target() -> None:
    assert rule("majority", ["0", "1"]).answers(["1", "0", "0", "1"], 2, 0) == ["1", "1"]


@pytest.fixture(scope="module")
def answers_elsewhere() -> dict[str, list[str]]:
    """What each rule answers in a new process: one for all of them, since it imports torch."""
    code = (
        "import json, sys; from harness.method import discover, get_class;"
        "rules = {name: get_class(discover(), name)(['no', 'yes', 'maybe']) for name in sys.argv[1:]};"
        "print(json.dumps({name: rule.answers(['yes', 'no', 'no'], 50, 123) for name, rule in rules.items()}))"
    )
    there = subprocess.run([sys.executable, "-c", code, *RULES], capture_output=True, text=True, check=True)
    answers: dict[str, list[str]] = json.loads(there.stdout)
    return answers


@pytest.mark.parametrize("name", RULES)
def test_another_process_gives_the_same_answers(name: str, answers_elsewhere: dict[str, list[str]]) -> None:
    here = rule(name, ["no", "yes", "maybe"]).answers(["yes", "no", "no"], 50, 123)
    assert answers_elsewhere[name] == here
