"""From a name to a backbone: known names, folders and hub ids; weights, or shapes alone; fingerprints."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError

from harness.backbone import DTYPES, Backbone
from harness.errors import UserError
from harness.hub import why_unreachable
from harness.provenance import sha256_file
from harness.quantization import PACKED, Scheme, load_options, num_weights, settle
from harness.schema import BackboneRecord
from harness.suite import short_name
from harness.tokenizer_files import check_vocabulary, load_tokenizer, vocabulary_files

Loaded = TypeVar("Loaded")

CONFIGS = Path(__file__).parent / "configs"
OTHER_WEIGHTS = ("pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack", "*.gguf")
SHIPPED = {"micro-t5": Path(__file__).parent / "micro" / "t5"}


@dataclass(frozen=True)
class Placement:
    """Where weights lie and what a forward pass keeps; changes no result."""

    device_map: Literal["auto"] | None = None
    """`auto` spreads the layers over all GPUs of this machine."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input, and compute the layer again in the backward pass."""


DEFAULT_PLACEMENT = Placement()


def load_backbone(
    source: str,
    precision: str = "float32",
    device: str | None = None,
    quantization: Scheme = "none",
    placement: Placement = DEFAULT_PLACEMENT,
) -> Backbone:
    """Load weights and tokenizer: the shipped micro T5, a folder, a known name, or a hub id.

    Local files are tried first, then the hub. Weights go from the files straight to their place and form, one after
    another. Raises UserError when nothing resolves, or where quantisation needs a package that is not there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    place, device = resolve(source), device or best_device()
    check_weights(source)
    options = load_options(quantization, DTYPES[precision]) | _place(device, quantization, placement)

    def load(local: bool) -> tuple[Any, Any, Any]:
        # weights without pickle, and no code from a checkpoint
        safe: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(place, **safe)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(place, use_safetensors=True, **safe, **options)
        return config, model, load_tokenizer(place, **safe)

    config, model, tokenizer = _local_first(source, place, load)
    if "device_map" not in options:
        model.to(device)
    settle(model, quantization)
    record = BackboneRecord(
        source=_public_source(source, place),
        revision=_revision(place, config),
        fingerprint=fingerprint(source, quantization),
        num_params=sum(num_weights(p) for p in model.parameters()),
    )
    backbone = Backbone(short_name(source), model.eval(), tokenizer, record, precision, quantization)
    check_vocabulary(backbone)
    if placement.gradient_checkpointing:
        backbone.recompute_layers()
    return backbone


def _place(device: str, quantization: Scheme, placement: Placement) -> dict[str, Any]:
    """Where each part of the network is loaded to; nothing where it is moved as a whole afterwards."""
    if placement.device_map is not None:
        return {"device_map": placement.device_map}
    return {"device_map": {"": device}} if quantization in PACKED or device.startswith("cuda") else {}


def tokenizer_of(source: str) -> Any:
    """The tokenizer of a backbone alone. Raises UserError when nothing resolves."""
    place = resolve(source)
    return _local_first(
        source, place, lambda local: load_tokenizer(place, local_files_only=local, trust_remote_code=False)
    )


def meta_backbone(source: str, quantization: Scheme = "none", with_tokenizer: bool = False) -> Backbone:
    """Build a backbone without weights or download, for counting parameters and for what can be checked early.

    Its tensors have the unquantised form; a method sees from `quantization` what it would meet. `with_tokenizer`: with
    that too, if it is on this machine. Raises UserError where the tokenizer is not this network's.
    """
    config = source_config(source)
    with torch.device("meta"):
        model = model_of(config)
    tokenizer = local_tokenizer(source) if with_tokenizer else None
    backbone = Backbone(short_name(source), model, tokenizer, None, "float32", quantization)
    if tokenizer is not None:
        check_vocabulary(backbone)
    return backbone


@functools.lru_cache(maxsize=8)
def local_tokenizer(source: str) -> Any:
    """The tokenizer of a backbone, if it is on this machine and can be read; downloads nothing."""
    try:
        return load_tokenizer(resolve(source), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def source_config(source: str) -> dict[str, Any]:
    """The configuration of a known name, a folder or a hub id, as values. Raises UserError where there is none."""
    from transformers import AutoConfig

    place, known = resolve(source), CONFIGS / f"{source}.json"
    if known.exists():
        return dict(json.loads(known.read_text())["config"])
    config = _local_first(
        source, place, lambda local: AutoConfig.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    )
    return dict(config.to_dict())


def model_of(config: dict[str, Any]) -> Any:
    """A network of a configuration, untrained, on the current default device."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    built = AutoConfig.for_model(**config)
    return (AutoModelForSeq2SeqLM if built.is_encoder_decoder else AutoModelForCausalLM).from_config(
        built, trust_remote_code=False
    )


def known_backbones() -> list[str]:
    """Names that need neither a path nor a hub id."""
    return sorted([*SHIPPED, *(path.stem for path in CONFIGS.glob("*.json"))])


