"""Makes harness/results/known_fingerprints.json, the rows and weights that `harness verify --submission` knows.

    python -m tools.known_fingerprints --data DIR --leave-out sst2 --write

Rows are those of the generated tasks, and of every task below DIR that has the published sizes, under each shipped
protocol. Leave out the tasks whose files in DIR are not as published, for example in another order. Weights are those
that come with the program. Rows that are not in DIR keep the entries that they have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from harness.backbone import SHIPPED, weights_fingerprint
from harness.data import Task, all_tasks, load_task, under_protocol
from harness.errors import UserError
from harness.suite import ProtocolReference, protocol_names, resolve_protocol

FILE = Path(__file__).parent.parent / "harness" / "results" / "known_fingerprints.json"


def rows(data: str | None, left_out: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield an entry for each task, and each set of rules that a protocol gives it."""
    seen = set()
    for name in protocol_names():
        protocol = resolve_protocol(ProtocolReference(name=name))
        for task in all_tasks().values():
            rules = protocol.task_fields(task.name, task.benchmark)
            key = (task.name, json.dumps(rules, sort_keys=True))
            if key not in seen and task.name not in left_out and (task.generate or data is not None):
                seen.add(key)
                yield from _entry(under_protocol(task, protocol), rules, data)


def _entry(task: Task, rules: dict[str, Any], data: str | None) -> Iterator[dict[str, Any]]:
    try:
        record = load_task(task, data).record
    except UserError:
        return  # not in the folder
    sizes = [record.num_train, record.num_dev, record.num_test]
    published = all_tasks()[task.name].sizes
    wanted = published if "split" not in rules else None
    is_whole = wanted is not None and all(b in (None, a) for a, b in zip(sizes, wanted, strict=True))
    if task.generate or is_whole:
        yield {
            "task": task.name,
            "version": task.version,
            "rules": rules,
            "sizes": sizes,
            "fingerprint": record.fingerprint,
        }


def made(data: str | None, before: dict[str, Any], left_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the record: what is found now, and what was there of tasks that are not here."""
    found = {_key(entry): entry for entry in rows(data, left_out)}
    kept = {_key(entry): entry for entry in before.get("rows", ()) if entry["task"] not in left_out} | found
    weights = {name: [weights_fingerprint(name)] for name in sorted(SHIPPED)}
    return {"rows": [kept[key] for key in sorted(kept)], "weights": weights}


def _key(entry: dict[str, Any]) -> tuple[str, int, str]:
    return entry["task"], entry["version"], json.dumps(entry["rules"], sort_keys=True)


def as_text(record: dict[str, Any]) -> str:
    """Return the record as JSON with a line for each entry, so that a change is a line."""
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in record["rows"])
    return f'{{\n "rows": [\n{lines}\n ],\n "weights": {json.dumps(record["weights"])}\n}}\n'


def main() -> None:
    """Print the record, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with local copies of the tasks' data")
    parser.add_argument("--leave-out", default="", metavar="A,B,...", help="tasks that are not as published there")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    text = as_text(made(given.data, before, given.leave_out.split(",")))
    if given.write:
        FILE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
