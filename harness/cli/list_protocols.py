"""What `harness protocols` shows: every key, what it decides, and its value and reason in each protocol."""

from __future__ import annotations

import textwrap
from typing import Any

from tabulate import tabulate

from harness.screen import on_screen
from harness.suite import Protocol, ProtocolReference, protocol_keys, protocol_names, protocol_values, resolve_protocol


def describe_protocols(style: str) -> dict[str, Any]:
    """All shipped protocols side by side; under "text" a table, in markdown for `style` "markdown"."""
    protocols = {name: resolve_protocol(ProtocolReference(name=name)) for name in protocol_names()}
    rows = [
        {
            "point": ", ".join(map(str, key.rows)),
            "key": f"`{key.name}`" if style == "markdown" else key.name,
            "decides": key.about,
            "acts on": key.acts_on,
            **{name: f"{shown(p.values[key.name])}: {p.reasons[key.name]}" for name, p in protocols.items()},
        }
        for key in protocol_keys().values()
    ]
    if style == "markdown":
        text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    else:
        text = _wrapped([list(row.values()) for row in rows], list(rows[0]), [99, 99, 24, 24, *[30] * len(protocols)])
    return {"protocols": {name: protocol_values(protocol) for name, protocol in protocols.items()}, "text": text}


def protocol_table(protocol: Protocol) -> str:
    """One protocol as a table for `harness plan`."""
    body = [[row["key"], shown(row["value"]), row["acts on"], row["reason"]] for row in protocol_values(protocol)]
    return _wrapped(body, ["key", "value", "acts on", "reason"], [99, 24, 28, 60])


def _wrapped(body: list[list[str]], headers: list[str], widths: list[int]) -> str:
    """A plain table whose cells are wrapped at `widths` characters."""
    texts = [[on_screen(str(cell)) for cell in row] for row in body]
    cells = [[textwrap.fill(text, width) for text, width in zip(row, widths, strict=True)] for row in texts]
    return tabulate(cells, headers, disable_numparse=True)


def shown(value: Any) -> str:
    """A key's value as people write it: 100,000 with its comma, a list without brackets."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
