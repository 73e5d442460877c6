"""The source cells behind runs: what was trained so that they could start from it (`init_from`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness.results import Result

Group = tuple[str, str, str, str, str]
"""(suite, label, task, backbone, group_id): the runs of one table entry, or of one source that is in no table."""


class SourceRuns:
    """Finds the source cells of runs among all results that were read."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._by_id: dict[tuple[str, str], Result] = {}
        self._groups: dict[Group, list[Result]] = defaultdict(list)
        for result in results:
            if result.cell.repeat == 1:
                self._by_id[result.cell.label, result.cell_id] = result
                self._groups[_group(result)].append(result)

    def behind(self, runs: Sequence[Result]) -> tuple[list[Result], int]:
        """Return what was trained before `runs` could start, each cell once, and how many sources are not here.

        Of each source that is its run, all points of the search that chose it, and what those started from.
        """
        found: dict[tuple[str, str], Result] = {}
        missing: set[tuple[str, str]] = set()
        waiting = list(runs)
        while waiting:
            run = waiting.pop()
            for start, record in zip(run.cell.init_from, run.starts, strict=False):
                if record.cell_id is None:  # a file: nobody knows what it took
                    continue
                key = start.label, record.cell_id
                if key not in self._by_id:
                    missing.add(key)
                    continue
                for source in self._with_search(self._by_id[key]):
                    own = source.cell.label, source.cell_id
                    if own not in found:
                        found[own] = source
                        waiting.append(source)
        return list(found.values()), len(missing)

    def _with_search(self, run: Result) -> list[Result]:
        """A source and the points among which it was chosen, which are those of the seed that was searched."""
        searched = [other for other in self._groups[_group(run)] if other.cell.seed == run.cell.search_seed]
        return [run, *searched] if len(searched) > 1 else [run]


def _group(result: Result) -> Group:
    cell = result.cell
    return cell.suite, cell.label, cell.task, cell.backbone, result.group_id
