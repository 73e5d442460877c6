"""What is fuzzed: suite files, result files with their predictions, and data files in every format and layout."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from paths import ROOT
from ruamel.yaml import YAML
from stored_runs import answers, store

from harness.cli.options import Format
from harness.cli.report import judge
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.data.tasks.declared import suite_tasks
from harness.method.registry import discover
from harness.report.boards import collect_boards
from harness.report.tables import render_boards
from harness.results.rescore import rescore_folder
from harness.results.store import ResultStore, checksum, load_results, predictions_path
from harness.results.verify import verify_folder
from harness.suite.make_groups import Overrides, expand_suite, load_suite
from harness.yaml_lines import parse_value

from .mutate import STRANGE_TEXTS, damaged, mutated

TASKS = all_tasks()
FORMS: tuple[Format, ...] = ("terminal", "markdown", "latex", "html", "csv")


@dataclass(frozen=True)
class Target:
    """A kind of input: `make` writes one into a folder and returns what shall be done with it."""

    name: str
    share: int
    """Parts of all inputs."""
    make: Callable[[random.Random, Path], Callable[[], None]]


OWN_SUITE = """\
suite: mine
description: a suite with everything
backbones: [micro-t5, t5-base]
tasks: [reviews, cb]
seeds: [42, 43]
protocol: {base: accept-2024, lr_grid.added: [0.0001, 0.001]}
tuning: {seeds: each, strategy: halving}
execution: {bundle_cells: 12, micro_batch_tokens: 4096}
recipe: {steps: 100, eval_every: 50, lr: {sweep: [0.1, 0.3]}}
define_tasks:
  reviews:
    files: {train: a.csv, validation: b.csv}
    split: halve_validation
    template: "review: {text}"
    label: verdict
    labels: [bad, good]
    metrics: [accuracy, f1]
    selection: f1
  scores: {kind: regression, hub: "owner/name:config", fields: {a: text}, label: score, metrics: [pearson]}
methods:
  majority:
  prompt_tuning: {prompt_length: 20, recipe: {lr: 0.2}}
  short: {method: prompt_tuning, prompt_length: {sweep: [5, 10]}}
  dept: {prompt_length: 12, rank: 4}
exceptions:
  - where: {tasks: [cb], methods: [dept]}
    hp: {rank: 7}
    recipe: {steps: 20}
