"""Writing in bundles: rows of several cells end at different times, leave, and change nothing for those that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_fused import make_cell, make_method
from torch import Tensor, nn

from harness.backbone.network import Backbone
from harness.backbone.writing import SHORT_ANSWER, Writing
from harness.data.tasks import all_tasks
from harness.data.tokenization import Encoded, writings
from harness.method.method import Method
from harness.method.registry import discover
from harness.method.shared_layers import SharedLayers
from harness.train import evaluate
from harness.train.batch_input import BatchInput, Rows
from harness.train.evaluate import answer_split, fewest_tokens
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone, tiny_rows

MOST = SHORT_ANSWER + 2  # shorter answers keep all rows to their end
LENGTHS = (11, 3, 11, 3, 7, 7)
TASK = replace(all_tasks()["micro_qa"], max_new_tokens=MOST)
Specs = Sequence[tuple[str, dict[str, object]]]
LORA: Specs = [("lora", {"rank": 4, "dropout": 0.0})] * 3
MIXED: Specs = [
    ("lora", {"rank": 2, "dropout": 0.0, "biases": True}), ("adapter", {"reduction": 4}), ("bitfit", {}), ("ia3", {}),
]  # fmt: skip
PROMPTS: Specs = [
    ("prompt_tuning", {"prompt_length": 5}),
    ("prompt_tuning", {"prompt_length": 3}),
    ("dept", {"prompt_length": 4, "budget_length": 8, "source_length": 24, "added_lr": 0.1}),
]


def restless(kind: Any) -> Backbone:
    """A tiny network whose answers wander, with a head of its own."""
    backbone = tiny_backbone(kind, "float64")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in backbone.model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
        head = backbone.model.get_output_embeddings()
        head.weight = nn.Parameter(torch.randn_like(head.weight), requires_grad=False)
    return backbone


def methods_of(specs: Specs, backbone: Backbone) -> list[Method]:
    made = [make_method(make_cell(name, hp, 0.1, seed, 4, 1), backbone) for seed, (name, hp) in enumerate(specs)]
    for method in made:
        with torch.no_grad():
            for parameter in method.parameters():  # so that each cell writes something else
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(made))))
        method.eval()
    return made


class Watch:
    """Lets rows end at drawn tokens, and counts those of each pass."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.sizes: list[int] = []
        self.ends: tuple[int, ...] = ()
        self.changes = changes
        backbone.model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)
        monkeypatch.setattr(evaluate, "writings", self._writings)

    def _writings(self, task: Any, backbone: Backbone, *_: Any) -> tuple[Writing, ...]:
        return (replace(Writing(MOST, self.ends), **self.changes),)

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        self.sizes.append(len(kwargs["inputs_embeds"] if ids is None else ids))


def answered(methods: Sequence[Method], backbone: Backbone, encoded: Encoded, apart: bool = True) -> list[list[str]]:
    fused = BatchInput(methods, backbone, 24, answer_length=MOST if apart else None)
    with fused.attached():
        found = answer_split(fused, range(len(methods)), encoded, TASK, 10_000)
    return [found[cell] for cell in range(len(methods))]


