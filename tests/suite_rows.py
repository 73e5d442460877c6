"""Made-up rows for every task of the suites, in the layout of their hub copies, and a small backbone of width 768."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.backbone.names import resolve_backbone
from harness.data.tasks import Task
from harness.data.tasks.task import NEEDED_SPLITS

NUM_ROWS = {"train": 48}
"""As many as a draw of 32 from three classes needs; four of any other split."""
WORDS = ("good", "bad", "dull", "fine")


def write_tiny_task(folder: Path, task: Task) -> None:
    """Write few rows of every split that the task needs below `folder`, as JSON lines with the hub's columns."""
    place = folder / task.hub[0].path / (task.hub[0].config or "")
    place.mkdir(parents=True, exist_ok=True)  # COPA's rows are those of two tasks
    for split in NEEDED_SPLITS[task.split]:
        rows = [_row(task, index) for index in range(NUM_ROWS.get(split, 4))]
        (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(task: Task, index: int) -> dict[str, Any]:
    word = WORDS[index % len(WORDS)]
    row: dict[str, Any] = {column: f"The {word} film {index} was {word}." for _, column in task.fields}
    if task.name == "record":
        return {**row, "entities": ["film", word], "answers": [word]}
    if task.name in ("copa", "copa_choice"):
        row |= {"premise": f"The {word} film {index} was {word}.", "question": ("cause", "effect")[index % 2],
                "choice1": "It was long.", "choice2": "It was short."}  # fmt: skip
        return {**row, "label": index % 2}
    if task.name == "wsc":
        row |= {"span1_text": "film", "span1_index": 2, "span2_text": "was", "span2_index": 4}
    return {**row, task.label: _label(task, index)}


def _label(task: Task, index: int) -> Any:
    if task.kind == "text":
        return [f"film {index}"]
    return index % 6 if task.kind == "regression" else index % len(task.labels)


def write_small_decoder(folder: Path) -> Path:
    """A small Llama with a tokenizer of bytes, whose answers end at once, as those of `write_wide_backbone` do."""
    import torch
    from checkpoints import byte_tokenizer, write_checkpoint
    from transformers import AutoModelForCausalLM

    config = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
              "tie_word_embeddings": False}  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder, config, byte_tokenizer("<s> $A")))
    with torch.no_grad():  # every state is positive there, and nothing else is read off
        network.model.embed_tokens.weight[:, 0] = 10.0
        network.lm_head.weight.zero_()
        network.lm_head.weight[network.config.eos_token_id, 0] = 1.0
    network.save_pretrained(folder)
    return folder


def write_small_encoder(folder: Path) -> Path:
    """A small BERT with a tokenizer of bytes."""
    from checkpoints import byte_tokenizer, write_checkpoint

    config = {"model_type": "bert", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
              "num_attention_heads": 4, "max_position_embeddings": 512}  # fmt: skip
    return write_checkpoint(folder, config, byte_tokenizer("<s> $A </s>"))


def write_wide_backbone(folder: Path, layers: int = 1) -> Path:
    """A small T5 of width 768, which all subvector widths of the suites divide, with the micro T5's tokenizer.

    Its answers end at once: a random network would write to the limit of every task, 32 passes for an answer to MRQA.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    micro = Path(resolve_backbone("micro-t5"))
    config = T5Config.from_pretrained(micro)
    config.update(
        {"d_model": 768, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": layers, "num_decoder_layers": layers}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = T5ForConditionalGeneration(config)
    with torch.no_grad():  # behind the token that starts an answer, the embedding most like it scores highest
        network.shared.weight[config.decoder_start_token_id] = network.shared.weight[config.eos_token_id] / 2
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(micro / name, folder / name)
    return folder
