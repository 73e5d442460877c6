"""What a suite file may hold: typed, versioned, unknown keys refused."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from harness.errors import nearest
from harness.suite.blocks import FewShot, ProtocolReference, RowLimit, Strict, TaskFile
from harness.suite.report_block import ReportBlock

SUITE_FORMAT = 1

MAX_SEED = 2**32
MOST_TRIALS = 1_000
"""Points that a search may try. Each question to Optuna takes longer than the one before; a thousand take minutes."""
LabelTokens = Literal["longest_label"] | Annotated[int, Field(ge=2, le=1_000)]
Sampling = Literal["proportional", "equal", "temperature"]
ADAPTER = "adapter"
"""Key of a row, and of a source, that names an adapter which was trained elsewhere."""
SLUG = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}$"


NO_TEXT, SHIPPED_TEXT = "none", "shipped"
"""What `recipe.forgetting_text` may be beside the path of a file."""


def checked_text(value: str) -> str:
    """Return the name of a general text. Raises ValueError for any but `none`, `shipped` and the path of a .txt file.

    A path has to end so, or a slip such as `shiped` would pass for one.
    """
    if value in (NO_TEXT, SHIPPED_TEXT) or value.endswith(".txt"):
        return value
    match = nearest(value, (NO_TEXT, SHIPPED_TEXT))
    raise ValueError(
        f"expected {NO_TEXT}, {SHIPPED_TEXT} or the path of a .txt file beside the suite, got {value!r}"
        + (f"; did you mean {match}?" if match else "")
    )


class Recipe(Strict):
    """Training settings shared by methods. Defaults are those of the ACCEPT paper's code."""

    steps: int = Field(30_000, ge=1, le=10_000_000)
    """Training steps."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Rows of one step."""
    lr: float = Field(0.3, gt=0, allow_inf_nan=False)
    """Highest learning rate."""
    warmup_steps: int = Field(1_800, ge=0)
    """Steps in which the learning rate rises from 0 to `lr`."""
    warmup_max_share: float = Field(0.06, ge=0, le=1)
    """Upper bound of the warm-up as a share of `steps`, so that a shortened run still reaches its lr."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """What the learning rate does after the warm-up: fall to 0 in a straight line, stay, or fall as half a cosine."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight decay of AdamW."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean of the gradients in AdamW."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of the mean of their squares in AdamW."""
    eps: float = Field(1e-6, gt=0, allow_inf_nan=False)
    """Added to the root of that mean in AdamW."""
    adamw: Literal["torch", "transformers"] = "torch"
    """Where eps comes in: after the bias correction as in PyTorch, or before it as in transformers up to 4.x."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients of a cell are scaled down to this norm where theirs is larger."""
    eval_every: int = Field(1_000, ge=1)
    """Steps from one dev score to the next."""
    max_source_length: int | None = Field(None, ge=4, le=1_000_000)
    """Tokens of the source text; None takes the task's own."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """Number format of the forward pass; `bfloat16` is autocast, tensors that train stay in float32."""
    backbone_dropout: bool = True
    """Whether dropout inside the frozen backbone is active in training, as in the papers' code."""
    quantization: Literal["none", "bf16", "int8", "nf4"] = "none"
    """How the frozen weights are stored; all but `none` are computed with in bfloat16."""
    head: Literal["label", "linear", "hidden"] = "label"
    """Whether an answer is written as text, or read off by a trained linear layer, alone or behind a hidden one."""
    head_lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Learning rate of that head."""
    pooling: Literal["first", "mean"] | None = None
    """Where the head reads an encoder: at the first token (None), or as the mean over the tokens of the text."""
    label_tokens: LabelTokens = "longest_label"
    """How far labels are decoded: as the longest with its end, or so many tokens with the start if that is more."""
    forgetting_text: Annotated[str, AfterValidator(checked_text)] = NO_TEXT
    """General text whose loss is measured before and after training: none, `shipped`, or a .txt file by the suite."""

    @model_validator(mode="after")
    def _quantized_in_bfloat16(self) -> Recipe:
        if self.quantization != "none" and self.precision != "bfloat16":
            raise ValueError(f"quantization {self.quantization} needs recipe.precision: bfloat16, got {self.precision}")
        return self

    @property
    def has_head(self) -> bool:
        """Whether answers are read off by a trained head."""
        return self.head != "label"

    @property
    def effective_warmup(self) -> int:
        """Warm-up steps after the bound by `warmup_max_share`."""
        return min(self.warmup_steps, int(self.warmup_max_share * self.steps))


class Tuning(Strict):
    """How the settings of each table entry are searched."""

    seeds: Literal["first", "each"] = "first"
    """On the first seed only, or again for each seed."""
    strategy: Literal["grid", "halving", "random", "tpe"] = "grid"
    """`grid` trains every point of the sweeps to its end; of `halving` the weaker half leaves at marks on the way.
    `random` draws `trials` points from sweeps and ranges; `tpe` asks Optuna for them, guided by the dev scores so far.
    """
    trials: int | None = Field(None, ge=1, le=MOST_TRIALS)
    """Points that `random` and `tpe` try for each table entry, failed ones included: the budget, equal for all."""
    startup: int = Field(8, ge=1, le=MOST_TRIALS)
    """Points of `tpe` that are drawn at random, before results guide the others."""
    batch: int = Field(4, ge=1, le=64)
    """Points of `tpe` that are asked for at a time, and share forward passes."""
    seed: int = Field(0, ge=0, lt=MAX_SEED)
    """Seed of the search: which points are drawn."""
    pruning: Literal["none", "halving"] = "none"
    """`halving` lets the weaker half of the points that train together leave early, as the strategy of that name."""
    begin: Literal["learnt", "at_once"] = "learnt"
    """Whether marks count only once a point is clearly above a constant answer on dev, or from the first one."""

    @model_validator(mode="after")
    def _a_budget_where_points_are_drawn(self) -> Tuning:
        if self.draws and self.trials is None:
            raise ValueError(f"strategy {self.strategy} needs trials, how many points each row may try, e.g. 16")
        if not self.draws and self.trials is not None:
            raise ValueError(f"strategy {self.strategy} tries every point of its sweeps; trials is of random and tpe")
        if self.strategy == "tpe" and self.seeds == "each":
            raise ValueError("strategy tpe searches on the first seed; seeds: each is of grid, halving and random")
        return self

    @property
    def draws(self) -> bool:
        """Whether points are drawn from a space, up to `trials`."""
        return self.strategy in ("random", "tpe")

    @property
    def prunes(self) -> bool:
        """Whether points may leave a search before their end."""
        return "halving" in (self.strategy, self.pruning)

    def num_cells(self, num_points: int, num_seeds: int) -> int:
        """Cells of a table entry that selection will ask for in all: the grid, then the winner's other seeds."""
        return num_points * num_seeds if self.seeds == "each" else num_points + num_seeds - 1


