"""Which few-shot draw each training seed of an entry sees, the same for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.declarations import Draw, FewShot
from harness.errors import UserError


def draws_of(
    block: FewShot | None, k: int | None, rule: str, own_seeds: Sequence[int], seeds: Sequence[int], where: str
) -> Mapping[int, Draw | None]:
    """Training seed -> draw for `seeds`; None for each where an entry trains on all rows.

    `rule` is the protocol's, `own_seeds` are those that the suite names: the block's draw seeds belong to them.
    Raises UserError for a seed that has no draw.
    """
    if block is None or k is None:
        return dict.fromkeys(seeds)
    paired = _paired(block.draw_seeds, own_seeds, seeds, where)
    settings = {"k": k, "rule": block.draw or rule, "select_with": block.select_with}
    return {seed: Draw.model_validate({**settings, "seed": paired[seed]}) for seed in seeds}


def _paired(given: list[int] | None, own_seeds: Sequence[int], seeds: Sequence[int], where: str) -> dict[int, int]:
    """Training seed -> draw seed."""
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
