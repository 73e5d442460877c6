"""What `harness tasks` and `harness preview` show: data for JSON, and under "text" the same as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.backbone import Backbone, load_backbone
from harness.data import (
    Example,
    MissingData,
    Task,
    TaskData,
    all_tasks,
    encode,
    encode_choices,
    load_task,
    make_form,
    require_folder,
)
from harness.errors import UserError
from harness.results import notes_on
from harness.runner import find_task
from harness.text_tables import text_table

COUNTED_ROWS = 10_000
"""Rows of a split that a preview tokenises to count what is cut; more would take it half a minute."""


def describe_tasks(data_dir: str | None) -> dict[str, Any]:
    """Every task record; with a data folder also what is there."""
    require_folder(data_dir)
    rows = [_describe_task(task, data_dir) for task in all_tasks().values()]
    columns = ["name", "benchmark", "kind", "score", "split", "published sizes"]
    if data_dir is not None:
        columns += ["found", "sizes", "as published", "duplicates"]
    return {"tasks": rows, "text": text_table(rows, columns)}


def _describe_task(task: Task, data_dir: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": task.name,
        "title": task.title,
        "notes": task.notes,
        "benchmark": task.benchmark,
        "kind": task.kind,
        "score": " + ".join(task.reported),
        "selection": task.selection,
        "split": task.split,
        "published sizes": _sizes(task.sizes),
        "hub": list(dict.fromkeys(map(str, [*task.hub, *(hub for part in task.sources.values() for hub in part.hub)]))),
        "download": task.download,
        "version": task.version,
        "licence": task.licence,
        "citation": task.citation,
    }
    if data_dir is None:
        return row
    try:
        record = load_task(task, data_dir).record
    except MissingData as error:
        return {**row, "found": _lacking(error), "sizes": "", "as published": "", "duplicates": ""}
    except UserError as error:
        return {**row, "found": f"BROKEN: {error}", "sizes": "", "as published": "", "duplicates": ""}
    sizes = (record.num_train, record.num_dev, record.num_test)
    wanted = zip(sizes, task.sizes or sizes, strict=True)
    same = "" if task.sizes is None else "yes" if all(is_ == said for is_, said in wanted if said is not None) else "NO"
    return {
        **row,
        "found": record.source,
        "sizes": _sizes(sizes),
        "as published": same,
        "duplicates": record.num_duplicates,
        "fingerprint": record.fingerprint,
    }


def _lacking(error: MissingData) -> str:
    parts = [f"{folder} has no {' and no '.join(splits)}" for folder, splits in error.lacking.items()]
    return f"incomplete: {'; '.join(parts)}" if parts else ""


def _sizes(sizes: tuple[int | None, int, int] | None) -> str:
    return " / ".join("?" if size is None else f"{size:,}" for size in sizes) if sizes else ""


def describe_rows(
    name: str,
    backbone: str,
    split: str,
    count: int,
    data_dir: str | None,
    suite: Path | None = None,
    protocol: str | None = None,
) -> dict[str, Any]:
    """Rows of a task after tokenisation and truncation, decoded again; with a suite, its own tasks and protocol."""
    require_folder(data_dir)
    task = find_task(name, suite, protocol)
    data = load_task(task, data_dir)
    built = load_backbone(backbone, device="cpu")
    rows = _tokenised(data, built, split, count)
    parts = [
        f"{task.name} {split} row {row['row']}: {row['source_tokens']} source tokens"
        f"{' (cut)' if row['cut'] else ''}, {row['target_tokens']} target tokens"
        f"{' (cut)' if row['target_cut'] else ''}\n"
        f"  source: {_shown(row['source'])}\n  target: {_shown(row['target'])}"
        + (f"\n  tokens: {' | '.join(row['target_pieces'])}" if built.writes_text else "")
        + _told_choices(row["choices"], row["answer"])
        for row in rows
    ]
    form = make_form(task, built)
    record = data.record.model_copy(update={"prompt": form.record})
    sizes = _sizes((record.num_train, record.num_dev, record.num_test))
    ends = built.tokenizer.convert_ids_to_tokens(list(form.end_ids))
    head = f"{record.source}; {record.split_rule}; {sizes} rows\nform {form.name}" + (
        f"; an answer ends at {' or '.join(map(str, ends))}" if built.writes_text else ""
    )
    notes = [*_cuts(data, built, split), *notes_on(task.name, record)]
    text = "\n\n".join(["\n".join([head, *notes]), *parts])
    shown = {"task": name, "data": record.model_dump(), "ends": ends if built.writes_text else []}
    return {**shown, "rows": rows, "notes": notes, "text": text}


def _shown(text: str) -> str:
    """A text with its line breaks visible; each line begins below the first."""
    below = "\n" + " " * len("  source: ")
    return text.replace("\n", f"\\n{below}").removesuffix(below)


def _told_choices(choices: Sequence[str], answer: str) -> str:
    """Lines with the choices of a row as the network sees them, a star at the right one; "" where it writes."""
    return "".join(f"\n  {'*' if str(number) == answer else ' '} choice {number}: {text}"
                   for number, text in enumerate(choices))  # fmt: skip


def _number(task: Task, example: Example) -> str:
    """The number of the right one among what is chosen from; "" where the answer is written."""
    if not task.is_ranked:
        return ""
    return example.references[0] if task.kind == "choice" else str(task.targets.index(example.target))


def _cuts(data: TaskData, backbone: Backbone, split: str) -> list[str]:
    """How many texts and answers of a split are cut, counted on its first rows."""
    task, examples = data.task, data.split(split)[:COUNTED_ROWS]
    encoded = encode(examples, backbone, task, task.max_source_length)
    total = f"{'the first ' if len(examples) < len(data.split(split)) else ''}{len(examples):,} {split}"
    counts = [
        (encoded.num_cut_sources, "source texts", task.max_source_length),
        (encoded.num_cut_targets, "answers", task.max_target_length),
    ]
    return [f"{task.name}: {count:,} of {total} {what} are longer than {limit:,} tokens and are cut there"
            for count, what, limit in counts if count]  # fmt: skip


def _tokenised(data: TaskData, backbone: Backbone, split: str, count: int) -> list[dict[str, Any]]:
    examples = data.split(split)[:count]
    task, limit = data.task, data.task.max_source_length
    encoded, choices = encode(examples, backbone, task, limit), encode_choices(examples, backbone, task)
    rows: list[dict[str, Any]] = []
    for index in range(len(examples)):
        at = np.array([index])
        source, target = encoded.sources(at, 0)[0], encoded.targets(at)[0]
        alone = encode([examples[index]], backbone, task, limit)
        own = [] if choices is None else [choices.tokens(choice[None])[0] for choice in choices.of(at)[0]]
        rows.append(
            {
                "row": index,
                "source": backbone.tokenizer.decode(source),
                "source_ids": source.tolist(),
                # an encoder writes nothing: its head is trained on the class or the number
                "target": backbone.tokenizer.decode(target) if backbone.writes_text else examples[index].target,
                # an id that the vocabulary has no token for has no name either
                "target_pieces": list(map(str, backbone.tokenizer.convert_ids_to_tokens(target.tolist())))
                if backbone.writes_text
                else [],
                "source_tokens": len(source),
                "target_tokens": len(target) if backbone.writes_text else 1,
                "cut": alone.num_cut_sources > 0,
                "choices": [backbone.tokenizer.decode(ids) for ids in own],
                "answer": _number(task, examples[index]),
                "target_cut": alone.num_cut_targets > 0,
            }
        )
    return rows
