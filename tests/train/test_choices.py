"""Ranking choices: each as likely as in a pass of its own, whatever shares the passes; ties, and what is no number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from float64 import in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import ByText

from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.data.encoded_choices import EncodedChoices, join_choices
from harness.data.ragged import ragged
from harness.data.tasks import all_tasks
from harness.data.tokenization import Encoded
from harness.method.layer_change import LayerChange
from harness.method.method import Method
from harness.method.registry import discover
from harness.train import choices as choices_module
from harness.train.batch_input import BatchInput, Rows
from harness.train.choices import choice_scores, likeliest
from harness.train.evaluate import answer_split
from harness.train.tiny_backbones import tiny_rows
from tools.network_matrix.checkpoints import build

NETWORKS = ("Llama 3", "Gemma 3", "GPT-2", "T5")
"""Gemma's window is 16 positions, shorter than most contexts; GPT-2 learns its positions."""
LENGTH = 40
REGISTRY = discover()
Specs = list[tuple[str, dict[str, Any]]]
INPUT_SIDE: Specs = [
    ("prompt_tuning", {"prompt_length": 7}),
    ("by_text", {}),
    ("prompt_tuning", {"prompt_length": 25}),  # longer than the window
    ("dept", {"prompt_length": 5, "budget_length": 9, "source_length": LENGTH, "added_lr": 0.01}),
]
LAYER_SIDE: Specs = [("lora", {"rank": 2}), ("lora", {"rank": 4}), ("adapter", {})]
PREFIXES: Specs = [("prefix_tuning", {"prefix_length": 6}), ("prompt_tuning", {"prompt_length": 9})]
TASK = all_tasks()["copa_choice"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("network")
    build(request.param, folder)
    return load_backbone(str(folder), "float64")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with in_float64():
        yield


def make(backbone: Backbone, specs: Specs) -> list[Method]:
    """Methods whose tensors are drawn, so that each changes what the network gives."""
    made: list[Method] = []
    for seed, (name, hp) in enumerate(specs):
        torch.manual_seed(seed)
        cls: Any = REGISTRY[name].cls if name != "by_text" else None
        method = ByText(backbone) if cls is None else cls(cls.HP(**hp), backbone)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        made.append(method.eval())
    return made


def drawn_rows(backbone: Backbone, lengths: list[int], texts: list[list[int]], seed: int = 0) -> Encoded:
    """Rows with contexts and choices of these lengths, whose ids are drawn; divided by their number of tokens."""
    rng = np.random.default_rng(seed)
    flat = [rng.integers(5, 200, length).tolist() for row in texts for length in row]
    row_offsets = np.cumsum([0, *map(len, texts)])
    answers = tuple(str(number) for row in texts for number in range(len(row)))
    found = EncodedChoices(*ragged(flat), row_offsets, np.array([len(ids) for ids in flat], float), answers)
    encoded = tiny_rows(lengths, backbone)
    return Encoded(
        encoded.source_ids, encoded.source_offsets, encoded.target_ids, encoded.target_offsets, choices=found
    )


def scores_of(
    fused: BatchInput, encoded: Encoded, max_tokens: int = 200
) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """By (cell, row), the score of each choice."""
    cells = range(len(fused.methods))
    rows = Rows(np.repeat(np.arange(len(fused.methods)), len(encoded)), np.tile(np.arange(len(encoded)), len(cells)))
    with torch.no_grad(), fused.attached():
        fused.refresh(grad=False, cells=cells)
        fused.read_prompts(cells, grad=False)
        return {(cell, row): scores for cell, row, scores in choice_scores(fused, encoded, rows, max_tokens)}


def alone(method: Method, backbone: Backbone, encoded: Encoded, row: int) -> list[float]:
    """Score of each choice of a row from a pass of its own: one cell, one row, one text, the prompt in the row."""
    fused = BatchInput([method], backbone, LENGTH)
    assert encoded.choices is not None
    found = []
    with torch.no_grad(), fused.attached():
        fused.refresh(grad=False, cells=[0])
        embeds, mask, _ = fused.build(encoded, Rows(np.array([0]), np.array([row])))
        for choice in encoded.choices.of(np.array([row]))[0]:
            labels = torch.as_tensor(encoded.choices.tokens(np.array([choice])))
            loss = float(backbone.token_losses(embeds, mask, labels).sum())
            found.append(-loss / float(encoded.choices.lengths[choice]))
    return found


def bundle(backbone: Backbone, specs: Specs, apart: bool = True) -> BatchInput:
    return BatchInput(make(backbone, specs), backbone, LENGTH, answer_length=8 if apart else None)


CONTEXTS = [3, 30, 11, 1, 24]
TEXTS = [[1, 1], [3, 5, 2], [1, 4, 1, 6], [2, 2], [7, 1]]


@pytest.mark.parametrize(
    ("specs", "apart"),
    [(INPUT_SIDE, True), (INPUT_SIDE, False), (LAYER_SIDE, True)],
    ids=["apart", "in rows", "layers"],
)
def test_choices_of_a_bundle_are_as_likely_as_alone(network: Backbone, specs: Specs, apart: bool) -> None:
    encoded = drawn_rows(network, CONTEXTS, TEXTS)
    fused = bundle(network, specs, apart)
    assert fused.shares_contexts(60)
    found = scores_of(fused, encoded)
    assert len(found) == len(specs) * len(CONTEXTS)
    methods = make(network, specs)
    for (cell, row), scores in found.items():
        np.testing.assert_allclose(scores, alone(methods[cell], network, encoded, row), rtol=1e-9)


@pytest.mark.parametrize("specs", [INPUT_SIDE[::-1], LAYER_SIDE[:2]], ids=["input", "layers"])
def test_texts_with_their_whole_rows_are_as_likely(network: Backbone, specs: Specs) -> None:
    """As where a network keeps something else than keys and values."""
    encoded = drawn_rows(network, CONTEXTS[:3], TEXTS[:3])
    whole = bundle(network, specs)
    whole._reads_once = False
    expected = scores_of(bundle(network, specs), encoded)
    for key, scores in scores_of(whole, encoded).items():
        np.testing.assert_allclose(scores, expected[key], rtol=1e-9)


def test_keys_and_values_that_a_method_gives_stand_in_front(network: Backbone) -> None:
    if network.is_encoder_decoder:
        pytest.skip("prefix tuning trains alone there")
    encoded = drawn_rows(network, CONTEXTS, TEXTS)
    found = scores_of(bundle(network, PREFIXES), encoded)
    whole = bundle(network, PREFIXES)
    whole._reads_once = False
    for key, scores in scores_of(whole, encoded).items():
        np.testing.assert_allclose(found[key], scores, rtol=1e-9)
    (prompt,) = make(network, PREFIXES)[1:]
    for row in range(len(CONTEXTS)):
        np.testing.assert_allclose(found[1, row], alone(prompt, network, encoded, row), rtol=1e-9)


@settings(max_examples=4)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 39), st.lists(st.integers(1, 9), min_size=2, max_size=5)), min_size=1, max_size=6
    ),
    max_tokens=st.sampled_from([1, 30, 200]),
    seed=st.integers(0, 99),
)
def test_drawn_rows_in_micro_batches_of_any_size(
    network: Backbone, rows: list[tuple[int, list[int]]], max_tokens: int, seed: int
) -> None:
    lengths, texts = [length for length, _ in rows], [own for _, own in rows]
    encoded = drawn_rows(network, lengths, texts, seed)
    specs = [*INPUT_SIDE[:1], ("lora", {"rank": 2})][seed % 2 :][:1]
    found = scores_of(bundle(network, specs), encoded, max_tokens)
    (method,) = make(network, specs)
    for (_, row), scores in found.items():
        np.testing.assert_allclose(scores, alone(method, network, encoded, row), rtol=1e-9)


