"""The rules that a reader relies on: packages import one way, through each other's face; reports need no torch."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from paths import METHODS, ROOT

PACKAGES = ("suite", "backbone", "data", "results", "method", "train", "report", "runner", "cli")
"""Each imports only from those before it, and from the files that lie beside them."""
HARNESS = ROOT / "harness"
MODULES = sorted(HARNESS.rglob("*.py"))
METHOD_FILES = sorted(METHODS.glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BY_NAME = {module_name(path): path for path in MODULES}


def package_of(module: str) -> str | None:
    """The package that a module lies in; None for a file at the top of harness/."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else None


@cache
def face(package: str) -> dict[str, str]:
    """Names that a package shows to the others -> the module that defines each."""
    stub = ast.parse((HARNESS / package / "__init__.pyi").read_text())
    return {
        alias.name: f"harness.{package}.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All that a file says; each is asked for a dozen times."""
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> list[tuple[str, str | None]]:
    """(module, name) of everything that a file imports, at any depth; no name where a module is imported whole."""
    found: list[tuple[str, str | None]] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.append((whole, None) if whole in BY_NAME else (module, alias.name))
    return found


def needs(path: Path) -> set[str]:
    """Modules of the program that a file imports, seen through the faces."""
    found = set()
    for module, name in imports(path):
        if module.split(".")[0] == "harness" and module != "harness":
            package = package_of(module)
            is_face = package is not None and module == f"harness.{package}"
            found.add(face(str(package))[str(name)] if is_face else module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_one_way_and_through_faces(path: Path) -> None:
    own = module_name(path)
    for module, name in imports(path):
        if module.split(".")[0] != "harness" or own in ("harness", "harness.__main__"):
            continue
        package = package_of(module)
        if package is None or package == package_of(own):
            continue
        assert package_of(own) is not None, f"{own} lies below the packages and imports {module}"
        order = PACKAGES.index(package) < PACKAGES.index(str(package_of(own)))
        assert order, f"{own} may not import {module}: {package} comes after {package_of(own)}"
        assert module == f"harness.{package}", f"{own} reaches into {module}; take it from harness.{package}"
        assert name in face(package), f"{own} takes {name}, which harness.{package} does not show"


def test_no_module_imports_itself_on_a_round_trip() -> None:
    waits_for = {name: needs(path) - {name} for name, path in BY_NAME.items() if name != "harness"}
    while True:
        free = {name for name, wanted in waits_for.items() if not wanted & set(waits_for)}
        if not free:
            break
        waits_for = {name: wanted for name, wanted in waits_for.items() if name not in free}
    assert not waits_for, f"these import each other: {sorted(waits_for)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_face_says_what_the_package_is_for_and_shows_what_others_use(package: str) -> None:
    module = importlib.import_module(f"harness.{package}")
    assert module.__doc__
    names = face(package)
    modules = {path.stem for path in (HARNESS / package).iterdir()}
    # a module that is imported takes the attribute of its name, so such a name would be the one or the other
    assert not set(names) & modules
    for name in names:
        assert getattr(module, name) is getattr(importlib.import_module(names[name]), name)
    others = [*METHOD_FILES, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").rglob("*.py")]
    elsewhere = [path for path in (*MODULES, *others) if package_of(module_name(path)) != package]
    used = {name for path in elsewhere for where, name in imports(path) if where == f"harness.{package}"}
    unused = set(names) - used - PUBLIC.get(package, set())
    assert not unused, f"harness.{package} shows what nobody takes: {sorted(unused)}"


PUBLIC = {"cli": {"main"}, "method": {"load_export", "AdapterMethod", "PeftAdapter", "span"}, "runner": {"make_engine"}}
"""Names for people, which no other package takes."""


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.name)
def test_a_method_imports_only_torch_peft_the_library_and_the_method_surface(path: Path) -> None:
    for module, _ in imports(path):
        allowed = module.split(".")[0] in {"torch", "peft", *sys.stdlib_module_names}
        assert allowed or module == "harness.method", f"{path.name} imports {module}"


def test_nothing_in_harness_names_a_method() -> None:
    names = {path.stem for path in METHOD_FILES} - {
        "peft",
        "none",
        "adapter",
    }  # also a library, a word, and a key of rows
    for path in MODULES:
        for node in nodes(path):
            words = {getattr(node, "id", None), getattr(node, "attr", None)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            assert not words & names, f"{path.name}:{getattr(node, 'lineno', 0)} names {words & names}"


def loaded_by(code: str, *heavy: str) -> str:
    """Which of the heavy packages are loaded after `code` ran in a new process."""
    code += f"\nimport sys; print(*[name for name in {heavy!r} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_reports_and_results_start_without_torch() -> None:
    code = "import harness, harness.results.store, harness.report.boards, harness.report.tables, harness.cli.commands\n"
    assert loaded_by(code + "import harness.data.tasks; harness.data.tasks.all_tasks()", "torch", "transformers") == ""


def test_every_module_stands_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = set(re.findall(r"`(\w+)/`", page)) - set(PACKAGES)
    modules = [path for path in MODULES if not path.name.startswith("__") and path.parent.name not in folders]
    assert not [str(path.relative_to(HARNESS)) for path in modules if f"`{path.stem}`" not in page]
