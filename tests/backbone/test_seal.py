"""Whatever a method does to the backbone, the rows beside it score as if it had never been there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_fused import make_cell
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from typing_help import present

import harness
from harness.backbone import seal as seal_module
from harness.backbone.network import Backbone
from harness.backbone.seal import BackboneChanged, Seal, checksums, weighted_checksum
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.method.export import load_export
from harness.method.method import Method
from harness.method.source_tensors import SourceFile
from harness.provenance import sha256_file
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.train.caches import cached_backbone, drop_backbone
from harness.train.method_fit import build_to_train
from harness.train.tiny_backbones import tiny_backbone

Checksums = Callable[[Sequence[torch.Tensor]], list[tuple[Any, ...]]]

METHOD = """
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from harness.method import Method, Paper


def halved(embedding, ids):
    return nn.functional.embedding(ids, embedding.weight) * 0.5


def doubled(module, args, output):
    return output * 2 if isinstance(module, nn.Embedding) else None


class Poison(Method):
    name = "poison"
    paper = Paper("nobody-2026", "https://example.org")

    @dataclass(frozen=True, kw_only=True)
    class HP:
        pass

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.vectors = nn.Parameter(torch.zeros(1, backbone.hidden))
        self.network = [backbone]  # in a list, so that it is no part of the method
        self.is_changed = False
        INIT

    def change(self, factor):
        if self.is_changed == (factor > 1):  # powers of two are undone to the last bit
            self.weight.data.mul_(factor)
            self.is_changed = not self.is_changed

    @property
    def weight(self):
        return self.network[0].embedding.weight

    def prompt(self):
        PROMPT
        return self.vectors

    def on_step(self, step, num_steps):
        ON_STEP
"""
SUITE = """\
suite: seal
backbones: [micro-t5]
tasks: [small]
define_tasks:
  small: {files: rows.csv, fields: {text: text}, label: verdict, labels: [bad, good], dev_share: 12, test_share: 12}
