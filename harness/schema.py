"""What a cell and a result hold: typed, versioned, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.declarations import ProtocolReference, Strict, TaskFile
from harness.suite_file import SLUG, Recipe

RESULT_FORMAT = 2

PLACEMENT = {"suite", "label", "protocol", "grid", "grid_index", "search_seed"}
# fields that came after the first stored results: at its default, such a field leaves no trace in the identity
LATER: dict[str, set[str]] = {"cell": set(), "recipe": set()}


Slug = Annotated[str, Field(pattern=SLUG)]
"""A name that names a folder too; a result from elsewhere may claim any."""


class Cell(Strict):
    """One point of the grid.

    `suite`, `label`, `grid*` and `search_seed` place it, `protocol` says where its settings come from; the rest is its
    identity. So a protocol's key that does not touch a cell does not make another cell of it.
    """

    suite: Slug
    label: Slug
    method: str
    hp: dict[str, Any]
    task: Slug
    task_version: int
    backbone: Slug
    seed: int
    protocol: ProtocolReference
    task_rules: dict[str, Any] = {}
    """What the protocol sets of the task record."""
    definition: TaskFile | None = None
    """The task itself where the suite file declares it."""
    recipe: Recipe
    grid: dict[Annotated[str, Field(pattern=r"^(recipe|hp)\..")], Any] = {}
    """The swept settings and this cell's values, e.g. {"recipe.lr": 0.3}."""
    grid_index: int = 0
    """Place of this point in the grid; the earliest of equals wins."""
    search_seed: int
    """The seed whose grid runs decide which point this seed's table entry shows."""

    @property
    def cell_id(self) -> str:
        """Hash of the resolved cell, defaults included."""
        return _digest(self._identity())

    @property
    def group_id(self) -> str:
        """Hash of what all grid points and seeds of one table cell have in common."""
        identity = self._identity()
        identity.pop("seed")
        for key in self.grid:
            part, name = key.split(".", 1)
            identity[part].pop(name, None)
        if "recipe.max_source_length" in self.grid:
            identity["hp"].pop("source_length", None)  # follows the swept length
        return _digest({**identity, "label": self.label, "swept": sorted(self.grid)})

    def _identity(self) -> dict[str, Any]:
        identity = self.model_dump(mode="json", exclude=PLACEMENT)
        for part, values, model in (("cell", identity, Cell), ("recipe", identity["recipe"], Recipe)):
            for name in LATER[part]:
                if values[name] == model.model_fields[name].get_default(call_default_factory=True):
                    del values[name]
        return identity


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Failure(Strict):
    """Why a cell has no score."""

    type: str
    message: str
    traceback: str
    step: int | None = None


class DevScore(Strict):
    """The dev split scored at one step; `selection` is the task's selection metric, higher is better."""

    step: int
    selection: float
    metrics: dict[str, float]
    train_loss: float | None = None


class SplitScore(Strict):
    """One split scored with the selected checkpoint; `score` is the mean of the reported metrics, 0-100."""

    score: float
    metrics: dict[str, float]
    num_rows: int
    num_unreadable: int


class DataRecord(Strict):
    """Which rows a cell used."""

    source: str
    revision: str
    split_rule: str
    num_train: int
    num_dev: int
    num_test: int
    num_duplicates: int = 0
    """Rows of dev and test whose source text also stands in train."""
    fingerprint: str


class BackboneRecord(Strict):
    """Which weights a cell stood on."""

    source: str
    revision: str
    fingerprint: str
    num_params: int


class ParamCounts(Strict):
    """Trainable parameters: in training, and what inference has to keep."""

    num_trained: int
    num_kept: int


class Usage(Strict):
    """What a cell cost; None where a result of an earlier version does not say.

    Times are this cell's share of its bundle, by the positions that its rows took; rates are therefore the
    bundle's. Memory is the bundle's peak.
    """

    num_steps: int
    num_samples: int
    num_tokens: int
    """Tokens of the training texts; neither prompt nor padding nor target."""
    num_prompt_tokens: int | None = None
    num_target_tokens: int | None = None
    num_padding: int | None = None
    """Positions that only filled up micro-batches."""
    padding_share: float | None = None
    """Padding among all positions: prompt, text and padding."""
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    """Of the texts."""
    model_flops: float | None = None
    """Forward pass and activation gradient of the training positions, padding left out."""
    utilisation: float | None = None
    """model_flops over what the device could have done in train_s; None where its peak is not known."""
    train_s: float
    eval_s: float
    total_s: float
    peak_memory_bytes: int
    bundle_cells: int
    micro_batch_tokens: int | None = None
    """Token budget of a training micro-batch at the end."""
    num_out_of_memory: int = 0
    """Times that the bundle ran out of memory and halved a budget."""


class MetricRecord(Strict):
    """How to recompute a task's metrics from stored predictions."""

    reported: list[str]
    extra: list[str]
    selection: str
    labels: list[str]


class Files(Strict):
    """SHA-256 of the files beside the JSON; None where there is nothing to keep."""

    predictions: str | None = None
    tensors: str | None = None


class Result(Strict):
    """The JSON that a cell leaves behind."""

    format: int = RESULT_FORMAT
    cell_id: str
    group_id: str
    status: Literal["done", "failed"]
    cell: Cell
    failure: Failure | None = None
    metrics: MetricRecord | None = None
    dev_history: list[DevScore] = []
    selected_step: int | None = None
    raced_out_at: int | None = None
    """Step at which a grid point left a search by halving; its best dev score so far stands, it is never tested."""
    protocol: dict[str, Any] = {}
    """The protocol's keys that act on the cell; settings of the suite, which stand in `cell`, may win over them."""
    selection_rule: str = "best dev selection metric, earliest of equals"
    dev: SplitScore | None = None
    test: SplitScore | None = None
    params: ParamCounts | None = None
    usage: Usage | None = None
    data: DataRecord | None = None
    backbone: BackboneRecord | None = None
    method_sha256: str
    provenance: dict[str, Any]
    started_at: str
    finished_at: str
    files: Files = Files()
    checksum: str | None = None
    """`results.checksum` of the rest of the JSON; None in results of format 1, which had none."""