"""


class Suites:
    """Suite files: the shipped ones and one that uses every key."""

    def __init__(self) -> None:
        self.texts = [
            OWN_SUITE,
            *((ROOT / "suites" / f"{name}.yaml").read_text() for name in ("quickstart", "methods")),
        ]
        self.trees = [json.loads(json.dumps(YAML(typ="safe", pure=True).load(text))) for text in self.texts]
        self.specs = {name: found.spec for name, found in discover().items()}
        self.pool = ["cb", "dept", "micro-t5", {"sweep": [1, 2]}, {"sweep": []}, [1, 2], "accept-2024", 3, 0.1, None]

    def make(self, rng: random.Random, folder: Path) -> Callable[[], None]:
        path = folder / "suite.yaml"
        index = rng.randrange(len(self.texts))
        if rng.random() < 0.6:
            tree = mutated(rng, self.trees[index], self.pool)
            path.write_text(json.dumps(tree, indent=1 if rng.random() < 0.5 else None))
        else:
            path.write_bytes(damaged(rng, self.texts[index].encode()))
        key = rng.choice(
            ["recipe.steps", "recipe.lr", "methods.dept.rank", "tuning.seeds", "protocol.lr_grid.added", "x.y"]
        )
        value = rng.choice([*STRANGE_TEXTS, "3", "[1, 2]", "{sweep: [1]}"])
        return lambda: self.read(path, {key: value} if rng.random() < 0.2 else {}, folder / "results")

    def read(self, path: Path, settings: dict[str, str], results: Path) -> None:
        parsed = {key: parse_value(value) for key, value in settings.items()}
        suite = load_suite(path, Overrides(settings=parsed))
        groups = expand_suite(suite, self.specs, {name: task.spec for name, task in suite_tasks(suite).items()})
        for cell in (cell for group in groups for cell in group.cells.values()):
            assert ResultStore(results).path(cell).resolve().is_relative_to(results.resolve()), "a path escapes"


class Results:
    """Results folders of which one JSON, or the predictions beside it, came from somebody else."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "valid"
        for seed in (1, 2):
            for index, lr in enumerate((0.1, 0.2) if seed == 1 else (0.1,)):
                store(self.folder, "one", "cb", seed, *answers(70 + seed, 90), lr=lr, index=index)
            store(self.folder, "two", "cb", seed, *answers(60 + seed, 90))
        store(self.folder, "one", "stsb", 1, ["0.5", "x", "3.0"], [["1.0"], ["2.0"], ["3.0"]], "pearson", labels=())
        self.paths = [path for path, _ in ResultStore(self.folder).scan()]
        self.pool = ["done", "failed", {}, [], 1, 50.0, "accuracy", "f1", "macro_f1", "matthews", "pearson", "token_f1",
                     "exact_match", "spearman", "hp.rank", "recipe.max_source_length", "2026", "test"]  # fmt: skip
        frequent = [self.report, self.tidy, self.checked, self.score]
        self.acts: list[Callable[[Path, random.Random], None]] = [*frequent, *frequent, self.judged]

    def make(self, rng: random.Random, folder: Path) -> Callable[[], None]:
        results = folder / "results"
        shutil.copytree(self.folder, results)
        path = results / rng.choice(self.paths).relative_to(self.folder)
        kind = rng.random()
        if kind < 0.65:
            content = mutated(rng, json.loads(path.read_text()), self.pool)
            if isinstance(content, dict) and rng.random() < 0.9:
                content["checksum"] = checksum(content)  # whoever forges a result can do that too
            path.write_text(json.dumps(content))
        elif kind < 0.8:
            path.write_bytes(damaged(rng, path.read_bytes()))
        else:
            self.forge_predictions(rng, path)
        if rng.random() < 0.05:
            (results / "loop").symlink_to(results)
        act = rng.choice(self.acts)
        return lambda: act(results, rng)

    def forge_predictions(self, rng: random.Random, path: Path) -> None:
        """Other predictions, with a JSON that vouches for them."""
        import hashlib

        file, content = predictions_path(path), json.loads(path.read_text())
        if rng.random() < 0.5:
            file.write_bytes(damaged(rng, file.read_bytes()))
        else:
            texts = [text for text in STRANGE_TEXTS if text.encode("utf-8", "ignore").decode() == text]
            columns: dict[str, Any] = {
                "split": [rng.choice(["dev", "test", "x", None]) for _ in range(9)],
                "row": [rng.choice([0, 1, -1, None, 2**31]) for _ in range(9)],
                "references": [rng.choice([[], None, [rng.choice(texts)], ["1"], [None]]) for _ in range(9)],
                "prediction": [rng.choice([*texts, None, "1"]) for _ in range(9)],
            }
            if rng.random() < 0.3:
                columns[rng.choice([*columns])] = [rng.choice([1.5, 2, None])] * 9
            if rng.random() < 0.2:
                columns.pop(rng.choice([*columns]))
            pq.write_table(pa.table(columns), file)
        content["files"]["predictions"] = hashlib.sha256(file.read_bytes()).hexdigest()
        path.write_text(json.dumps(content | {"checksum": checksum(content)}))

    def report(self, results: Path, rng: random.Random) -> None:
        boards = collect_boards(result for _, result in ResultStore(results).scan())
        form = rng.choice(FORMS)
        text = render_boards(boards, form, True, [])
        assert form != "html" or "<script>alert" not in text, "the page runs a script of a result"

    def judged(self, results: Path, rng: random.Random) -> None:
        scanned = list(ResultStore(results).scan())
        boards = collect_boards(result for _, result in scanned)
        render_boards(boards, "json", False, judge(boards, scanned))

    def tidy(self, results: Path, rng: random.Random) -> None:
        load_results(results)

    def checked(self, results: Path, rng: random.Random) -> None:
        verify_folder(results)

    def score(self, results: Path, rng: random.Random) -> None:
        rescore_folder(ResultStore(results).scan())


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _separated(rows: list[dict[str, Any]], mark: str) -> bytes:
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(mark.join(line) for line in lines).encode("utf-8", "replace")


ROWS = [{"premise": f"premise {i}", "hypothesis": f"so {i}", "label": i % 3, "idx": i} for i in range(8)]
WSC = [{"text": "Mark told Pete many lies about himself .", "target": {"span1_text": "Mark", "span1_index": 0,
        "span2_text": "himself", "span2_index": 6}, "label": i % 2 == 0} for i in range(6)]  # fmt: skip
MULTIRC = [{"passage": {"text": "<b>Sent 1: </b>A.<br>", "questions": [{"question": "Who?", "answers": [
            {"text": "A", "label": 1}, {"text": "B", "label": 0}]}]}} for _ in range(4)]  # fmt: skip
RECORD = [{"passage": {"text": "Ada met Bob.\n@highlight\nThey talked", "entities": [{"start": 0, "end": 2}]},
           "qas": [{"query": "@placeholder talked", "answers": [{"text": "Ada"}]}]} for _ in range(4)]  # fmt: skip
SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Rome is old .", "qas": [
    {"question": "What?", "answers": [{"text": "Rome", "answer_start": 0}]}] * 3}]}]}  # fmt: skip
MRQA = [{"header": {"dataset": "x"}}, *({"context": "Rome is old .", "qas": [{"question": "What?", "answers": ["Rome"],
         "detected_answers": [{"text": "Rome"}]}]} for _ in range(3))]  # fmt: skip
STSB = [{"index": i, "sentence1": "a", "sentence2": "b", "score": i / 2} for i in range(8)]
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + "1\t2\t3\ta\tb\t1\n" * 6
POOL = ["a text", 0, 1, 2, "1", "neutral", True, None, [], {}, ["a"], {"text": ["a"]}, -1, 0.5, "entailment", "nan"]


