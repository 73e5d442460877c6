"""The commands that hold a results folder against itself: `verify` and `score`. Nothing here needs torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.completion import complete_folder, complete_suite
from harness.cli.options import MethodDirs
from harness.cli.report import scan
from harness.errors import UserError, printable
from harness.garbage import without_gc
from harness.screen import say

if TYPE_CHECKING:
    from harness.results import Submission, Verified

Results = Annotated[Path, typer.Argument(help="Folder of the results.", autocompletion=complete_folder)]


def verify(
    results: Results = Path("results"),
    format: Annotated[Literal["terminal", "json"], typer.Option("--format", help="terminal or json.")] = "terminal",
    submission: Annotated[
        bool, typer.Option("--submission", help="Check it as a stranger's: origins, protocol, seeds, hostile content.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="With --submission: suite that the results have to be of; may be repeated. [the shipped one so named]",
            autocompletion=complete_suite,
        ),
    ] = None,
    methods_dir: MethodDirs = None,
    max_mb: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --submission: most megabytes of a file. [100]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --submission: what is not known here counts as wrong.")
    ] = False,
    without_tensors: Annotated[
        bool, typer.Option("--without-tensors", help="Files of tensors may be absent, as where results are published.")
    ] = False,
) -> None:
    """Check every stored file: fields, checksums, ids, scores, tensors, leftovers; exit code 1 if anything is wrong.

    Example: harness verify results --submission --suite superglue
    """
    if submission:
        if without_tensors:
            raise UserError("is not about a submission, whose tensors are checked", field="--without-tensors")
        _verify_submission(results, format, suite or [], methods_dir or [], max_mb, strict)
        return
    for name, value in (("--suite", suite), ("--methods-dir", methods_dir), ("--max-mb", max_mb), ("--strict", strict)):
        if value:
            raise UserError("is about a submission; add --submission", field=name)
    from harness.results import verify_folder

    checked = verify_folder(results, without_tensors)
    say(json.dumps(asdict(checked), indent=1) if format == "json" else _table(checked))
    if checked.findings:
        raise typer.Exit(1)


def _table(checked: Verified) -> str:
    lines = [printable(f"{item.path}: {item.kind}: {item.problem}") for item in checked.findings]
    lines += [printable(f"note: {line}") for line in checked.not_recomputed]
    num_wrong = len({item.path for item in checked.findings})
    number = "nothing is wrong" if not lines else f"{len(checked.findings):,} findings about {num_wrong:,} files"
    return "\n".join([*lines, f"{checked.num_results:,} results in {checked.num_files:,} files: {number}"])


def _verify_submission(
    folder: Path, style: str, suites: list[str], methods_dir: list[Path], max_mb: int | None, strict: bool
) -> None:
    from harness.method import read_specs
    from harness.results import check_submission
    from harness.runner import known_suites
    from harness.suite import find_suite

    paths = [find_suite(name) for name in suites]
    hashes = {name: spec.source_sha256 for name, spec in read_specs(methods_dir).items() if spec.source_sha256}
    limit = {} if max_mb is None else {"max_bytes": max_mb * 1_000_000}
    checked = check_submission(folder, lambda found: known_suites(found, paths, methods_dir), hashes, **limit)
    is_wrong = bool(checked.findings or (strict and checked.unknown))
    if style == "json":
        say(json.dumps({**asdict(checked), "ok": not is_wrong}, indent=1))
    else:
        say(_submission_table(checked, strict))
    if is_wrong:
        raise typer.Exit(1)


def _submission_table(checked: Submission, strict: bool) -> str:
    """One line for each finding, then one for each thing that is not known, then the sum."""
    lines = [_on_one_line(f"{item.path}: {item.kind}: {item.problem}") for item in checked.findings]
    lines += [_on_one_line(f"unknown: {item.path}: {item.kind}: {item.problem}") for item in checked.unknown]
    wrong = f"{len(checked.findings):,} findings" if checked.findings else "nothing is wrong"
    unknown = f"{len(checked.unknown):,} things are not known here{', which counts as wrong' if strict else ''}"
    end = f"{checked.num_results:,} results in {checked.num_files:,} files: {wrong}"
    return "\n".join([*lines, f"{end}; {unknown}" if checked.unknown else end])


def _on_one_line(text: str) -> str:
    """A text of a stranger's without line ends, which could forge a finding or a line of a workflow's log."""
    return printable(text).replace("\n", "\\n")


@without_gc
def score(results: Results = Path("results")) -> None:
    """Recompute every metric from the stored predictions and show what moved; exit code 1 if anything did.

    Example: harness score results
    """
    from harness.results import rescore_folder

    checked = rescore_folder(scan([results], None).scanned)
    for line in [*checked.moved, *checked.refused]:
        say(line)
    say(f"{checked.num_scores:,} scores of {checked.num_runs:,} runs recomputed, {len(checked.moved)} differ")
    if checked.moved:
        raise typer.Exit(1)