def resolve(source: str, where: str | None = None) -> str:
    """Return the folder or hub id behind what the user wrote. Raises UserError, at `where`, for what is neither."""
    if source in SHIPPED:
        return str(SHIPPED[source])
    if Path(source).is_dir():
        if not (Path(source) / "config.json").exists():
            raise UserError("holds no config.json, so it is no checkpoint", where=where, field=source)
        return source
    known = CONFIGS / f"{source}.json"
    if known.exists():
        return str(json.loads(known.read_text())["hub"])
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        parent = Path(source).parent
        folders = sorted(str(p) for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        raise UserError(f"no such folder '{source}'", where=where, value=source, choices=folders[:20])
    if "/" not in source:
        hint = "A folder or a hub id such as google-t5/t5-base is accepted too."
        problem = f"unknown backbone '{source}'"
        raise UserError(problem, where=where, value=source, choices=known_backbones(), hint=hint)
    return source


def is_here(source: str) -> bool:
    """Whether a backbone's weights are on this machine: in a folder, or among what was fetched from the hub before."""
    place = resolve(source)
    folder = Path(place) if Path(place).is_dir() else _snapshot(place)
    return folder is not None and any(folder.glob("*.safetensors"))


def has_config(source: str) -> bool:
    """Whether a backbone's configuration is on this machine, so that its shapes are known without a download."""
    place = resolve(source)
    return (CONFIGS / f"{source}.json").exists() or Path(place).is_dir() or _snapshot(place) is not None


def fingerprint(source: str, quantization: Scheme = "none") -> str:
    """Identify weights without reading all of them: configuration, sizes, both ends of each file; and their storage.

    For a hub id, the commit that the cache holds; "unresolved" where it holds none.
    """
    found = _source_fingerprint(resolve(source))
    return found if quantization == "none" or found == "unresolved" else f"{found}+{quantization}"


def _source_fingerprint(place: str) -> str:
    if not Path(place).is_dir():
        snapshot = _snapshot(place)
        return f"hub:{snapshot.name}" if snapshot else "unresolved"
    digest = hashlib.sha256((Path(place) / "config.json").read_bytes())
    for path in sorted(Path(place).glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    for tokenizer in vocabulary_files(Path(place)):
        digest.update(sha256_file(tokenizer).encode())
    return f"files:{digest.hexdigest()[:16]}"


def best_device() -> str:
    """cuda, mps or cpu, whichever is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _local_first(source: str, place: str, load: Callable[[bool], Loaded]) -> Loaded:
    """Call `load(True)` for what is on disk, then `load(False)` for the hub. Raises UserError with the last reason."""
    for local in (True,) if Path(place).is_dir() else (True, False):
        if not local and (closed := why_unreachable()):
            raise UserError(
                f"backbone '{source}' is not on this machine: '{place}' was not fetched before, and {closed}",
                field="backbones",
                hint="Name a folder with its checkpoint: --backbones PATH/TO/CHECKPOINT.",
            )
        try:
            return load(local)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # a hub id whose repository has no safetensors
    hint = _conversion(source, place) if "model.safetensors" in reason and not Path(place).is_dir() else None
    raise UserError(f"backbone '{source}' could not be loaded from '{place}': {reason}", field="backbones", hint=hint)


def check_weights(source: str, where: str | None = None) -> None:
    """Raise UserError, at `where`, for a checkpoint on this machine that has weights, and none in safetensors."""
    place = resolve(source, where)
    folder = Path(place) if Path(place).is_dir() else _snapshot(place)
    if folder is None or any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    if any(name.endswith(".bin") for name in others):
        problem = f"holds pickled weights only ({others[0]}), and a pickle may run code when it is read"
        raise UserError(problem, where=where, field=source, hint=_conversion(source, place))
    if others:
        raise UserError(f"holds no safetensors, only {', '.join(others)}", where=where, field=source)


def _conversion(source: str, place: str) -> str:
    """How to write a checkpoint anew as safetensors; transformers takes tensors, and no code, out of pickles."""
    kind = "Seq2SeqLM" if source_config(source)["is_encoder_decoder"] else "CausalLM"
    new = f"{short_name(source)}-safetensors"
    read = f"from transformers import AutoModelFor{kind} as M, AutoTokenizer as T"
    write = f"[c.from_pretrained({place!r}).save_pretrained({new!r}) for c in (M, T)]"
    return f'Convert them once, then name {new}: python -c "{read}; {write}"'


def _snapshot(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _revision(place: str, config: Any) -> str:
    return str(getattr(config, "_commit_hash", None) or ("local" if Path(place).is_dir() else "unknown"))


def _public_source(source: str, place: str) -> str:
    """What a result says of the origin: a shipped name, a hub id, or a folder's name without its parents."""
    return source if source in SHIPPED or not Path(place).is_dir() else f"folder {short_name(source)}"
