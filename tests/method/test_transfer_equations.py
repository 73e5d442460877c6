"""Methods that learn from other tasks, against their equations written out in float64."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backbone.load import meta_backbone
from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.registry import discover
from harness.train.batch_input import BatchInput
from harness.train.tiny_backbones import tiny_backbone

REGISTRY = discover()
P = 4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone(precision="float64")


def build(name: str, backbone: Backbone, **hp: Any) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**hp), backbone)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Three padded texts of 3, 7 and 5 tokens; what stands at padding is large, to show where it is looked at."""
    embeds, mask = noise(3, 7, backbone.hidden), torch.zeros(3, 7, dtype=torch.long)
    for row, length in enumerate((3, 7, 5)):
        mask[row, :length] = 1
        embeds[row, length:] = 9.0
    return embeds, mask


def attempt(backbone: Backbone, **hp: Any) -> Any:
    method = build("attempt", backbone, prompt_length=P, bottleneck=6, num_sources=3, **hp)
    with torch.no_grad():
        method.start_from([{"prompt": noise(P, backbone.hidden, seed=seed)} for seed in (1, 2, 3)])
        method.vectors.copy_(noise(*method.vectors.shape, seed=4))
        method.norm.weight.copy_(noise(backbone.hidden, seed=5))
        method.norm.bias.copy_(noise(backbone.hidden, seed=6))
        method.down.weight.mul_(100)
        method.up.weight.mul_(100)
    return method


