"""What `harness protocols` shows: every key, what it decides, and its value and reason in each protocol."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from harness.protocol import Protocol, describe, keys, protocol_names, resolve
from harness.schema import ProtocolReference


def describe_protocols(style: str) -> dict[str, Any]:
    """All shipped protocols side by side; under "text" a table, in markdown for `style` "markdown"."""
    protocols = {name: resolve(ProtocolReference(name=name)) for name in protocol_names()}
    rows = [
        {
            "point": ", ".join(map(str, key.rows)),
            "key": f"`{key.name}`" if style == "markdown" else key.name,
            "decides": key.about,
            "acts on": key.acts_on,
            **{name: f"{shown(p.values[key.name])}: {p.reasons[key.name]}" for name, p in protocols.items()},
        }
        for key in keys().values()
    ]
    form = "github" if style == "markdown" else "simple"
    widths = None if style == "markdown" else [None, None, 24, 24, 30, 30, 30]
    text = tabulate(rows, headers="keys", tablefmt=form, disable_numparse=True, maxcolwidths=widths)
    return {"protocols": {name: describe(protocol) for name, protocol in protocols.items()}, "text": text}


def protocol_table(protocol: Protocol) -> str:
    """One protocol as a table for `harness plan`."""
    rows = [{**row, "value": shown(row["value"])} for row in describe(protocol)]
    columns = ["key", "value", "acts on", "reason"]
    body = [[row[column] for column in columns] for row in rows]
    return tabulate(body, columns, disable_numparse=True, maxcolwidths=[None, 24, 28, 60])


def shown(value: Any) -> str:
    """A key's value as people write it: 100,000 with its comma, a list without brackets."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
