"""Reads name, paper and settings of a method from the text of its file, since importing the file would need torch."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.method import assigned, hp_class, literal, method_class
from harness.shipped import shipped_methods


@dataclass(frozen=True)
class Setting:
    """One hp of a method, as its file declares it."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class MethodFile:
    """Name, docstring, paper and settings of one method."""

    name: str
    path: Path
    sha256: str
    docstring: str
    paper_key: str = ""
    paper_url: str = ""
    paper_params: Mapping[str, int] = field(default_factory=dict)
    """Backbone -> number of trainable parameters that the paper states."""
    paper_note: str = ""
    settings: tuple[Setting, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Setting -> the method's default as its file writes it, e.g. "recipe.lr" -> "sweep(0.3, 0.4)"."""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.docstring.partition("\n")[0]

    @property
    def definition(self) -> str:
        """The docstring after its first line: equations, and decisions where the paper leaves something open."""
        return self.docstring.partition("\n")[2].strip()


def read_method_files(folders: Iterable[Path] = ()) -> dict[str, MethodFile]:
    """Name -> method: the shipped ones and those in `folders`. A file that is no Python or no method is left out."""
    found = {}
    for folder in (shipped_methods(), *folders):
        for path in sorted(folder.glob("*.py")):
            method = read_method_file(path)
            if method is not None:
                found[method.name] = method
    return found


def read_method_file(path: Path) -> MethodFile | None:
    """Return what a file declares; None if it cannot be parsed, or declares no method with the name of the file."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return None
    node = method_class(tree, path.stem)
    if node is None:
        return None
    values = assigned(node)
    sha256 = hashlib.sha256(source).hexdigest()
    docstring = ast.get_docstring(tree) or ""
    return MethodFile(path.stem, path, sha256, docstring, **_paper(values), **_settings(node, values))


def _paper(values: Mapping[str, ast.expr]) -> dict[str, Any]:
    """The fields of MethodFile that `paper = Paper(...)` gives; empty without it."""
    call = values.get("paper")
    if not isinstance(call, ast.Call):
        return {}
    named = {item.arg: item.value for item in call.keywords if item.arg}
    named |= dict(zip(("key", "url", "params", "params_note"), call.args, strict=False))
    params = literal(named.get("params"))
    return {
        "paper_key": str(literal(named.get("key")) or ""),
        "paper_url": str(literal(named.get("url")) or ""),
        "paper_params": params if isinstance(params, dict) else {},
        "paper_note": str(literal(named.get("params_note")) or ""),
    }


def _default(value: ast.expr | None) -> str:
    """A setting's default as it is written; of `field(default_factory=dict)`, what the factory makes."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        factory = next((item.value for item in value.keywords if item.arg == "default_factory"), None)
        if factory is not None:
            return f"{ast.unparse(factory)}()"
    return ast.unparse(value) if value else ""


def _settings(node: ast.ClassDef, values: Mapping[str, ast.expr]) -> dict[str, Any]:
    """The fields of MethodFile that the class `HP` and `defaults = Defaults(...)` give."""
    declared = hp_class(node)
    fields = [item for item in declared.body if isinstance(item, ast.AnnAssign)] if declared else []
    settings = tuple(
        Setting(ast.unparse(item.target), ast.unparse(item.annotation), _default(item.value)) for item in fields
    )
    defaults = {}
    call = values.get("defaults")
    for block in call.keywords if isinstance(call, ast.Call) else []:
        if isinstance(block.value, ast.Dict):
            for key, value in zip(block.value.keys, block.value.values, strict=True):
                defaults[f"{block.arg}.{literal(key)}"] = ast.unparse(value)
    return {"settings": settings, "defaults": defaults}
