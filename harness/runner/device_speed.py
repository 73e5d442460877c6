"""Measure how fast this device computes a backbone, within seconds; used when no stored result tells.

Shapes: N rows, L = LENGTH positions, H width of the backbone, D = TARGETS target tokens.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.backbone import Backbone, Scheme, best_device, matmul_params
from harness.train import cached_backbone

LENGTH = 128
"""Positions of a row. Real rows differ; an estimate scales by positions, as if speed did not depend on the length."""
TARGETS = 3
"""Tokens of a label with its end token."""
TOKENS = {"cpu": 2_048, "cuda": 32_768}
"""Tokens of the micro-batch: the default budget of a bundle on a CPU, and on a GPU enough to keep it busy."""
REPETITIONS = 3
"""Timed calls after those that warm up; their median ignores a single disturbance."""
SECONDS = 3.0
"""Time for the calls of one measurement. Where a network is slow, they have fewer rows, and in the end fewer calls."""


@dataclass(frozen=True)
class Rate:
    """The speed of a device with one backbone."""

    train_flops: float
    """FLOP/s of `flops.MatmulParams.step_flops` in training."""
    eval_positions: float
    """Positions of prompt and text per second in evaluation, decoding included."""
    origin: str
    """Where the numbers come from, in words."""


def device_name() -> str:
    """Name of the best device as results record it."""
    kind = best_device()
    return torch.cuda.get_device_name() if kind == "cuda" else kind


@functools.lru_cache(maxsize=8)
def probed_rate(name_or_path: str, precision: str, dropout: bool, quantization: Scheme = "none") -> Rate:
    """Time the forward pass, backward pass and decoding of one micro-batch of random embeddings.

    The micro-batch is as large as the time allows. A run is somewhat slower: the optimizer, sorting and padding are
    not measured.
    """
    backbone = cached_backbone(name_or_path, precision, quantization)
    with torch.random.fork_rng():
        return _measure(backbone, dropout)


def _measure(backbone: Backbone, dropout: bool) -> Rate:
    """Time the backbone on embeddings [N, L, H], mask [N, L] and labels [N, D]; `dropout` as in training."""
    device = backbone.device
    most = TOKENS.get(device.type, TOKENS["cpu"]) // LENGTH
    embeds = torch.randn(most, LENGTH, backbone.hidden, device=device, dtype=backbone.embedding.weight.dtype)
    mask = torch.ones(most, LENGTH, dtype=torch.long, device=device)
    labels = torch.full((most, TARGETS), backbone.eos_id, device=device)

    def train(rows: int) -> None:
        given = embeds[:rows].requires_grad_()
        # what a head adds to an encoder's states takes no time beside them
        made = (
            backbone.token_losses(given, mask[:rows], labels[:rows])
            if backbone.writes_text
            else backbone.text_states(given, mask[:rows])
        )
        made.sum().backward()

    @torch.no_grad()
    def answer(rows: int) -> None:
        if backbone.writes_text:
            backbone.decode(embeds[:rows], mask[:rows], TARGETS)
        else:
            backbone.text_states(embeds[:rows], mask[:rows])

    backbone.model.train(dropout)
    train_rows, train_s = _timed(train, most, device)
    backbone.model.eval()
    eval_rows, eval_s = _timed(answer, most, device)
    flops = matmul_params(backbone).step_flops(train_rows, train_rows * LENGTH, train_rows * TARGETS)
    return Rate(flops / train_s, eval_rows * LENGTH / eval_s, f"probe of {train_rows * LENGTH:,} tokens")


def _timed(work: Callable[[int], None], most: int, device: torch.device) -> tuple[int, float]:
    """Choose how many rows `work` gets, at most `most`, and return them with its median seconds.

    It begins with one row, and takes four times as many while a call stays short: on a GPU many take as long as one.
    """
    rows, seconds = 1, _seconds(work, 1, device)
    if seconds >= SECONDS:
        return rows, seconds
    seconds = _seconds(work, rows, device)  # without what the first call does once
    while rows < most and 4 * seconds <= SECONDS / (REPETITIONS + 1):
        rows = min(4 * rows, most)
        seconds = _seconds(work, rows, device)
    timed = [_seconds(work, rows, device)]
    while len(timed) < REPETITIONS and sum(timed) < SECONDS:
        timed.append(_seconds(work, rows, device))
    return rows, statistics.median(timed)


def _seconds(work: Callable[[int], None], rows: int, device: torch.device) -> float:
    started = time.perf_counter()
    work(rows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
