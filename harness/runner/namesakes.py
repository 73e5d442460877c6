"""Refuse to mix results of two backbones with the same name: results keep only the last part of a folder's path."""

from __future__ import annotations

from collections.abc import Iterator

from harness.backbone import weights_fingerprint
from harness.errors import UserError
from harness.results import Result, read_result
from harness.runner.plan import Plan


def refuse_namesakes(plan: Plan) -> None:
    """Raise UserError if results are stored under a backbone's name that were made with other weights.

    They would be shown as results of this backbone, and `--rerun stale` would overwrite them. Weights of a hub id that
    are not on this machine yet cannot be compared; a run asks again once they are downloaded.
    """
    for name in {cell.backbone: None for group in plan.groups for cell in group.cells.values()}:
        given = plan.suite.backbone_sources[name]
        weights = weights_fingerprint(given)
        for result in _trained_on(plan, name) if weights != "unresolved" else ():
            assert result.backbone is not None
            stored = result.backbone.fingerprint.partition("+")[0]  # without the quantization behind the "+"
            if stored != weights:
                raise UserError(
                    f"'{given}' is another network than the '{name}' whose results are stored in {plan.store.root} "
                    f"(weights {stored} there, {weights} here)",
                    where="--backbones" if plan.suite.overrides.backbones else plan.suite.document.where("backbones"),
                    hint=f"Give it a name of its own, as in --backbones NEW_NAME={given}, or another results folder; "
                    "if it replaces the old one, delete the results of that.",
                )


def _trained_on(plan: Plan, backbone: str) -> Iterator[Result]:
    """Results under a backbone's name: all of the plan, and one for each other row and task of the same suites.

    One is enough there: every folder was filled under this same check.
    """
    known = [result for results in plan.results for result in results.values() if result.cell.backbone == backbone]
    yield from filter(_has_weights, known)
    paths = {plan.store.path(result.cell) for result in known}
    for suite in sorted({cell.suite for group in plan.groups for cell in group.cells.values()}):
        for folder in sorted((plan.store.root / suite).glob(f"*/*/{backbone}")):
            for path in sorted(set(folder.glob("[!.]*.json")) - paths):
                try:
                    result = read_result(path)
                except UserError:
                    continue  # a damaged file; `harness report` and `harness verify` name it
                if _has_weights(result):
                    yield result
                    break


def _has_weights(result: Result) -> bool:
    """Whether a result was made with a backbone: not so a rule, a failure, or a cell that does not fit."""
    return result.backbone is not None and result.backbone.num_params > 0
