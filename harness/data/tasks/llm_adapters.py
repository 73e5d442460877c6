"""The sets of LLM-Adapters (Hu et al. 2023) as its repository holds them: instruction, input, output and answer.

`commonsense_170k.json` is the training files of eight sets put together, so a mixture of the eight tasks here trains on
its 170,420 rows and is tested on each. `math_10k.json` is one file for all of its tests, so each of them is a cell.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.data.tasks.arithmetic import plain_number
from harness.data.tasks.task import Row, Source, Task

DOWNLOAD = "https://github.com/AGI-Edgerunners/LLM-Adapters"
ROOTS = ("LLM-Adapters/", "llm-adapters/", "")
INDENT = " " * 16
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n\n"
    f"{INDENT}### Instruction:\n{INDENT}{{instruction}}\n{INDENT}\n{INDENT}### Response:\n{INDENT}"
)
"""The prompt of `finetune.py`, blanks included; tests have it here too. That of `evaluate.py` differs in 17 blanks: one
behind "request." and the 16 of the line above "### Response:"."""

LONGEST = 512
"""Tokens of a prompt. The code cuts prompt and answer together at 256 in training, which can cut an answer off, and
nothing in evaluation; a prompt that is cut here would lose its end."""

ANSWER_PHRASE = "the correct answer is "


def commonsense_row(row: Row) -> Iterable[Row]:
    """Yield the instruction with its label, read off `output` ("the correct answer is answer1"); `answer` repeats it.

    Raises ValueError where the two disagree, where neither says an answer, and for an `input`, which no row has.
    """
    _require_no_input(row)
    output = str(row.get("output") or "")
    said = output.partition(ANSWER_PHRASE)[2].strip().rstrip(".")
    answer = str(row.get("answer") or said)
    if not answer or (said and said != answer):
        raise ValueError(f"output {output!r:.80} and answer {row.get('answer')!r} do not name one answer")
    yield {"instruction": row["instruction"], "label": answer}


def rationale_row(row: Row) -> Iterable[Row]:
    """Yield a training row of `math_10k.json`, whose target is the whole way to the answer."""
    _require_no_input(row)
    if not str(row["output"]).strip():
        raise ValueError("the output is empty")
    yield {"instruction": str(row["instruction"]).strip(), "answer": str(row["output"]).strip()}


def number_row(row: Row) -> Iterable[Row]:
    """Yield a test row, of which the number counts and not the way that stands beside it.

    SVAMP's own file is read too: there the problem is in two parts.
    """
    if "Body" in row:
        body, question = str(row["Body"]).strip(), str(row["Question"]).strip()
        yield {"instruction": f"{body} {question}", "answer": plain_number(row["Answer"])}
        return
    _require_no_input(row)
    yield {"instruction": str(row["instruction"]).strip(), "answer": plain_number(row["answer"])}


def _require_no_input(row: Row) -> None:
    if row.get("input"):
        raise ValueError(f"has an input, which the prompt of these sets leaves out: {row['input']!r:.60}")


def _folders(*inside: str) -> tuple[str, ...]:
    return tuple(root + folder for folder in inside for root in ROOTS)


def _commonsense(name: str, title: str, official: str, labels: tuple[str, ...], sizes: tuple[int, int, int]) -> Task:
    return Task(
        name=f"cs170k_{name}",
        title=title,
        benchmark="Commonsense-170k",
        kind="classification",
        fields=(),
        template=TEMPLATE,
        label="label",
        labels=labels,
        target_words=tuple(ANSWER_PHRASE + label for label in labels),
        target_style="words",
        form="plain",
        num_beams=4,
        max_source_length=LONGEST,
        max_new_tokens=32,
        split="cut_dev",
        dev_share=15,
        sizes=sizes,
        folders=_folders(f"dataset/{official}"),
        download=DOWNLOAD,
        prepare=commonsense_row,
        licence="Apache-2.0; the sets have their own",
        citation="hu-etal-2023-llm-adapters",
        notes="The answer has to be the whole phrase; evaluate.py takes the first label in whatever is written.",
    )


def _numbered(word: str, number: int) -> tuple[str, ...]:
    return tuple(f"{word}{index}" for index in range(1, number + 1))


def _math(name: str, title: str, official: str, num_test: int, *stems: str) -> Task:
    return Task(
        name=f"math10k_{name}",
        title=title,
        benchmark="Math-10k",
        kind="text",
        fields=(),
        template=TEMPLATE,
        label="answer",
        form="plain",
        num_beams=4,
        max_source_length=LONGEST,
        max_new_tokens=256,
        max_target_length=256,
        reported=("numeric_match",),
        selection="numeric_match",
        split="cut_dev",
        dev_share=120,
        sizes=(None, 120, num_test),
        folders=_folders("ft-training_set"),
        download=DOWNLOAD,
        sources={
            "train": Source(
                split="train",
                folders=_folders("ft-training_set", "math_10k"),
                stems=("math_10k",),
                prepare=rationale_row,
            ),
            "test": Source(split="test", folders=_folders(f"dataset/{official}"), stems=stems, prepare=number_row),
        },
        licence="Apache-2.0; the sets have their own",
        citation="hu-etal-2023-llm-adapters",
        notes="Trained on math_10k.json. Its authors say that its rows of MAWPS hold those of AddSub, MultiArith and "
        "SingleEq, which are no tests for it. evaluate.py takes a number within 0.001 of the answer for right, here "
        "two numbers are equal to six decimals: 6 of the 238 answers of MAWPS have more than three decimals.",
    )


TASKS = (
    _commonsense("boolq", "BoolQ", "boolq", ("true", "false"), (9_412, 15, 3_270)),
    _commonsense("piqa", "PIQA", "piqa", _numbered("solution", 2), (16_098, 15, 1_838)),
    _commonsense("siqa", "SIQA", "social_i_qa", _numbered("answer", 3), (33_395, 15, 1_954)),
    _commonsense("hellaswag", "HellaSwag", "hellaswag", _numbered("ending", 4), (39_890, 15, 10_042)),
    _commonsense("winogrande", "WinoGrande", "winogrande", _numbered("option", 2), (63_223, 15, 1_267)),
    _commonsense("arc_easy", "ARC-e", "ARC-Easy", _numbered("answer", 5), (2_236, 15, 2_376)),
    _commonsense("arc_challenge", "ARC-c", "ARC-Challenge", _numbered("answer", 5), (1_104, 15, 1_172)),
    _commonsense("openbookqa", "OBQA", "openbookqa", _numbered("answer", 4), (4_942, 15, 500)),
    _math("gsm8k", "GSM8K", "gsm8k", 1_319),
    _math("mawps", "MAWPS", "mawps", 238),
    _math("svamp", "SVAMP", "SVAMP", 1_000, "SVAMP"),
)