def make_rows(task: str, suffix: str) -> Callable[[random.Random, Path], Callable[[], None]]:
    """Declared files of a format: rows of which some are strange, or bytes of which some are."""

    def make(rng: random.Random, folder: Path) -> Callable[[], None]:
        rows: Any = {"cb": ROWS, "stsb": STSB}[task]
        if rng.random() < 0.5 and suffix != "parquet":
            changed = [row for row in mutated(rng, rows, POOL) if isinstance(row, dict)] or rows
            content = _in_format(changed, suffix)
        elif suffix == "parquet" and rng.random() < 0.5:
            content = _strange_parquet(rng, rows)
        else:
            content = damaged(rng, _in_format(rows, suffix))
        files = {}
        for split in ("train", "validation"):
            files[split] = folder / f"{split}.{suffix}"
            files[split].write_bytes(content if split == "train" or rng.random() < 0.5 else _in_format(rows, suffix))
        declared = replace(TASKS[task], files={split: str(file) for split, file in files.items()})
        return lambda: _load(declared, None)

    return make


def _load(task: Any, folder: Path | None) -> None:
    data = load_task(task, folder)
    assert data.train, "a task without rows"


def _in_format(rows: list[dict[str, Any]], suffix: str) -> bytes:
    if suffix == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    if suffix in ("csv", "tsv"):
        return _separated(rows, "," if suffix == "csv" else "\t")
    return gzip.compress(_jsonl(rows)) if suffix.endswith("gz") else _jsonl(rows)


def _strange_parquet(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    """A table whose columns are of types that nobody expects."""
    length = len(rows)
    columns: dict[str, Any] = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    strange = [
        pa.array([b"\xff\xfe"] * length, pa.binary()),
        pa.array([b"\xff\xfe"] * length, pa.binary()).cast(pa.binary()).view(pa.string()),
        pa.array([2**62] * length, pa.int64()).view(pa.timestamp("us")),
        pa.array([2**62] * length, pa.int64()).view(pa.timestamp("ns")),
        pa.array([2**62] * length, pa.int64()).view(pa.duration("s")),
        pa.array([float("nan")] * length, pa.float32()),
        pa.nulls(length),
        pa.array([[{"a": [1]}]] * length),
        pa.array(["a\x00b"] * length).dictionary_encode(),
        pa.array([True] * length),
        pa.array([{"text": ["x"]}] * length),
        pa.array(["x" * 100_000] * length),
    ]
    for _ in range(rng.choice([1, 1, 2])):
        columns[rng.choice([*columns, "more"])] = rng.choice(strange)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wsc": ("superglue/WSC", {"train.jsonl": WSC, "val.jsonl": WSC}),
    "multirc": ("superglue/MultiRC", {"train.jsonl": MULTIRC, "val.jsonl": MULTIRC}),
    "record": ("superglue/ReCoRD", {"train.jsonl": RECORD, "val.jsonl": RECORD}),
    "squad": ("squad", {"train-v1.1.json": SQUAD, "dev-v1.1.json": SQUAD}),
    "searchqa": ("mrqa", {"train/SearchQA.jsonl.gz": MRQA, "dev/SearchQA.jsonl.gz": MRQA}),
    "cola": ("glue/CoLA", {"train.tsv": "gj04\t1\t\tA cat .\n" * 6, "dev.tsv": "gj04\t0\t*\tCat a .\n" * 6}),
    "qqp": ("glue/QQP", {"train.tsv": QQP, "dev.tsv": QQP}),
}  # fmt: skip


def make_layout(rng: random.Random, folder: Path) -> Callable[[], None]:
    """An official download of which one file is not what it was."""
    name = rng.choice([*LAYOUTS])
    place, files = LAYOUTS[name]
    victim = rng.choice([*files])
    for file, rows in files.items():
        path = folder / place / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_official(rng, rows, file == victim, path.suffix == ".gz", path.suffix == ".json"))
    return lambda: _load(TASKS[name], folder)


def _official(rng: random.Random, rows: Any, is_victim: bool, packed: bool, document: bool) -> bytes:
    by_structure = is_victim and rng.random() < 0.6 and not isinstance(rows, str)
    if by_structure:
        rows = mutated(rng, rows, POOL)
    if isinstance(rows, str):
        content = rows.encode()
    elif document or not isinstance(rows, list):
        content = json.dumps(rows).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if is_victim and not by_structure and rng.random() < 0.7:
        content = damaged(rng, content)
        is_victim = False
    content = gzip.compress(content) if packed else content
    return damaged(rng, content) if is_victim and not by_structure else content


def targets(scratch: Path) -> Iterator[Target]:
    """Everything that is fuzzed; `scratch` holds the valid examples."""
    yield Target("suite files", 30, Suites().make)
    yield Target("results", 15, Results(scratch).make)
    yield Target("jsonl", 12, make_rows("cb", "jsonl"))
    yield Target("json lines, packed", 4, make_rows("cb", "jsonl.gz"))
    yield Target("csv", 10, make_rows("cb", "csv"))
    yield Target("tsv", 8, make_rows("stsb", "tsv"))
    yield Target("parquet", 9, make_rows("cb", "parquet"))
    yield Target("official layouts", 12, make_layout)
