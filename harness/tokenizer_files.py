"""The tokenizer of a checkpoint: read from its files, what is wrong with them, and whether it is the network's."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.backbone import Backbone
from harness.errors import UserError

SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
OTHERS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "tiktoken.model")
FILES = (*SENTENCEPIECE, *OTHERS)
"""Files that hold a vocabulary. `tokenizer.json` serves where it is there; the others are what it is made of."""

PACKAGES = (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
"""What reads a SentencePiece file: the name for pip, and the module."""
TIKTOKEN = (("tiktoken", "tiktoken"),)

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*")


def load_tokenizer(place: str, **options: Any) -> Any:
    """`AutoTokenizer.from_pretrained`. Raises ValueError that says what is wrong with the files of a folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except OSError:
        raise
    except Exception as error:  # damaged files raise whatever the reader of their format does
        raise ValueError(f"its tokenizer cannot be read: {_cause(place, error)}") from error


def vocabulary_files(folder: Path) -> list[Path]:
    """The files of a folder that decide its tokenizer's ids."""
    whole = folder / "tokenizer.json"
    return [whole] if whole.exists() else [folder / name for name in FILES if (folder / name).exists()]


def check_vocabulary(backbone: Backbone) -> None:
    """Raise UserError where a tokenizer has no vocabulary, or ids of it or of its end token have no embedding.

    Added tokens beyond the embedding are passed over: padding may be one of them and needs no vector. Where rows hold
    one, `limits.check_ids` says so.
    """
    tokenizer, num_rows = backbone.tokenizer, backbone.embedding.num_embeddings
    added = set(tokenizer.added_tokens_decoder)
    own = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    # transformers makes a tokenizer of special tokens alone where a checkpoint has no files for one
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


def _cause(place: str, error: Exception) -> str:
    """transformers takes a SentencePiece file that it cannot read for one of tiktoken, and asks for that package."""
    files = vocabulary_files(Path(place)) if Path(place).is_dir() else []
    if Path(place).is_dir() and not files:
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
    """Whether a file begins as tiktoken's do: a token in base64 and its rank."""
    with open(path, "rb") as file:
        return TIKTOKEN_LINE.fullmatch(file.readline(1_000)) is not None


def _is_sentencepiece(path: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        return False
    return True
