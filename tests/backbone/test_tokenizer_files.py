"""Checkpoints as people have them: a SentencePiece file alone, pickled weights, damaged or missing tokenizers."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from checkpoints import GPT2, byte_tokenizer, write_checkpoint, write_reviews
from paths import ROOT
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.load import load_backbone, require_safetensors
from harness.backbone.tokenizer_files import PACKAGES
from harness.errors import UserError
from harness.runner.plan import make_plan
from harness.suite.make_groups import Overrides

TEXTS = [f"the {noun} {verb} a {noun}." for noun in ("cat", "dog", "mouse") for verb in ("sees", "hears", "likes")]
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 0, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}  # fmt: skip

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2}  # fmt: skip


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with the special tokens of T5."""
    folder = tmp_path_factory.mktemp("spiece")
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4), model_prefix=str(folder / "spiece"), vocab_size=40, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_a_sentencepiece_file_is_all_that_a_t5_needs(tmp_path: Path, spiece: Path, kind: str) -> None:
    write_checkpoint(tmp_path, T5 | {"model_type": kind}, vocab_size=200)
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
    backbone = load_backbone(str(tmp_path), device="cpu")
    own = SentencePieceProcessor(model_file=str(spiece))
    for text in [*TEXTS, "a  mouse  ", "zebra"]:
        assert backbone.tokenizer(text)["input_ids"] == [*own.encode(text), own.eos_id()]
    assert (backbone.eos_id, backbone.pad_id) == (1, 0)


def test_an_installation_brings_what_reads_such_a_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = {re.match("[a-z0-9-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    assert {name for name, _ in PACKAGES} <= installed


def test_a_tokenizer_made_of_other_files_counts_into_the_fingerprint(tmp_path: Path, spiece: Path) -> None:
    write_checkpoint(tmp_path, T5, vocab_size=200)
    found = [weights_fingerprint(str(tmp_path))]
    for content in (spiece.read_bytes(), spiece.read_bytes()[:-1]):
        (tmp_path / "spiece.model").write_bytes(content)
        found.append(weights_fingerprint(str(tmp_path)))
    assert len(set(found)) == 3


def test_the_genuine_tokenizer_is_the_same_from_either_file(tmp_path: Path, real_models: Path) -> None:
    from transformers import AutoTokenizer

    write_checkpoint(tmp_path, T5, vocab_size=32_128)
    (tmp_path / "spiece.model").write_bytes((real_models / "t5-tokenizer" / "spiece.model").read_bytes())
    ours = load_backbone(str(tmp_path), device="cpu").tokenizer
    theirs = AutoTokenizer.from_pretrained(real_models / "t5-tokenizer")
    for text in (
        "Hello  world.",
        "naïve café – “quotes” 東京",
        "\tTab\nnewline ",
        "ＦＵＬＬ ﬁ ½",
        "<extra_id_0> x </s>",
    ):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (T5, {}, "backbone 'net' has no tokenizer"),
        (GPT2, {}, "backbone 'net' has no tokenizer"),
        (LLAMA, {}, "the folder holds none of .*tokenizer.json"),
        (T5, {"spiece.model": LFS}, "spiece.model is no SentencePiece model"),
        (T5, {"spiece.model": b"\x00" * 100}, "spiece.model is no SentencePiece model"),
        (GPT2, {"tokenizer.json": b"{"}, "its tokenizer cannot be read"),
    ],
)
def test_a_tokenizer_that_is_missing_or_damaged_is_named(
    tmp_path: Path, config: dict[str, object], files: dict[str, bytes], expected: str
) -> None:
    """transformers makes one without a vocabulary where there are no files, and asks for tiktoken elsewhere."""
    write_checkpoint(tmp_path / "net", config, vocab_size=200)
    for name, content in files.items():
        (tmp_path / "net" / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_backbone(str(tmp_path / "net"), device="cpu")
    assert "tiktoken`" not in str(caught.value)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_the_package_that_is_missing_is_the_one_that_is_named(tmp_path: Path, spiece: Path, package: str) -> None:
    from harness.backbone import tokenizer_files

    write_checkpoint(tmp_path / "net", T5, vocab_size=200)
    (tmp_path / "net" / "spiece.model").write_bytes(spiece.read_bytes())
    module = dict(tokenizer_files.PACKAGES)[package]
    is_there: Callable[[str], bool] = lambda name: name != module  # noqa: E731
    with (
        patch.object(tokenizer_files, "_is_installed", is_there),
        patch("transformers.AutoTokenizer.from_pretrained", side_effect=ValueError("`tiktoken` is required")),
        pytest.raises(UserError, match=rf"spiece.model needs packages that are not there: pip install {package}"),
    ):
        load_backbone(str(tmp_path / "net"), device="cpu")


@pytest.mark.parametrize(("config", "kind"), [(T5, "Seq2SeqLM"), (GPT2, "CausalLM")])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, object], kind: str
) -> None:
    folder = write_checkpoint(tmp_path / "net", config, byte_tokenizer(), vocab_size=300)
    expected = load_backbone(str(folder), device="cpu").model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    for refuse in (require_safetensors, load_backbone):
        with pytest.raises(UserError, match=r"holds pickled weights only \(pytorch_model.bin\)") as caught:
            refuse(str(folder))
    with pytest.raises(UserError, match="holds pickled weights only"):  # and before anything is looked for
        make_plan(write_reviews(tmp_path, [folder]), Overrides(), tmp_path / "out", None)
    command = re.search(r"python -c .*", str(caught.value))
    assert command is not None
    assert f"AutoModelFor{kind}" in command[0]
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(command[0])[2], {})
    converted = load_backbone("net-safetensors", device="cpu")
    for name, tensor in converted.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("name", ["tf_model.h5", "consolidated.00.pth", "model.ckpt"])
def test_weights_in_another_form_are_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer())
    (folder / "model.safetensors").rename(folder / name)
    (folder / "training_args.bin").write_bytes(b"")  # the Trainer leaves it beside weights, and it is none
    with pytest.raises(UserError, match=f"holds no safetensors, only {name}"):
        require_safetensors(str(folder))
