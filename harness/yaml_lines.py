"""Reads suite files as YAML 1.2 and keeps the line of every key, so that an error can point at it.

A suite may come from anybody. So bytes, values and depth have limits, and tags and control characters are refused.
YAML 1.2, since 1.1 (PyYAML) reads `no` as false and `3e-1` as a text.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt

from harness.errors import Location, UserError
from harness.files import read_bounded

MAX_BYTES = 250_000
"""Bytes of a file: 26 times the largest YAML file that we ship (protocols/keys.yaml, 9,580). The parser is written in
Python, so a larger file of a stranger would keep it busy for long."""
MAX_DEPTH = 20
"""Levels of nesting: the deepest file that we ship has 8. The parser calls itself several times for each level,
and Python allows 1,000 calls."""
MAX_NODES = 10_000
"""Values of a file, aliases unfolded: 19 times the most that a file of ours has (524). Nine lines of nine
aliases each stand for 9^9, 387 million values."""
MAX_INTEGER = 2**63
"""Whole numbers stay below this: many JSON readers, and Parquet, take 64 bits with a sign."""

KeyPath = tuple[str | int, ...]
"""Where a value is in the document, e.g. ("methods", "lora", "rank")."""

# what a terminal, a file name or UTF-8 cannot hold; tab and line ends are text
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Document:
    """Plain Python data read from one YAML file, and the line of each key."""

    def __init__(self, path: str, data: dict[str, Any], lines: dict[KeyPath, int], text: str = "") -> None:
        self.path = path
        self.data = data
        self.lines = lines
        self._text = text.splitlines()

    def where(self, *key: str | int) -> str:
        """Return `file:line` of the innermost part of `key` that the file holds, with that line's text."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return _location(self.path, self.lines[key[:end]], self._text)
        return self.path


class _Refused(Exception):
    """Valid YAML that a suite file may not have; `line` counts from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _BoundedComposer(Composer):
    """Refuses tags, and files over the limits, before any object is built."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.num_nodes = 0
        self.unfinished: list[str | None] = []
        """Anchors of the nodes around the present one (None for a node without). An alias to one would never end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        line = event.start_mark.line + 1
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise _Refused(f"holds more than {MAX_NODES:,} values", line)
        if len(self.unfinished) > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels", line)
        if isinstance(event, AliasEvent) and event.anchor in self.unfinished:
            raise _Refused(f"*{event.anchor} stands for what it is part of", line)
        # tags can make a YAML library create objects of any class
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"tags such as {event.tag} have no meaning in a suite; quote a text", line)
        self.unfinished.append(event.anchor)
        node = super().compose_node(parent, index)
        self.unfinished.pop()
        return node


def read_document(path: str | FilePath) -> Document:
    """Read a YAML 1.2 mapping from `path`. Raises UserError naming file and line."""
    file = FilePath(path)
    text = _read_text(file)
    shown = text.splitlines()
    try:
        data, lines = _parsed(text)
    except _Refused as error:
        raise UserError(str(error), where=_location(str(file), error.line, shown)) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "not valid YAML").strip()
        raise UserError(f"not valid YAML: {problem}", where=_location(str(file), line, shown)) from None
    except Exception as error:  # ruamel lets dozens of types escape on broken input
        raise UserError(f"not valid YAML: {_first_line(error)}", where=str(file)) from None
    return Document(str(file), copy.deepcopy(data), dict(lines), text)


# a command reads its suite before torch is imported and again after, 5 ms a kilobyte, and some read all that is shipped
@functools.lru_cache(maxsize=128)
def _parsed(text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the data of a mapping and the line of each key. Raises _Refused, and what ruamel raises."""
    raw = _parser().load(text)
    if not isinstance(raw, CommentedMap):
        raise _Refused("expected a mapping of keys to values at the top", 1)
    plain = _Plain()
    return plain.build(raw, ()), plain.lines


def parse_value(text: str, where: str = "--set") -> Any:
    """Read one YAML 1.2 value, as given to `--set key=value`. Raises UserError, at `where`, on broken YAML."""
    try:
        if len(text) > MAX_BYTES:
            raise _Refused(f"is longer than {MAX_BYTES:,} characters", 1)
        return _Plain().build(_parser().load(text), ())
    except _Refused as error:
        raise UserError(str(error), where=where) from None
    except Exception:  # ruamel lets dozens of types escape on broken input
        raise UserError(f"'{text}' is not a YAML value", where=where) from None


def _parser() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.allow_duplicate_keys = False  # else the last one would win without a word
    yaml.Composer = _BoundedComposer
    return yaml


def _read_text(file: FilePath) -> str:
    try:
        if file.is_dir():
            raise UserError("is a folder, not a suite file", where=str(file))
        content = read_bounded(file, MAX_BYTES, "a suite file")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(str(p) for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise UserError("no such file", where=str(file), value=str(file), choices=siblings[:20]) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=f"{file}:{line}") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except ValueError:
        raise UserError("is not the name of a file", where=str(file)) from None


class _Plain:
    """Turns ruamel's nodes into plain data, records lines, and limits what aliases unfold to."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {(): 1}
        self.num_values = 0

    def build(self, node: Any, key: KeyPath) -> Any:
        """Return the plain data of `node`, which is at `key`. Raises _Refused."""
        self.num_values += 1
        if self.num_values > MAX_NODES:
            raise _Refused(f"unfolds to more than {MAX_NODES:,} values", self._line(key))
        if len(key) > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels", self._line(key))
        if isinstance(node, CommentedMap):
            return {self._name(k, key): self.build(v, self._mark(node, k, (*key, str(k)))) for k, v in node.items()}
        if isinstance(node, CommentedSeq):
            return [self.build(v, self._mark(node, i, (*key, i))) for i, v in enumerate(node)]
        return self._scalar(node, key)

    def _scalar(self, node: Any, key: KeyPath) -> Any:
        if isinstance(node, (bool, ScalarBoolean)):
            return bool(node)
        if isinstance(node, (float, ScalarFloat)):
            return float(node)
        if isinstance(node, (int, ScalarInt)):
            if abs(int(node)) >= MAX_INTEGER:
                raise _Refused("holds a whole number of more than 63 bits", self._line(key))
            return int(node)
        if isinstance(node, str):
            return self._text(str(node), key)
        if node is not None:
            raise _Refused(f"dates and the like have no meaning in a suite ({node!r}); quote a text", self._line(key))
        return None

    def _text(self, text: str, key: KeyPath) -> str:
        found = _UNPRINTABLE.search(text)
        if found:
            raise _Refused(f"holds the character U+{ord(found[0]):04X}, which is no text", self._line(key))
        return text

    def _name(self, name: Any, key: KeyPath) -> str:
        if not isinstance(name, (str, int, float)):
            raise _Refused(f"a key must be a name, not {name!r}", self._line(key))
        return self._text(str(name), key)

    def _mark(self, node: CommentedMap | CommentedSeq, child: Any, key: KeyPath) -> KeyPath:
        """Record the line of a child of `node`; return the child's key path."""
        position = node.lc.data.get(child) if node.lc.data else None
        if position:
            self.lines[key] = position[0] + 1
        return key

    def _line(self, key: KeyPath) -> int:
        return next(self.lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in self.lines)


def _location(path: str, line: int, text: list[str]) -> Location:
    return Location(f"{path}:{line}", text[line - 1] if 0 < line <= len(text) else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
