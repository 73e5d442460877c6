"""How answers are written: rows that leave when they have ended, stop texts, beams, held against `generate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import in_float64
from test_networks import GEMMA, IDS, NETWORKS, WIDTH
from torch import Tensor, nn
from transformers import StopStringCriteria

from harness.backbone.load import load_backbone, untrained_network
from harness.backbone.network import Backbone
from harness.backbone.shared_prefix import RowPrefixes
from harness.backbone.writing import SHORT_ANSWER, CannotFollow, StopTexts, Writing, answer_text
from harness.train.tiny_backbones import TinyTokenizer
from tools.network_matrix.checkpoints import build

MOST = 48
TEXTS = (14, 7, 2, 6, 5, 3, 12, 9)
PROMPTS = (5, 9, 3)
_LLAMA = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "gpt2": NETWORKS["gpt2"] | {"n_positions": 128},
    "gemma3_text": GEMMA | {"max_position_embeddings": 128, "layer_types": ["sliding_attention", "full_attention"]},
    "lfm2": _LLAMA | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": NETWORKS["bart"] | {"max_position_embeddings": 128},
}
DECODERS = ["llama", "gpt2", "gemma3_text", "lfm2"]


@functools.cache
def network(kind: str) -> Backbone:
    """A random network in float64 whose answers wander, so that drawn tokens come at different times."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = untrained_network({"model_type": kind, **IDS, **KINDS[kind]}).double().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
        # a head of its own: one that shares its weights with the embedding writes the same token again and again
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn_like(head.weight))
    return Backbone(f"tiny-{kind}", model, TinyTokenizer(), None, "float64")


def rows(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Vectors [8, 14, H] of random tokens, and the mask of TEXTS."""
    ids = torch.randint(3, 128, (len(TEXTS), max(TEXTS)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(TEXTS))[None] < torch.tensor(TEXTS)[:, None]).long()
    return backbone.token_vectors(ids), mask


def drawn_ends(ids: Tensor, seed: int) -> tuple[int, ...]:
    """Tokens that end rows at three places at least: of each of some rows, the token at a drawn place."""
    draw = np.random.default_rng(seed)
    for _ in range(200):
        chosen = draw.choice(len(ids), len(ids) // 2, replace=False)
        ends = {int(ids[row, draw.integers(1, ids.shape[1])]) for row in chosen}
        places = {next((place for place, token in enumerate(row) if token in ends), -1) for row in ids.tolist()}
        if len(places) > 3:
            return tuple(ends)
    raise AssertionError("the answers of this network repeat themselves")


def generated(backbone: Backbone, embeds: Tensor, ends: tuple[int, ...], most: int = MOST, **options: Any) -> list[int]:
    """What transformers' own loop writes behind one row, [1, L, H]."""
    made: list[int] = backbone.model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(1, embeds.shape[1], dtype=torch.long), max_new_tokens=most,
        **{"do_sample": False, "num_beams": 1, "pad_token_id": 0, "eos_token_id": list(ends) or None} | options,
    )[0].tolist()  # fmt: skip
    return made[1:] if backbone.is_encoder_decoder else made


class Batches:
    """Counts the rows of each pass of a decoder, and says yes to whatever rows leave."""

    def __init__(self, backbone: Backbone) -> None:
        self.sizes: list[int] = []
        self.kept: list[int] = []
        self._handle = backbone.model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")  # GPT-2 is called by position
        self.sizes.append(len(kwargs["inputs_embeds"] if ids is None else ids))

    def __call__(self, kept: Tensor) -> bool:
        self.kept.append(len(kept))
        return True

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_leave_and_write_what_generate_writes(kind: str) -> None:
    backbone = network(kind)
    embeds, mask = rows(backbone)
    with in_float64():
        ends = drawn_ends(backbone.write(embeds, mask, Writing(MOST, ())), 0)
        writing = Writing(MOST, ends)
        with Batches(backbone) as batches:
            leaving = backbone.write(embeds, mask, writing, follow=batches)
        assert len(batches.kept) >= 2, "rows leave more than once"
        assert batches.sizes[-1] < len(TEXTS)
        staying = backbone.write(embeds, mask, writing)
        assert torch.equal(leaving, staying)
        for row, length in enumerate(TEXTS):
            theirs = generated(backbone, embeds[row : row + 1, :length], ends)
            assert leaving[row, : len(theirs)].tolist() == theirs
            assert not leaving[row, len(theirs) :].any()


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_rows_leave_behind_prompts_that_are_read_apart(kind: str) -> None:
    backbone = network(kind)
    embeds, mask = rows(backbone)
    prompts, prompt_mask = torch.randn(3, 9, WIDTH, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.long)
    for number, length in enumerate(PROMPTS):
        prompt_mask[number, 9 - length :] = 1
    owners = torch.tensor([0, 1, 2, 0, -1, 1, 2, 0])
    with in_float64():
        behind = RowPrefixes(backbone.read_prompts(prompts, prompt_mask, grad=False), owners)
        ends = drawn_ends(backbone.write(embeds, mask, Writing(MOST, ()), behind), 5)
        with Batches(backbone) as batches:
            leaving = backbone.write(embeds, mask, Writing(MOST, ends), behind, batches)
        assert batches.sizes[-1] < len(TEXTS)
        beams = backbone.write(embeds, mask, Writing(12, ends, num_beams=3), behind, lambda _: True)
        for row, (owner, length) in enumerate(zip(owners.tolist(), TEXTS, strict=True)):
            own = prompts[owner, 9 - PROMPTS[owner] :] if owner >= 0 else prompts[0, :0]
            whole = torch.cat([own, embeds[row, :length]])[None]
            theirs = generated(backbone, whole, ends)
            assert leaving[row, : len(theirs)].tolist() == theirs
            likeliest = generated(backbone, whole, ends, 12, num_beams=3)
            assert beams[row, : len(likeliest)].tolist() == likeliest
            assert {*beams[row, len(likeliest) :].tolist()} <= {0, *ends}


