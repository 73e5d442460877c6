"""Draws gate weights per prompt token, from the tensors that runs have stored.

Shapes: P prompt tokens, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.errors import UserError
from harness.report.declared.find_entries import EntryIndex, FoundEntry
from harness.report.figures.base import blank_figure
from harness.results import Result, tensors_path
from harness.suite import FigureLayout, Gates, Key, Where

Array = np.ndarray[Any, np.dtype[np.float64]]


def gate_weights(tensors: Mapping[str, Array], gates: Gates) -> Array | None:
    """Weight of each space in each prompt vector [spaces, P]; None if the tensors hold no gates.

    The softmax over spaces i of P_s w_i + b_i (Lan et al. 2025, eq. 6), with the prompt P_s [P, H], the gate w_i [H, 1]
    and the bias b_i.
    """
    if gates.prompt not in tensors:
        return None
    logits: list[Array] = []
    while (name := gates.weight.format(i=len(logits))) in tensors:
        bias = tensors[gates.bias.format(i=len(logits))]
        logits.append((tensors[gates.prompt] @ tensors[name].T + bias)[:, 0])
    if not logits:
        return None
    # the largest logit is subtracted so that exp does not overflow; the softmax stays the same
    exponents = np.exp(np.stack(logits) - np.max(logits, axis=0))
    weights: Array = exponents / exponents.sum(0)
    return weights


def read_tensors(path: Path, sha256: str | None) -> dict[str, Array]:
    """Name -> array (float64) of the tensors beside a result. Raises UserError if they are missing or were changed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError("is not the file that the run stored: its SHA-256 is another", where=str(path))
        return {name: values.astype(np.float64) for name, values in load(content).items()}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"cannot be read as tensors: {error}", where=str(path)) from None


def draw_gates(layout: FigureLayout, pool: EntryIndex, where: Where, files: Mapping[Key, Path]) -> dict[str, Figure]:
    """Row label -> figure with a panel per task, space by prompt token, of the first run that stored tensors.

    Spaces of different seeds have no common order, so runs are not averaged. `files` is result -> path of its JSON.
    """
    assert layout.gates is not None
    by_label: dict[str, list[tuple[str, int, Array]]] = defaultdict(list)
    for item in sorted(pool.find({**layout.where, **where}), key=lambda item: str(item.settings["task"])):
        run = _first_run(item)
        if run is None:
            continue
        weights = gate_weights(read_tensors(tensors_path(files[run.key]), run.files.tensors), layout.gates)
        if weights is not None:
            by_label[str(item.settings["label"])].append((run.cell.task, run.cell.seed, weights))
    return {label: _draw(f"{layout.title}: {label}", panels) for label, panels in by_label.items()}


def _first_run(item: FoundEntry) -> Result | None:
    return next((run for run in item.entry.runs if run.files.tensors), None)


def _draw(title: str, panels: list[tuple[str, int, Array]]) -> Figure:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = blank_figure(title, (4.6 * columns + 1, 0.9 + 1.8 * rows))
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    most = max(float(weights.max()) for _, _, weights in panels)
    image: Any = None
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (task, seed, weights) in zip(grid.flat, panels, strict=False):
        num_spaces, num_tokens = weights.shape
        edges = (0.5, num_tokens + 0.5, num_spaces + 0.5, 0.5)
        image = axes.imshow(
            weights, aspect="auto", cmap="cividis", vmin=0, vmax=most, interpolation="nearest", extent=edges
        )
        axes.set_title(f"{task}, seed {seed}", fontsize=9)
        axes.grid(False)
        axes.set_yticks(range(1, num_spaces + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("prompt token")
        axes.set_ylabel("space")
    figure.colorbar(image, ax=grid, label="gate weight", shrink=0.9)
    return figure
