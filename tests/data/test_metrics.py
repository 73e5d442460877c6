"""Metrics against scikit-learn, scipy and SQuAD's rules, and what an unreadable answer counts."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.data.metrics import (
    METRICS,
    compute_metrics,
    count_unreadable,
    exact_match,
    get_metric,
    normalize_answer,
    pearson_scorer,
    token_f1,
)
from harness.errors import UserError

BINARY = ["0", "1"]
WORDS = ["entailment", "contradiction", "neutral"]
answers = st.one_of(st.sampled_from(["", "0", "1", "2", " 1", "1.0", "entailment", "١"]), st.text(max_size=4))
pairs = st.lists(st.tuples(st.sampled_from(BINARY), st.sampled_from(BINARY)), min_size=2, max_size=40)
three_way = st.lists(st.tuples(st.sampled_from("012"), st.sampled_from("012")), min_size=2, max_size=40)
# six decimals: of numbers that differ in their last bits, scipy correlates the rounding
grades = st.floats(0, 5).map(lambda value: round(value, 6))
numbers = st.lists(st.tuples(grades, grades), min_size=3, max_size=30)


def score(name: str, rows: list[tuple[str, str]], labels: list[str]) -> float:
    return compute_metrics([name], [p for p, _ in rows], [[t] for _, t in rows], labels)[name]


@given(pairs)
def test_readable_answers_score_as_in_scikit_learn(rows: list[tuple[str, str]]) -> None:
    predicted, truth = zip(*rows, strict=True)
    assert score("accuracy", rows, BINARY) == pytest.approx(100 * sklearn.metrics.accuracy_score(truth, predicted))
    f1 = sklearn.metrics.f1_score(truth, predicted, pos_label="1", zero_division=0)
    assert score("f1", rows, BINARY) == pytest.approx(100 * f1)


@given(st.lists(st.tuples(answers, st.sampled_from("012")), min_size=1, max_size=30))
def test_matthews_is_that_of_scikit_learn_with_unreadable_answers_as_classes(rows: list[tuple[str, str]]) -> None:
    predicted, truth = zip(*rows, strict=True)
    expected = 0.0
    if len(set(truth) | set(predicted)) > 1:
        classes = {text: number for number, text in enumerate({*truth, *predicted})}
        ids = [[classes[text] for text in texts] for texts in (truth, predicted)]
        expected = 100 * sklearn.metrics.matthews_corrcoef(*ids)
    assert score("matthews", rows, list("012")) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(answers, st.sampled_from(WORDS)), min_size=1, max_size=30))
def test_accuracy_and_macro_f1_are_those_of_scikit_learn_for_words_and_junk(rows: list[tuple[str, str]]) -> None:
    predicted, truth = zip(*rows, strict=True)
    # scikit-learn is given one more class, which every unreadable output belongs to
    answers, targets = ([WORDS.index(t) if t in WORDS else 3 for t in texts] for texts in (predicted, truth))
    expected = sklearn.metrics.f1_score(targets, answers, labels=[0, 1, 2], average="macro", zero_division=0)
    assert score("macro_f1", rows, WORDS) == pytest.approx(100 * expected)
    assert score("accuracy", rows, WORDS) == pytest.approx(100 * sklearn.metrics.accuracy_score(targets, answers))


@given(st.lists(st.tuples(answers, st.sampled_from(["False", "True"])), min_size=1, max_size=30))
def test_f1_turns_junk_into_the_opposite_of_its_target_whatever_the_labels(rows: list[tuple[str, str]]) -> None:
    truth = np.array([target == "True" for _, target in rows])
    said = np.array([text == "True" if text in ("True", "False") else target == "False" for text, target in rows])
    expected = sklearn.metrics.f1_score(truth, said, zero_division=0)
    assert score("f1", rows, ["False", "True"]) == pytest.approx(100 * expected)


@given(numbers)
def test_correlations_are_those_of_scipy(rows: list[tuple[float, float]]) -> None:
    got, want = ([row[i] for row in rows] for i in (0, 1))
    texts = [(repr(p), repr(t)) for p, t in rows]
    for name, function in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        expected = function(got, want).statistic if len(set(got)) > 1 and len(set(want)) > 1 else 0.0
        expected = 0.0 if not math.isfinite(expected) else expected
        assert score(name, texts, []) == pytest.approx(100 * expected, abs=1e-6)


def as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


@given(st.lists(st.tuples(answers, st.floats(0, 5).map(lambda x: f"{x:.1f}")), min_size=1, max_size=30))
def test_correlations_take_junk_as_minus_one_and_undefined_as_zero(rows: list[tuple[str, str]]) -> None:
    got, want = ([as_number(text) for text in texts] for texts in zip(*rows, strict=True))
    assume(all(map(math.isfinite, got)))
    defined = len(rows) > 1 and np.ptp(got) > 0 and np.ptp(want) > 0
    expected = 100 * np.corrcoef(got, want)[0, 1] if defined else 0.0
    assert score("pearson", rows, []) == pytest.approx(expected, abs=1e-6)
    expected = 100 * np.corrcoef(scipy.stats.rankdata(got), scipy.stats.rankdata(want))[0, 1] if defined else 0.0
    assert score("spearman", rows, []) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strange", ["nan", "-NaN", "inf", "-Infinity", "1e400", "high", ""])
def test_strange_answers_count_as_in_the_authors_code(strange: str) -> None:
    rows = [("4.0", "4.2"), (strange, "3.0"), ("1.0", "1.6"), ("2.2", "0.4"), ("5.0", "5.0")]
    got, want = ([as_number(text) for text in texts] for texts in zip(*rows, strict=True))
    for name, function in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = 100 * float(function(want, got)[0])
        assert score(name, rows, []) == pytest.approx(0.0 if math.isnan(value) else value), name
    assert (score("pearson", rows, []) == 0.0) == (not math.isfinite(got[1]))


def test_an_undefined_answer_counts_only_in_the_draws_that_hold_it() -> None:
    without, with_it = np.array([[1.0, 1, 1, 0]]), np.array([[1.0, 1, 1, 1]])
    scorer = pearson_scorer(["1", "2", "4", "nan"], ["1.0", "2.0", "3.0", "4.0"], [])
    expected = 100 * np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1]
    assert scorer(np.concatenate([without, with_it])).tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_one_row_has_no_correlation(name: str) -> None:
    assert score(name, [("3.0", "3.0")], []) == 0.0


@pytest.mark.parametrize("texts", [["1e308", "1e308", "3"], ["1", "1.0000000000000002", "1"], ["1e400", "-inf", "nan"]])
def test_numbers_beyond_reason_neither_warn_nor_fail(texts: list[str]) -> None:
    rows = list(zip(texts, ["1.0", "2.0", "3.0"], strict=True))
    for name in ("pearson", "spearman"):
        assert math.isfinite(score(name, rows, []))


def test_huge_numbers_correlate_as_their_shares_do() -> None:
    rows = [("1e308", "1.0"), ("1.5e308", "2.0"), ("-1e308", "0.5"), ("3", "1.0")]
    smaller = [(repr(float(text) / 1e308), truth) for text, truth in rows]
    for name in ("pearson", "spearman"):
        assert score(name, rows, []) == pytest.approx(score(name, smaller, []))
    assert score("pearson", rows, []) > 50


def test_numbers_that_differ_by_rounding_alone_are_alike() -> None:
    assert score("pearson", [("1", "1.0"), ("1.0000000000000002", "2.0"), ("1", "3.0")], []) == 0.0


def test_any_reference_makes_a_text_right() -> None:
    assert compute_metrics(["accuracy"], ["Rome", "Bonn"], [["Paris", "Rome"], ["Berlin"]], []) == {"accuracy": 50.0}


@given(three_way)
def test_an_unreadable_answer_is_never_better_than_a_wrong_one(rows: list[tuple[str, str]]) -> None:
    right = [(t, t) for _, t in rows]
    garbled = [("entail", rows[0][1]), *right[1:]]
    assert score("accuracy", garbled, list("012")) < score("accuracy", right, list("012"))
    assert score("macro_f1", garbled, list("012")) < score("macro_f1", right, list("012"))


def test_f1_of_three_labels_is_refused() -> None:
    with pytest.raises(UserError, match="two labels"):
        score("f1", [("0", "0")], list("012"))


def test_an_unreadable_number_counts_as_minus_one() -> None:
    rows = [("4.0", "4.0"), ("high", "3.0"), ("1.0", "1.5")]
    assert score("pearson", rows, []) == score("pearson", [("4.0", "4.0"), ("-1.0", "3.0"), ("1.0", "1.5")], [])
    assert score("pearson", [("nan", "1"), ("nan", "2")], []) == 0.0


def test_unreadable_answers_are_counted() -> None:
    assert count_unreadable(["0", "1", "yes", ""], BINARY, numeric=False) == 2
    assert count_unreadable(["True", "1", "true"], ["False", "True"], numeric=False) == 2
    assert count_unreadable(["3.8", "x", "inf"], [], numeric=True) == 2
    assert count_unreadable(["Rome", "", "a"], [], numeric=False) == 1
    assert count_unreadable(["", "", "a"], [], numeric=False, references=[["", "x"], ["x"], [""]]) == 1


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "em"),
    [
        ("The Beatles!", ["beatles"], 100, 100),
        ("in May 1990", ["May 1990"], 80, 0),
        ("nothing shared", ["May 1990"], 0, 0),
        ("Rome", ["Paris", "rome"], 100, 100),
        ("a cat a cat", ["cat"], 200 / 3, 0),
        ("", [""], 100, 100),
        ("a.", ["The"], 100, 100),
        ("", ["cat"], 0, 0),
        ("cat", [""], 0, 0),
        ("cat", ["", "cat"], 100, 100),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, references: list[str], f1: float, em: float) -> None:
    assert token_f1([prediction], [references]) == pytest.approx(f1)
    assert exact_match([prediction], [references]) == em


def official_squad(prediction: str, references: list[str]) -> tuple[float, float]:
    """(F1, exact match) of one answer by the rules of SQuAD 2.0, written from their description."""

    def words(text: str) -> list[str]:
        text = text.lower().translate(str.maketrans("", "", string.punctuation))
        return [word for word in re.sub(r"\b(?:a|an|the)\b", " ", text).split() if word]

    best = exact = 0.0
    for reference in references:
        got, left = words(prediction), words(reference)
        exact = max(exact, float(got == left))
        shared, total = 0, len(left)
        for word in got:
            if word in left:
                left.remove(word)
                shared += 1
        if not got or not total:
            best = max(best, float(got == words(reference)))
        if shared:
            precision, recall = shared / len(got), shared / total
            best = max(best, 2 * precision * recall / (precision + recall))
    return best, exact


phrases = st.lists(
    st.sampled_from(["the", "A", "an", "cat", "Cat,", "don't", "U.S.", "naïve", "İstanbul", "—", "10%", "", "\u2028"]),
    max_size=6,
).map(" ".join)
texts = st.one_of(phrases, st.text(max_size=12))


@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_answers_score_by_the_rules_of_squad(rows: list[tuple[str, list[str]]]) -> None:
    f1, exact = np.mean([official_squad(*row) for row in rows], axis=0)
    predictions, references = zip(*rows, strict=True)
    assert token_f1(predictions, references) == pytest.approx(100 * f1)
    assert exact_match(predictions, references) == pytest.approx(100 * exact)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="without rows"):
        compute_metrics(["accuracy"], [], [], BINARY)


def test_a_constant_answer_has_no_correlation() -> None:
    for name in METRICS:
        if name in ("matthews", "pearson", "spearman"):
            assert score(name, [("1", "0"), ("1", "1")], BINARY) == 0.0


SCRIPT = """\
import datasets
import evaluate