def test_rows_stay_where_answers_are_short_or_somebody_cannot_follow() -> None:
    backbone = network("llama")
    embeds, mask = rows(backbone)
    ends = drawn_ends(backbone.write(embeds, mask, Writing(SHORT_ANSWER, ())), 0)
    with Batches(backbone) as batches:
        backbone.write(embeds, mask, Writing(SHORT_ANSWER, ends), follow=batches)
    assert not batches.kept
    assert set(batches.sizes) == {len(TEXTS)}
    asked: list[int] = []

    def refuse(kept: Tensor) -> bool:
        asked.append(len(kept))
        return False

    with Batches(backbone) as batches:
        backbone.write(embeds, mask, Writing(MOST, ends), follow=refuse)
    assert len(asked) == 1, "nobody is asked twice"
    assert set(batches.sizes) == {len(TEXTS)}


@pytest.mark.parametrize(("kind", "num_beams"), [("llama", 2), ("gpt2", 4), ("t5", 4), ("lfm2", 2)])
def test_beams_find_what_generate_finds(kind: str, num_beams: int) -> None:
    backbone = network(kind)
    embeds, mask = rows(backbone)
    told: list[list[int]] = []

    def follow(kept: Tensor) -> bool:
        told.append(kept.tolist())
        return True

    with in_float64():
        ends = drawn_ends(backbone.write(embeds, mask, Writing(16, ())), 2)
        found = backbone.write(embeds, mask, Writing(16, ends, num_beams), follow=follow)
        greedy = backbone.write(embeds, mask, Writing(16, ends))
        for row, length in enumerate(TEXTS):
            theirs = generated(backbone, embeds[row : row + 1, :length], ends, 16, num_beams=num_beams)
            assert found[row, : len(theirs)].tolist() == theirs
            assert {*found[row, len(theirs) :].tolist()} <= {0, *ends}
    assert told == [np.repeat(np.arange(len(TEXTS)), num_beams).tolist()]
    assert found.shape != greedy.shape or not torch.equal(found, greedy), "a search that finds nothing else is none"


def test_what_a_checkpoint_says_of_generation_does_not_count() -> None:
    backbone = network("llama")
    embeds, mask = rows(backbone)
    writing = Writing(16, (1,), num_beams=3)
    before = backbone.write(embeds, mask, writing)
    backbone.model.generation_config.update(no_repeat_ngram_size=1, min_new_tokens=9, length_penalty=5.0, num_beams=7)
    settings = backbone.model.generation_config
    try:
        assert torch.equal(backbone.write(embeds, mask, writing), before)
        assert backbone.model.generation_config is settings
    finally:
        network.cache_clear()


