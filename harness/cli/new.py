"""`harness new`: writes a commented suite, method or task that runs as it is."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.completion import complete_folder
from harness.errors import UserError
from harness.screen import say

FILES = Path(__file__).parent / "new_files"
SCHEMA = "suite.schema.json"
"""The file that the first line of a new suite names."""


def new(
    kind: Annotated[Literal["suite", "method", "task"], typer.Argument(help="suite, method or task.")],
    name: Annotated[str, typer.Argument(help="Name of what is new, and of its file.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where to write: an existing folder, by default this one; for a method my_methods, which is made.",
            autocompletion=complete_folder,
        ),
    ] = None,
    method_kind: Annotated[
        Literal["prompt", "layer"],
        typer.Option("--kind", help="Of a method: vectors in front of a text, or a change of modules inside."),
    ] = "prompt",
) -> None:
    """Write a commented suite, method or task that runs as it is.

    Example: harness new method my_prompt --kind prompt
    """
    place = folder or Path("my_methods" if kind == "method" else ".")
    _require_name(kind, name)
    if place.exists() and not place.is_dir():
        raise UserError("is a file, not a folder", where=str(place), field="--folder")
    if folder is not None and not place.is_dir():
        raise UserError("no such folder", where=str(place), field="--folder")
    written = _contents(kind, name, place, method_kind)
    _write(place, written)
    for path in written:
        say(f"written: {place / path}")
    if kind == "method":
        say(f"Next: harness check {place / f'{name}.py'}")
    else:
        say(f"Next: harness run {place / f'{name}.yaml'}")


def _require_name(kind: str, name: str) -> None:
    """Raise UserError for a name that is taken by what is shipped, or that cannot be one."""
    from harness.data import all_tasks
    from harness.files import is_reserved
    from harness.method import method_paths
    from harness.shipped import shipped_suites
    from harness.suite import SLUG

    if not re.fullmatch(SLUG, name):
        problem = f"'{name}' cannot name a {kind}: letters, digits and _ . + - only, for it names a folder"
        raise UserError(problem, field="harness new")
    if is_reserved(name):
        raise UserError(f"'{name}' cannot name a {kind}: Windows keeps the name for itself", field="harness new")
    # the name becomes that of a class
    if kind == "method" and (not name.isidentifier() or keyword.iskeyword(name) or keyword.iskeyword(class_name(name))):
        problem = f"'{name}' cannot name a method's file: letters, digits and _ only, a letter first"
        raise UserError(problem, field="harness new")
    shipped = {
        "suite": {path.stem for path in shipped_suites().glob("*.yaml")},
        "method": set(method_paths()),
        "task": set(all_tasks()),
    }[kind]
    if name.lower() in {taken.lower() for taken in shipped}:
        raise UserError(f"a {kind} that comes with the program is called '{name}' already", field="harness new")


def class_name(name: str) -> str:
    """Return the name of a method's class: my_prompt -> MyPrompt."""
    made = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return made if made.isidentifier() else f"Method{made}"


def _contents(kind: str, name: str, place: Path, method_kind: str) -> dict[str, str]:
    """Return file name -> content of all that is written."""
    replaced = {"@NAME@": name, "@CLASS@": class_name(name), "@FILE@": (place / f"{name}.py").as_posix(),
                "@FOLDER@": place.as_posix()}  # fmt: skip
    if kind == "method":
        return {f"{name}.py": _filled(f"{method_kind}.py.txt", replaced)}
    made = {f"{name}.yaml": _filled(f"{kind}.yaml", replaced)}
    if kind == "task":
        made[f"{name}.csv"] = _filled("task.csv", replaced)
    # beside the suite, so that its first line holds on every machine; one that is there is left
    return made if (place / SCHEMA).exists() else {**made, SCHEMA: schema_text()}


def _filled(file: str, replaced: Mapping[str, str]) -> str:
    text = (FILES / file).read_text(encoding="utf-8")
    for mark, value in replaced.items():
        text = text.replace(mark, value)
    return text


def _write(place: Path, contents: Mapping[str, str]) -> None:
    """Write all files, or none if one is there already. Raises UserError, also for a folder that takes no file."""
    from harness.files import discard, put_in_place, write_aside

    taken = [place / name for name in contents if (place / name).exists()]
    if taken:
        raise UserError("is there already", where=str(taken[0]), hint="Choose another name, or --folder.")
    written = []
    try:
        place.mkdir(exist_ok=True)
        for name, text in contents.items():
            content = text.encode()
            written.append(write_aside(place / name, lambda aside, content=content: aside.write_bytes(content)))  # type: ignore[misc]
        put_in_place(written)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(place)) from None
    finally:
        discard(written)


def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
) -> None:
    """Print the JSON Schema of suite files, with which an editor completes and checks them.

    Example: harness schema --out suite.schema.json
    """
    from harness.cli.report import write

    write(schema_text(), out)


def schema_text() -> str:
    """Return the schema with all names that come with the program, as a text of JSON."""
    from harness.backbone import known_backbones
    from harness.data import METRICS, all_tasks
    from harness.method import read_specs
    from harness.suite import Names, suite_schema

    names = Names(list(all_tasks()), known_backbones(), list(METRICS), read_specs())
    return json.dumps(suite_schema(names), indent=1) + "\n"
