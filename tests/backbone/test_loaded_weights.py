"""A network that its files do not fill is refused: transformers would fill it with random numbers, and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import GPT2, byte_tokenizer, write_checkpoint, write_reviews
from safetensors.torch import load_file, save_file

from harness.backbone.load import DRAWS, _nothing_drawn, load_backbone, meta_backbone, require_safetensors
from harness.backbone.loaded_weights import require_whole
from harness.errors import UserError
from harness.runner.run_suite import run

Tensors = dict[str, torch.Tensor]
WHOLE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "net", GPT2, byte_tokenizer())


def change(folder: Path, how: Callable[[Tensors], Tensors]) -> None:
    save_file(how(load_file(folder / WHOLE)), folder / WHOLE, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda t: {k: v for k, v in t.items() if "c_attn" not in k},
         "its files lack 2 of the network's 16 weights, such as transformer.h.0.attn.c_attn.bias"),
        (lambda t: {f"module.{k}": v for k, v in t.items()},
         "its files lack .* The files hold 15 others, such as module.transformer.h.0.attn.c_attn.weight"),
        (lambda t: {k: v[..., :8].contiguous() for k, v in t.items()},
         r"transformer.h.0.attn.c_attn.bias is \[8\] in its files, its config.json describes \[48\]"),
    ],
    ids=["missing", "renamed", "narrow"],
)  # fmt: skip
def test_what_the_files_do_not_give_is_named(folder: Path, how: Callable[[Tensors], Tensors], said: str) -> None:
    change(folder, how)
    with pytest.raises(UserError, match=said):
        load_backbone(str(folder), device="cpu")
    with pytest.raises(UserError, match=said):
        run(write_reviews(folder.parent, [folder]), results=folder.parent / "out", quiet=True)
    assert not (folder.parent / "out").exists()


def test_what_a_network_does_not_need_may_lie_in_its_files(folder: Path) -> None:
    """Heads of other tasks, say, or masks that older releases stored."""
    more = {"classifier.weight": torch.zeros(2, 16), "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}
    change(folder, lambda tensors: tensors | more)
    assert load_backbone(str(folder), device="cpu").num_params > 0


def test_a_buffer_may_be_missing(folder: Path) -> None:
    """A network computes its buffers, and releases of transformers differ in which of them they store."""
    model = load_backbone(str(folder), device="cpu").model
    model.transformer.register_buffer("mask", torch.ones(2))
    require_whole("net", model, {"missing_keys": {"transformer.mask"}})
    with pytest.raises(UserError, match=r"such as transformer\.wpe\.weight"):
        require_whole("net", model, {"missing_keys": {"transformer.mask", "transformer.wpe.weight"}})


def test_a_pointer_of_git_lfs_is_told_from_weights(folder: Path) -> None:
    (folder / WHOLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n")
    with pytest.raises(UserError, match=r"model\.safetensors is not the weights but a pointer .* git lfs pull"):
        require_safetensors(str(folder))


def test_an_adapter_is_told_from_a_network(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds a PEFT adapter and not the network that it belongs to"):
        require_safetensors(str(folder))


def test_only_a_network_without_values_is_built_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []

    def noted(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fill(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            drawn.append(tensor.is_meta)
            return draw(tensor, *args, **kwargs)

        return fill

    for name, draw in DRAWS.items():
        monkeypatch.setitem(DRAWS, name, noted(draw))
    with _nothing_drawn():  # another thread may build a network with values at this moment
        weight = torch.nn.Linear(4, 4).weight
    assert drawn == [False, False]
    assert weight.unique().numel() > 8
    drawn.clear()
    for name in ("micro-t5", "llama-3.2-3b", "roberta-base"):
        model = meta_backbone(name).model
        assert all(parameter.is_meta for parameter in model.parameters())
    assert not drawn
    assert torch.nn.Linear(4, 4).weight.unique().numel() > 8, "drawn again"
