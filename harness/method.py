"""What a method is, and how the files in methods/ are found.

Shapes: B rows, T tokens, H hidden width of the backbone, P prompt vectors, S source length in tokens, K tasks of a
mixture, N rows and T target tokens where labels are given.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.errors import UserError, require_choice
from harness.heads import LinearHead
from harness.initialization import vocabulary_rows
from harness.layer_change import LayerChange
from harness.low_rank import LowRank
from harness.method_facts import Paper, called, explain_figure, require_positive, sweep
from harness.shared_layers import SharedLayers
from harness.suite_file import SLUG, Defaults, MethodSpec

__all__ = [
    "Backbone",
    "Defaults",
    "LayerChange",
    "LowRank",
    "Method",
    "Paper",
    "Rule",
    "explain_figure",
    "require_positive",
    "sweep",
    "vocabulary_rows",
]


class Method(nn.Module):
    """A way to tune a frozen backbone. A subclass makes its tensors in `__init__` and changes the input or the layers.

    Override one of these:

    - `prompt`, `added` or both, when they do not depend on the text. This is the fastest way: one gather from one table
      serves the rows of all cells;
    - `forward`, when the change of the input depends on the text;
    - `layer_changes`, when single modules of the backbone are to give something else;
    - `attach` and `detach`, when more inside the backbone changes than single modules. Such a cell trains alone.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    defaults: ClassVar[Defaults] = Defaults()
    """Settings and grids that a suite gets unless it names its own."""

    takes_sources: ClassVar[tuple[int, int | None]] = (0, 0)
    """Fewest and most sources that a cell may name in `init_from`; None for no upper bound."""

    sums_losses: ClassVar[bool] = False
    """Whether a step takes the gradient of the sum of a batch's token losses instead of their mean.

    Adam hides the difference in scale; clipping does not: a sum is about as many times larger as the batch has tokens.
    """

    trains_weights: ClassVar[bool] = False
    """Whether the backbone's own matrices train. Their gradients add 2 FLOPs to the 4 per weight and token."""

    @dataclass(frozen=True, kw_only=True)
    class HP:
        """The method's settings, empty here. A subclass lists its own and checks them in `__post_init__`."""

    row_tasks: Tensor | None = None
    """[B], set before each forward pass: which task of a mixture each row belongs to."""
    num_tasks: int = 1
    """Number K of tasks that the method's tensors serve."""

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__()
        self._attached: SharedLayers | None = None
        self.linear_head: LinearHead | None = None
        """The harness sets it where `recipe.head` is linear. It trains and is stored, but is counted apart."""

    def prompt(self) -> Tensor | None:
        """Return the vectors that go in front of every text: [P, H], or [K, P, H] with one prompt per task, or None."""
        return None

    def added(self) -> Tensor | None:
        """Return the table that is added to the token embeddings, [S, H], row i to the i-th token; or None."""
        return None

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Make the backbone's input: embeddings [B, T, H], mask [B, T] (1 for a token) -> [B, P+T, H], [B, P+T]."""
        table, prompt = self.added(), self.prompt()
        if table is not None:
            embeds = embeds + table[: embeds.shape[1]]
        if prompt is None:
            return embeds, mask
        front = prompt[self.tasks_of(embeds)] if prompt.dim() == 3 else prompt.expand(len(embeds), -1, -1)
        return torch.cat([front, embeds], 1), torch.cat([mask.new_ones(front.shape[:2]), mask], 1)

    def tasks_of(self, rows: Tensor) -> Tensor:
        """Return which task each row belongs to, [B]; all 0 where there is one task. `rows` is [B, ...].

        Raises ValueError if the number of rows is not that of `row_tasks`: a method that drops or repeats rows would
        otherwise train the wrong task's tensors without a sign.
        """
        if self.row_tasks is None:
            return torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        if len(self.row_tasks) != len(rows):
            raise ValueError(f"tasks of {len(self.row_tasks)} rows are known, not of these {len(rows)}")
        return self.row_tasks

    def layer_changes(self) -> Sequence[LayerChange]:
        """Return how the method changes single modules of the backbone, each row by itself.

        Cells of such methods share their forward passes.
        """
        return ()

    def attach(self, backbone: Backbone) -> None:
        """Put `layer_changes` into the backbone. A method that overrides this may change more, and trains alone."""
        self._attached = SharedLayers([self.layer_changes()])
        self._attached.attach()

    def detach(self, backbone: Backbone) -> None:
        """Undo `attach`; the backbone has to be bit for bit what it was before."""
        if self._attached is not None:
            self._attached.detach()
        self._attached = None

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Copy what other cells have learnt into this method's tensors; called once, after `__init__`.

        `sources` stand in the order of `init_from`. Each holds its method's tensors by name, and also `prompt` [P, H]
        and `added` [S, H] where that method collapses to these. Raises ValueError for a source that does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it takes sources and must define start_from()")

    def on_step(self, step: int, num_steps: int) -> None:
        """Do what a method does between steps; called before each training step, counted from 0."""

    def token_losses(self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss per target token: [N, L, H], [N, L], [N, T] -> [N, T], 0 where a label is -100.

        L counts prompt and text. A method that overrides this, to add to the cross-entropy, trains alone.
        """
        return backbone.token_losses(embeds, mask, labels)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the trainable tensors in groups, as optimisers of PyTorch take them: `params`, `lr`, `weight_decay`.

        `lr` is the recipe's. A group without `weight_decay` gets the recipe's.
        """
        return [{"params": list(self.parameters()), "lr": lr}]

    def kept(self) -> dict[str, Tensor]:
        """Return the fewest numbers that inference has to store, by name; override it where that is less than trains.

        Factors count as factors (DePT's A and B), although `export` writes their product.
        """
        return dict(self.named_parameters())

    def export(self) -> dict[str, Tensor]:
        """Return tensors, detached and contiguous, that are enough to answer with.

        Where the vectors do not depend on the text these are `prompt` [P, H], `added` [S, H] or both, and this class
        is not needed any more. Any other method gives its own tensors, which `load_export` takes back; it overrides
        both functions where training holds more than inference needs.
        """
        if self.is_layer_side() or self.depends_on_text():
            found: Mapping[str, Tensor | None] = self.state_dict()
        else:
            found = {"prompt": self.prompt(), "added": self.added()}
        return {name: tensor.detach().clone().contiguous() for name, tensor in found.items() if tensor is not None}

    def load_export(self, tensors: Mapping[str, Tensor]) -> None:
        """Answer from exported tensors from now on. Never called for a method that exports prompt and added table."""
        self.load_state_dict(dict(tensors))

    @property
    def num_prompt_tokens(self) -> int:
        """Number of positions P that the method puts in front of a text. Raises ValueError for a prompt of wrong shape.

        A method that overrides `forward` and puts vectors in front has to override this too.
        """
        prompt = called(self.prompt)
        if prompt is not None and (not isinstance(prompt, Tensor) or prompt.dim() not in (2, 3)):
            got = list(prompt.shape) if isinstance(prompt, Tensor) else f"a {type(prompt).__name__}"
            raise ValueError(f"prompt() must return [P, H] or [K, P, H], not {got}")
        return 0 if prompt is None else prompt.shape[-2]

    @property
    def num_trained(self) -> int:
        """Number of parameters that train, a linear head left out."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad) - self.num_head

    @property
    def num_head(self) -> int:
        """Number of weights of the linear head; 0 where answers are written as text."""
        return 0 if self.linear_head is None else self.linear_head.weight.numel()

    @property
    def num_kept(self) -> int:
        """Number of parameters that inference has to keep, a linear head left out."""
        kept = called(self.kept)
        if not isinstance(kept, Mapping) or not all(isinstance(tensor, Tensor) for tensor in kept.values()):
            raise ValueError("kept() must return a dict of tensors by name")
        return sum(tensor.numel() for name, tensor in kept.items() if not name.startswith("linear_head."))

    @classmethod
    def is_layer_side(cls) -> bool:
        """Whether the method changes layers and leaves the input as it is."""
        return cls.attach is not Method.attach or cls.layer_changes is not Method.layer_changes

    @classmethod
    def runs_alone(cls) -> bool:
        """Whether its cells train alone: it attaches in its own way, or has a loss of its own."""
        return cls.attach is not Method.attach or cls.token_losses is not Method.token_losses

    @classmethod
    def depends_on_text(cls) -> bool:
        """Whether the vectors depend on the text: the method overrides `forward` instead of `prompt` and `added`."""
        return cls.forward is not Method.forward


class Rule:
    """A baseline that answers without a backbone: it sees nothing but the labels and the training targets."""

    name: ClassVar[str]
    paper: ClassVar[Paper]

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = list(labels)
        """Target texts of a classification task, in label order; empty for any other task."""

    def answers(self, train_targets: Sequence[str], num_rows: int, seed: int) -> list[str]:
        """Return one answer, as text, for each of `num_rows` rows."""
        raise NotImplementedError(f"{type(self).__name__} must define answers()")


@dataclass(frozen=True)
class Registered:
    """One method file, with its class, or with the error that kept the class from being imported."""

    spec: MethodSpec
    path: Path
    cls: type[Method] | type[Rule] | None

    @property
    def problem(self) -> str:
        """The exception that importing the file raised, with the file's line; empty if there was none."""
        lines = (self.spec.error or "").strip().splitlines()
        # the traceback names the file as it was opened, which need not be how the path is written here
        files = {str(self.path), str(self.path.absolute()), str(self.path.resolve())}
        in_file = [line.strip() for line in lines if any(f'"{file}", line ' in line for file in files)]
        # the last such line is the innermost one: what it called lies in a library
        number = f" (line {in_file[-1].split('line ')[1].split(',')[0]})" if in_file else ""
        return f"{lines[-1].strip()}{number}" if lines else ""

    @property
    def summary(self) -> str:
        """The first line of the file's docstring, which site pages and lists show."""
        doc = sys.modules[self.cls.__module__].__doc__ if self.cls else None
        return (doc or "").strip().partition("\n")[0]


def discover(*extra_folders: str | Path) -> dict[str, Registered]:
    """Find every method file, by name: the shipped ones, those in `extra_folders`, entry points `harness.methods`.

    A file that fails to import becomes an entry that holds the traceback: one broken file of a folder must not stop a
    suite that does not use it. Raises UserError when two files have one name, or a folder does not exist.
    """
    found: dict[str, Registered] = {}
    for path in _method_files(extra_folders):
        registered = load_file(path)
        name = registered.spec.name
        if name in found and found[name].path.resolve() != path.resolve():
            raise UserError(f"the name '{name}' is taken by {found[name].path}", where=str(path))
        found[name] = registered
    return dict(sorted(found.items()))


def get_class(methods: dict[str, Registered], name: str) -> type[Method] | type[Rule]:
    """Return the class of a method. Raises UserError if there is no such method, or its file does not import."""
    registered = methods[require_choice(name, methods, kind="method")]
    if registered.cls is None:
        raise UserError(f"could not be imported: {registered.problem}", where=str(registered.path))
    return registered.cls


def shipped_folder() -> Path:
    """The folder of the method files that come with the program."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "methods"
    return beside if beside.is_dir() else package / "_methods"


def _method_files(extra_folders: Sequence[str | Path]) -> Iterator[Path]:
    folders = [shipped_folder()]
    for folder in extra_folders:
        if not Path(folder).is_dir():
            raise UserError("no such folder", where=str(folder), field="--methods-dir")
        folders.append(Path(folder))
    for folder in folders:
        yield from (p for p in sorted(folder.glob("*.py")) if p.is_file() and not p.name.startswith(("_", ".")))
    for entry in entry_points(group="harness.methods"):
        module = importlib.util.find_spec(entry.module)
        if module and module.origin:
            yield Path(module.origin)


def load_file(path: Path) -> Registered:
    """Import one method file. Whatever it raises is stored in the entry that is returned."""
    file_hash = ""
    try:
        file_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        cls = _import_class(path)
    except (Exception, SystemExit):  # a broken file is listed with its error
        spec = MethodSpec(path.stem, type(None), Defaults(), file_hash, error=traceback.format_exc())
        return Registered(spec, path, None)
    hp_type = cls.HP if issubclass(cls, Method) else type(None)
    defaults = cls.defaults if issubclass(cls, Method) else Defaults()
    takes = cls.takes_sources if issubclass(cls, Method) else (0, 0)
    return Registered(MethodSpec(cls.name, hp_type, defaults, file_hash, takes), path, cls)


def _import_class(path: Path) -> type[Method] | type[Rule]:
    """Import a method file as a module of its own and return its one class. Raises ImportError where it has not one."""
    # path and content are in the module's name: an edited file is imported anew, and two folders may hold one name
    identity = str(path.resolve()).encode() + path.read_bytes()
    module_name = f"harness_methods.{path.stem}_{hashlib.sha256(identity).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses and pickle look the module up by name
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    module = sys.modules[module_name]
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, (Method, Rule)) and item.__module__ == module_name
    ]
    if not re.fullmatch(SLUG, path.stem):
        raise ImportError(f"'{path.stem}' names a folder of results too: letters, digits and _ . + - only")
    named = [item for item in classes if hasattr(item, "name")]
    if len(named) != 1:
        raise ImportError(f"{path.name} must define exactly one Method or Rule with a `name`, found {len(named)}")
    if named[0].name != path.stem:
        raise ImportError(f"{path.name} defines the method '{named[0].name}'; name and file must agree")
    _check_class(named[0])
    return named[0]


def _check_class(cls: type[Method] | type[Rule]) -> None:
    if not isinstance(getattr(cls, "paper", None), Paper):
        raise ImportError(f"{cls.__name__} must state its `paper`, a Paper(key, url)")
    if issubclass(cls, Method) and not (isinstance(cls.HP, type) and is_dataclass(cls.HP)):
        raise ImportError(f"{cls.__name__}.HP must be a dataclass")
