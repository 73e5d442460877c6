"""Damage done to valid examples: to the structure of YAML and JSON, or to the bytes of any file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

STRANGE_TEXTS = ["", " ", "..", "../../x", "/etc/passwd", "\x00", "a\x00b", "\x1b[31m", "\ud800", "﻿", "‮", "é" * 50,
                 "x" * 5_000, "{", "}", "{}", "{a", "{0}", "{a!r}", "{a:>99999999999}", "%s", "nan", "-1", "1e999",
                 "a/b", "a\\b", "~", "$HOME", "<script>alert(1)</script>", "'\"", "evaluate:x", "evaluate:/tmp/x.py",
                 "*a", "&a", "!!python/object/apply:os.system", "\n", "\t", "sweep", "null", "true", "１２", "𝟙",
                 "0x10", "CON", "a..b", "..a", "-", "--help", "http://x/y", "file:///etc/passwd"]  # fmt: skip
STRANGE_NUMBERS = [0, -1, 1, 2, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e308, 5e-324,
                   float("inf"), float("-inf"), float("nan"), True, False]  # fmt: skip


def strange_value(rng: random.Random, depth: int = 0) -> Any:
    """A value that nobody expects."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind <= 1:
        return rng.choice(STRANGE_TEXTS)
    if kind <= 3:
        return rng.choice(STRANGE_NUMBERS)
    if kind == 4:
        return None
    if kind == 5:
        return [strange_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(STRANGE_TEXTS): strange_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    nested: Any = 1
    for _ in range(rng.choice([3, 30, 300])):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def mutated(rng: random.Random, tree: Any, pool: Sequence[Any]) -> Any:
    """A copy of a tree of dicts and lists with one to four of its places changed; `pool` holds values that fit."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree = _changed(rng, tree, pool)
    return tree


def _changed(rng: random.Random, tree: Any, pool: Sequence[Any]) -> Any:
    places = list(_places(tree))
    if not places:
        return strange_value(rng)
    owner, key = rng.choice(places)
    action = rng.randrange(6)
    if action <= 1:
        owner[key] = strange_value(rng)
    elif action == 2:
        owner[key] = rng.choice(pool)
    elif action == 3:
        del owner[key]
    elif action == 4 and isinstance(owner, dict):
        owner[rng.choice([*STRANGE_TEXTS, f"{key}x", str(key).upper()])] = owner.pop(key)
    elif action == 4:
        owner.extend(owner[key : key + 1] * rng.choice([1, 2, 50]))
    else:
        owner[key] = [owner[key]] if rng.random() < 0.5 else {str(key): owner[key]}
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                stack.append(node[key])
    return found


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with a few flipped, cut, doubled, or replaced by what parsers stumble over."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice([1, 1, 4, 40, 400]))
        content = rng.choice(_EDITS)(rng, content, at, end)
    return content


_PIECES = [b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b'"', b"'", b"{", b"[", b"]", b"}",
           b":", b",", b"\\", b"\\ud800", b"!!set", b"&a ", b"*a", b"- ", b"? ", b"|", b">", b"%YAML 1.1\n", b"---\n",
           b"#", b"<<: *a", b"[" * 3_000, b"9" * 5_000, b"0x" + b"f" * 5_000, b"-", b".nan", b"NaN",
           b"\x1b[31m"]  # fmt: skip

Edit = Callable[[random.Random, bytes, int, int], bytes]
_EDITS: list[Edit] = [
    lambda rng, content, at, end: content[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + content[end:],
    lambda rng, content, at, end: content[:at] + content[end:],
    lambda rng, content, at, end: content[:at],
    lambda rng, content, at, end: content[:end] + content[at:end] * rng.choice([1, 2, 30]) + content[end:],
    lambda rng, content, at, end: content[:at] + rng.choice(_PIECES) + content[at:],
    lambda rng, content, at, end: content[:at] + rng.choice(_PIECES) + content[end:],
]
