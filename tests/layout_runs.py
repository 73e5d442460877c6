"""Results of made-up runs by their settings, for tests of declared layouts."""

from __future__ import annotations

from typing import Any

from harness.backbone.record import BackboneRecord
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.results.schema import DevScore, Files, MetricRecord, ParamCounts, Result, SplitScore, Usage
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe

SIZES = {"t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096}


def made(
    method: str, task: str, score: float, *, label: str = "", suite: str = "demo", backbone: str = "t5-base",
    seed: int = 1, hp: dict[str, Any] | None = None, grid: dict[str, Any] | None = None, index: int = 0,
    num_trained: int = 76_800, seconds: float = 10.0, peak: int = 2**30, protocol: str = "accept-2024",
    tensors: str | None = None, failed: bool = False,
) -> Result:  # fmt: skip
    """A finished run whose dev and test score are `score`; with `failed`, one without a score."""
    known = all_tasks().get(task)
    reported = list(known.reported) if known else ["accuracy"]
    lr = (grid or {}).get("recipe.lr", 0.3)
    cell = Cell(
        suite=suite, label=label or method, method=method, hp=hp or {}, task=task, task_version=1, backbone=backbone,
        seed=seed, recipe=Recipe(steps=100, lr=lr), grid=grid or {}, grid_index=index, search_seed=1,
        protocol=ProtocolReference(name=protocol, version=1),
    )  # fmt: skip
    split = SplitScore(score=score, metrics=dict.fromkeys(reported, score), num_rows=100, num_unreadable=0)
    base: dict[str, Any] = {
        "cell_id": cell.cell_id, "group_id": cell.group_id, "cell": cell, "method_sha256": method, "provenance": {},
        "started_at": "", "finished_at": "",
    }  # fmt: skip
    if failed:
        return Result(status="failed", **base)
    return Result(
        status="done", dev=split, test=split, selected_step=10,
        dev_history=[DevScore(step=10, selection=score, metrics=split.metrics)],
        metrics=MetricRecord(reported=reported, extra=[], selection=reported[0], labels=["0", "1"]),
        params=ParamCounts(num_trained=num_trained, num_kept=num_trained),
        usage=Usage(num_steps=100, num_samples=1, num_tokens=1, train_s=seconds, eval_s=1, total_s=seconds + 1,
                    peak_memory_bytes=peak, bundle_cells=1),
        data=DataRecord(source="x", revision="", split_rule="", num_train=9, num_dev=9, num_test=9, fingerprint="f"),
        backbone=BackboneRecord(source="x", revision="", fingerprint=backbone, num_params=SIZES.get(backbone, 5)),
        files=Files(tensors=tensors), **base,
    )  # fmt: skip
