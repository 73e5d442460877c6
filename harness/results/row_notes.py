"""Sentences on the rows of a result: what a reader has to know before trusting a score.

They are printed while training runs, stand as footnotes under tables, and are shown on the pages of tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from harness.data import DataRecord
from harness.results.schema import Result


def notes_on(task: str, record: DataRecord) -> list[str]:
    """One sentence for each of: source texts that were cut, answers that were cut, splits with a single label."""
    if record.parts:  # a mixture: its tasks have limits and splits of their own
        return [note for name, part in record.parts.items() for note in notes_on(name, part)]
    sizes = {"train": record.num_train, "dev": record.num_dev, "test": record.num_test}
    notes = []
    cuts = record.cuts
    if cuts is not None and any(cuts.sources.values()):
        counts = _counts(cuts.sources, sizes)
        notes.append(f"{task}: {counts} source texts are longer than {cuts.source_limit:,} tokens and were cut there")
    if cuts is not None and any(cuts.targets.values()):
        counts = _counts(cuts.targets, sizes)
        # a prediction is never longer than the limit, so it cannot equal a whole reference that is: the row is lost
        rest = "their references too" if cuts.cuts_references else "references are whole, no longer answer is written"
        notes.append(
            f"{task}: {counts} answers are longer than {cuts.target_limit:,} tokens and were cut there; {rest}"
        )
    notes += [f"{task}: all {sizes[split]:,} {split} rows have the label '{label}'"
              for split, label in record.one_class.items()]  # fmt: skip
    return notes


def data_notes(results: Iterable[Result]) -> list[str]:
    """The sentences of `notes_on` for all results, each sentence once."""
    found = (note for result in results if result.data for note in notes_on(result.cell.task, result.data))
    return list(dict.fromkeys(found))


def overlaps(results: Iterable[Result]) -> dict[str, str]:
    """Task -> a sentence on the dev and test rows whose text also stands in train; tasks without any are missing.

    The sentence gives a span where runs differ: few-shot runs train on different rows, and so share different ones
    with dev and test.
    """
    counts: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for result in results:
        if result.data is not None:
            counts[result.cell.task][result.data.num_dev + result.data.num_test].add(result.data.num_duplicates)
    return {
        task: _overlap_sentence(task, by_total)
        for task, by_total in sorted(counts.items())
        if any(map(any, by_total.values()))
    }


def _overlap_sentence(task: str, by_total: dict[int, set[int]]) -> str:
    """`by_total`: number of dev and test rows -> the numbers of them that runs found in train."""
    shares = " or ".join(f"{_span(found)} of {total:,}" for total, found in sorted(by_total.items()))
    return f"{task}: {shares} dev and test rows also stand in train, which rewards memory"


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def _counts(cut: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """`cut` and `sizes` are rows per split: "3 of 100 train, 1 of 20 dev and 2 of 20 test"."""
    *first, last = [f"{count:,} of {sizes[split]:,} {split}" for split, count in cut.items() if count]
    return f"{', '.join(first)} and {last}" if first else last
