"""Checks a folder of results as a stranger's: what `verify_folder` checks, and all that a leaderboard has to ask.

Are the files plain, the method, rows and weights the known ones, the protocol's keys untouched, the choice of the grid
point the one that the dev scores make, and are all seeds there? What is not known here is told apart from what differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data import all_tasks
from harness.errors import UserError
from harness.results.cell_settings import differing_keys, flat_settings
from harness.results.known_origins import judge_origins
from harness.results.schema import Result
from harness.results.selection import best_point, in_order_asked, next_cells, next_repeats, winning_point
from harness.results.store import ResultStore, read_result
from harness.results.untrusted_files import find_strange
from harness.results.verify import verify_folder
from harness.suite import ANSWERING, Cell, Group, Key, Protocol, ProtocolReference, Scope, resolve_protocol

MAX_BYTES = 100_000_000
"""Bytes of one file unless the caller allows more: GitHub takes no larger one."""
NO_IDENTITY = ("suite", "protocol")
"""Fields of a cell that are no part of its id, beside its place in the grid."""
MOST_TOLD = 5
"""Settings that a finding names: a cell that differs in more is another experiment."""


@dataclass(frozen=True)
class Expected:
    """A suite that results have to be of."""

    name: str
    groups: Sequence[Group]
    protocol: ProtocolReference
    per_seed: bool
    """Whether each seed searches the grid."""
    unjudged: frozenset[str] = frozenset()
    """Rows whose method is not known here, or says what it takes only when it runs: their cells cannot be made."""


@dataclass(frozen=True)
class Remark:
    """One thing that was found."""

    path: str
    """Relative to the folder: a file, or the folder of a table entry."""
    kind: str
    """A kind of `verify_folder`, or: name, size, content, method, rows, weights, protocol, settings, seeds."""
    problem: str


@dataclass
class Submission:
    """What was checked of a folder."""

    num_results: int = 0
    num_files: int = 0
    findings: list[Remark] = field(default_factory=list)
    unknown: list[Remark] = field(default_factory=list)
    """What is neither right nor wrong, because nothing is recorded that it could be held against."""


def check_submission(
    root: Path,
    find_suites: Callable[[Sequence[Result]], Mapping[str, Expected]] | None = None,
    methods: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Submission:
    """Check every file below `root`, and what the results say.

    `find_suites` returns, of the results, name -> suite for suites whose cells are known. Results of others are held
    against their protocol alone. `methods` is name -> SHA-256 of method files that are known beside the shipped ones.
    Raises UserError if there is no such folder, and what `find_suites` raises.
    """
    if not root.is_dir():
        raise UserError("no such results folder", where=str(root))
    made = Submission()
    strange = find_strange(root, max_bytes)
    made.findings += [Remark(*item) for item in strange.found]
    if not strange.is_readable:
        made.findings.append(Remark(".", "link", "nothing was read any further"))
        return made
    checked = verify_folder(root)
    made.num_results, made.num_files = checked.num_results, checked.num_files
    made.findings += [Remark(item.path, item.kind, item.problem) for item in checked.findings]
    made.unknown += [Remark(".", "scores", line) for line in checked.not_recomputed]
    results, unread = _readable(root)
    if not results:
        made.findings.append(Remark(".", "incomplete", "holds no result"))
    for path, result in results:
        _add_origins(made, path.relative_to(root).as_posix(), result, methods or {})
    suites = find_suites([result for _, result in results]) if find_suites else {}
    for (suite, _, label, *_), runs in _by_entry(results).items():
        expected = suites.get(suite)
        place = _place(runs[0].cell)
        if expected is None or label in expected.unjudged:
            why = f"no suite {suite} is known" if expected is None else f"the method of row {label} is not known"
            made.unknown.append(Remark(place, "settings", f"{why}; its protocol alone counts"))
            found = _against_protocol(runs)
        else:
            found = _against_suite(runs, expected)
            if any(run.cell.study.startswith("tpe-") for run in runs):
                why = "points of a search by tpe are taken as they are: nobody asked for them again"
                made.unknown.append(Remark(place, "selection", why))
        for kind, problem in dict.fromkeys(found):
            # what follows from a file that was dropped must not look like a fault of its own
            is_lack = kind in ("seeds", "selection") and place in unread
            because = f"; without what cannot be used: {', '.join(unread[place])}" if is_lack else ""
            made.findings.append(Remark(place, kind, problem + because))
    for name, expected in suites.items():
        made.findings += _missing_entries(name, expected, [result for _, result in results])
    made.findings = sorted(dict.fromkeys(made.findings), key=lambda item: (item.path, item.kind, item.problem))
    made.unknown = sorted(dict.fromkeys(made.unknown), key=lambda item: (item.path, item.kind, item.problem))
    return made


def _readable(root: Path) -> tuple[list[tuple[Path, Result]], dict[str, list[str]]]:
    """Return the results that can be read, each cell once, and folder -> names of the files that cannot.

    `verify_folder` has said what is wrong with these.
    """
    seen: set[Key] = set()
    read, unread = [], defaultdict(list)
    for path in sorted(root.rglob("*.json")):
        place = path.relative_to(root)
        if any(part.startswith(".") for part in place.parts):
            continue
        try:
            result = read_result(path)
        except UserError:
            unread[place.parent.as_posix()].append(path.name)
            continue
        if result.key not in seen:
            seen.add(result.key)
            read.append((path, result))
    return read, unread


def _place(cell: Cell) -> str:
    return ResultStore("").path(cell).parent.as_posix()


def _by_entry(results: Iterable[tuple[Path, Result]]) -> dict[tuple[str, ...], list[Result]]:
    """Return the results of each table entry: suite, task, row, backbone, few-shot rows."""
    found: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for _, result in results:
        cell = result.cell
        k = "" if cell.few_shot is None else str(cell.few_shot.k)
        found[cell.suite, cell.task, cell.label, cell.backbone, k].append(result)
    return found


def _add_origins(made: Submission, name: str, result: Result, methods: Mapping[str, str]) -> None:
    for verdict, kind, problem in judge_origins(result, methods):
        if verdict == "differs":
            made.findings.append(Remark(name, kind, problem))
        else:  # the same for all cells of an entry, which stands for them
            made.unknown.append(Remark(_place(result.cell), kind, problem))
    if result.provenance.get("dirty"):
        commit = str(result.provenance.get("commit"))[:10]
        made.unknown.append(Remark(_place(result.cell), "program", f"commit {commit} had local changes"))


def _against_suite(runs: Sequence[Result], expected: Expected) -> Iterator[tuple[str, str]]:
    """Hold the runs of an entry against the cells of a suite: settings, protocol, the choice of the grid, seeds."""
    cell = runs[0].cell
    k = None if cell.few_shot is None else cell.few_shot.k
    own = (cell.label, cell.task, cell.backbone, k)
    groups = [item for item in expected.groups if (item.label, item.task, item.backbone, item.k) == own]
    if not groups:
        yield "settings", f"suite {expected.name} has no such entry"
        return
    group = _with_trials(groups[0], runs)
    repeats = {item.repeat: group.repeated(item.repeat) for item in groups if item.repeat > 1}
    places = {
        item.cell_id: (one.repeat, place) for one in (group, *repeats.values()) for place, item in one.cells.items()
    }
    every: dict[int, dict[tuple[int, int], Result]] = defaultdict(dict)
    for run in runs:
        if run.cell.protocol != expected.protocol:
            title = expected.protocol.title
            yield "protocol", f"was made under {run.cell.protocol.title}, the suite's is {title}"
        if run.cell.cell_id in places:
            repeat, place = places[run.cell.cell_id]
            every[repeat][place] = run
        else:
            yield "settings", f"a cell is none of the suite's: {_nearest(run.cell, list(group.cells.values()))}"
    yield from _forged_protocol(runs)
    found = every[1]
    missing = next_cells(group, found, expected.per_seed)
    for repeat, again in repeats.items():
        missing += next_repeats(again, every[repeat], found)
    if missing:
        seeds = sorted({seed for _, seed in missing})
        yield "seeds", f"lacks {len(missing)} cells that the suite asks for, of seeds {', '.join(map(str, seeds))}"
    if group.num_to_come:
        yield "seeds", f"lacks {group.num_to_come} trials of the search that the suite asks for"
    yield from _not_asked_for(group, found, expected.per_seed)


def _with_trials(group: Group, runs: Sequence[Result]) -> Group:
    """Return the group of a search by `tpe` with the points that `runs` say its later trials had.

    Which they are follows from results, so that any point of the space may be one.
    """
    search = group.search
    if search is None:
        return group
    trials = {run.cell.grid_index: run.cell.grid for run in runs if run.cell.study == search.name}
    while group.num_to_come and len(group.points) in trials and search.holds(trials[len(group.points)]):
        group = group.with_points([trials[len(group.points)]])
    return group


def _not_asked_for(group: Group, found: Mapping[tuple[int, int], Result], per_seed: bool) -> Iterator[tuple[str, str]]:
    """Yield runs of grid points that dev did not choose: only the winner runs the other seeds."""
    if per_seed or len(group.points) == 1:
        return
    first = group.seeds[0]
    winner = winning_point(group, found, first)
    for point, seed in found:
        if seed != first and point != winner:
            chosen = "none" if winner is None else _spelled(group.points[winner])
            yield "selection", f"seed {seed} ran {_spelled(group.points[point])}, dev on seed {first} chooses {chosen}"


def _missing_entries(name: str, expected: Expected, results: Sequence[Result]) -> Iterator[Remark]:
    """Yield the table entries that a row has in the suite and not here, on the backbones on which it is here."""
    there = {(run.cell.label, run.cell.backbone) for run in results if run.cell.suite == name}
    entries = {
        (run.cell.label, run.cell.task, run.cell.backbone, None if run.cell.few_shot is None else run.cell.few_shot.k)
        for run in results
        if run.cell.suite == name
    }
    for group in expected.groups:
        own = (group.label, group.task, group.backbone, group.k)
        if (group.label, group.backbone) in there and own not in entries and not group.is_source:
            place = _place(next(iter(group.cells.values())))
            yield Remark(place, "seeds", f"row {group.label} has no result of this task, which suite {name} asks for")


def _against_protocol(runs: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Hold the runs of an entry against their protocol as it is shipped: keys, settings, seeds, the choice of dev."""
    for run in runs:
        changed = run.cell.protocol.overrides
        if changed:
            yield "protocol", f"changes {', '.join(f'{key}={value}' for key, value in sorted(changed.items()))}"
    yield from _forged_protocol(runs)
    cell = runs[0].cell
    try:
        protocol = resolve_protocol(ProtocolReference(name=cell.protocol.name, version=cell.protocol.version))
    except UserError:
        return  # told above
    scope = _scope(cell)
    for run in runs:
        yield from _settings_against(run, protocol)
    # a search may be on the first seed alone; the winner then has the others
    lacking = set(protocol.seeds(scope)) - {run.cell.seed for run in runs}
    if lacking and not all(run.is_answered_from_files for run in runs):
        yield "seeds", f"lacks seeds {', '.join(map(str, sorted(lacking)))} of the protocol"
    yield from _selection_of(runs)


