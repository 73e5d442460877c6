"""Readers for files of rows: JSON lines, JSON, CSV, TSV, Parquet, and folders written by `save_to_disk`.

Every reader yields (where, row). A broken file raises UserError with `file:line` instead of losing a row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.data.class_names import Features, class_features, metadata_features, name_classes
from harness.data.tsv_quotes import is_quoted, quoted_rows
from harness.errors import UserError

_UTF16_HINT = "It starts like UTF-16, as spreadsheets save 'Unicode text'; save it as UTF-8."
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

LocatedRow = tuple[str, dict[str, Any]]
"""(where the row is, as `file:line`, and its columns)"""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".tsv")
MAX_LINE = 64_000_000
"""Characters of one line or one CSV cell. Over ten times the longest line known to us, a document of a few million
characters; short enough that a line of a hostile file still fits in memory."""
MAX_TEXT = 8_000_000_000
"""Characters of one file, unpacked. gzip packs up to a thousand to one, so without a limit a file of 10 MB could unfold
to ten billion characters of rows, all of which are kept in memory."""
MAX_DOCUMENT = 2_000_000_000
"""Characters of one JSON document. Less than MAX_TEXT, since a document is in memory as a whole before it is parsed."""
SAVED_MARK = "state.json"
"""The file that marks a folder as written by `datasets.Dataset.save_to_disk`."""


@dataclass(frozen=True)
class TsvRules:
    """What a TSV file does not say itself and the task has to."""

    columns: tuple[str, ...] = ()
    """Names of the columns, for a file without header."""
    header_names: Collection[str] = ()
    """Names of columns: a first line that holds one of them is a header, even where `columns` is given."""
    skips_broken: bool = False
    """Whether to leave out rows that have fewer cells than the header or an empty last cell, as GLUE's QQP needs."""
    skipped: list[str] = field(default_factory=list)
    """`file:line` of each row left out; the reader appends to it."""


def is_readable(path: Path) -> bool:
    """Return whether `path` is a file of a known format or a folder written by `save_to_disk`."""
    return (path.is_file() and _format(path) is not None) or (path / SAVED_MARK).is_file()


