"""What the listing commands show: data for JSON, and under "text" the same as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checkpoint import name_of
from harness.contract import Finding
from harness.declarations import Draw
from harness.estimate import estimate
from harness.few_shot import describe_draws
from harness.lineage import GRID_KEY, RANDOM
from harness.listings_data import table
from harness.listings_protocols import protocol_table
from harness.listings_time import describe_time
from harness.method import Registered, Rule
from harness.planning import Plan, check_fit, make_plan
from harness.protocol import describe
from harness.schema import Start
from harness.suite import Group, Overrides

RACING = (
    "Grids are searched by halving: the weaker half of the points leaves at each mark, by dev score, from the first at "
    "which one is clearly above a constant answer (tuning.begin). Steps and times "
    "below are those of a full search. Grids of methods that train alone, and those that sweep lengths, are searched "
    "in full"
)


STARTS = "Starts: the selected tensors of other cells, which are trained first; in brackets what dev chooses from"


def describe_plan(plan: Plan, probe: bool | None = None, rules: bool = False) -> dict[str, Any]:
    """Cells by group, the budget of each method, and the time that the missing cells will take, as by `estimate`.

    The text holds the protocol's keys with `rules` only; they are longer than all the rest.
    """
    groups = [_describe_group(plan, index) for index in range(len(plan.groups))]
    budgets: dict[str, dict[str, Any]] = {}
    for item in groups:
        total = budgets.setdefault(item["method"], {"method": item["method"]})
        for key in ("cells", "done", "missing", "failed", "stale", "steps_to_train"):
            total[key] = total.get(key, 0) + item[key]
    starts = [{**item, "starts_from": one} for item in groups for one in item["starts_from"]]
    time = describe_time(estimate(plan, probe))
    shots = ["k"] if plan.suite.file.few_shot else []
    columns = ["method", "task", *shots, "backbone", "grid_points", "seeds"]
    columns += ["cells", "done", "missing", "failed", "stale"]
    text = [
        f"suite {plan.suite.file.suite} ({plan.suite.document.path}); results: {plan.store.root}",
        table(groups, columns),
        *([STARTS, table(starts, ["method", "task", "backbone", "starts_from"])] if starts else []),
        *([RACING] if plan.suite.file.tuning.strategy == "halving" else []),
        "Budget per method (the winner's further seeds included)",
        table(list(budgets.values()), ["method", "cells", "done", "missing", "failed", "stale", "steps_to_train"]),
        time["text"],
        *_describe_shots(plan),
        *(f"{task}: {plan.tasks[task].split_rule}" for task in dict.fromkeys(g.task for g in plan.groups)),
        f"Protocol {plan.suite.protocol.reference.title}: {plan.suite.protocol.description}",
        protocol_table(plan.suite.protocol) if rules else "Its keys and their reasons: --rules",
    ]
    return {
        "suite": plan.suite.file.suite,
        "protocol": {"name": plan.suite.protocol.reference.title, "keys": describe(plan.suite.protocol)},
        "strategy": plan.suite.file.tuning.strategy,
        "groups": groups,
        "budgets": list(budgets.values()),
        "time": {key: value for key, value in time.items() if key != "text"},
        "text": "\n\n".join(text),
    }


def _describe_shots(plan: Plan) -> list[str]:
    """Per task of a few-shot suite, what is drawn and which labels selection uses."""
    draws: dict[str, dict[Draw, None]] = {}
    for group in plan.groups:
        found = [cell.few_shot for cell in group.cells.values() if cell.few_shot]
        draws.setdefault(group.task, {}).update(dict.fromkeys(found))
    return [describe_draws(plan.tasks[task], list(found)) for task, found in draws.items() if found]


def _describe_group(plan: Plan, index: int) -> dict[str, Any]:
    group, results = plan.groups[index], plan.results[index]
    cells = plan.num_cells(group)
    old = [plan.superseded[name] for cell in group.cells.values() if (name := name_of(cell)) in plan.superseded]
    stale = [*(result for result in results.values() if plan.is_stale(result)), *old]
    missing = max(0, cells - len(results) - len(old))
    first = group.cells[(0, group.seeds[0])]
    trains = plan.methods[group.method].cls is None or not issubclass(plan.methods[group.method].cls or Rule, Rule)
    return {
        "method": group.label,
        "task": group.task,
        "backbone": group.backbone,
        "k": group.k,
        "grid_points": len(group.points),
        "seeds": list(group.seeds),
        "cells": cells,
        "missing": missing,
        "stale": len(stale),
        "done": sum(result.status == "done" for result in results.values()),
        "failed": sum(result.status == "failed" for result in results.values()),
        "steps_to_train": missing * first.recipe.steps if trains else 0,
        "is_source": group.is_source,
        "starts_from": sorted(_starts(group)),
        "stale_cells": [result.cell_id for result in stale],
        "recipe": first.recipe.model_dump(mode="json"),
        "hp": first.hp,
        "grid": list(group.points),
        "split_rule": plan.tasks[group.task].split_rule,
    }


def _starts(group: Group) -> set[str]:
    """What the cells of a group start from, one text for each set of sources; a swept one in brackets."""
    found = {(" + ".join(map(_source, cell.init_from)), GRID_KEY in cell.grid) for cell in group.cells.values()}
    return {f"[{text or RANDOM}]" if is_swept else text for text, is_swept in found if text or is_swept}


def _source(start: Start) -> str:
    return start.title if start.file is not None else f"{start.title} (seed {start.seed})"


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
