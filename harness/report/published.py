"""Published numbers: what papers and their code repositories print, to show beside measured scores.

`harness/published/NAME.csv` is one record, with a number per line; its columns are the fields of `Number`. The files
state facts with their sources: no run of the harness changes them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data import METRICS, mean_score
from harness.errors import UserError, require_choice
from harness.results import Result

FOLDER = Path(__file__).parent / "published_numbers"


@dataclass(frozen=True, kw_only=True)
class Number:
    """One printed number and where it is printed. Empty texts and None stand for what the source does not say."""

    source: str
    """Paper or repository, with its version."""
    table: str
    """Table, figure or section, as the source calls it."""
    role: str
    """main (methods compared), ablation (parts or settings of one method), claim (running text), size (counts)."""
    method: str
    params: str
    """Trainable parameters as printed."""
    backbone: str
    benchmark: str
    task: str
    """The harness's name of the task; `average` is the printed mean over the benchmark."""
    metric: str
    split: str
    """dev or test for a score, otherwise empty."""
    k_shot: int | None
    """Training rows in a few-shot setting; None for the whole training split."""
    value: float | None
    """Percent points for scores; None where the source has a dash."""
    std: float | None
    cited: str
    """Where the source itself took the number from; empty if it measured it."""
    note: str


@dataclass(frozen=True)
class PublishedRow:
    """The numbers of one method on the tasks of a board. Such rows are never ranked with measured ones."""

    record: str
    method: str
    k_shot: int | None
    numbers: dict[str, Number]
    """Task -> number."""

    @property
    def name(self) -> str:
        return self.method if self.k_shot is None else f"{self.method} (k={self.k_shot})"

    @property
    def params(self) -> list[str]:
        """Distinct parameter counts as printed."""
        return list(dict.fromkeys(number.params for number in self.numbers.values() if number.params))

    @property
    def common_note(self) -> str:
        """The note that all numbers of the row share; empty if they differ."""
        return common_note(self.numbers.values())

    @property
    def origin(self) -> str:
        """See `origin_of_numbers`."""
        return origin_of_numbers(list(self.numbers.values()))

    def average(self, tasks: Sequence[str]) -> float | None:
        """Unweighted mean over `tasks`; None unless every task has a value."""
        values = [number.value for task, number in self.numbers.items() if task in tasks and number.value is not None]
        return mean_score(values) if values and len(values) == len(tasks) else None


@dataclass(frozen=True)
class PublishedRecord:
    """The published numbers of one source, or of one of its tables."""

    name: str
    numbers: list[Number]

    def rows(
        self, backbone: str, metrics: Mapping[str, str], runs: Mapping[str, Sequence[Result]]
    ) -> list[PublishedRow]:
        """Return the test scores that are comparable with those of a board on `backbone`, in the order of the record.

        `metrics` is task -> label of the board's metric, and numbers in another metric are left out. `runs` is task ->
        runs, and few-shot numbers are left out unless there are runs with the same k. If two tables print a number
        for the same method and task, the first counts.
        """
        shots_of_task = {task: {self.shots_of(run) for run in found} for task, found in runs.items()}
        found: dict[tuple[str, int | None], PublishedRow] = {}
        for number in self.numbers:
            shots = shots_of_task.get(number.task) or {None}
            label = METRICS[number.metric].label if number.metric in METRICS else None
            of_board = number.task in metrics and label == metrics[number.task] and number.split == "test"
            if of_board and number.backbone == record_spelling(backbone) and number.k_shot in shots:
                key = (number.method, number.k_shot)
                row = found.setdefault(key, PublishedRow(self.name, *key, {}))
                row.numbers.setdefault(number.task, number)  # the first table that prints it counts
        return list(found.values())

    def shots_of(self, run: Result) -> int | None:
        """The k of a run, as the record counts it; None for the whole training split.

        A run without a few-shot draw may still have been trained on a small file: then its number of rows decides.
        """
        if run.cell.few_shot is not None:
            return run.cell.few_shot.k
        known = {number.k_shot for number in self.numbers if number.k_shot is not None}
        return _nearest_k(run.data.num_train, known) if run.data else None


def record_names() -> list[str]:
    """Names of all records, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load_record(name: str) -> list[Number]:
    """Return every number of the record `name`. Raises UserError if there is no such record."""
    known = require_choice(name, record_names(), kind="published record", where="NAME of fidelity or --published")
    path = FOLDER / f"{known}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [_number(line) for line in csv.DictReader(file)]


def find_published(spelling: str) -> PublishedRecord:
    """Return the record that `spelling` names: `NAME`, or `NAME:TABLE` for one table as the source calls it.

    `NAME` alone leaves out ablations, claims in the running text and sizes, which are no comparisons of methods. Raises
    UserError if there is no such record or table.
    """
    name, colon, table = spelling.partition(":")
    numbers = load_record(name)
    if not colon:
        return PublishedRecord(name, [number for number in numbers if number.role == "main"])
    tables = _distinct(number.table for number in numbers)
    if table not in tables:
        problem = f"'{name}' has no table '{table}'"
        raise UserError(problem, where="--published", value=table, choices=tables)
    return PublishedRecord(spelling, [number for number in numbers if number.table == table])


def common_note(numbers: Iterable[Number]) -> str:
    """The note that all numbers share; empty if they differ."""
    notes = {number.note for number in numbers}
    return notes.pop() if len(notes) == 1 else ""


def origin_of_numbers(numbers: Sequence[Number]) -> str:
    """One line: the sources with their tables, where these took the numbers from, and the note that all share."""
    printed = []
    for source in _distinct(number.source for number in numbers):
        tables = _distinct(number.table for number in numbers if number.source == source)
        printed.append(f"{source}, {' and '.join(tables)}")
    cited = _distinct(number.cited for number in numbers)
    texts = [*printed, f"cited there from {' and '.join(cited)}" if cited else "", common_note(numbers)]
    return "; ".join(text for text in texts if text)


def _number(line: dict[str, str]) -> Number:
    texts = {key: text for key, text in line.items() if key not in ("k_shot", "value", "std")}
    return Number(
        **texts,
        k_shot=int(line["k_shot"]) if line["k_shot"] else None,
        value=float(line["value"]) if line["value"] else None,
        std=float(line["std"]) if line["std"] else None,
    )


def _nearest_k(size: int, known: Iterable[int]) -> int | None:
    """The k that a training split of `size` rows stands for.

    Papers draw the same number of rows of each class. In a task of three classes, such as CB, up to two of the k rows
    are then missing: 15 of 16, 30 of 32.
    """
    return next((k for k in known if k - 2 <= size <= k), None)


def record_spelling(backbone: str) -> str:
    """The name of a backbone as the records spell it: `Llama-2-7b-hf` -> `llama-2-7b`."""
    return backbone.lower().removesuffix("-hf")


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))
