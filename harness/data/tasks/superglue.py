"""SuperGLUE (Wang et al. 2019) as the prompt-tuning papers use it: labels are digits, no task name in front."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from harness.data.tasks.task import EDITS, Hub, Row, Task

LICENCE = "research use; see https://super.gluebenchmark.com"


def flatten_multirc(row: Row) -> Iterable[Row]:
    """Yield one row per answer. The official download nests passages, questions and answers; the hub is flat."""
    if isinstance(row.get("passage"), dict):
        text = row["passage"]["text"]
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                yield _multirc_row(text, question["question"], answer["text"], answer["label"])
    else:
        yield _multirc_row(row["paragraph"], row["question"], row["answer"], row["label"])


def _multirc_row(paragraph: str, question: str, answer: str, label: object) -> Row:
    return {"paragraph": _strip_markup(paragraph), "question": question, "answer": answer, "label": label}


@functools.lru_cache(maxsize=256)  # the rows of one passage follow each other
def _strip_markup(text: str) -> str:
    """Return the text with a blank for each `<br>` and without `<b>` and `</b>`."""
    return re.sub(r"</?b>", "", text.replace("<br>", " "))


def mark_wsc_spans(row: Row) -> Iterable[Row]:
    """Mark span 1 as `* x *` and span 2 as `# y #`, each at its word; broken spans of official files are mended first.

    Raises ValueError for a span that is nowhere in the text.
    """
    spans, text = dict(row.get("target") or row), str(row["text"])
    edits: list[str] = []
    for which in ("span1", "span2"):
        repaired = _repair_span(spans, which, text)
        edits += [edit for edit in repaired if edit not in edits]
    marks: list[tuple[int, str]] = []
    for which, mark in (("span1", "*"), ("span2", "#")):
        span, start = spans[f"{which}_text"], _find_span(text, spans[f"{which}_text"], spans[f"{which}_index"])
        if start is None and span in IRREPARABLE_SPANS:
            edits.append("span left unmarked")
        elif start is None:
            raise ValueError(f"{which} '{span}' is not in the text '{text:.80}'")
        else:
            marks += [(start, f"{mark} "), (start + len(span), f" {mark}")]
    for position, mark in sorted(marks, reverse=True):  # from the right, so that positions to the left stay true
        text = text[:position] + mark + text[position:]
    yield {"text": text, "label": row["label"], EDITS: tuple(edits)}


IRREPARABLE_SPANS = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")
"""Spans whose words are not side by side in their text. They stay unmarked, as in the hub's `wsc.fixed`."""


def _repair_span(spans: dict[str, Any], which: str, text: str) -> list[str]:
    """Repair, in `spans`, one span that is not in the text; return what was done.

    The steps are those that made the hub's `wsc.fixed`, so a row of that comes out unchanged.
    """
    span, index = str(spans[f"{which}_text"]), int(spans[f"{which}_index"])
    if span in text or span in IRREPARABLE_SPANS:
        return []
    edits = []
    if "theyscold" in span:  # two words that were glued together; the pronoun behind them is word 10
        spans["span2_index"] = 10
    words = text.split()
    first = words[index] if index < len(words) else ""
    if first and first[0].islower() != span[0].islower():
        span = (span[0].lower() if first[0].islower() else span[0].upper()) + span[1:]
        edits.append("case of a span repaired")
    if span.endswith("."):
        span = span.rstrip(".")
        edits.append("full stop of a span dropped")
    if "\n" in span:
        span = span.replace("\n", " ")
        edits.append("line break of a span made a blank")
    spans[f"{which}_text"] = span
    return edits


def _find_span(text: str, span: str, index: int) -> int | None:
    """Return where a span starts: at word `index`, else at its occurrence nearest to that word; None if there is none.

    A span is not at its word if the word begins with a quotation mark or a bracket, or if two blanks in a row were
    counted as a word.
    """
    words = [match.start() for match in re.finditer(r"\S+", text)]
    wanted = words[min(index, len(words) - 1)] if words else 0
    if text.startswith(span, wanted):
        return wanted
    pattern = re.escape(span)
    found = [match.start() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text)]
    found = found or [match.start() for match in re.finditer(pattern, text)]
    return min(found, key=lambda start: abs(start - wanted)) if found else None


COPA_CONNECTORS = {"cause": "because", "effect": "therefore"}


def continue_copa(row: Row) -> Iterable[Row]:
    """Yield the premise without its full stop, with the word that asks, and choices that go on with a small letter.

    This is the form in which lm-evaluation-harness ranks them. Raises ValueError for a question that is neither.
    """
    question = row["question"]
    if question not in COPA_CONNECTORS:
        raise ValueError(f"question {question!r} is neither cause nor effect")
    choices = {name: str(row[name]).strip() for name in ("choice1", "choice2")}
    yield {
        **row,
        "premise": f"{row['premise'].strip()[:-1]} {COPA_CONNECTORS[question]}",
        **{name: text[:1].lower() + text[1:] for name, text in choices.items()},
    }


def flatten_record(row: Row) -> Iterable[Row]:
    """Yield one row per query, its entities joined by `, `. Entities and answers are sets, sorted as on the hub."""
    if "qas" in row:
        text = row["passage"]["text"]
        # the end of a span is the position of its last character, not the one after it
        entities = sorted({text[span["start"] : span["end"] + 1] for span in row["passage"]["entities"]})
        for question in row["qas"]:
            answers = sorted({answer["text"] for answer in question.get("answers", ())})
            yield _record_row(text, question["query"], entities, answers)
    else:
        yield _record_row(row["passage"], row["query"], row["entities"], row["answers"])


