"""Ranks the choices of COPA and BoolQ here and with lm-evaluation-harness, on one network, and counts where they agree.

    python -m tools.compare_with_lm_eval BACKBONE --data DIR [--rows N]

lm-evaluation-harness has to be installed (`lm-eval[hf]`); nothing is fetched. Both get the same contexts and choices: a
choice stands behind a blank. Its own COPA puts two blanks there, one of the task and one of its delimiter.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before a library asks

from harness.backbone import Backbone, load_backbone
from harness.data import Example, Task, all_tasks, encode, encode_choices, load_task
from harness.method import Method
from harness.suite import ChoiceScore
from harness.train import BatchInput, Rows, choice_scores, likeliest
from tools.arguments import whole

SCORES: tuple[ChoiceScore, ...] = ("sum", "per_character", "per_byte")
"""What lm-evaluation-harness calls acc, acc_norm and acc_bytes."""
LIMIT = 8_000
"""Tokens of a context. The longest of BoolQ is cut on the right here and on the left there, so it must not be cut."""


def tasks() -> dict[str, Task]:
    """COPA and BoolQ as lm-evaluation-harness words them."""
    boolq = replace(
        all_tasks()["boolq"],
        template="{passage}\nQuestion: {question}?\nAnswer:",
        form="plain",
        answered_by="likelihood",
        target_style="words",
        target_words=("no", "yes"),
    )
    return {"copa": all_tasks()["copa_choice"], "boolq": boolq}


@dataclass(frozen=True)
class Ranked:
    """What one program makes of N rows."""

    likelihoods: list[list[float]]
    """[N], of each row's choices"""
    chosen: dict[ChoiceScore, list[int]]
    """By score, [N] numbers of the chosen ones"""


def texts_of(task: Task, example: Example) -> tuple[str, ...]:
    """The texts of a row's choices."""
    return example.choices or tuple(task.targets)


def ranked_here(task: Task, examples: Sequence[Example], backbone: Backbone, max_tokens: int = 4_096) -> Ranked:
    """Rank the choices of every row with the untouched network, in micro-batches of `max_tokens`."""
    encoded = encode(examples, backbone, task, LIMIT)
    assert not encoded.num_cut_sources
    summed = encode_choices(examples, backbone, replace(task, choice_score="sum"))
    assert summed is not None
    encoded = replace(encoded, choices=summed)
    fused = BatchInput([Method(None, backbone)], backbone, LIMIT)
    fused.refresh(grad=False, cells=[0])
    rows = Rows(np.zeros(len(examples), np.int64), np.arange(len(examples)))
    found = {row: own for _, row, own in choice_scores(fused, encoded, rows, max_tokens)}
    chosen = {}
    for score in SCORES:
        made = encode_choices(examples, backbone, replace(task, choice_score=score))
        assert made is not None
        answers = [
            list(made.answers[made.row_offsets[row] : made.row_offsets[row + 1]]) for row in range(len(examples))
        ]
        own = [
            found[row] / made.lengths[made.row_offsets[row] : made.row_offsets[row + 1]] for row in range(len(found))
        ]
        chosen[score] = [answers[row].index(likeliest(made, row, own[row])) for row in range(len(examples))]
    return Ranked([found[row].tolist() for row in range(len(examples))], chosen)


def ranked_there(task: Task, examples: Sequence[Example], backbone: Backbone, batch_size: int = 8) -> Ranked:
    """Rank the same choices with lm-evaluation-harness, on the same network and tokenizer."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(
        pretrained=backbone.model, tokenizer=backbone.tokenizer, device="cpu", batch_size=batch_size, max_length=LIMIT
    )
    pairs = [(example.source, f" {text}") for example in examples for text in texts_of(task, example)]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    flat = iter(likelihood for likelihood, _ in model.loglikelihood(requests, disable_tqdm=True))
    likelihoods = [[next(flat) for _ in texts_of(task, example)] for example in examples]
    divisors: dict[ChoiceScore, Any] = {
        "sum": lambda text: 1.0,
        "per_character": lambda text: float(len(text)),
        "per_byte": lambda text: float(len(text.encode())),
    }
    chosen = {
        score: [
            int(np.argmax(np.array(own) / [divisor(text) for text in texts_of(task, example)]))
            for own, example in zip(likelihoods, examples, strict=True)
        ]
        for score, divisor in divisors.items()
    }
    return Ranked(likelihoods, chosen)


def compare(task: Task, examples: Sequence[Example], backbone: Backbone) -> list[str]:
    """Lines on one task: accuracies, rows with the same choice, and the largest difference of a log-likelihood."""
    here, there = ranked_here(task, examples, backbone), ranked_there(task, examples, backbone)
    right = [
        int(example.references[0]) if task.kind == "choice" else task.targets.index(example.target)
        for example in examples
    ]
    lines = []
    for score in SCORES:
        ours, theirs = here.chosen[score], there.chosen[score]
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        accuracies = [100 * float(np.mean(np.array(chosen) == right)) for chosen in (ours, theirs)]
        lines.append(
            f"{task.title}, {score}: {same:,} of {len(examples):,} rows have the same choice; "
            f"accuracy {accuracies[0]:.2f} here, {accuracies[1]:.2f} with lm-evaluation-harness"
        )
    pairs = zip(here.likelihoods, there.likelihoods, strict=True)
    gaps = [abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)]
    lines.append(f"{task.title}: log-likelihoods of {len(gaps):,} choices differ by at most {max(gaps):.1e}")
    return lines


def main() -> None:
    """Compare the validation rows of both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="name or folder")
    parser.add_argument("--data", required=True, help="folder with COPA and BoolQ, as `harness run --data` takes it")
    parser.add_argument("--rows", type=whole, help="the first N validation rows of each; all unless given")
    parser.add_argument("--tasks", default="copa,boolq")
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, "float32", "cpu")
    for name in given.tasks.split(","):
        data = load_task(replace(tasks()[name], split="hold_out_1000"), given.data)  # test is all of validation
        for line in compare(data.task, data.test[: given.rows], backbone):
            print(line, flush=True)


if __name__ == "__main__":
    main()