seeds: [1]
recipe: {lr: 0.3, steps: 2, batch_size: 4, eval_every: 1, warmup_steps: 0, backbone_dropout: false}
methods: METHODS
"""
WAYS = {
    "init": ("INIT", "self.weight.data.mul_(0.5)"),
    "in place": ("PROMPT", "with torch.no_grad(): self.weight.mul_(0.5)"),
    "through data": ("PROMPT", "self.weight.data.mul_(0.5)"),
    "other data": ("ON_STEP", "self.weight.data = self.weight.data * 0.5"),
    "late": ("ON_STEP", "if step == 1: self.weight.data[:7] = 0"),
    "moved rows": ("PROMPT", "self.weight.data.copy_(self.weight.data.flip(0))"),
    "hook": ("INIT", "backbone.embedding.register_forward_hook(lambda m, a, out: out * 0.5)"),
    "forward": ("PROMPT", "e = self.network[0].embedding; e.forward = partial(halved, e)"),
    "config": ("ON_STEP", "self.network[0].config.decoder_start_token_id = 7"),
    "mode": ("ON_STEP", "self.network[0].model.train()"),
    "gradients": ("ON_STEP", "self.weight.requires_grad_(True)"),
    "face": ("ON_STEP", "self.network[0].decode = lambda embeds, mask, most: mask[:, :1]"),
    "class": ("ON_STEP", "type(self.network[0].embedding).forward = halved"),
    "and raises": ("ON_STEP", "self.weight.data.mul_(0.5); raise RuntimeError('then it raised')"),
    "mode of an evaluation": ("PROMPT", "self.training or self.network[0].model.train()"),
    "put back for an evaluation": ("PROMPT", "self.change(0.5 if self.training else 2.0)"),
    "hook on all": ("INIT", "nn.modules.module.register_module_forward_hook(doubled)"),
    "class's function": ("ON_STEP", "type(self.network[0].embedding).__call__ = halved"),
    "class of the face": ("ON_STEP", "type(self.network[0]).pad_id = 3"),
    "tokenizer": ("ON_STEP", "self.network[0].tokenizer.add_tokens(['number', 'was'])"),
    "its sides": ("ON_STEP", "self.network[0].tokenizer.truncation_side = 'left'"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> None:
    drop_backbone()


def run(folder: Path, methods: str, way: str = "in place", **options: object) -> dict[str, Result]:
    folder.mkdir()
    code = METHOD
    for place in ("INIT", "PROMPT", "ON_STEP"):
        code = code.replace(place, WAYS[way][1] if WAYS[way][0] == place else "pass")
    (folder / "poison.py").write_text(code)
    rows = [f"number {i} was {'fine' if i % 3 else 'no use'},{'good' if i % 3 else 'bad'}" for i in range(60)]
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *rows]) + "\n")
    (folder / "suite.yaml").write_text(SUITE.replace("METHODS", methods))
    harness.run(folder / "suite.yaml", results=folder / "out", quiet=True, method_dirs=[str(folder)], **options)  # type: ignore[arg-type]
    return {result.cell.label: result for _, result in ResultStore(folder / "out").scan()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    drop_backbone()
    return run(tmp_path_factory.mktemp("clean") / "a", "{prompt_tuning: {prompt_length: 3}}")


@pytest.mark.parametrize("way", WAYS)
def test_a_poisoner_fails_by_name_and_poisons_nobody(way: str, clean: dict[str, Result], tmp_path: Path) -> None:
    mixed = run(tmp_path / "mixed", "{poison: , prompt_tuning: {prompt_length: 3}}", way)
    failure = mixed["poison"].failure
    assert failure is not None
    assert (mixed["poison"].status, failure.type) == ("failed", "BackboneChanged"), failure.traceback
    assert "the backbone is no longer what it was" in failure.message
    for label, result in clean.items():
        assert (mixed[label].status, mixed[label].failure) == ("done", None)
        assert (mixed[label].dev_history, mixed[label].test) == (result.dev_history, result.test)


@pytest.mark.parametrize("way", ["hook on all", "class's function", "class of the face", "tokenizer", "its sides"])
def test_nothing_outlives_the_run_in_which_it_was_done(way: str, clean: dict[str, Result], tmp_path: Path) -> None:
    run(tmp_path / "first", "{poison: }", way)
    later = run(tmp_path / "later", "{prompt_tuning: {prompt_length: 3}}")["prompt_tuning"]
    before = clean["prompt_tuning"]
    assert later.data is not None
    assert before.data is not None
    assert (later.status, later.dev_history, later.test) == ("done", before.dev_history, before.test)
    assert later.data.cuts == before.data.cuts


def test_a_method_may_hold_a_part_of_the_network_as_its_own(tmp_path: Path) -> None:
    """`train()` of such a method switches that part too, which is nobody's fault."""
    WAYS["part"] = ("INIT", "self.part = backbone.model.encoder")
    mixed = run(tmp_path / "mixed", "{poison: , prompt_tuning: {prompt_length: 3}}", "part")
    assert [(r.status, r.failure) for r in mixed.values()] == [("done", None)] * 2
    # beside a cell of the same rows: float32 adds up in an order that depends on what a bundle computes together
    WAYS["nothing"] = ("INIT", "pass")
    beside = run(tmp_path / "beside", "{poison: , prompt_tuning: {prompt_length: 3}}", "nothing")
    for label, result in beside.items():
        assert (mixed[label].dev_history, mixed[label].test) == (result.dev_history, result.test)


@pytest.mark.parametrize("way", ["in place", "init in place", "trained in place", "late"])
def test_the_one_that_is_known_fails_and_the_others_stay_together(way: str, tmp_path: Path) -> None:
    WAYS["init in place"] = ("INIT", WAYS["in place"][1])
    WAYS["trained in place"] = ("INIT", "self.vectors = nn.Parameter(backbone.embedding.weight.detach()[7:8])")
    rows = "{a: {method: prompt_tuning, prompt_length: 3}, p_tuning: {}, poison: , other: {method: poison}, "
    mixed = run(tmp_path / "mixed", rows + "b: {method: prompt_tuning, prompt_length: 2}}", way)
    assert {label for label, result in mixed.items() if result.status == "failed"} == {"poison", "other"}
    # a write in place has an author; behind one through `.data` each method goes on with its own cells
    together = [2, 2, 1] if way == "late" else [3, 3, 3]
    assert [present(mixed[label].usage).bundle_cells for label in ("a", "b", "p_tuning")] == together


