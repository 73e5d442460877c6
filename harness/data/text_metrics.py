"""Metrics of written texts by libraries: numbers by math-verify, ROUGE by rouge-score, BLEU and chrF by sacrebleu.

All work without a network. A library is imported when its metric is first computed: rouge-score alone brings nltk,
scikit-learn and pandas, which takes 2.6 s. What moves a score of a library (its version, its options) is in the
metric's signature, which every result keeps.

For `numeric_match` the number of an answer is found here, and math-verify says whether two numbers are equal. It stops
its own work by a signal, which exists in the main thread alone and cannot end a power such as 9^9^9^9 inside Python's
integers. So nothing reaches it here but numbers and short expressions that are known to be cheap (`_EXPRESSION`), and
its timeouts are off.
"""

from __future__ import annotations

import functools
import re
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.foreign_metrics import Predictions, References

Array = NDArray[np.float64]

MOST_CHARACTERS = 100
"""Length from which a number or an expression counts as none: the longest number of GSM8K has 11 characters. Python
refuses integers of more than 4,300 digits, and an expression of 100 characters is compared in milliseconds."""
MARK = "####"
"""Stands in front of the result in GSM8K's answers."""
_BOX = "\\boxed{"

_UNIT = r"\\(?:text|mathrm|textbf|mathbf)\{[^{}]*\}(?:\^\{?-?\d\}?)?"
_CODES = "USD EUR GBP JPY CNY RMB INR AUD CAD CHF NZD SGD HKD KRW BRL MXN ZAR RUB SEK NOK DKK PLN Rs RM"
"""Currencies that stand in front of a number as letters, without a blank too: USD72. `Rs.` has a point of its own."""
_CURRENCY = rf"(?:\\?[$€£¥₹₩₽₿]|(?:{_CODES.replace(' ', '|')})\.?)"
_BLANKS = "[ \u00a0\u2009\u202f]"
_PERCENT = r"\s?(?:\\?%|[Pp]ercent\b)"
# in groups of three, none of which stands among other numbers: `2024 100 200`, `1 100/200` and `1 2345` are several
_SPACED = (
    rf"(?<!\d{_BLANKS})(?P<spaced>[1-9]\d{{0,2}}(?P<blank>{_BLANKS})\d{{3}}(?:(?P=blank)\d{{3}}){{0,9}})"
    rf"(?!\d|{_BLANKS}?\d|\s?/|,\d{{3}}|-[^\W\d_])(?P<spaced_rest>\.\d+|,\d{{1,2}}(?!\d))?"
)
# a part that may fail late is bounded ({1,10}), so that no text takes more than a few steps for each of its characters
_NUMBER = re.compile(
    rf"""(?<![\w.\\])
    (?P<sign>(?:(?<![)\]}}])-)?)(?:{_CURRENCY}\s?(?P<inner_sign>-?))?
    (?:
        (?P<whole>\d{{1,6}}\s?)?\\[dtc]?frac\s?\{{\s?(?P<top>-?\d+)\s?\}}\{{\s?(?P<bottom>\d+)\s?\}}
      | (?:(?P<thousands>\d{{1,3}}(?:,\d{{3}}){{1,10}}(?!\d))(?P<rest>\.\d+)?
          | {_SPACED}
          | (?P<decimal>\d+(?:[.,]\d+)?|\.\d+)(?P<exponent>[eE][+-]?\d{{1,2}}(?!\d))?)
        (?:\s?/\s?(?P<divisor>\d+(?:\.\d+)?))?
    )
    (?P<percent>{_PERCENT})?""",
    re.VERBOSE,
)
_WORDS = re.compile(r"\s?(?:[^\W\d_]|:(?!\d)|[.,;]\s[^\W\d_])")
_BRACKET = re.compile(r"\s[(\[]")
"""With a blank in front, `2(3 + 4)` is an expression."""
_EXPRESSION = re.compile(
    r"(?:[0-9.,+\-*/()\[\]{}\s]|\\[dtc]?frac|\\sqrt|\\pi|\\cdot|\\times|\\div|\\left|\\right"
    r"|(?<![0-9.])[0-9]{1,6}\^(?:[0-9]|\{[0-9]{1,2}\}))+"
)
"""Arithmetic that is always cheap. The base of a power has six digits at most and its exponent two; signs for sums,
factorials, limits and letters are none of it."""
_MOST_POWERS = 3
"""Powers and roots in one expression. Every root doubles what simplifying has to try."""
_MOST_BRACKETS = 6
"""Brackets that open in one expression. math-verify's parser tries each in several ways: 45 around one number took it
24 s."""


def is_same_number(answer: str, reference: str) -> bool | None:
    """Return whether two texts have the same number (`number_of`) by math-verify; None where the reference has none.

    Exact numbers are compared exactly, and to six decimals where one has a decimal point: 1/3 equals 0.333333 and not
    0.33. `50%` equals 50 and 0.5.
    """
    wanted = number_of(reference)
    if wanted is None:
        return None
    found = number_of(answer)
    return found is not None and _are_equal(wanted, found)


