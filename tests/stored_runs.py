"""Results with predictions in a folder, as a run leaves them, from nothing but texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.data.metrics import compute_metrics, count_unreadable
from harness.data.record import DataRecord
from harness.results.schema import DevScore, MetricRecord, ParamCounts, Result, SplitScore, Usage
from harness.results.store import PredictionRow, ResultStore
from harness.suite.blocks import Draw, ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe


def store(
    root: Path, label: str, task: str, seed: int, predictions: Sequence[str], references: Sequence[Sequence[str]],
    metric: str = "accuracy", labels: Sequence[str] = ("0", "1"), num_trained: int = 1_000, lr: float | None = None,
    index: int = 0, dev: float = 50.0, backbone: str = "tiny", usage: Usage | None = None, source: str = "a",
    protocol: ProtocolReference | None = None, draw: int | None = None, duplicates: int = 0,
    one_class: Mapping[str, str] | None = None, belongs_to: Sequence[str] = (),
    repeat: int = 1,
) -> Result:  # fmt: skip
    """Write one run; its test score is computed from its predictions, which stand for the dev split too.

    `belongs_to` names the group of each row.
    """
    cell = Cell(
        suite="demo", label=label, method=label, hp={}, task=task, task_version=1, backbone=backbone, seed=seed,
        repeat=repeat,
        recipe=Recipe(steps=100, lr=lr or 0.3), grid={} if lr is None else {"recipe.lr": lr}, grid_index=index,
        search_seed=1, protocol=protocol or ProtocolReference(version=1),
        few_shot=None if draw is None else Draw(k=16, rule="balanced", seed=draw),
    )  # fmt: skip
    scores = compute_metrics([metric], predictions, references, labels)
    split = SplitScore(
        score=scores[metric], metrics=scores, num_rows=len(references),
        num_unreadable=count_unreadable(predictions, labels, numeric=metric == "pearson"),
    )  # fmt: skip
    result = Result(
        cell_id=cell.cell_id, group_id=cell.group_id, status="done", cell=cell, dev=split, test=split,
        metrics=MetricRecord(reported=[metric], extra=[], selection=metric, labels=list(labels)), selected_step=10,
        dev_history=[DevScore(step=10, selection=dev, metrics=scores)], method_sha256=source, provenance={},
        usage=usage,
        params=ParamCounts(num_trained=num_trained, num_kept=num_trained), started_at="", finished_at="",
        data=DataRecord(source="x", revision="", split_rule="", num_train=9, num_dev=len(references),
                        num_test=len(references), num_duplicates=duplicates, fingerprint="f",
                        one_class=dict(one_class or {})),
    )  # fmt: skip
    rows: list[PredictionRow] = [
        (split_name, i, list(refs), text, belongs_to[i]) if belongs_to else (split_name, i, list(refs), text)
        for split_name in ("dev", "test")
        for i, (refs, text) in enumerate(zip(references, predictions, strict=True))
    ]
    return ResultStore(root).write(result, rows, None)


def answers(num_right: int, num_rows: int = 100) -> tuple[list[str], list[list[str]]]:
    """Predictions of which the first `num_right` are right, and the references."""
    return ["1"] * num_right + ["0"] * (num_rows - num_right), [["1"]] * num_rows
