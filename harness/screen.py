"""What commands print, in the characters that the screen has: no text ends a command because it cannot be shown."""

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
"""Characters of our own that a narrow encoding may lack -> what stands for them. Any other becomes an escape."""
HANDLER = "harness.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that an encoding lacks, as `codecs.register_error` asks for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(char) or ascii(char)[1:-1] for char in missing), error.end


codecs.register_error(HANDLER, _plain)


def on_screen(text: str, stream: TextIO | None = None) -> str:
    """The text as a stream will show it, standard output unless named: what is laid out in columns is cut to this."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def as_html(text: str) -> str:
    """A page for a stream that is not UTF-8: the page says that it is, so other characters have to be references."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    return text if encoding == "utf-8" else text.encode("ascii", "xmlcharrefreplace").decode()


def say(text: object = "", *, end: str = "\n", is_error: bool = False) -> None:
    """Print a text to standard output, or with `is_error` to standard error, whatever characters it holds."""
    stream = sys.stderr if is_error else sys.stdout
    print(on_screen(str(text), stream), end=end, file=stream, flush=True)


def make_bearable() -> None:
    """Let what libraries print to both streams pass as `say` does: their help, their messages about options."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)