def number_of(text: str) -> str | None:
    """Return the number of an answer in a form for math-verify; None where there is none.

    It is what stands behind the last `####`, to the end of the line, or in the last \\boxed{}, whichever comes later.
    Without either it is the last number of the text. Where more than a number or an expression stands there, it is the
    number that leads if a word or a colon follows ("#### 3 apples in 2 days"), behind `####` also if a bracket does
    ("#### 72 (72)"), and else the last.

    A number may have a sign, a currency ($72, USD72), thousands (1,234 or 1 234), decimals (`.` or `,`), an exponent
    (1e5), a divisor (3/4, \\frac{3}{4}) and a percent sign. Of a mixed number written `1 3/4` the fraction is read;
    `1\\frac{3}{4}` is read whole. It takes time in proportion to the text.
    """
    if not text.isascii():  # digits of other scripts, and the long minus
        text = re.sub(r"\d", lambda digit: str(int(digit[0])), text).replace("−", "-")
    marked, boxed = text.rfind(MARK), text.rfind(_BOX)
    if marked > boxed:
        place = text[marked + len(MARK) :].strip().partition("\n")[0]
        if (remarked := _leading(place, _BRACKET)) is not None:
            return remarked
    elif boxed >= 0:
        place = _in_braces(text, boxed + len(_BOX))
    else:
        return _last_number(text)
    place = place[-10 * MOST_CHARACTERS :]  # the rest of a line may be long
    found = _cleaned(place)
    if (number := _NUMBER.fullmatch(found)) is not None:
        return _plain(number)
    return _expression(found) or _leading(found, _WORDS) or _last_number(found) or _last_number(place)


def _in_braces(text: str, start: int) -> str:
    """Return the text from `start` to the brace that closes it; to the end where none does."""
    depth = 1
    for found in re.finditer(r"[{}]", text[start:]):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return text[start : start + found.start()]
    return text[start:]


def _cleaned(place: str) -> str:
    """Return what is named as the result without the signs and blanks of LaTeX around it, and behind its last `=`."""
    place = place.replace("{,}", ",")
    place = re.sub(r"\\[!,;:]|\\[()]|\^\{?\\circ\}?", "", place)
    # a unit at the end goes with its exponent; any other parts numbers, which would grow together
    place = re.sub(_UNIT, ";", re.sub(rf"(?:\s*{_UNIT})+(?=[\s.$*]*$)", "", place))
    place = place.rpartition("=")[2].strip().strip("*").strip()
    if len(place) > 1 and place[0] == place[-1] == "$":
        place = place[1:-1].strip()
    return place.removesuffix(".")


def _leading(text: str, follows: re.Pattern[str]) -> str | None:
    """Return the number at the start of a text if the pattern follows it; else None."""
    number = _NUMBER.match(text)
    return _plain(number) if number is not None and follows.match(text, number.end()) else None


def _last_number(text: str) -> str | None:
    found = deque(_NUMBER.finditer(text.replace("{,}", ",")), maxlen=1)
    return _plain(found[0]) if found else None


def _plain(number: re.Match[str]) -> str | None:
    """Return a number with digits, one point, one divisor and a percent sign alone; None where it is too long."""
    if len(number[0]) > MOST_CHARACTERS:
        return None
    sign = "-" if bool(number["sign"]) != bool(number["inner_sign"]) else ""
    if number["top"] is not None:
        top = int(number["top"]) + int(number["whole"] or 0) * int(number["bottom"])
        return f"{sign}{top}/{number['bottom']}".removeprefix("--")
    if number["thousands"] is not None:
        value = number["thousands"].replace(",", "") + (number["rest"] or "")
    elif number["spaced"] is not None:
        value = number["spaced"].replace(number["blank"], "") + (number["spaced_rest"] or "").replace(",", ".")
    else:
        value = number["decimal"].replace(",", ".")
        if number["exponent"] is not None:
            value = format(Decimal(value + number["exponent"]), "f")
        elif value.startswith("."):
            value = f"0{value}"
    if number["divisor"] is not None:
        return f"{sign}{value}/{number['divisor']}"
    return f"{sign}{value}{'%' if number['percent'] else ''}"


def _expression(text: str) -> str | None:
    """Return the text in a \\boxed{} if it is arithmetic of a cheap form with a digit or pi in it; else None."""
    if len(text) > MOST_CHARACTERS or not re.search(r"[0-9]|\\pi", text) or "**" in text:
        return None
    if text.count("^") + text.count("\\sqrt") > _MOST_POWERS or sum(map(text.count, "([{")) > _MOST_BRACKETS:
        return None
    if _EXPRESSION.fullmatch(text) is None:
        return None
    return f"{_BOX}{text}}}"


@functools.lru_cache(maxsize=65_536)  # two short texts each: a split of many draws asks for the same pairs again
def _are_equal(wanted: str, found: str) -> bool:
    from math_verify import verify

    if wanted == found:
        return True
    return bool(verify(_parsed(wanted), _parsed(found), timeout_seconds=None))


