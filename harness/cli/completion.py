"""What a shell offers when Tab is pressed: names of suites, methods, tasks and the rest, without importing torch.

Typer calls these functions with what was typed so far. Nothing here may raise: a shell would print the traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from click import Context

from harness.errors import UserError

Complete = Callable[[Context, str], list[str]]


def _quietly(names: Callable[[Context], Iterable[str]]) -> Callable[[Context], list[str]]:
    """Return the names without repeats; those of a file of the user's that is broken are left out."""

    def found(ctx: Context) -> list[str]:
        known: dict[str, None] = {}
        with contextlib.suppress(UserError, OSError):
            for name in names(ctx):
                known[name] = None
        return list(known)

    return found


def one_of(names: Callable[[Context], Iterable[str]]) -> Complete:
    """Complete a single name."""
    known = _quietly(names)

    def complete(ctx: Context, incomplete: str) -> list[str]:
        return [name for name in known(ctx) if name.startswith(incomplete)]

    return complete


def list_of(names: Callable[[Context], Iterable[str]]) -> Complete:
    """Complete the last name of `A,B,...`; names that are there already are not offered again."""
    known = _quietly(names)

    def complete(ctx: Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{name}" for name in known(ctx) if name.startswith(last) and name not in given]

    return complete


def complete_folder(ctx: Context, incomplete: str) -> list[str]:
    """Folders below what was typed, as for results."""
    return [path for path in _paths(incomplete) if path.endswith("/")]


def complete_suite(ctx: Context, incomplete: str) -> list[str]:
    """Shipped suites by name, YAML files and folders by path."""
    from harness.shipped import shipped_suites

    shipped = sorted(path.stem for path in shipped_suites().glob("*.yaml"))
    files = [path for path in _paths(incomplete) if path.endswith(("/", ".yaml", ".yml"))]
    return [*(name for name in shipped if name.startswith(incomplete)), *files]


def complete_checked(ctx: Context, incomplete: str) -> list[str]:
    """What `harness check` takes: a suite or a method file."""
    files = [path for path in _paths(incomplete) if path.endswith(".py")]
    return [*complete_suite(ctx, incomplete), *files]


def _paths(incomplete: str) -> list[str]:
    """Files, and folders with a slash behind them, that begin as typed; hidden ones only if the dot was typed."""
    folder, slash, start = incomplete.rpartition("/")
    base = f"{folder}{slash}"
    with contextlib.suppress(OSError, ValueError):
        entries = sorted(Path(base or ".").iterdir())
        names = [f"{base}{path.name}{'/' if path.is_dir() else ''}" for path in entries if path.name.startswith(start)]
        return [name for name in names if start.startswith(".") or not name[len(base) :].startswith(".")]
    return []


def _suite_keys(ctx: Context, key: str) -> Iterator[str]:
    """Names below a key of the suite file that stands in front on the command line, if there is one."""
    from harness.suite import find_suite
    from harness.yaml_lines import read_document

    # an option that still lacks its value, the one to complete, leaves what stands in front unread
    given: Any = ctx.params.get("suite") or next((text for text in ctx.args if not text.startswith("-")), None)
    if given:
        found = read_document(find_suite(str(given))).data.get(key, ())
        yield from (name for name in found if isinstance(name, str)) if isinstance(found, (dict, list)) else ()


def _methods(ctx: Context) -> Iterator[str]:
    from harness.method import method_paths

    yield from method_paths([str(folder) for folder in ctx.params.get("methods_dir") or ()])
    yield from _suite_keys(ctx, "methods")


def _tasks(ctx: Context) -> Iterator[str]:
    from harness.data import all_tasks

    yield from all_tasks()
    yield from _suite_keys(ctx, "define_tasks")
    yield from _suite_keys(ctx, "define_mixtures")


def _backbones(ctx: Context) -> Iterator[str]:
    from harness.backbone import known_backbones

    yield from known_backbones()
    yield from _suite_keys(ctx, "backbones")


def _protocols(ctx: Context) -> Iterator[str]:
    from harness.suite import protocol_names

    yield from protocol_names()


def _layouts(ctx: Context) -> Iterator[str]:
    from harness.suite import table_names

    yield from ("list", "all", *table_names())


complete_method_list, complete_method = list_of(_methods), one_of(_methods)
complete_task_list, complete_task = list_of(_tasks), one_of(_tasks)
complete_backbone_list, complete_backbone = list_of(_backbones), one_of(_backbones)
complete_protocol = one_of(_protocols)
complete_layout_list = list_of(_layouts)
