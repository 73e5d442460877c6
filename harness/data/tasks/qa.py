"""Extractive question answering: four sets of MRQA 2019 (Fisch et al. 2019) and SQuAD 1.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.data.tasks.task import Hub, Row, Task


def flatten_mrqa(row: Row) -> Iterable[Row]:
    """Yield one row per question. An official line holds a context with its questions; the first line is a header."""
    if "qas" in row:
        for question in row["qas"]:
            # the answers as given: those detected in the context may differ in case and spacing
            answers = question.get("answers") or [answer["text"] for answer in question["detected_answers"]]
            yield {"context": row["context"], "question": question["question"], "answers": answers}
    elif "header" not in row:
        yield row


def flatten_squad(row: Row) -> Iterable[Row]:
    """Yield one row per question. The official document holds articles, of paragraphs, of questions."""
    if "paragraphs" not in row:
        yield row
        return
    for paragraph in row["paragraphs"]:
        for question in paragraph["qas"]:
            answers = {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            }
            yield {"context": paragraph["context"], "question": question["question"], "answers": answers}


def _task(name: str, title: str, **settings: Any) -> Task:
    return Task(
        name=name,
        title=title,
        kind="text",
        fields=(("question", "question"), ("context", "context")),
        label="answers",
        space_punctuation=True,
        references="first",
        reported=("token_f1",),
        extra=("exact_match",),
        selection="exact_match",
        split="hold_out_1000",
        max_source_length=512,  # as DePT's logs and ACCEPT's read-me say for MRQA
        **settings,
    )


def _mrqa(name: str, title: str, official: str, hub: str, **settings: Any) -> Task:
    return _task(
        name,
        title,
        benchmark="MRQA",
        hub=(Hub(f"lucadiliello/{hub}"),),
        folders=(f"mrqa/{official}", official),
        shared_folders=("mrqa", "MRQA"),
        stems={"train": (f"train/{official}",), "validation": (f"dev/{official}",)},
        prepare=flatten_mrqa,
        **settings,
    )


TASKS = (
    _mrqa(
        "naturalquestions",
        "NQ",
        "NaturalQuestionsShort",
        "naturalquestionsshortqa",
        sizes=(103_071, 1_000, 12_836),
        licence="CC BY-SA 3.0",
        citation="kwiatkowski-etal-2019-nq",
    ),
    _mrqa(
        "hotpotqa",
        "HotpotQA",
        "HotpotQA",
        "hotpotqa",
        sizes=(71_928, 1_000, 5_901),
        licence="CC BY-SA 4.0",
        citation="yang-etal-2018-hotpotqa",
    ),
    _mrqa(
        "searchqa",
        "SearchQA",
        "SearchQA",
        "searchqa",
        sizes=(116_384, 1_000, 16_980),
        licence="research use; see https://mrqa.github.io",
        citation="dunn-etal-2017-searchqa",
    ),
    _mrqa(
        "newsqa",
        "NewsQA",
        "NewsQA",
        "newsqa",
        sizes=(73_160, 1_000, 4_212),
        licence="research use; see https://mrqa.github.io",
        citation="trischler-etal-2017-newsqa",
    ),
    _task(
        "squad",
        "SQuAD",
        benchmark="SQuAD",
        sizes=(86_599, 1_000, 10_570),
        hub=(Hub("rajpurkar/squad", "plain_text"),),
        folders=("squad", "SQuAD", "hub/squad"),
        stems={"train": ("train-v1.1",), "validation": ("dev-v1.1",)},
        prepare=flatten_squad,
        licence="CC BY-SA 4.0",
        citation="rajpurkar-etal-2016-squad",
        notes="Version 1.1, not the MRQA copy. Used as a source task.",
    ),
)
