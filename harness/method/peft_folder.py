"""Writes a trained cell as a folder that `PeftModel.from_pretrained` loads, after trying that it gives equal logits.

PEFT itself loads what was written, over another view of the same weights, and reads the same ids as the cell's method.

Shapes: N rows, L tokens of a text, T target tokens, V vocabulary, W width of the states that a head reads, C its
outputs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.backbone import PACKED, SHIPPED, Backbone, Pooling, load_backbone, resolve_backbone
from harness.errors import UserError
from harness.files import usual_rights
from harness.method.export import first_line, rebuild, stored_tensors
from harness.method.linear_head import HeadReader
from harness.method.method import Method
from harness.method.network_view import NetworkView
from harness.method.peft_adapter import TASK_TYPES, PeftAdapter
from harness.method.peft_config import SCALES
from harness.method.peft_network import moves_weights
from harness.method.registry import discover
from harness.results import Result, read_result

TOLERANCE = 3e-5
"""Largest difference of two logits that passes, as a share of the largest logit. Rounding of float32 leaves 1e-6."""
TOLERANCE_BF16 = 0.02
"""The same where weights are quantised, whose products are in bfloat16: 8 bits, 0.4 % each."""
PROBE_ROWS, PROBE_LENGTH, PROBE_TARGETS = 2, 10, 3
"""N, L and T of the ids that are tried. Rows are of one length, since PEFT counts positions of padding."""


@dataclass(frozen=True)
class PeftFolder:
    """A report on the folder that `write_peft_folder` filled."""

    peft_type: str
    num_tensors: int
    num_numbers: int
    gap: float
    """Largest difference between the logits of the cell and those that PEFT gives."""
    source_changed: bool
    """Whether the method's file is no longer the one that trained the result."""
    base_model: str
    """What stands for the network in the folder: a hub id, or a folder's own name."""
    code: str
    """Python that loads it; `{folder}` stands for where it is."""
    notes: tuple[str, ...]


def write_peft_folder(
    path: Path, folder: Path, backbone: str | None, method_dirs: tuple[str, ...] = (), base_model: str | None = None
) -> PeftFolder:
    """Write `adapter_config.json` and `adapter_model.safetensors` of the result whose JSON is at `path`.

    `backbone` is a name or path of the weights; needed where the result has a folder's name only. `base_model` is the
    hub id that the folder names. Raises UserError for a result without tensors, for tensors or a network that are not
    those of the result, and where PEFT cannot hold what was learnt, or gives other logits.
    """
    result = read_result(path)
    tensors = stored_tensors(path, result)
    recipe, name = result.cell.recipe, backbone or result.cell.backbone
    registered = discover(*method_dirs)
    # products of quantised weights are in bfloat16, which their other weights meet by autocast
    precision = "float32" if recipe.quantization == "none" else recipe.precision
    network = load_backbone(name, precision, "cpu", recipe.quantization)
    _require_same_network(result, network, name)
    method = rebuild(path, result, registered, network, tensors)
    base = base_model or _public_base(name)
    try:
        adapter = write_adapter(method, network, folder, base)
        gap = tried_gap(method, network, folder, recipe.pooling)
    except ValueError as error:
        label = result.cell.label
        problem = f"PEFT cannot hold '{label}': {error}; --format tensors writes its tensors"
        raise UserError(problem, where=str(path)) from error.__cause__
    return PeftFolder(
        peft_type=str(getattr(adapter.config.peft_type, "value", adapter.config.peft_type)),
        num_tensors=len(adapter.tensors),
        num_numbers=sum(tensor.numel() for tensor in adapter.tensors.values()),
        gap=gap,
        source_changed=registered[result.cell.method].spec.source_sha256 != result.method_sha256,
        base_model=base,
        code=_code(result, method, network, name, base),
        notes=adapter.notes,
    )


def write_adapter(method: Method, network: Backbone, folder: Path, base: str) -> PeftAdapter:
    """Write a method's adapter into a folder that is there. Raises ValueError where PEFT has no type for it."""
    adapter = _for_inference(_with_head(method.peft_adapter(network), method, network), base)
    adapter.config.save_pretrained(str(folder))
    weights = folder / "adapter_model.safetensors"
    with usual_rights(weights):
        save_file(dict(adapter.tensors), weights, metadata={"format": "pt"})
    return adapter


