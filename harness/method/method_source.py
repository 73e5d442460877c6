"""What suites need to know of a method, read from its file without importing it: the import would need torch.

torch takes seconds to import. So a misspelt setting is found by the declarations in the source, and only what runs as
code waits for the import: the checks in a method's own `__post_init__`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.method.paper import span, sweep
from harness.shipped import shipped_methods
from harness.suite import Defaults, MethodSpec

UNREADABLE = "says what it takes only when it is imported"
"""Stands for an import error, so that nothing is judged here of such a method's settings; the import will tell."""

_TYPES: Mapping[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple,
                             "dict": dict, "Literal": Literal, "Any": Any}  # fmt: skip
"""Names that the annotation of a setting may hold here; one with any other name may have any value until the import."""


def method_paths(extra_folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Every method file by name: the shipped ones, those of `extra_folders`, and entry points `harness.methods`.

    Raises UserError when two files claim one name or a folder does not exist.
    """
    found: dict[str, Path] = {}
    for path in _candidates(extra_folders):
        name = path.stem
        if name in found and found[name].resolve() != path.resolve():
            raise UserError(f"the name '{name}' is taken by {found[name]}", where=str(path))
        found[name] = path
    return dict(sorted(found.items()))


def _candidates(extra_folders: Sequence[str | Path]) -> Iterator[Path]:
    folders = [shipped_methods()]
    for folder in extra_folders:
        if not Path(folder).is_dir():
            raise UserError("no such folder", where=str(folder), field="--methods-dir")
        folders.append(Path(folder))
    for folder in folders:
        yield from (p for p in sorted(folder.glob("*.py")) if p.is_file() and not p.name.startswith(("_", ".")))
    for entry in _installed(tuple(sys.path)):
        module = importlib.util.find_spec(entry.module)
        if module and module.origin:
            yield Path(module.origin)


@functools.cache
def _installed(search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of what is installed: 5 ms to read, and a plan asks twice."""
    return tuple(entry_points(group="harness.methods"))


def read_specs(extra_folders: Sequence[str | Path] = ()) -> dict[str, MethodSpec]:
    """Every method by name, as its file declares it. Raises UserError as `method_paths` does."""
    return {name: read_spec(path) for name, path in method_paths(extra_folders).items()}


def read_spec(path: Path) -> MethodSpec:
    """What a method file declares, types and defaults of its settings included.

    Its `error` is `UNREADABLE` where a declaration is no plain one: computed, inherited from another class, or missing.
    """
    try:
        return _declared(path.read_bytes(), path.stem)
    except (OSError, SyntaxError, ValueError, TypeError):
        return MethodSpec(path.stem, type(None), Defaults(), "", error=UNREADABLE)


@functools.lru_cache(maxsize=1024)  # whoever plans suite after suite in one process parses each file once: 55 ms
def _declared(source: bytes, name: str) -> MethodSpec:
    """What a method file declares. Raises SyntaxError, ValueError or TypeError where it does not do so plainly."""
    found = method_class(ast.parse(source), name)
    if found is None:
        raise ValueError("declares no method of its name")
    sha256 = hashlib.sha256(source).hexdigest()
    values = assigned(found)
    bases = [ast.unparse(base) for base in found.bases]
    if bases == ["Rule"]:
        return MethodSpec(name, type(None), Defaults(), sha256)
    defaults = _defaults(values["defaults"]) if "defaults" in values else Defaults()
    # without a word of its own, a class that extends another may have that one's number: any is let through
    unsaid = (0, 0) if bases == ["Method"] else (0, None)
    takes = ast.literal_eval(values["takes_sources"]) if "takes_sources" in values else unsaid
    trains = literal(values.get("trains")) is not False
    return MethodSpec(name, _hp_type(found), defaults, sha256, takes, trains)


def method_class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """The class of a method file whose `name` is that of the file; None where there is none."""
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next((node for node in classes if literal(assigned(node).get("name")) == name), None)


def assigned(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Name -> expression of every assignment in a class, with a type or without."""
    found: dict[str, ast.expr] = {}
    for item in node.body:
        if isinstance(item, ast.Assign):
            found |= {target.id: item.value for target in item.targets if isinstance(target, ast.Name)}
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            found[item.target.id] = item.value
    return found


def hp_class(node: ast.ClassDef) -> ast.ClassDef | None:
    """The class `HP` that a method's class holds; None where it has none of its own."""
    return next((item for item in node.body if isinstance(item, ast.ClassDef) and item.name == "HP"), None)


def literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for anything that would have to be computed."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _defaults(node: ast.expr) -> Defaults:
    """`Defaults(recipe={...}, hp={...}, search={...})` of literals, sweeps and spans. Raises ValueError for others."""
    if not isinstance(node, ast.Call) or node.args or ast.unparse(node.func) != "Defaults":
        raise ValueError("computed defaults")
    blocks: dict[str, dict[str, Any]] = {}
    for item in node.keywords:
        if item.arg not in ("recipe", "hp", "search") or not isinstance(item.value, ast.Dict):
            raise ValueError("computed defaults")
        pairs = zip(item.value.keys, item.value.values, strict=True)
        blocks[item.arg] = {ast.literal_eval(key): _value(value) for key, value in pairs if key is not None}
    return Defaults(**blocks)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "sweep" and not node.keywords:
        return sweep(*map(ast.literal_eval, node.args))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "span":
        return span(*map(ast.literal_eval, node.args), **{str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    return ast.literal_eval(node)


def _hp_type(node: ast.ClassDef) -> type:
    """A dataclass with the fields of the method's `HP`. Raises ValueError where they are not all to be seen."""
    declared = hp_class(node)
    bases = [ast.unparse(base) for base in node.bases]
    if declared is None and bases == ["Method"]:
        return dataclasses.make_dataclass("HP", [])
    if declared is None or declared.bases:
        raise ValueError("inherited settings")
    fields: list[tuple[str, Any, Any]] = []
    for item in declared.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields.append((item.target.id, _type(item.annotation), _field(item.value)))
    return dataclasses.make_dataclass("HP", fields, frozen=True, kw_only=True)


def _type(annotation: ast.expr) -> Any:
    """The type of a setting; Any where the annotation holds more than plain types."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    plain = (ast.Name, ast.Constant, ast.Subscript, ast.BinOp, ast.BitOr, ast.Tuple, ast.Load)
    is_plain = all(isinstance(node, plain) for node in ast.walk(annotation))
    if not is_plain or not names <= set(_TYPES) or isinstance(literal(annotation), str):
        return Any
    return _built(annotation)


def _built(node: ast.expr) -> Any:
    """The type that a plain annotation spells: a name, a constant, `A | B`, `A[B, C]`. Nothing of the file is run."""
    if isinstance(node, ast.Name):
        return _TYPES[node.id]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(map(_built, node.elts))
    if isinstance(node, ast.BinOp):
        return _built(node.left) | _built(node.right)
    assert isinstance(node, ast.Subscript)
    return _built(node.value)[_built(node.slice)]


def _field(value: ast.expr | None) -> Any:
    """The default of a setting; one that is computed stands as None, which nothing here shows or checks."""
    if value is None:
        return dataclasses.field()
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":  # a mapping or a list, made anew each time
        return dataclasses.field(default_factory=lambda: None)
    found = literal(value)
    return dataclasses.field(default=None if isinstance(found, (list, dict, set)) else found)
