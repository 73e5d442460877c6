"""Word problems whose answers are numbers: GSM8K, SVAMP, and MetaMathQA tested on GSM8K as on PEFT's own board.

What is written is the whole way to the number. `numeric_match` compares the number at its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.data.tasks.task import Hub, Row, Source, Task

GSM8K = (Hub("openai/gsm8k", "main"),)
GSM8K_FOLDERS = ("gsm8k", "GSM8K", "grade_school_math/data", "grade-school-math/grade_school_math/data", "hub/gsm8k")
FINAL = "####"
"""What stands in front of the number at the end of an answer of GSM8K."""

MOST_CHARACTERS = 1_300
"""Question, blank and answer of MetaMathQA that PEFT's board still trains on: its stand-in for 768 tokens, which must
not depend on a tokenizer. It says that 93.8 % of the rows are as short."""


def with_final_number(row: Row) -> Iterable[Row]:
    """Yield a row of GSM8K as it is. Raises ValueError for an answer that has no `####` with a number behind it."""
    answer = str(row["answer"])
    if FINAL not in answer or not any(char.isdigit() for char in answer.rpartition(FINAL)[2]):
        raise ValueError(f"the answer has no number behind '{FINAL}': {answer[-40:]!r}")
    yield {"question": row["question"], "answer": answer}


def metamath_row(row: Row) -> Iterable[Row]:
    """Yield a row of MetaMathQA with GSM8K's names. Raises ValueError for an empty response."""
    if not str(row["response"]).strip():
        raise ValueError("the response is empty")
    yield {"question": row["query"], "answer": row["response"]}


def is_short(row: Row) -> bool:
    """Whether PEFT's board trains on a row of MetaMathQA."""
    return len(f"{row['query']} {row['response']}") <= MOST_CHARACTERS


def svamp_row(row: Row) -> Iterable[Row]:
    """Yield body and question as one text; the answer is a number or its text, 8.0 in both official forms of 8."""
    body, question = str(row["Body"]).strip(), str(row["Question"]).strip()
    yield {"question": f"{body} {question}", "answer": plain_number(row["Answer"])}


def plain_number(value: object) -> str:
    """Return a number as people write it, 8 for 8.0. Raises ValueError if it is none."""
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(f"the answer {value!r} is not a number") from None
    return str(int(number)) if number.is_integer() else str(number)


def _task(**settings: Any) -> Task:
    return Task(
        benchmark="Arithmetic",
        kind="text",
        fields=(),
        label="answer",
        form="auto",
        reported=("numeric_match",),
        selection="numeric_match",
        **settings,
    )


TASKS = (
    _task(
        name="gsm8k",
        title="GSM8K",
        template="Question: {question}\nAnswer:",
        stop=("Question:",),
        max_new_tokens=256,
        max_target_length=512,
        split="cut_dev",
        dev_share=500,
        sizes=(6_973, 500, 1_319),
        hub=GSM8K,
        folders=GSM8K_FOLDERS,
        prepare=with_final_number,
        licence="MIT",
        citation="cobbe-etal-2021-gsm8k",
        notes="Answers with their calculator notes in << >>, as published. Prompt, stop text and 256 tokens are those "
        "of lm-evaluation-harness, which shows five examples in front; dev is cut from train, since none is published.",
    ),
    _task(
        name="metamath_gsm8k",
        title="MetaMathQA to GSM8K",
        template="Question: {question} Think step by step.\nAnswer:",
        max_source_length=768,
        max_target_length=768,
        max_new_tokens=300,
        split="given",
        sizes=(None, 50, 1_319),
        hub=(Hub("meta-math/MetaMathQA"),),
        folders=("metamathqa", "MetaMathQA"),
        sources={
            "train": Source(
                split="train",
                hub=(Hub("meta-math/MetaMathQA"),),
                folders=("metamathqa", "MetaMathQA", "meta-math/MetaMathQA", "hub/MetaMathQA"),
                stems=("MetaMathQA-395K",),
                keep=is_short,
                left_out=f"of more than {MOST_CHARACTERS:,} characters",
                prepare=metamath_row,
            ),
            "validation": Source(
                split="train", hub=GSM8K, folders=GSM8K_FOLDERS, num_drawn=50, prepare=with_final_number
            ),
            "test": Source(split="test", hub=GSM8K, folders=GSM8K_FOLDERS, prepare=with_final_number),
        },
        licence="MIT",
        citation="yu-etal-2024-metamath",
        notes="As on PEFT's board: train is MetaMathQA, dev 50 rows of GSM8K's train, the rows that the board draws, "
        "test GSM8K's. The board's answer follows the colon at once, here behind a blank.",
    ),
    _task(
        name="svamp",
        title="SVAMP",
        template="Question: {question}\nAnswer:",
        stop=("Question:", "\n"),
        max_new_tokens=32,
        max_target_length=32,
        split="cut_dev",
        dev_share=100,
        sizes=(600, 100, 300),
        hub=(Hub("ChilleD/SVAMP"),),
        folders=("svamp", "SVAMP", "hub/svamp"),
        prepare=svamp_row,
        licence="MIT",
        citation="patel-etal-2021-svamp",
        notes="The authors publish 1,000 test rows in one file (see math10k_svamp); 700 and 300 are the hub copy's. "
        "The answer is the number alone, for no way to it is published.",
    ),
)
