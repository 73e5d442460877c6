"""All shipped tasks by name. Each benchmark is one module with a tuple TASKS; a new one is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from harness.data.tasks.task import Task

__all__ = ["Task", "all_tasks"]


def all_tasks() -> dict[str, Task]:
    """Return every task by name, from all modules of this package."""
    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(__path__):
        for task in getattr(importlib.import_module(f"{__name__}.{module.name}"), "TASKS", ()):
            assert task.name not in found, f"two task records are called {task.name}"
            found[task.name] = task
    return found
