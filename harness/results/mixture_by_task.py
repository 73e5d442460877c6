"""A mixture's result as one result per task, which is how tables and statistics read it."""

from __future__ import annotations

from harness.results.schema import Result
from harness.suite import Part, digest


def results_by_task(result: Result) -> list[Result]:
    """Return the result itself, or for a mixture one result per task, with that task's scores, rows and metrics.

    The selected step and the dev scores that selected it are the mixture's, and so are the parameter counts.
    """
    mixture = result.cell.mixture
    return [result] if mixture is None else [_of_part(result, part) for part in mixture.parts]


def _of_part(result: Result, part: Part) -> Result:
    name = part.task
    cell_fields = {
        "task": name,
        "task_version": part.task_version,
        "task_rules": part.task_rules,
        "definition": part.definition,
    }
    changes = {
        "cell": result.cell.model_copy(update=cell_fields),
        "group_id": digest([result.group_id, name]),
        "metrics": result.metrics.parts[name] if result.metrics else None,
        "dev": result.dev.parts[name] if result.dev else None,
        "test": result.test.parts[name] if result.test else None,
        "data": result.data.parts[name] if result.data else None,
    }
    return result.model_copy(update=changes)
