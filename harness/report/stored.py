"""The predictions beside the results of a report, read without torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

from harness.errors import UserError
from harness.report.resampling import Answers
from harness.results import predictions_path, split_name
from harness.schema import Result


def split_of(result: Result, split: str) -> str:
    """The name of a split among the predictions of a result; a task of a mixture has splits of its own."""
    return split_name(split, result.cell.task if result.cell.mixture else "")


def read_answers(path: Path, sha256: str | None = None) -> dict[str, Answers]:
    """Answers per split in a Parquet file of predictions.

    Raises UserError if the file is missing, no such table, or not the one whose SHA-256 is given.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise UserError("is not the file that the run stored: its SHA-256 is another", where=str(path))
        table = pq.ParquetFile(io.BytesIO(content)).read(["split", "references", "prediction"])
        splits, references, predictions = (table[name].to_pylist() for name in ("split", "references", "prediction"))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"cannot be read as predictions: {error}", where=str(path)) from None
    found = {}
    for split in dict.fromkeys(splits):
        rows = [i for i, name in enumerate(splits) if name == split]
        found[split] = Answers([predictions[i] for i in rows], [references[i] for i in rows])
    return found


class PredictionFiles:
    """Finds the test answers of results that a scan of a folder has met."""

    def __init__(self, scanned: Iterable[tuple[Path, Result]]) -> None:
        self._paths = {self._key(result): path for path, result in scanned}

    @staticmethod
    def _key(result: Result) -> tuple[str, str, str]:
        return result.cell.suite, result.cell.label, result.cell_id

    def test_answers(self, result: Result) -> Answers | None:
        """Answers of a run on the test split; None where they are missing or not what the run stored."""
        try:
            path = predictions_path(self._paths[self._key(result)])
            return read_answers(path, result.files.predictions).get(split_of(result, "test"))
        except UserError:
            return None
