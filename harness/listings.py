"""What the listing commands show: data for JSON, and under "text" the same as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from harness.backbone import Backbone, load_backbone
from harness.contract import Finding
from harness.data import TaskData, encode, load_task
from harness.errors import UserError, require_choice
from harness.method import Registered, Rule
from harness.planning import Plan, check_fit, make_plan
from harness.suite import Overrides
from harness.tasks import Task, all_tasks
from harness.tasks.record import SPLIT_RULES


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Cells by group and the budget of each method."""
    groups = [_describe_group(plan, index) for index in range(len(plan.groups))]
    budgets: dict[str, dict[str, Any]] = {}
    for item in groups:
        total = budgets.setdefault(item["method"], {"method": item["method"]})
        for key in ("cells", "done", "missing", "failed", "stale", "steps_to_train"):
            total[key] = total.get(key, 0) + item[key]
    columns = ["method", "task", "backbone", "grid_points", "seeds", "cells", "done", "missing", "failed", "stale"]
    text = [
        f"suite {plan.suite.file.suite} ({plan.suite.document.path}); results: {plan.store.root}",
        table(groups, columns),
        "Budget per method (the winner's further seeds included)",
        table(list(budgets.values()), ["method", "cells", "done", "missing", "failed", "stale", "steps_to_train"]),
        *(f"{task}: {SPLIT_RULES[plan.tasks[task].split]}" for task in dict.fromkeys(g.task for g in plan.groups)),
    ]
    return {
        "suite": plan.suite.file.suite,
        "groups": groups,
        "budgets": list(budgets.values()),
        "text": "\n\n".join(text),
    }


def _describe_group(plan: Plan, index: int) -> dict[str, Any]:
    group, results = plan.groups[index], plan.results[index]
    cells = plan.num_cells(group)
    stale = [result for result in results.values() if plan.is_stale(result)]
    missing = max(0, cells - len(results))
    first = group.cells[(0, group.seeds[0])]
    trains = plan.methods[group.method].cls is None or not issubclass(plan.methods[group.method].cls or Rule, Rule)
    return {
        "method": group.label,
        "task": group.task,
        "backbone": group.backbone,
        "grid_points": len(group.points),
        "seeds": list(group.seeds),
        "cells": cells,
        "missing": missing,
        "stale": len(stale),
        "done": sum(result.status == "done" for result in results.values()),
        "failed": sum(result.status == "failed" for result in results.values()),
        "steps_to_train": missing * first.recipe.steps if trains else 0,
        "stale_cells": [result.cell_id for result in stale],
        "recipe": first.recipe.model_dump(mode="json"),
        "hp": first.hp,
        "grid": list(group.points),
        "split_rule": SPLIT_RULES[plan.tasks[group.task].split],
    }


def describe_methods(methods: Mapping[str, Registered]) -> dict[str, Any]:
    """Every method file: what it is, its grid, its error."""
    rows = [
        {
            "name": name,
            "kind": _kind(registered),
            "summary": f"BROKEN: {registered.problem}" if registered.spec.error else registered.summary,
            "paper": _paper_url(registered),
            "grid": {
                **{f"recipe.{k}": v for k, v in registered.spec.defaults.recipe.items()},
                **registered.spec.defaults.hp,
            },
            "file": str(registered.path),
            "error": registered.spec.error,
        }
        for name, registered in methods.items()
    ]
    return {"methods": rows, "text": table(rows, ["name", "kind", "summary", "file"])}


def _kind(registered: Registered) -> str:
    cls = registered.cls
    if cls is None:
        return "broken"
    if issubclass(cls, Rule):
        return "rule"
    return "layers" if cls.is_layer_side() else "input"


def _paper_url(registered: Registered) -> str:
    return registered.cls.paper.url if registered.cls else ""


