"""Evaluates cells of a bundle: their answers to the rows of one split, and the scores of these answers.

Shapes: N rows of a micro-batch, L positions of its padded rows, H width of the backbone, T tokens of an answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from harness import stop
from harness.backbone import Backbone
from harness.data import Encoded, Example, Task, TaskData, compute_metrics, count_unreadable, max_new_tokens, mean_score
from harness.method import head_answers
from harness.results import SplitScore
from harness.suite import LabelTokens
from harness.train.batch_input import BatchInput, Rows, micro_batches
from harness.train.choices import choice_scores, likeliest
from harness.train.race import ChanceLevel, standard_error


@torch.no_grad()
def answer_split(
    fused: BatchInput,
    cells: Sequence[int],
    encoded: Encoded,
    task: Task,
    max_tokens: int,
    only: slice = slice(None),
    label_tokens: LabelTokens = "longest_label",
) -> dict[int, list[str]]:
    """Answers of each of `cells` (positions in `fused`) to every row, by cell, in the order of rows.

    Answers are decoded greedily, or read off by the cells' linear heads where they have them. The answer to a row that
    has choices is the likeliest of them. `max_tokens` is the token budget of a micro-batch. With `only`, these rows
    alone are answered, and the answers to others are empty.
    `label_tokens` is that of the cells' recipes. Raises CellError where a method's code raises, and Stopped after a
    request to stop.
    """
    backbone = fused.backbone
    fused.refresh(grad=False, cells=cells)
    count = len(encoded)
    chosen = np.arange(count)[only]
    is_ranked = np.zeros(count, bool) if encoded.choices is None else np.diff(encoded.choices.row_offsets) > 0
    limit = max_new_tokens(task, backbone, label_tokens)
    answers: dict[int, list[str]] = {cell: [""] * count for cell in cells}
    for group in fused.groups(cells, max_tokens):
        rows = Rows(np.repeat(np.asarray(group, np.int64), len(chosen)), np.tile(chosen, len(group)))
        fused.read_prompts(group, grad=False)
        ranked = rows.take(np.flatnonzero(is_ranked[rows.rows]))
        for cell, row, scores in choice_scores(fused, encoded, ranked, max_tokens):
            assert encoded.choices is not None
            answers[cell][row] = likeliest(encoded.choices, row, scores)
        rows = rows.take(np.flatnonzero(~is_ranked[rows.rows]))
        for batch in micro_batches(fused.lengths(encoded, rows), max_tokens) if len(rows) else ():
            stop.raise_if_stopped()  # an evaluation may take minutes, and nothing is half done in it
            # [N, L, H], [N, L], and the rows in that order
            embeds, mask, built = fused.build(encoded, rows.take(batch))
            prefixes = fused.row_prefixes(encoded, built)
            if fused.heads:
                texts = head_answers(fused.head_reader(built).outputs(embeds, mask, prefixes), task)
            else:
                texts = to_text(backbone, backbone.decode(embeds, mask, limit, prefixes))
            for cell, row, text in zip(built.cells, built.rows, texts, strict=True):
                answers[int(cell)][int(row)] = text
        fused.finish_prompts()
    return answers


def to_text(backbone: Backbone, ids: torch.Tensor) -> list[str]:
    """Decode token ids, [N, T], to N texts: up to the first end token, without special tokens and outer blanks."""
    # equal rows are decoded once: 3,000 answers of a classification task are three labels (0.1 ms instead of 7)
    cut = [row[: row.index(backbone.eos_id)] if backbone.eos_id in row else row for row in ids.tolist()]
    unique = {tuple(row) for row in cut}
    texts = {row: str(backbone.tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in unique}
    return [texts[tuple(row)] for row in cut]


def score_data(data: TaskData, split: str, answers: Sequence[str]) -> SplitScore:
    """Score the answers to one split. A mixture is scored task by task; its own score is the mean of theirs."""
    if not data.parts:
        return score_split(data.task, data.split(split), answers)
    scores, start = {}, 0
    for part in data.parts:
        rows = part.split(split)
        scores[part.task.name] = score_split(part.task, rows, answers[start : start + len(rows)])
        start += len(rows)
    selected = {part.task.name: scores[part.task.name].metrics[part.task.selection] for part in data.parts}
    return SplitScore(
        score=mean_score(score.score for score in scores.values()),
        metrics={data.task.selection: mean_score(selected.values())},
        num_rows=start,
        num_unreadable=sum(score.num_unreadable for score in scores.values()),
        parts=scores,
    )


def chance_level(data: TaskData) -> ChanceLevel:
    """What a constant answer scores on dev, in the task's selection metric.

    The answer is the best of the labels or of the numbers of choices, or the most frequent training target of a task
    that has neither. A mixture has the mean over its tasks, with the standard error of a mean of independent scores.
    """
    if data.parts:
        chances = [chance_level(part) for part in data.parts]
        error = math.hypot(*(chance.standard_error for chance in chances)) / len(chances)
        return ChanceLevel(mean_score(chance.score for chance in chances), error)
    metric = data.task.selection
    ((most_frequent, _),) = Counter(example.target for example in data.train).most_common(1)
    answers = data.task.targets or _numbers(data.dev) or (most_frequent,)
    scores = [score_split(data.task, data.dev, [answer] * len(data.dev)).metrics[metric] for answer in answers]
    return ChanceLevel(max(scores), standard_error(metric, len(data.dev)))


def _numbers(examples: Sequence[Example]) -> list[str]:
    """The numbers of choices, from 0 to that of the last in the longest row; none where rows have no choices."""
    return [str(number) for number in range(max(len(example.choices) for example in examples))]


def score_split(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> SplitScore:
    """Compute every metric of a task on one split; the score is the mean of the metrics that the task reports."""
    references = [list(example.references) for example in examples]
    metrics = compute_metrics(task.metrics, answers, references, task.targets)
    return SplitScore(
        score=mean_score(metrics[name] for name in task.reported),
        metrics=metrics,
        num_rows=len(examples),
        num_unreadable=count_unreadable(answers, task.targets, task.kind == "regression", references),
    )
