"""Finds the suites that submitted results say they are of, and makes their cells, without importing a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.method import read_specs
from harness.results import Expected, Result
from harness.runner.resolve_suite import resolve_suite
from harness.shipped import shipped_suites
from harness.suite import ADAPTER, INIT_FROM, MethodSpec, Overrides, load_suite, method_of_row


def known_suites(
    results: Sequence[Result], given: Sequence[Path] = (), method_dirs: Sequence[str | Path] = ()
) -> dict[str, Expected]:
    """Return name -> suite for the suites `given`, else for the shipped ones whose names results have.

    A suite has the rows that the results have: those of its file, and methods with their own defaults. Raises UserError
    for a suite file with a mistake.
    """
    methods = read_specs(method_dirs)
    names = {result.cell.suite for result in results}
    found = {}
    for path in given or [shipped_suites() / f"{name}.yaml" for name in sorted(names)]:
        if not given and not path.is_file():
            continue
        name = load_suite(path, Overrides()).file.suite
        rows = {result.cell.label: result.cell.method for result in results if result.cell.suite == name}
        found[name] = _expected(path, rows, methods)
    return found


def _expected(path: Path, rows: Mapping[str, str], methods: Mapping[str, MethodSpec]) -> Expected:
    file = load_suite(path, Overrides()).file
    judged = [label for label in rows if _is_judged(label, file.methods, methods, path.parent)]
    resolved = resolve_suite(path, Overrides(methods=judged or None), methods)
    return Expected(
        file.suite,
        resolved.groups if judged else [],
        resolved.suite.protocol.reference,
        per_seed=file.tuning.seeds == "each",
        unjudged=frozenset(rows) - frozenset(judged),
    )


def _is_judged(
    label: str, declared: Mapping[str, Mapping[str, Any]], methods: Mapping[str, MethodSpec], folder: Path
) -> bool:
    """Whether the cells of a row can be made: it is the file's or a method, that says what it takes, and the adapter
    that it names is here, since its weights are part of a cell's identity."""
    own = declared.get(label, {})
    name = method_of_row(own, label, methods)
    if not isinstance(name, str) or name not in methods or methods[name].error is not None:
        return False
    return all((folder / named).exists() for named in _adapters_of(own))


def _adapters_of(row: Mapping[str, Any]) -> list[str]:
    """The paths of adapters that a row answers with or starts from."""
    said, start = row.get(ADAPTER), row.get(INIT_FROM)
    starts = start if isinstance(start, list) else [start]
    found = [said.get("folder") if isinstance(said, Mapping) else said]
    found += [one.get(ADAPTER) for one in starts if isinstance(one, Mapping)]
    return [named for named in found if isinstance(named, str)]
