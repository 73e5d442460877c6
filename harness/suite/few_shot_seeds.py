"""Which few-shot rows each training seed of a table entry sees. Every method sees the same rows for the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import UserError
from harness.suite.blocks import Draw, FewShot


def few_shot_draws(
    block: FewShot | None, k: int | None, rule: str, own_seeds: Sequence[int], seeds: Sequence[int], where: str
) -> Mapping[int, Draw | None]:
    """Return training seed -> draw for each of `seeds`; None for each if the entry trains on all rows.

    `rule` is the protocol's, for a block that names none. `own_seeds` are the suite's: the n-th draw seed belongs to
    the n-th of them, even if the command line picked only some. Raises UserError for a seed without a draw.
    """
    if block is None or k is None:
        return dict.fromkeys(seeds)
    paired = _paired(block.draw_seeds, own_seeds, seeds, where)
    settings = {"k": k, "rule": block.draw or rule, "select_with": block.select_with}
    return {seed: Draw.model_validate({**settings, "seed": paired[seed]}) for seed in seeds}


def _paired(given: list[int] | None, own_seeds: Sequence[int], seeds: Sequence[int], where: str) -> dict[int, int]:
    """Return training seed -> draw seed."""
    if given is None:
        return {seed: seed for seed in seeds}
    if len(given) == 1:
        return dict.fromkeys(seeds, given[0])
    paired = dict(zip(own_seeds, given, strict=False))
    lacking = [seed for seed in seeds if seed not in paired]
    if len(given) != len(own_seeds) or lacking:
        problem = f"{len(given)} draw seeds for {len(own_seeds)} training seeds"
        if len(given) == len(own_seeds):
            problem = f"training seed {lacking[0]} has no draw"
        hint = "Give one for all, or one for each of the suite's seeds; without draw_seeds each seed draws for itself."
        raise UserError(problem, where=where, field="few_shot.draw_seeds", hint=hint)
    return paired
