"""What one more micro-batch costs, in positions, and how many a step of one cell has, with how much padding.

    python -m benchmarks.micro_batch_cost --shape smollm2-135m --method lora

A forward and backward pass is timed at several numbers of rows. A line through the times gives what a pass costs
before its first position, and what a position costs; their ratio is what `OVERHEAD_NUMBERS` of harness/train/step.py
says. The cut into micro-batches is then worked out for many batches of each task. A network that packs its rows on a
processor is cut by the token budget alone, which the last row of each task is nearest to.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks import ours
from benchmarks.bench import TASKS
from benchmarks.workload import Workload, backbone, known_shape, workload
from harness.backbone import Backbone
from harness.train import BundleTrainer, default_tokens
from harness.train.batch_input import micro_batches
from harness.train.step import overhead_tokens
from tools.arguments import whole

BATCH_SIZE = 16
NUM_BATCHES = 500
ROWS = (1, 2, 4, 8, 16)
LENGTH = 16


def pass_seconds(trainer: BundleTrainer, network: Backbone, rows: int, length: int) -> float:
    """Processor seconds of a forward and backward pass over `rows` texts of one length, as in a step."""
    ids = torch.full((rows, length), 5)
    labels = torch.tensor([[3, 1]]).expand(rows, -1)
    embeds = network.embedding(ids)
    if not trainer.states[0].outcome.method.is_layer_side():
        embeds = embeds.detach().requires_grad_(True)  # a prompt's gradient goes through every position
    started = time.process_time()
    network.token_losses(embeds, torch.ones_like(ids), labels).sum().backward()
    return time.process_time() - started


def line(positions: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a pass before its first position, and of one position, by least squares of relative errors."""
    x, y = np.asarray(positions, float), np.asarray(seconds, float)
    matrix = np.stack([np.ones_like(x), x], 1) / y[:, None]
    (start, each), *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    return float(start), float(each)


def cut(work: Workload, max_tokens: int, overhead: int) -> tuple[float, float]:
    """Micro-batches of a batch, and the share of padding among their positions, over many batches drawn at random."""
    lengths = work.encoded.source_lengths(np.arange(len(work.encoded)))
    rng = np.random.default_rng(0)
    count = padding = 0
    for _ in range(NUM_BATCHES):
        drawn = rng.choice(lengths, BATCH_SIZE, replace=False)
        for batch in micro_batches(drawn, max_tokens, overhead):
            count += 1
            padding += int((drawn[batch].max() - drawn[batch]).sum())
    return count / NUM_BATCHES, padding / (padding + NUM_BATCHES * BATCH_SIZE * lengths.mean())


def measure(network: Backbone, method: str, repeats: int) -> list[float]:
    """Seconds at each of ROWS: medians over rounds, sizes in alternation."""
    work: Any = workload(TASKS[0], num_rows=64)
    trainer = ours.trained(work, method, network, network.precision, 1, 1)
    found: list[list[float]] = [[] for _ in ROWS]
    with trainer.fused.attached():
        for _ in range(repeats + 1):
            for index, rows in enumerate(ROWS):
                found[index].append(pass_seconds(trainer, network, rows, LENGTH))
    return [statistics.median(times[1:]) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=known_shape, default="smollm2-135m")
    parser.add_argument("--method", choices=list(ours.HP), default="lora")
    parser.add_argument("--repeats", type=whole, default=5)
    options = parser.parse_args()
    network = backbone(options.shape, "cpu", "float32")
    seconds = measure(network, options.method, options.repeats)
    start, each = line([rows * LENGTH for rows in ROWS], seconds)
    print(f"{options.shape}, {options.method}, {torch.get_num_threads()} threads, {LENGTH} tokens a row")
    print(
        *(f"{rows * LENGTH} positions: {1000 * took:.0f} ms" for rows, took in zip(ROWS, seconds, strict=True)),
        sep="\n",
    )
    print(
        f"a pass: {1000 * start:.1f} ms, a position: {1000 * each:.3f} ms; "
        f"one more micro-batch: {start / each:.0f} positions"
    )
    told = overhead_tokens(network)
    table = []
    for task in TASKS:
        work = workload(task)
        for overhead in sorted({told, max(1, round(start / each)), 10**9}):
            count, padding = cut(work, default_tokens(network), overhead)
            mean = work.encoded.source_offsets[-1] / len(work.encoded)
            cost = BATCH_SIZE * mean / (1 - padding) + count * start / each
            table.append([task, overhead, f"{count:.2f}", f"{100 * padding:.1f} %", f"{cost:.0f}"])
    headers = ("task", "cut at, positions", "micro-batches", "padding", "cost of a step, positions")
    print(tabulate(table, headers, tablefmt="pipe"))


if __name__ == "__main__":
    main()
