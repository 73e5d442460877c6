"""How method files are found, imported and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path

from harness.errors import UserError, require_choice
from harness.method.method import Method, Rule
from harness.method.method_source import method_paths
from harness.method.paper import Paper
from harness.suite import SLUG, Defaults, MethodSpec


@dataclass(frozen=True)
class Registered:
    """One method file, with its class, or with the error that kept the class from being imported."""

    spec: MethodSpec
    path: Path
    cls: type[Method] | type[Rule] | None

    @property
    def problem(self) -> str:
        """The exception that importing the file raised, with the file's line; empty if there was none."""
        lines = (self.spec.error or "").strip().splitlines()
        # the traceback names the file as it was opened, which need not be how the path is written here
        files = {str(self.path), str(self.path.absolute()), str(self.path.resolve())}
        in_file = [line.strip() for line in lines if any(f'"{file}", line ' in line for file in files)]
        # the last such line is the innermost one: what it called lies in a library
        number = f" (line {in_file[-1].split('line ')[1].split(',')[0]})" if in_file else ""
        return f"{lines[-1].strip()}{number}" if lines else ""

    @property
    def summary(self) -> str:
        """The first line of the file's docstring, which site pages and lists show."""
        doc = sys.modules[self.cls.__module__].__doc__ if self.cls else None
        return (doc or "").strip().partition("\n")[0]


class MethodFiles(Mapping[str, Registered]):
    """The method files by name. A file is imported when its entry is asked for, since some import large libraries.

    A file that fails to import becomes an entry that holds the traceback: one broken file of a folder must not stop a
    suite that does not use it.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._imported: dict[str, Registered] = {}

    def __getitem__(self, name: str) -> Registered:
        if name not in self._imported:
            self._imported[name] = load_file(self._paths[name])
        return self._imported[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would import the file
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class MethodSpecs(Mapping[str, MethodSpec]):
    """What suites need to know of each method file; a file is imported when its entry is asked for."""

    def __init__(self, files: MethodFiles) -> None:
        self._files = files

    def __getitem__(self, name: str) -> MethodSpec:
        return self._files[name].spec

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def discover(*extra_folders: str | Path) -> MethodFiles:
    """Find every method file, by name: the shipped ones, those in `extra_folders`, entry points `harness.methods`.

    Raises UserError when two files have one name, or a folder does not exist.
    """
    return MethodFiles(method_paths(extra_folders))


def get_class(methods: Mapping[str, Registered], name: str) -> type[Method] | type[Rule]:
    """Return the class of a method. Raises UserError if there is no such method, or its file does not import."""
    registered = methods[require_choice(name, methods, kind="method")]
    if registered.cls is None:
        raise UserError(f"could not be imported: {registered.problem}", where=str(registered.path))
    return registered.cls


def load_file(path: Path) -> Registered:
    """Import one method file. Whatever it raises is stored in the entry that is returned."""
    file_hash = ""
    try:
        file_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        cls = _import_class(path)
    except (Exception, SystemExit):  # a broken file is listed with its error
        spec = MethodSpec(path.stem, type(None), Defaults(), file_hash, error=traceback.format_exc())
        return Registered(spec, path, None)
    hp_type = cls.HP if issubclass(cls, Method) else type(None)
    defaults = cls.defaults if issubclass(cls, Method) else Defaults()
    takes = cls.takes_sources if issubclass(cls, Method) else (0, 0)
    trains = not issubclass(cls, Method) or cls.trains
    return Registered(MethodSpec(cls.name, hp_type, defaults, file_hash, takes, trains), path, cls)


def _import_class(path: Path) -> type[Method] | type[Rule]:
    """Import a method file as a module of its own and return its one class. Raises ImportError where it has not one."""
    # path and content are in the module's name: an edited file is imported anew, and two folders may hold one name
    identity = str(path.resolve()).encode() + path.read_bytes()
    module_name = f"harness_methods.{path.stem}_{hashlib.sha256(identity).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pickle look the module up by name
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    module = sys.modules[module_name]
    # classes that the file only imports, Method itself among them, are not its own
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, (Method, Rule)) and item.__module__ == module_name
    ]
    if not re.fullmatch(SLUG, path.stem):
        raise ImportError(f"'{path.stem}' names a folder of results too: letters, digits and _ . + - only")
    named = [item for item in classes if hasattr(item, "name")]
    if len(named) != 1:
        raise ImportError(f"{path.name} must define exactly one Method or Rule with a `name`, found {len(named)}")
    if named[0].name != path.stem:
        raise ImportError(f"{path.name} defines the method '{named[0].name}'; name and file must agree")
    _check_class(named[0])
    return named[0]


def _check_class(cls: type[Method] | type[Rule]) -> None:
    if not isinstance(getattr(cls, "paper", None), Paper):
        raise ImportError(f"{cls.__name__} must state its `paper`, a Paper(key, url)")
    if issubclass(cls, Method) and not (isinstance(cls.HP, type) and is_dataclass(cls.HP)):
        raise ImportError(f"{cls.__name__}.HP must be a dataclass")
