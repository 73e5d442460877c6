"""What `harness plan` says of time: hours per method and task, the whole, and the arithmetic floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from harness.runner import TimeEstimate
from harness.text_tables import text_table

UNKNOWN = "?"


def describe_time(estimates: Sequence[TimeEstimate]) -> dict[str, Any]:
    """Estimates per table entry, their sums, and the same as text."""
    if not estimates:
        return {"entries": [], "hours": 0.0, "text": "Nothing is left to train"}
    hours, floor = _total(estimates, lambda item: item.seconds), _total(estimates, lambda item: item.floor_s)
    rows = [_row(item) for item in estimates]
    whole = {
        "method": "all",
        "cells": sum(item.cells for item in estimates),
        "PFLOP": _show(_sum([item.flops for item in estimates]), 1e15),
        "hours": _show(hours, 1),
        "floor_hours": _show(floor, 1),
    }
    columns = ["method", "task", "backbone", "cells", "PFLOP", "hours", "of_it_evaluation", "floor_hours", "rate"]
    text = (
        "Time of the missing cells on this device (floor: the arithmetic of training at the device's peak)\n\n"
        + text_table([*rows, whole], columns)
    )
    return {"entries": [asdict(item) for item in estimates], "hours": hours, "floor_hours": floor, "text": text}


def _row(item: TimeEstimate) -> dict[str, Any]:
    return {
        "method": item.method,
        "task": item.task,
        "backbone": item.backbone,
        "cells": item.cells,
        "PFLOP": _show(item.flops, 1e15),
        "hours": _show(item.seconds, 3600),
        "of_it_evaluation": _show(item.eval_s, 3600),
        "floor_hours": _show(item.floor_s, 3600),
        "rate": item.origin,
    }


def _total(estimates: Sequence[TimeEstimate], seconds: Callable[[TimeEstimate], float | None]) -> float | None:
    """Hours of all; None unless each is known."""
    total = _sum([seconds(item) for item in estimates])
    return None if total is None else total / 3600


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _show(value: float | None, unit: float) -> str:
    return UNKNOWN if value is None else f"{value / unit:.3g}"
