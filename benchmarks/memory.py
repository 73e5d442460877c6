"""Peak memory of a training step and an evaluation through large backbones, beside what `harness devices` says.

Weights are random: memory depends on shapes alone, so that no checkpoint is needed.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.random_network import random_network
from harness.backbone import Backbone, RowPrefixes, Scheme, backbone_config
from harness.runner import LENGTH, PROMPT, TARGETS, TEXT, MemoryNeed, memory_need
from harness.suite import short_name
from harness.train import TinyTokenizer
from tools.arguments import whole

PAGE = Path(__file__).with_name("README.md")
MARK = ("<!-- memory:begin -->\n", "<!-- memory:end -->")
SHAPES = ("t5-3b", "llama-2-7b")
QUICK_SHAPES = "t5-small"
"""Of the known networks the smallest that writes."""
STORAGES: tuple[Scheme, ...] = ("nf4", "bf16")


@dataclass(frozen=True)
class Measured:
    """Peaks in bytes, weights included."""

    need: MemoryNeed
    rows: int
    training: int
    evaluation: int


def random_backbone(config: dict[str, Any], storage: Scheme, device: str) -> Backbone:
    """A backbone with random weights in the form in which they are stored."""
    precision = "float32" if storage == "none" else "bfloat16"
    model = random_network(config, storage, device)
    return Backbone(short_name("random"), model.eval(), TinyTokenizer(), None, precision, storage)


def training_step(backbone: Backbone, rows: int, prompts: int = 1) -> None:
    """A step of `rows` rows of PROMPT vectors, in a table that takes the gradient, and TEXT token embeddings.

    A decoder reads the prompts by themselves, as in training, and the rows behind them as two micro-batches. Without
    any `prompts` the vectors stay with their rows.
    """
    backbone.model.train()
    table = torch.zeros(prompts * PROMPT + 1, backbone.hidden, device=backbone.device, requires_grad=True)
    prefixes = _read(backbone, table, rows, prompts)
    for _ in range(1 if prefixes is None else 2):
        embeds, mask = _rows(backbone, rows, prefixes)
        embeds = embeds + nn.functional.embedding(torch.zeros_like(mask), table)
        labels = torch.full((rows, TARGETS), 5, device=backbone.device)
        backbone.token_losses(embeds, mask, labels, prefixes).sum().backward()
    if prefixes is not None:
        prefixes.prefixes.backward()


@torch.no_grad()
def evaluation(backbone: Backbone, rows: int, prompts: int = 1) -> None:
    """Answers to `rows` rows of PROMPT vectors and TEXT token embeddings; prompts as in `training_step`."""
    backbone.model.eval()
    table = torch.zeros(prompts * PROMPT, backbone.hidden, device=backbone.device)
    prefixes = _read(backbone, table, rows, prompts)
    backbone.decode(*_rows(backbone, rows, prefixes), TARGETS, prefixes)


def _read(backbone: Backbone, table: torch.Tensor, rows: int, prompts: int) -> RowPrefixes | None:
    """The prompts of a table, [prompts x PROMPT, H], in front of rows; None where they stay with their rows."""
    if not prompts or not backbone.shares_prompts(LENGTH + TARGETS):
        return None
    places = torch.arange(prompts * PROMPT, device=table.device).view(prompts, PROMPT)
    read = backbone.read_prompts(nn.functional.embedding(places, table), torch.ones_like(places), table.requires_grad)
    return RowPrefixes(read, torch.arange(rows, device=table.device) % prompts)


def _rows(backbone: Backbone, rows: int, prefixes: RowPrefixes | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token embeddings [rows, L, H] in the place of all positions of a row, and their mask [rows, L]."""
    length = LENGTH if prefixes is None else TEXT
    ids = torch.zeros(rows, length, dtype=torch.long, device=backbone.device)
    return backbone.embedding(ids), _padded(ids)


def _padded(ids: torch.Tensor) -> torch.Tensor:
    """A mask with one padded position, as almost every micro-batch has; without any, decoders alone skip the mask."""
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return mask


def peak_bytes(work: Callable[[], None], device: str) -> int:
    """Most bytes that tensors took while `work` ran, beside those that were there on a CPU."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def measure(name: str, storage: Scheme, rows: int, device: str) -> Measured:
    """Peaks on a device for one backbone and storage; on a CPU weights are added, as the profiler has not seen them."""
    backbone = random_backbone(backbone_config(name), storage, device)
    weights = 0 if device == "cuda" else sum(p.nbytes for p in backbone.model.parameters())
    training = weights + peak_bytes(lambda: training_step(backbone, rows), device)
    answering = weights + peak_bytes(lambda: evaluation(backbone, 2 * rows), device)
    return Measured(memory_need(name, storage, rows), rows, training, answering)


def table(found: Sequence[Measured]) -> str:
    """The figures beside the estimates, in GiB, as Markdown."""
    rows = [
        "| backbone | storage | training: estimate | measured | evaluation: estimate | measured |",
        "|---|---|---|---|---|---|",
    ]
    for item in found:
        pairs = (
            (item.need.step, item.training),
            (item.need.weights + item.need.evaluation, item.evaluation),
        )
        cells = [
            f"{guess / 2**30:.2f} | {real / 2**30:.2f} ({100 * (guess / real - 1):+.0f} %)" for guess, real in pairs
        ]
        rows.append(f"| {item.need.backbone} | {item.need.storage} | {cells[0]} | {cells[1]} |")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows_of = f"{found[0].rows} rows of {PROMPT} prompt vectors and {TEXT} tokens"
    head = f"{date.today()}, {device}, {rows_of}, GiB allocated at the peak.\n\n"
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Measure, print, and with --write put the table into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", default=",".join(SHAPES))
    parser.add_argument("--storages", default=",".join(STORAGES))
    parser.add_argument("--rows", type=whole, default=16)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the smallest network, on a CPU too; writes nothing")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.backbones, options.storages, options.write = QUICK_SHAPES, "none", False
    elif device == "cpu":
        raise SystemExit(
            "needs a CUDA device, or --quick; on a CPU, tests/runner/test_device_plan.py checks what a step takes"
        )
    found = []
    for name in options.backbones.split(","):
        for storage in options.storages.split(","):
            found.append(measure(name, storage, options.rows, device))
            print(table(found[-1:]))
    if options.write:
        head, rest = PAGE.read_text().split(MARK[0])
        PAGE.write_text(head + MARK[0] + table(found) + MARK[1] + rest.split(MARK[1])[1])


if __name__ == "__main__":
    main()
