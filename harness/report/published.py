"""Numbers that papers and their code repositories print, to stand beside measured ones.

`harness/published/NAME.csv` holds one number per line. Its columns are the fields of `Number`. The files are a
record of facts with their sources: no run of the harness ever changes them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError, require_choice
from harness.metrics import METRICS
from harness.schema import Result
from harness.scores import mean_score

FOLDER = Path(__file__).parent.parent / "published"


@dataclass(frozen=True, kw_only=True)
class Number:
    """One printed number and where it stands; an empty text or None is what the source does not say."""

    source: str
    """Paper or repository, with its version."""
    table: str
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
    """Training rows in a few-shot setting; None is the whole training split."""
    value: float | None
    """Percent points for scores; None where the source has a dash."""
    std: float | None
    cited: str
    """From where the source itself took the number."""
    note: str


@dataclass(frozen=True)
class PublishedRow:
    """What one method of a record scores on the tasks of a board; never ranked with measured rows."""

    record: str
    method: str
    k_shot: int | None
    numbers: dict[str, Number]
    """Per task."""

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
        notes = {number.note for number in self.numbers.values()}
        return notes.pop() if len(notes) == 1 else ""

    @property
    def origin(self) -> str:
        """One line: sources, tables, and from where the sources took the numbers."""
        numbers = self.numbers.values()
        places = []
        for source in _distinct(number.source for number in numbers):
            tables = _distinct(number.table for number in numbers if number.source == source)
            places.append(f"{source}, {' and '.join(tables)}")
        cited = _distinct(number.cited for number in numbers)
        parts = [*places, f"cited there from {' and '.join(cited)}" if cited else "", self.common_note]
        return "; ".join(part for part in parts if part)

    def average(self, tasks: Sequence[str]) -> float | None:
        """Unweighted mean over `tasks`; None unless each has a value."""
        values = [number.value for task, number in self.numbers.items() if task in tasks and number.value is not None]
        return mean_score(values) if values and len(values) == len(tasks) else None


@dataclass(frozen=True)
class Record:
    """All numbers of one source, or of one table of it."""

    name: str
    numbers: list[Number]

    def rows(
        self, backbone: str, metrics: Mapping[str, str], runs: Mapping[str, Sequence[Result]]
    ) -> list[PublishedRow]:
        """Return the test scores on a backbone that are comparable with a board's, in the order of the record.

        `metrics` holds the label of what is reported per task of the board, `runs` its runs: numbers in another
        metric are left out, and few-shot numbers stand beside few-shot runs only. Where two tables print a number
        for the same method and task, the first counts.
        """
        shots_of_task = {task: {self.shots_of(run) for run in found} for task, found in runs.items()}
        found: dict[tuple[str, int | None], PublishedRow] = {}
        for number in self.numbers:
            shots = shots_of_task.get(number.task) or {None}
            label = METRICS[number.metric].label if number.metric in METRICS else None
            of_board = number.task in metrics and label == metrics[number.task] and number.split == "test"
            if of_board and number.backbone == bare(backbone) and number.k_shot in shots:
                key = (number.method, number.k_shot)
                row = found.setdefault(key, PublishedRow(self.name, *key, {}))
                row.numbers.setdefault(number.task, number)
        return list(found.values())

    def shots_of(self, run: Result) -> int | None:
        """How many training rows a run was given, as the record's k; None for the whole training split.

        A run that says of no draw may have been given a small file: its number of rows counts then.
        """
        if run.cell.few_shot is not None:
            return run.cell.few_shot.k
        known = {number.k_shot for number in self.numbers if number.k_shot is not None}
        return _shots(run.data.num_train, known) if run.data else None


def names() -> list[str]:
    """Names of all records."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load(name: str) -> list[Number]:
    """Return every number of a record. Raises UserError if there is none of that name."""
    path = FOLDER / f"{require_choice(name, names(), kind='published record', where='--published')}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [_number(line) for line in csv.DictReader(file)]


def find(spelling: str) -> Record:
    """Return the record `NAME`, its comparisons of methods, or `NAME:TABLE`, one table as the source calls it.

    Raises UserError if there is no such record or table.
    """
    name, colon, table = spelling.partition(":")
    numbers = load(name)
    if not colon:
        return Record(name, [number for number in numbers if number.role == "main"])
    tables = _distinct(number.table for number in numbers)
    if table not in tables:
        problem = f"'{name}' has no table '{table}'"
        raise UserError(problem, where="--published", value=table, choices=tables)
    return Record(spelling, [number for number in numbers if number.table == table])


def _number(line: dict[str, str]) -> Number:
    texts = {key: text for key, text in line.items() if key not in ("k_shot", "value", "std")}
    return Number(
        **texts,
        k_shot=int(line["k_shot"]) if line["k_shot"] else None,
        value=float(line["value"]) if line["value"] else None,
        std=float(line["std"]) if line["std"] else None,
    )


def _shots(size: int, known: Iterable[int]) -> int | None:
    """The k that a training split of `size` rows stands for: classes share k evenly, so up to two may be missing."""
    return next((k for k in known if k - 2 <= size <= k), None)


def bare(backbone: str) -> str:
    """`Llama-2-7b-hf` -> `llama-2-7b`, as the records say it."""
    return backbone.lower().removesuffix("-hf")


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))
