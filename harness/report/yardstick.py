"""What a score was measured with. Entries of one column that were measured with different things are never ranked.

Rows, references, metrics with their versions, and the version of the task decide what a score means. The entries that
share all of these with most others of the column are compared; each other one stands apart, and says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from harness.results import Answers, Result

KINDS = ("rows", "references", "metrics", "task versions")
"""In what two yardsticks may differ, as tables name it."""
Yardstick = tuple[Hashable, ...]
"""A value for each of KINDS; None where a result does not say, which fits any."""
Name = TypeVar("Name", bound=Hashable)
Reader = Callable[[Result], Answers | None]
"""Reads the test answers of a run; None where they are missing or were changed."""


def yardsticks(runs: Iterable[Result]) -> set[Yardstick]:
    """What each of the runs was measured with, each once. Runs without a score are left out."""
    return {_yardstick(run) for run in runs if run.test is not None}


def kinds_apart(runs: Iterable[Result]) -> list[str]:
    """Which of KINDS differ among runs."""
    return _differing(yardsticks(runs))


def find_apart(runs: Mapping[Name, Sequence[Result]], read: Reader | None = None) -> dict[Name, str]:
    """Of the entries of one column those that may not be compared with the rest -> why. `runs` is entry -> its runs.

    Most entries of a column share a yardstick and are compared. If two yardsticks have as many entries, or the runs
    of an entry differ in it, there is nothing to compare those with.

    A result names its rows and the limit at which references were cut, not the references: two tokenizers cut one text
    at the same limit to different ones. With `read`, which gives the test answers of a run, those that stand beside the
    results are compared too. Tests need no `read`: they pair no runs whose references differ.
    """
    apart = _apart({name: yardsticks(items) for name, items in runs.items()})
    if read is None:
        return apart
    compared = {name: items for name, items in runs.items() if name not in apart}
    stored = {name: {_references(run, read) for run in items if run.test} for name, items in compared.items()}
    return apart | _apart(stored)


def _references(run: Result, read: Reader) -> Yardstick:
    """The yardstick of a run as far as its stored references are one."""
    answers = read(run)
    return (None, None if answers is None else answers.rows, None, None)


def _apart(measured: Mapping[Name, set[Yardstick]]) -> dict[Name, str]:
    """Of entries and their yardsticks those that differ from most -> why."""
    found = {name: sticks for name, sticks in measured.items() if sticks}
    if len(set().union(*found.values())) < 2:
        return {}
    usual = [_usual(kind, found.values()) for kind in range(len(KINDS))]
    # what a result does not say is taken to be as with most others: older results say less
    full = {
        name: {tuple(u if v is None else v for v, u in zip(stick, usual, strict=True)) for stick in sticks}
        for name, sticks in found.items()
    }
    counts = Counter(next(iter(sticks)) for sticks in full.values() if len(sticks) == 1)
    ordered = counts.most_common(2)
    has_most = bool(ordered) and (len(ordered) == 1 or ordered[0][1] > ordered[1][1])
    common = ordered[0][0] if has_most else None
    apart = {}
    for name, sticks in full.items():
        if len(sticks) > 1:
            apart[name] = f"its runs were scored with different {_listed(_differing(sticks))}: not ranked"
        elif common is None:
            kinds = _differing(set().union(*full.values()))
            apart[name] = f"entries of this column were scored with different {_listed(kinds)}: not ranked"
        elif sticks != {common}:
            apart[name] = f"scored with other {_listed(_differing({common, *sticks}))} than the rest: not ranked"
    return apart


def _yardstick(run: Result) -> Yardstick:
    data, metrics = run.data, run.metrics
    cuts = data.cuts if data else None
    is_cut = cuts is not None and cuts.cuts_references and bool(cuts.targets.get("test"))
    return (
        data.fingerprint if data else None,
        # the fingerprint of rows holds their references too; here counts where those were cut
        (cuts.target_limit if is_cut else 0) if cuts else None,
        None if metrics is None else (*metrics.reported, *sorted(_versions(metrics.reported, metrics.signatures))),
        run.cell.task_version,
    )


def _versions(reported: Sequence[str], signatures: Mapping[str, str]) -> list[str]:
    return [f"{name} {text}" for name, text in signatures.items() if name in reported]


def _usual(kind: int, found: Iterable[set[Yardstick]]) -> Hashable:
    counts = Counter(stick[kind] for sticks in found for stick in sticks if stick[kind] is not None)
    return counts.most_common(1)[0][0] if counts else None


def _differing(sticks: Iterable[Yardstick]) -> list[str]:
    values = list(zip(*sticks, strict=True))
    return [kind for kind, items in zip(KINDS, values, strict=False) if len({i for i in items if i is not None}) > 1]


def _listed(kinds: Sequence[str]) -> str:
    return " and ".join(kinds)