def describe_tasks(data_dir: str | None) -> dict[str, Any]:
    """Every task record; with a data folder also what is there."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError("no such data folder", where=data_dir, field="--data")
    rows = [_describe_task(task, data_dir) for task in all_tasks().values()]
    columns = ["name", "benchmark", "kind", "score", "split", "published sizes"]
    if data_dir is not None:
        columns += ["found", "sizes", "as published"]
    return {"tasks": rows, "text": table(rows, columns)}


def _describe_task(task: Task, data_dir: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": task.name,
        "title": task.title,
        "notes": task.notes,
        "benchmark": task.benchmark,
        "kind": task.kind,
        "score": " + ".join(task.reported),
        "selection": task.selection,
        "split": task.split,
        "published sizes": _sizes(task.sizes),
        "hub": [str(hub) for hub in task.hub],
        "version": task.version,
        "licence": task.licence,
        "citation": task.citation,
    }
    if data_dir is None:
        return row
    try:
        record = load_task(task, data_dir).record
    except UserError as error:
        missing = "no files of task" in error.problem
        return {**row, "found": "" if missing else str(error), "sizes": "", "as published": ""}
    sizes = (record.num_train, record.num_dev, record.num_test)
    same = "" if task.sizes is None else "yes" if sizes == task.sizes else "NO"
    return {
        **row,
        "found": record.source,
        "sizes": _sizes(sizes),
        "as published": same,
        "fingerprint": record.fingerprint,
    }


def _sizes(sizes: tuple[int, int, int] | None) -> str:
    return " / ".join(f"{size:,}" for size in sizes) if sizes else ""


def describe_rows(name: str, backbone: str, split: str, count: int, data_dir: str | None) -> dict[str, Any]:
    """Rows of a task after tokenisation and truncation, decoded again."""
    task = all_tasks()[require_choice(name, all_tasks(), kind="task")]
    data = load_task(task, data_dir)
    built = load_backbone(backbone, device="cpu")
    rows = _tokenised(data, built, split, count)
    parts = [
        f"{task.name} {split} row {row['row']}: {row['source_tokens']} source tokens"
        f"{' (cut)' if row['cut'] else ''}, {row['target_tokens']} target tokens\n"
        f"  source: {row['source']}\n  target: {row['target']}"
        for row in rows
    ]
    record = data.record
    head = f"{record.source}; {record.split_rule}; {record.num_train:,} / {record.num_dev:,} / {record.num_test:,} rows"
    return {"task": name, "data": record.model_dump(), "rows": rows, "text": "\n\n".join([head, *parts])}


def _tokenised(data: TaskData, backbone: Backbone, split: str, count: int) -> list[dict[str, Any]]:
    examples = data.split(split)[:count]
    limit = data.task.max_source_length
    encoded = encode(examples, backbone, data.task, limit)
    rows: list[dict[str, Any]] = []
    for index in range(len(examples)):
        at = np.array([index])
        source, target = encoded.sources(at, 0)[0], encoded.targets(at)[0]
        whole = len(backbone.tokenizer(examples[index].source)["input_ids"])
        rows.append(
            {
                "row": index,
                "source": backbone.tokenizer.decode(source),
                "target": backbone.tokenizer.decode(target),
                "source_tokens": len(source),
                "target_tokens": len(target),
                "cut": whole > limit,
            }
        )
    return rows


def describe_suite(path: Path, method_dirs: Sequence[str]) -> dict[str, Any]:
    """Check a suite against methods and backbones; no data is read."""
    plan = make_plan(path, Overrides(), Path("results"), None, method_dirs)
    cells = [cell for group in plan.groups for cell in group.cells.values()]
    check_fit(plan, cells, to_run=False)
    broken = sorted({cell.method for cell in cells if plan.methods[cell.method].cls is None})
    total = sum(plan.num_cells(group) for group in plan.groups)
    text = f"{path}: {len(plan.groups)} table entries, {total} cells to train in all; every setting is known and fits"
    if broken:
        text += f"; broken method files: {', '.join(broken)}"
    return {"suite": plan.suite.file.suite, "entries": len(plan.groups), "cells": total, "broken": broken, "text": text}


def describe_contract(path: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    """The contract as a list of checks."""
    lines = [
        f"{'ok  ' if item.ok else 'FAIL'} {item.check}{': ' + item.detail if item.detail else ''}" for item in findings
    ]
    rows = [{"check": item.check, "ok": item.ok, "detail": item.detail} for item in findings]
    return {"file": str(path), "checks": rows, "text": "\n".join([str(path), *lines])}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    body = [[_show(row.get(column, "")) for column in columns] for row in rows]
    return tabulate(body, [column.replace("_", " ") for column in columns], tablefmt="simple", disable_numparse=True)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
