"""What the listing commands show: data for JSON, and under "text" the same as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backbone import has_config, meta_backbone
from harness.cli.list_protocols import protocol_table
from harness.cli.list_time import describe_time
from harness.data import describe_few_shot
from harness.errors import UserError
from harness.method import Method, Registered, Rule
from harness.runner import (
    Misfits,
    Plan,
    check_texts,
    estimate_time,
    find_misfits,
    lines_of,
    make_plan,
    method_settings,
    read_own_rows,
    refuse_namesakes,
)
from harness.suite import GRID_KEY, NO_SOURCE, Cell, Draw, Group, Overrides, Start, protocol_values
from harness.text_tables import text_table
from harness.train import Finding, misfit

RACING = (
    "Grids are searched by halving: the weaker half of the points leaves at each mark, by dev score, from the first at "
    "which one is clearly above a constant answer (tuning.begin). Steps and times "
    "below are those of a full search. Grids of methods that train alone, and those that sweep lengths, are searched "
    "in full"
)


TRIED = "Tried before: points of an earlier grid or of other ranges, which count too"
SEARCHING = (
    "Searches by tpe. The points to come follow from the results of those before them; cells, steps and times count "
    f"them as the known ones are on average. {TRIED}"
)
SHOWN_POINTS = 3
"""Points of an earlier search that a line names; JSON has all."""
STARTS = "Starts: the selected tensors of other cells, which are trained first; in brackets what dev chooses from"


def describe_plan(plan: Plan, probe: bool | None = None, rules: bool = False) -> dict[str, Any]:
    """Cells by group, the budget of each method, and the time that the missing cells will take, as by `estimate`.

    The text holds the protocol's keys with `rules` only; they are longer than all the rest.
    """
    refuse_namesakes(plan)
    misfits = _known_misfits(plan)
    groups = [_describe_group(plan, index, misfits) for index in range(len(plan.groups))]
    budgets: dict[str, dict[str, Any]] = {}
    for item in groups:
        total = budgets.setdefault(item["method"], {"method": item["method"]})
        for key in ("cells", "done", "missing", "failed", "unfit", "stale", "steps_to_train"):
            total[key] = total.get(key, 0) + item[key]
    starts = [{**item, "starts_from": one} for item in groups for one in item["starts_from"]]
    time = describe_time(estimate_time(plan, probe, {i: item["missing"] for i, item in enumerate(groups)}, misfits))
    shots = ["k"] if plan.suite.file.few_shot else []
    repeats = ["repeat"] if plan.suite.file.repeats > 1 else []
    columns = ["method", "task", *shots, "backbone", "grid_points", "seeds", *repeats]
    counts = ["cells", "done", "missing", "failed", *(["unfit"] if misfits else []), "stale"]
    columns += counts
    text = [
        f"suite {plan.suite.file.suite} ({plan.suite.document.path}); results: {plan.store.root}",
        text_table(groups, columns),
        *([f"{len(lines_of(misfits))} rows do not fit and are left out:"] if misfits else []),
        *lines_of(misfits),
        *([STARTS, text_table(starts, ["method", "task", "backbone", "starts_from"])] if starts else []),
        *([RACING] if plan.suite.file.tuning.prunes else []),
        *_describe_searches(plan),
        "Budget per method (the winner's further seeds included)",
        text_table(list(budgets.values()), ["method", *counts, "steps_to_train"]),
        time["text"],
        *_describe_shots(plan),
        *(f"{task}: {_split_rule(plan, task)}" for task in dict.fromkeys(g.task for g in plan.groups)),
        f"Protocol {plan.suite.protocol.reference.title}: {plan.suite.protocol.description}",
        protocol_table(plan.suite.protocol) if rules else "Its keys and their reasons: --rules",
    ]
    return {
        "suite": plan.suite.file.suite,
        "protocol": {"name": plan.suite.protocol.reference.title, "keys": protocol_values(plan.suite.protocol)},
        "strategy": plan.suite.file.tuning.strategy,
        "unfit": lines_of(misfits),
        "groups": groups,
        "budgets": list(budgets.values()),
        "time": {key: value for key, value in time.items() if key != "text"},
        "text": "\n\n".join(text),
    }


def _describe_searches(plan: Plan) -> list[str]:
    """How many points of which rows are to come or were tried before today's, and stored points that are left out."""
    gone = [_describe_unresolved(plan.groups[index], cells) for index, cells in plan.unresolved.items()]
    rows = [
        {
            "method": group.label,
            "task": group.task,
            "backbone": group.backbone,
            "trials": group.num_points - group.num_earlier,
            "to come": group.num_to_come,
            "tried before": group.num_earlier,
        }
        for group in plan.groups
        if group.repeat == 1 and (group.num_earlier or (group.search is not None and group.search.strategy == "tpe"))
    ]
    if not rows:
        return gone
    text = SEARCHING if any(group.search and group.search.strategy == "tpe" for group in plan.groups) else TRIED
    return [text, text_table(rows, ["method", "task", "backbone", "trials", "to come", "tried before"]), *gone]


