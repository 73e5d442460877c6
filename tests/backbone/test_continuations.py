"""Texts behind a context that is read once are as likely as with their whole rows, on every layout of a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from float64 import in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.backbone.shared_prefix import RowPrefixes
from tools.network_matrix.checkpoints import build

NETWORKS = ("Llama 3", "Gemma 3", "Mistral", "GPT-2", "OPT", "Falcon", "T5", "BART")
"""Windows of two are 16 positions, GPT-2 and OPT learn positions, Falcon has one head of keys."""


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = tmp_path_factory.mktemp("network")
    build(request.param, folder)
    return load_backbone(str(folder), "float64")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with in_float64():
        yield


def ids(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """[N, L] drawn ids and which of them count, with the padding behind."""
    drawn = torch.randint(5, 200, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return drawn, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def alone(network: Backbone, context: Tensor, front: Tensor, text: Tensor) -> Tensor:
    """Losses [T] of one text behind one context, behind vectors in front, in a pass of its own."""
    embeds = torch.cat([front, network.token_vectors(context)])[None]
    return network.token_losses(embeds, torch.ones(embeds.shape[:2], dtype=torch.long), text[None])[0]


CONTEXTS = st.lists(st.integers(1, 40), min_size=1, max_size=4)
TEXTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=4, max_size=4)


@settings(max_examples=8)
@given(contexts=CONTEXTS, texts=TEXTS, seed=st.integers(0, 99))
def test_texts_behind_a_context_read_once(
    network: Backbone, contexts: list[int], texts: list[list[int]], seed: int
) -> None:
    sources, mask = ids(contexts, seed)
    owners = [row for row in range(len(contexts)) for _ in texts[row]]
    targets, counts = ids([length for row in range(len(contexts)) for length in texts[row]], seed + 1)
    labels = targets.masked_fill(~counts, -100)
    assert network.shares_contexts(64)
    read = network.read_contexts(network.token_vectors(sources), mask.long())
    losses = network.continuation_losses(read, torch.tensor(owners), labels)
    assert (losses[~counts] == 0).all()
    nothing = torch.zeros(0, network.hidden, dtype=torch.float64)
    for text, owner in enumerate(owners):
        expected = alone(network, sources[owner, : contexts[owner]], nothing, targets[text][counts[text]])
        torch.testing.assert_close(losses[text][counts[text]], expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=5)
@given(prompts=st.lists(st.integers(1, 20), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_contexts_stand_behind_prompts_that_were_read_before(network: Backbone, prompts: list[int], seed: int) -> None:
    if network.is_encoder_decoder:
        pytest.skip("only a decoder reads prompts by themselves")
    owners, lengths = [0, 1, -1, 2], [3, 20, 7, 1]
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(n, network.hidden, dtype=torch.float64, generator=generator) for n in prompts]
    longest = max(prompts)
    padded = torch.stack([F.pad(vector, (0, 0, longest - len(vector), 0)) for vector in vectors])
    is_prompt = torch.arange(longest)[None] >= longest - torch.tensor(prompts)[:, None]
    rows = RowPrefixes(network.read_prompts(padded, is_prompt.long(), grad=False), torch.tensor(owners))
    sources, mask = ids(lengths, seed)
    targets, counts = ids([2, 1, 5, 3, 4, 2, 1, 6], seed + 1)
    read = network.read_contexts(network.token_vectors(sources), mask.long(), rows)
    behind = torch.arange(4).repeat_interleave(2)
    losses = network.continuation_losses(read, behind, targets.masked_fill(~counts, -100))
    nothing = torch.zeros(0, network.hidden, dtype=torch.float64)
    for text, row in enumerate(behind.tolist()):
        front = vectors[owners[row]] if owners[row] >= 0 else nothing
        expected = alone(network, sources[row, : lengths[row]], front, targets[text][counts[text]])
        torch.testing.assert_close(losses[text][counts[text]], expected, rtol=1e-9, atol=1e-10)
