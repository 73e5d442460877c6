"""Pretrain the micro T5 from scratch, as T5 was: span corruption and supervised tasks behind prefixes.

    python -m tools.micro_t5.pretrain --out DIR [--steps N] [--seed 0] [--threads 1]

writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
pretraining.json (accuracy per task on validation rows, seed, stages, seconds, versions). Each of `stages.STAGES`
has seeds and an optimiser of its own, so a stopped run goes on after the last finished stage when the same command
is given again, and ends with the same weights. The same seed gives the same data, order and initial weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from harness.data import TASKS, generate
from tools.micro_t5.mixture import END, PAD, SENTINELS, UNKNOWN, build_tokenizer, mixture, supervised
from tools.micro_t5.stages import STAGES, Stage

BATCH = 64
"""Rows of a batch."""
CHUNK_BATCHES = 500
"""Batches whose rows are made and sorted by length together. More means less padding, fewer means a sooner start; the
32,000 rows of 500 batches fit into memory easily."""
WARM_UP = 300
"""Steps of linear warm-up, 4 to 10 percent of a stage's schedule."""
RECORD = "pretraining.json"

Batch = tuple[Tensor, Tensor]
"""(source ids [B, T], target ids [B, U]): B rows, T and U the longest source and target."""


def build_model(vocabulary: int) -> T5ForConditionalGeneration:
    """Return a randomly initialised T5 v1.0 (relu, tied embeddings) of four encoder and two decoder layers."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=2,
        dropout_rate=0.1,
        feed_forward_proj="relu",
        pad_token_id=PAD,
        eos_token_id=END,
    )
    config.decoder_start_token_id = PAD
    model = T5ForConditionalGeneration(config)
    attend_to_equal_words(model)
    return model


def attend_to_equal_words(model: Any) -> None:
    """Let half of the encoder's heads begin by looking for the same word elsewhere.

    Their queries are made similar to their keys, and a bias of -8 on distance 0 keeps a word from finding itself.
    Comparing two sentences needs such heads; left to chance, a model this small does not find them in thousands of
    steps.
    """
    heads = model.config.num_heads // 2
    with torch.no_grad():
        for block in model.encoder.block:
            attention = block.layer[0].SelfAttention
            rows = heads * model.config.d_kv
            attention.q.weight[:rows] = 0.3 * attention.k.weight[:rows]
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[0, :heads] = -8.0


def padded(rows: list[list[int]], fill: int) -> Tensor:
    """Return token rows as one tensor, filled up on the right, [B, T]."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def batches(tokenizer: Tokenizer, seed: int, stage: Stage) -> Iterator[Batch]:
    """Yield endless batches of `BATCH` rows of similar length. Targets are padded with -100, which the loss ignores."""
    chunk = 0
    while True:
        key = seed * 100_000 + chunk
        pairs = mixture(CHUNK_BATCHES * BATCH, key, stage.shares.parts(), stage.scattered)
        sources = [encoding.ids for encoding in tokenizer.encode_batch([pair[0] for pair in pairs])]
        targets = [encoding.ids for encoding in tokenizer.encode_batch([pair[1] for pair in pairs])]
        order = sorted(range(len(pairs)), key=lambda index: (len(sources[index]), index))
        groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        random.Random(f"groups {key}").shuffle(groups)
        for group in groups:
            yield padded([sources[i] for i in group], PAD), padded([targets[i] for i in group], -100)
        chunk += 1


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then linear decay to zero."""
    return min((step + 1) / WARM_UP, max(0.0, (steps - step) / max(1, steps - WARM_UP)))


def train(model: T5ForConditionalGeneration, tokenizer: Tokenizer, stage: Stage, seed: int) -> None:
    """Train the model in place for one stage; print the loss every 250 steps."""
    # Adafactor scales steps by the size of a parameter: T5's embeddings have unit variance, and steps of one size for
    # all weights would barely move them
    optimizer: Any = torch.optim.Adafactor(model.parameters(), lr=stage.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, stage.schedule))
    started, running = time.perf_counter(), 0.0
    data = batches(tokenizer, seed, stage)
    for step, (source, target) in zip(range(1, stage.steps + 1), data, strict=False):
        # without dropout a model this small learns the tasks much sooner; it gets dropout at the end only, since it is
        # on when prompts are trained
        model.train(step > stage.schedule * stage.dropout_from)
        loss = model(input_ids=source, attention_mask=source.ne(PAD), labels=target).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 250 == 0 or step == stage.steps:
            seconds = time.perf_counter() - started
            print(f"step {step}/{stage.steps}  loss {running:.3f}  {seconds:.0f} s", flush=True)


def answers(model: T5ForConditionalGeneration, tokenizer: Tokenizer, sources: list[str], batch: int = 100) -> list[str]:
    """Return the model's greedy answers to source texts with a prefix."""
    network: Any = model.eval()
    texts: list[str] = []
    for start in range(0, len(sources), batch):
        ids = padded([each.ids for each in tokenizer.encode_batch(sources[start : start + batch])], PAD)
        out = network.generate(input_ids=ids, attention_mask=ids.ne(PAD), max_new_tokens=6, do_sample=False)
        texts += tokenizer.decode_batch(out.tolist(), skip_special_tokens=True)
    return texts


