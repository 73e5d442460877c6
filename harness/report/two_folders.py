"""Holds two results folders against each other: cells that both have, cells that one has, settings and origins.

Cells with equal settings have one id, so they are found in both folders. Their answers are compared row by row. A cell
of one folder alone is set beside the cell of the other that differs least from it, and the settings that keep them
apart are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data import is_trusted, mean_score
from harness.report.statistics.intervals import Estimate, Sample, compare_samples, holm
from harness.results import Answers, PredictionFiles, Result, differing_keys, flat_settings, results_by_task
from harness.suite import Cell

Scanned = Sequence[tuple[Path, Result]]
"""A results folder as a scan gives it: path and result of each cell."""
Pairs = list[tuple[Result, Result]]


@dataclass(frozen=True)
class Line:
    """One grid point of a table entry that both folders have, over its seeds."""

    suite: str
    method: str
    point: str
    """The swept settings, "lr=0.3"; empty without a grid."""
    task: str
    backbone: str
    seeds: tuple[int, ...]
    a: float | None
    """Mean test score in the first folder; None where a run has none."""
    b: float | None
    gap: Estimate | None = None
    """Score of the second folder minus that of the first; None where answers cannot be paired."""
    p_value: float | None = None
    adjusted: float | None = None
    """The p-value after Holm's correction over all lines."""
    num_answers: int = 0
    """Test answers of all runs that were compared."""
    num_changed: int = 0
    """Those of them that are another text."""
    problem: str = ""
    """Why answers cannot be paired."""
    repeat: int = 1
    """Which training of the same cells and seeds this is; further ones are no further runs of the first."""

    @property
    def is_equal(self) -> bool:
        """Whether all answers and scores are the same."""
        return not self.problem and not self.num_changed and self.a == self.b


@dataclass(frozen=True)
class OneSided:
    """Cells of a table entry that one folder has and the other lacks."""

    folder: str
    """"A" or "B"."""
    suite: str
    method: str
    task: str
    backbone: str
    num_cells: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """A setting or an origin in which cells differ that are otherwise set beside each other."""

    where: str
    """Of what: "dept on cb, t5-base"; empty for the whole folder."""
    key: str
    a: Any
    b: Any
    num_cells: int


@dataclass
class FolderComparison:
    """What two folders have in common, and where they differ."""

    num_both: int = 0
    """Cells that both have."""
    lines: list[Line] = field(default_factory=list)
    only: list[OneSided] = field(default_factory=list)
    settings: list[Difference] = field(default_factory=list)
    origins: list[Difference] = field(default_factory=list)
    """Commits, versions, hardware, method files, rows and weights. They alone make no difference of the folders."""

    @property
    def differs(self) -> bool:
        """Whether a cell is missing on one side, or has other answers, another score or another end; also where no cell
        is in both, since then nothing was found equal."""
        return bool(self.only) or not self.num_both or not all(line.is_equal for line in self.lines)


def compare_folders(a: Scanned, b: Scanned, *, shared_only: bool = False) -> FolderComparison:
    """Compare two scanned folders; with `shared_only` the cells that both have alone: one may make a part again."""
    matched, only_a, only_b = _match([result for _, result in a], [result for _, result in b])
    if shared_only:
        only_a, only_b = [], []
    neighbours = list(_neighbours(only_a, only_b))
    return FolderComparison(
        num_both=len(matched),
        lines=_lines(matched, PredictionFiles(a), PredictionFiles(b)),
        only=[*_one_sided("A", only_a), *_one_sided("B", only_b)],
        settings=_settings_apart(neighbours),
        origins=_origins_apart([*matched, *neighbours]),
    )


def _match(a: Sequence[Result], b: Sequence[Result]) -> tuple[Pairs, list[Result], list[Result]]:
    """Pair cells by suite, row and id, then by the id alone where that is unique; return what is left on each side."""
    others = {result.key: result for result in b}
    pairs = [(result, others.pop(result.key)) for result in a if result.key in others]
    found = {result.key for result, _ in pairs}
    rest_a, rest_b = [result for result in a if result.key not in found], list(others.values())
    # a suite that was renamed holds the same cells under another key
    by_id = {result.cell_id: result for result in _unique(rest_b)}
    renamed = [(result, by_id[result.cell_id]) for result in _unique(rest_a) if result.cell_id in by_id]
    ids = {result.cell_id for result, _ in renamed}
    left_a, left_b = ([result for result in rest if result.cell_id not in ids] for rest in (rest_a, rest_b))
    return [*pairs, *renamed], left_a, left_b


