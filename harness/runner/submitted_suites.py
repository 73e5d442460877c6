"""Finds the suites that submitted results say they are of, and makes their cells, without importing a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.method import read_specs
from harness.results import Expected, Result
from harness.runner.resolve_suite import resolve_suite
from harness.shipped import shipped_suites
from harness.suite import MethodSpec, Overrides, load_suite


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
    judged = [label for label in rows if _is_judged(label, file.methods, methods)]
    resolved = resolve_suite(path, Overrides(methods=judged or None), methods)
    return Expected(
        file.suite,
        resolved.groups if judged else [],
        resolved.suite.protocol.reference,
        per_seed=file.tuning.seeds == "each",
        unjudged=frozenset(rows) - frozenset(judged),
    )


def _is_judged(label: str, declared: Mapping[str, Mapping[str, object]], methods: Mapping[str, MethodSpec]) -> bool:
    """Whether the cells of a row can be made: it is the file's or a method, and that says what it takes."""
    name = declared[label].get("method", label) if label in declared else label
    return isinstance(name, str) and name in methods and methods[name].error is None
