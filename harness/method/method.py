"""What a method is: the class that the files in methods/ extend.

Shapes: B rows, T tokens, H hidden width of the backbone, P prompt vectors, S source length in tokens, K tasks of a
mixture, N rows and T target tokens where labels are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.method.layer_change import LayerChange
from harness.method.linear_head import LinearHead
from harness.method.low_rank import LowRank
from harness.method.merging import CannotMerge, Merged, merged_weights
from harness.method.paper import Paper, explain_figure, require_positive, span, sweep
from harness.method.peft_adapter import PeftAdapter, prefix_adapter, prompt_adapter
from harness.method.prompt_init import vocabulary_rows
from harness.method.shared_layers import SharedLayers
from harness.suite import Defaults

__all__ = [
    "Backbone",
    "CannotMerge",
    "Defaults",
    "LayerChange",
    "LowRank",
    "Method",
    "Paper",
    "Rule",
    "explain_figure",
    "require_positive",
    "span",
    "sweep",
    "vocabulary_rows",
]

Found = TypeVar("Found")


class Method(nn.Module):
    """A way to tune a frozen backbone. A subclass makes its tensors in `__init__` and changes the input or the layers.

    Override one of these:

    - `prompt`, `added` or both, when they do not depend on the text. This is the fastest way: one gather from one table
      serves the rows of all cells;
    - `forward`, when the change of the input depends on the text;
    - `layer_changes`, when single modules of the backbone are to give something else;
    - `keys_and_values`, when every layer of a decoder is to see more positions, for which no vector is read;
    - `attach` and `detach`, when more inside the backbone changes than single modules. Such a cell trains alone.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    defaults: ClassVar[Defaults] = Defaults()
    """Settings and grids that a suite gets unless it names its own."""

    takes_sources: ClassVar[tuple[int, int | None]] = (0, 0)
    """Fewest and most sources that a cell may name in `init_from`; None for no upper bound."""

    trains: ClassVar[bool] = True
    """Whether cells take steps; else each is answered once, with what `__init__` has made."""

    sums_losses: ClassVar[bool] = False
    """Whether a step takes the gradient of the sum of a batch's token losses instead of their mean.

    Adam hides the difference in scale; clipping does not: a sum is about as many times larger as the batch has tokens.
    """

    trains_weights: ClassVar[bool] = False
    """Whether the backbone's own matrices train. Their gradients add 2 FLOPs to the 4 per weight and token."""

    @dataclass(frozen=True, kw_only=True)
    class HP:
        """The method's settings, empty here. A subclass lists its own and checks them in `__post_init__`."""

    is_positionwise: bool = False
    """Whether each position of a layer's input is treated by itself, whatever else stands in its row.

    Training may then pack rows: modules get all rows as one, [1, M, in], without padding.
    """

    row_tasks: Tensor | None = None
    """[B], set before each forward pass: which task of a mixture each row belongs to."""
    num_tasks: int = 1
    """Number K of tasks that the method's tensors serve."""

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__()
        self._attached: SharedLayers | None = None
        self.linear_head: LinearHead | None = None
        """The harness sets it unless `recipe.head` is label. It trains and is stored, but is counted apart."""
        self.given_head: Mapping[str, Tensor] = {}
        """`weight` [C, W] and `bias` [C] of a head that `start_from` has found; the head starts from them."""

    def prompt(self) -> Tensor | None:
        """Return the vectors that go in front of every text: [P, H], or [K, P, H] with one prompt per task, or None."""
        return None

    def added(self) -> Tensor | None:
        """Return the table that is added to the token embeddings, [S, H], row i to the i-th token; or None."""
        return None

    def keys_and_values(self) -> Tensor | None:
        """Return what stands in front of every row in each layer of a decoder, [layers, 2, A, P, D], or None.

        A heads have keys, of size D. Cells of such methods share their passes on decoders, and `attach` is not called
        there; it serves the other networks.
        """
        return None

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Make the backbone's input: embeddings [B, T, H], mask [B, T] (1 for a token) -> [B, P+T, H], [B, P+T]."""
        table, prompt = self.added(), self.prompt()
        if table is not None:
            embeds = embeds + table[: embeds.shape[1]]  # a batch may be shorter than S, the longest text of the cell
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

    def merged(self) -> Merged:
        """Return the weights that the backbone has with this method merged into it: weight -> tensor of its shape.

        They answer as the method beside the backbone does, up to rounding. As it stands this merges low-rank updates
        and layers of PEFT among `layer_changes`. Raises CannotMerge where more than weights change.
        """
        cls = type(self)
        if cls.attach is not Method.attach or not cls.is_layer_side() or cls.forward is not Method.forward:
            raise CannotMerge("it changes more than single modules" if cls.is_layer_side() else "it changes the input")
        return merged_weights(self.layer_changes())

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Copy what other cells have learnt into this method's tensors; called once, after `__init__`.

        `sources` stand in the order of `init_from`. Each holds its method's tensors by name, and also `prompt` [P, H]
        and `added` [S, H] where that method collapses to these. Raises ValueError for a source that does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it takes sources and must define start_from()")

    def keep_rows(self, rows: Tensor) -> bool:
        """Follow the rows of an answer that is being written; return whether the method can.

        The next passes read these rows alone, [n] numbers among those of the last pass: rows that have ended leave. A
        row may be named several times, as beams, which change places from token to token. A method that attaches
        itself and remembers what it has seen of each row picks it here, or returns False: then all rows stay to the
        end, and beams are refused.
        """
        if type(self).attach is not Method.attach and not self.is_positionwise:
            return False
        if self.row_tasks is not None:
            self.row_tasks = self.row_tasks[rows]
        return True

    def on_step(self, step: int, num_steps: int) -> None:
        """Do what a method does between steps; called before each training step, counted from 0."""

    def on_update(self, step: int, num_steps: int) -> None:
        """Do what follows an update: called behind each, from 0 on, while its clipped gradients are still there."""

    def penalty(self) -> Tensor | None:
        """Return a term of the loss that depends on no row, a scalar, or None; it is added to the loss once a step.

        Cells that have one still share their passes. The recorded loss is without it.
        """
        return None

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

    def peft_adapter(self, backbone: Backbone) -> PeftAdapter:
        """Return what the method has learnt as PEFT holds it, to be loaded by `PeftModel.from_pretrained`.

        A prompt alone is PEFT's PROMPT_TUNING, keys and values are its PREFIX_TUNING. A method that overrides this
        gives a type of PEFT that computes the same; the harness tries that before it writes anything. Raises
        ValueError where PEFT has none, with the reason as the end of the sentence "PEFT cannot hold it: ...".
        """
        if self.gives_keys_and_values():
            prefix = self.keys_and_values()
            assert prefix is not None
            if self.num_kept > prefix.numel():
                raise ValueError("it has keys and values outside of the decoder too, and PEFT has none there")
            return prefix_adapter(prefix, backbone)
        if self.trains_weights:
            raise ValueError("every weight of the network was trained, so an adapter would be the network")
        if self.is_layer_side():
            raise ValueError("it changes layers as no type of PEFT does")
        if self.depends_on_text():
            raise ValueError("it makes its vectors from each text, and PEFT's are the same for all")
        if self.added() is not None:
            raise ValueError("it adds a table of vectors to the tokens of a text, for which PEFT has no type")
        prompt = self.prompt()
        if prompt is None:
            raise ValueError("it changes nothing of the network, and PEFT has no type for that")
        if prompt.dim() == 3:
            raise ValueError(f"it has a prompt for each of {len(prompt)} tasks, and PROMPT_TUNING has one")
        return prompt_adapter(prompt, backbone)

    @property
    def num_prompt_tokens(self) -> int:
        """Number of positions P that the method puts in front of a text. Raises ValueError for a prompt of wrong shape.

        A method that overrides `forward` and puts vectors in front has to override this too.
        """
        prompt = _called(self.prompt)
        # other shapes may broadcast in `forward` and train something that nobody meant
        if prompt is not None and (not isinstance(prompt, Tensor) or prompt.dim() not in (2, 3)):
            got = list(prompt.shape) if isinstance(prompt, Tensor) else f"a {type(prompt).__name__}"
            raise ValueError(f"prompt() must return [P, H] or [K, P, H], not {got}")
        return 0 if prompt is None else prompt.shape[-2]

    @property
    def num_positions(self) -> int:
        """Number of positions in front of a text that a decoder counts: those of vectors, and of keys and values."""
        given = _called(self.keys_and_values) if self.gives_keys_and_values() else None
        return self.num_prompt_tokens + (0 if given is None else given.shape[3])

    @property
    def num_trained(self) -> int:
        """Number of parameters that train, a head left out."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        head = [] if self.linear_head is None else self.linear_head.parameters()
        return trained - sum(p.numel() for p in head if p.requires_grad)

    @property
    def num_passes(self) -> int:
        """How many times a training step computes with the backbone's matrices: forward, backward, for their gradients.

        1 where the head alone trains, 2 where anything in front of the network or inside it does, 3 where its own
        matrices do.
        """
        if self.trains_weights:
            return 3
        return 2 if self.num_trained else 1

    @property
    def num_head(self) -> int:
        """Number of weights of the head, its hidden layer included; 0 where answers are written as text."""
        return 0 if self.linear_head is None else sum(p.numel() for p in self.linear_head.parameters())

    @property
    def num_kept(self) -> int:
        """Number of parameters that inference has to keep, a head left out."""
        return sum(tensor.numel() for name, tensor in kept_tensors(self).items() if not name.startswith("linear_head."))

    @classmethod
    def for_settings(cls, hp: Any) -> type[Method]:
        """Return the class that these settings make an object of: another one where a method is of several kinds."""
        return cls

    @classmethod
    def is_layer_side(cls) -> bool:
        """Whether the method changes layers and leaves the input as it is."""
        return cls.attach is not Method.attach or cls.layer_changes is not Method.layer_changes

    @classmethod
    def runs_alone(cls) -> bool:
        """Whether its cells train alone: it attaches in its own way, or has a loss of its own."""
        return cls.attach is not Method.attach or cls.token_losses is not Method.token_losses

    def takes_packed_rows(self) -> bool:
        """Whether rows may be packed in training, without padding: the method sees no row in the layers.

        A loss of its own may look into them too, with a hook for one.
        """
        cls = type(self)
        return self.is_positionwise or not (cls.is_layer_side() or cls.token_losses is not Method.token_losses)

    @classmethod
    def gives_keys_and_values(cls) -> bool:
        """Whether the method overrides `keys_and_values`, so that on decoders its cells need not train alone."""
        return cls.keys_and_values is not Method.keys_and_values

    @classmethod
    def depends_on_text(cls) -> bool:
        """Whether the vectors depend on the text: the method overrides `forward` instead of `prompt` and `added`."""
        return cls.forward is not Method.forward


def kept_tensors(method: Method) -> Mapping[str, Tensor]:
    """Return what `method.kept` gives. Raises ValueError unless that is a dict of tensors."""
    return _by_name("kept", _called(method.kept))


def own_export(method: Method) -> Mapping[str, Tensor]:
    """Return what `method.export` gives. Raises ValueError unless that is a dict of tensors."""
    return _by_name("export", method.export())


def _by_name(what: str, found: object) -> Mapping[str, Tensor]:
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}() must return a dict of tensors by name, not a {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what}() must return a dict of tensors by name; {name!r} is a {type(tensor).__name__}")
    return found


def _called(function: Callable[[], Found]) -> Found:
    """Call a method's own code from inside a property, and return what it returns.

    An AttributeError raised there would make nn.Module report that the property itself does not exist, which hides the
    line at fault. Raises RuntimeError in its place, with the same traceback.
    """
    try:
        return function()
    except AttributeError as error:
        raise RuntimeError(str(error)).with_traceback(error.__traceback__) from None


class Rule:
    """A baseline that answers without a backbone: it sees nothing but the labels and the training targets."""

    name: ClassVar[str]
    paper: ClassVar[Paper]

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = list(labels)
        """Target texts of a classification task in label order, the numbers of a choice's texts; else empty."""

    def answers(self, train_targets: Sequence[str], num_rows: int, seed: int) -> list[str]:
        """Return one answer, as text, for each of `num_rows` rows."""
        raise NotImplementedError(f"{type(self).__name__} must define answers()")
