"""What a suite file, a cell and a result may hold: typed, versioned, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from harness.declarations import ProtocolReference, Strict, TaskFile

SUITE_FORMAT = 1
RESULT_FORMAT = 1

MAX_SEED = 2**32
SLUG = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$"


class Recipe(Strict):
    """Training settings shared by methods. Defaults are those of the ACCEPT paper's code."""

    steps: int = Field(30_000, ge=1, le=10_000_000)
    batch_size: int = Field(16, ge=1, le=65_536)
    lr: float = Field(0.3, gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(1_800, ge=0)
    warmup_max_share: float = Field(0.06, ge=0, le=1)
    """Upper bound of the warm-up as a share of `steps`, so that a shortened run still reaches its lr."""
    schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0, allow_inf_nan=False)
    clip_norm: float = Field(1.0, gt=0)
    eval_every: int = Field(1_000, ge=1)
    max_source_length: int | None = Field(None, ge=4, le=1_000_000)
    """Tokens of the source text; None takes the task's own."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    backbone_dropout: bool = True
    """Whether dropout inside the frozen backbone is active in training, as in the papers' code."""

    @property
    def effective_warmup(self) -> int:
        """Warm-up steps after the bound by `warmup_max_share`."""
        return min(self.warmup_steps, int(self.warmup_max_share * self.steps))


class Tuning(Strict):
    """How the grid is searched."""

    seeds: Literal["first", "each"] = "first"
    """On the first seed only, or again for each seed."""
    strategy: Literal["grid", "halving"] = "grid"
    """Whether every grid point is trained to its end, or the weaker half leaves at marks on the way."""


class Where(Strict):
    """Which cells an exception applies to; an empty list means all."""

    tasks: list[str] = []
    methods: list[str] = []
    backbones: list[str] = []


class ExceptionRule(Strict):
    """Settings that differ for the cells selected by `where`."""

    where: Where
    recipe: dict[str, Any] = {}
    hp: dict[str, Any] = {}


class Execution(Strict):
    """How cells are computed. It changes no result but those of methods that draw per forward pass (AdaMix)."""

    micro_batch_tokens: int | None = Field(None, ge=64)
    """Tokens, padding included, that one forward pass of the backbone may hold; None suits the device."""
    bundle_cells: int = Field(64, ge=1)
    """At most this many cells share a bundle."""


class SuiteFile(Strict):
    """One suite file as written; `{sweep: [...]}` may stand for any value of recipe or hp."""

    suite: str = Field(pattern=SLUG)
    version: int = SUITE_FORMAT
    description: str = ""
    backbones: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=MAX_SEED)]] | None = Field(None, min_length=1)
    """Training seeds; None takes the protocol's for each task."""
    protocol: ProtocolReference = ProtocolReference()
    define_tasks: dict[Annotated[str, Field(pattern=SLUG)], TaskFile] = {}
    tuning: Tuning = Tuning()
    recipe: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    exceptions: list[ExceptionRule] = []
    execution: Execution = Execution()

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_as_mapping(cls, value: Any) -> Any:
        """Allow `methods: [accept, dept]` and a bare `accept:` for "with its own defaults"."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        if isinstance(value, dict):
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @field_validator("protocol", mode="before")
    @classmethod
    def _protocol_as_reference(cls, value: Any) -> Any:
        """Allow `protocol: NAME` and `protocol: {base: NAME, key: value, ...}`."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "overrides" not in value:
            changed = {key: item for key, item in value.items() if key != "base"}
            return {"name": value.get("base", ProtocolReference().name), "overrides": changed}
        return value

    @field_validator("seeds", "tasks", "backbones")
    @classmethod
    def _no_repeats(cls, value: list[Any] | None) -> list[Any] | None:
        repeated = sorted({str(item) for item in value or [] if (value or []).count(item) > 1})
        if repeated:
            raise ValueError(f"lists {', '.join(repeated)} more than once")
        return value


@dataclass(frozen=True)
class Defaults:
    """What a method's paper prescribes for it; values may be `sweep(...)`."""

    recipe: dict[str, Any] = field(default_factory=dict)
    hp: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodSpec:
    """What suites need to know of a method, without its tensors."""

    name: str
    hp_type: type
    defaults: Defaults
    source_sha256: str
    error: str | None = None
    """Traceback of a file that failed to import; its cells are recorded as failed."""

    @property
    def is_rule(self) -> bool:
        """Whether it answers without training, so that no recipe applies."""
        return self.hp_type is type(None) and self.error is None


PLACEMENT = {"suite", "label", "protocol", "grid", "grid_index", "search_seed"}


class Cell(Strict):
    """One point of the grid.

    `suite`, `label`, `grid*` and `search_seed` place it, `protocol` says where its settings come from; the rest is its
    identity. So a protocol's key that does not touch a cell does not make another cell of it.
    """

    suite: str
    label: str
    method: str
    hp: dict[str, Any]
    task: str
    task_version: int
    backbone: str
    seed: int
    protocol: ProtocolReference
    task_rules: dict[str, Any] = {}
    """What the protocol sets of the task record."""
    definition: TaskFile | None = None
    """The task itself where the suite file declares it."""
    recipe: Recipe
    grid: dict[str, Any] = {}
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
        return self.model_dump(mode="json", exclude=PLACEMENT)


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
