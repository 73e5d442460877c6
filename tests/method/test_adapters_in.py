"""Adapters that PEFT has trained and saved: scored here as by PEFT's own model, and gone on from."""

from __future__ import annotations

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.backbone import Backbone, Seal
from harness.errors import UserError
from harness.method.adapter_tensors import read_adapter_tensors
from harness.method.merging import CannotMerge
from harness.method.method import Method
from harness.method.peft_config import REFUSED_TYPES
from harness.method.peft_folder import write_adapter
from harness.method.peft_targets import set_targets
from harness.method.registry import discover
from harness.suite.trained_adapter import TrainedAdapter, find_adapter
from harness.train.answering_cost import merged_backbone
from harness.train.batch_input import BatchInput, Rows
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

REGISTRY: Any = {name: found.cls for name, found in discover().items()}
METHODS: Any = {name: REGISTRY[name] for name in ("imported", "peft", "spot", "dept")}
LENGTHS = [9, 9, 9]  # of one length: PEFT counts positions of padding, the harness does not
PROMPT = {"num_virtual_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 6, "target_r": 2, "total_step": 6, "tinit": 1, "tfinal": 2, "deltaT": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CARTRIDGE": PROMPT,
    "CPT": {"cpt_token_ids": [3, 4, 5, 6], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "FOURIERFT": {"n_frequency": 16},
    "LORA": {"lora_dropout": 0.1},
    "MULTITASK_PROMPT_TUNING": {**PROMPT, "num_tasks": 1},
    "OFT": {"oft_block_size": 4},
    "P_TUNING": PROMPT,
    "PREFIX_TUNING": {**PROMPT, "prefix_projection": True, "encoder_hidden_size": 16},
    "PROMPT_TUNING": PROMPT,
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [*range(3, 60)]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "r": 4},
    "WAVEFT": {"n_frequency": 16},
}
TYPES = sorted({kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} - set(REFUSED_TYPES))
ON_T5 = ("ADALORA", "IA3", "LOHA", "LORA", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "VERA")
CASES = [(kind, "decoder") for kind in TYPES] + [(kind, "encoder-decoder") for kind in ON_T5]


class Elsewhere:
    """An adapter of PEFT, trained on a tiny network by a plain loop, saved to a folder, and loaded again by PEFT."""

    def __init__(self, folder: Path, kind: str, network: str, **more: Any) -> None:
        backbone = tiny_backbone(network)  # type: ignore[arg-type]
        self.is_decoder = not backbone.is_encoder_decoder
        rows = tiny_rows(LENGTHS, backbone)
        self.sources = torch.as_tensor(rows.sources(np.arange(3), 0))
        self.labels = torch.as_tensor(rows.targets(np.arange(3)))
        task = "CAUSAL_LM" if self.is_decoder else "SEQ_2_SEQ_LM"
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type=task, **{**SETTINGS.get(kind, {}), **more})
        plain = copy.deepcopy(backbone.model)
        if getattr(config, "target_modules", "") is None:
            set_targets(config, plain)
        self.tasks = (
            {"task_ids": torch.zeros(3, dtype=torch.long)} if kind in ("POLY", "MULTITASK_PROMPT_TUNING") else {}
        )
        torch.manual_seed(3)
        model: Any = get_peft_model(plain, config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        model.train()
        for step in range(6 if kind == "ADALORA" else 3):  # its ranks are cut after the second step
            loss = torch.nn.functional.cross_entropy(self.logits_of(model).flatten(0, 1), self.labels.flatten())
            loss.backward()
            optimizer.step()
            if kind == "ADALORA":
                model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        model.save_pretrained(folder)
        torch.manual_seed(4)  # what is not in the file must not decide
        base = copy.deepcopy(tiny_backbone(network).model)  # type: ignore[arg-type]
        # PEFT's AdaLoRA asks which adapter trains, also where it only answers
        self.model: Any = PeftModel.from_pretrained(base, folder, is_trainable=kind == "ADALORA").eval()

    def logits_of(self, model: Any) -> Tensor:
        """[3, T, V] of the target tokens."""
        if not self.is_decoder:
            found: Tensor = model(input_ids=self.sources, attention_mask=torch.ones_like(self.sources),
                                  labels=self.labels, **self.tasks).logits  # fmt: skip
            return found
        whole = torch.cat([self.sources, self.labels[:, :-1]], 1)
        read: Tensor = model(input_ids=whole, attention_mask=torch.ones_like(whole), **self.tasks).logits
        return read[:, -self.labels.shape[1] :]

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.logits_of(self.model)


def filled(name: str, folder: Path, backbone: Backbone, **hp: Any) -> Method:
    """A method that has started from the adapter in a folder, as a cell does."""
    found = find_adapter(folder.name, folder.parent, "", "")
    settings = found.to_answer() if name == "imported" else found.to_train()
    cls = METHODS[name]
    made = {"config": settings} if name in ("imported", "peft") else {}
    torch.manual_seed(7)
    method: Method = cls(cls.HP(**{**made, **hp}), backbone)
    method.start_from([read_adapter_tensors(found.weights, found.config)])
    return method.eval()


@torch.no_grad()
def logits_with(method: Method, backbone: Backbone) -> Tensor:
    """[3, T, V] as a run computes them."""
    rows = tiny_rows(LENGTHS, backbone)
    fused = BatchInput([method], backbone, 24)
    with fused.attached():
        fused.refresh(grad=False, cells=[0])
        embeds, mask, _ = fused.build(rows, Rows(np.zeros(3, np.int64), np.arange(3)))
        found: Tensor = backbone.target_logits(embeds, mask, torch.as_tensor(rows.targets(np.arange(3))))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "network"), CASES)