def _require_same_network(result: Result, network: Backbone, name: str) -> None:
    """Raise UserError where the weights are not those that the cell was trained on."""
    wanted, found = result.backbone, network.record
    if wanted is not None and found is not None and wanted.fingerprint != found.fingerprint:
        raise UserError(
            f"'{name}' has other weights than the network that the cell was trained on", field="--backbone",
            hint=f"That one is {wanted.source}, fingerprint {wanted.fingerprint[:12]}.",
        )  # fmt: skip


def _public_base(name: str) -> str:
    """Return a shipped name, a hub id or a folder's own name: folders above it mean nothing on another machine."""
    location = resolve_backbone(name)
    if name in SHIPPED:
        return name
    return Path(location).resolve().name if Path(location).is_dir() else location


def _with_head(adapter: PeftAdapter, method: Method, network: Backbone) -> PeftAdapter:
    """Add the linear head as the classifier of transformers' class. Raises ValueError where that computes otherwise."""
    head = method.linear_head
    adapter.config.task_type = TASK_TYPES[network.kind.name]
    if head is None:
        return adapter
    if head.hidden is not None:
        raise ValueError("its head has a hidden layer, which is none of PEFT's")
    if not network.writes_text:
        raise ValueError("its linear head reads an encoder's states as they are, and transformers' classifiers put "
                         "another layer between")  # fmt: skip
    with torch.device("meta"):
        _classifier(network, len(head.weight))
    adapter.config.task_type = "SEQ_CLS"
    prefix = "base_model" if adapter.config.is_prompt_learning else "base_model.model"
    weights = {f"{prefix}.score.weight": head.weight.detach().cpu().clone().contiguous()}
    return replace(adapter, tensors={**adapter.tensors, **weights})


