"""Which results count: the best dev score chooses checkpoint and grid point, of equal ones the earliest.

Tables and statistics read the result of a mixture as one result per task (`results_by_task`).

Runner and reports share these functions, so that a table always shows the run that the runner chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.results.schema import Result
from harness.suite import Group, Part, digest


def dev_selection(result: Result) -> float:
    """Return the dev score by which a cell was selected; -inf for one that failed or left its search early."""
    scores = {item.step: item.selection for item in result.dev_history}
    if result.raced_out_at is not None:  # its dev scores are those of an earlier step than the others'
        return float("-inf")
    if result.status != "done" or result.selected_step is None:
        return float("-inf")
    return scores.get(result.selected_step, float("-inf"))


def best_point(results: Sequence[Result | None]) -> int | None:
    """Return the index of the grid point with the best dev score; None if every point failed or is missing."""
    scores = [float("-inf") if result is None else dev_selection(result) for result in results]
    best = max(scores, default=float("-inf"))
    return None if best == float("-inf") else scores.index(best)


def in_order_asked(results: Iterable[Result]) -> list[Result]:
    """Return the points of a table entry in the order in which they were asked for; of equal dev scores the first wins.

    A table entry may hold the points of several searches, each of which numbers its own from 0. So the search that
    began first stands in front. Runner and reports share this order, or a tie would show a point that was not chosen.
    """
    known = list(results)
    begun: dict[str, str] = {}
    for result in known:
        if result.status != "unfit":  # judged anew by each run
            study = result.cell.study
            begun[study] = min(begun.get(study, result.started_at), result.started_at)
    return sorted(known, key=lambda r: (begun.get(r.cell.study, ""), r.cell.grid_index, r.cell_id))


def best_step(history: Iterable[tuple[int, float]]) -> int | None:
    """Return the step whose checkpoint is kept and tested: the one with the best dev score, the earliest of equals.

    `history` is (step, dev score) in the order of steps; None if it is empty.
    """
    selected, best = None, float("-inf")
    for step, score in history:
        if score > best:  # not >=: of equal scores the earliest step wins, as in the papers' code
            selected, best = step, score
    return selected


def chosen_run(group: Group, results: Mapping[tuple[int, int], Result], seed: int) -> Result | None:
    """Return the run of `seed` that other cells start from: the run of the grid point that won on dev.

    It is a failed run if every point failed; None while the search is not finished or the run is missing.
    """
    if group.num_points == 1:
        return results.get((0, seed))
    if group.num_to_come:
        return None
    # with tuning.seeds "first" the grid was searched on the first seed, and `seed` follows its winner
    search = group.cells[(0, seed)].search_seed
    searched = [results.get((point, search)) for point in range(len(group.points))]
    if None in searched:
        return None
    winner = winning_point(group, results, search)
    return searched[0] if winner is None else results.get((winner, seed))


def winning_point(group: Group, results: Mapping[tuple[int, int], Result | None], seed: int) -> int | None:
    """Return the point of a seed with the best dev score, of equal ones the first asked for; None if all failed."""
    found = {at: result for at in range(len(group.points)) if (result := results.get((at, seed))) is not None}
    places = {id(result): at for at, result in found.items()}
    ordered = in_order_asked(found.values())
    best = best_point(ordered)
    return None if best is None else places[id(ordered[best])]


def next_cells(group: Group, results: Mapping[tuple[int, int], Result | None], per_seed: bool) -> list[tuple[int, int]]:
    """Return the (point, seed) keys of `group` that selection asks for, given what is known.

    `results` maps a key to its result; a missing key is not finished. With a grid, the first seed (with `per_seed`,
    every seed) runs all points; then the winner runs the other seeds. A search whose next points are not known yet
    asks for nothing more than the known ones.
    """
    search_seeds = group.seeds if per_seed else group.seeds[:1]
    search = [(point, seed) for seed in search_seeds for point in range(len(group.points))]
    missing = [key for key in search if key not in results]
    if group.num_points == 1:  # nothing to choose, so no seed has to wait for the first
        return [(0, seed) for seed in group.seeds if (0, seed) not in results]
    if missing or per_seed or group.num_to_come:
        return missing
    winner = winning_point(group, results, group.seeds[0])
    if winner is None:  # every point failed on the first seed, so the other seeds would most likely fail too
        return []
    return [(winner, seed) for seed in group.seeds[1:] if (winner, seed) not in results]


def num_to_train(group: Group, results: Mapping[tuple[int, int], Result], per_seed: bool) -> int:
    """Return how many cells selection will ask for from now on, cells that a source shares with the table left out.

    While a search goes on, the best of its points so far stands for its winner: another may still win, whose further
    seeds are then missing too.
    """
    own = [seed for seed in group.seeds if seed not in group.shared_seeds]
    if group.num_points == 1:
        return sum((0, seed) not in results for seed in own)
    searched = group.seeds if per_seed else group.seeds[:1]
    points = range(len(group.points))
    missing = sum((point, seed) not in results for seed in searched for point in points if seed in own)
    missing += group.num_to_come * sum(seed in own for seed in searched)
    if per_seed:
        return missing
    winner, further = winning_point(group, results, group.seeds[0]), [seed for seed in own if seed not in searched]
    if winner is None:  # if all have failed, the winner's seeds are never asked for
        return missing + (len(further) if missing else 0)
    return missing + sum((winner, seed) not in results for seed in further)


def num_to_repeat(
    group: Group, results: Mapping[tuple[int, int], Result], first: Mapping[tuple[int, int], Result], per_seed: bool
) -> int:
    """Return how many cells of a group of repeats will be asked for; `first` are results as in `next_repeats`."""
    if not num_to_train(group, first, per_seed):
        return len(next_repeats(group, results, first))
    count = 0
    for seed in group.seeds:
        search = seed if per_seed else group.seeds[0]
        winner = 0 if group.num_points == 1 else winning_point(group, first, search)
        count += winner is None or (winner, seed) not in results
    return count


def next_repeats(
    group: Group, results: Mapping[tuple[int, int], Result], first: Mapping[tuple[int, int], Result]
) -> list[tuple[int, int]]:
    """Return the (point, seed) keys of a group of repeats that are missing: one per seed, at the point that won.

    `results` are those of the group, `first` those of the group that it repeats. A seed waits for its first run, which
    so trains with other bundle mates; a failed one is not repeated.
    """
    chosen = {seed: chosen_run(group, first, seed) for seed in group.seeds}
    trained = {run.key for run in chosen.values() if run is not None and run.status == "done"}
    # a search has points of earlier ones in front, so that a cell's number in its grid is not its place here. In the
    # order of the group, and not of the results: a run that goes on packs the bundles of one that was never cut off
    wanted = [point for point in group.cells if point in first and first[point].key in trained]
    return [point for point in wanted if point not in results]


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
        "metrics": result.metrics.parts.get(name) if result.metrics else None,
        "dev": result.dev.parts.get(name) if result.dev else None,
        "test": result.test.parts.get(name) if result.test else None,
        "data": result.data.parts.get(name) if result.data else None,
    }
    return result.model_copy(update=changes)
