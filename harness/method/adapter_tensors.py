"""Reads the weights of an adapter that was trained elsewhere: PEFT's files, DePT's, and single prompts.

What is read is named as in PEFT's file; what is a prompt, whoever has saved it, stands under `prompt` [P, H] too, so
that every method which starts from a prompt can. A pickle is read without running it.

Shapes: P prompt vectors, S source length, H hidden width, R rank, W width of the states that a head reads, C its
outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from harness.method.source_files import PICKLED, is_index, is_numbers, pickled_tensors, plain_tensors
from harness.suite import PROMPT_TYPES, is_decomposed

SAVED_PROMPT = "prompt_embeddings"
"""PEFT's name of vectors in front of a text, and of keys and values."""
SAVED_PAIR = ("prompt_encoder.lora_embedding_A", "prompt_encoder.lora_embedding_B")
"""Names of A [S, R] and B [R, H] in ZhengxiangShi/DecomposedPromptTuning, peft/utils/save_and_load.py."""
DECOMPOSED_ALPHA = 8
"""`lora_alpha` of that code unless a configuration says another (peft/tuners/prompt_tuning_lora.py)."""
SAVED_HEAD = re.compile(r"base_model\.(?:model\.)?(score|classifier)\.(weight|bias)")
"""Key of a classifier's head that is one linear map."""
GIVEN_HEAD = "linear_head."
"""In front of `weight` [C, W] and `bias` [C] of a head, once it is read."""
ALIASES = ("prompt", "a", "b", "added")
"""Names that this program gives beside those of a file."""


def read_adapter_tensors(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of an adapter by name; `config` is the one in its folder, {} for vectors alone.

    Raises UserError, in one sentence with the names of keys, for a file that is damaged or holds anything else.
    """
    tensors = _raw_tensors(path)
    kind = str(config.get("peft_type") or "").upper()
    has_indices = bool(kind) and not is_decomposed(kind)
    wrong = [n for n, tensor in tensors.items() if not (is_numbers(tensor) or (has_indices and is_index(tensor)))]
    if wrong:
        raise UserError(f"{_listed(wrong)}: values that are no finite decimal numbers", where=str(path))
    if not kind or is_decomposed(kind):
        return _vectors(tensors, config, path)
    tensors = {_head_name(name): tensor for name, tensor in tensors.items()}
    if kind == "ADALORA" and config.get("rank_pattern"):
        tensors = _with_all_ranks(tensors, config, path)
    if kind in PROMPT_TYPES and SAVED_PROMPT in tensors:
        # of an encoder-decoder PEFT saves a second prompt behind the first, which nothing reads
        tensors["prompt"] = tensors[SAVED_PROMPT][: int(config.get("num_virtual_tokens") or len(tensors[SAVED_PROMPT]))]
    return tensors


def _head_name(name: str) -> str:
    """The name of a tensor; that of a head's is `linear_head.weight` or `linear_head.bias`."""
    found = SAVED_HEAD.fullmatch(name)
    return f"{GIVEN_HEAD}{found[2]}" if found else name


def given_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weight` [C, W] and `bias` [C] of the head that an adapter was trained with; {} without one."""
    return {name.removeprefix(GIVEN_HEAD): tensor for name, tensor in tensors.items() if name.startswith(GIVEN_HEAD)}


def _raw_tensors(path: Path) -> dict[str, Tensor]:
    ending = path.suffix.lower()
    if ending == ".npy":
        return {"prompt": _array(path)}
    return pickled_tensors(path, "prompt") if ending in PICKLED else plain_tensors(path)


def _array(path: Path) -> Tensor:
    """One array of NumPy's own file. An array of objects is a pickle, and is refused."""
    try:
        found = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
    except (ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        problem = f"cannot be read as an array of numbers ({type(error).__name__})"
        raise UserError(problem, where=str(path), hint="An array of objects is a pickle, and is not opened.") from None


def _vectors(tensors: dict[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """`prompt`, and where there is a low-rank pair `a`, `b` and the table `added` = alpha / sqrt(R) A B."""
    rest = dict(tensors)
    names = [name for name in ("prompt", SAVED_PROMPT) if name in rest] or (
        [next(iter(rest))] if len(rest) == 1 else []
    )
    prompt = rest.pop(names[0]) if names else None
    a, b = (rest.pop(name, None) for name in SAVED_PAIR)
    added = rest.pop("added", None)  # of an export of this program
    found = {} if added is None else {"added": added}
    if prompt is not None and prompt.dim() == 3 and len(prompt) == 1:
        prompt = prompt[0]
    if rest or (prompt is None and added is None) or (prompt is not None and prompt.dim() != 2):
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        problem = f"holds {_listed([f'{name} {shape}' for name, shape in shapes.items()])}, and not one prompt [P, H]"
        raise UserError(problem, where=str(path))
    if prompt is not None:
        found["prompt"] = prompt[: int(config.get("num_virtual_tokens") or len(prompt))]
    if a is None and b is None:
        return found
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or not 0 < a.shape[1] == b.shape[0]:
        shapes = {name: list(tensors[name].shape) for name in SAVED_PAIR if name in tensors}
        raise UserError(f"holds no low-rank pair [S, R], [R, H]: {shapes}", where=str(path))
    scale = float(config.get("lora_alpha") or DECOMPOSED_ALPHA) / math.sqrt(a.shape[1])
    return {**found, "a": a, "b": b, "added": scale * a @ b}


def _with_all_ranks(tensors: dict[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Put the ranks that AdaLoRA has kept back to their places among all; those that it took away are 0.

    PEFT saves kept ranks alone, and divides by the number of all (`ranknum`), so the product is the same.
    """
    found = dict(tensors)
    for name, kept in dict(config["rank_pattern"]).items():
        module = f"base_model.model.{name.rpartition('.lora_E')[0]}"
        mask = torch.tensor(kept, dtype=torch.bool).flatten()
        for part, axis in (("lora_E", 0), ("lora_A", 0), ("lora_B", 1)):
            key = f"{module}.{part}"
            tensor = found.get(key)
            if tensor is None or tensor.dim() != 2 or tensor.shape[axis] not in (int(mask.sum()), len(mask)):
                has = "is missing" if tensor is None else f"is {list(tensor.shape)}"
                problem = f"{key} {has}; rank_pattern keeps {int(mask.sum())} of {len(mask)} ranks"
                raise UserError(problem, where=str(path))
            if tensor.shape[axis] == len(mask):
                continue
            shape = list(tensor.shape)
            shape[axis] = len(mask)
            whole = tensor.new_zeros(shape)
            whole[(mask, slice(None)) if axis == 0 else (slice(None), mask)] = tensor
            found[key] = whole
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