def _selection_of(runs: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Choose the grid point again from the dev scores of the searches that are here."""
    if not any(run.cell.grid for run in runs):
        return
    by_point: dict[str, dict[int, Result]] = defaultdict(dict)
    # repeats choose nothing; of equal scores the first asked wins, as in a table
    for run in in_order_asked(runs):
        if run.cell.repeat == 1:
            by_point[_spelled(run.cell.grid)][run.cell.seed] = run
    # a grid's number and a trial's of a search behind it may be the same
    numbers = sorted({run.cell.grid_index for own in by_point.values() for run in own.values()})
    if numbers != list(range(len(numbers))):
        yield "seeds", f"lacks points of its grid: has {', '.join(map(str, numbers))}, counted from 0"
        return
    searched = sorted({run.cell.search_seed for run in runs})
    points = list(by_point)
    for search in searched:
        if any(search not in own for own in by_point.values()):
            yield "seeds", f"lacks points of its grid on seed {search}, on which it was searched"
            continue
        best = best_point([by_point[point][search] for point in points])
        for point, own in by_point.items():
            for seed, run in own.items():
                if run.cell.search_seed == search and seed != search and (best is None or point != points[best]):
                    yield "selection", f"seed {seed} ran {_spelled(run.cell.grid)}, which dev on seed {search} " \
                                       "does not choose"  # fmt: skip


def _forged_protocol(runs: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Yield protocols that are not shipped here, and keys that a result states otherwise than its protocol."""
    for run in runs:
        try:
            acting = resolve_protocol(run.cell.protocol).acting(_scope(run.cell))
        except UserError as error:
            yield "protocol", error.problem
            continue
        for key in dict.fromkeys([*acting, *run.protocol]):
            if run.protocol.get(key) != acting.get(key):
                yield "protocol", f"{key} is said to be {run.protocol.get(key)}, the protocol has {acting.get(key)}"


def _settings_against(run: Result, protocol: Protocol) -> Iterator[tuple[str, str]]:
    """Yield the settings of a cell that its protocol sets otherwise; a rule trains nothing, so it has no recipe."""
    cell = run.cell
    scope, task = _scope(cell), all_tasks().get(cell.task)
    recipe = cell.recipe.model_dump(mode="json")
    is_rule = run.backbone is not None and not run.backbone.num_params
    set_recipe = {} if is_rule else protocol.recipe(scope, _num_train(cell))
    if run.is_answered_from_files:
        set_recipe = {key: value for key, value in set_recipe.items() if key in ANSWERING}
    wanted = {f"recipe.{key}": value for key, value in set_recipe.items()}
    wanted |= {f"hp.{key}": value for key, value in protocol.hp(scope).items() if key in cell.hp}
    has = {**{f"recipe.{key}": value for key, value in recipe.items()},
           **{f"hp.{key}": value for key, value in cell.hp.items()}}  # fmt: skip
    if task is not None and cell.definition is None:
        rules = protocol.task_fields(cell.task, task.benchmark)
        keys = dict.fromkeys([*rules, *cell.task_rules])
        wanted |= {f"task.{key}": rules.get(key) for key in keys}
        has |= {f"task.{key}": cell.task_rules.get(key) for key in keys}
    for key, value in wanted.items():
        allowed = value["sweep"] if isinstance(value, dict) and "sweep" in value else [value]
        if has.get(key) not in allowed:
            told = " or ".join(map(str, allowed))
            yield "protocol", f"{key} is {has.get(key)}, protocol {protocol.reference.name} sets {told}"


def _num_train(cell: Cell) -> int | None:
    """Return the published number of training rows, by which a protocol tells large tasks from small ones."""
    names = [cell.task] if cell.mixture is None else [part.task for part in cell.mixture.parts]
    sizes = [task.sizes[0] if task is not None and task.sizes else None for task in map(all_tasks().get, names)]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _scope(cell: Cell) -> Scope:
    """Where a cell stands, for the keys of a protocol."""
    task = all_tasks().get(cell.task)
    benchmark = "Own" if cell.definition is not None else "Mixtures" if task is None else task.benchmark
    return Scope(cell.task, benchmark, cell.method, cell.backbone, cell.few_shot is not None)


def _nearest(cell: Cell, others: Sequence[Cell]) -> str:
    """Return in which settings a cell differs from the one of a suite that is nearest to it."""
    own = flat_settings(cell, NO_IDENTITY)
    theirs = [flat_settings(other, NO_IDENTITY) for other in others]
    nearest = min(theirs, key=lambda settings: len(differing_keys(own, settings)))
    keys = differing_keys(own, nearest)[:MOST_TOLD]
    return ", ".join(f"{key} is {own.get(key)}, not {nearest.get(key)}" for key in keys)


def _spelled(point: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items()) or "its one point"
