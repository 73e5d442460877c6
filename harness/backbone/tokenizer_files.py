"""Reads the tokenizer of a checkpoint, says what is wrong with its files, and checks that it belongs to the network."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.backbone.network import Backbone
from harness.errors import UserError

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
OTHERS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "tiktoken.model")
FILES = (*SENTENCEPIECE, *OTHERS)
"""Files that hold a vocabulary. Where there is a `tokenizer.json` it is read alone; it was made from the others."""

PACKAGES = (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
"""Packages that read a SentencePiece file: name for pip, name of the module."""
TIKTOKEN = (("tiktoken", "tiktoken"),)
"""The same for a file of tiktoken."""

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*")
"""A line of a tiktoken file: a token in base64, and its rank."""


def load_tokenizer(location: str, **options: Any) -> Any:
    """Call `AutoTokenizer.from_pretrained`. Raises ValueError which says what is wrong with the files of a folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location, **options)
    except OSError:
        raise
    except Exception as error:  # damaged files raise whatever the reader of their format does
        raise ValueError(f"its tokenizer cannot be read: {_cause(location, error)}") from error


def vocabulary_files(folder: Path) -> list[Path]:
    """Return the files of a folder that decide its tokenizer's ids."""
    whole = folder / "tokenizer.json"
    return [whole] if whole.exists() else [folder / name for name in FILES if (folder / name).exists()]


def check_vocabulary(backbone: Backbone) -> None:
    """Raise UserError where a tokenizer has no vocabulary, or has ids that the network has no embedding for.

    Tokens that were added later may lie beyond the embedding: padding may be one of them and needs no vector. Where
    rows hold such a token, `limits.check_ids` reports it.
    """
    tokenizer, num_rows = backbone.tokenizer, backbone.embedding.num_embeddings
    added = set(tokenizer.added_tokens_decoder)
    own = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    # where a checkpoint has no tokenizer files, transformers makes one of special tokens alone, without an error
    if len(own) <= 1:
        problem = f"backbone '{backbone.name}' has no tokenizer: there is no vocabulary beside its weights"
        raise UserError(problem, hint=f"Put {', '.join(OTHERS[:1] + SENTENCEPIECE[:1])} or what else it has there.")
    largest = max(own)
    if largest >= num_rows:
        problem = (
            f"the tokenizer of backbone '{backbone.name}' has ids up to {largest} ({own[largest]!r}), "
            f"its embedding has {num_rows} rows"
        )
        raise UserError(problem, hint="Take the tokenizer that this checkpoint was trained with.")
    if backbone.eos_id >= num_rows:
        problem = (
            f"the end token of backbone '{backbone.name}' is id {backbone.eos_id}, its embedding has {num_rows} rows"
        )
        raise UserError(problem, hint="Resize the embedding, or name another eos_token in tokenizer_config.json.")


def _cause(location: str, error: Exception) -> str:
    """Say why a tokenizer could not be read.

    The error itself may mislead: transformers takes a SentencePiece file that it cannot read for one of tiktoken, and
    asks for that package.
    """
    files = vocabulary_files(Path(location)) if Path(location).is_dir() else []
    if Path(location).is_dir() and not files:
        return f"the folder holds none of {', '.join(sorted(FILES))}"
    for path in files:
        if path.suffix != ".model":
            continue
        is_tiktoken = _is_tiktoken(path)
        missing = [name for name, module in (TIKTOKEN if is_tiktoken else PACKAGES) if not _is_installed(module)]
        if missing:
            return f"{path.name} needs packages that are not there: pip install {' '.join(missing)}"
        if not (is_tiktoken or _is_sentencepiece(path)):
            return f"{path.name} is no SentencePiece model; it may be damaged, or a pointer that Git LFS left"
    return " ".join(str(error).split()) or type(error).__name__


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _is_tiktoken(path: Path) -> bool:
    """Whether a file begins with a line as tiktoken writes it."""
    with open(path, "rb") as file:
        return TIKTOKEN_LINE.fullmatch(file.readline(1_000)) is not None


def _is_sentencepiece(path: Path) -> bool:
    """Whether sentencepiece can read a file."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        return False
    return True
