"""Printing to a screen that may lack characters: a text that cannot be shown is replaced and ends no command."""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

PLAIN = {
    **dict.fromkeys("─━═╌┄", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯", "+"),
    **{"–": "-", "—": "-", "−": "-", "±": "+-", "≈": "~", "≤": "<=", "≥": ">=", "×": "x", "✓": "v", "…": "..."},
    **{"→": "->", "←": "<-", "·": ".", "•": "*", "‘": "'", "’": "'", "“": '"', "”": '"', "\N{NO-BREAK SPACE}": " "},
}
"""Characters that we print and that an encoding such as cp1252 may lack -> their replacement. Others become escapes."""
HANDLER = "harness.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement of characters that an encoding lacks, in the form that `codecs.register_error` wants."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or ascii(char)[1:-1] for char in missing), error.end


codecs.register_error(HANDLER, _plain)


def on_screen(text: str, stream: TextIO | None = None) -> str:
    """Return the text as a stream will show it, by default standard output. Columns are laid out by its width."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def as_html(text: str) -> str:
    """Return a page for standard output. The page says that it is UTF-8, so for another encoding characters become
    references such as `&#233;`."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    return text if encoding == "utf-8" else text.encode("ascii", "xmlcharrefreplace").decode()


def say(text: object = "", *, end: str = "\n", is_error: bool = False) -> None:
    """Print a text to standard output, or with `is_error` to standard error, whatever characters it holds."""
    stream = sys.stderr if is_error else sys.stdout
    print(on_screen(str(text), stream), end=end, file=stream, flush=True)


def make_bearable() -> None:
    """Let what libraries print to both streams be replaced as in `say`: their help, their messages about options."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)
