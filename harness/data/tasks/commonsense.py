"""Seven sets of commonsense questions with choices; the eighth of the usual table is BoolQ (`superglue.py`).

A row becomes a question, the texts of its choices and the number of the right one, from 0. Prompts are those of
lm-evaluation-harness. What ranks is the sum of log-likelihoods where that reports `acc` alone, and that sum by
character where it reports `acc_norm` too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.data.tasks.task import Hub, Row, Task

LETTERS = "ABCDEFGH"


def choice_row(question: str, choices: Sequence[object], label: int | None, given: object) -> Row:
    """Return a flat row. Raises ValueError for fewer than two choices, an empty one, or a label that is none of them.

    `label` is the number of the right choice from 0, None where nothing could be made of the label as `given`.
    """
    texts = [str(choice) for choice in choices]
    if len(texts) < 2:
        raise ValueError(f"has {len(texts)} choices; at least two are needed")
    if not all(text.strip() for text in texts):
        raise ValueError(f"choice {[bool(text.strip()) for text in texts].index(False)} (from 0) is empty")
    if label is None or not 0 <= label < len(texts):
        raise ValueError(f"the label {given!r} is none of its {len(texts)} choices")
    return {"question": question, "choices": texts, "label": label}


def from_zero(label: object) -> int | None:
    """Return a label that counts from 0, as a number or its text; None if it is none."""
    text = str(label).strip()
    return int(text) if re.fullmatch(r"\d{1,3}", text) else None


def from_one(label: object) -> int | None:
    """Return a label that counts from 1 as one that counts from 0; None if it is none."""
    number = from_zero(label)
    return None if number is None else number - 1


def named_choices(row: Row) -> Iterable[Row]:
    """Yield a row of ARC or OpenBookQA. Choices bear letters or numbers, and the answer key is one of them.

    Official rows nest question and choices, hub rows have a table of texts and labels.
    """
    question = row.get("question", row.get("question_stem"))
    if isinstance(question, Mapping):
        found, text = question["choices"], question["stem"]
        texts, names = [choice["text"] for choice in found], [choice["label"] for choice in found]
    else:
        texts, names, text = row["choices"]["text"], row["choices"]["label"], question
    key = str(row["answerKey"]).strip()
    yield choice_row(str(text), texts, names.index(key) if key in names else None, key)


def piqa_row(row: Row) -> Iterable[Row]:
    """Yield a goal with its two solutions."""
    yield choice_row(row["goal"], [row["sol1"], row["sol2"]], from_zero(row["label"]), row["label"])


def siqa_row(row: Row) -> Iterable[Row]:
    """Yield context and question with three answers; labels count from 1."""
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    yield choice_row(f"{row['context']} {row['question']}", choices, from_one(row["label"]), row["label"])


def winogrande_row(row: Row) -> Iterable[Row]:
    """Yield the text in front of the gap; a choice is an option with the text behind the gap. Answers count from 1."""
    before, gap, behind = str(row["sentence"]).partition("_")
    if not gap:
        raise ValueError(f"the sentence has no gap '_': {row['sentence']!r:.80}")
    choices = [f"{option}{behind}" if str(option).strip() else "" for option in (row["option1"], row["option2"])]
    yield choice_row(before.strip(), choices, from_one(row["answer"]), row["answer"])


def hellaswag_row(row: Row) -> Iterable[Row]:
    """Yield what happens, under the name of the activity, with four ways in which it goes on."""
    begun = str(row["ctx_b"])
    # the second part is the start of a sentence that each ending completes
    question = f"{row['activity_label']}: {row['ctx_a']} {begun.capitalize()}"
    endings = [without_marks(str(ending)) for ending in row["endings"]]
    yield choice_row(without_marks(question), endings, from_zero(row["label"]), row["label"])


def without_marks(text: str) -> str:
    """Return a text of HellaSwag without the marks in square brackets that WikiHow's pages left in it.

    A heading's mark ends a sentence, any other is dropped. Two blanks, as the marks leave them, become one.
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _task(**settings: Any) -> Task:
    return Task(
        benchmark="Commonsense",
        kind="choice",
        fields=(),
        choices=("choices",),
        label="label",
        answered_by="likelihood",
        form="auto",
        max_target_length=128,
        **settings,
    )


