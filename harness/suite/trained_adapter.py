"""An adapter that was trained elsewhere: the file with its weights, its configuration as settings, and its identity.

`adapter: FOLDER` in a row and `init_from: {adapter: FOLDER}` name one: a folder that PEFT has saved, a folder with one
file of prompt vectors, or such a file. Weights are not read here, only hashed; nothing outside of the folder is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.provenance import sha256_file
from harness.suite.adapter_folder import CONFIG_FILE, WEIGHT_FILES, read_json
from harness.suite.cell import Start, digest
from harness.suite.file_schema import ADAPTER, SourceChoice

MAX_WEIGHTS = 8 * 2**30
"""Bytes of a weights file. LoRA of rank 64 in all linear modules of a network of 70 billion weights has 3.4 billion."""
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".npy")
"""Of files with vectors: PEFT's, PyTorch's own, and NumPy's, as SPoT's authors publish prompts."""

DECOMPOSED = "PROMPT_TUNING_LORA"
"""What the configuration of DePT's authors calls a prompt with a low-rank table (their peft/utils/config.py)."""
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING", "CPT")
"""Types of which PEFT saves the vectors that come out, [P, H], whatever made them; they answer as a plain prompt."""
OF_A_PROMPT = ("num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_layers", "num_attention_heads")
"""Settings of a prompt that say what it fits to, and nothing of how it was trained."""
HEADS = ("classifier", "score")
"""Names under which PEFT saves the head of a classifier of transformers; here it becomes the cell's linear head."""
OF_TRAINING = {"total_step", "rank_pattern"}
"""Settings of AdaLoRA that its training has left: the tensors say the same once they are read."""
FROM_ELSEWHERE = {"base_model_name_or_path", "revision", "inference_mode", "tokenizer_name_or_path",
                  "tokenizer_kwargs", "eva_config", "runtime_config"}  # fmt: skip
"""Keys that matter to the training elsewhere alone. The base model is compared with the suite's, and never loaded."""