def _classifier(network: Backbone, num_outputs: int) -> Any:
    """Return transformers' classifier of this kind of network, around no weights but those of its own layer.

    Raises ValueError unless it is a linear layer without bias on the last token's state, as the harness's head.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(network.config)
    config.num_labels = num_outputs
    kind = type(network.model).__name__
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(f"transformers has no classifier for {kind}") from None
    score = getattr(made, "score", None)
    body = network.model.base_model_prefix
    names = {name for name, _ in made.named_children()}
    if names != {body, "score"} or not isinstance(score, nn.Linear) or score.bias is not None:
        raise ValueError(f"its linear head is no layer of transformers' classifier for {kind}")
    made.score = nn.Linear(score.in_features, num_outputs, bias=False, dtype=network.embedding.weight.dtype,
                           device="cpu")  # fmt: skip
    return made


def _for_inference(adapter: PeftAdapter, base: str) -> PeftAdapter:
    """Fill in what the configuration says beside the settings, and sort its lists of names: the same file each time.

    A scale such as `lora_alpha`, which PEFT declares as a whole number, is written as one where it is one.
    """
    config = copy.deepcopy(adapter.config)
    config.base_model_name_or_path, config.inference_mode, config.revision = base, True, None
    for key, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, key, sorted(value))
        elif key in SCALES and isinstance(value, float) and value.is_integer():
            setattr(config, key, int(value))
    return replace(adapter, config=config)


@torch.no_grad()
def tried_gap(method: Method, network: Backbone, folder: Path, pooling: Pooling | None = None) -> float:
    """Return the largest difference between the logits of a method and of what PEFT loads from a folder.

    Raises ValueError, with the reason, where it is more than rounding, or where PEFT gives no logits.
    """
    ids, labels = _probe(network)
    ours = _own_logits(method, network, ids, labels, pooling)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1)  # what PEFT draws anew has to come out the same, whatever was drawn before
            theirs = _peft_logits(method, network, folder, ids, labels)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError) as error:
        raise ValueError(f"it cannot run what was written ({first_line(error)})") from error
    gap = float((ours.double() - theirs.double()).abs().max())
    share = TOLERANCE if network.quantization == "none" else TOLERANCE_BF16
    if not gap <= share * float(ours.abs().max()):
        raise ValueError(f"loaded by it, the adapter gives other logits (by up to {gap:.2g})")
    return gap


def _probe(network: Backbone) -> tuple[Tensor, Tensor]:
    """Return ids of texts [N, L] and of answers [N, T], the same each time; none of them is padding."""
    drawn = torch.Generator().manual_seed(0)
    num_ids = network.embedding.num_embeddings
    ids = torch.randint(num_ids, (PROBE_ROWS, PROBE_LENGTH + PROBE_TARGETS), generator=drawn)
    ids[ids == network.pad_id] = (network.pad_id + 1) % num_ids
    return ids[:, :PROBE_LENGTH].contiguous(), ids[:, PROBE_LENGTH:].contiguous()


def _own_logits(method: Method, network: Backbone, ids: Tensor, labels: Tensor, pooling: Pooling | None) -> Tensor:
    """Logits of the cell as the harness computes them: [N, T, V], or [N, C] of its head."""
    method.attach(network)
    try:
        embeds, mask = method(network.embedding(ids), torch.ones_like(ids))
        if method.linear_head is None:
            return network.target_logits(embeds, mask, labels)
        cells = np.zeros(len(ids), dtype=np.int64)
        reader = HeadReader(network, [method.linear_head], cells, pooling)
        return reader.outputs(embeds, mask)
    finally:
        method.detach(network)


def _peft_logits(method: Method, network: Backbone, folder: Path, ids: Tensor, labels: Tensor) -> Tensor:
    """The same logits from what PEFT loads."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    model = NetworkView(network.model, private=moves_weights(config)).model
    if method.linear_head is not None:
        classifier = _classifier(network, len(method.linear_head.weight))
        setattr(classifier, model.base_model_prefix, model.base_model)
        model = classifier
    loaded = PeftModel.from_pretrained(model, str(folder), torch_device="cpu").eval()
    by_task = any(hasattr(config, name) for name in ("num_tasks", "n_tasks"))
    given: dict[str, Any] = {"task_ids": torch.zeros(len(ids), dtype=torch.long)} if by_task else {}
    with network.autocast():
        if method.linear_head is not None:
            # a row at a time: transformers looks for the last token of several by their padding
            rows = [loaded(input_ids=row[None], attention_mask=torch.ones_like(row[None]), **given) for row in ids]
            return torch.cat([row.logits for row in rows])
        if network.is_encoder_decoder:
            # one type takes labels only; given those, another asks for a loss that it has in training alone
            if by_task and config.is_prompt_learning:
                given["labels"] = labels
            else:
                start = torch.full_like(labels[:, :1], network.config.decoder_start_token_id)
                given["decoder_input_ids"] = torch.cat([start, labels[:, :-1]], 1)
            found = loaded(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
            return found.logits  # type: ignore[no-any-return]
        whole = torch.cat([ids, labels[:, :-1]], 1)
        found = loaded(input_ids=whole, attention_mask=torch.ones_like(whole), **given)
        return found.logits[:, -labels.shape[1] :]  # type: ignore[no-any-return]


def _code(result: Result, method: Method, network: Backbone, name: str, base: str) -> str:
    """Return Python that loads the network and the folder as the cell had them."""
    auto, options = network.kind.auto_class, ["dtype=torch.float32"]
    imports = [f"from transformers import {auto}"]
    if method.linear_head is not None:
        auto = "AutoModelForSequenceClassification"
        options.append(f"num_labels={len(method.linear_head.weight)}")
        imports = [f"from transformers import {auto}"]
    if network.quantization != "none":
        options[0] = "dtype=torch.bfloat16"
    if network.quantization in PACKED:
        imports = [f"from transformers import {auto}, BitsAndBytesConfig"]
        options.append(f"quantization_config={_packed_options(network.quantization)}")
    where = json.dumps(base)
    if name in SHIPPED:
        imports.append("from harness.backbone import resolve_backbone")
        where = f"resolve_backbone({json.dumps(base)})"
    lines = ["import torch", "from peft import PeftModel", *imports, "",
             f"network = {auto}.from_pretrained({where}, {', '.join(options)})",
             'model = PeftModel.from_pretrained(network, {folder})']  # fmt: skip
    return "\n".join(lines)


def _packed_options(scheme: str) -> str:
    options: Mapping[str, str] = {
        "int8": "BitsAndBytesConfig(load_in_8bit=True)",
        "nf4": 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        "bnb_4bit_compute_dtype=torch.bfloat16)",
    }
    return options[scheme]
