"""What a cell cost: rows, tokens, FLOPs, seconds and memory, from what its training counted."""

from __future__ import annotations

from harness.backbone import MatmulParams, peak_memory_bytes
from harness.results import Usage
from harness.train.cell_state import Outcome


def usage_of(
    outcome: Outcome, bundle_cells: int, matmul: MatmulParams, peak: float | None, num_processes: int = 1
) -> Usage:
    """The cost of one trained cell; `peak` is one device's FLOP/s at the cell's precision, None where it is not known.

    The seconds of a bundle are divided among its cells by positions. So a cell's rates (rows and tokens a second) are
    those of its share of the bundle, not of the cell trained alone. Peak memory is that of the whole process.
    """
    work, seconds = outcome.work, outcome.train_s
    flops = matmul.step_flops(
        work.samples, work.source_positions, work.target_tokens, weights_train=outcome.method.trains_weights
    )
    return Usage(
        num_steps=outcome.num_steps,
        num_samples=work.samples,
        num_tokens=work.tokens,
        num_prompt_tokens=work.prompt_tokens,
        num_target_tokens=work.target_tokens,
        num_padding=work.padding,
        padding_share=_ratio(work.padding, work.padding + work.source_positions),
        samples_per_s=_ratio(work.samples, seconds),
        tokens_per_s=_ratio(work.tokens, seconds),
        model_flops=flops,
        utilisation=None if peak is None else _ratio(flops, seconds * peak * num_processes),
        train_s=seconds,
        eval_s=outcome.eval_s,
        total_s=seconds + outcome.eval_s,
        peak_memory_bytes=peak_memory_bytes(),
        bundle_cells=bundle_cells,
        micro_batch_tokens=outcome.micro_batch_tokens,
        num_out_of_memory=outcome.num_out_of_memory,
        num_processes=num_processes,
    )


def rule_usage(seconds: float) -> Usage:
    """The cost of a rule, which trains nothing and answered in `seconds`."""
    return Usage(
        num_steps=0,
        num_samples=0,
        num_tokens=0,
        train_s=0.0,
        eval_s=seconds,
        total_s=seconds,
        peak_memory_bytes=0,
        bundle_cells=1,
    )


def _ratio(amount: float, base: float) -> float | None:
    return amount / base if base > 0 else None
