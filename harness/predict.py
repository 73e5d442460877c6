"""Answers of every cell of a bundle on one split, and their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from harness import stop
from harness.backbone import Backbone
from harness.data import Encoded, TaskData, max_new_tokens
from harness.examples import Example
from harness.fused import FusedInput, Index, Rows, micro_batches
from harness.heads import Classifier
from harness.metrics import compute, count_unreadable
from harness.racing import Chance, standard_error
from harness.schema import SplitScore
from harness.scores import mean_score
from harness.suite_file import LabelTokens
from harness.tasks.record import Task


@torch.no_grad()
def answer_split(
    fused: FusedInput,
    cells: Sequence[int],
    encoded: Encoded,
    task: Task,
    max_tokens: int,
    only: Index | None = None,
    label_tokens: LabelTokens = "longest_label",
) -> dict[int, list[str]]:
    """Answers of each of `cells` (positions in `fused`) to every row, in row order: greedy, or of the linear heads.

    With `only` these rows alone are answered, the others stay empty. `label_tokens` is that of the cells' recipes.
    """
    backbone = fused.backbone
    fused.refresh(grad=False, cells=cells)
    count = len(encoded)
    chosen = np.arange(count) if only is None else only
    rows = Rows(np.repeat(np.asarray(cells, np.int64), len(chosen)), np.tile(chosen, len(cells)))
    limit = max_new_tokens(task, backbone, label_tokens)
    answers: dict[int, list[str]] = {cell: [""] * count for cell in cells}
    for batch in micro_batches(fused.lengths(encoded, rows), max_tokens):
        stop.check()  # an evaluation may take minutes, and nothing is half done in it
        embeds, mask, placed = fused.build(encoded, rows.take(batch))
        if fused.heads:
            classifier = Classifier(backbone, fused.heads, torch.as_tensor(placed.cells, device=embeds.device))
            texts = [task.targets[index] for index in classifier.class_logits(embeds, mask).argmax(-1).tolist()]
        else:
            texts = to_text(backbone, backbone.decode(embeds, mask, limit))
        for cell, row, text in zip(placed.cells, placed.rows, texts, strict=True):
            answers[int(cell)][int(row)] = text
    return answers


def to_text(backbone: Backbone, ids: torch.Tensor) -> list[str]:
    """Decode [N, T] ids, each cut behind its first end token; special tokens dropped, blanks stripped."""
    cut = [row[: row.index(backbone.eos_id)] if backbone.eos_id in row else row for row in ids.tolist()]
    unique = {tuple(row) for row in cut}
    texts = {row: str(backbone.tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in unique}
    return [texts[tuple(row)] for row in cut]


def score_data(data: TaskData, split: str, answers: Sequence[str]) -> SplitScore:
    """Score one split. A mixture is scored on each task, and itself has the mean of the tasks' scores."""
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


def chance_of(data: TaskData) -> Chance:
    """Selection metric on dev of the best constant answer: a label, or else the most frequent training target.

    Of a mixture the mean over its tasks.
    """
    if data.parts:
        parts = [chance_of(part) for part in data.parts]
        error = math.hypot(*(part.standard_error for part in parts)) / len(parts)
        return Chance(mean_score(part.score for part in parts), error)
    metric = data.task.selection
    ((most_frequent, _),) = Counter(example.target for example in data.train).most_common(1)
    answers = data.task.targets or (most_frequent,)
    scores = [score_split(data.task, data.dev, [answer] * len(data.dev)).metrics[metric] for answer in answers]
    return Chance(max(scores), standard_error(metric, len(data.dev)))


def score_split(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> SplitScore:
    """Every metric of the task on one split; the score is the mean of the reported ones."""
    references = [list(example.references) for example in examples]
    metrics = compute(task.metrics, answers, references, task.targets)
    return SplitScore(
        score=mean_score(metrics[name] for name in task.reported),
        metrics=metrics,
        num_rows=len(examples),
        num_unreadable=count_unreadable(answers, task.targets, task.kind == "regression", references),
    )