def test_an_adapter_of_peft_answers_and_goes_on_as_in_peft(kind: str, network: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    theirs = Elsewhere(folder, kind, network)
    backbone = tiny_backbone(network)  # type: ignore[arg-type]
    seal, bare = Seal(backbone), logits_with(METHODS["spot"](METHODS["spot"].HP(prompt_length=1), backbone), backbone)
    expected = theirs.logits()
    method = filled("imported", folder, backbone)
    found = logits_with(method, backbone)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float((found - bare).abs().max()) > 1e-3, "the adapter changes nothing"
    assert method.num_trained == 0
    assert method.param_groups(0.1) == []
    assert method.num_kept > 0
    if kind in ("P_TUNING", "PREFIX_TUNING"):
        with pytest.raises(ValueError, match=f"PEFT keeps of {kind} what its network gave"):
            filled("peft", folder, backbone)
    elif kind != "CPT":  # a plain prompt by its file
        further = filled("peft", folder, backbone, num_steps=20)
        torch.testing.assert_close(logits_with(further, backbone), expected, rtol=1e-4, atol=1e-5)
        assert further.num_trained > 0
    assert seal.difference() is None


def saved_lora(folder: Path, **more: Any) -> Path:
    model: Any = get_peft_model(copy.deepcopy(tiny_backbone("decoder").model), LoraConfig(r=4, **more))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_()
    model.save_pretrained(folder)
    return folder


def rewritten(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.filterwarnings("ignore")
def test_what_a_file_cannot_give_is_named_by_its_keys(tmp_path: Path) -> None:
    backbone = tiny_backbone("decoder")
    weight = "base_model.model.model.layers.0.self_attn.o_proj.weight"
    cases: dict[str, tuple[Any, str]] = {
        "missing": (lambda t: t.pop(KEY), f"the file has no {KEY}; it holds base_model"),
        "unknown": (lambda t: t.update({"base_model.model.model.extra": torch.ones(2)}),
                    "the file has base_model.model.model.extra, for which this adapter has no place"),
        "rank": (lambda t: t.update({KEY: torch.ones(3, 64)}), rf"{KEY} is \[3, 64\], wanted is \[4, 64\]"),
        "base": (lambda t: t.update({weight: torch.ones(64, 64)}),
                 f"{weight} is a weight of the network that it was trained on, and not of this one"),
    }  # fmt: skip
    seal = Seal(backbone)
    for name, (change, message) in cases.items():
        folder = saved_lora(tmp_path / name)
        rewritten(folder, change)
        with pytest.raises(ValueError, match=message):
            filled("imported", folder, backbone)
    same = saved_lora(tmp_path / "same")
    rewritten(same, lambda t: t.update({weight: backbone.model.model.layers[0].self_attn.o_proj.weight.clone()}))
    filled("imported", same, backbone)
    wide = saved_lora(tmp_path / "nan")
    rewritten(wide, lambda t: t.update({KEY: torch.full((4, 64), float("nan"))}))
    with pytest.raises(UserError, match="values that are no finite decimal numbers"):
        filled("imported", wide, backbone)
    assert seal.difference() is None


@pytest.mark.filterwarnings("ignore")
def test_prompt_files_of_papers_answer_as_their_vectors(tmp_path: Path) -> None:
    """DePT's folder is written as its code does: its type, a pickle, a second prompt behind the first of a T5."""
    backbone = tiny_backbone("encoder-decoder")
    torch.manual_seed(0)
    prompt, a, b = torch.randn(8, 64), torch.randn(24, 3), torch.randn(3, 64)
    dept = tmp_path / "dept"
    dept.mkdir()
    config = {"peft_type": "PROMPT_TUNING_LORA", "num_virtual_tokens": 4, "r": 3, "lora_alpha": 2, "max_length": 24,
              "base_model_name_or_path": "t5-base", "prompt_tuning_init": "TEXT"}  # fmt: skip
    (dept / "adapter_config.json").write_text(json.dumps(config))
    pair = {"prompt_encoder.lora_embedding_A": a, "prompt_encoder.lora_embedding_B": b}
    torch.save({"prompt_embeddings": prompt, **pair}, dept / "adapter_model.bin")
    attempt, spot = tmp_path / "attempt", tmp_path / "spot"
    attempt.mkdir()
    spot.mkdir()
    torch.save(torch.nn.Parameter(prompt), attempt / "prefix_embeddings.pt")
    np.save(spot / "prompt.npy", prompt.numpy())
    method = filled("imported", dept, backbone, source_length=24)
    table = 2 / 3**0.5 * a @ b
    torch.testing.assert_close(method.prompt(), prompt[:4])
    torch.testing.assert_close(method.added(), table)
    assert (method.num_trained, method.num_kept) == (0, 4 * 64 + 24 * 3 + 3 * 64)
    embeds = torch.randn(2, 7, 64)
    made, _ = method(embeds, torch.ones(2, 7))
    torch.testing.assert_close(made, torch.cat([prompt[:4].expand(2, -1, -1), embeds + table[:7]], 1))
    for folder in (attempt, spot):
        torch.testing.assert_close(filled("imported", folder, backbone).prompt(), prompt)
        start = filled("spot", folder, backbone, prompt_length=8)
        torch.testing.assert_close(start.prompt(), prompt)
    further = filled("dept", dept, backbone, prompt_length=4, rank=3, source_length=24)
    torch.testing.assert_close(further.added(), table)
    again = METHODS["imported"](METHODS["imported"].HP(), backbone)
    again.load_state_dict(method.state_dict())
    torch.testing.assert_close(again.added(), table)
    with pytest.raises(ValueError, match="its table has 24 rows, and a text may have 30 tokens"):
        filled("imported", dept, backbone, source_length=30)
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    np.save(narrow / "prompt.npy", prompt[:, :32].numpy())
    with pytest.raises(ValueError, match=r"its vectors are \[8, 32\], and the backbone is 64 wide"):
        filled("imported", narrow, backbone)


@pytest.mark.filterwarnings("ignore")
def test_a_prefix_that_was_exported_from_an_encoder_decoder_answers_again(tmp_path: Path) -> None:
    """Its folder says twice as many layers as the decoder has: PEFT would else give a layer another layer's prefix."""
    backbone, out = tiny_backbone("encoder-decoder"), tmp_path / "out"
    out.mkdir()
    cls = REGISTRY["prefix_tuning"]
    torch.manual_seed(0)
    method = cls(cls.HP(prefix_length=3), backbone).eval()
    write_adapter(method, backbone, out, "x")
    assert json.loads((out / "adapter_config.json").read_text())["num_layers"] == 4
    expected = logits_with(method, backbone)
    torch.testing.assert_close(logits_with(filled("imported", out, backbone), backbone), expected)
    bare = logits_with(METHODS["spot"](METHODS["spot"].HP(prompt_length=1), backbone), backbone)
    assert float((expected - bare).abs().max()) > 1e-3, "the prefix changes nothing"


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_file_that_the_page_names_answers_alike(tmp_path: Path) -> None:
    backbone = tiny_backbone("decoder")
    torch.manual_seed(0)
    prompt = torch.randn(5, 64)
    writers: dict[str, Any] = {
        "prefix_embeddings.pt": lambda path: torch.save(torch.nn.Parameter(prompt), path),
        "prompt.npy": lambda path: np.save(path, prompt.numpy()),
        "any.safetensors": lambda path: save_file({"anything": prompt}, path),
        "any.bin": lambda path: torch.save({"anything": prompt}, path),
        "any.pth": lambda path: torch.save(prompt, path),
        "exported.safetensors": lambda path: save_file({"prompt": prompt}, path),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        torch.testing.assert_close(filled("imported", tmp_path / name, backbone).prompt(), prompt, msg=name)
    both = {"prompt": prompt, "added": torch.randn(24, 64)}
    save_file(both, tmp_path / "both.safetensors")
    method = filled("imported", tmp_path / "both.safetensors", backbone, source_length=24)
    torch.testing.assert_close(method.added(), both["added"])
    pickled = saved_lora(tmp_path / "lora")
    expected = logits_with(filled("imported", pickled, backbone), backbone)
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    torch.testing.assert_close(logits_with(filled("imported", pickled, backbone), backbone), expected)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_a_pickle_with_anything_but_tensors_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"prompt_embeddings": Evil()}, tmp_path / "code.bin")
    np.save(tmp_path / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    torch.save({"epoch": 3}, tmp_path / "state.pt")
    torch.save({"one": torch.ones(2, 2), "two": torch.ones(2, 2)}, tmp_path / "two.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    expected = {"code.bin": "cannot be read as tensors", "objects.npy": "cannot be read as an array of numbers",
                "state.pt": "holds no tensors by name", "cut.pt": "cannot be read as tensors",
                "two.pt": r"holds one \[2, 2\], two \[2, 2\], and not one prompt"}  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(UserError, match=message):
            read_adapter_tensors(tmp_path / name, {})
    assert not (tmp_path / "touched").exists()
    assert zipfile.is_zipfile(tmp_path / "code.bin")


def test_the_configuration_that_answers_says_nothing_of_training() -> None:
    text = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 64, "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "/elsewhere", "inference_mode": True}  # fmt: skip
    found = TrainedAdapter("a", Path("a"), text)
    assert found.to_answer() == {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 64}
    assert "prompt_tuning_init" not in found.to_train()
    lora = {"peft_type": "LORA", "r": 4, "modules_to_save": ["classifier", "score", "norm"], "init_lora_weights": "eva",
            "base_model_name_or_path": "/elsewhere", "eva_config": {"rho": 2.0}}  # fmt: skip
    made = TrainedAdapter("a", Path("a"), lora).to_answer()
    assert made == {"peft_type": "LORA", "r": 4, "modules_to_save": ["norm"]}


MERGED = {"BOFT", "DELORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "ROAD", "VERA"}
"""Types of PEFT that have to be merged; others may."""
NEVER_MERGED = {"P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "POLY", "ADAPTION_PROMPT"}


def moved(method: Method) -> Method:
    """A method off its start, where most change nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return method.eval()


@pytest.mark.filterwarnings("ignore")
def test_merged_into_the_backbone_a_method_answers_as_beside_it() -> None:
    """In float32 within 1e-4 of the logits' size; the backbone itself stays as it is."""
    backbone = tiny_backbone("decoder")
    seal = Seal(backbone)
    plain = Method(None, backbone)
    made: dict[str, Method] = {}
    for kind in sorted(MERGED | NEVER_MERGED):
        config = {key: value for key, value in SETTINGS.get(kind, {}).items() if key != "lora_dropout"}
        made[kind] = METHODS["peft"](METHODS["peft"].HP(config={"peft_type": kind, **config}), backbone)
    for name in ("lora", "dora", "ia3", "vera"):
        made[name] = REGISTRY[name](REGISTRY[name].HP(), backbone)
    made["biased"] = REGISTRY["lora"](REGISTRY["lora"].HP(biases=True), tiny_backbone("encoder-decoder"))
    for name, method in made.items():
        if name in NEVER_MERGED or name == "biased":
            with pytest.raises(CannotMerge):
                method.merged()
            continue
        beside = logits_with(moved(method), backbone)
        merged = logits_with(plain, merged_backbone(method, backbone))
        torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-4, msg=name)
        assert float((merged - logits_with(plain, backbone)).abs().max()) > 1e-3, f"{name} changes nothing"
    t5 = tiny_backbone("encoder-decoder")
    tied = METHODS["peft"](METHODS["peft"].HP(config={"peft_type": "LORA", "target_modules": ["shared"]}), t5)
    with pytest.raises(CannotMerge, match="a weight that two modules share"):
        merged_backbone(moved(tied), t5)
    assert seal.difference() is None
