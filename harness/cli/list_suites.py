"""What `harness suites` shows: the shipped suites and those of a folder, what each is for and how many cells it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.data import suite_tasks
from harness.errors import UserError
from harness.method import read_specs
from harness.shipped import shipped_suites
from harness.suite import MethodSpec, Overrides, expand_suite, load_suite
from harness.text_tables import text_table
from harness.yaml_lines import read_document


def describe_suites(folder: Path) -> dict[str, Any]:
    """Every shipped suite, then every YAML file of `folder` that names itself one. Raises UserError for no folder."""
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder))
    shipped = shipped_suites()
    methods = read_specs()
    rows = [_describe(path, path.stem, methods) for path in sorted(shipped.glob("*.yaml"))]
    if folder.resolve() != shipped.resolve():
        own = [path for path in sorted(folder.glob("*.y*ml")) if _is_suite(path)]
        rows += [_describe(path, str(path), methods) for path in own]
    return {"suites": rows, "text": text_table(rows, ["suite", "entries", "cells", "what it is for"])}


def _is_suite(path: Path) -> bool:
    """Whether a YAML file has the key that only suites have; one that cannot be read is not listed."""
    try:
        return "suite" in read_document(path).data
    except (UserError, OSError):
        return False


def _describe(path: Path, name: str, methods: Mapping[str, MethodSpec]) -> dict[str, Any]:
    """One suite; its mistake in place of its purpose where it has one."""
    try:
        suite = load_suite(path, Overrides())
        groups = expand_suite(suite, methods, {name: task.spec for name, task in suite_tasks(suite).items()})
    except UserError as error:
        return {"suite": name, "entries": "", "cells": "", "what it is for": f"BROKEN: {error.problem}"}
    return {
        "suite": name,
        "entries": sum(group.repeat == 1 for group in groups),
        "cells": sum(
            suite.file.tuning.num_cells(group.num_points, len(group.seeds)) if group.repeat == 1 else len(group.seeds)
            for group in groups
        ),
        "what it is for": suite.file.description,
    }
