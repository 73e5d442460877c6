"""Reads several result folders as one. A cell that stands in more than one of them counts once, and that is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.suite import Key


@dataclass
class Gathered:
    """The results of some folders."""

    scanned: list[tuple[Path, Result]] = field(default_factory=list)
    """One result per cell, with its path, in the order of folders and paths."""
    reruns: dict[Key, list[Result]] = field(default_factory=dict)
    """By the key of a cell in `scanned`, what other folders hold of it that is another run."""
    notes: list[str] = field(default_factory=list)
    """Sentences on the cells that stand in several folders: which of them counts."""


def gather(folders: Sequence[Path]) -> Gathered:
    """Read the results of all folders. Raises UserError as a scan of one does.

    Of a cell in several folders the first folder's run counts, unless it failed and another did not. A file that is the
    same in both is the same run. Any other is a further run: it is in no mean, and shows how far re-runs lie apart.
    """
    made = Gathered()
    found: dict[Key, list[tuple[Path, Path, Result]]] = defaultdict(list)
    for folder in folders:
        for path, result in ResultStore(folder).scan():
            found[result.key].append((folder, path, result))
    kept: dict[tuple[Path, Path], list[tuple[Result, Result]]] = defaultdict(list)
    for key, items in found.items():
        # sorted keeps the order of folders among equals
        (folder, path, result), *others = sorted(items, key=lambda item: item[2].status != "done")
        made.scanned.append((path, result))
        for other, _, again in others:
            kept[folder, other].append((result, again))
            if again.checksum != result.checksum and again.status == "done":
                made.reruns.setdefault(key, []).append(again)
    made.notes = [_told(*pair, runs) for pair, runs in kept.items()]
    return made


def _told(folder: Path, other: Path, runs: Sequence[tuple[Result, Result]]) -> str:
    """What two folders have in common: files that are the same, runs with equal scores, and runs that differ."""
    copies = sum(again.checksum == result.checksum for result, again in runs)
    gaps = [_gap(result, again) for result, again in runs if again.checksum != result.checksum]
    scored = [gap for gap in gaps if gap is not None]
    text = f"{len(runs):,} cell{'s are' if len(runs) > 1 else ' is'} in {folder} and in {other}"
    parts = [f"{copies:,} as the same file" if copies else ""]
    equal = sum(gap == 0 for gap in scored)
    parts.append(f"{equal:,} as two runs with equal test scores" if equal else "")
    if differing := [gap for gap in scored if gap]:
        parts.append(f"{len(differing):,} as two runs whose test scores lie up to {max(differing):.1f} points apart")
    parts.append(f"{len(gaps) - len(scored):,} with a test score in one or none" if len(gaps) > len(scored) else "")
    return f"{text}: {', '.join(part for part in parts if part)}; the run in {folder} counts"


def _gap(one: Result, other: Result) -> float | None:
    """How far the test scores of two runs lie apart, in points; None if one has none."""
    return None if one.test is None or other.test is None else abs(one.test.score - other.test.score)
