"""Loads backbones: with weights or with shapes alone.

`name_or_path` is always what the user wrote; `location` is the folder or hub id behind it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.loaded_weights import require_whole
from harness.backbone.names import SHIPPED, hub_snapshot, known_config, resolve_backbone
from harness.backbone.network import DTYPES, Backbone
from harness.backbone.network_kinds import kind_of
from harness.backbone.quantization import PACKED, Scheme, load_options, num_weights, prepare_quantized
from harness.backbone.record import BackboneRecord
from harness.backbone.tokenizer_files import check_vocabulary, load_tokenizer
from harness.errors import UserError, shortened
from harness.hub import why_unreachable
from harness.suite import short_name

Loaded = TypeVar("Loaded")

OTHER_WEIGHTS = ("pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack", "*.gguf", "consolidated*.pth",
                 "model*.pt", "model*.pth", "model*.ckpt", "*.ot")  # fmt: skip
"""Files of weights that are recognised, to say what is wrong: pickles may run code, the others are not read."""


LFS = b"version https://git-lfs"
"""The first bytes of a file that Git LFS has left in place of the real one."""

DRAWS = {name: getattr(nn.init, name) for name in ("kaiming_uniform_", "normal_", "uniform_")}
"""Functions by which PyTorch's layers and embeddings fill their tensors with random numbers."""


@dataclass(frozen=True)
class Placement:
    """Where weights are stored, and what a forward pass keeps for the backward pass. Changes no result."""

    device_map: Literal["auto"] | None = None
    """`auto` spreads the layers over all GPUs of this machine."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input, and compute the layer again in the backward pass."""


DEFAULT_PLACEMENT = Placement()


def load_backbone(
    name_or_path: str,
    precision: str = "float32",
    device: str | None = None,
    quantization: Scheme = "none",
    placement: Placement = DEFAULT_PLACEMENT,
) -> Backbone:
    """Load weights and tokenizer of the shipped micro T5, a folder, a known name or a hub id.

    Local files are tried first, then the hub. Each tensor goes from its file straight to its device and form, so the
    host never holds all weights at once. Raises UserError where there is no such backbone, where its files cannot be
    read or do not give every weight, or where quantisation needs a package that is not installed.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would break the run's own progress lines
    location, device = resolve_backbone(name_or_path), device or best_device()
    require_safetensors(name_or_path)
    options = load_options(quantization, DTYPES[precision]) | _device_options(device, quantization, placement)

    def load(local: bool) -> tuple[Any, Any, Any, Any]:
        # no pickles, and no code that comes with a checkpoint
        safe: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(location, **safe)
        model, found = _from_files(location, config, **safe, **options)
        return config, model, found, load_tokenizer(location, **safe)

    config, model, found, tokenizer = _local_first(name_or_path, location, load)
    require_whole(name_or_path, model, found)
    if "device_map" not in options:
        model.to(device)
    prepare_quantized(model, quantization)
    record = BackboneRecord(
        source=_public_name(name_or_path, location),
        revision=_revision(location, config),
        fingerprint=weights_fingerprint(name_or_path, quantization),
        num_params=sum(num_weights(p) for p in model.parameters()),
    )
    backbone = Backbone(short_name(name_or_path), model.eval(), tokenizer, record, precision, quantization)
    check_vocabulary(backbone)
    if placement.gradient_checkpointing:
        backbone.recompute_layers()
    return backbone


def _device_options(device: str, quantization: Scheme, placement: Placement) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where each part goes; empty where the whole is moved later."""
    if placement.device_map is not None:
        return {"device_map": placement.device_map}
    return {"device_map": {"": device}} if quantization in PACKED or device.startswith("cuda") else {}


def tokenizer_of(name_or_path: str) -> Any:
    """Load the tokenizer of a backbone and nothing else. Raises UserError where there is none."""
    location = resolve_backbone(name_or_path)
    return _local_first(
        name_or_path, location, lambda local: load_tokenizer(location, local_files_only=local, trust_remote_code=False)
    )


