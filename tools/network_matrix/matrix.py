"""Trains every method on tiny checkpoints of every architecture, and says of each pair whether it trains or why not.

A pair trains where its cell ends without a failure and the loss is finite and falls. It is refused where the plan says
in one sentence that the method does not fit. Any third outcome is a fault of the program.

"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import harness
from harness.errors import UserError
from harness.method import Method, discover
from harness.results import Result, ResultStore
from tools.network_matrix.checkpoints import ARCHITECTURES, build

SMALL: dict[str, dict[str, object]] = {
    "peft": {"config": {"peft_type": "LORA"}},
    "prompt_tuning": {"prompt_length": 8}, "residual_prompt_tuning": {"prompt_length": 8}, "dpt": {"prompt_length": 8},
    "p_tuning": {"prompt_length": 8}, "prefix_tuning": {"prefix_length": 8}, "spot": {"prompt_length": 8},
    "attempt": {"prompt_length": 8}, "mpt": {"prompt_length": 8}, "tpt": {"prompt_length": 8},
    "dept": {"prompt_length": 4, "budget_length": 8, "added_lr": 0.01},
    "accept": {"added_lr": 0.03}, "ept": {"added_lr": 0.03}, "lora": {"rank": 4}, "dora": {"rank": 4},
}  # fmt: skip
"""Settings by method where its own would be too large for texts of 20 tokens and a width of 64."""
RATES = {"finetune": 0.003, "head_only": 0.03, "vera": 0.03, "ia3": 0.03, "bitfit": 0.03}
"""Learning rates by method: full fine-tuning diverges at the rate that the others need within a few steps."""
RATE = 0.01
PROMPT_RATE = 0.1
STEPS = 24
"""The mean loss of the second half has to be below that of the first."""
Outcome = Literal["trains", "refused", "broken"]


@dataclass(frozen=True)
class Pair:
    """What came of one method on one architecture."""

    architecture: str
    method: str
    outcome: Outcome
    reason: str = ""
    """Why it was refused, or what broke."""


def judge(architecture: str, folder: Path, methods: Sequence[str] | None = None, steps: int = STEPS) -> list[Pair]:
    """Train each method (all if None) on a tiny checkpoint of the architecture, made in `folder`."""
    name = "".join(char for char in architecture.lower() if char.isalnum())
    build(architecture, folder / name)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, _rows())) + "\n")
    wanted = [found for found in trainable() if methods is None or found in methods]
    suite = folder / f"{name}.json"  # JSON is YAML
    suite.write_text(json.dumps(_suite(str(folder / name), wanted, steps)))
    try:
        harness.run(suite, results=folder / "results", quiet=True)
    except UserError as error:  # nothing that the suite trains fits
        return [Pair(architecture, method, "refused", error.problem) for method in wanted]
    scanned = (result for _, result in ResultStore(folder / "results").scan())
    stored = {result.cell.label: result for result in scanned if result.cell.backbone == name}
    return [_pair(architecture, method, stored.get(method)) for method in wanted]


def trainable() -> list[str]:
    """The methods that train something, by name."""
    return [
        n
        for n, found in discover().items()
        if found.cls is not None and issubclass(found.cls, Method) and found.cls.trains
    ]


def _pair(architecture: str, method: str, result: Result | None) -> Pair:
    if result is None:
        return Pair(architecture, method, "broken", "left no result")
    if result.status == "unfit":
        return Pair(architecture, method, "refused", result.failure.message if result.failure else "")
    if result.status != "done":
        return Pair(architecture, method, "broken", result.failure.message if result.failure else result.status)
    losses = [score.train_loss for score in result.dev_history if score.train_loss is not None]
    if len(losses) < 2 or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return Pair(architecture, method, "broken", f"its loss does not fall: {losses}")
    return Pair(architecture, method, "trains")


def _suite(backbone: str, methods: Sequence[str], steps: int) -> dict[str, object]:
    classes = {name: found.cls for name, found in discover().items()}
    rows: dict[str, dict[str, object]] = {}
    for method in methods:
        cls = classes[method]
        assert cls is not None
        assert issubclass(cls, Method)
        recipe: dict[str, object] = {"head": "linear"} if method == "head_only" else {}
        rate = RATES.get(method, RATE if cls.is_layer_side() else PROMPT_RATE)
        rows[method] = {**SMALL.get(method, {}), "recipe": {**recipe, "lr": rate}}
        if cls.takes_sources[0]:
            rows[method]["init_from"] = {"method": "source", "task": "first"}
    task = {"files": "rows.jsonl", "fields": {"sentence": "text"}, "label": "label", "labels": ["no", "yes"],
            "dev_share": 8, "test_share": 8, "max_source_length": 40}  # fmt: skip
    source = {"method": "prompt_tuning", "prompt_length": 8, "recipe": {"lr": PROMPT_RATE}}
    return {
        "suite": "networks",
        "backbones": [backbone],
        "tasks": ["second"],
        "seeds": [42],
        "recipe": {"steps": steps, "eval_every": steps // 2, "batch_size": 8, "warmup_steps": 0,
                   "backbone_dropout": False},
        "define_tasks": {"first": task, "second": {**task, "version": 2}},
        "sources": {"source": source} if any("init_from" in row for row in rows.values()) else {},
        "methods": rows,
    }  # fmt: skip


def _rows() -> list[dict[str, str]]:
    """Short texts whose class is a word in them: a network of random weights learns that in a few steps."""
    rng = random.Random(0)
    words = ["river", "stone", "letter", "garden", "window", "paper"]
    signs = {"yes": "bright", "no": "dark"}
    labels = ["yes", "no"] * 12  # 8 to train on, which are every batch: a loss that rises then means no learning
    return [{"text": " ".join([*rng.sample(words, rng.randint(2, 5)), signs[label]]), "label": label}
            for label in labels]  # fmt: skip


def all_pairs(folder: Path, architectures: Sequence[str] | None = None) -> list[Pair]:
    """Judge every method on each architecture, all of them if None."""
    names = architectures or list(ARCHITECTURES)
    return [pair for name in names for pair in judge(name, folder)]
