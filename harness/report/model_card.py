"""The card of a trained cell that goes to other people: scores with intervals, settings, rows, versions, licence.

The scores are those of the cell's group, as in the leaderboard: the runs of all seeds at the chosen grid point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data import METRICS
from harness.report.boards import Board, BoardRow
from harness.report.statistics.intervals import LEVEL
from harness.report.statistics.significance import Significance
from harness.results import Result, results_by_task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


@dataclass(frozen=True)
class Adapter:
    """What a card says of the folder itself."""

    name: str
    """How a reader names it: a repository, or the folder."""
    peft_type: str
    base_model: str
    code: str
    """Python that loads it; `{folder}` stands for its name."""
    notes: Sequence[str]
    license: str | None


def make_card(adapter: Adapter, result: Result, board: Board, significance: Significance | None) -> ModelCard:
    """Return the card of the cell `result`; `board` holds its group alone, `significance` the intervals of it."""
    from huggingface_hub import ModelCard, ModelCardData

    (row,) = board.rows
    cell = result.cell
    title = f"{cell.label} on {cell.task}, {cell.backbone}"
    data = ModelCardData(
        base_model=adapter.base_model,
        library_name="peft",
        license=adapter.license,
        tags=["peft", "parameter-efficient-fine-tuning", adapter.peft_type.lower(), cell.method],
        model_name=title,
        eval_results=[item for part in results_by_task(result) for item in _evaluations(part)],
    )
    parts = [
        f"# {title}",
        f"A {adapter.peft_type} adapter of PEFT for `{adapter.base_model}`, {_history(result)} the harness under "
        f"the protocol {cell.protocol.title}.",
        "## How to load it",
        f"```python\n{adapter.code.replace('{folder}', json.dumps(adapter.name))}\n```",
        _reading(result),
        *adapter.notes,
        "## Scores",
        _scores(board, row, significance),
        _place(result, row),
        "## Settings",
        _block({"method": cell.method, "settings": cell.hp, "recipe": cell.recipe.model_dump(mode="json")}),
        *_grid(result, row),
        "## Rows",
        *(_rows(part) for part in results_by_task(result)),
        "## Made with",
        _origin(result),
        "## Licence",
        _licence(adapter),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _evaluations(result: Result) -> list[EvalResult]:
    """Return each reported metric of test of this cell, not of its group: the hub shows them as the folder's own."""
    from huggingface_hub import EvalResult

    if result.test is None or result.metrics is None:
        return []
    cell, data = result.cell, result.data
    return [
        EvalResult(
            task_type="text-classification" if result.metrics.labels else "text-generation",
            dataset_type=cell.task,
            dataset_name=cell.task,
            dataset_split="test",
            dataset_revision=None if data is None else data.revision,
            metric_type=metric,
            metric_name=METRICS[metric].label if metric in METRICS else metric,
            metric_value=round(result.test.metrics[metric], 4) + 0.0,  # no -0.0
        )
        for metric in result.metrics.reported
    ]


def _reading(result: Result) -> str:
    """How a text has to stand before the network, so that logits are those of the harness."""
    if result.data is None:
        return ""
    forms = {
        "suffix": "the text; a decoder reads ` Label : ` behind it, and its answer follows",
        "plain": "the text alone; a blank and the answer follow",
        "chat": "the tokenizer's chat template with its generation prompt; the answer follows",
    }
    seen = sorted({(prompt.form, prompt.system) for prompt in result.data.prompts})
    lines = [f"The network reads {forms[form]}." + (f" System text: {text!r}." if text else "") for form, text in seen]
    lines.append(
        "A text has the tokenizer's own begin and end tokens once, and a decoder's no end token. Vectors in front "
        "stand before all of them. On such ids the logits are those of the harness. Pass rows of one length, or one at "
        "a time: with vectors in front PEFT counts positions of padding, and the harness does not."
    )
    writing = result.data.writing
    if writing is not None:
        stop = f", or one of the texts {writing.stop}" if writing.stop else ""
        lines.append(f"An answer has at most {writing.max_new_tokens} tokens, its end included, and ends at one of the "
                     f"ids {writing.end_ids}{stop}; beams: {writing.num_beams}.")  # fmt: skip
    return " ".join(lines)


