"""What a network cannot take in is one sentence before anything is trained: positions, and ids without a vector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BART, GPT2, SIZE, byte_tokenizer, write_checkpoint, write_reviews
from transformers import AutoConfig

from harness.backbone.load import load_backbone, untrained_network
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.results.store import ResultStore
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides
from harness.train.network_limits import max_positions, require_positions, target_tokens
from harness.train.tiny_backbones import tiny_backbone


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        (BART, 64, 64),
        (GPT2, 64, 64),
        ({"model_type": "led", "max_encoder_position_embeddings": 90, "max_decoder_position_embeddings": 30}, 90, 30),
        ({"model_type": "t5", "n_positions": 512}, None, None),
        ({"model_type": "mt5", "max_position_embeddings": 512}, None, None),
        ({"model_type": "bloom"}, None, None),
        ({"model_type": "falcon", "alibi": True}, None, None),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 70}, 70, 70),
        ({"model_type": "xlnet"}, None, None),
    ],
)
def test_positions_are_bounded_where_they_are_counted(
    config: dict[str, Any], encoder: int | None, decoder: int | None
) -> None:
    built = AutoConfig.for_model(**config)
    assert (max_positions(built, "encoder"), max_positions(built, "decoder")) == (encoder, decoder)


def test_the_bound_is_where_the_network_itself_breaks_off() -> None:
    model = untrained_network({**BART, "vocab_size": SIZE}).eval()
    start, limit = torch.ones(1, 1, dtype=torch.long), max_positions(model.config, "encoder")
    assert limit is not None
    vectors, tokens = torch.zeros(1, limit + 1, 16), torch.ones(1, limit + 1, dtype=torch.long)
    model(inputs_embeds=vectors[:, 1:], decoder_input_ids=tokens[:, 1:])
    for wrong in ({"inputs_embeds": vectors, "decoder_input_ids": start},
                  {"inputs_embeds": vectors[:, 1:], "decoder_input_ids": tokens}):  # fmt: skip
        with pytest.raises(IndexError):
            model(**wrong)


def test_prompt_text_and_answer_share_a_decoder_and_are_apart_beside_an_encoder() -> None:
    decoder = tiny_backbone("decoder", meta=True)
    require_positions(decoder, 100, 400, 12)
    with pytest.raises(UserError, match=r"needs 513 positions \(100 prompt \+ 400 source \+ 13 target\).*has 512"):
        require_positions(decoder, 100, 400, 13)
    require_positions(tiny_backbone(meta=True), 10_000, 10_000, 10_000)


def test_label_words_count_with_the_tokens_that_they_take(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer())), device="cpu")
    task = replace(all_tasks()["micro_sentiment"], labels=("bad", "excellent"))
    assert target_tokens(task, backbone) == len("0") + 1
    assert target_tokens(replace(task, target_style="words"), backbone) == len("excellent") + 1
    backbone.tokenizer = None
    assert target_tokens(replace(task, target_style="words"), backbone) == task.max_target_length


def refused(suite: Path, folder: Path) -> str:
    """The sentence with which a plan and a run refuse a suite; both leave nothing behind."""
    plan = make_plan(suite, Overrides(), folder / "results", None)
    with pytest.raises(UserError) as planned:
        find_misfits(plan, plan.asked())
    with pytest.raises(UserError) as ran:
        run(suite, results=folder / "results", quiet=True)
    assert not (folder / "results").exists()
    assert str(planned.value) == str(ran.value)
    return str(ran.value)


@pytest.mark.parametrize(
    ("config", "source", "answer", "expected"),
    [
        (BART, 61, None, "needs 65 positions (4 prompt + 61 source), the encoder of backbone 'net' has 64"),
        (BART, 32, "kind: text, label: verdict, max_target_length: 65",
         "needs 65 positions (65 target), the decoder of backbone 'net' has 64"),
        (BART, 32, "kind: text, label: verdict, max_new_tokens: 65",
         "needs 65 positions (65 target), the decoder of backbone 'net' has 64"),
        (GPT2, 20, "kind: text, label: verdict, max_new_tokens: 41",
         "needs 65 positions (4 prompt + 20 source + 41 target), backbone 'net' has 64"),
        (GPT2, 60, None, "needs 66 positions (4 prompt + 60 source + 2 target), backbone 'net' has 64"),
    ],
)  # fmt: skip
def test_what_has_too_few_positions_is_refused_before_training(
    tmp_path: Path, config: dict[str, Any], source: int, answer: str | None, expected: str
) -> None:
    folder = write_checkpoint(tmp_path / "net", config, byte_tokenizer())
    suite = write_reviews(tmp_path, [folder], source, answer=answer)
    assert expected in refused(suite, tmp_path)


@pytest.mark.parametrize(
    "method",
    ["prefix_tuning: {prefix_length: 40}", "peft: {config: {peft_type: PREFIX_TUNING, num_virtual_tokens: 40}}"],
)
def test_keys_and_values_in_front_take_positions_too(tmp_path: Path, method: str) -> None:
    """The text behind them is numbered from their end on, so they are no less of the table than a prompt's vectors."""
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer())
    suite = write_reviews(tmp_path, [folder], 30)
    suite.write_text(suite.read_text().replace("prompt_tuning: {prompt_length: 4}", method))
    assert "needs 72 positions (40 prompt + 30 source + 2 target), backbone 'net' has 64" in refused(suite, tmp_path)


def test_what_just_fits_its_positions_is_trained(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "net", BART, byte_tokenizer())
    suite = write_reviews(tmp_path, [folder], 60, text="long " * 30)
    assert run(suite, results=tmp_path / "results", quiet=True).num_failed == 0


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_training(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer(), vocab_size=SIZE - 10)
    message = refused(write_reviews(tmp_path, [folder]), tmp_path)
    assert f"the tokenizer of backbone 'net' has ids up to {SIZE - 1}" in message
    assert f"its embedding has {SIZE - 10} rows" in message


def test_an_end_token_without_a_vector_is_refused_before_training(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer(added=["<end>"], eos_token="<end>"))
    assert f"the end token of backbone 'net' is id {SIZE}" in refused(write_reviews(tmp_path, [folder]), tmp_path)


def test_padding_added_to_the_tokenizer_alone_does_no_harm(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer(added=["[PAD]"], pad_token="[PAD]"))
    backbone = load_backbone(str(folder), device="cpu")
    assert backbone.tokenizer.pad_token_id == SIZE
    assert backbone.pad_id == backbone.eos_id
    assert run(write_reviews(tmp_path, [folder]), results=tmp_path / "results", quiet=True).num_failed == 0


def test_a_row_with_a_token_without_a_vector_fails_in_one_sentence(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer(added=["<new>"]))
    run(write_reviews(tmp_path, [folder], text="a <new> one"), results=tmp_path / "results", quiet=True)
    ((_, result),) = ResultStore(tmp_path / "results").scan()
    assert result.failure is not None
    expected = f"a source of reviews train holds '<new>', id {SIZE}, backbone 'net' has {SIZE} embeddings"
    assert expected in result.failure.message
    assert result.usage is None or not result.usage.num_steps