class Where(Strict):
    """Which cells an exception applies to; an empty list means all."""

    tasks: list[str] = []
    """Names of tasks."""
    methods: list[str] = []
    """Labels of rows under `methods` or `sources`."""
    backbones: list[str] = []
    """Short names of backbones."""


class ExceptionRule(Strict):
    """Settings that differ for the cells selected by `where`."""

    where: Where
    """The cells that it applies to."""
    recipe: dict[str, Any] = {}
    """Settings of the recipe for these cells."""
    hp: dict[str, Any] = {}
    """Settings of their methods for these cells."""


class Execution(Strict):
    """How cells are computed.

    It changes no mathematics: last digits differ, and with dropout, or in methods that draw per forward pass (AdaMix),
    the random numbers that a row meets.
    """

    micro_batch_tokens: int | None = Field(None, ge=64)
    """Tokens, padding included, that one forward pass of the backbone may hold; None suits the device."""
    compile: bool = False
    """Train input-side methods through torch.compile: minutes at the start of a process, for faster steps on a GPU."""
    bundle_cells: int = Field(64, ge=1)
    """At most this many cells share a bundle."""
    max_cells: int = Field(10_000, ge=1)
    """A suite of more cells, every grid point with every seed, is refused before any is made: raise it to mean it."""
    checkpoint_every: str = "5m"
    """How often the state of a bundle in training is kept, e.g. 90s, 10m, 2h, 500 steps; or off."""
    processes: int = Field(1, ge=1, le=64)
    """Processes of this machine that train each bundle together (data parallel), each on a GPU of its own."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` divides weights, gradients and moments among the processes for cells that train the whole backbone."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads a backbone's layers over all GPUs of the machine."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, and compute the layer again there: less memory, more time."""

    @field_validator("checkpoint_every")
    @classmethod
    def _an_interval(cls, value: str) -> str:
        if not re.fullmatch(r"off|[1-9]\d{0,8} ?(s|m|h|steps)", value):
            raise ValueError("must be off, or a whole number with s, m, h or steps behind it, as in 10m or 500 steps")
        return value

    @model_validator(mode="after")
    def _shards_need_processes(self) -> Execution:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(f"sharding {self.sharding} needs execution.processes of 2 or more, got 1")
        if self.sharding != "none" and self.device_map is not None:
            raise ValueError(f"sharding {self.sharding} and device_map {self.device_map} both place weights: take one")
        return self


