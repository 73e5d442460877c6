"""The frozen pretrained network: encoder-decoder and decoder-only behind one face.

Shapes: N rows, L positions, H hidden width, T target tokens, V vocabulary.
Inputs are right-padded embeddings; where a decoder needs left padding, it is made here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from harness.dropout import fast_dropout
from harness.errors import UserError
from harness.provenance import sha256_file
from harness.schema import BackboneRecord
from harness.suite import short_name

Loaded = TypeVar("Loaded")

CONFIGS = Path(__file__).parent / "configs"
SHIPPED = {"micro-t5": Path(__file__).parent / "micro" / "t5"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Weights are held in float32 under bfloat16, which is autocast around the forward pass."""


class Backbone:
    """A pretrained network whose own weights never change while a method is trained."""

    def __init__(self, name: str, model: Any, tokenizer: Any, record: BackboneRecord | None, precision: str) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.record = record
        self.precision = precision
        self.model.requires_grad_(False)
        self._forward = model

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def embedding(self) -> nn.Embedding:
        """Token embedding, weight [V, H]."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def hidden(self) -> int:
        """Width H of the embeddings."""
        return int(self.embedding.weight.shape[1])

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def max_positions(self) -> int | None:
        """Positions that the network can tell apart; None where positions are relative."""
        value = getattr(self.config, "max_position_embeddings", None)
        return int(value) if value and not self.is_encoder_decoder else None

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def pad_id(self) -> int:
        """Id that fills unused positions; any id serves, since they are masked."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None else int(self.eos_id)

    @property
    def eos_id(self) -> int:
        """Id that ends a target. Raises UserError where the tokenizer has none."""
        eos = self.tokenizer.eos_token_id if self.tokenizer is not None else self.config.eos_token_id
        if eos is None:
            raise UserError(f"the tokenizer of '{self.name}' has no end token, so an answer could never end")
        return int(eos)

    def token_losses(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """[N, L, H], [N, L], [N, T] with -100 behind the end -> cross-entropy per target token, [N, T]."""
        return self.cross_entropy(self.target_logits(embeds, mask, labels), labels)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """[N, T, V], [N, T] -> [N, T], 0 where the label is -100."""
        flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(flat, labels.flatten(), ignore_index=-100, reduction="none").view(labels.shape)

    @torch.no_grad()
    def decode(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy decoding, [N, L, H], [N, L] -> [N, <=max_new_tokens]; stops when every row has ended."""
        with self._autocast():
            steps = self._decode_with_encoder if self.is_encoder_decoder else self._decode_alone
            return steps(embeds, mask, max_new_tokens)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        if self.precision != "bfloat16":
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield

    @property
    def is_compiled(self) -> bool:
        return self._forward is not self.model

    def compile(self, wanted: bool) -> None:
        """Train through a compiled forward pass from now on, or not; what stands inside the layers is not seen by it.

        Lengths stay symbolic: micro-batches of all sizes share one graph. Decoding is left as it is.
        """
        if wanted != self.is_compiled:
            self._forward = torch.compile(self.model, dynamic=True) if wanted else self.model

    def _dropout(self) -> contextlib.AbstractContextManager[object]:
        """On a CPU in training, the context in which dropout is cheap."""
        on_cpu = self.device.type == "cpu" and self.model.training and not self.is_compiled
        return fast_dropout() if on_cpu else contextlib.nullcontext()

    def target_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Logits [N, T, V] that predict each target token; arguments as for `token_losses`."""
        tokens = labels.masked_fill(labels == -100, self.pad_id)
        teach = self._teach_with_encoder if self.is_encoder_decoder else self._teach_alone
        with self._autocast(), self._dropout():
            return teach(embeds, mask, tokens, labels != -100)

    def _teach_with_encoder(self, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        start = tokens.new_full((len(tokens), 1), self.config.decoder_start_token_id)
        out = self._forward(
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,
        )
        return out.logits  # type: ignore[no-any-return]

    def _teach_alone(self, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        embeds, mask = _pad_left(embeds, mask)
        target = self.embedding(tokens[:, :-1]).to(embeds.dtype)
        full_mask = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1)
        out = self._forward(
            inputs_embeds=torch.cat([embeds, target], 1),
            attention_mask=full_mask,
            position_ids=_positions(full_mask),
            use_cache=False,
            logits_to_keep=tokens.shape[1],
        )
        return out.logits  # type: ignore[no-any-return]

    def _decode_with_encoder(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        encoded = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        last = torch.full((len(embeds), 1), self.config.decoder_start_token_id, device=embeds.device)
        cache = None

        def step(tokens: Tensor) -> Tensor:
            nonlocal cache
            out = self.model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, step(last), max_new_tokens)

    def _decode_alone(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        embeds, mask = _pad_left(embeds, mask)
        out = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        cache = out.past_key_values
        full_mask = mask

        def step(tokens: Tensor) -> Tensor:
            nonlocal full_mask
            full_mask = torch.cat([full_mask, full_mask.new_ones(len(tokens), 1)], 1)
            out = self.model(
                input_ids=tokens,
                attention_mask=full_mask,
                position_ids=_positions(full_mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, out.logits[:, -1], max_new_tokens)

    def _greedy(self, step: Any, logits: Tensor, max_new_tokens: int) -> Tensor:
        """Extend by the most likely token until each row has written its end or the limit is reached."""
        finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = logits.argmax(-1).masked_fill(finished, self.pad_id)
            written.append(token)
            finished |= token == self.eos_id
            if len(written) == max_new_tokens or bool(finished.all()):
                return torch.stack(written, 1)
            logits = step(token[:, None])


def load_backbone(source: str, precision: str = "float32", device: str | None = None) -> Backbone:
    """Load weights and tokenizer: the shipped micro T5, a folder, a known name, or a hub id.

    Local files are tried first, then the hub. Raises UserError when neither resolves.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = resolve(source)

    def load(local: bool) -> tuple[Any, Any, Any]:
        config = AutoConfig.from_pretrained(place, local_files_only=local)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(place, local_files_only=local, dtype=DTYPES[precision], use_safetensors=True)
        return config, model, AutoTokenizer.from_pretrained(place, local_files_only=local)

    config, model, tokenizer = _local_first(source, place, load)
    model.to(device or best_device()).eval()
    record = BackboneRecord(
        source=_public_source(source, place),
        revision=_revision(place, config),
        fingerprint=fingerprint(source),
        num_params=sum(p.numel() for p in model.parameters()),
    )
    return Backbone(short_name(source), model, tokenizer, record, precision)


def meta_backbone(source: str) -> Backbone:
    """Build a backbone without weights or download, for counting parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    place = resolve(source)
    known = CONFIGS / f"{source}.json"
    if known.exists():
        values = dict(json.loads(known.read_text())["config"])
        config = AutoConfig.for_model(**values)
    else:
        config = _local_first(source, place, lambda local: AutoConfig.from_pretrained(place, local_files_only=local))
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    return Backbone(short_name(source), model, None, None, "float32")


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


def fingerprint(source: str) -> str:
    """Identify weights without reading all of them: configuration, sizes, both ends of each file.

    For a hub id, the commit that the cache holds; "unresolved" where it holds none.
    """
    place = resolve(source)
    if not Path(place).is_dir():
        snapshot = _snapshot(place)
        return f"hub:{snapshot.name}" if snapshot else "unresolved"
    import hashlib

    digest = hashlib.sha256((Path(place) / "config.json").read_bytes())
    for path in sorted(Path(place).glob("*.safetensors")):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    tokenizer = Path(place) / "tokenizer.json"
    if tokenizer.exists():
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
        try:
            return load(local)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f"backbone '{source}' could not be loaded from '{place}': {reason}", field="backbones")


def _snapshot(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _revision(place: str, config: Any) -> str:
    return str(getattr(config, "_commit_hash", None) or ("local" if Path(place).is_dir() else "unknown"))


def _public_source(source: str, place: str) -> str:
    """What a result says of the origin: a shipped name, a hub id, or a folder's name without its parents."""
    return source if source in SHIPPED or not Path(place).is_dir() else f"folder {short_name(source)}"


def _pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of right-padded rows to the front."""
    length = mask.shape[1]
    shift = length - mask.sum(1, keepdim=True)
    index = (torch.arange(length, device=mask.device)[None] - shift) % length
    return embeds.gather(1, index[..., None].expand_as(embeds)), mask.gather(1, index)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token counted without padding, [N, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)