def test_attempt_mixes_prompts_as_its_equation_says(backbone: Backbone) -> None:
    method, (embeds, mask) = attempt(backbone, temperature=3.0), texts(backbone)
    got, got_mask = method(embeds, mask)
    sources = [noise(P, backbone.hidden, seed=seed) for seed in (1, 2, 3)]
    target = method.vectors[0]
    for row, length in enumerate((3, 7, 5)):
        x = embeds[row, :length].max(0).values
        inner = method.down.weight @ x
        y = method.up.weight @ (inner / (1 + (-inner).exp()))
        y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt() * method.norm.weight + method.norm.bias
        scores = torch.stack([y @ prompt.max(0).values / 3.0 for prompt in (*sources, target)])
        weights = scores.exp() / scores.exp().sum()
        prompts = (*sources, target)
        expected = target + sum(weight * prompt for weight, prompt in zip(weights, prompts, strict=True))
        torch.testing.assert_close(got[row, :P], expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(got[row, P:], embeds[row])
    assert got_mask[:, :P].all()
    assert torch.equal(got_mask[:, P:], mask)


def test_attempt_with_an_endless_temperature_adds_the_mean_of_all_prompts(backbone: Backbone) -> None:
    method, (embeds, mask) = attempt(backbone, temperature=1e300), texts(backbone)
    prompts = torch.cat([method.sources, method.vectors])
    expected = method.vectors[0] + prompts.mean(0)
    torch.testing.assert_close(method(embeds, mask)[0][:, :P], expected.expand(3, -1, -1), atol=1e-12, rtol=0)


def test_attempt_as_released_looks_at_padding_and_freezes_its_norm(backbone: Backbone) -> None:
    method, (embeds, mask) = attempt(backbone, as_released=True, source_length=7), texts(backbone)
    pad = backbone.embedding.weight[backbone.pad_id]
    pooled = method._pooled(embeds, mask)
    torch.testing.assert_close(pooled[0], torch.maximum(embeds[0, :3].max(0).values, pad))
    torch.testing.assert_close(pooled[1], embeds[1].max(0).values)
    assert not method.norm.weight.requires_grad
    assert {group["lr"] for group in method.param_groups(0.3)} == {0.3}
    assert attempt(backbone).temperature == math.floor(math.e * backbone.hidden)


def test_attempt_gives_each_task_of_a_mixture_its_own_prompt(backbone: Backbone) -> None:
    method, (embeds, mask) = attempt(backbone, num_tasks=2), texts(backbone)
    method.row_tasks = torch.tensor([1, 0, 1])
    mixed = method(embeds, mask)[0]
    for row, task in enumerate((1, 0, 1)):
        alone = attempt(backbone)
        with torch.no_grad():
            alone.vectors.copy_(method.vectors[task : task + 1])
        torch.testing.assert_close(mixed[row], alone(embeds, mask)[0][row], atol=1e-12, rtol=0)


def tpt(backbone: Backbone, **hp: Any) -> Any:
    method = build("tpt", backbone, bank_size=12, top_k=5, prompt_length=P, source_length=9, **hp)
    with torch.no_grad():
        method.bank.copy_(noise(12, backbone.hidden, seed=7))
    return method


@pytest.mark.parametrize("as_released", [False, True])
def test_tpt_retrieves_the_vectors_that_fit_each_text(backbone: Backbone, as_released: bool) -> None:
    method, (embeds, mask) = tpt(backbone, as_released=as_released), texts(backbone)
    got, got_mask = method(embeds, mask)
    pad = backbone.embedding.weight[backbone.pad_id]
    for row, length in enumerate((3, 7, 5)):
        seen = embeds[row, :length]
        if as_released:  # padding as the batch holds it, then up to the full length
            seen = torch.cat([embeds[row], pad.expand(2, -1)])
        query = [max(float(token[i]) for token in seen) for i in range(backbone.hidden)]
        scores = [sum(q * float(c) for q, c in zip(query, vector, strict=True)) for vector in method.bank.detach()]
        best = sorted(sorted(range(12), key=lambda i: -scores[i])[:5])
        torch.testing.assert_close(got[row, :5], method.bank[best])
        torch.testing.assert_close(got[row, 5 : 5 + P], method.vectors[0])
        assert int(got_mask[row].sum()) == 5 + P + len(seen)


def test_only_the_retrieved_vectors_of_the_bank_get_a_gradient(backbone: Backbone) -> None:
    method, (embeds, mask) = tpt(backbone), texts(backbone)
    method(embeds, mask)[0].square().sum().backward()
    chosen = set(method.retrieve(embeds, mask).flatten().tolist())
    assert {i for i in range(12) if method.bank.grad[i].any()} == chosen


def test_tpt_takes_its_bank_from_one_cell_and_its_prompt_from_another(backbone: Backbone) -> None:
    method = tpt(backbone)
    bank, prompt = noise(12, backbone.hidden, seed=8), noise(P, backbone.hidden, seed=9)
    method.start_from([{"bank": bank, "vectors": prompt[None]}, {"prompt": prompt}])
    assert torch.equal(method.bank, bank)
    assert torch.equal(method.vectors[0], prompt)
    with pytest.raises(ValueError, match="there are 2 banks"):
        method.start_from([{"bank": bank}, {"bank": bank}])


def mpt(backbone: Backbone, **hp: Any) -> Any:
    method = build("mpt", backbone, prompt_length=P, **hp)
    with torch.no_grad():
        for seed, tensor in enumerate((method.shared, method.u, method.v)):
            tensor.copy_(noise(*tensor.shape, seed=10 + seed))
    return method


def test_mpt_multiplies_a_shared_prompt_by_a_rank_one_matrix_per_task(backbone: Backbone) -> None:
    method = mpt(backbone, num_tasks=3)
    for task in range(3):
        expected = method.shared * torch.outer(method.u[task], method.v[task])
        torch.testing.assert_close(method.prompt()[task], expected, atol=1e-12, rtol=0)
    torch.manual_seed(0)
    fresh = build("mpt", backbone, prompt_length=P)
    assert torch.equal(fresh.prompt(), fresh.shared), "u = v = 1 is prompt tuning on the shared prompt"


def test_mpts_target_starts_from_the_shared_prompt_and_the_mean_of_the_factors(backbone: Backbone) -> None:
    student, target = mpt(backbone, num_tasks=3), build("mpt", backbone, prompt_length=P)
    target.start_from([dict(student.state_dict())])
    expected = student.shared * torch.outer(student.u.mean(0), student.v.mean(0))
    torch.testing.assert_close(target.prompt(), expected, atol=1e-12, rtol=0)


def reference_distillation(backbone: Backbone, prompt: Tensor, teacher: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """Loss per token of one text without padding, [T], from the network's own modules."""
    decoder_input = torch.cat([torch.zeros(1, dtype=torch.long), labels[:-1]])[None]

    def run(front: Tensor) -> tuple[Tensor, Tensor]:
        out = backbone.model(
            inputs_embeds=torch.cat([front, text])[None],
            attention_mask=torch.ones(1, len(front) + len(text), dtype=torch.long),
            decoder_input_ids=decoder_input,
            output_hidden_states=True,
        )
        return out.logits[0].softmax(-1), out.decoder_hidden_states[-1][0]

    (student, states), (taught, wanted) = run(prompt), run(teacher)
    cross_entropy = torch.stack([-student[t, label].log() for t, label in enumerate(labels)])
    divergence = (taught * (taught.log() - student.log())).sum(1)
    return cross_entropy + 0.9 * (divergence + ((states - wanted) ** 2).sum(1) / backbone.hidden)


def test_mpt_learns_from_its_teachers_as_the_equation_says(backbone: Backbone) -> None:
    method = mpt(backbone, num_tasks=2)
    teachers = [noise(P, backbone.hidden, seed=seed) for seed in (20, 21)]
    method.start_from([{"prompt": prompt} for prompt in teachers])
    texts_of, tasks = noise(2, 5, backbone.hidden, seed=30), [1, 0]
    labels = torch.tensor([[5, 9, 1], [7, 1, -100]])
    method.row_tasks = torch.tensor(tasks)
    prompts = method.prompt()
    embeds = torch.cat([prompts[tasks], texts_of], 1)
    losses = method.token_losses(backbone, embeds, torch.ones(2, P + 5, dtype=torch.long), labels)
    assert losses[1, 2] == 0
    for row, (task, length) in enumerate(zip(tasks, (3, 2), strict=True)):
        expected = reference_distillation(backbone, prompts[task], teachers[task], texts_of[row], labels[row, :length])
        torch.testing.assert_close(losses[row, :length], expected, atol=1e-10, rtol=0)
    losses.sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in method.parameters())
    assert "teachers" not in method.state_dict(), "teachers are not kept"


def test_a_teacher_that_says_the_same_adds_nothing(backbone: Backbone) -> None:
    method = mpt(backbone, num_tasks=2)
    method.start_from([{"prompt": prompt} for prompt in method.prompt().detach()])
    method.row_tasks = torch.tensor([0, 1])
    embeds = torch.cat([method.prompt(), noise(2, 5, backbone.hidden)], 1)
    mask, labels = torch.ones(2, P + 5, dtype=torch.long), torch.tensor([[5, 1], [6, 1]])
    torch.testing.assert_close(
        method.token_losses(backbone, embeds, mask, labels), backbone.token_losses(embeds, mask, labels)
    )


def test_hyperformer_writes_an_adapter_for_each_rows_task(backbone: Backbone) -> None:
    """Rows of two tasks together against each task alone, which has one embedding only."""
    together = build("hyperformer", backbone, num_tasks=2)
    with torch.no_grad():
        for tensor in together.parameters():
            tensor.add_(0.1 * noise(*tensor.shape, seed=tensor.numel()))
    embeds, mask, labels = noise(2, 6, backbone.hidden), torch.ones(2, 6, dtype=torch.long), torch.tensor([[5, 1]] * 2)

    def losses(method: Any, tasks: list[int]) -> Tensor:
        method.row_tasks = torch.tensor(tasks)
        method.attach(backbone)
        try:
            return backbone.token_losses(embeds, mask, labels).detach()
        finally:
            method.detach(backbone)

    mixed = losses(together, [1, 0])
    for row, task in enumerate((1, 0)):
        alone = build("hyperformer", backbone, num_tasks=1)
        tensors = together.state_dict()
        alone.load_state_dict({**tensors, "task.weight": tensors["task.weight"][task : task + 1]})
        torch.testing.assert_close(mixed[row], losses(alone, [0, 0])[row], atol=1e-12, rtol=0)
    assert not torch.allclose(mixed, losses(together, [0, 1]))


@pytest.mark.parametrize(
    ("method", "hp", "trained", "kept", "per_task"),
    [
        ("spot", {}, 76_800, 76_800, 76_800),
        ("attempt", {}, 231_936, 231_936 + 6 * 76_800, 231_936),
        ("attempt", {"as_released": True}, 230_400, 231_936 + 6 * 76_800, 230_400),
        ("attempt", {"num_tasks": 8}, 769_536, 769_536 + 6 * 76_800, 96_192),
        ("mpt", {}, 77_668, 76_800, 77_668),
        ("mpt", {"num_tasks": 8}, 83_744, 83_744, 10_468),
        ("tpt", {}, 537_600, 537_600, 537_600),
        ("hyperformer", {}, 5_211_056, 5_211_056, 651_382),
        ("hyperformer", {"train_norms": False}, 5_163_440, 5_163_440, 645_430),
        ("hyperdecoder", {}, 14_078_008, 14_078_008, 1_759_751),
        ("hyperdecoder", {"pool_network": True}, 15_259_192, 15_259_192, 1_907_399),
    ],
)
def test_counts_on_t5_base(method: str, hp: dict[str, object], trained: int, kept: int, per_task: int) -> None:
    made = build(method, t5_base(), **hp)
    assert (made.num_trained, made.num_kept, made.num_trained // made.num_tasks) == (trained, kept, per_task)


@functools.cache
def t5_base() -> Backbone:
    return meta_backbone("t5-base")


def test_a_prompt_per_task_reaches_the_rows_of_that_task(backbone: Backbone) -> None:
    from dataclasses import replace

    import numpy as np

    from harness.train.batch_input import Rows
    from harness.train.tiny_backbones import tiny_rows

    method = mpt(backbone, num_tasks=2)
    encoded = replace(tiny_rows([3, 5, 4], backbone), tasks=np.array([1, 0, 1]))
    fused = BatchInput([method], backbone, 9)
    fused.refresh(grad=True, cells=[0])
    embeds, mask, _ = fused.build(encoded, Rows(np.zeros(3, np.int64), np.arange(3)))
    for row, task in enumerate((1, 0, 1)):
        torch.testing.assert_close(embeds[row, :P], method.prompt()[task])
    embeds[:, :P].sum().backward()
    fused.backward()
    assert bool(method.u.grad.any())
    assert mask.sum(1).tolist() == [P + 3, P + 5, P + 4]
