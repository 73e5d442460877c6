"""Metrics by libraries: each equals a direct call of its library; numbers are found, and no answer can hang a run."""

from __future__ import annotations

import contextlib
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify
from nltk.stem.porter import PorterStemmer
from paths import ROOT
from rouge_score.rouge_scorer import RougeScorer

from harness.data.metrics import METRICS, compute_metrics
from harness.data.text_metrics import is_same_number, number_of, signature_of
from harness.report.statistics.resampling import ROW_MEANS, make_scorer, metric_range
from harness.results.predictions import Answers

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
words = st.sampled_from(
    ["the", "cats", "cat", "Running", "runs", "well.", "\n", "été", "日本", "a-b", "1,234", "", " "]
)
texts = st.one_of(st.lists(words, max_size=12).map(" ".join), st.text(max_size=30))
rows = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=5)), min_size=1, max_size=8)
Rows = list[tuple[str, list[str]]]
NOTHING: Rows = [("", [""]), ("", ["a", ""])]
MANY: Rows = [("the cat sat on the mat", ["the cat", "the cat sat on a mat", "x"] * 30), ("runs", ["running"])]


def split(drawn: Rows) -> tuple[list[str], list[list[str]]]:
    return [text for text, _ in drawn], [refs for _, refs in drawn]


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """References as sacrebleu documents them: a document for the first of each row, for the second, and so on."""
    most = max(map(len, references))
    return [[refs[i] if len(refs) > i else None for refs in references] for i in range(most)]


@given(rows)
@example(NOTHING)
@example(MANY)
def test_rouge_is_the_best_f_measure_of_rouge_score_as_a_mean_over_rows(drawn: Rows) -> None:
    predictions, references = split(drawn)
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    made = compute_metrics(ROUGE, predictions, references, [])
    for name in ROUGE:
        best = [max(scorer.score(ref, text)[name].fmeasure for ref in refs) for text, refs in drawn]
        assert made[name] == pytest.approx(100 * sum(best) / len(best), abs=1e-8)