def _unique(results: Sequence[Result]) -> list[Result]:
    counts = Counter(result.cell_id for result in results)
    return [result for result in results if counts[result.cell_id] == 1]


def _lines(matched: Pairs, files_a: PredictionFiles, files_b: PredictionFiles) -> list[Line]:
    """Return a line for each grid point of each entry, in the order of the first folder."""
    found: dict[tuple[object, ...], Pairs] = defaultdict(list)
    for whole in matched:
        for one, other in zip(*map(results_by_task, whole), strict=True):
            cell = one.cell
            place = (cell.suite, cell.label, spelled_point(cell), cell.task, cell.backbone, one.group_id, cell.repeat)
            found[place].append((one, other))
    lines = [_line(pairs, files_a, files_b) for pairs in found.values()]
    tested = [(index, line.p_value) for index, line in enumerate(lines) if line.p_value is not None]
    corrected = holm([p_value for _, p_value in tested])
    for (index, _), adjusted in zip(tested, corrected, strict=True):
        lines[index] = replace(lines[index], adjusted=adjusted)
    return lines


def _line(pairs: Pairs, files_a: PredictionFiles, files_b: PredictionFiles) -> Line:
    cell = pairs[0][0].cell
    seeds = tuple(sorted({one.cell.seed for one, _ in pairs}))
    a, b = (_mean(side) for side in zip(*pairs, strict=True))
    line = Line(cell.suite, cell.label, spelled_point(cell), cell.task, cell.backbone, seeds, a, b, repeat=cell.repeat)
    ends = [(_end(one), _end(other)) for one, other in pairs]
    if any(one != other for one, other in ends):
        told = Counter(f"{one} in A, {other} in B" for one, other in ends if one != other)
        return replace(line, problem="; ".join(f"{text} ({count})" for text, count in told.items()))
    if a is None:
        return line  # all failed, or left their search: there is nothing to compare
    scored = [(one, other) for one, other in pairs if one.test is not None]
    answers = [(files_a.test_answers(one), files_b.test_answers(other)) for one, other in scored]
    known = [_share_groups(one, other) for one, other in answers if one is not None and other is not None]
    if len(known) < len(answers):
        return replace(line, problem="predictions are missing or were changed")
    if any(one.rows != other.rows for one, other in known):
        return replace(line, problem="other test rows")
    if any((one.units != other.units).any() for one, other in known):
        return replace(line, problem="rows that belong together are others")
    line = replace(
        line,
        num_answers=sum(len(one.predictions) for one, _ in known),
        num_changed=sum(_num_changed(one, other) for one, other in known),
    )
    if line.num_changed == 0:  # 1,000 draws would say the same
        return replace(line, gap=Estimate(0.0, ()), p_value=1.0)
    record = scored[0][0].metrics
    assert record is not None, "a run with a score says how it was scored"
    if not all(map(is_trusted, record.reported)):
        return replace(line, problem="its metric is code, which nobody has allowed by name")
    samples = [
        Sample.of([(pair[0].cell.seeds, found[side]) for pair, found in zip(scored, known, strict=True)],
                  record.reported, record.labels)
        for side in (0, 1)
    ]  # fmt: skip
    gap, p_value = compare_samples(samples[1], samples[0])
    return replace(line, gap=gap, p_value=p_value)


def _share_groups(one: Answers, other: Answers) -> tuple[Answers, Answers]:
    """Give answers that do not say which rows belong together (they are of an earlier version) what the others say."""
    return replace(one, groups=one.groups or other.groups), replace(other, groups=other.groups or one.groups)


def _end(result: Result) -> str:
    """How a cell ended, in one word or two."""
    return "left its search" if result.raced_out_at is not None else result.status


