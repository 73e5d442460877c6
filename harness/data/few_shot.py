"""Few-shot data: k rows are drawn from a task's training split, and every method trains on the same ones.

`select_with: dev` chooses checkpoint and grid point with all of dev, as the papers do; `select_with: k` chooses them
with k other training rows, so that a cell sees 2 k labels in all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from harness.data.examples import Example, TaskData, count_duplicates
from harness.data.record import DrawRecord
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.suite import Draw


def draw_few(data: TaskData, draw: Draw) -> TaskData:
    """Return the task with only the drawn rows in train; with `select_with: k`, k other training rows become dev.

    Test is unchanged. Raises UserError if the training split has too few rows of a class.
    """
    if data.task.parts:
        raise UserError("a mixture has no few rows to draw; give single tasks", where=data.task.name, field="few_shot")
    classes = [_class_of(data.task, example) for example in data.train]
    order = _shuffled_rows(len(classes), draw)
    rows = _draw_rows(order, classes, data.task, draw)
    dev, selection_rows = data.dev, None
    if draw.select_with == "k":
        # the same shuffled order goes on, so that the rows to train on are those of `select_with: dev`
        taken = set(rows)
        selection_rows = _draw_rows([row for row in order if row not in taken], classes, data.task, draw)
        dev = [data.train[row] for row in selection_rows]
    train = [data.train[row] for row in rows]
    record = DrawRecord(
        rows=rows,
        class_counts=dict(sorted(Counter(classes[row] for row in rows).items())),
        fingerprint=_fingerprint(train),
        num_selection_labels=len(dev),
        selection_rows=selection_rows,
    )
    changed = {
        "num_train": len(train),
        "num_dev": len(dev),
        "num_duplicates": count_duplicates(train, [*dev, *data.test]),  # of the drawn rows, not of all
        "few_shot": record,
    }
    return replace(data, train=train, dev=dev, record=data.record.model_copy(update=changed))


def _shuffled_rows(num_rows: int, draw: Draw) -> list[int]:
    """Return the indices of the training rows, shuffled with the generator that the papers' code uses for this rule.

    That is NumPy's PCG64, with which `datasets` shuffles in the code of DePT and ACCEPT; for unbalanced draws
    torch.randperm, as in the code of ATTEMPT, Compacter and HyperFormer.
    """
    # the two generators give different rows for one seed; each rule has that of the code it follows
    if draw.rule == "unbalanced":
        return list(torch.randperm(num_rows, generator=torch.Generator().manual_seed(draw.seed)).tolist())
    return list(np.random.default_rng(draw.seed).permutation(num_rows).tolist())


def _draw_rows(order: Sequence[int], classes: Sequence[str], task: Task, draw: Draw) -> list[int]:
    """Return the drawn rows in the order of drawing. Raises UserError if there are too few."""
    num_classes = _num_classes(task)
    if draw.rule != "unbalanced" and draw.k < num_classes:
        raise _cannot_draw(task, draw, f"{num_classes} classes need at least as many rows")
    rules: dict[str, Callable[[], list[int]]] = {
        "unbalanced": lambda: list(order[: draw.k]),
        "balanced": lambda: _draw_balanced(order, classes, draw.k, num_classes),
        "strict": lambda: _draw_strict(order, classes, draw.k // num_classes),
    }
    rows = rules[draw.rule]()
    # k need not be a multiple of the number of classes; the rest may stay empty, see _draw_balanced
    if len(rows) < (draw.k if draw.rule == "unbalanced" else draw.k // num_classes * num_classes):
        counts = Counter(classes[row] for row in rows)
        raise _cannot_draw(task, draw, f"the training rows give only {dict(sorted(counts.items()))}")
    return rows


def _draw_balanced(order: Sequence[int], classes: Sequence[str], k: int, num_classes: int) -> list[int]:
    """Return k // num_classes rows of each class; the k-th row may be of any class. The papers' code draws so.

    With four rows two classes may get 3 and 1. With 32 rows three classes get 30, since two places stay empty.
    """
    counts: Counter[str] = Counter()
    rows: list[int] = []
    for row in order:
        if len(rows) == k:
            break
        # the second condition fills the last place with a row of any class
        if counts[classes[row]] < k // num_classes or len(rows) == k - 1:
            counts[classes[row]] += 1
            rows.append(row)
    return rows


def _draw_strict(order: Sequence[int], classes: Sequence[str], quota: int) -> list[int]:
    """Return the first `quota` rows of each class, and nothing more."""
    counts: Counter[str] = Counter()
    rows = []
    for row in order:
        if counts[classes[row]] < quota:
            counts[classes[row]] += 1
            rows.append(row)
    return rows


def _num_classes(task: Task) -> int:
    """Return the number of classes that rows are drawn by; 1 for a task whose rows have none."""
    if task.kind == "classification":
        return len(task.targets)
    return 2 if task.class_cut is not None else 1


def _class_of(task: Task, example: Example) -> str:
    """Return the class that a row counts for: its label, or on which side of the task's cut its number lies, or ""."""
    if task.kind == "classification":
        return example.target
    if task.class_cut is not None:  # a regression such as STS-B is drawn as two classes, low and high
        return "0" if float(example.target) <= task.class_cut else "1"
    return ""


def _cannot_draw(task: Task, draw: Draw, reason: str) -> UserError:
    beside = " twice, for training and for selection," if draw.select_with == "k" else ""
    return UserError(
        f"cannot draw {draw.k} rows{beside} from '{task.name}' by the rule '{draw.rule}': {reason}",
        field="few_shot",
        hint="Take another k, or few_shot.draw: unbalanced.",
    )


def _fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of the drawn texts and targets: equal for two cells that trained on the same rows."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update("\x1f".join((*example.read_texts, example.target)).encode() + b"\n")
    return digest.hexdigest()[:16]


def describe_few_shot(task: Task, draws: Sequence[Draw]) -> str:
    """Return one sentence on a task's draws: how many labels train, how many more choose checkpoint and grid point."""
    first = draws[0]
    shots = ", ".join(str(k) for k in dict.fromkeys(draw.k for draw in draws))
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(draw.seed for draw in draws))
    drawn = f"{task.name}: few-shot, k = {shots} training rows by the rule '{first.rule}', draw seeds {seeds}"
    if first.select_with == "k":
        return (
            f"{drawn}; checkpoint and grid point are chosen with k other training rows, so 2 k labels are used in all"
        )
    size = f"{task.sizes[1]:,} " if task.sizes else ""
    return (
        f"{drawn}; checkpoint and grid point are chosen with all {size}labels of dev, far more than k, as "
        "in the papers (few_shot.select_with: k takes k)"
    )
