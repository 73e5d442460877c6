"""Computes every metric again from the stored predictions and compares it with what the results say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.data import METRICS, TRUST, compute_metrics, count_unreadable, is_trusted, mean_score
from harness.errors import UserError
from harness.results.predictions import Answers, read_answers, split_of
from harness.results.schema import MetricRecord, Result, SplitScore
from harness.results.selection import results_by_task
from harness.results.store import predictions_path

TOLERANCE = 1e-6
"""Percent points by which a score may differ. Scores are rounded to 1e-9, and another machine may sum in another order;
one row in a million moves an accuracy by 1e-4."""


@dataclass
class Rescored:
    """What was recomputed, and what differs."""

    num_runs: int = 0
    num_scores: int = 0
    moved: list[str] = field(default_factory=list)
    """One line per number that differs from the result, and per file that cannot be read."""
    refused: list[str] = field(default_factory=list)
    """One line per run with a metric that would run code and that the user has not allowed by name."""


def rescore_folder(scanned: Iterable[tuple[Path, Result]]) -> Rescored:
    """Recompute the dev and test metrics of every finished run.

    A result may come from anybody, so a metric that would run code is loaded only if the user has allowed it by name.
    """
    made = Rescored()
    for path, result in _with_wholes(scanned, made):
        if result.status != "done" or result.metrics is None:
            continue
        splits = [(name, split) for name, split in (("dev", result.dev), ("test", result.test)) if split is not None]
        code = sorted({name for _, split in splits for name in split.metrics if not is_trusted(name)})
        if code:
            made.refused.append(f"{path}: not recomputed, since {', '.join(code)} is code; {TRUST} names what may run")
            continue
        made.num_runs += 1
        try:
            answers = read_answers(predictions_path(path), result.files.predictions)
        except UserError as error:
            made.moved.append(str(error))
            continue
        for split, stored in splits:
            made.num_scores += 1 + len(stored.metrics)
            where = f"{path}: {split}"
            try:
                found = answers.get(split_of(result, split), Answers([], []))
                made.moved += _differences(where, stored, found, result.metrics)
            except (UserError, ValueError, KeyError, ArithmeticError) as error:  # answers that do not suit the metric
                made.moved.append(f"{where}: cannot be recomputed: {error}")
    return made


def _with_wholes(scanned: Iterable[tuple[Path, Result]], made: Rescored) -> Iterator[tuple[Path, Result]]:
    """Yield one result per task, and hold the scores of each mixture against those of its tasks."""
    for path, whole in scanned:
        yield from ((path, part) for part in results_by_task(whole))
        splits = [(name, split) for name, split in (("dev", whole.dev), ("test", whole.test)) if split is not None]
        if whole.cell.mixture is None or whole.status != "done" or whole.metrics is None:
            continue
        for name, split in splits:
            if split.parts:
                made.num_scores += 1 + len(split.metrics)
                made.moved += _whole_differences(f"{path}: {name}", split, whole.metrics)


def _whole_differences(where: str, stored: SplitScore, record: MetricRecord) -> Iterator[str]:
    """One line per number of a mixture that does not follow from those of its tasks, as training computes it.

    Its score and its selection metric are the means of theirs, its counts the sums.
    """
    parts = stored.parts
    own = {name: record.parts[name].selection for name in parts if name in record.parts}
    if any(name not in own or own[name] not in part.metrics for name, part in parts.items()):
        yield f"{where} {record.selection}: what selects a task of the mixture is not stored"
        return
    selected = mean_score(part.metrics[own[name]] for name, part in parts.items())
    pairs = [("score", stored.score, mean_score(part.score for part in parts.values()))]
    pairs += [(name, value, selected) for name, value in stored.metrics.items() if name == record.selection]
    for name, old, new in pairs:
        if not abs(old - new) <= TOLERANCE:
            yield f"{where} {name} of the mixture: stored {old:.4f}, its tasks give {new:.4f} ({new - old:+z.4f})"
    if set(stored.metrics) != {record.selection}:
        found = ", ".join(stored.metrics) or "none"
        yield f"{where}: a mixture has the metric {record.selection} alone, stored are {found}"
    for count, old, whole in (
        ("rows", stored.num_rows, sum(part.num_rows for part in parts.values())),
        ("unreadable answers", stored.num_unreadable, sum(part.num_unreadable for part in parts.values())),
    ):
        if old != whole:
            yield f"{where} {count} of the mixture: stored {old}, its tasks give {whole}"


def _differences(where: str, stored: SplitScore, answers: Answers, record: MetricRecord) -> Iterator[str]:
    """One line, beginning with `where`, per number of a split that comes out differently."""
    if len(answers.predictions) != stored.num_rows:
        yield f"{where}: {stored.num_rows} rows scored, {len(answers.predictions)} predictions stored"
        return
    anew = compute_metrics(list(stored.metrics), answers.predictions, answers.references, record.labels)
    pairs = [(name, stored.metrics[name], value) for name, value in anew.items()]
    if set(record.reported) <= set(anew):
        pairs.append(("score", stored.score, mean_score(anew[name] for name in record.reported)))
    else:
        yield f"{where} score: its metrics {', '.join(record.reported)} are not all stored"
    for name, old, new in pairs:
        # written this way round so that a stored nan differs too
        if not abs(old - new) <= TOLERANCE:
            label = METRICS[name].label if name in METRICS else name
            yield f"{where} {label}: stored {old:.4f}, recomputed {new:.4f} ({new - old:+z.4f})"
    # a result does not say whether a task without labels asks for numbers: either count may be the right one
    kinds = (False,) if record.labels else (False, True)
    counts = [count_unreadable(answers.predictions, record.labels, numeric, answers.references) for numeric in kinds]
    if stored.num_unreadable not in counts:
        yield f"{where} unreadable answers: stored {stored.num_unreadable}, recomputed {counts[-1]}"
