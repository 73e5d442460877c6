"""Dev and test rows whose text also stands in train: what tables say of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from harness.schema import Result


def overlaps(results: Iterable[Result]) -> dict[str, str]:
    """Task -> a sentence on the dev and test rows that also stand in train, for tasks that have some.

    Runs may have been trained on different draws, and so differ in how many these are.
    """
    counts: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        if result.data is not None:
            counts[result.cell.task][result.data.num_dev + result.data.num_test].add(result.data.num_duplicates)
    return {
        task: _sentence(task, of_total) for task, of_total in sorted(counts.items()) if any(map(any, of_total.values()))
    }


def _sentence(task: str, of_total: dict[int, set[int]]) -> str:
    shares = " or ".join(f"{_span(found)} of {total:,}" for total, found in sorted(of_total.items()))
    return f"{task}: {shares} dev and test rows also stand in train, which rewards memory"


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"
