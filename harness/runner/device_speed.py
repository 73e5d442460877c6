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
"""Timed calls after one that warms up; their median ignores a single disturbance."""


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

    A run is somewhat slower: the optimizer, sorting and padding are not measured.
    """
    backbone = cached_backbone(name_or_path, precision, quantization)
    with torch.random.fork_rng():
        return _measure(backbone, dropout)


def _measure(backbone: Backbone, dropout: bool) -> Rate:
    """Time the backbone on embeddings [N, L, H], mask [N, L] and labels [N, D]; `dropout` as in training."""
    device = backbone.device
    rows = TOKENS.get(device.type, TOKENS["cpu"]) // LENGTH
    embeds = torch.randn(rows, LENGTH, backbone.hidden, device=device, dtype=backbone.embedding.weight.dtype)
    mask = torch.ones(rows, LENGTH, dtype=torch.long, device=device)
    labels = torch.full((rows, TARGETS), backbone.eos_id, device=device)
    embeds.requires_grad_()

    def train() -> None:
        # what a linear head adds to an encoder's states takes no time beside them
        made = (
            backbone.token_losses(embeds, mask, labels) if backbone.writes_text else backbone.text_states(embeds, mask)
        )
        made.sum().backward()

    @torch.no_grad()
    def answer() -> object:
        read = backbone.decode if backbone.writes_text else lambda *inputs: backbone.text_states(*inputs[:2])
        return read(embeds.detach(), mask, TARGETS)

    backbone.model.train(dropout)
    train_s = _median_seconds(train, device)
    backbone.model.eval()
    eval_s = _median_seconds(answer, device)
    flops = matmul_params(backbone).step_flops(rows, rows * LENGTH, rows * TARGETS)
    return Rate(flops / train_s, rows * LENGTH / eval_s, f"probe of {rows * LENGTH:,} tokens")


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of `work` over REPETITIONS calls, after one call that warms up caches and kernels."""
    seconds = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
