"""What a cell and a result hold: typed, versioned, unknown keys refused."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harness.declarations import Draw, ProtocolReference, Strict, TaskFile
from harness.suite_file import SLUG, Recipe, Sampling

RESULT_FORMAT = 3
"""Raise it when the JSON or the identity of a cell changes. No other format is read: 1 and 2 were never released."""

PLACEMENT = {"suite", "label", "protocol", "grid", "grid_index", "search_seed"}
"""Fields of a cell that say where it stands. Two cells that differ in these alone train the same tensors."""

Key = tuple[str, str, str]
"""(suite, label, cell_id): what tells a cell, and its result, from all others; two rows may hold the same settings."""

Slug = Annotated[str, Field(pattern=SLUG)]
"""A name that names a folder too; a result from elsewhere may claim any."""


class Part(Strict):
    """One task of a mixture, with what decides its rows."""

    task: str
    task_version: int
    task_rules: dict[str, Any] = {}
    definition: TaskFile | None = None


class Mixture(Strict):
    """The tasks that a cell trains on at once, and how often the rows of each come."""

    parts: list[Part]
    sampling: Sampling
    temperature: float


class Start(Strict):
    """One source of a cell's first tensors: the chosen cell of a grid, or a file."""

    title: str
    label: str = ""
    task: str = ""
    backbone: str = ""
    seed: int = 0
    file: str | None = None
    """As the suite names it, where the source is a file."""
    identity: str
    """Hash of the file, or of all cells among which the grid's winner is chosen."""
    family: str
    """The same for every seed of the cell that starts here."""


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
    mixture: Mixture | None = None
    """The tasks behind `task`, where that is the name of a mixture."""
    few_shot: Draw | None = None
    """The few training rows that the cell sees; None stands for all."""
    recipe: Recipe
    init_from: list[Start] = []
    """What its tensors start from; empty where the method's own start is taken."""
    grid: dict[Annotated[str, Field(pattern=r"^((recipe|hp)\..|cell\.init_from$)")], Any] = {}
    """The swept settings and this cell's values, e.g. {"recipe.lr": 0.3}."""
    grid_index: int = 0
    """Place of this point in the grid; the earliest of equals wins."""
    search_seed: int
    """The seed whose grid runs decide which point this seed's table entry shows."""

    @functools.cached_property
    def cell_id(self) -> str:
        """Hash of the resolved cell, defaults included; made once, since a run asks for it at every turn."""
        return digest(self._identity())

    @property
    def seeds(self) -> tuple[int, ...]:
        """The random seeds of the run: of training, and of its few-shot draw if it has one."""
        return (self.seed,) if self.few_shot is None else (self.seed, self.few_shot.seed)

    @property
    def repetition(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What tells this run from the others of its grid point: its seeds, and what it starts from.

        A training seed alone does not, for a group may hold several draws of one, or several starts.
        """
        starts = () if "cell.init_from" in self.grid else tuple(start.identity for start in self.init_from)
        return self.seeds, starts

    @property
    def key(self) -> Key:
        """Under which a cell is planned, claimed, checkpointed and stored."""
        return self.suite, self.label, self.cell_id

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Cell:
        """A copy with other values, whose identity is made anew."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("cell_id", None)
        return copied

    @property
    def group_id(self) -> str:
        """Hash of what all grid points and seeds of one table cell have in common."""
        identity = self._identity()
        identity.pop("seed")
        if self.init_from:
            identity["init_from"] = [start.family for start in self.init_from]
        if self.few_shot is not None:
            identity["few_shot"].pop("seed")
        for key in self.grid:
            part, name = key.split(".", 1)
            (identity if part == "cell" else identity[part]).pop(name, None)
        if "recipe.max_source_length" in self.grid:
            identity["hp"].pop("source_length", None)  # follows the swept length
        return digest({**identity, "label": self.label, "swept": sorted(self.grid)})

    def _identity(self) -> dict[str, Any]:
        identity = self.model_dump(mode="json", exclude=PLACEMENT)
        if self.init_from:
            identity["init_from"] = [start.identity for start in self.init_from]
        return identity


def digest(value: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


Storable = Annotated[str, AfterValidator(_storable)]
"""Text from elsewhere. Half a character, as of undecodable bytes in a path, becomes an escape: JSON cannot read it."""


class Failure(Strict):
    """Why a cell has no score."""

    type: Storable
    message: Storable
    traceback: Storable
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
    parts: dict[str, SplitScore] = {}
    """The scores on each task of a mixture, whose own score is their mean."""


class DrawRecord(Strict):
    """The rows of a few-shot draw, by their place in the task's training split, and the labels that selection saw."""

    rows: list[int]
    class_counts: dict[str, int]
    """Rows by class; one class "" where a task has none."""
    fingerprint: str
    """Of the drawn rows' text, for comparison across methods and machines."""
    num_selection_labels: int
    selection_rows: list[int] | None = None
    """Training rows that chose checkpoint and grid point; None where the whole dev split did."""


class Cuts(Strict):
    """Rows by split whose texts were longer than their limit, in tokens, and were cut there."""

    source_limit: int
    target_limit: int
    sources: dict[str, int]
    targets: dict[str, int]
    cuts_references: bool
    """Whether the references of dev and test were cut like the targets."""


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
    one_class: dict[str, str] = {}
    """Split -> label, of each split of a classification whose rows all have the same."""
    cuts: Cuts | None = None
    """None where nothing was tokenised, as for a rule."""
    fingerprint: str
    """Of all rows of the task's splits, drawn or not."""
    parts: dict[str, DataRecord] = {}
    """The tasks of a mixture, whose own numbers are sums."""
    few_shot: DrawRecord | None = None


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
    num_tasks: int = 1
    """Tasks of the mixture that they serve; papers print the share of one task."""

    def per_task(self, kind: Literal["num_trained", "num_kept"]) -> int:
        """What papers print for a method trained on several tasks at once: all parameters over all tasks."""
        total: int = getattr(self, kind)
        return round(total / self.num_tasks)

    num_head: int = 0
    """Weights of a linear head, which stand in neither of the other two."""


class Usage(Strict):
    """What a cell cost. The counts that are None come from training, and a rule trains nothing.

    Times are this cell's share of its bundle, by the positions that its rows took; rates are therefore the
    bundle's where its cells have rows of one length. Memory is the peak of the bundle, or of its first process. A cell
    that failed in training has accounts up to there.
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
    """Forward and backward pass of the training positions, padding left out."""
    utilisation: float | None = None
    """model_flops over what the devices could have done in train_s; None where their peak is not known."""
    train_s: float
    eval_s: float
    total_s: float
    peak_memory_bytes: int
    bundle_cells: int
    micro_batch_tokens: int | None = None
    """Token budget of a training micro-batch at the end."""
    num_out_of_memory: int = 0
    """Times that the bundle ran out of memory and halved a budget."""
    num_processes: int = 1
    """Processes that trained the bundle together, each on a device of its own."""


class MetricRecord(Strict):
    """How to recompute a task's metrics from stored predictions."""

    reported: list[str]
    extra: list[str]
    selection: str
    labels: list[str]
    parts: dict[str, MetricRecord] = {}
    """The metrics of each task of a mixture."""


class StartRecord(Strict):
    """Which tensors a cell did start from."""

    title: str
    cell_id: str | None = None
    """The cell that trained them; None for a file."""
    tensors: str
    """SHA-256 of their file."""


class Files(Strict):
    """SHA-256 of the files beside the JSON; None where there is nothing to keep."""

    predictions: str | None = None
    tensors: str | None = None


class Result(Strict):
    """The JSON that a cell leaves behind."""

    format: int = RESULT_FORMAT
    cell_id: str
    group_id: str
    status: Literal["done", "failed", "unfit"]
    """`unfit`: the method does not fit the backbone, which was known before anything was trained."""
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
    starts: list[StartRecord] = []
    """In the order of the cell's `init_from`."""
    data: DataRecord | None = None
    backbone: BackboneRecord | None = None
    method_sha256: str
    provenance: dict[str, Any]
    started_at: str
    finished_at: str
    files: Files = Files()
    checksum: str | None = None
    """`results.checksum` of the rest of the JSON; None only until the result is stored."""

    @property
    def key(self) -> Key:
        """Its cell's key, with the identity as it is stored: `verify` holds that against the cell."""
        return self.cell.suite, self.cell.label, self.cell_id
