"""How long reports of many results take.

    python -m benchmarks.report_speed --results 10000 --out DIR

writes results with invented scores, a grid of learning rates over tasks, methods, backbones and seeds, and prints the
seconds of each command. DIR is kept, so that a second call only measures; the pages go to DIR-site.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from harness.backbone import BackboneRecord
from harness.data import DataRecord, compute_metrics
from harness.results import DevScore, MetricRecord, ParamCounts, PredictionRow, Result, ResultStore, SplitScore, Usage
from harness.suite import Cell, ProtocolReference, Recipe
from tools.arguments import whole

TASKS = ("mnli", "qqp", "qnli", "sst2", "mrpc", "rte", "cola", "boolq", "cb", "multirc", "wic", "wsc")
BACKBONES = {"t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096}
RATES = (0.03, 0.1, 0.3, 0.5)
SEEDS = (41, 42, 43)
COMMANDS = (
    ["report", "--format", "terminal"],
    ["report", "--format", "html"],
    ["report", "--format", "csv"],
    ["tuning"],
    ["report", "--format", "json"],
)


def main() -> None:
    """Write what is missing, then time every command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=whole, default=10_000)
    parser.add_argument("--rows", type=whole, default=400, help="test rows of each task")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.out.exists():
        write_results(options.out, options.results, options.rows)
    site = options.out.with_name(f"{options.out.name}-site")
    for command in (*COMMANDS, ["site", "--out", str(site)]):
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "harness", command[0], str(options.out), *command[1:]]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        print(f"{time.perf_counter() - start:6.1f} s  harness {' '.join(command)}")


def write_results(root: Path, count: int, num_rows: int) -> None:
    """`count` results below `root`; later methods are a little better and bigger."""
    generator, store = np.random.default_rng(0), ResultStore(root)
    per_method = len(TASKS) * len(BACKBONES) * len(RATES) * len(SEEDS)
    methods = range(-(-count // per_method))
    places = itertools.product(methods, BACKBONES, TASKS, SEEDS, enumerate(RATES))
    for method, backbone, task, seed, (index, rate) in itertools.islice(places, count):
        skill = 0.55 + 0.3 * method / (len(methods) + 1) + 0.05 * list(BACKBONES).index(backbone)
        cell = invented_cell(f"method_{method:02}", backbone, task, seed, index, rate)
        result, rows = invent(generator, cell, skill - 0.03 * abs(index - 1), num_rows, 1_000 * 3**method)
        store.write(result, rows, None)


def invented_cell(label: str, backbone: str, task: str, seed: int, index: int, rate: float) -> Cell:
    """A cell of a grid of learning rates."""
    return Cell(
        suite="speed", label=label, method=label, hp={"prompt_length": 60, "added_rank": 30}, task=task,
        task_version=1, backbone=backbone, seed=seed, recipe=Recipe(lr=rate), grid={"recipe.lr": rate},
        grid_index=index, search_seed=seed, protocol=ProtocolReference(version=1),
    )  # fmt: skip


def invent(
    generator: np.random.Generator, cell: Cell, skill: float, num_rows: int, num_trained: int = 1_000
) -> tuple[Result, list[PredictionRow]]:
    """A result whose scores are those of its invented predictions, of which a share of `skill` or so is right."""
    truth = np.random.default_rng(len(cell.task)).integers(0, 2, num_rows)
    right = generator.random(num_rows) < min(0.98, skill + generator.normal(0, 0.01))
    predictions, references = [str(t if ok else 1 - t) for t, ok in zip(truth, right, strict=True)], truth.astype(str)
    rows: list[PredictionRow] = [
        ("test", i, [str(ref)], text) for i, (ref, text) in enumerate(zip(references, predictions, strict=True))
    ]
    scores = compute_metrics(["accuracy"], predictions, [[ref] for ref in references], ["0", "1"])
    history = [
        DevScore(step=1_000 * i, selection=min(99.0, scores["accuracy"] * i / 30), metrics=scores, train_loss=1 / i)
        for i in range(1, 31)
    ]
    split = SplitScore(score=scores["accuracy"], metrics=scores, num_rows=num_rows, num_unreadable=0)
    backbone = cell.backbone
    result = Result(
        cell_id=cell.cell_id, group_id=cell.group_id, status="done", cell=cell, dev_history=history,
        selected_step=30_000, dev=split, test=split, method_sha256=cell.label, provenance={}, started_at="",
        finished_at="", params=ParamCounts(num_trained=num_trained, num_kept=1_000),
        metrics=MetricRecord(reported=["accuracy"], extra=[], selection="accuracy", labels=["0", "1"]),
        data=DataRecord(source="x", revision="", split_rule="", num_train=9, num_dev=num_rows, num_test=num_rows,
                        fingerprint=cell.task),
        backbone=BackboneRecord(source=backbone, revision="", fingerprint=backbone,
                                num_params=BACKBONES.get(backbone, 1)),
        usage=Usage(num_steps=30_000, num_samples=480_000, num_tokens=1_000_000, train_s=3_600.0, eval_s=200.0,
                    total_s=3_800.0, peak_memory_bytes=10**10, bundle_cells=8),
    )  # fmt: skip
    return result, rows


if __name__ == "__main__":
    main()