def _mean(results: Iterable[Result]) -> float | None:
    """Return the mean test score of the runs that have one."""
    scores = [result.test.score for result in results if result.test is not None]
    return mean_score(scores) if scores else None


def _num_changed(one: Answers, other: Answers) -> int:
    return sum(text != also for text, also in zip(one.predictions, other.predictions, strict=True))


def spelled_point(cell: Cell) -> str:
    """Return the swept settings of a cell and their values: "lr=0.3 rank=8"."""
    return " ".join(f"{key.split('.', 1)[1]}={value}" for key, value in sorted(cell.grid.items()))


def _one_sided(folder: str, results: Sequence[Result]) -> Iterator[OneSided]:
    found: dict[tuple[str, str, str, str], list[Cell]] = defaultdict(list)
    for result in results:
        cell = result.cell
        found[cell.suite, cell.label, cell.task, cell.backbone].append(cell)
    for place, cells in found.items():
        yield OneSided(folder, *place, num_cells=len(cells), seeds=tuple(sorted({cell.seed for cell in cells})))


def _neighbours(only_a: Sequence[Result], only_b: Sequence[Result]) -> Iterator[tuple[Result, Result]]:
    """Pair cells of one row, task, backbone and seed that differ in as few settings as possible, each cell once."""
    free: dict[tuple[Any, ...], list[tuple[Result, dict[str, Any]]]] = defaultdict(list)
    for result in only_b:
        free[_place(result.cell)].append((result, _settings(result.cell)))
    for result in only_a:
        candidates = free[_place(result.cell)]
        if candidates:
            own = _settings(result.cell)
            nearest = min(candidates, key=lambda item: len(differing_keys(own, item[1])))
            candidates.remove(nearest)
            yield result, nearest[0]


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.label, cell.task, cell.backbone, cell.seeds


def _settings(cell: Cell) -> dict[str, Any]:
    """What may keep cells of one row, task, backbone and seed apart; the name of their suites is part of it."""
    return flat_settings(cell, without=("seed",))


def _settings_apart(pairs: Iterable[tuple[Result, Result]]) -> list[Difference]:
    found: list[tuple[str, str, Any, Any]] = []
    for one, other in pairs:
        a, b, cell = _settings(one.cell), _settings(other.cell), one.cell
        where = f"{cell.label} on {cell.task}, {cell.backbone}"
        found += [(where, key, a.get(key), b.get(key)) for key in differing_keys(a, b)]
    return _counted(found)


def _origins_apart(pairs: Iterable[tuple[Result, Result]]) -> list[Difference]:
    found: list[tuple[str, str, Any, Any]] = []
    for one, other in pairs:
        a, b = dict(_origins(one)), dict(_origins(other))
        found += [(*key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    return _counted(found)


def _counted(found: Iterable[tuple[str, str, Any, Any]]) -> list[Difference]:
    """Join equal differences of several cells. Values may be lists, which no set can hold, so their text is the key."""
    first: dict[str, tuple[str, str, Any, Any]] = {}
    counts: Counter[str] = Counter()
    for item in found:
        first.setdefault(repr(item), item)
        counts[repr(item)] += 1
    return [Difference(*item, counts[text]) for text, item in first.items()]


def _origins(result: Result) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield (of what, key) and value of everything that a result says of where it comes from."""
    made, cell = result.provenance, result.cell
    commit = str(made.get("commit") or "")[:10] + (" with local changes" if made.get("dirty") else "")
    yield ("", "commit"), commit or None
    for key in ("harness", "python", "platform", "processor", "num_cpus", "device"):
        yield ("", key), made.get(key)
    versions = made.get("versions")
    for package, version in versions.items() if isinstance(versions, dict) else ():
        yield ("", str(package)), version
    yield (f"method {cell.method}", "file"), result.method_sha256[:16]
    if result.data is not None:
        yield (f"task {cell.task}", "rows"), result.data.fingerprint
        yield (f"task {cell.task}", "source of rows"), result.data.source
    if result.backbone is not None:
        yield (f"backbone {cell.backbone}", "weights"), result.backbone.fingerprint
