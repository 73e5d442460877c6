"""Reads the predictions beside results: what each run answered. They may come from anybody, so sizes are limited."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.files import read_bounded
from harness.results.schema import Result
from harness.results.store import predictions_path, split_name

SPLITS = ("dev", "test")
MAX_BYTES = 2**31
"""Limit of a file of predictions, both as it is and unpacked. A Parquet file of some kilobytes can unfold to many
gigabytes; 2 GiB is also what the 32-bit offsets of an Arrow column of texts can address."""
MAX_ROWS = 50_000_000
"""Limit of its rows. The largest known set of dev and test rows has 40,000, so no real file comes near."""


@dataclass(frozen=True)
class Answers:
    """What one run answered on one split, and the right answers."""

    predictions: Sequence[str]
    """[N], one per row."""
    references: Sequence[Sequence[str]]
    """[N], the accepted answers of each row."""
    groups: tuple[int, ...] | None = None
    """[N], the group of each row, such as a question with several answers; None where each row stands for itself, and
    in files of earlier versions."""

    @property
    def units(self) -> NDArray[np.int64]:
        """[N], the unit of each row, from 0 in order of appearance: its group, or the row itself."""
        if self.groups is None:
            return np.arange(len(self.references))
        numbers = {group: number for number, group in enumerate(dict.fromkeys(self.groups))}
        return np.array([numbers[group] for group in self.groups])

    @property
    def rows(self) -> int:
        """Hash of the references. Runs with the same hash answered the same rows, so their answers can be paired."""
        return hash(tuple(tuple(refs) for refs in self.references))

    def __add__(self, other: Answers) -> Answers:
        """Both, without groups: those of two files are numbered apart."""
        return Answers([*self.predictions, *other.predictions], [*self.references, *other.references])


def split_of(result: Result, split: str) -> str:
    """Return the name of a split in a file of predictions: `test`, or `test:cb` for the task cb of a mixture."""
    return split_name(split, result.cell.task if result.cell.mixture else "")


def read_answers(path: Path, sha256: str | None = None) -> dict[str, Answers]:
    """Return split -> answers, from a Parquet file of predictions.

    Raises UserError if the file is missing, is not such a table, or has another SHA-256 than the given one.
    """
    table = read_table(path, sha256)
    splits, predictions = texts(table["split"]), texts(table["prediction"])
    accepted = table["references"].combine_chunks()
    lengths, each = accepted.value_lengths().to_numpy().tolist(), iter(texts(accepted.flatten()))
    references = [list(itertools.islice(each, length)) for length in lengths]
    groups = table["group"].to_pylist() if "group" in table.column_names else None
    found = {}
    for split in dict.fromkeys(splits):
        rows = [i for i, name in enumerate(splits) if name == split]
        own = tuple(groups[i] for i in rows) if groups is not None else (None,)
        found[split] = Answers(
            [predictions[i] for i in rows], [references[i] for i in rows], None if None in own else own
        )
    return found


def read_table(path: Path, sha256: str | None = None) -> Any:
    """Read a Parquet file of predictions as a pyarrow table, and check it. Raises UserError as `read_answers` does."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        content = read_bounded(path, MAX_BYTES, "predictions")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError("is not the file that the run stored: its SHA-256 is another", where=str(path))
        file = pq.ParquetFile(pa.BufferReader(content))
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if file.metadata.num_rows > MAX_ROWS or sum(group.total_byte_size for group in groups) > MAX_BYTES:
            problem = f"unfolds to more than {MAX_ROWS:,} rows or {MAX_BYTES:,} bytes, the limits for predictions"
            raise UserError(problem, where=str(path))
        table = file.read(use_threads=False)  # 700 rows: 0.3 ms of processor time, with threads 0.4
        table.validate(full=True)
        if "group" in table.column_names and not pa.types.is_integer(table["group"].type):
            raise UserError("holds no numbers where groups of rows should be", where=str(path))
        texts = [table["split"], table["prediction"], pc.list_flatten(table["references"])]
        if not all(pa.types.is_string(column.type) or pa.types.is_dictionary(column.type) for column in texts):
            raise UserError("holds no texts where there should be some", where=str(path))
        if (
            any(column.null_count for column in (*texts, table["references"]))
            or 0 in table["references"].combine_chunks().value_lengths().to_pylist()
        ):
            raise UserError("holds rows without answer or reference", where=str(path))
    except (OSError, KeyError, ValueError, TypeError, OverflowError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"cannot be read as predictions: {error}", where=str(path)) from None
    return table


def texts(column: Any) -> list[str]:
    """A column of texts as a list."""
    # by way of numpy: 40,000 texts of a dictionary column take 1.5 ms, with `to_pylist` 55 ms (pyarrow 26)
    whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    texts: list[str] = whole.to_numpy(zero_copy_only=False).tolist()
    return texts


class PredictionFiles:
    """Finds the predictions of results by the paths at which a scan of the folder found them."""

    def __init__(self, scanned: Iterable[tuple[Path, Result]]) -> None:
        self._paths = {result.key: path for path, result in scanned}

    def test_answers(self, result: Result) -> Answers | None:
        """Answers of a run on the test split; None if they are missing or not what the run stored."""
        try:
            path = predictions_path(self._paths[result.key])
            return read_answers(path, result.files.predictions).get(split_of(result, "test"))
        except UserError:
            return None