def test_beams_are_refused_where_somebody_cannot_follow() -> None:
    backbone = network("t5")
    with pytest.raises(CannotFollow, match="1 beam"):
        backbone.write(*rows(backbone), Writing(8, (1,), num_beams=2), follow=lambda _: False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny Llama with a tokenizer of bytes and their merges."""
    folder = tmp_path_factory.mktemp("checkpoints") / "llama"
    build("Llama 3", folder)
    return load_backbone(str(folder), "float32")


def test_an_answer_ends_at_the_first_end_or_stop_text(llama: Backbone) -> None:
    tokenizer = llama.tokenizer
    ids = tokenizer("the answer is 12.\nQ: and then", add_special_tokens=False)["input_ids"]
    assert len(ids) > 6

    def text(ends: tuple[int, ...], *stop: str) -> str:
        return answer_text(tokenizer, ids, Writing(99, ends, stop=stop))

    whole = tokenizer.decode(ids).strip()
    assert text(()) == whole
    assert text((ids[3], ids[5])) == text((ids[5], ids[3])) == tokenizer.decode(ids[:3]).strip()
    assert text((), "Q:", "\n") == text((), "\n", "Q:") == whole.split("\n")[0].strip()
    assert text((), "no such text") == whole
    assert text((), whole[:2]) == "", "an answer may begin with its stop text"


@pytest.mark.parametrize("stop", ["swer is", ".\nQ", "é!", "Q:"])
def test_a_stop_text_is_found_in_the_step_that_completes_it(llama: Backbone, stop: str) -> None:
    """Whatever tokens it spans, and however long the answer is already."""
    said = "and so on, " * 30 + "the answer is é!\n é! 12.\nQ: and then"
    ids = llama.tokenizer(said, add_special_tokens=False)["input_ids"]
    found = next(end for end in range(len(ids)) if stop in llama.tokenizer.decode(ids[: end + 1]))
    watch = StopTexts((stop, "never"), llama.tokenizer, 2)
    ended = [watch.found([1], [token], [False])[0] for token in ids]
    assert ended.index(True) == found
    assert watch.found([0, 0], [ids[0], ids[0]], [True, False]) == [True, False]


def test_a_row_ends_with_its_stop_text_and_what_it_read_does_not_count(llama: Backbone) -> None:
    embeds, mask = rows(llama)
    free = llama.write(embeds, mask, Writing(MOST, ()))
    texts = [llama.tokenizer.decode(row, skip_special_tokens=True) for row in free.tolist()]
    stops = tuple({text[place : place + 2] for text, place in zip(texts[::2], (9, 30, 4, 60), strict=True)} - {""})
    writing = Writing(MOST, (), stop=stops)
    with Batches(llama) as batches:
        ids = llama.write(embeds, mask, writing, follow=batches)
    assert batches.sizes[-1] < len(TEXTS)
    for row, text in enumerate(texts):
        places = [text.find(stop) for stop in stops if stop in text]
        assert answer_text(llama.tokenizer, ids[row].tolist(), writing) == text[: min(places, default=None)].strip()
    beams = llama.write(embeds, mask, Writing(20, (), num_beams=2, stop=stops))
    for row, length in enumerate(TEXTS):
        options = {"num_beams": 2, "stop_strings": list(stops), "tokenizer": llama.tokenizer}
        theirs = generated(llama, embeds[row : row + 1, :length], (), 20, **options)
        assert beams[row, : len(theirs)].tolist() == theirs


def test_beams_look_for_stop_texts_in_the_vocabulary_once(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds with a large vocabulary, and an evaluation has many batches."""
    made: list[StopStringCriteria] = []
    build = StopStringCriteria.__init__

    def counted(criterion: StopStringCriteria, *args: Any, **kwargs: Any) -> None:
        made.append(criterion)
        build(criterion, *args, **kwargs)

    monkeypatch.setattr(StopStringCriteria, "__init__", counted)
    for stop in (("once",), ("once",), ("once", "twice"), ("once",)):
        llama.write(*rows(llama), Writing(3, (), num_beams=2, stop=stop))
    assert [criterion.stop_strings for criterion in made] == [("once",), ("once", "twice")]


def test_long_answers_and_beams_take_memory_of_their_own() -> None:
    assert Writing(SHORT_ANSWER, (1,)).positions(100) == 100
    assert Writing(256, (1,)).positions(100) == 356
    assert Writing(SHORT_ANSWER, (1,), num_beams=4).positions(100) == 400
    assert Writing(256, (1,), num_beams=4).positions(100) == 4 * 356


def test_beams_of_an_encoder_decoder_end_at_stop_texts(tmp_path: Path) -> None:
    build("T5", tmp_path / "t5")
    backbone = load_backbone(str(tmp_path / "t5"), "float32")
    embeds, mask = rows(backbone)
    free = backbone.write(embeds, mask, Writing(12, (1,), num_beams=2))
    whole = [answer_text(backbone.tokenizer, row, Writing(12, (1,))) for row in free.tolist()]
    stop = max(whole, key=len)[2:4]
    writing = Writing(12, (1,), num_beams=2, stop=(stop,))
    texts = [answer_text(backbone.tokenizer, row, writing) for row in backbone.write(embeds, mask, writing).tolist()]
    assert texts != whole
    assert not any(stop in text for text in texts)