def meta_backbone(name_or_path: str, quantization: Scheme = "none", with_tokenizer: bool = False) -> Backbone:
    """Build a backbone on the meta device, without weights, to count parameters and to check early what can be checked.

    Only a configuration may have to be fetched. Its tensors have the unquantised form; a method reads `quantization` to
    see what it would meet. With `with_tokenizer` the tokenizer is read too, if it is on this machine. Raises UserError
    where that tokenizer belongs to another network.
    """
    config = backbone_config(name_or_path)
    try:
        with torch.device("meta"), _nothing_drawn():  # shapes without memory, whatever the size
            model = untrained_network(config)
    except Exception as error:  # each network's code checks its configuration in its own way
        reason = shortened(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
        problem = f"no network can be built from the configuration of '{name_or_path}': {reason}"
        raise UserError(problem, field="backbones") from None
    if model._can_set_experts_implementation():
        # the usual way of mixtures of experts takes nothing but bfloat16 where tensors have no values
        model.set_experts_implementation("batched_mm")
    tokenizer = local_tokenizer(name_or_path) if with_tokenizer else None
    backbone = Backbone(short_name(name_or_path), model, tokenizer, None, "float32", quantization)
    if tokenizer is not None:
        check_vocabulary(backbone)
    return backbone


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Within it PyTorch's layers draw no numbers for tensors without values: 18 ms for T5-base instead of 30.

    Tensors with values are filled as ever, also those of other threads.
    """

    def unless_meta(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, *args, **kwargs: tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    try:
        for name, draw in DRAWS.items():
            setattr(nn.init, name, unless_meta(draw))
        yield
    finally:
        for name, draw in DRAWS.items():
            setattr(nn.init, name, draw)


@functools.lru_cache(maxsize=8)
def local_tokenizer(name_or_path: str) -> Any:
    """Load the tokenizer of a backbone if it is on this machine and can be read, else return None; downloads nothing.

    Eight are kept, since a plan asks for the same few again for every cell.
    """
    try:
        return load_tokenizer(resolve_backbone(name_or_path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # whoever needs one loads it with `tokenizer_of`, which says what is wrong


def backbone_config(name_or_path: str) -> dict[str, Any]:
    """Return the configuration of a backbone as a dict of values. Raises UserError where there is none."""
    from transformers import AutoConfig

    location = resolve_backbone(name_or_path)
    if known := known_config(name_or_path):
        return dict(json.loads(known.read_text())["config"])
    config = _local_first(
        name_or_path,
        location,
        lambda local: AutoConfig.from_pretrained(location, local_files_only=local, trust_remote_code=False),
    )
    return dict(config.to_dict())


def untrained_network(config: dict[str, Any]) -> Any:
    """Build an untrained network from a configuration, on the current default device, in float32.

    A configuration names the number format of its files. Networks are trained in float32 whatever that is, and one of
    bfloat16 would take half the memory and refuse to multiply with the float32 tensors of a cell.
    """
    from transformers import AutoConfig

    built = AutoConfig.for_model(**config)
    options = {"trust_remote_code": False, "dtype": torch.float32, **_without_pooler(built)}
    return _auto_class(built).from_config(built, **options)


def _auto_class(config: Any) -> Any:
    """Return the class of transformers that builds a network of this configuration."""
    import transformers

    return getattr(transformers, kind_of(config).auto_class)


def _from_files(location: str, config: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """Load a network, and the report of what its files lack or have in another shape; `require_whole` reads it.

    Of an encoder what its checkpoint has on top is left out: a pooler, a head for masked words.
    """
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the report would be logged too
    try:
        return _auto_class(config).from_pretrained(  # type: ignore[no-any-return]
            location,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
            **_without_pooler(config),
        )
    finally:
        logging.set_verbosity(before)


def _without_pooler(config: Any) -> dict[str, bool]:
    """Return the argument that leaves BERT's pooler out, a layer that many checkpoints hold untrained or not at all."""
    if kind_of(config).writes_text:
        return {}
    from transformers import MODEL_MAPPING

    takes = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def weights_are_here(name_or_path: str) -> bool:
    """Whether a backbone's weights are on this machine, in a folder or in the hub's cache."""
    location = resolve_backbone(name_or_path)
    folder = Path(location) if Path(location).is_dir() else hub_snapshot(location)
    return folder is not None and any(folder.glob("*.safetensors"))


def has_config(name_or_path: str) -> bool:
    """Whether a backbone's configuration is on this machine, so that its shapes are known without a download."""
    location = resolve_backbone(name_or_path)
    return known_config(name_or_path) is not None or Path(location).is_dir() or hub_snapshot(location) is not None


def best_device() -> str:
    """Return `cuda`, `mps` or `cpu`: the first of them that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _local_first(name_or_path: str, location: str, load: Callable[[bool], Loaded]) -> Loaded:
    """Call `load(True)`, which reads from disk alone; where that fails, `load(False)`, which may ask the hub.

    Raises UserError with the last reason. Without a connection the hub is not tried: its client repeats for minutes.
    """
    for local in (True,) if Path(location).is_dir() else (True, False):  # a folder never needs the hub
        if not local and (closed := why_unreachable()):
            raise UserError(
                f"backbone '{name_or_path}' is not on this machine: '{location}' was not fetched before, and {closed}",
                field="backbones",
                hint="Name a folder with its checkpoint: --backbones PATH/TO/CHECKPOINT (export: --backbone).",
            )
        try:
            return load(local)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # a hub id whose repository has no safetensors
    hint = (
        _conversion(name_or_path, location) if "model.safetensors" in reason and not Path(location).is_dir() else None
    )
    raise UserError(
        f"backbone '{name_or_path}' could not be loaded from '{location}': {reason}", field="backbones", hint=hint
    )


def require_safetensors(name_or_path: str, where: str | None = None) -> None:
    """Raise UserError, at `where`, for a checkpoint on this machine that has weights, and none in safetensors."""
    location = resolve_backbone(name_or_path, where)
    folder = Path(location) if Path(location).is_dir() else hub_snapshot(location)
    if folder is None:
        return
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with open(path, "rb") as file:
            if file.read(len(LFS)) == LFS:
                problem = f"{path.name} is not the weights but a pointer that Git LFS left"
                raise UserError(problem, where=where, field=name_or_path, hint="git lfs pull fetches them.")
    if (folder / "adapter_config.json").exists() and all(path.name.startswith("adapter_") for path in files):
        raise UserError("holds a PEFT adapter and not the network that it belongs to", where=where, field=name_or_path,
                        hint="Merge it once: PEFT's merge_and_unload(), then save_pretrained().")  # fmt: skip
    if files:
        return
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    if any(name.endswith(".bin") for name in others):
        problem = f"holds pickled weights only ({others[0]}), and a pickle may run code when it is read"
        raise UserError(problem, where=where, field=name_or_path, hint=_conversion(name_or_path, location))
    if others:
        raise UserError(f"holds no safetensors, only {', '.join(others)}", where=where, field=name_or_path)


def _conversion(name_or_path: str, location: str) -> str:
    """Return a hint with a command that writes a checkpoint again as safetensors.

    The command reads a pickle. transformers reads it with `weights_only`, which takes tensors and runs no code.
    """
    from transformers import AutoConfig

    auto_class = kind_of(AutoConfig.for_model(**backbone_config(name_or_path))).auto_class
    new = f"{short_name(name_or_path)}-safetensors"
    read = f"from transformers import {auto_class} as M, AutoTokenizer as T"
    write = f"[c.from_pretrained({location!r}).save_pretrained({new!r}) for c in (M, T)]"
    return f'Convert them once, then name {new}: python -c "{read}; {write}"'


def _revision(location: str, config: Any) -> str:
    """Return the commit of the hub that was loaded, `local` for a folder, or `unknown`."""
    return str(getattr(config, "_commit_hash", None) or ("local" if Path(location).is_dir() else "unknown"))


def _public_name(name_or_path: str, location: str) -> str:
    """Return what a result says of the weights' origin: a shipped name, a hub id, or a folder's own name.

    A folder's parents stay out of results, since they tell about the machine and mean nothing elsewhere.
    """
    return (
        name_or_path if name_or_path in SHIPPED or not Path(location).is_dir() else f"folder {short_name(name_or_path)}"
    )
