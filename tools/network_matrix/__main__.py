"""python -m tools.network_matrix [--only A,B] [--write]: train every pair; print the matrix or write it to its page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.provenance import collect_provenance, utc_now
from tools.network_matrix.checkpoints import ARCHITECTURES
from tools.network_matrix.matrix import Pair, judge
from tools.network_matrix.page import BEGIN, END, render

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"


def main() -> int:
    """Return 1 if a pair neither trains nor is refused in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="architectures, separated by commas; all if left out")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/networks.md")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(ARCHITECTURES)
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        parser.error(f"unknown architecture {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    if options.write and options.only:
        parser.error("--write needs all architectures")
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names, 1):
            found = judge(name, Path(folder))
            pairs += found
            counts = [sum(pair.outcome == outcome for pair in found) for outcome in ("trains", "refused", "broken")]
            print(f"{number} of {len(names)}: {name}: {counts[0]} train, {counts[1]} refused, {counts[2]} broken",
                  file=sys.stderr, flush=True)  # fmt: skip
    text = render(pairs, _made())
    if options.write:
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    else:
        print(text)
    broken = [pair for pair in pairs if pair.outcome == "broken"]
    for pair in broken:
        print(f"{pair.method} on {pair.architecture}: {pair.reason}", file=sys.stderr)
    return bool(broken)


def _made() -> str:
    """One line on when, at which commit, and with what the pairs were trained."""
    made = collect_provenance("cpu")
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers", "peft"))
    return f"Made on {utc_now()[:10]} at commit {(made['commit'] or 'unknown')[:10]}, on a CPU, with {versions}."


if __name__ == "__main__":
    raise SystemExit(main())
