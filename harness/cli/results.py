"""The commands that hold a results folder against itself: `verify` and `score`. Nothing here needs torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.report import Results, scan
from harness.errors import printable
from harness.garbage import without_gc
from harness.screen import say

if TYPE_CHECKING:
    from harness.results import Verified


def verify(
    results: Results = Path("results"),
    format: Annotated[Literal["terminal", "json"], typer.Option("--format", help="terminal or json.")] = "terminal",
) -> None:
    """Check every stored file: fields, checksums, ids, scores, tensors, leftovers; exit code 1 if anything is wrong.

    Example: harness verify results
    """
    from harness.results import verify_folder

    checked = verify_folder(results)
    say(json.dumps(asdict(checked), indent=1) if format == "json" else _table(checked))
    if checked.findings:
        raise typer.Exit(1)


def _table(checked: Verified) -> str:
    lines = [printable(f"{item.path}: {item.kind}: {item.problem}") for item in checked.findings]
    lines += [printable(f"note: {line}") for line in checked.not_recomputed]
    num_wrong = len({item.path for item in checked.findings})
    number = "nothing is wrong" if not lines else f"{len(checked.findings):,} findings about {num_wrong:,} files"
    return "\n".join([*lines, f"{checked.num_results:,} results in {checked.num_files:,} files: {number}"])


@without_gc
def score(results: Results = Path("results")) -> None:
    """Recompute every metric from the stored predictions and show what moved; exit code 1 if anything did.

    Example: harness score results
    """
    from harness.results import rescore_folder

    checked = rescore_folder(scan(results, None))
    for line in [*checked.moved, *checked.refused]:
        say(line)
    say(f"{checked.num_scores:,} scores of {checked.num_runs:,} runs recomputed, {len(checked.moved)} differ")
    if checked.moved:
        raise typer.Exit(1)