def test_a_start_from_others_that_writes_is_named_at_once(tmp_path: Path) -> None:
    backbone = tiny_backbone()

    class Writing(Method):
        @dataclass(frozen=True, kw_only=True)
        class HP:
            """No settings."""

        def start_from(self, sources: Any) -> None:
            with torch.no_grad():
                backbone.embedding.weight.mul_(0.5)
            raise ValueError("and it raises")

    save_file({"prompt": torch.zeros(2, 64)}, tmp_path / "prompt.safetensors")
    start = SourceFile("a file", tmp_path / "prompt.safetensors", sha256_file(tmp_path / "prompt.safetensors"))
    cell = make_cell("prompt_tuning", {}, 0.1, 1, 1, steps=1)
    with pytest.raises(BackboneChanged, match=r"the numbers of 'shared\.weight'"):
        build_to_train(cell, Writing, backbone, all_tasks()["micro_qa"], [start], Seal(backbone))


PARTS: dict[str, tuple[Callable[[Backbone], object], str]] = {
    "a weight": (lambda b: layer(b).mlp.up_proj.weight.data.mul_(2), "the numbers of 'model.layers.0.mlp.up_proj"),
    "a buffer": (lambda b: b.model.model.rotary_emb.inv_freq.mul_(2), "the numbers of 'model.rotary_emb.inv_freq'"),
    "a plain tensor": (lambda b: layer(b).plain.mul_(2), "the numbers of 'model.layers.0.plain'"),
    "an equal weight": (lambda b: renew(layer(b).mlp.up_proj), "a tensor of the Linear 'model.layers.0.mlp.up_proj'"),
    "another weight": (lambda b: layer(b).register_buffer("more", torch.ones(1)), "a tensor of the LlamaDecoderLayer"),
    "gradients": (lambda b: layer(b).mlp.up_proj.weight.requires_grad_(True), "requires_grad of the Linear"),
    "an equal module": (lambda b: setattr(layer(b), "mlp", copy.deepcopy(layer(b).mlp)), "the place of the LlamaMLP"),
    "one module more": (lambda b: setattr(layer(b), "z", nn.Identity()), "the place of"),
    "a module less": (lambda b: b.model.model.layers.__delitem__(1), "the place of"),
    "another order": (lambda b: b.model.model.layers.__setitem__(0, b.model.model.layers[1]), "the place of"),
    "a hook": (lambda b: layer(b).register_forward_hook(lambda m, a, out: None), "a hook of the LlamaDecoderLayer"),
    "a hook before": (lambda b: layer(b).register_forward_pre_hook(lambda m, a: None), "a hook of"),
    "a hook backward": (lambda b: layer(b).register_full_backward_hook(lambda m, i, o: None), "a hook of"),
    "a function": (lambda b: setattr(layer(b), "forward", lambda *a, **k: None), "a function of the LlamaDecoderLayer"),
    "a setting": (lambda b: setattr(layer(b).input_layernorm, "variance_epsilon", 0.1), "a setting of the LlamaRMS"),
    "a rate": (lambda b: setattr(layer(b).self_attn, "attention_dropout", 0.9), "a setting of the LlamaAttention"),
    "a configuration": (lambda b: setattr(b.config, "rms_norm_eps", 0.1), "the configuration of the Llama"),
    "attention": (lambda b: setattr(b.config, "_attn_implementation", "eager"), "the configuration of the Llama"),
    "the tokenizer": (lambda b: setattr(b, "tokenizer", copy.copy(b.tokenizer)), "`tokenizer` of the backbone"),
    "an id": (lambda b: setattr(b.tokenizer, "eos_token_id", 5), "`tokenizer.eos_token_id` of the backbone"),
    "precision": (lambda b: setattr(b, "precision", "bfloat16"), "`precision` of the backbone"),
}  # fmt: skip


def layer(backbone: Backbone) -> Any:
    return backbone.model.model.layers[0]


def renew(linear: Any) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_backbone_is_under_the_seal(part: str) -> None:
    backbone = tiny_backbone("decoder")
    layer(backbone).plain = torch.ones(3)
    seal = Seal(backbone)
    assert seal.difference() is None
    change, said = PARTS[part]
    with torch.no_grad():
        change(backbone)
    assert str(seal.difference()).startswith(said)


def test_a_backbone_that_was_changed_between_runs_is_loaded_again() -> None:
    first = cached_backbone("micro-t5", "float32")
    assert cached_backbone("micro-t5", "float32") is first
    before = first.embedding.weight.clone()
    first.embedding.weight.data[3] += 1
    second = cached_backbone("micro-t5", "float32")
    assert second is not first
    assert torch.equal(second.embedding.weight, before)


