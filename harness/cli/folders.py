"""The commands about several results folders: `compare` two, `merge` some. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.completion import complete_folder
from harness.cli.report import OutFile, SuiteName, scan, write
from harness.garbage import without_gc
from harness.screen import say


@without_gc
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of results.", autocompletion=complete_folder)],
    b: Annotated[
        Path,
        typer.Argument(
            help="Another one; differences are this one's score minus the first's.", autocompletion=complete_folder
        ),
    ],
    format: Annotated[Literal["terminal", "markdown", "json"], typer.Option("--format", help="Form.")] = "terminal",
    suite: SuiteName = None,
    shared_only: Annotated[
        bool,
        typer.Option("--shared-only", help="Leave out what one folder alone has, as where B makes a part of A again."),
    ] = False,
    out: OutFile = None,
    fail_on_difference: Annotated[
        bool,
        typer.Option(
            "--fail-on-difference", help="End with exit code 1 unless both hold the same cells with equal answers."
        ),
    ] = False,
) -> None:
    """Compare two results folders: cells in both and in one, settings and origins that differ.

    Example: harness compare results other --format markdown
    """
    first, second = scan([a], suite).scanned, scan([b], suite).scanned
    from harness.report import compare_folders, render_comparison

    found = compare_folders(first, second, shared_only=shared_only)
    write(render_comparison(found, str(a), str(b), format), out)
    if fail_on_difference and found.differs:
        raise typer.Exit(1)


@without_gc
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A B ...", help="Folders of results.", autocompletion=complete_folder)
    ],
    out: Annotated[Path, typer.Argument(help="The new folder; it must not exist.")],
    prefer: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose copy of a cell counts where copies differ; may be repeated, the first wins.",
            autocompletion=complete_folder,
        ),
    ] = None,
    without_tensors: Annotated[
        bool, typer.Option("--without-tensors", help="Leave trained tensors out, to publish; one folder is enough.")
    ] = False,
) -> None:
    """Merge results folders into a new one: equal cells become one, differing ones are refused; checksums are checked.

    Example: harness merge results other both
    """
    from harness.results import merge_folders

    done = merge_folders(folders, out, prefer or (), without_tensors)
    say(
        f"{done.num_cells:,} cells in {done.num_files:,} files, every checksum checked"
        + (f"; {done.num_equal:,} equal copies left out" if done.num_equal else "")
        + (f"; {done.num_replaced:,} differing copies left out for preferred ones" if done.num_replaced else "")
        + (f"; {done.num_kept:,} files were there from a merge that was cut off" if done.num_kept else "")
        + f". Results: {out}"
    )