def _named(name: str, title: str, official: str, hub: Hub, **settings: Any) -> Task:
    inside = f"ARC-V1-Feb2018-2/{official}"
    return _task(
        name=name,
        title=title,
        template="Question: {question}\nAnswer:",
        choice_score="per_character",
        split="given",
        hub=(hub,),
        folders=(inside, f"ARC-V1-Feb2018/{official}", f"ARC/{official}", official, f"arc/{official}"),
        stems={"train": (f"{official}-Train",), "validation": (f"{official}-Dev",), "test": (f"{official}-Test",)},
        prepare=named_choices,
        licence="CC BY-SA 4.0",
        citation="clark-etal-2018-arc",
        notes="Three to five choices, named by letters or by numbers from 1.",
        **settings,
    )


TASKS = (
    _task(
        name="piqa",
        title="PIQA",
        template="Question: {question}\nAnswer:",
        choice_score="per_character",
        split="hold_out_1000",
        sizes=(15_113, 1_000, 1_838),
        hub=(Hub("baber/piqa"), Hub("ybisk/piqa", revision="refs/convert/parquet")),
        folders=("physicaliqa-train-dev", "piqa", "PIQA", "hub/piqa"),
        label_files="-labels.lst",
        prepare=piqa_row,
        licence="AFL 3.0",
        citation="bisk-etal-2020-piqa",
        notes="The published test rows have no labels, so validation is test.",
    ),
    _task(
        name="siqa",
        title="SIQA",
        template="Q: {question}\nA:",
        split="hold_out_1000",
        sizes=(32_410, 1_000, 1_954),
        hub=(Hub("lighteval/siqa"), Hub("allenai/social_i_qa", revision="refs/convert/parquet")),
        folders=("socialiqa-train-dev", "siqa", "SIQA", "social_i_qa", "hub/siqa"),
        label_files="-labels.lst",
        prepare=siqa_row,
        licence="CC BY 4.0",
        citation="sap-etal-2019-siqa",
        notes="The published test rows have no labels, so validation is test.",
    ),
    _task(
        name="hellaswag",
        title="HellaSwag",
        template="{question}",
        choice_score="per_character",
        split="hold_out_1000",
        sizes=(38_905, 1_000, 10_042),
        hub=(Hub("Rowan/hellaswag"),),
        folders=("hellaswag", "HellaSwag", "hellaswag/data", "hub/hellaswag"),
        stems={"train": ("hellaswag_train",), "validation": ("hellaswag_val",)},
        prepare=hellaswag_row,
        licence="MIT",
        citation="zellers-etal-2019-hellaswag",
        notes="The published test rows have no labels, so validation is test.",
    ),
    _task(
        name="winogrande",
        title="WinoGrande",
        template="{question}",
        split="hold_out_1000",
        sizes=(39_398, 1_000, 1_267),
        hub=(Hub("allenai/winogrande", "winogrande_xl"),),
        folders=("winogrande_1.1", "winogrande", "WinoGrande"),
        stems={"train": ("train_xl",)},
        prepare=winogrande_row,
        licence="Apache-2.0",
        citation="sakaguchi-etal-2020-winogrande",
        notes="XL training rows; the published test rows have no labels, so validation is test. A choice is the option "
        "and all that follows: lm-evaluation-harness puts the option into the prompt and scores what follows alone.",
    ),
    _named("arc_easy", "ARC-e", "ARC-Easy", Hub("allenai/ai2_arc", "ARC-Easy"), sizes=(2_251, 570, 2_376)),
    _named(
        "arc_challenge", "ARC-c", "ARC-Challenge", Hub("allenai/ai2_arc", "ARC-Challenge"), sizes=(1_119, 299, 1_172)
    ),
    _task(
        name="openbookqa",
        title="OBQA",
        template="{question}",
        choice_score="per_character",
        split="given",
        sizes=(4_957, 500, 500),
        hub=(Hub("allenai/openbookqa", "main"),),
        folders=("OpenBookQA-V1-Sep2018-2/Data/Main", "OpenBookQA-V1-Sep2018/Data/Main", "OpenBookQA", "openbookqa"),
        prepare=named_choices,
        licence="Apache-2.0",
        citation="mihaylov-etal-2018-openbookqa",
        notes="The question alone, without the book's facts.",
    ),
)