def _parsed(form: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = LatexExtractionConfig() if form.startswith(_BOX) else ExprExtractionConfig()
    parsed: list[Any] = parse(form, [config], fallback_mode="no_fallback", parsing_timeout=None)
    return parsed


def _numeric_signature(references: References) -> str:
    # of the reading here: 2 since thousands may have blanks and a currency may be letters
    return f"reading:2|float_rounding:6|{_versions('math-verify', 'latex2sympy2_extended', 'sympy')}"


def rouge(name: str) -> Callable[[Predictions, References, Sequence[str]], float]:
    """Return the metric `name` of rouge-score: rouge1, rouge2, rougeL or rougeLsum.

    It is the F-measure of each row's best reference, as a mean over rows, in percent. Words are stemmed (Porter), as in
    the papers on summaries. Its words are ASCII letters and digits: of a text in another alphabet nothing is left, and
    the score is 0. `rougeLsum` compares line by line: sentences of a summary have to stand on lines of their own.
    """

    def score(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
        scorer = _rouge_scorer(name)
        pairs = zip(predictions, references, strict=True)
        return _percent([float(scorer.score_multi(list(refs), text)[name].fmeasure) for text, refs in pairs])

    return score


@functools.cache
def _rouge_scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def _rouge_signature(references: References) -> str:
    return f"stemmer:yes|references:best|{_versions('rouge-score', 'nltk')}"


def bleu_scorer(
    predictions: Predictions, references: References, labels: Sequence[str] = ()
) -> Callable[[Array], Array]:
    """Make the scorer for corpus BLEU, [D, N] -> [D], as `sacrebleu.corpus_bleu` with its defaults computes it.

    Its counts are sums over rows, so a draw needs no text again. Rows may have different numbers of references.
    """
    from sacrebleu import BLEU

    rows = BLEU(effective_order=True)  # for the counts of each row alone; which order counts is no part of them
    found = [rows.sentence_score(text, list(refs)) for text, refs in zip(predictions, references, strict=True)]
    counts = np.array([[item.sys_len, item.ref_len, *item.counts, *item.totals] for item in found], np.float64)
    order = rows.max_ngram_order

    def score(sums: Array) -> float:
        sys_len, ref_len, *rest = (round(value) for value in sums.tolist())
        return float(BLEU.compute_bleu(rest[:order], rest[order:], sys_len, ref_len, smooth_method="exp").score)

    return _of_sums(counts, score)


def chrf_scorer(
    predictions: Predictions, references: References, labels: Sequence[str] = ()
) -> Callable[[Array], Array]:
    """Make the scorer for chrF2 over a corpus, [D, N] -> [D], as `sacrebleu.corpus_chrf` computes it by default.

    Each row counts by its best reference, and its counts are summed over rows as for BLEU.
    """
    from sacrebleu import CHRF

    chrf: Any = CHRF()
    # sacrebleu gives the counts of a row by these two alone; they are what its own bootstrap uses
    counts = np.array(chrf._extract_corpus_statistics(predictions, _streams(references)), np.float64)
    return _of_sums(counts, lambda sums: float(chrf._compute_score_from_stats(sums.round().astype(int).tolist()).score))


def _of_sums(counts: Array, score: Callable[[Array], float]) -> Callable[[Array], Array]:
    """Return weights [D, N] -> scores [D], where `score` takes the sum of the rows' counts, [N, S] -> [S]."""
    return lambda weights: np.array([score(sums) for sums in weights @ counts])


def _streams(references: References) -> list[list[str | None]]:
    """Return references as sacrebleu takes them: the first of each row, then the second, None where there is none."""
    most = max(len(refs) for refs in references)
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]


def _bleu_signature(references: References) -> str:
    from sacrebleu import BLEU

    return _sacrebleu_signature(BLEU(), references)


def _chrf_signature(references: References) -> str:
    from sacrebleu import CHRF

    return _sacrebleu_signature(CHRF(), references)


def _sacrebleu_signature(metric: Any, references: References) -> str:
    """Return sacrebleu's own signature; the number of references is in it, so it needs one row of each number."""
    one_of_each = {len(refs): refs for refs in references}
    metric.corpus_score([""] * len(one_of_each), _streams(list(one_of_each.values())))
    return str(metric.get_signature())


SIGNATURES: dict[str, Callable[[References], str]] = {
    "numeric_match": _numeric_signature,
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), _rouge_signature),
    "bleu": _bleu_signature,
    "chrf": _chrf_signature,
}
"""Metric of a library -> its signature: the options and versions that its scores depend on."""


def signature_of(name: str, references: References) -> str | None:
    """Return the signature of a metric over these references; None for a metric of our own, which needs none."""
    return SIGNATURES[name](references) if name in SIGNATURES else None


def _versions(*packages: str) -> str:
    return "|".join(f"{package}:{metadata.version(package)}" for package in packages)


def _percent(values: Sequence[float]) -> float:
    return 100 * statistics.fmean(values)
