"""GLUE (Wang et al. 2018) as the prompt-tuning papers use it: labels are digits, no task name in front of the text."""

from __future__ import annotations

from typing import Any

from harness.data.tasks.task import Hub, Task

LICENCE = "research use; see https://gluebenchmark.com"
CITATION = "wang-etal-2018-glue"


def _task(name: str, title: str, folder: str, fields: tuple[tuple[str, str], ...], **settings: Any) -> Task:
    return Task(
        name=name,
        title=title,
        benchmark="GLUE",
        fields=fields,
        label="label",
        kind=settings.pop("kind", "classification"),
        hub=(Hub("nyu-mll/glue", name), *settings.pop("spare_hubs", ())),
        folders=(f"glue/{folder}", folder, *settings.pop("spare_folders", ())),
        licence=LICENCE,
        citation=settings.pop("citation", CITATION),
        **settings,
    )


def _same(*columns: str) -> tuple[tuple[str, str], ...]:
    """Return fields whose tags are the names of their columns."""
    return tuple((column, column) for column in columns)


TASKS = (
    _task(
        "mnli",
        "MNLI",
        "MNLI",
        _same("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        split="mismatched_dev",
        sizes=(392_702, 9_832, 9_815),
        aliases={"premise": ("sentence1",), "hypothesis": ("sentence2",), "label": ("gold_label",)},
        citation="williams-etal-2018-multinli",
    ),
    _task(
        "qqp",
        "QQP",
        "QQP",
        _same("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        extra=("f1",),
        split="hold_out_1000",
        sizes=(362_846, 1_000, 40_430),
        aliases={"label": ("is_duplicate",)},
        skips_broken_rows=True,
        notes="Text with line ends breaks a few rows of the official train.tsv; as in the hub copy they are left out.",
    ),
    _task(
        "qnli",
        "QNLI",
        "QNLI",
        _same("question", "sentence"),
        labels=("entailment", "not_entailment"),
        split="hold_out_1000",
        sizes=(103_743, 1_000, 5_463),
    ),
    _task(
        "sst2",
        "SST-2",
        "SST-2",
        _same("sentence"),
        labels=("negative", "positive"),
        split="hold_out_1000",
        sizes=(66_349, 1_000, 872),
        citation="socher-etal-2013-sst",
    ),
    _task(
        "stsb",
        "STS-B",
        "STS-B",
        _same("sentence1", "sentence2"),
        kind="regression",
        class_cut=2.5,  # DePT's code, for few-shot draws
        reported=("pearson",),
        extra=("spearman",),
        selection="pearson",
        sizes=(5_749, 750, 750),
        aliases={"label": ("score",)},
        citation="cer-etal-2017-stsb",
    ),
    _task(
        "mrpc",
        "MRPC",
        "MRPC",
        _same("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        extra=("f1",),
        sizes=(3_668, 204, 204),
        aliases={"sentence1": ("#1 String",), "sentence2": ("#2 String",), "label": ("Quality",)},
        citation="dolan-brockett-2005-mrpc",
    ),
    _task(
        "rte",
        "RTE",
        "RTE",
        _same("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        sizes=(2_490, 138, 139),
        spare_hubs=(Hub("aps/super_glue", "rte"),),
        spare_folders=("superglue/RTE",),
        aliases={"sentence1": ("premise",), "sentence2": ("hypothesis",)},
        notes="Also part of SuperGLUE, with the same rows.",
    ),
    _task(
        "cola",
        "CoLA",
        "CoLA",
        _same("sentence"),
        labels=("unacceptable", "acceptable"),
        reported=("matthews",),
        extra=("accuracy",),
        selection="matthews",
        sizes=(8_551, 521, 522),
        tsv_columns=("source", "label", "mark", "sentence"),
        citation="warstadt-etal-2019-cola",
    ),
)
