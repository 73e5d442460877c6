"""A few invented rows of each data set of today, in the form of its official download and of its copy on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Files = dict[str, str]
"""Path below the data folder -> content."""


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write every file below `folder`, which is returned."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """One object per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: Sequence[Row]) -> str:
    """CSV with all cells in quotes."""
    quoted = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in quoted)


def _splits(make: Any, *names: str, num_rows: int = 4) -> Files:
    """`make(row number)` for a few rows of each split, as JSON lines under the hub's names."""
    return {f"{name}.jsonl": jsonl([make(10 * i + j) for j in range(num_rows)]) for i, name in enumerate(names)}


def _below(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": text for name, text in files.items()}


def _renamed(files: Files, **names: str) -> Files:
    """Files whose stems are given by `names` under others."""
    return {
        f"{names.get(name.removesuffix('.jsonl'), name.removesuffix('.jsonl'))}.jsonl": text
        for name, text in files.items()
    }


# arithmetic


def gsm8k(i: int) -> Row:
    return {
        "question": f"Ada has {i + 2} boxes with 3 pens each. How many pens has she?",
        "answer": f"She has {i + 2} * 3 = <<{i + 2}*3={3 * (i + 2)}>>{3 * (i + 2)} pens.\n#### {3 * (i + 2)}",
    }


def metamath(i: int) -> Row:
    query = f"If a shelf holds {i + 5} books, how many do two shelves hold?"
    response = f"Two shelves hold 2 * {i + 5} = {2 * (i + 5)} books.\nThe answer is: {2 * (i + 5)}"
    return {"type": "GSM_Rephrased", "query": query, "original_question": query, "response": response}


def svamp(i: int, answer: object) -> Row:
    return {"ID": f"own-{i}", "Body": f"Ben picked {i + 4} plums. He ate 3 of them. ", "Question": "How many are left?",
            "Equation": f"( {i + 4}.0 - 3.0 )", "Answer": answer, "Type": "Subtraction"}  # fmt: skip


GSM8K_OFFICIAL = _below("grade_school_math/data", _splits(gsm8k, "train", "test"))
GSM8K_HUB = _below("openai/gsm8k/main", _splits(gsm8k, "train", "test"))
LONG = {**metamath(90), "response": "Step by step. " * 100 + "The answer is: 4"}
METAMATH = [metamath(i) for i in range(3)] + [LONG]

# questions with choices


def goal(i: int) -> Row:
    return {"goal": f"How do I dry {i} wet socks?", "sol1": "Hang them on a line.", "sol2": "Put them into the sink."}


def social(i: int) -> Row:
    return {"context": f"Cleo lent Max {i} euros.", "question": "What does Max want to do next?",
            "answerA": "pay her back", "answerB": "forget it", "answerC": "lend her a car"}  # fmt: skip


def gap(i: int) -> Row:
    return {"sentence": f"The cup did not fit into box {i} since the _ was too small.", "option1": "cup",
            "option2": "box", "answer": str(1 + i % 2)}  # fmt: skip


def activity(i: int, label: object) -> Row:
    return {
        "ind": i, "activity_label": "Baking bread",
        "ctx_a": f"[header] How to bake bread [title] Mix {i} cups of flour with water.", "ctx_b": "the baker",
        "ctx": "unused", "split": "train", "split_type": "indomain", "source_id": "wikihow~1", "label": label,
        "endings": ["kneads the dough. [substeps] Ten minutes will do.", "eats the bowl.", "paints  the oven.",
                    "flies."],
    }  # fmt: skip


QUESTIONS = [
    ("Which of these is a liquid?", [("A", "iron"), ("B", "water"), ("C", "sand"), ("D", "wood")], "B"),
    ("What pulls a ball to the ground?", [("1", "light"), ("2", "sound"), ("3", "gravity"), ("4", "heat")], "3"),
    ("What do plants need?", [("A", "light"), ("B", "noise"), ("C", "coins")], "A"),
    ("Which is a bird?", [("A", "cod"), ("B", "ant"), ("C", "cow"), ("D", "fly"), ("E", "owl")], "E"),
]


def nested(i: int) -> Row:
    text, choices, key = QUESTIONS[i % len(QUESTIONS)]
    found = [{"text": choice, "label": name} for name, choice in choices]
    return {"id": f"own_{i}", "question": {"stem": f"{text} ({i})", "choices": found}, "answerKey": key}


def flat(i: int, column: str) -> Row:
    text, choices, key = QUESTIONS[i % len(QUESTIONS)]
    names = {"text": [choice for _, choice in choices], "label": [name for name, _ in choices]}
    return {"id": f"own_{i}", column: f"{text} ({i})", "choices": names, "answerKey": key}


def _labels(first: int, num_choices: int, *names: str) -> Files:
    return {f"{name}-labels.lst": "".join(f"{first + i % num_choices}\n" for i in range(4)) for name in names}


def _labelled(make: Any, first: int, num_choices: int, kind: type) -> Any:
    return lambda i: {**make(i), "label": kind(first + i % 10 % num_choices)}


def _arc(official: str) -> tuple[Files, Files]:
    files = _splits(nested, "train", "validation", "test")
    names = {"train": f"{official}-Train", "validation": f"{official}-Dev", "test": f"{official}-Test"}
    hub = _splits(lambda i: flat(i, "question"), "train", "validation", "test")
    return _below(f"ARC-V1-Feb2018-2/{official}", _renamed(files, **names)), _below(f"allenai/ai2_arc/{official}", hub)


# longer answers


def chat(i: int, line_break: str) -> Row:
    dialogue = f"Dana: Shall we meet at {i + 1}?{line_break}Eli: Yes, at the pond."
    return {"id": str(i), "summary": f"Dana and Eli meet at the pond at {i + 1}.", "dialogue": dialogue}


def _restaurants(meaning: str, text: str) -> dict[str, list[Row]]:
    one, other = "name[The Mill], food[Thai], area[riverside]", "name[Blue Door], eatType[pub]"
    rows = [
        (one, "The Mill serves Thai food by the river."), (other, "Blue Door is a pub."),
        (one, "By the river, The Mill offers Thai food."), (one, "The Mill serves Thai food by the river."),
    ]  # fmt: skip
    return {split: [{meaning: mr, text: ref} for mr, ref in rows] for split in ("train", "validation", "test")}


E2E_OFFICIAL = {"train": "trainset", "validation": "devset", "test": "testset_w_refs"}

# LLM-Adapters

INSTRUCTIONS = {
    "boolq": ("boolq", "Please answer the following question with true or false, question: is ice cold?\n\n"
              "Answer format: true/false", "true"),
    "piqa": ("piqa", "Please choose the correct solution to the question: Dry a sock.\n\nSolution1: Hang it up.\n\n"
             "Solution2: Drown it.\n\nAnswer format: solution1/solution2", "solution1"),
    "siqa": ("social_i_qa", "Please choose the correct answer to the question: Max owes Cleo money. What next?\n\n"
             "Answer1: pay Answer2: hide Answer3: sing\n\nAnswer format: answer1/answer2/answer3", "answer1"),
    "hellaswag": ("hellaswag", "Please choose the correct ending to complete the given sentence: The baker\n\n"
                  "Ending1: flies. Ending2: kneads. Ending3: sinks. Ending4: rusts.\n\n"
                  "Answer format: ending1/ending2/ending3/ending4", "ending2"),
    "winogrande": ("winogrande", "Please choose the correct answer to fill in the blank to complete the given "
                   "sentence: The cup was bigger than the box, so the _ broke.\n\nOption1: cup Option2: box "
                   "Answer format: option1/option2", "option2"),
    "arc_easy": ("ARC-Easy", "Please choose the correct answer to the question: Which is a bird?\n\nAnswer1: cod "
                 "Answer2: owl Answer3: ant\n\nAnswer format: answer1/answer2/answer3", "answer2"),
    "arc_challenge": ("ARC-Challenge", "Please choose the correct answer to the question: What pulls a ball down?\n\n"
                      "Answer1: a Answer2: b Answer3: c Answer4: d Answer5: gravity\n\n"
                      "Answer format: answer1/answer2/answer3/answer4/answer5", "answer5"),
    "openbookqa": ("openbookqa", "Please choose the correct answer to the question: A plant needs\n\nAnswer1: coins "
                   "Answer2: noise Answer3: light Answer4: a car\n\nAnswer format: answer1/answer2/answer3/answer4",
                   "answer3"),
}  # fmt: skip


def instruct(instruction: str, output: str, answer: str) -> Row:
    return {"instruction": instruction, "input": "", "output": output, "answer": answer}


def _commonsense(official: str, instruction: str, answer: str) -> Files:
    rows = [instruct(f"({i}) {instruction}", f"the correct answer is {answer}", answer) for i in range(4)]
    return {f"LLM-Adapters/dataset/{official}/{split}.json": json.dumps(rows) for split in ("train", "test")}


def _math(official: str) -> Files:
    ways = [instruct(f"Ada has {i} + 2 pens. How many?", f"{i} + 2 = {i + 2}. The answer is {i + 2}.", f"{i + 2}.0")
            for i in range(4)]  # fmt: skip
    tests = [instruct(f"Ben has {i} plums and gets 3. How many?", "\nA: a wrong way to 99.", f"{i + 3}.0")
             for i in range(2)]  # fmt: skip
    return {"LLM-Adapters/ft-training_set/math_10k.json": json.dumps(ways),
            f"LLM-Adapters/dataset/{official}/test.json": json.dumps(tests)}  # fmt: skip


OFFICIAL: dict[str, Files] = {
    "gsm8k": GSM8K_OFFICIAL,
    "metamath_gsm8k": {"MetaMathQA/MetaMathQA-395K.json": json.dumps(METAMATH), **GSM8K_OFFICIAL},
    "svamp": {f"SVAMP/{s}.json": json.dumps([svamp(j + 10 * i, float(j + 10 * i + 1)) for j in range(4)])
              for i, s in enumerate(("train", "test"))},
    "piqa": _below("physicaliqa-train-dev", {**_renamed(_splits(goal, "train", "validation"), validation="dev"),
                                             **_labels(0, 2, "train", "dev")}),
    "siqa": _below("socialiqa-train-dev", {**_renamed(_splits(social, "train", "validation"), validation="dev"),
                                           **_labels(1, 3, "train", "dev")}),
    "hellaswag": _below("hellaswag/data", _renamed(_splits(lambda i: activity(i, i % 4), "train", "validation"),
                                                   train="hellaswag_train", validation="hellaswag_val")),
    "winogrande": _below("winogrande_1.1", _renamed(_splits(gap, "train", "validation"), train="train_xl",
                                                    validation="dev")),
    "arc_easy": _arc("ARC-Easy")[0],
    "arc_challenge": _arc("ARC-Challenge")[0],
    "openbookqa": _below("OpenBookQA-V1-Sep2018/Data/Main",
                         _renamed(_splits(nested, "train", "validation", "test"), validation="dev")),
    "samsum": {f"corpus/{name}.json": json.dumps([chat(j + 10 * i, "\r\n") for j in range(4)])
               for i, name in enumerate(("train", "val", "test"))},
    "e2e": {f"e2e-dataset/{E2E_OFFICIAL[split]}.csv": table(rows) for split, rows in _restaurants("mr", "ref").items()},
    **{f"cs170k_{name}": _commonsense(*rows) for name, rows in INSTRUCTIONS.items()},
    "math10k_gsm8k": _math("gsm8k"),
    "math10k_mawps": _math("mawps"),
    "math10k_svamp": _math("SVAMP"),
}  # fmt: skip
"""Task -> files as the authors publish them."""

HUB: dict[str, Files] = {
    "gsm8k": GSM8K_HUB,
    "metamath_gsm8k": {"meta-math/MetaMathQA/train.jsonl": jsonl(METAMATH), **GSM8K_HUB},
    "svamp": _below("ChilleD/SVAMP", _splits(lambda i: {**svamp(i, f"{i + 1}.0"), "question_concat": ""}, "train",
                                             "test")),
    "piqa": _below("baber/piqa", _splits(_labelled(goal, 0, 2, int), "train", "validation")),
    "siqa": _below("lighteval/siqa", _splits(_labelled(social, 1, 3, str), "train", "validation")),
    "hellaswag": _below("Rowan/hellaswag", _splits(lambda i: activity(i, str(i % 4)), "train", "validation")),
    "winogrande": _below("allenai/winogrande/winogrande_xl", _splits(gap, "train", "validation")),
    "arc_easy": _arc("ARC-Easy")[1],
    "arc_challenge": _arc("ARC-Challenge")[1],
    "openbookqa": _below("allenai/openbookqa/main", _splits(lambda i: flat(i, "question_stem"), "train", "validation",
                                                            "test")),
    "samsum": _below("knkarthick/samsum", _splits(lambda i: chat(i, "\n"), "train", "validation", "test")),
    "e2e": {f"tuetschek/e2e_nlg/{split}.jsonl": jsonl(rows)
            for split, rows in _restaurants("meaning_representation", "human_reference").items()},
}  # fmt: skip
"""Task -> files of a copy of the hub's data set; LLM-Adapters publishes on GitHub alone."""
