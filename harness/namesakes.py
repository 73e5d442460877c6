"""Results of another network that has the name of this one: a folder's name, which is all that results keep of it."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import UserError
from harness.loading import fingerprint
from harness.planning import Plan
from harness.results import read_result
from harness.schema import Result


def refuse_namesakes(plan: Plan) -> None:
    """Raise UserError where a backbone of the plan has the name, and not the weights, of one whose results are stored.

    Such results would be shown as its own, and `--rerun stale` would overwrite them. A hub id whose weights are not on
    this machine yet has nothing to compare; a run asks again once it has them.
    """
    for name in {cell.backbone: None for group in plan.groups for cell in group.cells.values()}:
        source = plan.suite.backbone_sources[name]
        weights = fingerprint(source)
        for result in _trained_on(plan, name) if weights != "unresolved" else ():
            assert result.backbone is not None
            stored = result.backbone.fingerprint.partition("+")[0]  # without the form they were loaded in
            if stored != weights:
                raise UserError(
                    f"'{source}' is another network than the '{name}' whose results are stored in {plan.store.root} "
                    f"(weights {stored} there, {weights} here)",
                    where="--backbones" if plan.suite.overrides.backbones else plan.suite.document.where("backbones"),
                    hint=f"Give it a name of its own, as in --backbones NEW_NAME={source}, or another results folder; "
                    "if it replaces the old one, delete the results of that.",
                )


def _trained_on(plan: Plan, backbone: str) -> Iterator[Result]:
    """Results under a backbone's name: those of the plan, and one of each other row and task of its suites."""
    known = [result for results in plan.results for result in results.values() if result.cell.backbone == backbone]
    yield from filter(_has_weights, known)
    paths = {plan.store.path(result.cell) for result in known}
    for suite in sorted({cell.suite for group in plan.groups for cell in group.cells.values()}):
        for folder in sorted((plan.store.root / suite).glob(f"*/*/{backbone}")):
            for path in sorted(set(folder.glob("[!.]*.json")) - paths):
                try:
                    result = read_result(path)
                except UserError:
                    continue  # a report and `verify` name it
                if _has_weights(result):
                    yield result
                    break


def _has_weights(result: Result) -> bool:
    """Not so a rule, a failure, a row that does not fit."""
    return result.backbone is not None and result.backbone.num_params > 0
