"""Printing to a screen that may lack characters: a text that cannot be shown is replaced, and no command fails on it.

Python raises UnicodeEncodeError when it prints "≈" to an ASCII or Latin-1 terminal. That would end a training run
because of one line of its progress.
"""

from __future__ import annotations

import codecs
import sys
from typing import IO

PLAIN = {
    **dict.fromkeys("─━═╌┄", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯", "+"),
    **{"–": "-", "—": "-", "−": "-", "±": "+-", "≈": "~", "≤": "<=", "≥": ">=", "×": "x", "✓": "v", "…": "..."},
    **{"→": "->", "←": "<-", "·": ".", "•": "*", "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " "},
}
"""Characters that the program prints -> ASCII for them. Any other missing character becomes an escape (\\u65e5)."""
HANDLER = "harness.plain"
"""Name of the error handler, as the `errors` argument of `str.encode` takes it."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler: (replacement for the characters that could not be encoded, where to go on)."""
    if not isinstance(error, UnicodeEncodeError):  # decoding and translating have no replacement to offer
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or ascii(char)[1:-1] for char in missing), error.end


codecs.register_error(HANDLER, _plain)


def on_screen(text: str, stream: IO[str] | None = None) -> str:
    """The text as `stream` will show it; standard output if None.

    Tables measure their columns on this text: "±" may become "+-", which is one character wider.
    """
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def as_html(text: str) -> str:
    """An HTML page that standard output can carry: characters become references (&#177;) unless it is UTF-8.

    The page declares UTF-8, so bytes of another encoding would be read wrongly.
    """
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    return text if encoding == "utf-8" else text.encode("ascii", "xmlcharrefreplace").decode()


def say(text: object = "", *, end: str = "\n", is_error: bool = False) -> None:
    """Print a text to standard output, or with `is_error` to standard error. Missing characters are replaced."""
    stream = sys.stderr if is_error else sys.stdout
    print(on_screen(str(text), stream), end=end, file=stream, flush=True)


def replace_missing_characters() -> None:
    """Make both streams replace missing characters for libraries too, which print the help of the commands."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a stream that a test or a notebook put there may not have it
            reconfigure(errors=HANDLER)
