"""Evaluates cells of a bundle: their answers to the rows of one split, and the scores of these answers.

Shapes: N rows of a micro-batch, L positions of its padded rows, H width of the backbone, T tokens of an answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness import stop
from harness.backbone import Backbone, Writing, answer_text
from harness.data import Encoded, Example, Task, TaskData, compute_metrics, count_unreadable, mean_score, writings
from harness.method import head_answers
from harness.results import SplitScore
from harness.suite import LabelTokens
from harness.train.batch_input import BatchInput, Index, Rows, micro_batches
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

    Answers are written as the task says, or read off by the cells' heads where they have them. The answer to a
    row that has choices is the likeliest of them. `max_tokens` is the token budget of a micro-batch. With `only`, these
    rows alone are answered, and the answers to others are empty.
    `label_tokens` is that of the cells' recipes. Raises CellError where a method's code raises, and Stopped after a
    request to stop.
    """
    fused.refresh(grad=False, cells=cells)
    chosen = np.arange(len(encoded))[only]
    answers: dict[int, list[str]] = {cell: [""] * len(encoded) for cell in cells}
    is_ranked = _is_ranked(encoded)
    _rank_rows(fused, cells, encoded, chosen[is_ranked[chosen]], max_tokens, answers)
    for writing, own in _by_writing(encoded, chosen[~is_ranked[chosen]], task, fused, label_tokens):
        _answer_rows(fused, cells, encoded, own, task, writing, max_tokens, answers)
    return answers


def _is_ranked(encoded: Encoded) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N]: whether a row has choices, the likeliest of which is its answer."""
    if encoded.choices is None:
        return np.zeros(len(encoded), bool)
    ranked: np.ndarray[Any, np.dtype[np.bool_]] = np.diff(encoded.choices.row_offsets) > 0
    return ranked


def _rank_rows(
    fused: BatchInput,
    cells: Sequence[int],
    encoded: Encoded,
    chosen: Index,
    max_tokens: int,
    answers: dict[int, list[str]],
) -> None:
    """Put the likeliest choice of each of the chosen rows into `answers`, for each cell."""
    if encoded.choices is None or not len(chosen):
        return
    for group in fused.groups(cells, max_tokens):
        rows = Rows(np.repeat(np.asarray(group, np.int64), len(chosen)), np.tile(chosen, len(group)))
        fused.read_prompts(group, grad=False)
        for cell, row, scores in choice_scores(fused, encoded, rows, max_tokens):
            answers[cell][row] = likeliest(encoded.choices, row, scores)
        fused.finish_prompts()


def _by_writing(
    encoded: Encoded, chosen: Index, task: Task, fused: BatchInput, label_tokens: LabelTokens
) -> list[tuple[Writing | None, Index]]:
    """Return the chosen rows by how their answers are written: tasks of a mixture may differ. Heads write none."""
    if fused.heads or not len(chosen):
        return [(None, chosen)] if len(chosen) else []
    by_task = writings(task, fused.backbone, label_tokens)
    if len(set(by_task)) == 1:
        return [(by_task[0], chosen)]
    assert encoded.tasks is not None, "rows of a mixture know their tasks"
    found: list[tuple[Writing | None, Index]] = []
    for writing in dict.fromkeys(by_task):
        own = [number for number, other in enumerate(by_task) if other == writing]
        rows = chosen[np.isin(encoded.tasks[chosen], own)]
        if len(rows):
            found.append((writing, rows))
    return found


def _answer_rows(
    fused: BatchInput,
    cells: Sequence[int],
    encoded: Encoded,
    chosen: Index,
    task: Task,
    writing: Writing | None,
    max_tokens: int,
    answers: dict[int, list[str]],
) -> None:
    """Put the answers of each cell to the chosen rows into `answers`; without a `writing` heads give them."""
    backbone = fused.backbone
    for group in fused.groups(cells, max_tokens):
        rows = Rows(np.repeat(np.asarray(group, np.int64), len(chosen)), np.tile(chosen, len(group)))
        fused.read_prompts(group, grad=False)
        for batch in micro_batches(_positions(fused.lengths(encoded, rows), writing), max_tokens):
            stop.raise_if_stopped()  # an evaluation may take minutes, and nothing is half done in it
            # [N, L, H], [N, L], and the rows in that order
            embeds, mask, built = fused.build(encoded, rows.take(batch))
            prefixes = fused.row_prefixes(encoded, built)
            if writing is None:
                texts = head_answers(fused.head_reader(built).outputs(embeds, mask, prefixes), task)
            else:
                texts = to_text(backbone, backbone.write(embeds, mask, writing, prefixes, fused.keep_rows), writing)
            for cell, row, text in zip(built.cells, built.rows, texts, strict=True):
                answers[int(cell)][int(row)] = text
        fused.finish_prompts()


def _positions(lengths: Index, writing: Writing | None) -> Index:
    """Positions that rows of these lengths, [N], take in memory while they are answered."""
    return lengths if writing is None else np.array([writing.positions(int(length)) for length in lengths], np.int64)


def fewest_tokens(
    fused: BatchInput, cells: Sequence[int], encoded: Encoded, task: Task, label_tokens: LabelTokens
) -> int:
    """Smallest token budget that cuts rows apart any further: that of the smallest row of `cells`."""
    is_ranked = _is_ranked(encoded)
    written = _by_writing(encoded, np.flatnonzero(~is_ranked), task, fused, label_tokens)
    ranked = [(None, np.flatnonzero(is_ranked))] if is_ranked.any() else []
    prompt = int(fused.row_prompts[list(cells)].min())
    return min(
        int(_positions(encoded.source_lengths(own) + prompt, writing).min()) for writing, own in [*written, *ranked]
    )


def to_text(backbone: Backbone, ids: torch.Tensor, writing: Writing | None = None) -> list[str]:
    """Decode token ids, [N, T], to N texts: up to the first end, without special tokens and outer blanks.

    Without a `writing` that is the network's own end token.
    """
    # equal rows are decoded once: 3,000 answers of a classification task are three labels (0.1 ms instead of 7)
    made = writing or Writing(ids.shape[1], (backbone.eos_id,))
    rows = [tuple(row) for row in ids.tolist()]
    texts = {row: answer_text(backbone.tokenizer, row, made) for row in set(rows)}
    return [texts[row] for row in rows]


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
