"""What a result says of its metrics, and the rows of its predictions; the tasks of a mixture apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data import TaskData
from harness.results import PredictionRow, split_name
from harness.schema import MetricRecord


def metric_record(data: TaskData) -> MetricRecord:
    """How to recompute the metrics of a task, or of each task of a mixture."""
    task = data.task
    return MetricRecord(
        reported=list(task.reported),
        extra=[name for name in task.metrics if name not in task.reported],
        selection=task.selection,
        labels=task.targets,
        parts={part.task.name: metric_record(part) for part in data.parts},
    )


def prediction_rows(data: TaskData, answers: Mapping[str, Sequence[str]], task: str = "") -> list[PredictionRow]:
    """Dev and test answers with their references, row by row; of a mixture, task by task."""
    if data.parts:
        found: list[PredictionRow] = []
        starts = dict.fromkeys(answers, 0)
        for part in data.parts:
            ends = {split: starts[split] + len(part.split(split)) for split in answers}
            own = {split: answers[split][starts[split] : ends[split]] for split in answers}
            found += prediction_rows(part, own, part.task.name)
            starts = ends
        return found
    return [
        (split_name(split, task), index, list(example.references), answer)
        for split in ("dev", "test")
        if split in answers
        for index, (example, answer) in enumerate(zip(data.split(split), answers[split], strict=True))
    ]
