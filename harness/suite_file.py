"""What a suite file may hold: typed, versioned, unknown keys refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from harness.declarations import ProtocolReference, Strict, TaskFile

SUITE_FORMAT = 1

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
    compile: bool = False
    """Train input-side methods through torch.compile: minutes at the start of a process, for faster steps on a GPU."""
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
