"""One forward pass for the rows of many cells: how prompts and added tables reach the rows.

Cells whose prompt and added table do not depend on the text share one table of vectors [N, H]; every
position of every row gathers its vector from it (row 0 is zero, for "nothing here"). The cost of a micro-batch
then does not grow with the number of cells, and the backward pass goes through each method only once a step.
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

from harness.backbone import Backbone
from harness.blame import blaming
from harness.data import Encoded
from harness.memory import on_device
from harness.method import Method
from harness.seal import Seal
from harness.shared_layers import SharedLayers

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Rows:
    """Rows drawn for several cells: which cell (position in the bundle), which row of the split."""

    cells: Index
    rows: Index

    def take(self, order: Index) -> Rows:
        return Rows(self.cells[order], self.rows[order])

    def __len__(self) -> int:
        return len(self.rows)


class FusedInput:
    """Builds the backbone's input for rows of any of the given methods.

    `source_length` is the padded length that position-indexed tables refer to: with a decoder-only
    backbone texts are padded on the left, so the last token takes the table's last row. With a `seal`, a method whose
    code writes to the backbone is named at once.
    """

    def __init__(
        self, methods: Sequence[Method], backbone: Backbone, source_length: int, seal: Seal | None = None
    ) -> None:
        self.methods = methods
        self.seal = seal
        self.backbone = backbone
        self.source_length = source_length
        self.static = [not method.depends_on_text() for method in methods]
        self.prompt_lengths = np.array([self._prompt_length(index) for index in range(len(methods))], np.int64)
        self.heads = [method.linear_head for method in methods if method.linear_head is not None]
        """One per cell, or none at all."""
        self._layers = self._shared_layers() if len(methods) > 1 else None
        self._is_attached = False
        self._outputs: list[Tensor] = []
        self._table = torch.empty(0)
        self._prompt_starts = np.zeros(len(methods), np.int64)
        self._task_strides = np.zeros(len(methods), np.int64)
        self._added_starts = np.full(len(methods), -1, np.int64)

    @property
    def calls_per_module(self) -> float:
        """Mean number of calls of a module in a forward pass: its own, and one for each cell that changes it."""
        if self._layers is None:
            return 1.0
        return 1.0 + self._layers.num_changes / sum(1 for m in self.backbone.model.modules() if not any(m.children()))

    def _prompt_length(self, index: int) -> int:
        with blaming(index, self.seal):
            return self.methods[index].num_prompt_tokens

    def _shared_layers(self) -> SharedLayers | None:
        changes = []
        for index, method in enumerate(self.methods):
            with blaming(index, self.seal):
                changes.append(method.layer_changes())
        return SharedLayers(changes) if any(changes) else None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Layer-side methods in the backbone; behind it the backbone is as it was."""
        try:
            self._put_in()
            yield
        finally:
            self._take_out()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within `attached`, the backbone as it is without the methods; they are put in again behind it."""
        was_attached = self._is_attached
        if was_attached:
            self._take_out()
        try:
            yield
        finally:
            if was_attached:
                self._put_in()

    def _put_in(self) -> None:
        self._is_attached = True
        if self._layers is not None:
            self._layers.attach()
        else:
            self.methods[0].attach(self.backbone)

    def _take_out(self) -> None:
        self._is_attached = False
        if self._layers is not None:
            self._layers.detach()
        else:
            self.methods[0].detach(self.backbone)

    def refresh(self, grad: bool, cells: Sequence[int]) -> None:
        """Compute anew the prompts and tables of the given static methods; call once per optimiser step."""
        weight = self.backbone.embedding.weight
        zero = torch.zeros(1, self.backbone.hidden, dtype=weight.dtype, device=weight.device)
        pieces, position = [zero], 1
        with torch.set_grad_enabled(grad):
            for index in cells:
                if not self.static[index]:
                    continue
                with blaming(index, self.seal):
                    prompt, added = self.methods[index].prompt(), self.methods[index].added()
                    self._check_shapes(index, prompt, added)
                if prompt is not None:
                    self._prompt_starts[index] = position
                    self._task_strides[index] = prompt.shape[1] if prompt.dim() == 3 else 0  # one for each task
                    pieces.append(prompt.flatten(0, -2))
                    position += len(pieces[-1])
                if added is not None:
                    self._added_starts[index] = position
                    pieces.append(added)
                    position += len(added)
        self._outputs = [piece for piece in pieces if piece.requires_grad]
        self._table = torch.cat([piece.detach() for piece in pieces]).requires_grad_(grad and bool(self._outputs))
        self._spans = _spans(pieces)

    def _check_shapes(self, index: int, prompt: Tensor | None, added: Tensor | None) -> None:
        """Refuse what would read another cell's vectors. Raises ValueError."""
        name, width = type(self.methods[index]).__name__, self.backbone.hidden
        for what, made in (("prompt", prompt), ("added", added)):
            if made is not None and not isinstance(made, Tensor):
                raise ValueError(f"{name}.{what}() must return a tensor or None, not a {type(made).__name__}")
        if prompt is not None and prompt.shape[-2:] != (self.prompt_lengths[index], width):
            wanted = f"[{self.prompt_lengths[index]}, {width}] (num_prompt_tokens, H), or one for each task in front"
            raise ValueError(f"{name}.prompt() must return {wanted}, not {list(prompt.shape)}")
        if added is not None and (added.dim() != 2 or added.shape[1] != width or len(added) < self.source_length):
            wanted = f"[{self.source_length}, {width}] (tokens of the longest text, H)"
            raise ValueError(f"{name}.added() must return {wanted}, not {list(added.shape)}")

    def backward(self) -> None:
        """Carry the gradient that all micro-batches left on the table into the methods' tensors."""
        gradient = self._table.grad
        if not self._outputs or gradient is None:
            return
        parts = [gradient[start:stop] for start, stop, grad in self._spans if grad]
        torch.autograd.backward(self._outputs, parts)

    def lengths(self, encoded: Encoded, rows: Rows) -> Index:
        """Positions that each row takes in the backbone, prompt included."""
        lengths: Index = encoded.source_lengths(rows.rows) + self.prompt_lengths[rows.cells]
        return lengths

    def build(self, encoded: Encoded, rows: Rows) -> tuple[Tensor, Tensor, Rows]:
        """Return embeddings [N, L, H], mask [N, L] and the rows in the order of N."""
        if self._layers is not None:
            rows = rows.take(self._layers.order(rows.cells))
            for cell in np.unique(rows.cells):
                self._tell_tasks(encoded, rows.take(np.flatnonzero(rows.cells == cell)), int(cell))
        static = np.array([self.static[cell] for cell in rows.cells], bool)
        if len(self.methods) == 1:
            self._tell_tasks(encoded, rows, 0)
        if static.all():
            return (*self._build_static(encoded, rows), rows)
        pieces = [
            self._build_text_dependent(encoded, rows.take(np.flatnonzero(rows.cells == cell)), int(cell))
            for cell in np.unique(rows.cells[~static])
        ]
        order = [np.flatnonzero(rows.cells == cell) for cell in np.unique(rows.cells[~static])]
        if static.any():
            order.append(np.flatnonzero(static))
            pieces.append(self._build_static(encoded, rows.take(order[-1])))
        longest = max(mask.shape[1] for _, mask in pieces)
        embeds = torch.cat([F.pad(e, (0, 0, 0, longest - e.shape[1])) for e, _ in pieces])
        mask = torch.cat([F.pad(m, (0, longest - m.shape[1])) for _, m in pieces])
        placed = rows.take(np.concatenate(order))
        if self._layers is None:
            return embeds, mask, placed
        by_cell = np.argsort(placed.cells, kind="stable")  # as changes inside the layers expect them
        index = on_device(by_cell, embeds.device)
        return embeds[index], mask[index], placed.take(by_cell)

    def _build_static(self, encoded: Encoded, rows: Rows) -> tuple[Tensor, Tensor]:
        """Gather token embeddings and table rows position by position."""
        prompts = self.prompt_lengths[rows.cells][:, None]
        lengths = encoded.source_lengths(rows.rows)[:, None]
        sources = encoded.sources(rows.rows, self.backbone.pad_id)
        position = np.arange(int((prompts + lengths).max()))[None]
        token = position - prompts
        is_token = (token >= 0) & (token < lengths)
        added = self._added_starts[rows.cells][:, None]
        shift = 0 if self.backbone.is_encoder_decoder else self.source_length - lengths
        vectors = np.where(is_token & (added >= 0), added + token + shift, 0)
        starts = self._prompt_starts[rows.cells]
        if encoded.tasks is not None:
            starts = starts + self._task_strides[rows.cells] * encoded.tasks[rows.rows]
        vectors = np.where(position < prompts, starts[:, None] + position, vectors)
        ids = np.take_along_axis(sources, token.clip(0, sources.shape[1] - 1), 1)
        device = self.backbone.device
        tokens = self.backbone.embedding(on_device(ids, device))
        keep = on_device(is_token, device)[..., None]
        table = F.embedding(on_device(vectors, device), self._table)
        embeds = torch.where(keep, tokens, torch.zeros((), dtype=tokens.dtype, device=device)) + table
        return embeds, on_device(position < prompts + lengths, device).long()

    def _tell_tasks(self, encoded: Encoded, rows: Rows, cell: int) -> None:
        """Let a method know which task of a mixture each row belongs to."""
        if encoded.tasks is not None:
            self.methods[cell].row_tasks = on_device(encoded.tasks[rows.rows], self.backbone.device)

    def _build_text_dependent(self, encoded: Encoded, rows: Rows, cell: int) -> tuple[Tensor, Tensor]:
        device = self.backbone.device
        sources = on_device(encoded.sources(rows.rows, self.backbone.pad_id), device)
        lengths = on_device(encoded.source_lengths(rows.rows), device)
        mask = (torch.arange(sources.shape[1], device=device)[None] < lengths[:, None]).long()
        self._tell_tasks(encoded, rows, cell)
        with blaming(cell, self.seal):
            found = self.methods[cell](self.backbone.embedding(sources), mask)
            return self._checked_output(cell, found, len(rows))

    def _checked_output(self, cell: int, found: Any, num_rows: int) -> tuple[Tensor, Tensor]:
        """Refuse what padding would cut or fill unseen. Raises ValueError."""
        name = type(self.methods[cell]).__name__
        wanted = f"[{num_rows}, T, {self.backbone.hidden}] and a mask of [{num_rows}, T]"
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(item, Tensor) for item in found)):
            raise ValueError(f"{name}.forward() must return {wanted}")
        embeds, mask = found
        if embeds.shape != (num_rows, *mask.shape[1:], self.backbone.hidden) or mask.shape != embeds.shape[:2]:
            got = f"{list(embeds.shape)} and {list(mask.shape)}"
            raise ValueError(f"{name}.forward() must return {wanted}, not {got}")
        return embeds, mask


def micro_batches(lengths: Index, max_tokens: int, overhead: int | None = None) -> list[Index]:
    """Cut rows, sorted by length, so that rows x longest stays within `max_tokens` (one row at least).

    `overhead` is what one more micro-batch costs, in positions: where a cut saves more padding than that, it is made.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        batch = order[start : start + max(1, max_tokens // int(lengths[order[start]]))]
        if overhead is not None:
            saved = (lengths[batch[0]] - lengths[batch]) * np.arange(len(batch), 0, -1)
            best = int(saved.argmax())
            batch = batch[:best] if saved[best] > overhead else batch
        batches.append(batch)
        start += len(batch)
    return batches


def _spans(pieces: Sequence[Tensor]) -> list[tuple[int, int, bool]]:
    """(start, stop, takes gradient) of each piece in the table."""
    stops = np.cumsum([len(piece) for piece in pieces]).tolist()
    return [(stop - len(p), stop, p.requires_grad) for stop, p in zip(stops, pieces, strict=True)]
