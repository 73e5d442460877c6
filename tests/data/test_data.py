"""Splits, fingerprints, duplicates and token arrays; sizes of the real data sets where they are here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from checkpoints import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from harness.data.examples import Example
from harness.data.prompt_form import target_ids
from harness.data.ragged import padded as pad_rows
from harness.data.ragged import ragged
from harness.data.splits import _cut_splits, load_task, permutation
from harness.data.tasks import all_tasks
from harness.data.tasks.task import NEEDED_SPLITS, SPLIT_RULES, SplitRule
from harness.data.tokenization import encode, max_new_tokens
from harness.errors import UserError
from harness.runner.run_suite import run
from harness.train.caches import cached_backbone
from harness.train.tiny_backbones import tiny_backbone

TASKS = all_tasks()

# first indices of torch.randperm(n) with seed 42, as recorded by an emulation of the generator
PERMUTATIONS = {
    10: [2, 6, 1, 8, 4, 5, 0, 9, 3, 7],
    56: [22, 8, 36, 39, 34, 28],
    277: [207, 84, 253, 243, 190, 28],
    638: [292, 360, 246, 12, 52, 100],
    1043: [911, 408, 813, 657, 710, 526],
    1304: [974, 540, 48, 1148, 1230, 682],
    3270: [282, 3153, 2578, 2833, 2504, 90],
    4848: [3270, 1987, 3664, 967, 3242, 1717],
    67349: [6677, 49712, 38268, 32909],
    104743: [99291, 42864, 63734, 96877],
    363846: [74376, 255378, 229510, 126322],
}


def cb_row(index: int, label: object = "neutral") -> dict[str, object]:
    return {"premise": f"premise {index}", "hypothesis": f"hypothesis {index}", "label": label, "idx": index}


def write_cb(folder: Path, train: Sequence[object], validation: Sequence[object]) -> Path:
    (folder / "CB").mkdir(parents=True)
    for name, rows in (("train", train), ("val", validation)):
        (folder / "CB" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("size", sorted(PERMUTATIONS))
def test_splits_are_cut_in_the_documented_order(size: int) -> None:
    assert permutation(size)[: len(PERMUTATIONS[size])] == PERMUTATIONS[size]


def test_validation_is_halved_in_permuted_order(tmp_path: Path) -> None:
    data = load_task(TASKS["cb"], write_cb(tmp_path, [cb_row(99)], [cb_row(i) for i in range(10)]))
    assert [example.source.split()[2] for example in data.dev] == ["2", "6", "1", "8", "4"]
    assert [example.source.split()[2] for example in data.test] == ["5", "0", "9", "3", "7"]
    assert (data.record.num_train, data.record.num_dev, data.record.num_test) == (1, 5, 5)
    assert "seed 42" in data.record.split_rule


def test_text_and_target_are_as_in_the_papers_code(tmp_path: Path) -> None:
    rows = [cb_row(i, label) for i, label in enumerate(["entailment", 1, "neutral", "2"])]
    data = load_task(TASKS["cb"], write_cb(tmp_path, rows, rows))
    assert data.train[0].source == "premise: premise 0 hypothesis: hypothesis 0"
    assert [example.target for example in data.train] == ["0", "1", "2", "2"]


def test_the_fingerprint_follows_the_rows(tmp_path: Path) -> None:
    rows = [cb_row(i) for i in range(4)]
    one = load_task(TASKS["cb"], write_cb(tmp_path / "a", rows, rows)).record.fingerprint
    same = load_task(TASKS["cb"], write_cb(tmp_path / "b", rows, rows)).record.fingerprint
    other = load_task(TASKS["cb"], write_cb(tmp_path / "c", rows, [*rows[:3], cb_row(3, "entailment")]))
    assert one == same != other.record.fingerprint


def numbered(count: int, start: int = 0) -> list[list[Example]]:
    return [[Example(f"row {i}", "0", ("0",))] for i in range(start, start + count)]


@given(st.sampled_from(sorted(SPLIT_RULES)), st.integers(3, 40), st.integers(2, 40))
def test_a_split_rule_hands_out_every_row_once(rule: SplitRule, num_train: int, num_other: int) -> None:
    sizes = [num_train, num_other, num_other][: len(NEEDED_SPLITS[rule])]
    starts = [0, 1_000, 2_000]
    read = [numbered(size, start) for size, start in zip(sizes, starts, strict=False)]
    task = replace(TASKS["cb"], split=rule, dev_share=1, test_share=1)
    parts = [[example.source for row in rows for example in row] for rows in _cut_splits(task, read)]
    everything = [row[0].source for rows in read for row in rows]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(everything)
    assert all(parts)


@given(st.integers(30, 300), st.floats(0.05, 0.4), st.integers(1, 5))
def test_cut_train_takes_dev_then_test_then_the_rest(total: int, dev_share: float, num_test: int) -> None:
    task = replace(TASKS["cb"], split="cut_train", dev_share=dev_share, test_share=num_test)
    num_dev = round(dev_share * total)
    train, dev, test = ([row[0].source for row in rows] for rows in _cut_splits(task, [numbered(total)]))
    assert [f"row {i}" for i in permutation(total)] == [*dev, *test, *train]
    assert (len(dev), len(test)) == (num_dev, num_test)


@pytest.mark.parametrize(("dev", "test"), [(5, 5), (1.0, 0.5), (0, 2), (-3, 2), (0.01, 2)])
def test_cut_train_leaves_no_split_empty(dev: float, test: float) -> None:
    task = replace(TASKS["cb"], split="cut_train", dev_share=dev, test_share=test)
    with pytest.raises(UserError, match="cannot be cut from 10 rows"):
        _cut_splits(task, [numbered(10)])


def test_a_thousand_training_rows_are_held_out_and_half_of_a_small_set(tmp_path: Path) -> None:
    task = replace(TASKS["cb"], split="hold_out_1000")
    folder = write_cb(tmp_path / "large", [cb_row(i) for i in range(2_500)], [cb_row(-1)])
    record = load_task(task, folder).record
    assert (record.num_train, record.num_dev, record.num_test) == (1_500, 1_000, 1)
    small = load_task(task, write_cb(tmp_path / "small", [cb_row(i) for i in range(10)], [cb_row(-1)]))
    assert [example.source.split()[2] for example in small.dev] == ["2", "6", "1", "8", "4"]


def test_a_split_that_ends_up_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'dev' of task 'cb' has no rows"):
        load_task(TASKS["cb"], write_cb(tmp_path, [cb_row(0)], [cb_row(0)]))


def test_dev_and_test_rows_that_stand_in_train_are_counted_and_told(
    tmp_path: Path, write_suite: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train = [cb_row(0), cb_row(1), cb_row(1), cb_row(2, "entailment")]
    validation = [cb_row(1), cb_row(2), cb_row(2), cb_row(8), cb_row(9), cb_row(10)]
    folder = write_cb(tmp_path, train, validation)
    assert load_task(TASKS["cb"], folder).record.num_duplicates == 3
    suite = write_suite("suite: s\nbackbones: [micro-t5]\ntasks: [cb]\nseeds: [1]\nmethods: [majority]\n")
    run(suite, results=tmp_path / "results", data=folder)
    assert "cb: 3 of 6 dev and test rows also stand in train" in capsys.readouterr().err


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9), st.randoms())
def test_ragged_rows_come_back_padded(rows: list[list[int]], random: Random) -> None:
    flat, offsets = ragged(rows)
    picked = np.array(random.sample(range(len(rows)), len(rows)))
    padded = pad_rows(flat, offsets, picked, -100)
    assert [[int(i) for i in row if i != -100] for row in padded] == [rows[i] for i in picked]


def test_targets_end_with_the_end_token_and_fit_the_limit() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    assert target_ids("0", backbone, None)[-1] == backbone.eos_id
    long = target_ids("the cat sleeps " * 20, backbone, 20)
    assert len(long) == 20
    assert long[-1] == backbone.eos_id
    assert max_new_tokens(TASKS["micro_entailment"], backbone) == len(target_ids("2", backbone, None))
    assert max_new_tokens(TASKS["micro_qa"], backbone) == 19


def test_sources_are_cut_on_the_right() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    data = load_task(TASKS["micro_qa"], None)
    encoded = encode(data.dev[:20], backbone, data.task, 12)
    assert encoded.source_lengths(np.arange(20)).max() == 12
    whole = encode(data.dev[:20], backbone, data.task, 64)
    assert encoded.sources(np.array([0]), 0)[0, :11].tolist() == whole.sources(np.array([0]), 0)[0, :11].tolist()


@pytest.mark.parametrize("limit", [20, 400])
@pytest.mark.parametrize(
    ("frame", "names", "begin"),
    [
        ("$A", {}, []),
        ("<s> $A", {}, [2]),
        ("<s> $A </s>", {}, [2]),
        ("$A </s>", {}, []),
        ("</s> $A", {"bos_token": "</s>"}, [1]),
        ("</s> $A </s>", {"bos_token": "</s>"}, [1]),
    ],
)
def test_a_decoder_reads_the_begin_once_and_the_end_behind_the_answer_only(
    frame: str, names: dict[str, str], begin: list[int], limit: int
) -> None:
    """Whatever a tokenizer puts around a text, and what stands in the text itself."""
    tokenizer = byte_tokenizer(frame, **names)
    backbone = tiny_backbone("decoder")
    backbone.tokenizer = tokenizer
    texts = ["a fine film", "", "</s>", "one </s> two <s> three", "long " * 50]
    task = replace(TASKS["micro_qa"], max_target_length=9)
    encoded = encode([Example(text, text, (text,)) for text in texts], backbone, task, limit)
    suffix = tokenizer(backbone.kind.text_suffix, add_special_tokens=False)["input_ids"]
    for row, text in enumerate(texts):
        source, target = encoded.sources(np.array([row]), 0)[0].tolist(), encoded.targets(np.array([row]))[0].tolist()
        unmarked = text.replace(tokenizer.eos_token, "").replace(tokenizer.bos_token, "")
        plain = tokenizer(unmarked, add_special_tokens=False)["input_ids"]
        body = source[len(begin) : -len(suffix)]
        assert source == [*begin, *body, *suffix]
        assert body == plain[: len(body)]
        assert len(source) <= limit
        room = 2 if unmarked != text else 0  # the marks that were left out
        assert len(body) == len(plain) or len(source) >= limit - room
        assert target == [*plain[:8], backbone.eos_id]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.generate])
def test_generated_tasks_have_the_sizes_they_declare(name: str) -> None:
    record = load_task(TASKS[name], None).record
    assert (record.num_train, record.num_dev, record.num_test) == TASKS[name].sizes


def test_every_task_record_is_complete() -> None:
    for task in TASKS.values():
        assert task.licence, task.name
        assert task.generate or (task.folders and task.citation), task.name
        assert bool(task.hub) + bool(task.generate) + bool(task.download) == 1, f"{task.name}: one place to get it from"
        assert not task.download or task.download.startswith("https://"), task.name
        assert not task.sources or set(task.sources) == set(NEEDED_SPLITS[task.split]), task.name
        assert task.kind != "classification" or len(task.labels) > 1, task.name
        assert task.selection in task.metrics


SIZES = {
    "rte": (2_490, 138, 139), "cb": (250, 28, 28), "wic": (5_428, 319, 319), "boolq": (9_427, 1_635, 1_635),
    "multirc": (27_243, 2_424, 2_424), "cola": (8_551, 521, 522), "sst2": (66_349, 1_000, 872),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_real_data_has_the_published_sizes(name: str, real_data: Path) -> None:
    record = load_task(TASKS[name], real_data).record
    assert (record.num_train, record.num_dev, record.num_test) == SIZES[name] == TASKS[name].sizes


@pytest.mark.parametrize("name", ["newsqa", "naturalquestions", "hotpotqa", "squad", "scitail"])
def test_samples_of_real_data_load(name: str, real_data: Path) -> None:
    record = load_task(TASKS[name], real_data).record
    assert min(record.num_train, record.num_dev, record.num_test) > 100
    assert (record.num_train, record.num_dev, record.num_test) != TASKS[name].sizes