def test_what_is_put_back_bit_for_bit_is_no_change() -> None:
    backbone = tiny_backbone()
    seal, weight = Seal(backbone), backbone.embedding.weight
    with torch.no_grad():
        weight.mul_(2)
        assert seal.moved()
        assert seal.written() == "the numbers of 'shared.weight'"
        weight.div_(2)
    assert seal.written() is None
    assert not seal.moved(), "and the next look is cheap again"
    assert seal.glance(training=False) is None
    assert seal.glance(training=True) is not None
    assert seal.difference() is None
    weight.requires_grad_(True)
    assert seal.glance(training=False) == "'shared.weight' takes gradients"


def of_other_devices(tensors: Sequence[torch.Tensor]) -> list[tuple[Any, ...]]:
    """What `checksums` takes where tensors are not on a CPU."""
    return [(tuple(tensor.shape), tensor.dtype, int(weighted_checksum(tensor))) for tensor in tensors]


EITHER = pytest.mark.parametrize("checksums", [checksums, of_other_devices])


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pieces of which a tensor of the test has several."""
    monkeypatch.setattr(seal_module, "PIECE", 1 << 16)
    seal_module._weights.cache_clear()
    yield
    seal_module._weights.cache_clear()


@EITHER
@pytest.mark.parametrize("kind", [torch.float64, torch.int64, torch.float32])
def test_numbers_with_few_bits_do_not_change_places_unseen(kind: torch.dtype, checksums: Checksums) -> None:
    """In float64, 0 and 2 differ in one bit at the upper end."""
    numbers = torch.tensor([0, 1, 2, 4, -0.0, -2, -1, 1 << 40, 8, 16]).to(kind)
    for one in range(len(numbers)):
        for other in range(one):
            swapped = numbers.clone()
            swapped[[one, other]] = numbers[[other, one]]
            if not torch.equal(swapped, numbers):
                assert checksums([swapped]) != checksums([numbers]), (one, other)
    bits = torch.arange(10)
    assert checksums([bits]) != checksums([~bits])


@EITHER
@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_checksum_shows_every_change_of_one_number_and_every_exchange_of_two(
    data: st.DataObject, checksums: Checksums
) -> None:
    kind = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool]))
    count = data.draw(st.integers(2, 200_000))  # some of several pieces
    tensor = torch.arange(count).remainder(97).to(kind)
    (before,) = checksums([tensor])
    assert checksums([tensor.clone()]) == [before]
    one, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    changed = tensor.clone()
    changed[one] = 1 - changed[one] if kind != torch.bool else ~changed[one]
    assert (checksums([changed])[0] == before) == torch.equal(changed, tensor)
    swapped = tensor.clone()
    swapped[[one, other]] = tensor[[other, one]]
    assert (checksums([swapped])[0] == before) == torch.equal(swapped, tensor)
    assert checksums([tensor[None]]) != [before], "the shape counts"


@EITHER
def test_a_mean_that_stays_is_no_excuse(checksums: Checksums) -> None:
    tensor = torch.randn(3, 5)
    for other in (-tensor, tensor.flip(0), tensor.T.contiguous().reshape(3, 5), tensor.roll(1)):
        assert checksums([tensor]) != checksums([other])
    assert checksums([tensor.T]) == checksums([tensor.T.contiguous()]), "what is not contiguous is read in its order"


def test_what_a_network_rewrites_as_it_runs_is_no_change_of_a_method() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    )  # fmt: skip
    backbone = Backbone("dynamic", LlamaForCausalLM(config).eval(), None, None, "float32")
    seal = Seal(backbone)
    rotary = backbone.model.model.rotary_emb
    before = rotary.inv_freq.clone()
    with torch.no_grad():
        backbone.model(input_ids=torch.zeros(1, 40, dtype=torch.long))
    assert not torch.equal(rotary.inv_freq, before)
    assert seal.difference() is None


def test_an_export_whose_class_changes_the_backbone_is_refused(tmp_path: Path) -> None:
    code = METHOD.replace("INIT", WAYS["init"][1]).replace("PROMPT", "pass").replace("ON_STEP", "pass")
    (tmp_path / "poison.py").write_text(code.replace("def prompt(self):", "def forward(self, embeds, mask):"))
    tensors = {"vectors": torch.zeros(1, 64)}
    metadata = {"method": "poison", "hp": "{}", "backbone": "tiny"}
    save_file(tensors, tmp_path / "out.safetensors", metadata)
    with pytest.raises(UserError, match=r"changed the backbone.*the numbers of 'shared\.weight'"):
        load_export(tmp_path / "out.safetensors", tiny_backbone(), (str(tmp_path),))
