"""The results folder: one JSON per cell, with its predictions and tensors beside it.

A result is complete if its JSON exists, since that is written last. A result is never edited: its JSON holds a checksum
of its own content.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.errors import UserError
from harness.files import discard, put_in_place, read_bounded, sync_folder, write_aside
from harness.results.schema import RESULT_FORMAT, Files, Result
from harness.results.selection import results_by_task
from harness.suite import Cell, Key

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 32_000_000
"""Bytes of one result JSON, which is read as a whole. A long one has some ten thousand, so even a cell with a thousand
times as many evaluations fits."""

PredictionRow = tuple[str, int, list[str], str] | tuple[str, int, list[str], str, str]
"""(split, row index in the split, accepted references, prediction), then the name of the group of rows if it has one"""


class NotStored(UserError):
    """The results folder takes no more results, so going on with the run would be in vain."""


def split_name(split: str, task: str = "") -> str:
    """Return the name of a split in the stored predictions: "test", or "test:TASK" for a task of a mixture."""
    return f"{split}:{task}" if task else split


class ResultStore:
    """Reads and writes the results of cells below one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, cell: Cell) -> Path:
        """Return the path of the JSON of `cell`: <suite>/<task>/<label>/<backbone>/<cell_id>.json."""
        folder = self.root / cell.suite / cell.task / cell.label / cell.backbone
        return folder / f"{cell.cell_id}.json"

    def load(self, cell: Cell) -> Result | None:
        """Return the stored result of `cell`, or None. Raises UserError on a damaged file or one of another format."""
        return _read_if_there(self.path(cell))

    def beside(self, cell: Cell, but: Collection[str] = ()) -> list[Result]:
        """Return all results of the table entry of `cell`, by their paths, but those of the cell ids `but`.

        Raises UserError on a damaged file.
        """
        paths = sorted(self.path(cell).parent.glob("[!.]*.json"))
        found = [_read_if_there(path) for path in paths if path.stem not in but]
        return [result for result in found if result is not None]

    def scan(self) -> Iterator[tuple[Path, Result]]:
        """Yield (path, result) for every result below the folder, in the order of paths.

        Raises UserError for a damaged file, and for a copy of a result: reports would count it as another run.
        """
        if self.root.is_file():
            raise UserError("is a file, not a folder of results", where=str(self.root))
        if not self.root.is_dir():
            raise UserError("no such results folder", where=str(self.root), hint="Start one with harness run.")
        seen: dict[Key, Path] = {}
        for path in sorted(self.root.rglob("*.json")):
            # hidden folders hold claims and checkpoints, hidden files are being written
            if any(part.startswith(".") for part in path.relative_to(self.root).parts):
                continue
            result = _read_if_there(path)
            if result is None:
                continue
            if result.key in seen:
                problem = "is a copy of a result that counts already; a copy would pass for another run"
                raise UserError(problem, where=str(path), hint=f"The other is {seen[result.key]}.")
            seen[result.key] = path
            yield path, result

    def ensure_writable(self) -> None:
        """Raise UserError if nothing can be written below the folder, by writing an empty file and deleting it."""
        # the folder may not exist yet: then the nearest folder above it has to allow writing
        existing = next(parent for parent in (self.root, *self.root.resolve().parents) if parent.exists())
        if not existing.is_dir():
            raise UserError("is a file, not a folder", where=str(existing), field="--results")
        probe = existing / f".harness-write-test-{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write results here: {error.strerror}", where=str(existing)) from None

    def write(self, result: Result, predictions: Sequence[PredictionRow], tensors: bytes | None) -> Result:
        """Store a result with its predictions and tensors, or nothing of it; return it with its checksums.

        The JSON appears last. Only one process may write a cell at a time (`claims` sees to that). Raises OSError; an
        older result of the cell is then still there, unless the failure came between the renames.
        """
        path = self.path(result.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        # hidden files of a process that was killed while it wrote this cell; nobody else may be writing it
        for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
            leftover.unlink(missing_ok=True)
        beside = {
            predictions_path(path): _parquet(predictions) if predictions else None,
            tensors_path(path): tensors,
        }
        digests = [None if content is None else hashlib.sha256(content).hexdigest() for content in beside.values()]
        complete = result.model_copy(update={"files": Files(predictions=digests[0], tensors=digests[1])})
        complete = complete.model_copy(update={"checksum": checksum(complete.model_dump(mode="json"))})
        text = json.dumps(complete.model_dump(mode="json"), indent=1) + "\n"
        _replace_together({**beside, path: text.encode()})
        return complete


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a result's JSON without its own `checksum`: keys sorted, no blanks, shortest floats.

    `content` is the JSON as it is in the file. If it were the model's, every field added to results later would change
    the checksums of old files.
    """
    bare = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def predictions_path(path: Path) -> Path:
    """Return the path of the predictions (Parquet, dev and test) beside a result JSON."""
    return path.with_name(f"{path.stem}.predictions.parquet")


def tensors_path(path: Path) -> Path:
    """Return the path of the selected checkpoint's trained tensors beside a result JSON."""
    return path.with_name(f"{path.stem}.safetensors")


def read_result(path: Path) -> Result:
    """Read one result JSON. Raises UserError when it is damaged, changed since it was stored, or of another format."""
    try:
        content = read_bounded(path, MAX_BYTES, "a result")
        parsed = json.loads(content)
        version = parsed["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        hint = "If it was cut short, delete it: the next run makes it again."
        raise UserError("is not a result file of this program", where=str(path), hint=hint) from None
    if type(version) is not int or version != RESULT_FORMAT:
        is_newer = type(version) is int and version > RESULT_FORMAT
        hint = "Update the harness." if is_newer else "Move it away: the next run makes it again."
        problem = f"was written in format {version}; this program reads format {RESULT_FORMAT}"
        raise UserError(problem, where=str(path), field="format", hint=hint)
    try:
        result = Result.model_validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise UserError(found["msg"], where=str(path), field=place) from None
    if result.checksum != checksum(parsed):
        hint = "Results are never edited: restore it, or delete it and the next run makes it again."
        raise UserError("was changed since it was stored: its checksum is another", where=str(path), hint=hint)
    return result


def _read_if_there(path: Path) -> Result | None:
    """Return a result, or None if there is no file, even if another process is replacing it at this moment."""
    try:
        return read_result(path) if path.exists() else None
    except UserError:
        if path.exists():
            raise
        return None


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Return the predictions of one result JSON: columns split, row, references, prediction.

    Where rows belong together there is a column `group` too: numbers, equal for the rows of one group.
    """
    import pandas as pd

    return pd.read_parquet(predictions_path(Path(path)))


def load_results(path: str | Path) -> pd.DataFrame:
    """Return a results folder as a tidy table: one row per cell, split and metric.

    Columns: suite, task, method, backbone, k and draw_seed (few-shot), seed, repeat, status, split, metric, value
    (percent points), selected_step, raced_out_at, num_trained, num_kept, group_id, cell_id, path, and one `hp.*` /
    `recipe.*` column per swept setting. A failed cell has one row without split, metric and value; a grid point that
    left a search by halving (`raced_out_at`) has rows of dev only.
    """
    import pandas as pd

    scanned = ((file, each) for file, result in ResultStore(path).scan() for each in results_by_task(result))
    rows = [row for file, result in scanned for row in _tidy_rows(file, result)]
    return pd.DataFrame(rows)


def _tidy_rows(path: Path, result: Result) -> list[dict[str, Any]]:
    cell, params = result.cell, result.params
    base: dict[str, Any] = {
        "suite": cell.suite,
        "task": cell.task,
        "method": cell.label,
        "backbone": cell.backbone,
        "k": cell.few_shot.k if cell.few_shot else None,
        "draw_seed": cell.few_shot.seed if cell.few_shot else None,
        "seed": cell.seed,
        "repeat": cell.repeat,
        "status": result.status,
        "split": None,
        "metric": None,
        "value": None,
        "selected_step": result.selected_step,
        "raced_out_at": result.raced_out_at,
        "num_trained": params.num_trained if params else None,
        "num_kept": params.num_kept if params else None,
        "group_id": result.group_id,
        "cell_id": result.cell_id,
        "path": str(path),
        **cell.grid,
    }
    scored = [(name, split) for name, split in (("dev", result.dev), ("test", result.test)) if split]
    # the score, a mean of metrics, stands among them as a metric called "score"
    rows = [
        {**base, "split": name, "metric": metric, "value": value}
        for name, split in scored
        for metric, value in {"score": split.score, **split.metrics}.items()
    ]
    return rows or [base]  # a failed cell keeps a row, or a table would look complete without it


def _parquet(rows: Sequence[PredictionRow]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits, indices, references, predictions = zip(*(row[:4] for row in rows), strict=True)
    columns = {
        "split": pa.array(splits).dictionary_encode(),  # two or three values in many thousand rows
        "row": pa.array(indices, pa.int32()),
        "references": pa.array(references, pa.list_(pa.string())),
        "prediction": pa.array(predictions, pa.string()),
    }
    names = [row[4] if len(row) > 4 else None for row in rows]
    if any(name is not None for name in names):  # in a mixture some tasks have groups
        numbers = {name: number for number, name in enumerate(dict.fromkeys(filter(None, names)))}
        columns["group"] = pa.array([numbers[name] if name else None for name in names], pa.int32())
    table = pa.table(columns)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _replace_together(contents: Mapping[Path, bytes | None]) -> None:
    """Write the files, and delete those without content. The last file, the JSON, is absent while the others change.

    So at no moment a JSON stands beside files that are not its own.
    """
    *_, last = contents
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            if content is not None:
                written.append(write_aside(path, functools.partial(Path.write_bytes, data=content)))
    except BaseException:
        discard(written)
        raise
    # an old JSON would vouch for new predictions if the process died between the renames
    last.unlink(missing_ok=True)
    for path, content in contents.items():
        if content is None:
            path.unlink(missing_ok=True)
    try:
        put_in_place(written[:-1])
        sync_folder(last.parent)  # the disk may write renames in another order, so the others are flushed first
        put_in_place(written[-1:])
    finally:
        discard(written)
    sync_folder(last.parent)
