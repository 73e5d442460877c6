"""Conversations in a user's rows: what stands before the last answer, and that answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.errors import UserError, require_choice

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each message, in order."""

ROLES = ("system", "user", "assistant")
READ = ("role", "content")
"""Keys of a message that are read."""
_FORM = 'Expected [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'


STEERING = {
    "tool_calls": "a call of a tool",
    "function_call": "a call of a function",
    "tool_call_id": "the answer of a tool",
    "name": "the name of who speaks",
    "reasoning_content": "reasoning in front of the answer",
    "reasoning": "reasoning in front of the answer",
    "thinking": "reasoning in front of the answer",
    "refusal": "a refusal in place of the answer",
    "audio": "sound",
    "images": "images",
    "weight": "whether the message is trained on",
    "train": "whether the message is trained on",
    "prefix": "that the answer goes on",
}
"""Key of a message -> what it holds, of those that some chat template or trainer would read.

Without them a row would be another one, so it is refused; other keys (a date, a language) are left out and counted."""


def read_messages(value: object, where: str, column: str) -> tuple[Messages, str, tuple[str, ...]]:
    """Return the conversation before the answer, the answer, which is the last message, and the keys left out.

    `value` is a list of {role, content}, or such a list as JSON. A system message may stand first; then user and
    assistant take turns. Raises UserError, at `where`, for anything else, and for a message with one of STEERING.
    """
    items = _as_list(value, where, column)
    messages = tuple(_message(item, number, where, column) for number, item in enumerate(items, 1))
    turns = messages[1:] if messages and messages[0][0] == "system" else messages
    begin = len(messages) - len(turns)
    for number, (role, _) in enumerate(turns):
        expected = ROLES[1:][number % 2]
        if role != expected:
            before = "at the beginning" if number + begin == 0 else f"behind that of {messages[number + begin - 1][0]}"
            problem = f"message {number + begin + 1} of '{column}' is of {role}; {before} comes one of {expected}"
            hint = "A system message may stand first; then user and assistant take turns."
            raise UserError(problem, where=where, hint=hint)
    if not turns or turns[-1][0] != "assistant":
        problem = f"'{column}' does not end with a message of assistant, which would be the answer to train on"
        raise UserError(problem, where=where)
    unread = dict.fromkeys(key for item in items for key in item if key not in READ and not _is_nothing(item[key]))
    return messages[:-1], messages[-1][1], tuple(unread)


def _as_list(value: object, where: str, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            problem = f"'{column}' holds no conversation but a text that is not JSON"
            raise UserError(problem, where=where, hint=_FORM) from None
    if not isinstance(value, list):
        raise UserError(f"'{column}' holds no conversation but {value!r:.60}", where=where, hint=_FORM)
    return value


def _message(item: object, number: int, where: str, column: str) -> tuple[str, str]:
    """Return (role, content) of a message. Raises UserError for an unknown role, and for one that is no text."""
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        problem = f"message {number} of '{column}' has no role and content: {item!r:.60}"
        raise UserError(problem, where=where, hint=_FORM)
    role = require_choice(str(item["role"]), ROLES, kind=f"role of message {number} in '{column}'", where=where)
    steering = next((key for key in STEERING if not _is_nothing(item.get(key))), None)
    if steering is not None:
        problem = (
            f"message {number} of '{column}', of {role}, has '{steering}' ({STEERING[steering]}), which is not read"
        )
        raise UserError(problem, where=where, hint="Write it into content, or take the key or the row out.")
    content = _only_part(item["content"], f"message {number} of '{column}', of {role},", where)
    if content is None or (isinstance(content, str) and not content.strip()):
        raise UserError(f"message {number} of '{column}', of {role}, is empty", where=where)
    if not isinstance(content, str):
        problem = f"the content of message {number} in '{column}' is no text but {type(content).__name__}"
        raise UserError(problem, where=where)
    return role, content


def _only_part(content: object, message: str, where: str) -> object:
    """Return the text of a content in parts, [{"type": "text", "text": "..."}], and any other content as it is.

    Raises UserError for several parts, which some programs join with a line break and others with nothing, and for one
    that is no text.
    """
    if not isinstance(content, list | tuple) or not all(
        isinstance(part, Mapping) and "type" in part for part in content
    ):
        return content
    kinds = [str(part["type"]) for part in content]
    if kinds == ["text"]:
        return content[0].get("text")
    if set(kinds) == {"text"}:
        raise UserError(f"{message} has {len(kinds)} parts of text", where=where, hint="Join them into one text.")
    if not kinds:
        return ""
    other = next(kind for kind in kinds if kind != "text")
    raise UserError(f"{message} has a part of type '{other}'; only text is read", where=where)


def _is_nothing(value: object) -> bool:
    """Return whether a key is there for its column alone: Parquet gives a key that one message has to all."""
    return value is None or value == "" or (isinstance(value, (list, tuple, dict)) and not value)
