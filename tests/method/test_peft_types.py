"""Every type of PEFT that can train, against PEFT's own model with the same tensors, and as a cell among others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from harness.backbone import Backbone, Seal
from harness.backbone.load import load_backbone, meta_backbone
from harness.method.adapter_tensors import read_adapter_tensors
from harness.method.method import Method
from harness.method.peft_config import POSITIONWISE_TYPES, REFUSED_TYPES, make_peft_config
from harness.method.peft_folder import tried_gap, write_adapter
from harness.method.registry import discover
from harness.suite.trained_adapter import find_adapter
from harness.train.batch_input import BatchInput, Rows
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone, tiny_rows

REGISTRY: Any = discover()
PEFT: Any = REGISTRY["peft"].cls
IMPORTED: Any = REGISTRY["imported"].cls
LENGTHS = [9, 9, 9]  # of one length: PEFT counts positions of padding, the harness does not

PROMPT = {"num_virtual_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 6, "target_r": 2},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CARTRIDGE": PROMPT,
    "CPT": {"cpt_token_ids": [3, 4, 5, 6], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "FOURIERFT": {"n_frequency": 16},
    "MULTITASK_PROMPT_TUNING": PROMPT,
    "OFT": {"oft_block_size": 4},
    "P_TUNING": PROMPT,
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [*range(3, 60)]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "r": 4},
    "WAVEFT": {"n_frequency": 16},
}
PROMPTS_AND_PREFIXES = ("MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
TYPES = sorted({kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - set(REFUSED_TYPES))


def settings(kind: str) -> dict[str, Any]:
    return {"peft_type": kind, **SETTINGS.get(kind, {})}


class Cell:
    """A method of one configuration over a tiny network, with rows."""

    def __init__(
        self,
        config: dict[str, Any],
        network: str = "decoder",
        precision: str = "float32",
        lengths: Sequence[int] = LENGTHS,
    ) -> None:
        self.backbone: Backbone = tiny_backbone(network, precision)  # type: ignore[arg-type]
        self.seal = Seal(self.backbone)
        torch.manual_seed(0)
        self.method: Method = PEFT(PEFT.HP(config=config, num_steps=20), self.backbone)
        self.encoded = tiny_rows(lengths, self.backbone)
        self.fused = BatchInput([self.method], self.backbone, 24)
        self.rows = Rows(np.zeros(3, np.int64), np.arange(3))
        self.labels = torch.as_tensor(self.encoded.targets(np.arange(3)))

    def logits(self) -> Tensor:
        self.fused.refresh(grad=True, cells=[0])
        embeds, mask, _ = self.fused.build(self.encoded, self.rows)
        return self.backbone.target_logits(embeds, mask, self.labels)

    def train(self, steps: int) -> list[float]:
        """Train on all rows; return the losses, and keep the names of tensors that ever had a gradient."""
        losses = []
        self.moved: set[str] = set()
        optimizer = torch.optim.AdamW(self.method.param_groups(0.01), lr=0.01, weight_decay=0.0)
        self.method.eval()  # dropout would hide a small fall
        with self.fused.attached():
            for step in range(steps):
                loss = self.backbone.cross_entropy(self.logits(), self.labels).sum(1).mean()
                losses.append(float(loss))
                loss.backward()
                self.fused.backward()
                optimizer.step()
                self.method.on_update(step, steps)
                named = self.method.named_parameters()
                self.moved |= {name for name, p in named if p.grad is not None and p.grad.any()}
                optimizer.zero_grad()
        return losses


def peft_logits(cell: Cell, config: dict[str, Any]) -> tuple[Tensor, int]:
    """Logits of PEFT's own model over another copy of the network, with the cell's tensors, and its count of them."""
    other = tiny_backbone("encoder-decoder" if cell.backbone.is_encoder_decoder else "decoder")
    made: Any = cell.method
    torch.manual_seed(0)  # what PEFT draws and keeps in plain attributes is drawn again
    target = getattr(made.network.config, "target_modules", None)
    theirs_config = make_peft_config(config, other.kind.name, 20)
    if target is not None:
        theirs_config.target_modules = target
    tasks = {}
    if config["peft_type"] in ("POLY", "MULTITASK_PROMPT_TUNING"):
        tasks = {"task_ids": torch.zeros(3, dtype=torch.long)}
        theirs_config.task_type = "SEQ_2_SEQ_LM" if other.is_encoder_decoder else "CAUSAL_LM"
    model = get_peft_model(other.model, theirs_config).eval()
    model.load_state_dict(made.network.model.state_dict())
    sources = torch.as_tensor(cell.encoded.sources(np.arange(3), 0))
    if other.is_encoder_decoder:
        found = model(input_ids=sources, attention_mask=torch.ones_like(sources), labels=cell.labels, **tasks).logits
    else:
        whole = torch.cat([sources, cell.labels[:, :-1]], 1)
        found = model(input_ids=whole, attention_mask=torch.ones_like(whole), **tasks).logits[
            :, -cell.labels.shape[1] :
        ]
    return found, sum(p.numel() for p in model.parameters() if p.requires_grad)


REFUSED_ON = {("ADAPTION_PROMPT", "encoder-decoder"), ("CPT", "encoder-decoder")}


def held_to_peft(config: dict[str, Any], network: str, steps: int = 4) -> Cell:
    """Train a cell, and compare it with PEFT's own model that has its tensors; the backbone has to stay as it was."""
    cell = Cell(config, network)
    losses = cell.train(steps)
    assert losses[-1] < losses[0], losses
    assert {name for name, _ in cell.method.named_parameters()} == cell.moved
    assert cell.seal.difference() is None
    with cell.fused.attached(), torch.no_grad():
        ours = cell.logits()
    theirs, count = peft_logits(cell, config)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert cell.method.num_trained == count
    return cell


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_type_trains_as_in_peft_and_leaves_the_backbone_alone(kind: str, network: str, tmp_path: Path) -> None:
    """And leaves as a folder that PEFT loads and that answers here, with equal logits."""
    if (kind, network) in REFUSED_ON:
        with pytest.raises(ValueError, match=kind):
            Cell(settings(kind), network)
        return
    cell = held_to_peft(settings(kind), network)
    if network != "decoder" and kind not in PROMPTS_AND_PREFIXES:
        return  # a layer's change is written alike on both
    out = tmp_path / "out"
    out.mkdir()
    write_adapter(cell.method, cell.backbone, out, "x")
    assert tried_gap(cell.method, cell.backbone, out) < 1e-4
    found = find_adapter("out", tmp_path, "", "")
    back: Method = IMPORTED(IMPORTED.HP(config=found.to_answer()), cell.backbone)
    back.start_from([read_adapter_tensors(found.weights, found.config)])
    with cell.fused.attached(), torch.no_grad():
        ours = cell.logits()
    cell.fused = BatchInput([back.eval()], cell.backbone, 24)
    with cell.fused.attached(), torch.no_grad():
        torch.testing.assert_close(cell.logits(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(POSITIONWISE_TYPES))
def test_a_type_that_treats_each_position_by_itself_gives_the_same_for_packed_rows(kind: str) -> None:
    cell = Cell(settings(kind), "decoder", lengths=[9, 4, 13])
    cell.train(3)
    assert cell.method.takes_packed_rows()
    with cell.fused.attached(), torch.no_grad():
        padded = cell.logits()
        with cell.backbone.packed(True):
            torch.testing.assert_close(cell.logits(), padded, rtol=1e-4, atol=1e-5)


def test_a_type_with_a_progress_bar_and_sparse_tensors_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    Cell(settings("FROD")).train(1)
    assert capfd.readouterr() == ("", "")


def test_types_that_look_at_whole_rows_get_padded_ones() -> None:
    for kind in ("LILY", "POLY", "PREFIX_TUNING", "ADAPTION_PROMPT"):
        assert not Cell(settings(kind)).method.takes_packed_rows(), kind
    whole = {"peft_type": "LORA", "target_parameters": ["mlp.up_proj.weight"], "target_modules": []}
    assert not Cell(whole).method.takes_packed_rows()
    velora = {"peft_type": "LORA", "velora_config": {}}
    assert not Cell(velora).method.takes_packed_rows()


def test_at_most_five_types_are_refused_each_with_a_reason() -> None:
    assert set(REFUSED_TYPES) == {"XLORA", "SHADOW"}
    for kind, reason in REFUSED_TYPES.items():
        with pytest.raises(ValueError, match=f"config.peft_type: {kind} cannot train here: it {reason[:30]}"):
            PEFT.HP(config={"peft_type": kind})


LORA_SETTINGS: dict[str, dict[str, Any]] = {
    "saved": {"modules_to_save": ["lm_head"]},
    "saved norms": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [*range(3, 60)]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 4},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa quick": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "mica": {"init_lora_weights": "mica"},
    "lora bias": {"lora_bias": True},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "all": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*1.*(up|down)_proj"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "parameters": {"target_parameters": ["mlp.up_proj.weight"], "target_modules": []},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LORA_SETTINGS)
def test_a_setting_of_lora_does_what_it_does_in_peft(name: str) -> None:
    held_to_peft({"peft_type": "LORA", **LORA_SETTINGS[name]}, "decoder")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "orthogonal", "mica"])
