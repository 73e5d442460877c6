"""Forgetting: how much the loss on a general text has risen by training, against the bare backbone.

The text is read in windows. Behind the window's first token (the network's begin token, where it has one) every token
is predicted from all before it. The cell's prompt stands in front of the window and its changes are in the layers, as
where it writes an answer. What a method adds to the tokens of a source text acts on the first token alone, since the
rest stands where an answer stands: a prompt that is made from the text could else tell of tokens that are still to be
predicted.

Every window of every cell is a pass of its own. Cells are then measured alike alone and in a bundle, and a method that
changes nothing measures exactly 0: sums over rows of a batch would round in another order.

Shapes: T tokens of a window.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness import stop
from harness.backbone import Backbone, RowPrefixes, on_device
from harness.data import Encoded, require_known_ids
from harness.errors import UserError
from harness.files import read_bounded
from harness.results import Forgetting
from harness.suite import NO_TEXT, SHIPPED_TEXT
from harness.train.batch_input import BatchInput, Rows
from harness.train.network_limits import max_positions

SHIPPED = Path(__file__).parent / "general_text.txt"
"""Some 1,950 words on seventeen subjects, written for this program."""
WINDOW = 512
"""Tokens of a window where the network has positions for them. Longer ones would be read by few networks alike."""
MOST_BYTES = 1_000_000
"""Largest text. That is some 250,000 tokens: 500 passes for each cell."""


@dataclass(frozen=True)
class GeneralText:
    """A text on which forgetting is measured."""

    name: str
    """As the suite names it."""
    text: str
    sha256: str


def read_general_text(name: str, folder: str | Path) -> GeneralText:
    """Read the text that a suite in `folder` names: the shipped one, or a file relative to that folder.

    Raises UserError for a file that cannot be read, is too large, is not UTF-8 or holds less than two words.
    """
    path = SHIPPED if name == SHIPPED_TEXT else Path(folder) / name
    try:
        content = read_bounded(path, MOST_BYTES, "a general text")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), field="forgetting.text") from None
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start:,})"
        raise UserError(problem, where=str(path), field="forgetting.text") from None
    if len(text.split()) < 2:
        raise UserError("holds less than two words", where=str(path), field="forgetting.text")
    return GeneralText(name, text, hashlib.sha256(content).hexdigest())


def measure_forgetting(fused: BatchInput, cell: int, name: str, folder: str, is_sharded: bool) -> Forgetting | None:
    """Measure the cell at position `cell`, with the tensors that its method holds; None where nobody asked for it.

    Methods have to be attached, and everything in evaluation mode. Raises UserError if the text cannot be read,
    CellError where the method's code raises, and Stopped after a request to stop.
    """
    if name == NO_TEXT:
        return None
    text, backbone, method = read_general_text(name, folder), fused.backbone, fused.methods[cell]
    problem = _why_not(backbone, is_sharded)
    length = window_length(backbone, method.num_positions)
    if problem is None and length < 2:
        problem = "the prompt leaves no positions for a text"
    if problem is not None:
        return Forgetting(text=name, sha256=text.sha256, problem=problem)
    windows = windows_of(text, backbone, length)
    before = _bare_loss(fused, text, windows, length)
    after = _cell_loss(fused, cell, windows)
    made = Forgetting(
        text=name,
        sha256=text.sha256,
        window=length,
        num_tokens=int(windows.target_offsets[-1]),
        before=before if math.isfinite(before) else None,
        after=after if math.isfinite(after) else None,
    )
    if made.rise is not None:
        return made
    return made.model_copy(update={"problem": f"the loss was {before} before training and {after} after it"})


def window_length(backbone: Backbone, num_positions: int) -> int:
    """Return the tokens of a window behind a prompt of so many positions."""
    limit = max_positions(backbone.config, "decoder")
    return WINDOW if limit is None else min(WINDOW, limit - num_positions)


def windows_of(text: GeneralText, backbone: Backbone, length: int) -> Encoded:
    """Cut a text into windows of `length` tokens: the first of each as the source, the rest as the target.

    A last piece of one token is left out, for nothing in it is predicted. Raises UserError if the tokenizer gives an id
    that the backbone has no embedding for.
    """
    tokenizer = backbone.tokenizer
    first = tokenizer("0")["input_ids"][:1]
    begin = [token for token in first if token == getattr(tokenizer, "bos_token_id", None)]
    ids = list(tokenizer(text.text, add_special_tokens=False)["input_ids"])
    size = length - len(begin)
    pieces = [[*begin, *ids[start : start + size]] for start in range(0, len(ids), size)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    targets = [piece[1:] for piece in pieces]
    made = Encoded(
        np.array([piece[0] for piece in pieces], np.int64),
        np.arange(len(pieces) + 1, dtype=np.int64),
        np.array([token for target in targets for token in target], np.int64),
        np.cumsum([0, *map(len, targets)], dtype=np.int64),
    )
    require_known_ids(made, backbone, f"general text {text.name}")
    return made


def _why_not(backbone: Backbone, is_sharded: bool) -> str | None:
    if backbone.kind.name != "decoder":
        return f"measured on decoders alone; '{backbone.name}' is an {backbone.kind.name}"
    if is_sharded:
        return "the weights are divided among processes, so none has the bare backbone"
    return None


_bare_losses: weakref.WeakKeyDictionary[Backbone, dict[tuple[str, int], float]] = weakref.WeakKeyDictionary()
"""By backbone, the loss of the bare network by hash of the text and length of a window."""


@torch.no_grad()
def _bare_loss(fused: BatchInput, text: GeneralText, windows: Encoded, length: int) -> float:
    """Return the mean loss per token without any method, computed once for a backbone."""
    backbone = fused.backbone
    known = _bare_losses.setdefault(backbone, {})
    key = (text.sha256, length)
    if key not in known:
        total = 0.0
        with fused.detached():
            for row in range(len(windows)):
                stop.raise_if_stopped()
                rows = np.array([row])
                embeds = backbone.embedding(on_device(windows.sources(rows, backbone.pad_id), backbone.device))
                mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
                total += _summed_loss(backbone, embeds, mask, windows, rows, None)
        known[key] = total / int(windows.target_offsets[-1])
    return known[key]


@torch.no_grad()
def _cell_loss(fused: BatchInput, cell: int, windows: Encoded) -> float:
    """Return the mean loss per token with a cell's method in place, and over the tasks where it serves several."""
    losses = []
    num_tasks = fused.methods[cell].num_tasks
    for task in range(num_tasks):
        own = windows if num_tasks == 1 else _for_task(windows, task)
        total = 0.0
        fused.refresh(grad=False, cells=[cell])
        fused.read_prompts([cell], grad=False)
        for row in range(len(own)):
            stop.raise_if_stopped()
            embeds, mask, rows = fused.build(own, Rows(np.array([cell]), np.array([row])))
            total += _summed_loss(fused.backbone, embeds, mask, own, rows.rows, fused.row_prefixes(own, rows))
        fused.finish_prompts()
        losses.append(total / int(windows.target_offsets[-1]))
    return math.fsum(losses) / num_tasks


def _for_task(windows: Encoded, task: int) -> Encoded:
    arrays = (windows.source_ids, windows.source_offsets, windows.target_ids, windows.target_offsets)
    return Encoded(*arrays, tasks=np.full(len(windows), task, np.int64))


def _summed_loss(
    backbone: Backbone,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    windows: Encoded,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    prefixes: RowPrefixes | None,
) -> float:
    """Return the summed loss of one window's tokens, through the network's own logits also where a head is trained."""
    labels = on_device(windows.targets(rows), backbone.device)  # [1, T - 1]
    return float(backbone.token_losses(embeds, mask, labels, prefixes).double().sum())
