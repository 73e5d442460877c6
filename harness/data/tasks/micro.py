"""Six generated tasks for the shipped micro T5, of the kinds of GLUE, SuperGLUE and MRQA; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.data.tasks.task import Task

SIZES = {"train": 2_000, "validation": 200, "test": 400}
"""Rows per split: small, so that a run takes minutes on a CPU. One of 400 test rows is 0.25 points of accuracy."""


def _rows(task: str) -> Callable[[str], list[dict[str, Any]]]:
    def generate(split: str) -> list[dict[str, Any]]:
        from harness.data.micro.grammar import generate as from_grammar

        return from_grammar(task, split, SIZES[split])

    return generate


def _task(name: str, title: str, fields: tuple[str, ...], **settings: Any) -> Task:
    return Task(
        name=f"micro_{name}",
        title=title,
        benchmark="Micro",
        split="given",
        max_source_length=64,
        fields=tuple((field, field) for field in fields),
        generate=_rows(name),
        label=settings.pop("label", "label"),
        sizes=(SIZES["train"], SIZES["validation"], SIZES["test"]),
        licence="Apache-2.0",
        **settings,
    )


TASKS = (
    _task("sentiment", "Sentiment", ("sentence",), kind="classification", labels=("negative", "positive")),
    _task(
        "entailment",
        "Entailment",
        ("premise", "hypothesis"),
        kind="classification",
        labels=("entailment", "neutral", "contradiction"),
        extra=("macro_f1",),
    ),
    _task(
        "paraphrase",
        "Paraphrase",
        ("sentence1", "sentence2"),
        kind="classification",
        labels=("different", "paraphrase"),
        extra=("f1",),
    ),
    _task(
        "similarity",
        "Similarity",
        ("sentence1", "sentence2"),
        kind="regression",
        reported=("pearson",),
        extra=("spearman",),
        selection="pearson",
    ),
    _task(
        "acceptability",
        "Acceptability",
        ("sentence",),
        kind="classification",
        labels=("unacceptable", "acceptable"),
        reported=("matthews",),
        extra=("accuracy",),
        selection="matthews",
    ),
    _task(
        "qa",
        "QA",
        ("question", "context"),
        kind="text",
        label="answers",
        reported=("token_f1",),
        extra=("exact_match",),
        selection="exact_match",
    ),
)