@given(rows)
@example(NOTHING)
@example(MANY)
def test_bleu_and_chrf_are_those_of_sacrebleu_over_the_corpus(drawn: Rows) -> None:
    predictions, references = split(drawn)
    made = compute_metrics(["bleu", "chrf"], predictions, references, [])
    assert made["bleu"] == pytest.approx(sacrebleu.corpus_bleu(predictions, streams(references)).score, abs=1e-8)
    assert made["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, streams(references)).score, abs=1e-8)


@given(rows, st.integers(0, 99))
def test_a_draw_of_rows_scores_as_sacrebleu_scores_the_drawn_rows(drawn: Rows, seed: int) -> None:
    predictions, references = split(drawn)
    chosen = random.Random(seed).choices(range(len(drawn)), k=len(drawn))
    weights = [[float(chosen.count(row)) for row in range(len(drawn))]]
    texts, refs = [predictions[i] for i in chosen], [references[i] for i in chosen]
    for name, function in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        scores = make_scorer([name], Answers(predictions, references), [])(np.array(weights))
        assert scores[0] == pytest.approx(function(texts, streams(refs)).score, abs=1e-8)


def test_words_are_stemmed_as_in_the_papers_and_the_stemmer_needs_no_download() -> None:
    score = METRICS["rouge1"].score
    assert score(["he was running"], [["he was runs"]], []) == 100
    assert PorterStemmer().stem("running") == "run"  # rules alone; nltk's data are for splitting sentences
    assert METRICS["rougeLsum"].score(["b c\na"], [["a\nb c"]], []) == 100  # line by line
    assert METRICS["rougeL"].score(["b c\na"], [["a\nb c"]], []) < 100
    assert score(["日本"], [["日本"]], []) == 0  # rouge-score keeps ASCII letters and digits alone


def test_signatures_tell_options_versions_and_the_number_of_references() -> None:
    _, references = split(MANY)
    assert str(signature_of("bleu", references)).startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert str(signature_of("bleu", [["a"], ["b"]])).startswith("nrefs:1|")
    assert str(signature_of("chrf", [["a", "b"]])).startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert str(signature_of("rougeL", references)).startswith("stemmer:yes|references:best|rouge-score:")
    assert "math-verify:" in str(signature_of("numeric_match", references))
    assert signature_of("exact_match", references) is None


def test_metrics_of_rows_and_of_a_corpus_have_intervals_from_0_to_100() -> None:
    assert set(ROUGE) | {"numeric_match"} <= set(ROW_MEANS)
    assert not {"bleu", "chrf"} & set(ROW_MEANS)
    for name in (*ROUGE, "bleu", "chrf", "numeric_match"):
        assert metric_range([name]) == (0, 100)


FOUND = {
    "72": "72",
    "He has 3 cats.\nSo 8 * 9 = <<8*9=72>>72.\n#### 72": "72",
    "#### 1,234 dollars": "1234",
    "#### 3 apples in 2 days": "3",
    "#### 36 m^2": "36",
    "#### 72 (72)": "72",
    "#### $72 (8 * 9 = 72)": "72",
    "#### 72: 8 times 9": "72",
    "#### 72, or 6 dozen and 0 more": "72",
    "#### 50% of 20": "50%",
    "#### 1,234 of 5,678": "1234",
    "#### x = 3 apples in 2 days": "3",
    "#### 3 apples and 4 pears = 7 pieces of 2 kinds": "7",
    "#### 2(3 + 4)": r"\boxed{2(3 + 4)}",
    "#### 10:30": "30",
    "#### 1 3/4 cups in 2 days": "2",
    "#### about 3 of 4": "4",
    r"\boxed{36 cm^2}": "36",
    r"\boxed{2 (3 + 4)}": r"\boxed{2 (3 + 4)}",
    "72 of them, I think": "72",
    "The answer is $72.": "72",
    "It costs -$72.50": "-72.50",
    "$-72": "-72",
    "between 10-3": "3",
    "(5)-3": "3",
    "1,234,567.8": "1234567.8",
    "0,75": "0.75",
    "-.5": "-0.5",
    "−5": "-5",
    "1e5": "100000",
    "2.5E-2": "0.025",
    "50 %": "50%",
    "50 percent": "50%",
    "3/4": "3/4",
    r"\frac{3}{4} of it": "3/4",
    r"$1\frac{3}{4}$ cups": "7/4",
    "1 3/4 cups": "3/4",
    r"so \boxed{72} it is, in 5 steps": "72",
    r"\boxed{1{,}234}": "1234",
    r"\boxed{\$72}": "72",
    r"\boxed{72\%}": "72%",
    r"\boxed{x = 72}": "72",
    r"\boxed{72\text{ apples}}": "72",
    r"\boxed{\text{72 apples}}": "72",
    r"\boxed{\text{72}}": "72",
    r"\boxed{36\text{ cm}^2}": "36",
    r"\boxed{36\ \mathrm{cm}^{2}}": "36",
    r"\boxed{$36\text{ m}\text{ s}^{-2}$}": "36",
    r"\boxed{\text{Area} = 36\text{ cm}^2.}": "36",
    r"\boxed{60\text{ km}/\text{h}^2}": "60",
    r"\boxed{5\text{ hours }30\text{ minutes}}": "30",
    r"\boxed{10\text{ and }20}": "20",
    r"\boxed{72": "72",
    r"\boxed{5} and then #### 6": "6",
    r"#### 5 \boxed{6}": "6",
    "#### 5 + 3": r"\boxed{5 + 3}",
    r"\boxed{2^{10}}": r"\boxed{2^{10}}",
    r"\boxed{3\sqrt{2}}": r"\boxed{3\sqrt{2}}",
    "USD72": "72",
    "The answer is USD72, not GBP 70.": "70",
    "#### USD 1,000.50": "1000.50",
    "#### -EUR5": "-5",
    "Rs.72": "72",
    "Rs. 5 000": "5000",
    "US$72": "72",
    "$1,000.50": "1000.50",
    "72USD": "72",
    "#### 72USD in 3 parts": "72",
    "5 000 dollars": "5000",
    "#### 5 000 dollars in 2 years": "5000",
    "1 000 000": "1000000",
    r"\boxed{1 000 000}": "1000000",
    r"\boxed{1\,000\,000}": "1000000",
    "It is €12 500,75.": "12500.75",
    "12 500.75": "12500.75",
    "-5 000": "-5000",
    "5\u00a0000": "5000",
    "5\u202f000 km": "5000",
    "5 000/2 000": "000",
    "it takes 10 000 of 20 000 steps": "20000",
    # several numbers that stand side by side
    "2024 100 200": "200",
    "in 2021 300 people": "300",
    "1 2345": "2345",
    "0 123": "123",
    "20 300 4": "4",
    "20, 300": "300",
    "1 100/200": "100/200",
    "1 000\n200": "200",
    "5 100-dollar bills": "100",
    "5  000": "000",
    # letters that are no currency
    "GPT4": None,
    "x72": None,
    "MUSD72": None,
    "٧٢": "72",
    "\uff17\uff12": "72",
    "9" * 100: "9" * 100,
    "9" * 101: None,
    "H2O": None,
    "none": None,
    "": None,
    "####": None,
    r"\boxed{}": None,
}


@pytest.mark.parametrize("text", FOUND)
def test_the_number_of_an_answer(text: str) -> None:
    assert number_of(text) == FOUND[text]


EQUAL = [("72", "72.00"), ("72", "$72"), ("1234", "1,234"), ("72", r"\boxed{72}"), ("3/4", "0.75"), ("50%", "0.5"),
         ("50%", "50"), ("1/3", "0.333333"), ("0.75", r"\boxed{\frac34}"), ("1024", r"\boxed{2^{10}}"),
         ("8", "#### 5 + 3"), (r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}"), ("100000", "1e5")]  # fmt: skip
DIFFERENT = [("72", "73"), ("1/3", "0.33"), ("72", "-72"), ("12345678901234567890", "12345678901234567891"),
             ("3", "3/0"), ("0.1", "0.10001"), ("72", ""), ("72", "seventy-two")]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_numbers_in_other_words_are_equal_either_way_round(one: str, other: str) -> None:
    assert is_same_number(one, other) is is_same_number(other, one) is True


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_other_numbers_and_no_number_are_wrong(reference: str, answer: str) -> None:
    assert is_same_number(answer, reference) is False


def test_any_reference_may_be_right_and_one_without_a_number_is_compared_as_text() -> None:
    score = METRICS["numeric_match"].score
    assert score(["it is 5", "5"], [["4", "5.0"], ["4"]], []) == 50
    assert score(["No solution.", "it has 5"], [["no solution"], ["no solution"]], []) == 50


plain_numbers = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.decimals(-999, 999, places=2).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.integers(0, 100).map(lambda number: f"{number}%"),
)


@settings(max_examples=60)
@given(plain_numbers, plain_numbers, st.sampled_from(["{}", "So it is {}.", "a\n#### {}", "in 3 steps: \\boxed{{{}}}"]))
def test_numbers_are_equal_where_math_verify_says_so(one: str, other: str, form: str) -> None:
    expected = verify(parse(one), parse(other))
    assert is_same_number(form.format(other), one) is expected
    assert is_same_number(form.format(one), one) is True


GROUPED = ["5 000", "1 000 000", "12 500.75", "-5 000", "about 5 000 dollars", "7 of 10 000"]


@pytest.mark.parametrize("answer", GROUPED)
def test_thousands_with_blanks_are_read_where_math_verify_reads_them_too(answer: str) -> None:
    found = number_of(answer)
    assert found is not None
    assert verify(parse(found), parse(answer)) is True


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.sampled_from([" ", "\u00a0", "\u202f"]))
def test_thousands_with_blanks_are_the_number_with_commas_and_no_other(one: int, other: int, blank: str) -> None:
    spaced = f"{one:,}".replace(",", blank)
    for form in ("{}", "It is {} dollars.", "#### {}", r"\boxed{{{}}}", "USD{}"):
        assert number_of(form.format(spaced)) == str(one)
        assert is_same_number(form.format(spaced), f"{other:,}") is (one == other)


