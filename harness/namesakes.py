"""Refusing a backbone that has the name of another one whose results are stored.

Results keep a backbone by the name of its folder, so two networks in folders of one name would share a table row.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import UserError
from harness.loading import fingerprint
from harness.planning import Plan
from harness.results import read_result
from harness.schema import Result


def refuse_namesakes(plan: Plan) -> None:
    """Raise UserError if stored results under a backbone's name were made with other weights than the backbone has.

    Such results would be shown as its own, and `--rerun stale` would overwrite them. A backbone of the hub that is not
    on this machine yet cannot be compared; a run checks it again after the download.
    """
    for name in {cell.backbone: None for group in plan.groups for cell in group.cells.values()}:
        name_or_path = plan.suite.backbone_sources[name]
        weights = fingerprint(name_or_path)
        for result in _trained_on(plan, name) if weights != "unresolved" else ():
            assert result.backbone is not None
            stored = result.backbone.fingerprint.partition("+")[0]  # without the form they were loaded in
            if stored != weights:
                raise UserError(
                    f"'{name_or_path}' is another network than the '{name}' whose results are stored in "
                    f"{plan.store.root} (weights {stored} there, {weights} here)",
                    where="--backbones" if plan.suite.overrides.backbones else plan.suite.document.where("backbones"),
                    hint=f"Give it a name of its own, as in --backbones NEW_NAME={name_or_path}, or another results "
                    "folder; if it replaces the old one, delete the results of that.",
                )


def _trained_on(plan: Plan, backbone: str) -> Iterator[Result]:
    """Yield results under a backbone's name: all of the plan, and one of each other row and task of its suites.

    One is enough, since the results of one folder were made with one network; reading all would take long.
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
                    continue  # a report and `verify` name it
                if _has_weights(result):
                    yield result
                    break


def _has_weights(result: Result) -> bool:
    """Return whether a result was made with a network. Rules, failures and rows that do not fit have none."""
    return result.backbone is not None and result.backbone.num_params > 0