class Measure(Strict):
    """What is measured beside scores. Nothing here changes a score, and it is no part of a cell's identity."""

    answering: bool = False
    """Time and memory of answering, by the bare backbone, each method beside it, and merged into it."""
    rows: int = Field(32, ge=1, le=100_000)
    """Rows of dev that are answered for it."""
    rounds: int = Field(5, ge=1, le=1_000)
    """How often each of the three answers them, in turn; the median counts."""


class MixtureFile(Strict):
    """Several tasks that a cell trains on at once, declared under `define_mixtures`; it is scored on each."""

    tasks: list[str] = Field(min_length=2)
    """Names of the tasks."""
    sampling: Sampling = "proportional"
    """How often a task's rows come: by their number n, equally often, or by n^(1 / temperature)."""
    temperature: float = Field(10.0, ge=1, allow_inf_nan=False)
    """For `temperature` sampling: 1 draws by n, a large one equally often."""

    @field_validator("tasks")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("lists a task twice")
        return value


class SourceChoice(Strict):
    """Where a cell's first tensors come from: the selected tensors of another cell, or a file of prompt vectors."""

    method: str | None = None
    """Row of `methods` or `sources`, or a method with its own defaults."""
    task: str | None = None
    """None takes the cell's own task."""
    backbone: str | None = None
    """None takes the cell's own; another must have the same shapes."""
    seed: Literal["first", "own"] = "first"
    """One source for all seeds, trained on the first, or one for each."""
    file: str | None = None
    """A safetensors file instead, relative to the suite file."""
    adapter: str | None = None
    """Folder of an adapter that was trained elsewhere instead, relative to the suite file."""
    base_model: Literal["recorded", "any"] = "recorded"
    """Whether the network that an adapter records must have the backbone's name."""

    @model_validator(mode="after")
    def _one_of_these(self) -> SourceChoice:
        if [self.method, self.file, self.adapter].count(None) != 2:
            raise ValueError("give one of method, whose cell is the source, file, or adapter")
        if self.method is None and (self.task or self.backbone):
            raise ValueError("task and backbone say which cell is the source; a file has neither")
        if self.adapter is None and self.base_model != "recorded":
            raise ValueError("base_model belongs to an adapter")
        return self

    @property
    def title(self) -> str:
        """In words for tables: "prompt_tuning on mnli"."""
        if self.file is not None or self.adapter is not None:
            return Path(self.file or self.adapter or "").name
        return " on ".join(filter(None, (self.method, self.task or "the own task", self.backbone)))


