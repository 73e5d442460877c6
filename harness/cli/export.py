"""The command `export`: a trained cell for use elsewhere, as plain tensors or as a folder of PEFT with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.options import MethodDirs, require_file
from harness.cli.report import judge
from harness.errors import UserError
from harness.files import new_folder
from harness.hub import check_repository, push_folder
from harness.screen import say

if TYPE_CHECKING:
    from harness.results import Result


def export(
    result: Annotated[Path, typer.Argument(help="JSON of a trained cell.")],
    out: Annotated[Path, typer.Argument(help="Where to write: a file of tensors, or a new folder with --format peft.")],
    format: Annotated[
        Literal["tensors", "peft"], typer.Option("--format", help="Plain tensors, or what PeftModel loads.")
    ] = "tensors",
    backbone: Annotated[str | None, typer.Option(help="Folder or hub id, if the result's name is neither.")] = None,
    methods_dir: MethodDirs = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id that the card names, if the network is a folder here.")
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="NAME", help="Licence of the adapter, for its card.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Then send the folder to this repository of the hub.")
    ] = None,
) -> None:
    """Write what inference needs of a trained cell: plain tensors, or an adapter that PEFT loads, with a model card.

    Example: harness export results/quickstart/micro_sentiment/lora/micro-t5/CELL.json lora --format peft
    """
    if result.is_dir():
        raise UserError("is a folder; name the JSON of one cell in it", where=str(result))
    require_file(result)
    folders = tuple(str(folder) for folder in methods_dir or ())
    if format == "peft":
        _export_peft(result, out, backbone, folders, base_model, license, push)
        return
    for option, value in (("--base-model", base_model), ("--license", license), ("--push", push)):
        if value is not None:
            raise UserError("is for a folder of PEFT", field=option, hint="Say --format peft.")
    from harness.method import export_result

    done = export_result(result, out, backbone, folders)
    for name, shape in done.shapes.items():
        say(f"{name} {shape}")
    say(f"written to {done.path}; as few as {done.num_kept:,} numbers determine it")
    if done.source_changed:
        _say_changed()


def _export_peft(
    path: Path,
    out: Path,
    backbone: str | None,
    method_dirs: tuple[str, ...],
    base_model: str | None,
    license: str | None,
    push: str | None,
) -> None:
    if push is not None:
        check_repository(push)
    with new_folder(out) as aside:
        from harness.method import write_peft_folder
        from harness.report import Adapter, collect_boards, make_card

        done = write_peft_folder(path, aside, backbone, method_dirs, base_model)
        group = _group(path)
        (own,) = (result for other, result in group if other == path)
        (board,) = collect_boards(result for _, result in group)
        name = push or out.resolve().name
        adapter = Adapter(name, done.peft_type, done.base_model, done.code, done.notes, license)
        (verdict,) = judge([board], group)
        make_card(adapter, own, board, verdict).save(aside / "README.md")
    runs = len(group)
    say(f"{done.peft_type}: {done.num_tensors} tensors, {done.num_numbers:,} numbers")
    say(f"PEFT loads it and gives the logits of the cell (largest difference {done.gap:.1g})")
    say(f"it is the checkpoint of step {own.selected_step}, seed {own.cell.seed}, one of {runs} "
        f"{'run' if runs == 1 else 'runs'} of its group; the scores in README.md are the group's")  # fmt: skip
    say(f"written to {out}")
    if done.source_changed:
        _say_changed()
    if push is not None:
        say(f"sent to {push_folder(out, push)}")


def _group(path: Path) -> list[tuple[Path, Result]]:
    """Return the results beside `path` that make one entry of a table with it: other seeds and grid points."""
    from harness.results import read_result

    own = read_result(path)
    others = sorted(other for other in path.parent.glob("*.json") if other != path and not other.name.startswith("."))
    found = [(path, own), *((other, read_result(other)) for other in others)]
    return [item for item in found if item[1].group_id == own.group_id and item[1].cell.suite == own.cell.suite]


def _say_changed() -> None:
    say("note: the method's file has changed since this cell was trained", is_error=True)
