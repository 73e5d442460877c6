"""Every type of PEFT that can train: against PEFT's own model with the same tensors, and against what a cell must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
from torch import Tensor

from harness.backbone import Backbone, Seal
from harness.errors import SettingError
from harness.method.method import Method
from harness.method.peft_config import REFUSED_TYPES, make_peft_config
from harness.method.registry import discover
from harness.train.batch_input import BatchInput, Rows
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

PEFT: Any = discover()["peft"].cls
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
TYPES = sorted({kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - set(REFUSED_TYPES))


def settings(kind: str) -> dict[str, Any]:
    return {"peft_type": kind, **SETTINGS.get(kind, {})}


class Cell:
    """A method of one configuration over a tiny network, with rows."""

    def __init__(self, config: dict[str, Any], network: str = "decoder", precision: str = "float32") -> None:
        self.backbone: Backbone = tiny_backbone(network, precision)  # type: ignore[arg-type]
        self.seal = Seal(self.backbone)
        torch.manual_seed(0)
        self.method: Method = PEFT(PEFT.HP(config=config, num_steps=20), self.backbone)
        self.encoded = tiny_rows(LENGTHS, self.backbone)
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
    theirs_config = make_peft_config(config, other.is_encoder_decoder, 20)
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
        found = model(input_ids=whole, attention_mask=torch.ones_like(whole), **tasks).logits[:, -cell.labels.shape[1] :]
    return found, sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_type_trains_as_in_peft_and_leaves_the_backbone_alone(kind: str, network: str) -> None:
    config = settings(kind)
    cell = Cell(config, network)
    losses = cell.train(6)
    assert losses[-1] < losses[0], losses
    assert {name for name, _ in cell.method.named_parameters()} == cell.moved
    assert cell.seal.difference() is None
    with cell.fused.attached(), torch.no_grad():
        ours = cell.logits()
    theirs, count = peft_logits(cell, config)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert cell.method.num_trained == count
