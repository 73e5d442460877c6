"""What a reader has to know before trusting a score: its rows, what runs differ in, where and when they were made.

The sentences are printed while training runs, stand as footnotes under tables, and are shown on the pages of tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from harness.data import DataRecord
from harness.results.schema import Result


def notes_on(task: str, record: DataRecord) -> list[str]:
    """A sentence for each of: rows left out, sources or answers cut, answers too long to write, splits of one label."""
    if record.parts:  # a mixture: its tasks have limits and splits of their own
        return [note for name, part in record.parts.items() for note in notes_on(name, part)]
    sizes = {"train": record.num_train, "dev": record.num_dev, "test": record.num_test}
    notes = []
    if record.whole:
        parts = {split: sizes[split] for split in record.whole}
        notes.append(f"{task}: {_counts(parts, record.whole)} rows are used, as the suite says under rows")
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
    if cuts is not None and record.writing is not None and any(cuts.unwritten.values()):
        counts, limit = _counts(cuts.unwritten, sizes), record.writing.max_new_tokens
        notes.append(f"{task}: {counts} answers are longer than the {limit:,} tokens that are written at most")
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


COMMON_TO_AN_ENTRY = ("method source", "rows", "prompt forms", "backbone weights")
"""What all runs of one entry must share: a mean over runs that differ in it means nothing."""
COMMON_TO_A_COLUMN = ("protocols", "rows", "prompt forms", "backbone weights")
"""What all runs of one column must share for its scores to be comparable. Its methods differ, of course."""


def find_differences(results: list[Result], kinds: Sequence[str]) -> list[str]:
    """Which of `kinds` (COMMON_TO_AN_ENTRY or COMMON_TO_A_COLUMN) differ between the results that have it."""
    trained = [run for run in results if run.backbone and run.backbone.num_params]
    fingerprints = {
        "protocols": {run.cell.protocol.title for run in results},
        "method source": {run.method_sha256 for run in results},
        "rows": {run.data.fingerprint for run in results if run.data},
        # a rule reads no prompt
        "prompt forms": {repr(run.data.prompts) for run in trained if run.data},
        "backbone weights": {run.backbone.fingerprint for run in trained if run.backbone},
    }
    return [kind for kind in kinds if len(fingerprints[kind]) > 1]


def commits_of(results: Iterable[Result]) -> list[str]:
    """The commits of the harness that made the results, 10 hex digits each, as far as results name them."""
    made = [r.provenance for r in results]
    return sorted(
        {f"{p['commit'][:10]}{' with local changes' if p.get('dirty') else ''}" for p in made if p.get("commit")}
    )


def origin_of(results: list[Result]) -> str:
    """One line on protocols, dates, commits, torch versions and hardware; what the results do not state is left out."""
    days = sorted({r.finished_at[:10] for r in results if r.finished_at})
    made = [r.provenance for r in results]
    commits = commits_of(results)
    machines = sorted({f"{p['processor']} ({p['num_cpus']} CPUs)" for p in made if p.get("processor")})
    devices = sorted({p["device"] for p in made if p.get("device") not in (None, "cpu", "unknown")})
    torch = sorted({p["versions"]["torch"] for p in made if p.get("versions", {}).get("torch")})
    texts = [
        "Protocol " + " and ".join(sorted({r.cell.protocol.title for r in results})),
        "Runs of " + " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "commit " + ", ".join(commits) if commits else "",
        *("torch " + version for version in torch),
        *machines,
        *devices,
    ]
    return "; ".join(text for text in texts if text)