class SuiteFile(Strict):
    """One suite file as written; `{sweep: [...]}` and `{range: [low, high]}` may stand for values of recipe or hp."""

    suite: str = Field(pattern=SLUG)
    """Name of the suite, and of its folder of results."""
    version: int = SUITE_FORMAT
    """Format of the file. This program reads 1."""
    description: str = ""
    """One sentence for `harness suites`."""
    backbones: list[str] = Field(min_length=1)
    """A known name, a folder or a hub id each; `NAME=SOURCE` gives a name of your own."""
    tasks: list[str] = Field(min_length=1)
    """Names of shipped tasks, of `define_tasks` or of `define_mixtures`."""
    seeds: list[Annotated[int, Field(ge=0, lt=MAX_SEED)]] | None = Field(None, min_length=1)
    """Training seeds; None takes the protocol's for each task."""
    repeats: int = Field(1, ge=1, le=100)
    """Times that each reported cell is trained with the same seed, which shows how far re-runs lie apart."""
    protocol: ProtocolReference = ProtocolReference()
    """The rules: a name, or `base` and the keys that differ."""
    few_shot: FewShot | None = None
    """Train on k rows of each task instead of all of them."""
    rows: dict[Annotated[str, Field(pattern=SLUG)], RowLimit] = {}
    """Use a part of a task's rows, where all cost too much; a note under each table says so."""
    define_tasks: dict[Annotated[str, Field(pattern=SLUG)], TaskFile] = {}
    """Tasks on your own data."""
    define_mixtures: dict[Annotated[str, Field(pattern=SLUG)], MixtureFile] = {}
    """Several tasks that one cell trains on."""
    tuning: Tuning = Tuning()
    """How settings are searched."""
    recipe: dict[str, Any] = {}
    """Training settings of all methods; each value may be a sweep or a range."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Rows of the table: label -> the method's own settings, and `method`, `recipe`, `init_from`."""
    sources: dict[str, dict[str, Any]] = {}
    """Rows like those of `methods` that are trained only where another cell starts from them."""
    exceptions: list[ExceptionRule] = []
    """Settings that differ for some cells; later ones win."""
    execution: Execution = Execution()
    """How cells are computed."""
    measure: Measure = Measure()
    """What is measured beside scores."""
    report: ReportBlock = ReportBlock()
    """Layouts that show the results; no effect on them."""

    @field_validator("methods", "sources", mode="before")
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
        repeated = sorted(item for item, count in Counter(map(str, value or [])).items() if count > 1)
        if repeated:
            raise ValueError(f"lists {', '.join(repeated)} more than once")
        return value

    @model_validator(mode="after")
    def _one_process_measures(self) -> SuiteFile:
        if self.measure.answering and self.execution.processes > 1:
            raise ValueError(
                "measure.answering times one process, and execution.processes has "
                f"{self.execution.processes}: measure in a run of one"
            )
        return self


@dataclass(frozen=True)
class Defaults:
    """What a method's paper prescribes for it; values may be `sweep(...)`."""

    recipe: dict[str, Any] = field(default_factory=dict)
    hp: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    """Settings to search where a suite draws points (`random`, `tpe`), in place of the values above: "recipe.lr" or
    "hp.rank" -> `span(...)` or `sweep(...)`."""


@dataclass(frozen=True)
class MethodSpec:
    """What suites need to know of a method, without its tensors."""

    name: str
    hp_type: type
    defaults: Defaults
    source_sha256: str
    takes_sources: tuple[int, int | None] = (0, 0)
    """Fewest and most sources that a cell may start from; None for no upper bound."""
    trains: bool = True
    """Whether its cells take steps."""
    error: str | None = None
    """Traceback of a file that failed to import; its cells are recorded as failed."""

    @property
    def is_rule(self) -> bool:
        """Whether it answers without training, so that no recipe applies."""
        return self.hp_type is type(None) and self.error is None

    @property
    def answers_from_files(self) -> bool:
        """Whether it answers with what was trained elsewhere: it takes no step, and starts from a source."""
        return not self.trains and self.takes_sources[0] > 0