@dataclass(frozen=True)
class TrainedAdapter:
    """A folder, or a file of vectors, as a suite names it."""

    named: str
    weights: Path
    config: dict[str, Any] = field(default_factory=dict)
    """As PEFT or DePT's code has saved it, without settings that are null; empty for vectors alone."""

    @property
    def kind(self) -> str:
        """Type of PEFT in capitals; empty for vectors alone."""
        return str(self.config.get("peft_type") or "").upper()

    def to_answer(self) -> dict[str, Any]:
        """The configuration with which it answers: a prompt by its length; {} for what is no type of PEFT."""
        if self.kind in ("", DECOMPOSED):
            return {}
        if self.kind in PROMPT_TYPES:
            return {"peft_type": "PROMPT_TUNING", **{k: self.config[k] for k in OF_A_PROMPT if k in self.config}}
        found = self.to_train()
        if self.kind == "PREFIX_TUNING":  # PEFT saves keys and values, and not the network that made them
            found.pop("prefix_projection", None)
            found.pop("encoder_hidden_size", None)
        return found

    def to_train(self) -> dict[str, Any]:
        """The configuration with which training goes on, without what says how it started."""
        if self.kind in ("", DECOMPOSED):
            return {}
        found = {key: value for key, value in self.config.items() if key not in FROM_ELSEWHERE}
        if self.kind == "ADALORA":
            found = {key: value for key, value in found.items() if key not in OF_TRAINING}
        if self.kind == "ADAPTION_PROMPT":  # PEFT writes the name that it has chosen for the network
            found.pop("target_modules", None)
        # of all starts from data the only one that leaves the network's weights alone
        if found.get("init_lora_weights") == "eva":
            found.pop("init_lora_weights")
        for key in ("prompt_tuning_init", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path"):
            found.pop(key, None)
        saved = [name for name in found.pop("modules_to_save", None) or [] if name not in HEADS]
        return {**found, "modules_to_save": saved} if saved else found


def find_adapter(named: Any, folder: Path, where: str, field: str) -> TrainedAdapter:
    """Return the adapter that `named`, a path relative to `folder`, stands for.

    Raises UserError where it is missing, ambiguous, too large, or a link that leaves the folder.
    """
    if not isinstance(named, str) or not named:
        raise UserError(f"expected the path of a folder with an adapter, got {named!r}", where=where, field=field)
    path = folder / named
    if not path.exists():
        raise UserError(f"no such folder or file: {named}", where=where, field=field)
    weights = _weights_in(path, named, where, field) if path.is_dir() else path
    if weights.suffix.lower() not in ENDINGS:
        problem = f"{weights.name} is no file of vectors; their endings are {', '.join(ENDINGS)}"
        raise UserError(problem, where=where, field=field)
    config_file = path / CONFIG_FILE if path.is_dir() else None
    for file in filter(None, (weights, config_file)):
        _require_inside(file, where, field)
    size = weights.stat().st_size
    if size > MAX_WEIGHTS:
        problem = f"{weights.name} has {size:,} bytes, and at most {MAX_WEIGHTS:,} are read"
        raise UserError(problem, where=where, field=field)
    has_config = config_file is not None and config_file.is_file()
    config = read_json(config_file, where, field) if config_file is not None and has_config else {}
    if weights.name in WEIGHT_FILES and not config.get("peft_type") and path.is_dir():
        problem = f"{named} holds {weights.name} and no {CONFIG_FILE} that names its peft_type"
        raise UserError(problem, where=where, field=field)
    return TrainedAdapter(named, weights, config)


def _weights_in(path: Path, named: str, where: str, field: str) -> Path:
    """The file with the weights in a folder: PEFT's, or the only one of vectors."""
    for name in WEIGHT_FILES:
        if (path / name).exists():
            return path / name
    found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in ENDINGS)
    if len(found) == 1:
        return found[0]
    if not found:
        problem = f"{named} holds no weights: neither {' nor '.join(WEIGHT_FILES)}, nor a file of vectors"
        raise UserError(problem, where=where, field=field)
    names = ", ".join(file.name for file in found[:4])
    raise UserError(f"{named} holds {len(found)} files of vectors ({names}); name one", where=where, field=field)


def _require_inside(file: Path, where: str, field: str) -> None:
    """Raise UserError for a link that leaves its folder, but for those of the hub's cache (snapshots to blobs)."""
    if not file.is_symlink():
        return
    target, folder = file.resolve(), file.parent.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
    if not target.is_relative_to(folder) and target.parent != blobs:
        raise UserError(f"{file.name} is a link that leaves its folder", where=where, field=field)


def is_decomposed(kind: str) -> bool:
    """Whether a type is that of DePT's authors, which PEFT itself does not have."""
    return kind == DECOMPOSED


def start_from_adapter(choice: SourceChoice, folder: str, where: str) -> Start:
    """Return an adapter as a source. Identity: hash of the weights, and the configuration. Raises UserError."""
    found = find_adapter(choice.adapter, Path(folder), where, ADAPTER)
    try:
        content = weights_hash(found.weights)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where, field=str(found.weights)) from None
    identity, any_base = digest([content, found.config]), choice.base_model == "any"
    file = f"{found.named.rstrip('/')}/{found.weights.name}" if (Path(folder) / found.named).is_dir() else found.named
    return Start(title=choice.title, file=file, adapter=found.named, config=found.config, any_base=any_base,
                 identity=identity, family=identity)  # fmt: skip


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, found once as long as its size and its time of change stay."""
    stat = path.stat()
    return _hash(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash(path: str, size: int, changed: int) -> str:
    return sha256_file(Path(path))


def other_base_model(config: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the base model that a configuration records, where it is none of `names`; folders count by last part."""
    recorded = str(config.get("base_model_name_or_path") or "")
    return recorded if recorded and _last(recorded) not in map(_last, names) else None


def _last(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