def _scores(board: Board, row: BoardRow, significance: Significance | None) -> str:
    lines = ["| task | metrics | test score | runs |", "|---|---|---|---|"]
    for task in board.tasks:
        entry = row.entries[task]
        if entry.mean is None:
            continue
        span = None if significance is None else significance.intervals.get((row.name, task))
        interval = "" if span is None else f" [{span[0]:z.1f}, {span[1]:z.1f}]"
        pairs = zip(entry.scores, entry.runs, strict=True)
        seeds = ", ".join(f"{score:z.1f} (seed {run.cell.seed})" for score, run in pairs)
        lines.append(f"| {task} | {board.metrics.get(task, '')} | {entry.mean:z.1f}{interval} | {seeds} |")
    single = any(len(entry.runs) == 1 for entry in row.entries.values())
    text = f"In brackets: the {1 - LEVEL:.0%} interval over test rows and seeds"
    text += "; of one run it says nothing about other seeds." if single else "."
    return "\n".join([*lines, "", text])


def _history(result: Result) -> str:
    return "trained elsewhere, and scored by" if result.is_answered_from_files else "trained and scored by"


def _place(result: Result, row: BoardRow) -> str:
    """Which of the group's runs this folder holds."""
    own = "" if result.test is None else f" Its own test score is {result.test.score:z.1f}."
    if result.is_answered_from_files:
        titles = ", ".join(start.title for start in result.cell.init_from)
        return f"This folder holds what `{titles}` held; no step was taken here.{own}"
    text = (f"This folder holds the run of seed {result.cell.seed}, the checkpoint of step {result.selected_step} of "
            f"{result.cell.recipe.steps}, chosen by the rule: {result.selection_rule}.{own}")  # fmt: skip
    shown = {run.cell_id for entry in row.entries.values() for run in entry.runs}
    if result.cell.repeat > 1:
        text += f" It is training {result.cell.repeat} of that seed; the scores above are of the first."
    elif result.cell_id not in shown:
        text += " It is not at the grid point that won on dev, whose scores stand above."
    return text


def _grid(result: Result, row: BoardRow) -> list[str]:
    if not result.cell.grid:
        return []
    runs = max(entry.num_grid_runs for entry in row.entries.values())
    searches = [search for entry in row.entries.values() for search in entry.searches]
    kinds = {run.cell.study.partition("-")[0] for search in searches for run in search if run.cell.study}
    searched = f"{runs} points were tried, drawn by {' and '.join(sorted(kinds))}"
    swept = ", ".join(f"{key} = {value}" for key, value in result.cell.grid.items())
    searched = searched if kinds else f"a grid of {runs} runs was searched"
    return [f"Of these {searched}: {swept} here; the dev score chose."]


def _rows(result: Result) -> str:
    data = result.data
    if data is None:
        return ""
    few = "" if data.few_shot is None else f" {len(data.few_shot.rows)} of the training rows were drawn."
    whole = ", ".join(f"{count:,} {split}" for split, count in data.whole.items())
    few += f" They are a part: there are {whole} rows." if whole else ""
    return (f"`{result.cell.task}` (version {result.cell.task_version}) from {data.source}, revision {data.revision}: "
            f"{data.num_train:,} train, {data.num_dev:,} dev and {data.num_test:,} test rows ({data.split_rule}), "
            f"fingerprint `{data.fingerprint}`.{few}")  # fmt: skip


def _origin(result: Result) -> str:
    made = result.provenance
    versions = made.get("versions") or {}
    lines = [
        f"- harness {made.get('harness') or 'unknown'}, commit `{made.get('commit') or 'unknown'}`"
        + (" with changes that were not committed" if made.get("dirty") else ""),
        f"- {', '.join(f'{name} {versions[name]}' for name in ('torch', 'transformers', 'peft') if name in versions)}"
        f" on {made.get('device') or 'an unknown device'}; finished {result.finished_at}",
        f"- cell `{result.cell_id}`, group `{result.group_id}`, suite `{result.cell.suite}`, method file "
        f"`{result.method_sha256[:12]}`",
    ]
    if result.backbone is not None:
        lines.append(f"- network: {result.backbone.source}, revision {result.backbone.revision}, fingerprint "
                     f"`{result.backbone.fingerprint}`")  # fmt: skip
    if result.params is not None:
        lines.append(f"- {result.params.num_trained:,} parameters were trained")
    return "\n".join(lines)


def _licence(adapter: Adapter) -> str:
    rest = f"The network `{adapter.base_model}` has a licence of its own, and so may the rows."
    return f"{adapter.license or 'None was stated for this adapter (`--license`)'}. {rest}"


def _block(settings: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(settings, indent=1)}\n```"
