"""Fills an adapter of PEFT with the tensors of a folder that PEFT has saved.

A file may name any tensor of a network. Only those that the adapter itself has are taken: the others of the view share
their memory with the backbone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from harness.method.adapter_tensors import ALIASES, GIVEN_HEAD, SAVED_PROMPT
from harness.method.peft_network import ADAPTER, PeftNetwork

PREFIX = "base_model.model."
"""In front of a module's path in PEFT's files."""
MOST_NAMES = 3
"""Keys that a message lists; an adapter of a large network has hundreds."""


@torch.no_grad()
def fill_network(network: PeftNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by PEFT's names into the adapter of `network`, in place.

    Raises ValueError, with the names of keys, for tensors that are missing, unknown or of another shape, and for
    weights of the backbone that are not those of this one.
    """
    given = {
        name: tensor for name, tensor in tensors.items() if name not in ALIASES and not name.startswith(GIVEN_HEAD)
    }
    own = adapter_tensors(network)
    found = _renamed(given, own, str(getattr(network.view.model, "base_model_prefix", "")))
    rest = {name: found.pop(name) for name in list(found) if name not in own}
    _refuse_others(network, rest)
    missing = [name for name in own if name not in found]
    if missing:
        raise ValueError(f"the file has no {_listed(missing)}; it holds {_listed(list(given))}")
    wrong = [f"{name} is {list(found[name].shape)}, wanted is {list(own[name].shape)}"
             for name in own if found[name].shape != own[name].shape]  # fmt: skip
    if wrong:
        raise ValueError(f"{_listed(wrong, '; ')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(network.model, {name: found[name].to(own[name].dtype) for name in found}, ADAPTER)
    _put_back(network)


def _put_back(network: PeftNetwork) -> None:
    """Fill the tensors that the method stores where PEFT has exchanged them: indices in a module's plain table."""
    stored = list(network.frozen.values())
    exchanged: list[tuple[str, Tensor]] | None = None  # found by a walk through the network
    for module in network.model.modules():
        for table in [table for table in vars(module).values() if isinstance(table, dict)]:
            now = table.get(ADAPTER)
            if not isinstance(now, Tensor) or any(now is tensor for tensor in stored):
                continue
            exchanged = network.exchanged() if exchanged is None else exchanged
            name = next((name for name, other in exchanged if other is now), None)
            if name is not None and network.frozen[name].shape == now.shape:
                table[ADAPTER] = network.frozen[name].copy_(now)
                exchanged = None


def adapter_tensors(network: PeftNetwork) -> dict[str, Tensor]:
    """What PEFT would save of an adapter, by the names in its file."""
    config = network.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the name of a base model would be looked up on the hub
        before, config.base_model_name_or_path = config.base_model_name_or_path, None
        try:
            found: dict[str, Tensor] = get_peft_model_state_dict(
                network.model, adapter_name=ADAPTER, save_embedding_layers=False
            )
        finally:
            config.base_model_name_or_path = before
    return found


def _renamed(given: Mapping[str, Tensor], own: Mapping[str, Any], stem: str) -> dict[str, Tensor]:
    """The tensors under the adapter's own names: a classifier of transformers holds the network one level deeper."""
    if not stem or all(name in own for name in given):
        return dict(given)
    inside = f"{PREFIX}{stem}."
    shorter = {name: PREFIX + name.removeprefix(inside) if name.startswith(inside) else name for name in given}
    longer = {name: inside + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name for name in given}
    best = max(
        ({name: name for name in given}, shorter, longer), key=lambda names: sum(n in own for n in names.values())
    )
    return {best[name]: tensor for name, tensor in given.items()}


def _refuse_others(network: PeftNetwork, rest: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors that are no part of the adapter, unless they are the backbone's own, unchanged.

    PEFT saves embeddings too where an adapter stands on them.
    """
    base = dict(network.view.original.named_parameters())
    unknown = []
    for name, tensor in rest.items():
        own = base.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if own is None:
            unknown.append(name)
        elif own.shape != tensor.shape or not (own.is_meta or tensor.is_meta or torch.equal(own, tensor.to(own))):
            raise ValueError(f"{name} is a weight of the network that it was trained on, and not of this one")
    if unknown:
        raise ValueError(f"the file has {_listed(unknown)}, for which this adapter has no place")


def _listed(names: Sequence[str], sign: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return sign.join(names[:MOST_NAMES]) + more if names else "nothing"


def refuse_collapsed(kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError where PEFT has saved what an adapter's network gave, and not the network that would train on."""
    if kind == "P_TUNING" or (kind == "PREFIX_TUNING" and config.get("prefix_projection")):
        raise ValueError(
            f"PEFT keeps of {kind} what its network gave ({SAVED_PROMPT}), and not the network, so it cannot train on; "
            "it can be scored by adapter:, or start a method that takes a prompt"
        )
