"""Checks of the files beside a result, predictions and tensors, against what the result says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError
from harness.results.predictions import SPLITS, read_table, split_of
from harness.results.schema import ParamCounts, Result
from harness.results.selection import results_by_task

COLUMNS = {"split", "row", "references", "prediction"}
GROUPED = COLUMNS | {"group"}
"""With the column of tasks some of whose rows belong together."""


def check_predictions(path: Path, result: Result) -> Iterator[str]:
    """Yield what is wrong with the columns, splits and rows of a Parquet file of predictions."""
    try:
        table = read_table(path)
    except UserError as error:
        yield error.problem
        return
    if set(table.column_names) not in (COLUMNS, GROUPED):
        yield f"has the columns {', '.join(sorted(table.column_names))}, not {', '.join(sorted(COLUMNS))}"
        return
    splits, indices = table["split"].to_pylist(), table["row"].to_pylist()
    expected = {
        split_of(part, split): score.num_rows if score else 0
        for part in results_by_task(result)
        for split, score in zip(SPLITS, (part.dev, part.test), strict=True)
    }
    strange = set(splits) - set(expected)
    if strange:
        yield f"holds rows of {', '.join(sorted(map(str, strange)))}, which is no split"
    for split, count in expected.items():
        rows = [index for name, index in zip(splits, indices, strict=True) if name == split]
        if None in rows or sorted(rows) != list(range(count)):
            yield f"{split} has {count} rows, the file holds {len(rows)}" + (
                "" if len(rows) != count else ", not each once"
            )


def check_tensors(path: Path, params: ParamCounts) -> Iterator[str]:
    """Yield what is wrong with a file of trained tensors: it must be readable and hold as many numbers as were counted.

    More numbers are no fault, since a method may store buffers that are not trained. Only the header is read, so a
    large file costs no time, and torch is not needed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        yield f"{path.name} is no safetensors file: {str(error).splitlines()[0]}"
        return
    for count, name in ((params.num_trained, "num_trained"), (params.num_kept, "num_kept")):
        if sum(sizes) < count:
            yield f"{path.name} holds {sum(sizes):,} numbers, {name} says {count:,}"