def ends_of(texts: list[list[str]], seed: int = 0) -> tuple[int, ...]:
    """Some tokens of free answers; `TinyTokenizer` writes ids as words."""
    draw = np.random.default_rng(seed)
    rows = [[int(word) for word in text.split()] for cell in texts for text in cell]
    chosen = draw.choice(len(rows), max(2, len(rows) // 4), replace=False)
    return tuple({rows[row][draw.integers(1, len(rows[row]))] for row in chosen})


def generated(method: Method, backbone: Backbone, encoded: Encoded, ends: tuple[int, ...], **options: Any) -> list[str]:
    """What transformers writes for one cell, rows of one length at a time: none has any padding."""
    texts = {}
    lengths = encoded.source_lengths(np.arange(len(encoded)))
    for length in np.unique(lengths):
        own = np.flatnonzero(lengths == length)
        fused = BatchInput([method], backbone, 24)
        fused.refresh(False, [0])
        embeds, mask, placed = fused.build(encoded, Rows(np.zeros(len(own), np.int64), own))
        assert mask.all()
        with fused.attached(), torch.no_grad():
            written = backbone.model.generate(
                inputs_embeds=embeds, attention_mask=mask,
                **{"max_new_tokens": MOST, "do_sample": False, "pad_token_id": 0, "eos_token_id": list(ends)} | options,
            ).tolist()  # fmt: skip
        for row, ids in zip(placed.rows.tolist(), written, strict=True):
            ids = ids[1:] if backbone.is_encoder_decoder else ids
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            texts[row] = TinyTokenizer().decode(ids[:end], skip_special_tokens=True)
    return [texts[row] for row in range(len(encoded))]


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
@pytest.mark.parametrize("specs", [LORA, MIXED, PROMPTS], ids=["lora", "mixed", "prompts"])
def test_rows_of_a_bundle_leave_and_no_answer_changes(kind: Any, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless(kind)
    encoded, methods = tiny_rows(LENGTHS, backbone), methods_of(specs, backbone)
    watch = Watch(backbone, monkeypatch)
    free = answered(methods, backbone, encoded)
    assert len({tuple(cell) for cell in free}) == len(methods), "each cell writes something else"
    watch.ends = ends_of(free)
    watch.sizes.clear()
    together = answered(methods, backbone, encoded)
    assert watch.sizes[-1] < len(LENGTHS) * len(methods)
    assert len(set(watch.sizes)) > 2, "rows leave several times"
    for cell, method in enumerate(methods):
        assert together[cell] == answered([method], backbone, encoded)[0]
        assert together[cell] == generated(method, backbone, encoded, watch.ends)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
@pytest.mark.parametrize("specs", [LORA, MIXED, PROMPTS], ids=["lora", "mixed", "prompts"])
def test_beams_of_a_bundle_are_those_of_generate(kind: Any, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless(kind)
    encoded, methods = tiny_rows(LENGTHS[:4], backbone), methods_of(specs, backbone)
    watch = Watch(backbone, monkeypatch, num_beams=3, max_new_tokens=8)
    watch.ends = ends_of(answered(methods, backbone, encoded))
    together = answered(methods, backbone, encoded)
    for cell, method in enumerate(methods):
        assert together[cell] == answered([method], backbone, encoded)[0]
        theirs = generated(method, backbone, encoded, watch.ends, num_beams=3, max_new_tokens=8)
        assert together[cell] == theirs


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lst", "encoder-decoder"), ("lst", "decoder"), ("hyperdecoder", "encoder-decoder"), ("finetune", "decoder"),
     ("prefix_tuning", "encoder-decoder"), ("prefix_tuning", "decoder"), ("hyperformer", "decoder")],
)  # fmt: skip
def test_rows_of_a_method_that_attaches_itself_leave_too(name: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless(kind)
    encoded = tiny_rows(LENGTHS, backbone)
    cls: Any = discover()[name].cls
    settings: dict[str, dict[str, Any]] = {
        "lst": {"init": "random", "reduction": 2, "skip_every": 2},
        "prefix_tuning": {"prefix_length": 4},
    }
    torch.manual_seed(0)
    method = cls(cls.HP(**settings.get(name, {})), backbone).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    watch = Watch(backbone, monkeypatch)
    watch.ends = ends_of(answered([method], backbone, encoded))
    watch.sizes.clear()
    leaving = answered([method], backbone, encoded)
    assert watch.sizes[-1] < len(LENGTHS)
    monkeypatch.setattr(BatchInput, "keep_rows", lambda *_: False)
    assert leaving == answered([method], backbone, encoded)


def test_tasks_of_rows_follow_when_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """HyperFormer looks up the adapter of each row's task; a row that took another's would write something else."""
    backbone = restless("encoder-decoder")
    encoded = replace(tiny_rows(LENGTHS, backbone), tasks=np.array([0, 1, 2, 1, 0, 2]))
    cls: Any = discover()["hyperformer"].cls
    torch.manual_seed(0)
    method = cls(cls.HP(num_tasks=3), backbone).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    watch = Watch(backbone, monkeypatch)
    watch.ends = ends_of(answered([method], backbone, encoded))
    watch.sizes.clear()
    together = answered([method], backbone, encoded)[0]
    assert watch.sizes[-1] < len(LENGTHS)
    for row in range(len(LENGTHS)):
        fused = BatchInput([method], backbone, 24)
        with fused.attached():
            alone = answer_split(fused, [0], encoded, TASK, 10_000, slice(row, row + 1))[0]
        assert alone[row] == together[row]


def test_a_method_that_cannot_follow_keeps_its_rows_and_is_refused_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless("encoder-decoder")
    encoded = tiny_rows(LENGTHS, backbone)

    class Remembering(Method):
        name = "remembering"

        def attach(self, backbone: Backbone) -> None:
            pass

        def detach(self, backbone: Backbone) -> None:
            pass

    method = Remembering(None, backbone)
    watch = Watch(backbone, monkeypatch)
    watch.ends = ends_of(answered([method], backbone, encoded))
    watch.sizes.clear()
    answered([method], backbone, encoded)
    assert set(watch.sizes) == {len(LENGTHS)}
    watch.changes = {"num_beams": 2}
    with pytest.raises(ValueError, match="1 beam"):
        answered([method], backbone, encoded)
    lst: Any = discover()["lst"].cls
    with pytest.raises(ValueError, match="1 beam"):
        answered([lst(lst.HP(init="random", reduction=2, skip_every=2), backbone).eval()], backbone, encoded)


def test_changed_layers_hear_of_the_rows_of_each_cell() -> None:
    backbone = tiny_backbone("decoder", "float64")
    fused = BatchInput(methods_of(LORA, backbone), backbone, 24)
    fused.refresh(False, range(3))
    rows = Rows(np.array([0, 1, 2, 0, 1, 2, 1]), np.array([0, 0, 0, 1, 1, 1, 2]))
    fused.build(tiny_rows(LENGTHS, backbone), rows)
    layers = fused._layers
    assert isinstance(layers, SharedLayers)
    assert layers._row_counts == [(0, 2), (1, 3), (2, 2)]
    assert fused.keep_rows(torch.tensor([1, 3, 4, 5]))
    assert layers._row_counts == [(0, 1), (1, 2), (2, 1)]
    assert fused.keep_rows(torch.tensor([1, 2]))
    assert layers._row_counts == [(1, 2)], "a cell without rows is not asked"
    assert fused.keep_rows(torch.tensor([0, 0, 1, 1]))
    assert layers._row_counts == [(1, 4)]


def test_long_answers_make_smaller_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless("decoder")
    encoded = tiny_rows([10] * 8, backbone)
    fused = BatchInput(methods_of(PROMPTS[:1], backbone), backbone, 24)
    watch = Watch(backbone, monkeypatch)
    watch.ends = (1,)
    for changes, rows in (
        ({"max_new_tokens": 4}, 8),  # 8 x (10 + 5)
        ({"max_new_tokens": 45}, 2),  # 2 x (10 + 5 + 45)
        ({"max_new_tokens": 4, "num_beams": 2}, 4 * 2),  # 4 x (10 + 5) x 2
    ):
        watch.changes = changes
        watch.sizes.clear()
        answer_split(fused, [0], encoded, TASK, 120)
        assert watch.sizes[0] == rows, changes
    watch.changes = {"max_new_tokens": 45}
    assert fewest_tokens(fused, [0], encoded, TASK, "longest_label") == 10 + 5 + 45


def test_tasks_of_a_mixture_write_as_each_of_them_says(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = restless("encoder-decoder")
    qa, sentiment = all_tasks()["micro_qa"], all_tasks()["micro_sentiment"]
    long, beams = replace(qa, max_new_tokens=50), replace(qa, num_beams=2)
    mixture = replace(qa, parts=(qa, sentiment, long, beams))
    assert writings(mixture, backbone) == (
        Writing(19, (1,)), Writing(19, (1,)), Writing(50, (1,)), Writing(19, (1,), num_beams=2),
    )  # fmt: skip
    assert writings(sentiment, backbone) == (Writing(2, (1,)),)
    encoded = replace(tiny_rows(LENGTHS, backbone), tasks=np.array([0, 1, 2, 3, 1, 2]))
    seen: list[tuple[Writing, int]] = []
    write = backbone.write

    def watched(embeds: Tensor, mask: Tensor, writing: Writing, *args: Any) -> Tensor:
        seen.append((writing, len(embeds)))
        return write(embeds, mask, writing, *args)

    monkeypatch.setattr(backbone, "write", watched)
    fused = BatchInput([Method(None, backbone)], backbone, 24)
    answers = answer_split(fused, [0], encoded, mixture, 10_000)[0]
    assert [(w.max_new_tokens, w.num_beams, count) for w, count in seen] == [(19, 1, 3), (50, 1, 2), (19, 2, 1)]
    for number, task in enumerate((qa, qa, long, beams)):  # texts of 19 tokens for the label too, as they share a limit
        alone = answer_split(fused, [0], encoded, task, 10_000)[0]
        own = np.flatnonzero(encoded.tasks == number)
        assert [answers[row] for row in own] == [alone[row] for row in own]


def test_a_limit_of_its_own_bounds_an_answer() -> None:
    backbone = tiny_backbone()
    qa, sentiment = all_tasks()["micro_qa"], all_tasks()["micro_sentiment"]
    limits = [writings(replace(qa, max_new_tokens=limit), backbone)[0].max_new_tokens for limit in (None, 5, 300)]
    assert limits == [19, 5, 300]
    labels = [writings(replace(sentiment, max_new_tokens=limit), backbone)[0].max_new_tokens for limit in (1, 30)]
    assert labels == [2, 30], "a label is never cut"
