"""Print the longest files and functions of some folders: python benchmarks/longest.py harness methods."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# enough to see what stands out, few enough to read
NUM_SHOWN = 15


def main(folders: list[str]) -> None:
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.py")):
        text = path.read_text()
        files.append((len(text.splitlines()), str(path)))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions.append(((node.end_lineno or 0) - node.lineno + 1, f"{path}:{node.lineno} {node.name}"))
    for kind, found in (("files", files), ("functions", functions)):
        print(f"The longest {kind}, in lines:")
        for length, name in sorted(found, reverse=True)[:NUM_SHOWN]:
            print(f"{length:6} {name}")


main(sys.argv[1:])
