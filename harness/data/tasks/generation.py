"""Longer answers, compared with what people wrote: summaries of dialogues (SAMSum), texts of restaurants (E2E)."""

from __future__ import annotations

from collections.abc import Iterable

from harness.data.tasks.task import EDITS, Hub, Row, Task


def samsum_row(row: Row) -> Iterable[Row]:
    """Yield a dialogue with one kind of line break: the official files have two. One has no line at all.

    A summary becomes one line, since writing ends at a line break.
    """
    dialogue = row["dialogue"]
    summary = str(row["summary"]).strip()
    one_line = " ".join(line.strip() for line in summary.splitlines())
    edits = ("empty dialogue",) * (not dialogue) + ("summary of several lines",) * (one_line != summary)
    lines = str(dialogue or "").replace("\r\n", "\n").replace("\r", "\n").strip()
    yield {"dialogue": lines, "summary": one_line, EDITS: edits}


TASKS = (
    Task(
        name="samsum",
        title="SAMSum",
        benchmark="Generation",
        kind="text",
        fields=(),
        template="Summarize the dialogue.\n\n{dialogue}\n\nSummary:",
        label="summary",
        form="auto",
        reported=("rougeL",),
        extra=("rouge1", "rouge2"),
        selection="rougeL",
        split="given",
        max_source_length=1_024,
        max_target_length=128,
        max_new_tokens=128,
        stop=("\n",),
        sizes=(14_732, 818, 819),
        hub=(Hub("knkarthick/samsum"), Hub("Samsung/samsum", revision="refs/convert/parquet")),
        folders=("samsum", "SAMSum", "corpus"),
        prepare=samsum_row,
        licence="CC BY-NC-ND 4.0",
        citation="gliwa-etal-2019-samsum",
        notes="128 tokens and the stop text are those of LongBench in lm-evaluation-harness.",
    ),
    Task(
        name="e2e",
        title="E2E NLG",
        benchmark="Generation",
        kind="text",
        fields=(),
        template="Meaning: {mr}\nText:",
        label="ref",
        joins_references=True,
        form="auto",
        reported=("bleu",),
        extra=("rougeL",),
        selection="bleu",
        split="given",
        max_source_length=128,
        max_target_length=128,
        max_new_tokens=100,
        stop=("\n",),
        sizes=(42_061, 547, 630),
        hub=(Hub("tuetschek/e2e_nlg", revision="refs/convert/parquet"),),
        folders=("e2e-dataset", "e2e", "e2e_nlg", "E2E"),
        stems={"train": ("trainset",), "validation": ("devset",), "test": ("testset_w_refs",)},
        aliases={"mr": ("meaning_representation", "MR"), "ref": ("human_reference",)},
        licence="CC BY-SA 4.0",
        citation="novikova-etal-2017-e2e",
        notes="4,672 dev and 4,693 test texts of 547 and 630 meanings: one row for each, all its texts as references.",
    ),
)
