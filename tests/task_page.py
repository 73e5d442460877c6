"""What docs/tasks.md shows of each task of today: its record in a table, and a row as `harness preview` shows it."""

from __future__ import annotations

from pathlib import Path

from suite_rows import write_small_decoder
from task_rows import OFFICIAL, write_files

from harness.cli.list_tasks import describe_rows
from harness.data.tasks import Task, all_tasks


def records() -> str:
    """One line for each task."""
    head = ["| task | answered by | score | train / dev / test | split | official files | hub | licence |"]
    return "\n".join([*head, "|---" * 8 + "|", *(_line(all_tasks()[name]) for name in OFFICIAL)]) + "\n"


def _line(task: Task) -> str:
    assert task.sizes is not None
    sizes = " / ".join("?" if size is None else f"{size:,}" for size in task.sizes)
    beams = f", {task.num_beams} beams" if task.num_beams > 1 else ""
    limit = f", at most {task.max_new_tokens} tokens" if task.max_new_tokens else ""
    stop = f", up to {' or '.join(f'`{text!r}`' for text in task.stop)}" if task.stop else ""
    by = {"sum": "likelihood", "per_character": "likelihood by character"}.get(task.choice_score, "")
    how = by if task.kind == "choice" else f"writing{beams}{limit}{stop}"
    hub = ", ".join(dict.fromkeys(str(copy) for copy in _copies(task))) or f"[none]({task.download})"
    score = " + ".join(task.reported) + "".join(f", {name}" for name in task.extra)
    files = _files(list(OFFICIAL[task.name]))
    return f"| `{task.name}` | {how} | {score} | {sizes} | `{task.split}` | {files} | {hub} | {task.licence} |"


def _copies(task: Task) -> list[object]:
    return [copy for source in task.sources.values() for copy in source.hub] or list(task.hub)


def _files(paths: list[str]) -> str:
    """Official files by folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return "; ".join(f"`{folder}`: {', '.join(names)}" for folder, names in folders.items())


def previews(folder: Path) -> str:
    """One test row of each task, read from the official form of the invented rows."""
    backbone = write_small_decoder(folder / "decoder")
    parts = []
    for name, files in OFFICIAL.items():
        data = write_files(folder / name, files)
        lines = str(describe_rows(name, str(backbone), "test", 1, str(data))["text"]).strip().splitlines()
        # of a tokenizer of bytes, which shows nothing
        text = "\n".join(line.rstrip() for line in lines if not line.startswith("  tokens: "))
        parts.append(f"### {name}\n\n{all_tasks()[name].notes}\n\n```\n{text}\n```\n")
    return "\n".join(parts)