def _describe_unresolved(group: Group, cells: Sequence[Cell]) -> str:
    """Which stored points of earlier searches a row leaves out."""
    points = [", ".join(f"{key.split('.', 1)[1]}={value}" for key, value in cell.grid.items()) for cell in cells]
    listed = "; ".join([*points[:SHOWN_POINTS], *(["..."] if len(points) > SHOWN_POINTS else [])])
    return (
        f"{group.label} on {group.task}: {len(cells)} stored points of earlier searches are left out, since today's "
        f"method file and recipe do not give their cells: {listed}"
    )


def _describe_shots(plan: Plan) -> list[str]:
    """Per task of a few-shot suite, what is drawn and which labels selection uses."""
    draws: dict[str, dict[Draw, None]] = {}
    for group in plan.groups:
        found = [cell.few_shot for cell in group.cells.values() if cell.few_shot]
        draws.setdefault(group.task, {}).update(dict.fromkeys(found))
    return [describe_few_shot(plan.tasks[task], list(found)) for task, found in draws.items() if found]


def _known_misfits(plan: Plan) -> Misfits:
    """What does not fit of the cells without a result; a plan downloads nothing, not even a configuration.

    Raises UserError for a row of these cells that cannot be read, or that a backbone cannot take.
    """
    done = {result.key for results in plan.results for result in results.values()}
    cells = [cell for group in plan.groups for cell in group.cells.values()]
    read_own_rows(plan, (cell for cell in cells if cell.key not in done))
    known = {name for name in {cell.backbone for cell in cells} if has_config(plan.suite.backbone_sources[name])}
    cells = [cell for cell in cells if cell.key not in done and cell.backbone in known]
    misfits = find_misfits(plan, cells)
    # nor does it download rows
    here = [cell for cell in cells if plan.data_dir or plan.tasks[cell.task].is_here]
    check_texts(plan, [cell for cell in here if cell.key not in misfits])
    return misfits


def _num_unfit(plan: Plan, group: Group, misfits: Misfits) -> int:
    """Cells that selection will ask for in vain: of a grid, its searches; all where no point fits."""
    unfit = {point for point, cell in group.own_cells().items() if cell.key in misfits}
    if group.num_to_come and len(unfit) == len(group.own_cells()):
        return plan.num_cells(group)
    if group.num_points == 1 or len(unfit) == len(group.own_cells()):
        return min(len(unfit), plan.num_cells(group))
    searched = group.seeds if plan.per_seed else group.seeds[:1]
    return sum(seed in searched for _, seed in unfit)


def _describe_group(plan: Plan, index: int, misfits: Misfits) -> dict[str, Any]:
    group, results = plan.groups[index], plan.results[index]
    cells, unfit = plan.num_cells(group), _num_unfit(plan, group, misfits)
    old = [plan.superseded[cell.key] for cell in group.own_cells().values() if cell.key in plan.superseded]
    stale = [*(result for result in results.values() if plan.is_stale(result)), *old]
    missing = max(0, plan.num_missing(index) - len(old) - unfit)
    first = group.cells[(0, group.seeds[0])]
    cls = plan.methods[group.method].cls
    trains = cls is None or (issubclass(cls, Method) and cls.trains)
    return {
        "method": group.label,
        "task": group.task,
        "backbone": group.backbone,
        "k": group.k,
        "grid_points": group.num_points,
        "trials_to_come": group.num_to_come,
        "earlier_points": group.num_earlier,
        "unresolved_points": [cell.grid for cell in plan.unresolved.get(index, ())],
        "seeds": list(group.seeds),
        "repeat": group.repeat,
        "cells": cells,
        "missing": missing,
        "stale": len(stale),
        "done": sum(result.status == "done" for result in results.values()),
        "failed": sum(result.status == "failed" for result in results.values()),
        "unfit": unfit,
        "steps_to_train": missing * first.recipe.steps if trains else 0,
        "is_source": group.is_source,
        "starts_from": sorted(_starts(group)),
        "stale_cells": [result.cell_id for result in stale],
        "recipe": first.recipe.model_dump(mode="json"),
        "hp": first.hp,
        "grid": list(group.points),
        "split_rule": _split_rule(plan, group.task),
    }


