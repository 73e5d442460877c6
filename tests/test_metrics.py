"""Metrics against scikit-learn and scipy, and what an unreadable answer counts."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.metrics import METRICS, compute, count_unreadable, exact_match, normalize_answer, token_f1

BINARY = ["0", "1"]
pairs = st.lists(st.tuples(st.sampled_from(BINARY), st.sampled_from(BINARY)), min_size=2, max_size=40)
three_way = st.lists(st.tuples(st.sampled_from("012"), st.sampled_from("012")), min_size=2, max_size=40)
numbers = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=3, max_size=30)


def score(name: str, rows: list[tuple[str, str]], labels: list[str]) -> float:
    return compute([name], [p for p, _ in rows], [[t] for _, t in rows], labels)[name]


@given(pairs)
def test_readable_answers_score_as_in_scikit_learn(rows: list[tuple[str, str]]) -> None:
    predicted, truth = zip(*rows, strict=True)
    assert score("accuracy", rows, BINARY) == pytest.approx(100 * sklearn.metrics.accuracy_score(truth, predicted))
    f1 = sklearn.metrics.f1_score(truth, predicted, pos_label="1", zero_division=0)
    assert score("f1", rows, BINARY) == pytest.approx(100 * f1)
    if len(set(truth) | set(predicted)) > 1:
        assert score("matthews", rows, BINARY) == pytest.approx(
            100 * sklearn.metrics.matthews_corrcoef(truth, predicted), abs=1e-9
        )


@given(three_way)
def test_macro_f1_is_the_mean_over_all_classes(rows: list[tuple[str, str]]) -> None:
    predicted, truth = zip(*rows, strict=True)
    expected = sklearn.metrics.f1_score(truth, predicted, labels=list("012"), average="macro", zero_division=0)
    assert score("macro_f1", rows, list("012")) == pytest.approx(100 * expected)


@given(numbers)
def test_correlations_are_those_of_scipy(rows: list[tuple[float, float]]) -> None:
    got, want = ([row[i] for row in rows] for i in (0, 1))
    texts = [(repr(p), repr(t)) for p, t in rows]
    for name, function in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        expected = function(got, want).statistic if len(set(got)) > 1 and len(set(want)) > 1 else 0.0
        expected = 0.0 if not math.isfinite(expected) else expected
        assert score(name, texts, []) == pytest.approx(100 * expected, abs=1e-6)


@given(three_way)
def test_an_unreadable_answer_is_never_better_than_a_wrong_one(rows: list[tuple[str, str]]) -> None:
    right = [(t, t) for _, t in rows]
    garbled = [("entail", rows[0][1]), *right[1:]]
    assert score("accuracy", garbled, list("012")) < score("accuracy", right, list("012"))
    assert score("macro_f1", garbled, list("012")) < score("macro_f1", right, list("012"))


def test_an_unreadable_answer_becomes_the_opposite_of_its_target_in_f1() -> None:
    assert score("f1", [("junk", "1"), ("1", "1")], BINARY) == score("f1", [("0", "1"), ("1", "1")], BINARY)
    assert score("f1", [("junk", "0"), ("1", "1")], BINARY) == score("f1", [("1", "0"), ("1", "1")], BINARY)


def test_an_unreadable_number_counts_as_minus_one() -> None:
    rows = [("4.0", "4.0"), ("high", "3.0"), ("1.0", "1.5")]
    assert score("pearson", rows, []) == score("pearson", [("4.0", "4.0"), ("-1.0", "3.0"), ("1.0", "1.5")], [])
    assert score("pearson", [("nan", "1"), ("nan", "2")], []) == 0.0


def test_unreadable_answers_are_counted() -> None:
    assert count_unreadable(["0", "1", "yes", ""], BINARY, numeric=False) == 2
    assert count_unreadable(["3.8", "x", "inf"], [], numeric=True) == 2


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "em"),
    [
        ("The Beatles!", ["beatles"], 100, 100),
        ("in May 1990", ["May 1990"], 80, 0),
        ("nothing shared", ["May 1990"], 0, 0),
        ("Rome", ["Paris", "rome"], 100, 100),
        ("a cat a cat", ["cat"], 200 / 3, 0),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, references: list[str], f1: float, em: float) -> None:
    assert token_f1([prediction], [references]) == pytest.approx(f1)
    assert exact_match([prediction], [references]) == em


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="without rows"):
        compute(["accuracy"], [], [], BINARY)


def test_a_constant_answer_has_no_correlation() -> None:
    for name in METRICS:
        if name in ("matthews", "pearson", "spearman"):
            assert score(name, [("1", "0"), ("1", "1")], BINARY) == 0.0
