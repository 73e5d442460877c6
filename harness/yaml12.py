"""Suite files as YAML 1.2, with the line of every key, so that an error can point at it."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from harness.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

KeyPath = tuple[str | int, ...]


class Document:
    """Plain Python data read from one YAML file, and where each key stands in it."""

    def __init__(self, path: str, data: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.path = path
        self.data = data
        self.lines = lines

    def where(self, *key: str | int) -> str:
        """Return `file:line` of the innermost part of `key` that the file holds."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return self.path


def read_document(path: str | FilePath) -> Document:
    """Read a YAML 1.2 mapping from `path`. Raises UserError naming file and line."""
    file = FilePath(path)
    text = _read_text(file)
    try:
        raw = _parser().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not valid YAML").strip()
        raise UserError(f"not valid YAML: {problem}", where=f"{file}:{line}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not valid YAML: {str(error).strip().splitlines()[0]}", where=str(file)) from None
    if not isinstance(raw, CommentedMap):
        raise UserError("expected a mapping of keys to values at the top", where=f"{file}:1")
    lines: dict[KeyPath, int] = {(): 1}
    data = _plain(raw, (), lines, str(file))
    return Document(str(file), data, lines)


def parse_value(text: str, where: str = "--set") -> Any:
    """Read one YAML 1.2 value, as given to `--set key=value`. Raises UserError, at `where`, on broken YAML."""
    try:
        raw = _parser().load(text)
    except (YAMLError, ValueError, RecursionError):
        raise UserError(f"'{text}' is not a YAML value", where=where) from None
    return _plain(raw, (), {}, where)


def _parser() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.allow_duplicate_keys = False
    return yaml


def _read_text(file: FilePath) -> str:
    try:
        if file.is_dir():
            raise UserError("is a folder, not a suite file", where=str(file))
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"is larger than {MAX_BYTES:,} bytes; a suite file is small", where=str(file))
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(str(p) for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise UserError("no such file", where=str(file), value=str(file), choices=siblings[:20]) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=str(file)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from None


def _plain(node: Any, key: KeyPath, lines: dict[KeyPath, int], path: str) -> Any:
    """Strip ruamel's node types, recording lines; refuse tags and absurd nesting."""
    if len(key) > MAX_DEPTH:
        raise UserError(f"is nested deeper than {MAX_DEPTH} levels", where=path)
    if isinstance(node, CommentedMap):
        return {_name(k, path): _plain(v, (*key, str(k)), _mark(node, k, key, lines), path) for k, v in node.items()}
    if isinstance(node, CommentedSeq):
        return [_plain(v, (*key, i), _mark(node, i, key, lines), path) for i, v in enumerate(node)]
    if isinstance(node, TaggedScalar) or not (node is None or isinstance(node, (str, int, float, ScalarBoolean))):
        at = f"{path}:{lines.get(key, 1)}"
        raise UserError(f"tags and dates have no meaning in a suite ({node!r}); quote a text", where=at)
    return _scalar(node)


def _scalar(node: Any) -> Any:
    if isinstance(node, (bool, ScalarBoolean)):
        return bool(node)
    if isinstance(node, ScalarFloat):
        return float(node)
    if isinstance(node, ScalarInt):
        return int(node)
    return str(node) if isinstance(node, str) else node


def _name(key: Any, path: str) -> str:
    if not isinstance(key, (str, int, float)):
        raise UserError(f"a key must be a name, not {key!r}", where=path)
    return str(key)


def _mark(node: CommentedMap | CommentedSeq, child: Any, key: KeyPath, lines: dict[KeyPath, int]) -> dict[KeyPath, int]:
    position = node.lc.data.get(child) if node.lc.data else None
    name = child if isinstance(child, int) and isinstance(node, CommentedSeq) else str(child)
    if position:
        lines[(*key, name)] = position[0] + 1
    return lines
