"""A suite file with its methods, tasks and backbones looked up: the one judgement of what a user has written.

A command makes it twice. Before torch is imported, methods are what their source declares (`judge_suite`); that finds
every misspelt name. Then they are the imported classes, whose own code may refuse a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.backbone import is_encoder, resolve_backbone
from harness.data import Task, all_tasks, suite_tasks, under_protocol
from harness.errors import UserError, require_choice
from harness.method import read_specs
from harness.suite import (
    DEFAULT_PROTOCOL,
    Group,
    MethodSpec,
    Overrides,
    ProtocolReference,
    Suite,
    expand_suite,
    load_suite,
    resolve_protocol,
)
from harness.validation import validate_settings


@dataclass(frozen=True)
class ResolvedSuite:
    """A suite, every task that it may name, and the groups of its cells."""

    suite: Suite
    tasks: dict[str, Task]
    groups: list[Group]

    @property
    def backbones_where(self) -> str:
        """Where the user has named the backbones: the option, or the line of the suite file."""
        return "--backbones" if self.suite.overrides.backbones else self.suite.document.where("backbones")


def resolve_suite(path: str | Path, overrides: Overrides, methods: Mapping[str, MethodSpec]) -> ResolvedSuite:
    """Look up every name and setting of a suite file. Raises UserError at the first that is none."""
    suite = load_suite(path, overrides)
    encoders = frozenset(name for name, source in suite.backbone_sources.items() if is_encoder(source))
    suite = replace(suite, encoders=encoders)
    tasks = suite_tasks(suite)
    groups = expand_suite(suite, methods, {name: task.spec for name, task in tasks.items()})
    found = ResolvedSuite(suite, tasks, groups)
    for name in suite.backbones:
        resolve_backbone(suite.backbone_sources[name], found.backbones_where)
    return found


def judge_suite(path: str | Path, overrides: Overrides, method_dirs: Sequence[str | Path] = ()) -> None:
    """Raise UserError for a mistake in a suite or its overrides that shows without importing a method."""
    resolve_suite(path, overrides, read_specs(method_dirs))


def find_task(name: str, suite: Path | None = None, protocol: str | None = None) -> Task:
    """A task under a protocol; with a suite file, also one that the file declares, and the file's own protocol.

    Raises UserError for an unknown name, and for a mixture, which has no rows of its own.
    """
    if suite is not None:
        tasks = suite_tasks(load_suite(suite, Overrides(protocol=protocol)))
    else:
        rules = resolve_protocol(ProtocolReference(name=protocol or DEFAULT_PROTOCOL), "--protocol")
        tasks = {key: under_protocol(task, rules) for key, task in all_tasks().items()}
    task = tasks[require_choice(name, tasks, kind="task")]
    if task.parts:
        choices = [part.name for part in task.parts]
        raise UserError("is a mixture; preview one of its tasks", value=name, field=name, choices=choices)
    return task


def method_settings(spec: MethodSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The hp of a method with those of `settings` such as {"dept.rank": 10} that are its own.

    Raises UserError for one that it does not have.
    """
    own = {key.split(".", 1)[1]: value for key, value in settings.items() if key.split(".", 1)[0] == spec.name}
    return validate_settings(spec.hp_type, own, lambda *key: f"--set {spec.name}.{key[-1]}", (spec.name,))


def check_method_options(
    methods: Mapping[str, MethodSpec], names: Sequence[str] | None, settings: Mapping[str, Any]
) -> None:
    """Raise UserError for an unknown method among `names`, and for an unknown setting of a method that is asked for."""
    for name in names or ():
        require_choice(name, methods, kind="method")
    trained = [name for name in names or methods if not methods[name].is_rule]
    for key in settings:
        name, _, setting = key.partition(".")
        require_choice(name, trained, kind="method", where=f"--set {key}")
        if not setting:
            raise UserError("expected METHOD.SETTING=VALUE", where=f"--set {key}")
        if not methods[name].error:
            method_settings(methods[name], settings)
