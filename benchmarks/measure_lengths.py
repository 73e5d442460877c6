"""Quantiles of the token lengths of real tasks, as stored in lengths.json: no rows, only lengths.

    python benchmarks/measure_lengths.py --data DIR --tokenizer t5-small --out benchmarks/lengths.json

DIR is laid out as for `harness run --data`; the tokenizer is a folder or a hub id. A length counts the source text
that the task's template makes, with its end token, cut at the task's own maximum.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from harness.data import all_tasks, load_task

TASKS = ("sst2", "mnli", "boolq", "multirc")
MOST_ROWS = 20_000
QUANTILES = np.linspace(0, 1, 101)


def measure(name: str, data: str, tokenizer: Any) -> dict[str, Any]:
    """Quantiles 0, 0.01, ... 1 of the training texts of one task, of at most MOST_ROWS of them."""
    # only training texts are measured, so nothing else has to be there
    task = dataclasses.replace(all_tasks()[name], split="cut_train", dev_share=1, test_share=1)
    rows = load_task(task, data).train
    chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS]
    ids = tokenizer([rows[i].source for i in chosen], truncation=True, max_length=task.max_source_length)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    return {
        "rows": len(lengths),
        "max_source_length": task.max_source_length,
        "mean": round(float(lengths.mean()), 1),
        "quantiles": np.quantile(lengths, QUANTILES, method="nearest").astype(int).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", default="google-t5/t5-small")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("lengths.json"))
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    measured = {name: measure(name, options.data, tokenizer) for name in TASKS}
    lines = [f" {json.dumps(name)}: {json.dumps(values)}" for name, values in measured.items()]
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for name, values in measured.items():
        print(f"{name}: {values['rows']:,} rows, mean {values['mean']}, median {values['quantiles'][50]}")


if __name__ == "__main__":
    main()
