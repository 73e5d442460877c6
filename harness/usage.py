"""What a cell cost, from what its training counted."""

from __future__ import annotations

from harness.cell_state import Outcome
from harness.flops import MatmulParams
from harness.memory import peak_memory
from harness.schema import Usage


def usage_of(
    outcome: Outcome, bundle_cells: int, matmul: MatmulParams, peak: float | None, num_processes: int = 1
) -> Usage:
    """The accounts of one cell; `peak` is one device's FLOP/s at the cell's precision, None where unknown.

    A cell's seconds are its share of the bundle's, by positions: its rates are those of the whole bundle where its
    prompts and texts are as long as the others'.
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
        peak_memory_bytes=peak_memory(),
        bundle_cells=bundle_cells,
        micro_batch_tokens=outcome.micro_batch_tokens,
        num_out_of_memory=outcome.num_out_of_memory,
        num_processes=num_processes,
    )


def rule_usage(seconds: float) -> Usage:
    """The accounts of a rule, which trains nothing and answered in `seconds`."""
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