def test_a_start_that_reads_the_weights_is_counted_without_them(start: str) -> None:
    """PyTorch decomposes no matrix that has no numbers: `harness params` and the plan's hours ended there."""
    settings = PEFT.HP(config={"peft_type": "LORA", "init_lora_weights": start})
    shapes, real = (PEFT(settings, network) for network in (meta_backbone("micro-t5"), load_backbone("micro-t5")))
    trained = [[(name, tensor.shape) for name, tensor in method.named_parameters()] for method in (shapes, real)]
    assert trained[0] == trained[1]
    assert shapes.num_kept == real.num_kept
    assert shapes.network.config.init_lora_weights == start


def test_trained_copies_of_modules_live_in_the_method_and_are_counted() -> None:
    plain, saved = (Cell({"peft_type": "LORA", **more}) for more in ({}, {"modules_to_save": ["lm_head"]}))
    assert saved.method.num_trained - plain.method.num_trained == 128 * 64
    assert any("lm_head" in name for name in saved.method.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_train_in_copies(bias: str) -> None:
    """OPT has biases in its linear modules and norms; those of the backbone stay as they are."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128}
    model = OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=32, pad_token_id=0, eos_token_id=1)).eval()
    backbone = Backbone("opt", model, tiny_backbone("decoder").tokenizer, None, "float32")
    seal = Seal(backbone)
    method = PEFT(PEFT.HP(config={"peft_type": "LORA", "bias": bias}), backbone)
    biases = [name for name, _ in method.named_parameters() if name.endswith("/bias")]
    total = sum(name.endswith(".bias") for name, _ in model.named_parameters())
    assert len(biases) == (total if bias == "all" else 4)
    embeds, mask = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.long)
    labels = torch.tensor([[4, 1], [5, 1]])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.attach(backbone)
    losses = []
    for _ in range(4):
        loss = backbone.token_losses(embeds, mask, labels).mean()
        losses.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.detach(backbone)
    assert losses[-1] < losses[0]
    assert seal.difference() is None


SHARING = [kind for kind in TYPES if not PEFT.for_settings(PEFT.HP(config=settings(kind))).runs_alone()]


def bundle(methods: list[Method], backbone: Backbone) -> list[Tensor]:
    """Train losses of the same rows in every cell; gradients are left on the methods."""
    encoded = tiny_rows([9, 5, 7], backbone)
    fused = BatchInput([method.eval() for method in methods], backbone, 24)
    fused.refresh(grad=True, cells=range(len(methods)))
    cells = np.repeat(np.arange(len(methods)), 3)
    embeds, mask, placed = fused.build(encoded, Rows(cells, np.tile(np.arange(3), len(methods))))
    with fused.attached():
        losses = backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(placed.rows))).sum(1)
        losses.sum().backward()
    fused.backward()
    order = [np.flatnonzero(placed.cells == cell) for cell in range(len(methods))]
    return [losses.detach()[where[np.argsort(placed.rows[where])]] for where in order]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", ["layers", "input"])
def test_cells_of_all_types_in_one_pass_compute_what_each_computes_alone(side: str) -> None:
    """Only four types need a pass of their own; the others, and their grids, share one frozen pass."""
    assert set(TYPES) - set(SHARING) == {"ADAPTION_PROMPT", "CARTRIDGE", "PREFIX_TUNING"}
    backbone = tiny_backbone("decoder")
    hps = [PEFT.HP(config=settings(kind), num_steps=20) for kind in SHARING]
    hps = [hp for hp in hps if PEFT.for_settings(hp).is_layer_side() == (side == "layers")]
    seal = Seal(backbone)

    def made() -> list[Method]:
        methods = []
        for hp in hps:
            torch.manual_seed(0)
            methods.append(PEFT(hp, backbone))
            with torch.no_grad():  # off the start, where most types change nothing
                for parameter in methods[-1].parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        return methods

    together, alone = made(), made()
    losses = bundle(together, backbone)
    for index, method in enumerate(alone):
        name = hps[index].config["peft_type"]
        torch.testing.assert_close(losses[index], bundle([method], backbone)[0], rtol=1e-4, atol=1e-4, msg=name)
        for (key, fused), own in zip(together[index].named_parameters(), method.parameters(), strict=True):
            assert own.grad is not None
            torch.testing.assert_close(fused.grad, own.grad, rtol=2e-3, atol=1e-4, msg=f"{name} {key}")
    assert seal.difference() is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TYPES)
def test_stored_tensors_answer_alike_in_a_method_of_another_seed(kind: str) -> None:
    """What PEFT draws and does not train, such as masks and projections, is stored with what trains."""
    trained = Cell(settings(kind))
    trained.train(2)
    other = Cell(settings(kind))
    torch.manual_seed(99)
    other.method = PEFT(PEFT.HP(config=settings(kind), num_steps=20), other.backbone)
    other.fused = BatchInput([other.method], other.backbone, 24)
    other.method.load_state_dict(trained.method.state_dict())
    other.method.eval()
    found = []
    for cell in (trained, other):
        with cell.fused.attached(), torch.no_grad():
            found.append(cell.logits())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore")
def test_adalora_allocates_ranks_and_pays_its_penalty_as_peft_does() -> None:
    config = {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2,
              "orth_reg_weight": 0.7}  # fmt: skip
    cell = Cell(config)
    theirs_config = make_peft_config(config, "decoder", 12)
    theirs_config.task_type = "CAUSAL_LM"  # without it PEFT's forward leaves the penalty out
    theirs: Any = get_peft_model(tiny_backbone("decoder").model, theirs_config)
    ours: Any = PEFT(PEFT.HP(config=config, num_steps=12), cell.backbone)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            key = name.removeprefix("base_model.model.").replace(".", "/")
            if key in ours.tensors:
                parameter.copy_(ours.tensors[key])
    ids = torch.as_tensor(cell.encoded.sources(np.arange(3), 0))
    theirs.eval()
    ours.eval()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.02) for m in (theirs, ours)]
    labels = ids.clone()
    for step in range(12):
        theirs(input_ids=ids, labels=labels).loss.backward()
        ours.attach(cell.backbone)
        loss = cell.backbone.model(input_ids=ids, labels=labels).loss + ours.penalty()
        ours.detach(cell.backbone)
        loss.backward()
        optimizers[0].step()
        theirs.base_model.update_and_allocate(step + 1)
        optimizers[1].step()
        if step == 6:  # as after a stop: another object goes on from the stored tensors
            again: Any = PEFT(PEFT.HP(config=config, num_steps=12), cell.backbone)
            again.load_state_dict(ours.state_dict())
            for new, old in zip(again.parameters(), ours.parameters(), strict=True):
                new.grad = old.grad
            state = optimizers[1].state_dict()
            ours, optimizers[1] = again.eval(), torch.optim.AdamW(again.parameters(), lr=0.02)
            optimizers[1].load_state_dict(state)
        ours.on_update(step, 12)
        for optimizer in optimizers:
            optimizer.zero_grad()
    ranks = {}
    for name, parameter in theirs.named_parameters():
        key = name.removeprefix("base_model.model.").replace(".", "/")
        if key in ours.tensors:
            torch.testing.assert_close(ours.tensors[key], parameter, rtol=1e-4, atol=1e-5, msg=name)
            if "lora_E" in name:
                ranks[name] = int((parameter != 0).sum())
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1, "ranks differ between modules"


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"])
def test_vectors_are_as_wide_as_the_embeddings_and_not_as_the_layers(kind: str) -> None:
    """OPT-350m embeds in 512 numbers and computes in 1,024, which is what PEFT takes."""
    config = OPTConfig(
        hidden_size=64, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128
    )
    backbone = Backbone("opt", OPTForCausalLM(config), TinyTokenizer(), None, "float32")
    chosen = {"cpt_token_ids": [5, 6, 7]} if kind == "CPT" else {"num_virtual_tokens": 3}
    prompt = PEFT(PEFT.HP(config={"peft_type": kind, **chosen}), backbone).prompt()
    assert prompt is not None
    assert prompt.shape == (3, 32)
