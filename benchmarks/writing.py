"""What it saves that rows which have ended leave the batch, and what a written token costs beside a read position.

    python -m benchmarks.writing --shape smollm2-135m --rows 16 --most 128

Rows of drawn lengths write answers of drawn lengths. The same rows are answered with all of them staying to the end,
and with rows leaving once a share of those in work has ended, one contender after the other in each round. Shown are
medians over the rounds; a ratio is the median of the rounds' ratios.

Shapes: N rows, n of them still read, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.workload import backbone, known_shape
from harness.backbone import Backbone, Writing
from harness.backbone import writing as writing_module
from harness.backbone.writing import Reader
from tools.arguments import whole

END = 1
STAYING = 2.0
"""A share that is never reached."""
SHARES = (STAYING, 0.5, 0.25, 0.125)


class DrawnEnds:
    """A hook behind the output head that lets each row end after a drawn number of tokens, and at no other place."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.left = torch.tensor(lengths)
        """[n]: tokens that each row has still to write."""

    def __call__(self, module: nn.Module, args: object, logits: Tensor) -> Tensor:
        self.left = self.left - 1
        end = torch.where(self.left.to(logits.device) <= 0, torch.inf, -torch.inf)
        logits[:, -1, END] = end.to(logits.dtype)
        return logits

    def follow(self, rows: Tensor) -> bool:
        """Keep these rows, [n]."""
        self.left = self.left[rows.cpu()]
        return True


@dataclass(frozen=True)
class Rows:
    """Rows to answer: the lengths of texts and of answers, [N] each."""

    texts: np.ndarray[tuple[int], np.dtype[np.int64]]
    answers: np.ndarray[tuple[int], np.dtype[np.int64]]


def drawn_rows(count: int, longest_text: int, most: int, seed: int) -> Rows:
    """Texts from a quarter of the longest up, and answers of all lengths, as solutions in arithmetic have them."""
    draw = np.random.default_rng(seed)
    return Rows(draw.integers(longest_text // 4, longest_text + 1, count), draw.integers(1, most + 1, count))


def seconds(network: Backbone, rows: Rows, most: int, share: float) -> float:
    """Time to read texts and write answers; on a CPU that of our own threads, which other work does not lengthen."""
    clock = time.process_time if network.device.type == "cpu" else time.perf_counter
    length = int(rows.texts.max())
    mask = (torch.arange(length)[None] < torch.as_tensor(rows.texts)[:, None]).long().to(network.device)
    embeds = network.token_vectors(torch.full(mask.shape, 5))
    ends = DrawnEnds(rows.answers.tolist())
    handle = network.model.get_output_embeddings().register_forward_hook(ends)
    try:
        with patch.object(writing_module, "SHARE_TO_LEAVE", share):
            _wait(network)
            started = clock()
            ids = network.write(embeds, mask, Writing(most, (END,)), follow=ends.follow)
            _wait(network)
            took = clock() - started
    finally:
        handle.remove()
    written = (ids == END).int().argmax(1) + 1
    assert written.tolist() == rows.answers.tolist(), "every row writes as much as was drawn"
    return took


def _wait(network: Backbone) -> None:
    if network.device.type == "cuda":
        torch.cuda.synchronize()


def written_in_positions(network: Backbone, count: int, length: int, most: int) -> float:
    """What a written token costs, in positions that are read, where `count` rows of one length all stay."""
    texts, all_of = np.full(count, length), np.full(count, most)
    read = min(seconds(network, Rows(texts, np.ones(count, np.int64)), 1, STAYING) for _ in range(3))
    both = min(seconds(network, Rows(texts, all_of), most, STAYING) for _ in range(2))
    return (both - read) / (most - 1) / count / (read / (count * length))


def moving_in_steps(network: Backbone, count: int, length: int) -> float:
    """What it costs to keep three quarters of `count` rows behind texts of one length, in tokens written by all rows.

    That many tokens times 4 have to be written after a quarter of the rows has left, until it has paid.
    """
    clock = time.process_time if network.device.type == "cpu" else time.perf_counter
    step_s: list[float] = []
    moved_s: list[float] = []
    kept = torch.arange(count - count // 4, device=network.device)

    def timed(read: Reader, logits: Tensor, *rest: object) -> Tensor:
        for _ in range(6):
            _wait(network)
            started = clock()
            logits = read(logits.argmax(-1)[:, None])
            _wait(network)
            step_s.append(clock() - started)
        cache = copy.deepcopy(getattr(read, "cache", None))
        for _ in range(6):
            read.cache = copy.deepcopy(cache)  # type: ignore[attr-defined]
            mask = read.mask  # type: ignore[attr-defined]
            _wait(network)
            started = clock()
            read.keep(kept)
            _wait(network)
            moved_s.append(clock() - started)
            read.mask = mask  # type: ignore[attr-defined]
        return logits

    mask = torch.ones(count, length, dtype=torch.long, device=network.device)
    with patch.object(network, "greedy", timed):
        network.write(network.token_vectors(torch.full(mask.shape, 5)), mask, Writing(2, (END,)))
    return statistics.median(moved_s) / statistics.median(step_s)


def compared(network: Backbone, rows: Rows, most: int, rounds: int) -> list[list[float]]:
    """Seconds of each round with each of SHARES; the first round warms up and is left out."""
    return [[seconds(network, rows, most, share) for share in SHARES] for _ in range(rounds + 1)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=known_shape, default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rows", type=whole, default=16)
    parser.add_argument("--text", type=whole, default=128, help="tokens of the longest text")
    parser.add_argument("--most", type=whole, default=128, help="tokens of the longest answer that is drawn")
    parser.add_argument("--rounds", type=whole, default=3)
    options = parser.parse_args()
    network = backbone(options.shape, options.device, options.precision)
    moving = moving_in_steps(network, options.rows, options.text)
    print(
        f"{options.rows} rows, texts of {options.text}: moving three quarters of them costs {moving:.3f} steps",
        flush=True,
    )
    cost = written_in_positions(network, options.rows, options.text, min(8, options.most))
    print(f"a written token costs as much as {cost:.1f} positions that are read", flush=True)
    rows = drawn_rows(options.rows, options.text, options.most, seed=0)
    found = compared(network, rows, options.most, options.rounds)
    tokens, places = int(rows.answers.sum()), options.rows * int(rows.answers.max())
    print(
        f"{options.shape}, {options.device}, {torch.get_num_threads()} threads: {options.rows} rows, "
        f"{tokens:,} tokens in answers of up to {options.most}; {places / tokens:.2f} times as many if all rows stay"
    )
    table = []
    for index, share in enumerate(SHARES):
        took = statistics.median(times[index] for times in found)
        ratio = statistics.median(times[0] / times[index] for times in found)
        name = "all rows stay" if share == STAYING else f"rows leave when {share:.0%} have ended"
        table.append([name, f"{tokens / took:.1f}", f"{ratio:.2f}"])
    print(tabulate(table, ("contender", "tokens/s", "of staying"), tablefmt="pipe"))


if __name__ == "__main__":
    main()