class Own(evaluate.Metric):
    def _info(self):
        features = {FEATURES}
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        {BODY}
"""
TEXT, LIST = 'datasets.Value("string")', 'datasets.Sequence(datasets.Value("string"))'


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a metric of the evaluate library to a file and return how `get_metric` is told of it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("evaluate")

    def write(body: str, predictions: str = TEXT, references: str = TEXT) -> str:
        folder = tmp_path / f"metric_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        features = f'datasets.Features({{"predictions": {predictions}, "references": {references}}})'
        file = folder / "own.py"
        file.write_text(SCRIPT.replace("{FEATURES}", features).replace("{BODY}", body))
        monkeypatch.setenv("HARNESS_TRUST", str(file))
        return f"evaluate:{file}"

    return write


def test_a_metric_of_the_evaluate_library_scores_texts(script: Callable[..., str]) -> None:
    name = script('return {"hits": sum(map(str.__eq__, predictions, references)) / len(references)}')
    assert score(name, [("Rome", "Rome"), ("", "Paris")], []) == 0.5
    assert score(f"{name}#hits*100", [("Rome", "Rome"), ("x", "Paris")], []) == 50
    assert score(f"{name}*-2.5", [("Rome", "Rome")], []) == -2.5


def test_a_metric_that_wants_several_references_gets_all(script: Callable[..., str]) -> None:
    name = script('return {"n": sum(len(refs) for refs in references)}', references=LIST)
    assert compute_metrics([name], ["a", "b"], [["a", "c"], ["b"]], []) == {name: 3.0}


def test_a_metric_over_ids_gets_the_place_of_the_label_and_never_a_right_answer_for_junk(
    script: Callable[..., str],
) -> None:
    body = 'return {"value": float(sum(3 ** i * p for i, p in enumerate(predictions))), "t": list(references)}'
    name = script(body, 'datasets.Value("int32")', 'datasets.Value("int32")')
    rows = [("neutral", "neutral"), ("junk", "contradiction"), ("0", "neutral")]
    assert score(name, rows, WORDS) == 2 + 3 * 2 + 9 * 0
    with pytest.raises(UserError, match="cannot fill"):
        score(name, [("Rome", "Rome")], [])


def test_a_metric_over_numbers_gets_numbers(script: Callable[..., str]) -> None:
    body = 'return {"error": sum(abs(p - t) for p, t in zip(predictions, references))}'
    name = script(body, 'datasets.Value("float64")', 'datasets.Value("float64")')
    assert score(name, [("1.5", "1.0"), ("high", "2.0")], []) == 3.5


def test_a_metric_that_is_undefined_counts_zero(script: Callable[..., str]) -> None:
    assert score(script('return {"value": float("nan")}'), [("a", "a")], []) == 0.0


def test_several_numbers_want_a_key(script: Callable[..., str]) -> None:
    name = script('return {"precision": 0.25, "recall": 0.75, "words": ["a"]}')
    with pytest.raises(UserError, match=r"2 numbers; name one as #KEY \(allowed: precision, recall\)"):
        score(name, [("a", "a")], [])
    assert score(f"{name}#recall", [("a", "a")], []) == 0.75
    with pytest.raises(UserError, match="did you mean recall"):
        score(f"{name}#recal", [("a", "a")], [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acuracy", "did you mean accuracy?"),
        ("evaluate:./acuracy", "cannot load"),
        ("evaluate:", "expected evaluate:PATH"),
        ("evaluate:x#y*z", "expected evaluate:PATH"),
    ],
)
def test_an_unknown_metric_is_a_mistake_with_choices(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("evaluate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_TRUST", "./acuracy")
    with pytest.raises(UserError, match=re.escape(expected)):
        get_metric(name)