def read_file(path: Path, tsv: TsvRules | None = None) -> Iterator[LocatedRow]:
    """Yield the rows of a file, or of a folder written by `save_to_disk`. Raises UserError naming file and row."""
    try:
        if path.is_dir():
            yield from _read_saved(path)
        elif _format(path) == ".tsv":
            yield from _read_tsv(path, tsv or TsvRules())
        else:
            yield from _READERS[_format(path) or ""](path)
    except UnicodeDecodeError as error:
        hint = _UTF16_HINT if _starts_as_utf16(path) else None
        where = f"{path}:{_undecodable_line(path)}"
        raise UserError(f"is not UTF-8 text: {error.reason}", where=where, hint=hint) from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError("is not a complete gzip file", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def with_labels(rows: Iterator[LocatedRow], path: Path, ending: str, column: str) -> Iterator[LocatedRow]:
    """Yield the rows of `path` with the labels in the file beside it, one a line; without such a file as they are.

    Raises UserError if rows and labels are not equally many.
    """
    beside = path.with_name(path.name.split(".", 1)[0] + ending)
    if not beside.is_file():
        yield from rows
        return
    with _open(beside) as file:
        labels = [line.strip() for _, line in _lines(file, beside) if line.strip()]
    number = 0
    for number, (where, row) in enumerate(rows, 1):
        if number > len(labels):
            raise UserError(f"has no label in {beside.name}, which holds {len(labels):,}", where=where)
        yield where, {**row, column: labels[number - 1]}
    if number < len(labels):
        raise UserError(f"holds {len(labels):,} labels for the {number:,} rows of {path.name}", where=str(beside))


def _format(path: Path) -> str | None:
    """Return the longest known suffix of a file name; SciTail's `.txt` files hold JSON lines."""
    if path.suffix == ".txt":
        return ".jsonl"
    return next((suffix for suffix in (".jsonl.gz", *SUFFIXES) if path.name.endswith(suffix)), None)


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")  # some official files start with a byte-order mark


def _starts_as_utf16(path: Path) -> bool:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8.

    The decoder reports a position within its block of some thousand bytes, from which no line follows.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 1
    with opener(path, "rb") as file, contextlib.suppress(OSError, EOFError, zlib.error):  # gzip may be cut short too
        for number, line in enumerate(file, 1):  # noqa: B007
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return number


def _lines(file: IO[str], path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file. Raises UserError for a line or a file over the limits."""
    total = 0
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        total += len(line)
        if len(line) > MAX_LINE:
            raise UserError(f"is longer than {MAX_LINE:,} characters, the limit for a line", where=f"{path}:{number}")
        if total > MAX_TEXT:
            raise UserError(f"holds more than {MAX_TEXT:,} characters, the limit for a file", where=str(path))
        if not line:
            return
        yield number, line


def _read_jsonl(path: Path) -> Iterator[LocatedRow]:
    with _open(path) as file:
        for number, line in _lines(file, path):
            if not line.strip():  # many writers end a file with an empty line
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError("is not a complete JSON object", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise UserError("is not a JSON object", where=f"{path}:{number}")
            if _SURROGATE.search(line):
                _refuse_half_characters(row, f"{path}:{number}")
            yield f"{path}:{number}", row


def _read_json(path: Path) -> Iterator[LocatedRow]:
    """Read one document: a list of rows, or SQuAD's object with the list under "data". Anything else is JSON lines."""
    with _open(path) as file:
        text = file.read(MAX_DOCUMENT + 1)
    if len(text) > MAX_DOCUMENT:
        raise UserError(f"holds more than {MAX_DOCUMENT:,} characters, the limit for a document", where=str(path))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        yield from _read_jsonl(path)
        return
    suspicious = _SURROGATE.search(text) is not None  # checking a row means writing it out again
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError("is not a JSON object", where=f"{path}: row {index}")
        if suspicious:
            _refuse_half_characters(row, f"{path}: row {index}")
        yield f"{path}: row {index}", row


def _refuse_half_characters(row: dict[str, Any], where: str) -> None:
    """Raise UserError if a row holds half of a surrogate pair: JSON can spell it, but no encoding can write it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise UserError("holds half of a surrogate pair, which is no character", where=where) from None


def _read_parquet(path: Path) -> Iterator[LocatedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            # the footer states the unpacked size, so a forged or huge file is refused before it fills the memory
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
            if sum(groups) > MAX_TEXT:
                raise UserError(f"unfolds to more than {MAX_TEXT:,} bytes, the limit for a file", where=str(path))
            table = file.read()
            rows = table.to_pylist()
    # all that pyarrow was seen to raise on damaged files while fuzzing
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        raise UserError(f"is not a readable Parquet file: {error}", where=str(path)) from None
    yield from _named_rows(rows, metadata_features(table.schema.metadata, str(path)), path)


def _read_saved(folder: Path) -> Iterator[LocatedRow]:
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(folder))
        rows, features = saved.to_list(), saved.features.to_dict()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"is not a readable folder of save_to_disk: {error}", where=str(folder)) from None
    yield from _named_rows(rows, class_features(features), folder)


def _named_rows(rows: list[dict[str, Any]], classes: Features, path: Path) -> Iterator[LocatedRow]:
    for index, row in enumerate(rows):
        where = f"{path}: row {index}"
        yield where, name_classes(row, classes, where)


def _read_csv(path: Path) -> Iterator[LocatedRow]:
    csv.field_size_limit(MAX_LINE)  # the module's own limit, 131,072 characters, is shorter than many documents
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or []
            if len(set(names)) < len(names):  # a dict of columns would keep the last one and drop the others
                raise UserError(f"names a column twice: {', '.join(names)}", where=f"{path}:1")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():  # DictReader's way to say too many cells, too few cells
                    raise UserError(f"has not the {len(reader.fieldnames or ())} columns of the header", where=where)
                yield where, dict(row)
        except csv.Error as error:
            raise UserError(f"is not readable CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _read_tsv(path: Path, rules: TsvRules) -> Iterator[LocatedRow]:
    """Read cells between tabs. Whether quotes around a cell belong to its text, the whole file shows (see `tsv`)."""
    with _open(path) as file:
        # the rows that QQP's copy on the hub leaves out are those that break when quotes are taken as text
        quoted = not rules.skips_broken and is_quoted((line for _, line in _lines(file, path)), MAX_LINE)
    with _open(path) as file:
        lines = _lines(file, path)
        try:
            yield from _tsv_rows(_quoted(lines) if quoted else _unquoted(lines), path, rules)
        except csv.Error as error:
            raise UserError(f"is not a readable TSV file: {error}", where=str(path)) from None


def _unquoted(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        yield number, line.rstrip("\n").split("\t")


def _quoted(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_LINE)  # see _read_csv
    return quoted_rows(line for _, line in lines)


def _tsv_rows(numbered: Iterator[tuple[int, list[str]]], path: Path, rules: TsvRules) -> Iterator[LocatedRow]:
    columns: tuple[str, ...] = rules.columns
    is_first = True
    for number, cells in numbered:
        if is_first and (not columns or set(cells) & set(rules.header_names)):
            columns = tuple(cells)
            if len(set(columns)) < len(columns):
                raise UserError(f"names a column twice: {', '.join(columns)}", where=f"{path}:{number}")
            is_first = False
            continue
        is_first = False
        if cells in ([], [""]):
            continue
        where = f"{path}:{number}"
        if rules.skips_broken and (len(cells) < len(columns) or not cells[-1]):
            rules.skipped.append(where)
            continue
        if len(cells) != len(columns) and not rules.skips_broken:
            raise UserError(f"has {len(cells)} columns, expected {len(columns)}", where=where)
        yield where, dict(zip(columns, cells, strict=False))


_READERS = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