def _split_rule(plan: Plan, task: str) -> str:
    """How a task's splits are made, and how many rows of them the suite uses."""
    limit = plan.suite.file.rows.get(task)
    parts = [f"{most:,} {split}" for split, most in limit.model_dump().items() if most] if limit else []
    most = f"; of these at most {', '.join(parts)} rows are used" if parts else ""
    return f"{plan.tasks[task].split_rule}{most}"


def _starts(group: Group) -> set[str]:
    """What the cells of a group start from, one text for each set of sources; a swept one in brackets."""
    found = {(" + ".join(map(_source, cell.init_from)), GRID_KEY in cell.grid) for cell in group.cells.values()}
    return {f"[{text or NO_SOURCE}]" if is_swept else text for text, is_swept in found if text or is_swept}


def _source(start: Start) -> str:
    return start.title if start.file is not None else f"{start.title} (seed {start.seed})"


def describe_methods(methods: Mapping[str, Registered], backbone: str | None = None) -> dict[str, Any]:
    """Every method file: what it is, its grid, its error; with a backbone, whether it fits and why not."""
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
    if backbone is None:
        return {"methods": rows, "text": text_table(rows, ["name", "kind", "summary", "file"])}
    for row in rows:
        row["misfit"] = _misfit(methods[str(row["name"])], backbone)
        row["fits"] = "yes" if row["misfit"] is None else f"no: {row['misfit']}"
    return {"backbone": backbone, "methods": rows, "text": text_table(rows, ["name", "kind", "fits"])}


def _misfit(registered: Registered, backbone: str) -> str | None:
    """Why a method with its own settings does not fit a backbone; None where it fits, and for a rule."""
    cls = registered.cls
    if cls is None:
        return f"its file cannot be imported: {registered.problem}"
    if issubclass(cls, Rule):
        return None
    network = meta_backbone(backbone)
    try:
        settings = method_settings(registered.spec, {})
        reason = misfit(cls, settings, backbone)
        needs_head = cls.trains and reason is None and not cls(cls.HP(**settings), network).num_trained
        if needs_head and not network.kind.has_text_states:
            return "it trains a linear head alone, which needs an encoder or a decoder-only network"
        return reason
    except UserError as error:  # a setting that has no default
        return error.problem


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
    unfit = lines_of(find_misfits(plan, cells))
    broken = sorted({cell.method for cell in cells if plan.methods[cell.method].cls is None})
    total = sum(plan.num_cells(group) for group in plan.groups)
    entries = sum(group.repeat == 1 for group in plan.groups)
    text = f"{path}: {entries} table entries, {total} cells to train in all; every setting is known"
    text += f"; {len(unfit)} rows do not fit:\n" + "\n".join(unfit) if unfit else " and fits"
    if broken:
        text += f"; broken method files: {', '.join(broken)}"
    counts = {"entries": entries, "cells": total}
    return {"suite": plan.suite.file.suite, **counts, "broken": broken, "unfit": unfit, "text": text}


def describe_contract(path: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    """The contract as a list of checks."""
    lines = []
    for item in findings:
        if not item.cause:
            lines.append(f"{'ok  ' if item.ok else 'FAIL'} {item.check}{': ' + item.detail if item.detail else ''}")
        same = [other.check for other in findings if other.cause == item.check]
        if same:
            lines.append(f"     for the same reason not met, or not to be judged: {'; '.join(same)}")
    rows = [{"check": item.check, "ok": item.ok, "detail": item.detail, "cause": item.cause} for item in findings]
    return {"file": str(path), "checks": rows, "text": "\n".join([str(path), *lines])}
