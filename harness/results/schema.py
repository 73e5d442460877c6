"""The JSON that a cell leaves behind: scores, costs and where they come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FiniteFloat

from harness.backbone import BackboneRecord
from harness.data import DataRecord
from harness.suite import Cell, Key, Strict

RESULT_FORMAT = 3
"""Raise it when the JSON or the identity of a cell changes. No other format is read: 1 and 2 were never released."""


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
    """Weights of a head, its hidden layer included, which stand in neither of the other two."""


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
    """Positions of prompts in training: of each row, or of each step where a decoder reads a prompt once for all rows.
    Keys and values that a method gives take none."""
    num_target_tokens: int | None = None
    num_padding: int | None = None
    """Positions that only filled up micro-batches."""
    num_eval_prompt_tokens: int | None = None
    """Positions of prompts in all evaluations."""
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
    signatures: dict[str, str] = {}
    """Metric of a library -> the options and versions that its scores depend on, as sacrebleu writes them."""
    parts: dict[str, MetricRecord] = {}
    """The metrics of each task of a mixture."""


class Forgetting(Strict):
    """The loss on a general text before and after training, in nats per token."""

    text: str
    """As the suite names it."""
    sha256: str
    window: int = 0
    """Tokens that are read at once."""
    num_tokens: int = 0
    """Tokens that were predicted."""
    before: FiniteFloat | None = None
    """Of the bare backbone."""
    after: FiniteFloat | None = None
    """Of the selected checkpoint."""
    problem: Storable | None = None
    """Why there is no rise."""

    @property
    def rise(self) -> float | None:
        """How much the loss has risen; None where it could not be measured."""
        return None if self.before is None or self.after is None else self.after - self.before


class AnsweringForm(Strict):
    """One way to answer: with the bare backbone, a method beside it, or merged into it."""

    ms_per_row: float
    """Median over rounds."""
    peak_bytes: int
    """Weights, and the most that tensors took beside them in answering."""
    disk_bytes: int
    """Of what has to be stored beside the backbone: nothing, the method's tensors, or another backbone."""


class AnsweringCost(Strict):
    """What answering costs, measured in one process in alternation."""

    num_rows: int
    """First rows of dev."""
    num_rounds: int
    batch_tokens: int
    """Token budget of a micro-batch."""
    bare: AnsweringForm
    beside: AnsweringForm
    merged: AnsweringForm | None = None
    not_merged: Storable = ""
    """Why the method cannot be merged; empty where it was."""


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
    forgetting: Forgetting | None = None
    """None where nobody asked for it, and for a cell that is not trained to its end."""
    answering: AnsweringCost | None = None
    """None where nobody asked for it, and in older results."""
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

    @property
    def is_answered_from_files(self) -> bool:
        """Whether it answers with an adapter that was trained elsewhere, and took no step here."""
        starts = any(start.adapter is not None for start in self.cell.init_from)
        return starts and self.usage is not None and not self.usage.num_steps