def test_passes_keep_their_bounds_whatever_the_logits_take(network: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few logits a micro-batch is cut into many passes, which give the same."""
    encoded = drawn_rows(network, CONTEXTS, TEXTS)
    expected = scores_of(bundle(network, LAYER_SIDE[:2]), encoded)
    few = 5 * network.embedding.num_embeddings
    monkeypatch.setattr(choices_module, "MOST_LOGITS", {"cpu": few, "cuda": few})
    for key, scores in scores_of(bundle(network, LAYER_SIDE[:2]), encoded).items():
        np.testing.assert_allclose(scores, expected[key], rtol=1e-9)


@pytest.mark.parametrize("specs", [INPUT_SIDE[:1] * 2, LAYER_SIDE[:1] * 2], ids=["input", "layers"])
def test_a_cell_that_breaks_down_answers_nothing_and_touches_no_other(network: Backbone, specs: Specs) -> None:
    encoded = drawn_rows(network, CONTEXTS, TEXTS)
    fused = bundle(network, specs)
    expected = scores_of(bundle(network, specs), encoded)
    with torch.no_grad():
        next(fused.methods[0].parameters()).fill_(torch.nan)
    with fused.attached():
        answers = answer_split(fused, [0, 1], encoded, TASK, 200)
    assert answers[0] == [""] * len(CONTEXTS)
    assert encoded.choices is not None
    assert answers[1] == [likeliest(encoded.choices, row, expected[1, row]) for row in range(len(CONTEXTS))]


def test_a_method_that_attaches_itself_reads_whole_rows() -> None:
    """HyperDecoder writes adapters for each text that its encoder read, so a text per row has to be in the pass."""
    backbone = load_backbone("micro-t5", "float64")
    encoded = drawn_rows(backbone, CONTEXTS, TEXTS)
    fused = bundle(backbone, [("hyperdecoder", {"width": 4})])
    assert not fused.shares_contexts(60)
    for (_, row), scores in scores_of(fused, encoded).items():
        np.testing.assert_allclose(scores, alone(fused.methods[0], backbone, encoded, row), rtol=1e-9)


def test_a_layer_change_that_mixes_positions_reads_whole_rows(network: Backbone) -> None:
    """What a cell puts into a layer may look at the whole row, if its method does not say otherwise."""

    class Mixing(Method):
        name = "mixing"

        def layer_changes(self) -> list[LayerChange]:
            module = network.model.get_output_embeddings()
            return [LayerChange(module, after=lambda states: states + states.mean(1, keepdim=True))]

    assert bundle(network, LAYER_SIDE[:1]).shares_contexts(60)
    assert BatchInput([Mixing(None, network)], network, LENGTH).shares_contexts(60) == network.is_encoder_decoder


def choice_row(*scores_ids: tuple[float, int]) -> tuple[EncodedChoices, np.ndarray[Any, Any]]:
    """One row's choices of one token each, with their scores."""
    ids = [[token] for _, token in scores_ids]
    answers = tuple(map(str, range(len(ids))))
    made = EncodedChoices(*ragged(ids), np.array([0, len(ids)]), np.ones(len(ids)), answers)
    return made, np.array([score for score, _ in scores_ids])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([(-2.0, 5), (-1.0, 6)], "1"),
        ([(-1.0, 5), (-1.0, 6)], "0"),
        ([(-3.0, 7), (-1.0, 5), (-1.0 + 1e-12, 5)], "1"),  # one text, computed twice
        ([(-1.0, 5), (float("nan"), 6)], ""),
        ([(float("-inf"), 5), (-9.0, 6)], "1"),
    ],
)
def test_the_first_of_the_likeliest_wins(row: list[tuple[float, int]], expected: str) -> None:
    made, scores = choice_row(*row)
    assert likeliest(made, 0, scores) == expected


def test_rows_of_a_mixture_are_written_or_ranked_as_their_task_says(network: Backbone) -> None:
    encoded = drawn_rows(network, CONTEXTS, TEXTS)
    whole = drawn_rows(network, CONTEXTS, [[], *TEXTS[1:]])
    own, joined = encoded.choices, join_choices([None, encoded.choices], [1, len(CONTEXTS)])
    assert own is not None
    assert joined is not None
    assert joined.counts(np.arange(1 + len(CONTEXTS))).tolist() == [0, *map(len, TEXTS)]
    moved, first = (made.tokens(made.of(np.array([row]))[0]) for made, row in ((joined, 2), (own, 1)))
    assert moved.tolist() == first.tolist()
    fused = bundle(network, INPUT_SIDE[:2])
    answers = answer_split(fused, [0, 1], whole, all_tasks()["micro_qa"], 200)
    for cell in (0, 1):
        assert answers[cell][0] not in ("0", "1", "2")
        assert all(answer in ("0", "1", "2", "3") for answer in answers[cell][1:])
