"""One point of the grid: what identifies a cell, and how it is stored. Unknown keys are refused."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from harness.suite.blocks import Draw, ProtocolReference, RowLimit, Strict, TaskFile
from harness.suite.file_schema import SLUG, Recipe, Sampling
from harness.suite.sweeps import without_path

NOT_IDENTITY = {"suite", "label", "protocol", "grid", "grid_index", "search_seed", "study"}
"""Fields of a cell that say where it stands. Two cells that differ in these alone train the same tensors."""

YOUNGER: dict[str, dict[str, Any]] = {
    "recipe": {"pooling": None, "forgetting_text": "none"},
    "definition": {
        "messages": None,
        "form": "suffix",
        "system": "",
        "words": [],
        "choices": [],
        "answered_by": "writing",
        "choice_score": "sum",
        "num_beams": 1,
        "stop": [],
        "max_new_tokens": None,
    },
}
"""Settings that came after many results were stored, with their defaults: at these they are no part of an identity."""

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
    adapter: str | None = None
    """As the suite names it, where that file is of an adapter which was trained elsewhere."""
    config: dict[str, Any] = {}
    """The configuration in that adapter's folder."""
    any_base: bool = False
    """Whether the suite says that the network recorded in it need not have the backbone's name."""
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
    repeat: int = Field(1, ge=1)
    """Which training of the same cell and seed this is; 1 is the one that counts."""
    protocol: ProtocolReference
    task_rules: dict[str, Any] = {}
    """What the protocol sets of the task record."""
    definition: TaskFile | None = None
    """The task itself where the suite file declares it."""
    mixture: Mixture | None = None
    """The tasks behind `task`, where that is the name of a mixture."""
    few_shot: Draw | None = None
    """The few training rows that the cell sees; None stands for all."""
    row_limit: RowLimit | None = None
    """How many rows of each split there are at most; None stands for all."""
    recipe: Recipe
    init_from: list[Start] = []
    """What its tensors start from; empty where the method's own start is taken."""
    grid: dict[Annotated[str, Field(pattern=r"^((recipe|hp)\..|cell\.init_from$)")], Any] = {}
    """The swept settings and this cell's values, e.g. {"recipe.lr": 0.3}."""
    grid_index: int = 0
    """Place of this point in the grid, or number of the trial; the earliest of equals wins."""
    study: str = ""
    """`Search.name` of the search that asked for this point; empty for a point of a grid."""
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
        for cached in ("cell_id", "group_id"):
            vars(copied).pop(cached, None)
        return copied

    @functools.cached_property
    def group_id(self) -> str:
        """Hash of what all grid points and seeds of one table entry have in common; made once."""
        identity = self._identity()
        identity.pop("seed")
        identity.pop("repeat", None)
        if self.init_from:
            identity["init_from"] = [start.family for start in self.init_from]
        if self.few_shot is not None:
            identity["few_shot"].pop("seed")
        for key in self.grid:
            part, name = key.split(".", 1)
            without_path(identity if part == "cell" else identity[part], name)
        if "recipe.steps" in self.grid:
            identity["hp"].pop("num_steps", None)  # follows the swept steps
        if "recipe.max_source_length" in self.grid:
            identity["hp"].pop("source_length", None)  # follows the swept length
        return digest({**identity, "label": self.label, "swept": sorted(self.grid)})

    def _identity(self) -> dict[str, Any]:
        identity = self.model_dump(mode="json", exclude=NOT_IDENTITY)
        if self.init_from:
            identity["init_from"] = [start.identity for start in self.init_from]
        # younger than many results, whose ids they leave alone
        if self.repeat == 1:
            identity.pop("repeat")
        if self.row_limit is None:
            identity.pop("row_limit")
        for block, fields in YOUNGER.items():
            for part in self._blocks(identity, block):
                for name, default in fields.items():
                    if part.get(name, default) == default:
                        part.pop(name, None)
        return identity

    @staticmethod
    def _blocks(identity: dict[str, Any], block: str) -> list[dict[str, Any]]:
        """Return the blocks of that name, in the cell itself and in each part of its mixture, without those of None."""
        parts = (identity.get("mixture") or {}).get("parts", [])
        return [found for holder in (identity, *parts) if (found := holder.get(block)) is not None]


def digest(value: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
