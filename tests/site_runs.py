"""Results of every kind that a page must show truthfully, in one folder."""

from __future__ import annotations

from pathlib import Path

from stored_runs import answers, store

from harness.results.schema import Failure, Result, Usage
from harness.results.store import ResultStore
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe

HOSTILE = """<img src=x onerror="document.title='pwned'">'"&</script><script>document.title='pwned'</script>"""
STRANGE = "strange"
"""The row whose answers are hostile; a name that is no slug is refused before any page is made."""
TASKS = ("cb", "boolq", "rte", "cola")
RIGHT = {"lora": (92, 130_000), "accept": (90, 9_000), "dept": (71, 9_600), "finetune": (93, 680_000)}
"""Method -> right answers of 100, trained parameters."""


def usage(milliseconds: float, mebibytes: int) -> Usage:
    """The accounts of 100 steps."""
    return Usage(
        num_steps=100, num_samples=400, num_tokens=4_000, train_s=milliseconds / 10, eval_s=1.0,
        total_s=1 + milliseconds / 10, peak_memory_bytes=mebibytes * 2**20, bundle_cells=1,
    )  # fmt: skip


def write_runs(root: Path) -> None:
    """Two boards; a grid, a failure, a missing task, a single seed, mixed protocols, mixed sources, hostile texts."""
    for position, (name, (right, trained)) in enumerate(RIGHT.items()):
        cost = usage(10.0 * (position + 1), 700 + position)
        for offset, task in enumerate(TASKS):
            if (name, task) == ("finetune", "cola"):
                continue
            for seed in (1, 2):
                source = "b" if (name, task, seed) == ("lora", "rte", 2) else "a"
                protocol = ProtocolReference(name="ept-2025", version=1) if (name, task) == ("dept", "cola") else None
                store(root, name, task, seed, *answers(right - offset - seed), num_trained=trained, usage=cost,
                      source=source, protocol=protocol)  # fmt: skip
    for task in TASKS:
        duplicates = 3 if task == "rte" else 0
        store(root, "majority", task, 1, *answers(50), num_trained=0, duplicates=duplicates)
        one = {"dev": "yes"} if task == "rte" else {}
        store(root, "ept", task, 1, *answers(60), num_trained=50_000, lr=0.1, dev=60, usage=usage(5, 600),
              one_class=one)  # fmt: skip
        store(root, "ept", task, 1, *answers(80), num_trained=50_000, lr=0.2, dev=50, index=1, usage=usage(5, 600))
    for task in (*TASKS, "other"):
        store(root, STRANGE, task, 1, [HOSTILE, "1"] * 50, [["1"]] * 100, num_trained=77, usage=usage(5, 600))
    for task in ("cb", "boolq"):
        store(root, "lora", task, 1, *answers(97), num_trained=900_000, backbone="big", usage=usage(50, 3_000))
    fail(root, "bitfit", "cb", 1)
    fail(root, "accept", "cb", 3)


def fail(root: Path, label: str, task: str, seed: int) -> None:
    """Store a failure."""
    cell = Cell(
        suite="demo", label=label, method=label, hp={}, task=task, task_version=1, backbone="tiny", seed=seed,
        recipe=Recipe(steps=100), search_seed=1, protocol=ProtocolReference(version=1),
    )  # fmt: skip
    trace = Failure(type="FloatingPointError", message="the training loss became nan <b>", traceback="line 1", step=7)
    result = Result(
        cell_id=cell.cell_id, group_id=cell.group_id, status="failed", cell=cell, failure=trace, method_sha256="a",
        provenance={}, started_at="", finished_at="",
    )  # fmt: skip
    ResultStore(root).write(result, [], None)