def score(model: T5ForConditionalGeneration, tokenizer: Tokenizer, task: str, size: int = 300) -> float:
    """Return the share of exact answers (0 to 1) on validation rows with a prefix; for similarity Pearson's r."""
    pairs = [supervised(task, row) for row in generate(task, "validation", size)]
    given = answers(model, tokenizer, [source for source, _ in pairs])
    if task == "similarity":
        return correlation([_number(text) for text in given], [float(target) for _, target in pairs])
    return sum(text == target for text, (_, target) in zip(given, pairs, strict=True)) / len(pairs)


def correlation(first: list[float], second: list[float]) -> float:
    """Return Pearson's r of two equally long lists; 0 if one of them is constant."""
    r = torch.corrcoef(torch.tensor([first, second]))[0, 1].item()
    return r if r == r else 0.0  # NaN is not equal to itself


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def save(model: T5ForConditionalGeneration, tokenizer: Tokenizer, out: Path) -> None:
    """Write model and tokenizer such that transformers' Auto classes load them."""
    make: Any = PreTrainedTokenizerFast
    wrapped = make(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{index}>" for index in range(SENTINELS)],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    assert (wrapped.pad_token_id, wrapped.eos_token_id, wrapped.unk_token_id) == (PAD, END, UNKNOWN)
    model.save_pretrained(out)
    wrapped.save_pretrained(out)


def pretrain(out: Path, stages: Sequence[Stage], seed: int) -> dict[str, Any]:
    """Train through the stages, save and score after each; return what pretraining.json then holds."""
    out.mkdir(parents=True, exist_ok=True)
    record = finished_stages(out, stages, seed)
    if record["stages"]:
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        model = T5ForConditionalGeneration.from_pretrained(out)
    else:
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(seed, stages[0].shares.parts())
        model = build_model(tokenizer.get_vocab_size())
    print(f"{model.num_parameters():,} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    for index, stage in enumerate(stages):
        if index < len(record["stages"]):
            continue
        started = time.perf_counter()
        torch.manual_seed(10 * seed + index)
        train(model, tokenizer, stage, 10 * seed + index)
        save(model, tokenizer, out)
        record["validation"] = {task: round(score(model, tokenizer, task), 4) for task in TASKS}
        record["seconds"] += round(time.perf_counter() - started)
        record["stages"].append(asdict(stage))
        record.update(parameters=model.num_parameters(), steps=sum(done["steps"] for done in record["stages"]))
        (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"stage {index + 1} of {len(stages)}: {json.dumps(record['validation'])}", flush=True)
    return record


def finished_stages(out: Path, stages: Sequence[Stage], seed: int) -> dict[str, Any]:
    """Return the record of the stages that a stopped run of the same seed finished in `out`; an empty one if none."""
    empty: dict[str, Any] = {"seed": seed, "batch": BATCH, "seconds": 0, "versions": versions(), "stages": []}
    if not (out / RECORD).exists():
        return empty
    record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    planned = [asdict(stage) for stage in stages[: len(record["stages"])]]
    same = record["stages"] == planned and all(record[key] == empty[key] for key in ("seed", "batch", "versions"))
    return record if same else empty


def versions() -> dict[str, str]:
    """Return the versions of what decides the weights."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def shortened(stages: Sequence[Stage], steps: int | None) -> list[Stage]:
    """Return the stages, cut after `steps` steps in all; None cuts nothing."""
    kept, left = [], sum(stage.steps for stage in stages) if steps is None else steps
    for stage in stages:
        if left > 0:
            kept.append(replace(stage, steps=min(stage.steps, left)))
        left -= stage.steps
    return kept


def main() -> None:
    """Command line: pretrain into --out and print the scores and the runtime."""
    parser = argparse.ArgumentParser(description="Pretrain the micro T5 on the micro grammar.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: all stages)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = pretrain(options.out, shortened(STAGES, options.steps), options.seed)
    print(f"done in {record['seconds']} s")


if __name__ == "__main__":
    main()