def _record_row(passage: str, query: str, entities: list[str], answers: list[str]) -> Row:
    return {
        "passage": _join_highlights(passage),
        "query": query,
        "entities": ", ".join(entities),
        "answers": answers,
    }


@functools.lru_cache(maxsize=256)
def _join_highlights(text: str) -> str:
    """Join the lines at `@highlight`: by a blank after a sentence or a quote, else by a full stop (T5's ReCoRD)."""
    return re.sub(r"\n@highlight\n", ". ", re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text))


def _hub(config: str) -> tuple[Hub, ...]:
    return (Hub("aps/super_glue", config), Hub("hgissbkh/super_glue", config))


def _yes_no(**settings: Any) -> Task:
    return Task(
        benchmark="SuperGLUE",
        kind="classification",
        label="label",
        labels=("false", "true"),
        target_words=("False", "True"),
        **settings,
    )


TASKS = (
    _yes_no(
        name="boolq",
        title="BoolQ",
        fields=(("question", "question"), ("passage", "passage")),
        sizes=(9_427, 1_635, 1_635),
        hub=_hub("boolq"),
        folders=("superglue/BoolQ", "BoolQ"),
        licence="CC BY-SA 3.0",
        citation="clark-etal-2019-boolq",
    ),
    Task(
        name="cb",
        title="CB",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("premise", "premise"), ("hypothesis", "hypothesis")),
        label="label",
        labels=("entailment", "contradiction", "neutral"),
        extra=("macro_f1",),
        selection="macro_f1",
        sizes=(250, 28, 28),
        hub=_hub("cb"),
        folders=("superglue/CB", "CB"),
        licence=LICENCE,
        citation="de-marneffe-etal-2019-commitmentbank",
    ),
    Task(
        name="copa",
        title="COPA",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("premise", "premise"), ("choice1", "choice1"), ("choice2", "choice2")),
        label="label",
        labels=("choice1", "choice2"),
        sizes=(400, 50, 50),
        hub=_hub("copa"),
        folders=("superglue/COPA", "COPA"),
        licence="BSD 2-Clause",
        citation="roemmele-etal-2011-copa",
        notes="In neither paper's tables; the question (cause or effect) is left out as in their code.",
    ),
    Task(
        name="copa_choice",
        title="COPA (choice)",
        benchmark="SuperGLUE",
        kind="choice",
        fields=(),
        template="{premise}",
        form="plain",
        choices=("choice1", "choice2"),
        label="label",
        sizes=(400, 50, 50),
        hub=_hub("copa"),
        folders=("superglue/COPA", "COPA"),
        prepare=continue_copa,
        licence="BSD 2-Clause",
        citation="roemmele-etal-2011-copa",
        notes="COPA's two choices ranked by likelihood behind the premise and its question. Test labels are hidden.",
    ),
    _yes_no(
        name="multirc",
        title="MultiRC",
        fields=(("question", "question"), ("answer", "answer"), ("paragraph", "paragraph")),
        together=("paragraph", "question"),
        reported=("f1",),
        extra=("accuracy",),
        selection="f1",
        max_source_length=348,
        sizes=(27_243, 2_424, 2_424),
        hub=_hub("multirc"),
        folders=("superglue/MultiRC", "MultiRC"),
        prepare=flatten_multirc,
        licence=LICENCE,
        citation="khashabi-etal-2018-multirc",
        notes="Binary F1 over all answers of the half; halves are cut by answer, so no EM per question.",
    ),
    _yes_no(
        name="wic",
        title="WiC",
        fields=(("sentence1", "sentence1"), ("sentence2", "sentence2"), ("word", "word")),
        sizes=(5_428, 319, 319),
        hub=_hub("wic"),
        folders=("superglue/WiC", "WiC"),
        licence="CC BY-NC 4.0",
        citation="pilehvar-camacho-collados-2019-wic",
    ),
    _yes_no(
        name="wsc",
        title="WSC",
        fields=(("text", "text"),),
        sizes=(554, 52, 52),
        hub=_hub("wsc.fixed"),
        folders=("superglue/WSC", "WSC", "hub/wsc"),
        prepare=mark_wsc_spans,
        version=2,
        licence="CC BY 4.0",
        citation="levesque-etal-2012-wsc",
    ),
    Task(
        name="record",
        title="ReCoRD",
        benchmark="SuperGLUE",
        kind="text",
        fields=(("record query", "query"), ("entities", "entities"), ("passage", "passage")),
        label="answers",
        copy_per_answer=True,
        together=("passage", "query"),
        references="first",
        reported=("token_f1",),
        extra=("exact_match",),
        selection="exact_match",
        split="hold_out_1000",
        sizes=(137_484, 1_370, 15_176),
        hub=_hub("record"),
        folders=("superglue/ReCoRD", "ReCoRD"),
        prepare=flatten_record,
        licence=LICENCE,
        citation="zhang-etal-2018-record",
        notes="One copy per distinct answer in every split; 99,730 / 1,000 / 10,000 queries. Used as a source task.",
    ),
)
