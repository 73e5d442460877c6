"""SuperGLUE (Wang et al. 2019) as the prompt-tuning papers use it: digit labels, no task name in front."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.tasks.record import Hub, Row, Task

CITATION = "wang-etal-2019-superglue"
LICENCE = "research use; see https://super.gluebenchmark.com"


def flatten_multirc(row: Row) -> Iterable[Row]:
    """One row per answer: the official download nests passage, questions and answers; the hub is flat."""
    if isinstance(row.get("passage"), dict):
        text = row["passage"]["text"]
        for question in row["passage"]["questions"]:
            for answer in question["answers"]:
                yield _multirc_row(text, question["question"], answer["text"], answer["label"])
    else:
        yield _multirc_row(row["paragraph"], row["question"], row["answer"], row["label"])


def _multirc_row(paragraph: str, question: str, answer: str, label: object) -> Row:
    return {"paragraph": _strip_markup(paragraph), "question": question, "answer": answer, "label": label}


def _strip_markup(text: str) -> str:
    """`<br>` becomes a blank, `<b>` and `</b>` vanish."""
    return re.sub(r"</?b>", "", text.replace("<br>", " "))


def mark_wsc_spans(row: Row) -> Iterable[Row]:
    """Wrap span 1 as `* x *` and span 2 as `# y #`, found by blank-separated word index."""
    spans = row.get("target") or row
    text = _mark(row["text"], spans["span1_text"], spans["span1_index"], "*")
    # two marks stand in the text now, so a later second span has moved by two words
    shift = 2 if spans["span1_index"] < spans["span2_index"] else 0
    yield {"text": _mark(text, spans["span2_text"], spans["span2_index"] + shift, "#"), "label": row["label"]}


def _mark(text: str, span: str, index: int, mark: str) -> str:
    pattern = rf"^((?:\S+\s){{{index}}})({re.escape(span)})"
    return re.sub(pattern, rf"\g<1>{mark} \g<2> {mark}", text)


TASKS = (
    Task(
        name="boolq",
        title="BoolQ",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("question", "question"), ("passage", "passage")),
        label="label",
        labels=("false", "true"),
        sizes=(9_427, 1_635, 1_635),
        hub=(Hub("aps/super_glue", "boolq"), Hub("hgissbkh/super_glue", "boolq")),
        folders=("superglue/BoolQ", "BoolQ", "hub/boolq", "super_glue/boolq"),
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
        hub=(Hub("aps/super_glue", "cb"), Hub("hgissbkh/super_glue", "cb")),
        folders=("superglue/CB", "CB", "hub/cb", "super_glue/cb"),
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
        hub=(Hub("aps/super_glue", "copa"), Hub("hgissbkh/super_glue", "copa")),
        folders=("superglue/COPA", "COPA", "hub/copa", "super_glue/copa"),
        licence="BSD 2-Clause",
        citation="roemmele-etal-2011-copa",
        notes="In neither paper's tables; the question (cause or effect) is left out as in their code.",
    ),
    Task(
        name="multirc",
        title="MultiRC",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("question", "question"), ("answer", "answer"), ("paragraph", "paragraph")),
        label="label",
        labels=("false", "true"),
        reported=("f1",),
        extra=("accuracy",),
        selection="f1",
        max_source_length=348,
        sizes=(27_243, 2_424, 2_424),
        hub=(Hub("aps/super_glue", "multirc"), Hub("hgissbkh/super_glue", "multirc")),
        folders=("superglue/MultiRC", "MultiRC", "hub/multirc", "super_glue/multirc"),
        prepare=flatten_multirc,
        licence=LICENCE,
        citation="khashabi-etal-2018-multirc",
        notes="Binary F1 over all answers of the half; halves are cut by answer, so no EM per question.",
    ),
    Task(
        name="rte",
        title="RTE",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("sentence1", "sentence1"), ("sentence2", "sentence2")),
        label="label",
        labels=("entailment", "not_entailment"),
        sizes=(2_490, 138, 139),
        hub=(Hub("nyu-mll/glue", "rte"),),
        folders=("glue/RTE", "superglue/RTE", "RTE", "hub/rte", "glue/rte"),
        prepare=lambda row: [
            {
                "sentence1": row.get("sentence1", row.get("premise")),
                "sentence2": row.get("sentence2", row.get("hypothesis")),
                "label": row["label"],
            }
        ],
        licence=LICENCE,
        citation="wang-etal-2018-glue",
    ),
    Task(
        name="wic",
        title="WiC",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("sentence1", "sentence1"), ("sentence2", "sentence2"), ("word", "word")),
        label="label",
        labels=("false", "true"),
        sizes=(5_428, 319, 319),
        hub=(Hub("aps/super_glue", "wic"), Hub("hgissbkh/super_glue", "wic")),
        folders=("superglue/WiC", "WiC", "hub/wic", "super_glue/wic"),
        licence="CC BY-NC 4.0",
        citation="pilehvar-camacho-collados-2019-wic",
    ),
    Task(
        name="wsc",
        title="WSC",
        benchmark="SuperGLUE",
        kind="classification",
        fields=(("text", "text"),),
        label="label",
        labels=("false", "true"),
        sizes=(554, 52, 52),
        hub=(Hub("aps/super_glue", "wsc.fixed"), Hub("hgissbkh/super_glue", "wsc.fixed")),
        folders=("superglue/WSC", "WSC", "hub/wsc.fixed", "hub/wsc", "super_glue/wsc.fixed"),
        prepare=mark_wsc_spans,
        licence="CC BY 4.0",
        citation="levesque-etal-2012-wsc",
    ),
)