@settings(max_examples=200)
@given(st.text(max_size=60), st.text(alphabet=r"0123456789.,+-*/^(){}[]%$ \=#eE\boxedfracsqrtpi", max_size=120))
@example("72", r"\boxed{9^{99}^{99}}")
def test_no_text_raises(reference: str, answer: str) -> None:
    for text in (answer, f"#### {answer}", rf"\boxed{{{answer}}}"):
        assert is_same_number(text, reference) in (True, False, None)
        assert is_same_number(text, "72") in (True, False)


HOSTILE = [
    "9^9^9^9", r"\boxed{9^9^9^9}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{9^{999999999}}", "#### 9**9**9**9",
    r"\boxed{((9^{99})^{99})^{99}}", r"\boxed{999999999!}", r"\boxed{99!!}", r"\boxed{10^{10^{10}}}",
    r"\boxed{\sum_{i=1}^{10^9} i}", r"\boxed{\int_0^1 x^{x^x} dx}", "1e999999999", "9E99 " * 20_000,
    "9" * 100_000, "0." + "9" * 100_000, "9^" * 50_000, "1/" * 50_000, "-" * 100_000, "$" * 100_000,
    r"\boxed{" * 15_000, r"\frac{" * 17_000, "{" * 100_000, r"\boxed{" + "{" * 50_000 + "}" * 50_000 + "}",
    ",123" * 25_000, "1" + ",123" * 25_000 + "1", "1," * 50_000, "#### " * 20_000, "####" + " 1" * 50_000,
    r"\boxed{" + "(" * 45 + "1" + ")" * 45 + "}", r"\boxed{((((((1))))))}", r"\boxed{" + "[1," * 6 + "}",
    r"\boxed{" + "1/" * 48 + "1}",
    r"\boxed{\sqrt{2+\sqrt{3+\sqrt{5}}}}", r"\boxed{999999^{99}*999999^{99}*999999^{99}}",
]  # fmt: skip


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let this process take 1 GiB more at most: 9^(9^9) alone has 370 million digits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_hostile_answers_neither_hang_nor_fill_the_memory_outside_the_main_thread() -> None:
    found: dict[str, Any] = {}

    def work() -> None:
        found["answers"] = METRICS["numeric_match"].score(HOSTILE, [["72"]] * len(HOSTILE), [])
        found["references"] = METRICS["numeric_match"].score(["72"] * len(HOSTILE), [[text] for text in HOSTILE], [])

    with little_memory():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == {"answers": 0, "references": 0}


def test_libraries_are_imported_when_their_metric_is_asked_for() -> None:
    code = """
import sys
from harness.data.metrics import METRICS
heavy = ("torch", "pandas", "scipy", "math_verify", "sympy", "rouge_score", "nltk", "sacrebleu")
print(*[name for name in heavy if name in sys.modules])
METRICS["bleu"].score(["a"], [["a"]], [])
print(*[name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["", "sacrebleu"]
