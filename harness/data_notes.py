"""What a result's rows make a reader wary of, as sentences: said while training, under tables and on pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.schema import DataRecord, Result


def notes_on(task: str, record: DataRecord) -> list[str]:
    """One sentence for each of: texts that were cut, answers that were cut, splits with a single class."""
    if record.parts:
        return [note for name, part in record.parts.items() for note in notes_on(name, part)]
    sizes = {"train": record.num_train, "dev": record.num_dev, "test": record.num_test}
    notes = []
    cuts = record.cuts
    if cuts is not None and any(cuts.sources.values()):
        counts = _counts(cuts.sources, sizes)
        notes.append(f"{task}: {counts} source texts are longer than {cuts.source_limit:,} tokens and were cut there")
    if cuts is not None and any(cuts.targets.values()):
        counts = _counts(cuts.targets, sizes)
        rest = "their references too" if cuts.cuts_references else "references are whole, no longer answer is written"
        notes.append(
            f"{task}: {counts} answers are longer than {cuts.target_limit:,} tokens and were cut there; {rest}"
        )
    notes += [f"{task}: all {sizes[split]:,} {split} rows have the label '{label}'"
              for split, label in record.one_class.items()]  # fmt: skip
    return notes


def data_notes(results: Iterable[Result]) -> list[str]:
    """The sentences on all results, each once."""
    found = (note for result in results if result.data for note in notes_on(result.cell.task, result.data))
    return list(dict.fromkeys(found))


def _counts(cut: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    *first, last = [f"{count:,} of {sizes[split]:,} {split}" for split, count in cut.items() if count]
    return f"{', '.join(first)} and {last}" if first else last
