"""Few-shot: k rows of a task's training split, the same for every method, and the labels that selection may see."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from harness.data import TaskData, count_duplicates
from harness.declarations import Draw
from harness.errors import UserError
from harness.examples import Example
from harness.schema import DrawRecord
from harness.tasks.record import Task


def draw_few(data: TaskData, draw: Draw) -> TaskData:
    """The task with only the drawn rows to train on; with `select_with: k`, as many others of them are dev.

    Raises UserError where the training split has too few rows of a class.
    """
    if data.task.parts:
        raise UserError("a mixture has no few rows to draw; give single tasks", where=data.task.name, field="few_shot")
    classes = [_class_of(data.task, example) for example in data.train]
    order = _order(len(classes), draw)
    rows = _pick(order, classes, data.task, draw)
    dev, selection_rows = data.dev, None
    if draw.select_with == "k":
        taken = set(rows)
        selection_rows = _pick([row for row in order if row not in taken], classes, data.task, draw)
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
        "num_duplicates": count_duplicates(train, [*dev, *data.test]),
        "few_shot": record,
    }
    return replace(data, train=train, dev=dev, record=data.record.model_copy(update=changed))


def _order(num_rows: int, draw: Draw) -> list[int]:
    """The shuffled training rows.

    NumPy's PCG64, with which `datasets` shuffles in the code of DePT and ACCEPT; for unbalanced draws torch.randperm,
    as in the code of ATTEMPT, Compacter and HyperFormer.
    """
    if draw.rule == "unbalanced":
        return list(torch.randperm(num_rows, generator=torch.Generator().manual_seed(draw.seed)).tolist())
    return list(np.random.default_rng(draw.seed).permutation(num_rows).tolist())


def _pick(order: Sequence[int], classes: Sequence[str], task: Task, draw: Draw) -> list[int]:
    """The drawn rows in the order of drawing. Raises UserError if there are too few."""
    num_classes = _num_classes(task)
    if draw.rule != "unbalanced" and draw.k < num_classes:
        raise _refusal(task, draw, f"{num_classes} classes need at least as many rows")
    rules: dict[str, Callable[[], list[int]]] = {
        "unbalanced": lambda: list(order[: draw.k]),
        "balanced": lambda: _balanced(order, classes, draw.k, num_classes),
        "strict": lambda: _strict(order, classes, draw.k // num_classes),
    }
    rows = rules[draw.rule]()
    if len(rows) < (draw.k if draw.rule == "unbalanced" else draw.k // num_classes * num_classes):
        counts = Counter(classes[row] for row in rows)
        raise _refusal(task, draw, f"the training rows give only {dict(sorted(counts.items()))}")
    return rows


def _balanced(order: Sequence[int], classes: Sequence[str], k: int, num_classes: int) -> list[int]:
    """The papers' code: k // classes rows of each class; a single place that is left goes to any class.

    So two classes may get 3 and 1 of four rows, and three classes 30 rows of 32, since two places stay empty.
    """
    counts: Counter[str] = Counter()
    rows: list[int] = []
    for row in order:
        if len(rows) == k:
            break
        if counts[classes[row]] < k // num_classes or len(rows) == k - 1:
            counts[classes[row]] += 1
            rows.append(row)
    return rows


def _strict(order: Sequence[int], classes: Sequence[str], quota: int) -> list[int]:
    """The first `quota` rows of each class and nothing more."""
    counts: Counter[str] = Counter()
    rows = []
    for row in order:
        if counts[classes[row]] < quota:
            counts[classes[row]] += 1
            rows.append(row)
    return rows


def _num_classes(task: Task) -> int:
    if task.kind == "classification":
        return len(task.targets)
    return 2 if task.class_cut is not None else 1


def _class_of(task: Task, example: Example) -> str:
    """The class that a row counts for: its label, on which side of the cut its number lies, or none."""
    if task.kind == "classification":
        return example.target
    if task.class_cut is not None:
        return "0" if float(example.target) <= task.class_cut else "1"
    return ""


def _refusal(task: Task, draw: Draw, reason: str) -> UserError:
    beside = " twice, for training and for selection," if draw.select_with == "k" else ""
    return UserError(
        f"cannot draw {draw.k} rows{beside} from '{task.name}' by the rule '{draw.rule}': {reason}",
        field="few_shot",
        hint="Take another k, or few_shot.draw: unbalanced.",
    )


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update("\x1f".join((example.source, example.target)).encode() + b"\n")
    return digest.hexdigest()[:16]


def describe_draws(task: Task, draws: Sequence[Draw]) -> str:
    """One sentence on a task's draws: how many labels train, and how many more choose checkpoint and grid point."""
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
