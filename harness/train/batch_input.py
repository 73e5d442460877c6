"""The input of one forward pass: token embeddings, and the prompts of many cells in front of their rows.

Most prompts do not depend on the text. `refresh` computes those once a step and lays them into one table of vectors,
and `build` looks up a vector of that table for every position of every row. So a micro-batch costs the same for one
cell as for thirty, and the backward pass goes through each method once a step, not once a micro-batch. A method whose
prompt depends on the text (`forward`) is called for its own rows in each micro-batch.

A decoder reads such prompts by themselves, once a step, and rows then stand behind the keys and values that they leave
(`harness.backbone.shared_prefix`). `groups` says which cells' prompts are read together; `read_prompts` reads them.

Shapes: N rows of a micro-batch, T tokens of the longest text, P prompt tokens, L = max(P + T) positions of the padded
rows, H width of the backbone, S positions of an added table (`source_length`), K tasks of a mixture, V vectors in the
shared table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone import Backbone, Pooling, Prefixes, RowPrefixes, Seal, joined_prefixes, on_device
from harness.data import Encoded
from harness.method import HeadReader, Method, SharedLayers, errors_of_cell

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Rows:
    """Rows of one split, each with the cell that it is for."""

    cells: Index
    """[N] positions in the bundle."""
    rows: Index
    """[N] row numbers in the split."""

    def take(self, order: Index | slice) -> Rows:
        """The rows at these positions, in this order."""
        return Rows(self.cells[order], self.rows[order])

    def __len__(self) -> int:
        return len(self.rows)


class BatchInput:
    """Builds the backbone's input for the rows of several cells; `methods` holds one method for each cell.

    `source_length` is S, the longest text that an added table has rows for. In an encoder-decoder, token t takes row t
    of the table, and so it does in an encoder, whose prompt stands behind its first token. A decoder-only network pads
    on the left, so there the last token takes the last row. With a `seal`, every call of a method is followed by a look
    whether it wrote to the backbone. With `answer_length`, the most tokens of an answer, prompts are read apart from
    the texts where the network allows it; the caller then calls `read_prompts` before it builds. Without `may_pack`
    rows stay padded in training.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        backbone: Backbone,
        source_length: int,
        seal: Seal | None = None,
        pooling: Pooling | None = None,
        answer_length: int | None = None,
        may_pack: bool = True,
    ) -> None:
        self.methods = methods
        self.backbone = backbone
        takes = answer_length is not None and backbone.takes_prefixes
        self.given = np.array([takes and method.gives_keys_and_values() for method in methods], bool)
        """By cell, whether its method gives keys and values that stand in front of its rows."""
        if len(methods) > 1 and any(m.runs_alone() and not given for m, given in zip(methods, self.given, strict=True)):
            raise ValueError("a method that attaches itself, or has a loss of its own, shares no bundle")
        # asked now, since methods that are in the backbone may hide from it what it is
        self._can_pack = (  # the network last: it has to try
            may_pack and all(method.takes_packed_rows() for method in methods) and backbone.takes_packed_rows
        )
        self._reads_once = backbone.is_encoder_decoder or (
            backbone.takes_prefixes
            and all(given or method.takes_packed_rows() for method, given in zip(methods, self.given, strict=True))
        )
        self.seal = None if self.attaches_itself else seal
        self.source_length = source_length
        self.static = [not method.depends_on_text() for method in methods]
        """By cell, whether its prompt and added table come from the shared table."""
        self.prompt_lengths = np.array([self._prompt_length(index) for index in range(len(methods))], np.int64)
        self.heads = [method.linear_head for method in methods if method.linear_head is not None]
        """One for each cell, or none at all: `head` is the same for a whole bundle."""
        self.pooling = pooling
        """Where heads read an encoder: `recipe.pooling`."""
        self._layers = self._shared_layers() if len(methods) > 1 else None
        self._is_attached = False
        self._answer_length = answer_length
        is_plain = self._layers is None
        self._can_share = np.array([is_plain and is_read_apart(method) for method in methods], bool)
        self._cells = np.zeros(0, np.int64)
        """[N]: the cell of each row that the network reads, where cells change layers."""
        self._prefixes: Prefixes | None = None
        self._prefix_index = np.full(len(methods), -1, np.int64)
        """By cell, which of `_prefixes` is its first, task 0's; -1 for a cell whose prompt has not been read."""
        self.table = torch.empty(0)
        """The shared table, [V, H]; row 0 is zero, for positions that take no vector."""
        self.pieces: list[Tensor] = []
        """The parts of the table as the methods made them, with their graphs; none where nothing takes a gradient."""
        self._prompt_starts = np.zeros(len(methods), np.int64)
        """By cell, the row of the table at which its prompt begins; task k of a mixture begins k strides later."""
        self._task_strides = np.zeros(len(methods), np.int64)
        self._added_starts = np.full(len(methods), -1, np.int64)
        """By cell, the row at which its added table begins; -1 for a cell without one."""

    @property
    def calls_per_module(self) -> float:
        """How often a module of the backbone is called in one forward pass, on average.

        Once for itself, and once more for each cell that changes it. Only modules without children count.
        """
        if self._layers is None:
            return 1.0
        return 1.0 + self._layers.num_changes / sum(1 for m in self.backbone.model.modules() if not any(m.children()))

    def _prompt_length(self, index: int) -> int:
        with errors_of_cell(index, self.seal):
            return self.methods[index].num_prompt_tokens

    @property
    def shared(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """By cell, whether its prompt is read apart from its texts, in the mode that the backbone is in.

        A prefix that a method gives as keys and values needs no reading.
        """
        if self._answer_length is None or not self._can_share.any():
            return self.given
        most = self.source_length + int(self.prompt_lengths.max()) + self._answer_length
        shared: np.ndarray[Any, np.dtype[np.bool_]] = self._can_share & self.backbone.shares_prompts(most) | self.given
        return shared

    @property
    def packs(self) -> bool:
        """Whether training reads packed rows, without padding, in the mode that the backbone is in.

        Rows behind prompts that are read apart stay padded.
        """
        return self._can_pack and self.backbone.takes_packed_rows and not self.shared.any()

    @property
    def attaches_itself(self) -> bool:
        """Whether the bundle is one cell whose method changes the backbone in its own way, or has a loss of its own."""
        return len(self.methods) == 1 and self.methods[0].runs_alone() and not self.given[0]

    @property
    def row_prompts(self) -> Index:
        """By cell, the positions that its prompt takes in each row; 0 where it is read apart from them."""
        lengths: Index = np.where(self.shared, 0, self.prompt_lengths)
        return lengths

    def _num_prompts(self, cell: int) -> int:
        """How many prompts a cell has: one for each task of a mixture, or one."""
        return self.methods[cell].num_tasks if self._task_strides[cell] else 1

    def positions_apart(self, cells: Sequence[int], padded: bool = False) -> Index:
        """By cell of the bundle, the positions of the prompts of `cells` that are read apart; 0 for all other cells.

        With `padded` the padding counts too: prompts that are read together are as long as the longest. Call it after
        `refresh`, which learns how many prompts a cell has.
        """
        positions = np.zeros(len(self.methods), np.int64)
        shared = self.shared
        own = [cell for cell in cells if shared[cell]]
        longest = self.prompt_lengths[own].max() if own else 0
        for cell in own:
            positions[cell] = (longest if padded else self.prompt_lengths[cell]) * self._num_prompts(cell)
        return positions

    def groups(self, cells: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Cut cells into groups whose prompts are read together, in at most `max_tokens` positions, or one cell's.

        The graph of such a pass lasts until the rows of its group are done. So memory follows the micro-batch, however
        many cells there are. Where no prompt is read apart, all cells are one group.
        """
        shared = self.shared
        if not shared.any():
            return [list(cells)]
        groups: list[list[int]] = [[]]
        longest = prompts = 0  # of the last group: its longest prompt, and how many prompts it has
        for cell in cells:
            length, count = (int(self.prompt_lengths[cell]), self._num_prompts(cell)) if shared[cell] else (0, 0)
            if groups[-1] and max(longest, length) * (prompts + count) > max_tokens:
                groups.append([])
                longest = prompts = 0
            groups[-1].append(cell)
            longest, prompts = max(longest, length), prompts + count
        return groups

    def read_prompts(self, cells: Sequence[int], grad: bool) -> None:
        """Let the backbone read the prompts of these cells, and ask methods for the keys and values that they give.

        The rows of the next micro-batches are to be of these cells.
        """
        shared = self.shared
        own = [cell for cell in cells if shared[cell]]
        self._prefix_index[:] = -1
        read = [cell for cell in own if not self.given[cell]]
        prefixes = self._read(read, grad) if read else None
        count = 0 if prefixes is None else len(prefixes.mask)
        given: list[Tensor] = []
        for cell in own:
            if self.given[cell]:
                self._prefix_index[cell] = count + len(given)
                with errors_of_cell(cell, self.seal), torch.set_grad_enabled(grad):
                    given.append(self._given(cell))
        self._prefixes = joined_prefixes(prefixes, given) if given else prefixes

    def _given(self, cell: int) -> Tensor:
        """Return the keys and values that a method gives. Raises ValueError unless they are [layers, 2, A, P, D]."""
        made, name = self.methods[cell].keys_and_values(), type(self.methods[cell]).__name__
        layers = int(self.backbone.config.get_text_config().num_hidden_layers)
        if not isinstance(made, Tensor) or made.dim() != 5 or made.shape[:2] != (layers, 2):
            got = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise ValueError(f"{name}.keys_and_values() must return [{layers}, 2, A, P, D], not {got}")
        return made

    def _read(self, cells: Sequence[int], grad: bool) -> Prefixes:
        """Read the prompts of these cells in one pass, each behind the padding that makes it as long as the longest."""
        longest = int(self.prompt_lengths[cells].max())
        tables, masks, count = [], [], 0
        for cell in cells:
            self._prefix_index[cell] = count
            tasks = np.arange(self._num_prompts(cell))
            count += len(tasks)
            place = np.arange(longest) - (longest - int(self.prompt_lengths[cell]))
            starts = self._prompt_starts[cell] + self._task_strides[cell] * tasks
            tables.append(np.where(place >= 0, starts[:, None] + place, 0))
            masks.append(np.broadcast_to(place >= 0, (len(tasks), longest)))
        device = self.backbone.device
        prompts = F.embedding(on_device(np.concatenate(tables), device), self.table)  # [G, P, H]
        return self.backbone.read_prompts(prompts, on_device(np.concatenate(masks), device).long(), grad)

    def finish_prompts(self) -> None:
        """Carry the gradients that the rows of a group have left on its keys and values into the shared table."""
        if self._prefixes is not None:
            self._prefixes.backward()
            self._prefixes = None
            self._prefix_index[:] = -1

    def _shared_layers(self) -> SharedLayers | None:
        """What the cells change in layers, to be put in together; None if no cell changes any."""
        changes = []
        for index, method in enumerate(self.methods):
            with errors_of_cell(index, self.seal):
                changes.append(method.layer_changes())
        return SharedLayers(changes) if any(changes) else None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the layer-side methods are in the backbone; afterwards it is as it was."""
        try:
            self._attach()
            yield
        finally:
            self._detach()

    def of_one(self, method: Method, backbone: Backbone) -> BatchInput:
        """The same for one method alone on a backbone of the same kind, to answer with. Nothing may be attached."""
        return BatchInput([method], backbone, self.source_length, None, self.pooling, self._answer_length, False)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Take the methods out of the backbone for a while; within `attached` they are put back afterwards."""
        was_attached = self._is_attached
        if was_attached:
            self._detach()
        try:
            yield
        finally:
            if was_attached:
                self._attach()

    def _attach(self) -> None:
        self._is_attached = True
        if self._layers is not None:
            self._layers.attach()
        elif not self.given.any():  # one cell, or only input-side cells, whose `attach` does nothing
            self.methods[0].attach(self.backbone)

    def _detach(self) -> None:
        self._is_attached = False
        if self._layers is not None:
            self._layers.detach()
        elif not self.given.any():
            self.methods[0].detach(self.backbone)

    def refresh(self, grad: bool, cells: Sequence[int]) -> None:
        """Compute the prompts and added tables of these cells anew, and lay them into the shared table [V, H].

        Call it once a step, after the tensors moved. The table is a leaf of the graph: every micro-batch adds to its
        gradient, and `backward` carries the sum into the methods.
        """
        weight = self.backbone.embedding.weight
        zero = torch.zeros(1, self.backbone.hidden, dtype=weight.dtype, device=weight.device)
        pieces, end = [zero], 1
        with torch.set_grad_enabled(grad):
            for index in cells:
                if not self.static[index]:
                    continue
                with errors_of_cell(index, self.seal):
                    prompt, added = self.methods[index].prompt(), self.methods[index].added()
                    self._check_shapes(index, prompt, added)
                if prompt is not None:
                    self._prompt_starts[index] = end
                    self._task_strides[index] = prompt.shape[1] if prompt.dim() == 3 else 0
                    pieces.append(prompt.flatten(0, -2))  # [P, H] as it is, [K, P, H] task after task
                    end += len(pieces[-1])
                if added is not None:
                    self._added_starts[index] = end
                    pieces.append(added)
                    end += len(added)
        needs_grad = grad and any(piece.requires_grad for piece in pieces)
        self.pieces = pieces if needs_grad else []
        self.table = torch.cat([piece.detach() for piece in pieces]).requires_grad_(needs_grad)

    def _check_shapes(self, index: int, prompt: Tensor | None, added: Tensor | None) -> None:
        """Raise ValueError unless `prompt` is [P, H] or [K, P, H] and `added` is [S, H] or longer.

        With another shape, a row would look up vectors that belong to another cell.
        """
        name, width = type(self.methods[index]).__name__, self.backbone.hidden
        for what, made in (("prompt", prompt), ("added", added)):
            if made is not None and not isinstance(made, Tensor):
                raise ValueError(f"{name}.{what}() must return a tensor or None, not a {type(made).__name__}")
        if prompt is not None and prompt.shape[-2:] != (self.prompt_lengths[index], width):
            wanted = f"[{self.prompt_lengths[index]}, {width}] (num_prompt_tokens, H), or one for each task in front"
            raise ValueError(f"{name}.prompt() must return {wanted}, not {list(prompt.shape)}")
        number = self.methods[index].num_tasks
        if prompt is not None and prompt.dim() == 3 and len(prompt) != number:
            # a prompt for each row of a batch, say: all but the first would never be read
            wanted = f"[P, H], or one prompt for each of {number} tasks (num_tasks) in front"
            raise ValueError(f"{name}.prompt() must return {wanted}, not {len(prompt)}")
        if added is not None and (added.dim() != 2 or added.shape[1] != width or len(added) < self.source_length):
            wanted = f"[{self.source_length}, {width}] (tokens of the longest text, H)"
            raise ValueError(f"{name}.added() must return {wanted}, not {list(added.shape)}")

    def backward(self) -> None:
        """Carry the gradient of the table, the sum over all micro-batches, into the methods' tensors."""
        if self.table.grad is None:
            return
        gradients = torch.split(self.table.grad, [len(piece) for piece in self.pieces])
        trained = [(piece, own) for piece, own in zip(self.pieces, gradients, strict=True) if piece.requires_grad]
        torch.autograd.backward([piece for piece, _ in trained], [own for _, own in trained])

    def lengths(self, encoded: Encoded, rows: Rows) -> Index:
        """[N] positions that each row takes: T, and P where its prompt is not read apart; without padding."""
        lengths: Index = encoded.source_lengths(rows.rows) + self.row_prompts[rows.cells]
        return lengths

    def head_reader(self, rows: Rows) -> HeadReader:
        """Return the backbone as the heads of these rows read it, in the order that `build` returned."""
        prompts = on_device(self.prompt_lengths[rows.cells], self.backbone.device)
        return HeadReader(self.backbone, self.heads, rows.cells, self.pooling, prompts)

    def build(self, encoded: Encoded, rows: Rows) -> tuple[Tensor, Tensor, Rows]:
        """Return embeddings [N, L, H], mask [N, L] (1 where a position counts), and the rows in the order of N.

        Prompts that have been read are left out; `row_prefixes` has them. The order may differ from that of `rows`:
        rows whose prompt depends on the text come first, cell by cell. Where cells change layers, all rows are sorted
        by cell, since a changed module splits them there.
        """
        rows = self.announce(encoded, rows)
        static = np.array([self.static[cell] for cell in rows.cells], bool)
        if static.all():
            return (*self._build_static(encoded, rows), rows)
        order, pieces = [], []
        for cell in np.unique(rows.cells[~static]):
            order.append(np.flatnonzero(rows.cells == cell))
            pieces.append(self._build_text_dependent(encoded, rows.take(order[-1]), int(cell)))
        if static.any():
            order.append(np.flatnonzero(static))
            pieces.append(self._build_static(encoded, rows.take(order[-1])))
        longest = max(mask.shape[1] for _, mask in pieces)
        embeds = torch.cat([F.pad(e, (0, 0, 0, longest - e.shape[1])) for e, _ in pieces])
        mask = torch.cat([F.pad(m, (0, longest - m.shape[1])) for _, m in pieces])
        rows = rows.take(np.concatenate(order))
        if self._layers is None:
            return embeds, mask, rows
        by_cell = np.argsort(rows.cells, kind="stable")
        index = on_device(by_cell, embeds.device)
        return embeds[index], mask[index], rows.take(by_cell)

    def announce(self, encoded: Encoded, rows: Rows) -> Rows:
        """Tell what cells have put into layers which rows the next passes hold; return these in the order they need."""
        if self._layers is not None:
            rows = rows.take(self._layers.order(rows.cells))
            self._cells = rows.cells
            for cell in np.unique(rows.cells):
                self._set_row_tasks(encoded, rows.take(np.flatnonzero(rows.cells == cell)), int(cell))
        if len(self.methods) == 1:
            self._set_row_tasks(encoded, rows, 0)
        return rows

    def shares_contexts(self, num_positions: int) -> bool:
        """Whether a text is read once for all that is tried behind it, `num_positions` with prompt and answer.

        Not where a method attaches itself or has a loss of its own, and so may look at rows in its own way; and not in
        a decoder where what cells put into layers looks at more than one position.
        """
        return self._reads_once and not self.attaches_itself and self.backbone.shares_contexts(num_positions)

    def keep_rows(self, kept: Tensor) -> bool:
        """Let methods follow the rows that go on, [n] numbers among those of the last pass; return whether all can.

        They are in ascending order; a row may stand there several times, as beams. Input-side cells change nothing
        behind the input.
        """
        kept = kept.to(self.backbone.device)
        if len(self.methods) == 1 and not self.given[0]:
            with errors_of_cell(0, self.seal):
                return self.methods[0].keep_rows(kept)
        if self._layers is None:
            return True
        numbers = kept.cpu().numpy()
        cells, before = self._cells[numbers], self._cells
        for cell in np.unique(cells).tolist():
            own = kept[on_device(np.flatnonzero(cells == cell), kept.device)] - int((before < cell).sum())
            with errors_of_cell(cell, self.seal):
                if not self.methods[cell].keep_rows(own):
                    # each row by itself is what such methods promise, so there is nothing that they could not follow
                    raise ValueError(f"{type(self.methods[cell]).__name__}.keep_rows() must follow in a bundle")
        self._cells = cells
        self._layers.order(cells)  # which is the order that they stand in
        return True

    def row_prefixes(self, encoded: Encoded, rows: Rows) -> RowPrefixes | None:
        """Return the prompts, read before, in front of rows in the order of `build`; None where there are none."""
        if self._prefixes is None:
            return None
        index = self._prefix_index[rows.cells]
        if encoded.tasks is not None:
            by_task = (index >= 0) & (self._task_strides[rows.cells] > 0)
            index = index + np.where(by_task, encoded.tasks[rows.rows], 0)
        return RowPrefixes(self._prefixes, on_device(index, self.backbone.device))

    def _build_static(self, encoded: Encoded, rows: Rows) -> tuple[Tensor, Tensor]:
        """Embeddings [N, L, H] and mask [N, L] of rows whose vectors all lie in the shared table.

        The indices are computed in NumPy on the host, so the device runs two look-ups and one addition, whatever the
        number of cells.
        """
        # a prompt that has been read stands in front of the row already
        prompts = np.where(self._prefix_index >= 0, 0, self.prompt_lengths)[rows.cells][:, None]  # [N, 1]
        lengths = encoded.source_lengths(rows.rows)[:, None]  # [N, 1]
        sources = encoded.sources(rows.rows, self.backbone.pad_id)  # [N, T]
        position = np.arange(int((prompts + lengths).max()))[None]  # [1, L]
        start = self.backbone.kind.prompt_start
        is_prompt = (position >= start) & (position < start + prompts)  # [N, L]
        # [N, L]: which token of the text stands here; nothing is read from it inside the prompt
        token = np.where(position < start, position, position - prompts)
        is_token = ~is_prompt & (token < lengths)
        # row of the table that each position takes: 0 (the zero vector), or one of its added table, or of its prompt
        added = self._added_starts[rows.cells][:, None]
        shift = self.source_length - lengths if self.backbone.kind.pads_left else 0
        vectors = np.where(is_token & (added >= 0), added + token + shift, 0)
        starts = self._prompt_starts[rows.cells]
        if encoded.tasks is not None:
            starts = starts + self._task_strides[rows.cells] * encoded.tasks[rows.rows]
        vectors = np.where(is_prompt, starts[:, None] + position - start, vectors)
        ids = np.take_along_axis(sources, token.clip(0, sources.shape[1] - 1), 1)
        device = self.backbone.device
        tokens = self.backbone.embedding(on_device(ids, device))
        keep = on_device(is_token, device)[..., None]
        table = F.embedding(on_device(vectors, device), self.table)
        embeds = torch.where(keep, tokens, torch.zeros((), dtype=tokens.dtype, device=device)) + table
        return embeds, on_device(position < prompts + lengths, device).long()

    def _set_row_tasks(self, encoded: Encoded, rows: Rows, cell: int) -> None:
        """Give a method the task number of each of its rows, [N]; without a mixture there are none."""
        if encoded.tasks is not None:
            self.methods[cell].row_tasks = on_device(encoded.tasks[rows.rows], self.backbone.device)

    def _build_text_dependent(self, encoded: Encoded, rows: Rows, cell: int) -> tuple[Tensor, Tensor]:
        """Embeddings [N, L, H] and mask [N, L] from the method's own `forward`; all rows belong to this one cell.

        The method gets token embeddings [N, T, H] and their mask [N, T]. Its graph is built anew in each micro-batch,
        so this path costs more than the shared table.
        """
        device = self.backbone.device
        sources = on_device(encoded.sources(rows.rows, self.backbone.pad_id), device)
        lengths = on_device(encoded.source_lengths(rows.rows), device)
        mask = (torch.arange(sources.shape[1], device=device)[None] < lengths[:, None]).long()
        self._set_row_tasks(encoded, rows, cell)
        with errors_of_cell(cell, self.seal):
            output = self.methods[cell](self.backbone.embedding(sources), mask)
            return self._placed(cell, *self._checked_output(cell, output, len(rows)))

    def _placed(self, cell: int, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Move a prompt from the front of [N, L, H] behind the first tokens, where the network wants it there."""
        start, length = self.backbone.kind.prompt_start, int(self.prompt_lengths[cell])
        if not start or not length:
            return embeds, mask
        order = [*range(length, length + start), *range(length), *range(length + start, embeds.shape[1])]
        return embeds[:, order], mask[:, order]

    def _checked_output(self, cell: int, output: Any, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return what `forward` gave. Raises ValueError unless it is [N, L, H] and [N, L].

        Rows of several cells are padded to one length afterwards, which would hide a wrong shape.
        """
        name = type(self.methods[cell]).__name__
        wanted = f"[{num_rows}, T, {self.backbone.hidden}] and a mask of [{num_rows}, T]"
        if not (isinstance(output, tuple) and len(output) == 2 and all(isinstance(item, Tensor) for item in output)):
            raise ValueError(f"{name}.forward() must return {wanted}")
        embeds, mask = output
        if embeds.shape != (num_rows, *mask.shape[1:], self.backbone.hidden) or mask.shape != embeds.shape[:2]:
            got = f"{list(embeds.shape)} and {list(mask.shape)}"
            raise ValueError(f"{name}.forward() must return {wanted}, not {got}")
        return embeds, mask


def is_read_apart(method: Method) -> bool:
    """Whether a method has a prompt that is the same for all rows, and changes no layer that it would have to pass."""
    if method.is_layer_side() or method.runs_alone() or method.depends_on_text():
        return False
    return method.num_prompt_tokens > 0


def micro_batches(lengths: Index, max_tokens: int, overhead: int | None = None) -> list[Index]:
    """Cut rows of these lengths, [N], into micro-batches; return the positions of the rows of each.

    Rows are sorted by length, longest first. A micro-batch keeps rows x longest within `max_tokens`, or is one row.
    `overhead` is what one more micro-batch costs, in positions: the cuts are then those of least cost, padding and
    overhead together. Without it each micro-batch takes as many rows as it can.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = (
        _full_cuts(lengths[order], max_tokens) if overhead is None else _best_cuts(lengths[order], max_tokens, overhead)
    )
    return np.split(order, ends)


def micro_batches_of_cells(lengths: Index, cells: Index, max_tokens: int) -> list[Index]:
    """Cut rows of these lengths, [N], of these cells, [N], into micro-batches that hold whole cells where they fit.

    For rows without padding, whose order is free. What a cell changes in a layer is then computed once a step, not once
    in every micro-batch: 48 cells of 16 kinds, sorted by length into 7 micro-batches, took 1.4 times as long. In
    `cells` the rows of a cell stand together. As in `micro_batches`, which cuts a cell that does not fit by itself,
    rows x longest stays within `max_tokens` or is one row: cross-attention and masks pad even packed rows.
    """
    batches: list[Index] = []
    filled = np.zeros(0, np.int64)
    for own in np.split(np.arange(len(cells)), np.flatnonzero(np.diff(cells)) + 1):
        both = np.concatenate([filled, own])
        if len(both) * lengths[both].max() <= max_tokens:
            filled = both
            continue
        if len(filled):
            batches.append(filled)
        *whole, filled = (own[part] for part in micro_batches(lengths[own], max_tokens))
        batches += whole
    return [*batches, filled]


def _full_cuts(lengths: Index, max_tokens: int) -> list[int]:
    """Where micro-batches end that take all they can, but for the last; `lengths` [N] fall."""
    ends: list[int] = []
    start = 0
    while True:
        start += max(1, max_tokens // int(lengths[start]))
        if start >= len(lengths):
            return ends
        ends.append(start)


def _best_cuts(lengths: Index, max_tokens: int, overhead: int) -> list[int]:
    """Where micro-batches end that cost least; `lengths` [N] fall.

    The best way to cut the first n rows ends with a micro-batch from some row i on, behind the best way to cut the
    first i. Cutting where it saves most, one cut after another, left 16 rows of SST-2's lengths 13 % more positions at
    an overhead of 16.
    """
    count = len(lengths)
    most = max(1, max_tokens // int(lengths[-1]))  # rows of the longest micro-batch
    cost, start = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    for end in range(1, count + 1):
        first = np.arange(max(0, end - most), end)
        filled = (end - first) * lengths[first]
        filled[:-1][filled[:-1] > max_tokens] = np.iinfo(np.int64).max // 4  # one row alone is always allowed
        total = cost[first] + filled + overhead
        best = len(first) - 1 - int(total[::-1].argmin())  # of equal ways the one with the fewest rows
        cost[end], start[end] = total[best], first[best]
    ends = []
    while (count := int(start[count])) > 0:
        ends.append(count)
    return ends[::-1]
