"""How far labels are decoded: where the two settings agree, and the answers on which they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbone.network import Backbone
from harness.backbone.network_kinds import EncoderDecoder
from harness.backbone.writing import Writing
from harness.data.prompt_form import target_ids
from harness.data.tasks import all_tasks
from harness.data.tokenization import max_new_tokens
from harness.results.store import ResultStore
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides
from harness.suite.protocol import protocol_names
from harness.train.caches import cached_backbone
from harness.train.evaluate import to_text
from harness.train.method_fit import _OnShapes
from harness.train.tiny_backbones import tiny_backbone

Write = Callable[[str], Path]
TASKS = all_tasks()
TASK = TASKS["micro_entailment"]
SUITE = (
    "suite: d\nbackbones: [t5-base]\ntasks: [cb, squad]\nseeds: [1]\nmethods: {prompt_tuning: {recipe: {lr: 0.3}}}\n"
)


def test_labels_get_the_steps_that_are_asked_for_and_never_fewer_than_they_need() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    longest = max(len(target_ids(label, backbone, None)) for label in TASK.targets)
    assert [max_new_tokens(TASK, backbone, limit) for limit in ("longest_label", 2, 20)] == [longest, longest, 19]
    assert max_new_tokens(TASKS["micro_qa"], backbone, 20) == max_new_tokens(TASKS["micro_qa"], backbone) == 19


def test_a_drawn_network_answers_alike_wherever_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(precision="float64")
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for length in (2, 3, 5):
        embeds = 3 * torch.randn(64, 6, backbone.hidden, generator=generator, dtype=torch.float64)
        mask = torch.ones(64, 6, dtype=torch.long)
        # a token that some answers hold early stands for the end, since drawn weights seldom write the real one
        early = backbone.decode(embeds, mask, length)[:, length - 1].tolist()
        monkeypatch.setattr(Backbone, "eos_id", max(set(early), key=early.count))
        short, long = backbone.decode(embeds, mask, length), backbone.decode(embeds, mask, 19)
        width = min(short.shape[1], long.shape[1])
        assert torch.equal(short[:, :width], long[:, :width]), "the first tokens do not depend on how many follow"
        for one, other in zip(short.tolist(), long.tolist(), strict=True):
            if backbone.eos_id in one:
                ended += 1
                cut = [row[: row.index(backbone.eos_id)] for row in (one, other)]
                assert cut[0] == cut[1]
    assert ended > 0, "or nothing was compared"


def test_the_settings_differ_on_answers_without_an_end_alone() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    label = target_ids("1", backbone, None)  # with its end
    steps, body, end = len(label), label[:-1], backbone.eos_id

    def read(ids: list[int]) -> tuple[str, str]:
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        return tuple(to_text(backbone, torch.tensor([ids[:limit]]))[0] for limit in (steps, 19))  # type: ignore[return-value]

    assert read([*body, end, *body]) == ("1", "1")
    assert read([*body, *body, end]) == ("1 1", "1 1")
    nothing = backbone.pad_id  # decodes to nothing, as a blank at the end does
    assert read([*body, nothing, end]) == ("1", "1")
    assert read([*body, nothing, *body, end])[0] == "1", "cut behind the label: right"
    assert read([*body, nothing, *body, end])[1] != "1", "the code reads on: wrong"
    assert read([*[nothing] * steps, *body, end]) == ("", "1"), "a label that comes late is read by the code alone"


def test_a_protocol_says_how_far_labels_are_decoded(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(SUITE)

    def recipes(overrides: Overrides) -> dict[str, object]:
        plan = make_plan(path, overrides, tmp_path / "none", None)
        return {group.task: group.cells[(0, 1)].recipe.label_tokens for group in plan.groups}

    for name in protocol_names():
        assert recipes(Overrides(protocol=name)) == {"cb": "longest_label", "squad": "longest_label"}
    code = Overrides(settings={"protocol.decoding.label_tokens": 20})
    assert recipes(code) == {"cb": 20, "squad": "longest_label"}, "texts are decoded 20 tokens far anyway"


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("limit", ["longest_label", 20])
def test_a_run_decodes_as_its_recipe_says(
    write_suite: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: object
) -> None:
    seen = set()
    decode = EncoderDecoder.decode

    def watched(
        self: EncoderDecoder, network: Any, embeds: torch.Tensor, mask: torch.Tensor, writing: Writing, *args: Any
    ) -> torch.Tensor:
        if not isinstance(network, _OnShapes):  # a judgement of fit writes two tokens
            seen.add(writing.max_new_tokens)
        return decode(self, network, embeds, mask, writing, *args)

    monkeypatch.setattr(EncoderDecoder, "decode", watched)
    text = "suite: d\nbackbones: [micro-t5]\ntasks: [micro_sentiment]\nseeds: [1]\nmethods: {prompt_tuning: }\n"
    text += f"recipe: {{steps: 1, batch_size: 2, eval_every: 1, lr: 0.3, label_tokens: {limit}}}\n"
    assert run(write_suite(text), results=tmp_path / "out", quiet=True).num_failed == 0
    task, backbone = TASKS["micro_sentiment"], cached_backbone("micro-t5", "float32")
    assert seen == {19 if limit == 20 else max_new_tokens(task, backbone)}
    ((_, result),) = ResultStore(tmp_path / "out").scan()
    assert result.cell.recipe.label_tokens == limit
