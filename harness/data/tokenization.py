"""Token ids of a split: sources and targets as arrays, references cut at the same limits, and a cache on disk.

A task is tokenised once per tokenizer and length limit, not once per process. The files are in
$XDG_CACHE_HOME/peft-harness/tokens (~/.cache if that is unset). HARNESS_CACHE names another folder than `peft-harness`;
`HARNESS_CACHE=off` keeps nothing. Any file may be deleted at any time.

Shapes: N rows of a split, K tasks of a mixture, T token ids of the longest source or target among the rows asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from harness.backbone import Backbone, Writing
from harness.data.encoded_choices import EncodedChoices, join_choices
from harness.data.examples import Example, TaskData
from harness.data.prompt_form import make_form
from harness.data.ragged import Ids, joined_offsets, padded, ragged
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.suite import LabelTokens

FORMAT = 5
"""Part of every file's name. Raise it when `encode` gives other ids for the same rows, or refuses some of them, so that
old files are left."""
ARRAYS = ("source_ids", "source_offsets", "target_ids", "target_offsets")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
"""What NumPy raises on a damaged file, depending on where the damage is."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split of N rows, without padding: row i is `ids[offsets[i]:offsets[i + 1]]`.

    Rows differ much in length, so one padded array would be several times as large.
    """

    source_ids: Ids
    """[number of source tokens in all]"""
    source_offsets: Ids
    """[N + 1], the first is 0"""
    target_ids: Ids
    """[number of target tokens in all]"""
    target_offsets: Ids
    """[N + 1], the first is 0"""
    tasks: Ids | None = None
    """[N], the index of the row's task in a mixture; None for a single task."""
    num_cut_sources: int = 0
    """Number of rows whose source was longer than the limit and was cut."""
    num_cut_targets: int = 0
    """Number of rows whose target was cut."""
    choices: EncodedChoices | None = None
    """What is chosen from by likelihood; None where all answers are written. Rows to train on need none."""

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source_lengths(self, rows: Ids) -> Ids:
        """Return the number of source tokens of each of `rows`, [len(rows)]."""
        lengths: Ids = self.source_offsets[rows + 1] - self.source_offsets[rows]
        return lengths

    def target_lengths(self, rows: Ids) -> Ids:
        """Return the number of target tokens of each of `rows`, [len(rows)]."""
        lengths: Ids = self.target_offsets[rows + 1] - self.target_offsets[rows]
        return lengths

    def sources(self, rows: Ids, pad: int) -> Ids:
        """Return the source ids of `rows`, padded on the right with `pad`, [len(rows), T]."""
        return padded(self.source_ids, self.source_offsets, rows, pad)

    def targets(self, rows: Ids) -> Ids:
        """Return the target ids of `rows`, padded on the right with -100, [len(rows), T]; the loss ignores -100."""
        return padded(self.target_ids, self.target_offsets, rows, -100)


def encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Tokenise a split for a backbone, in the task's form. Sources are cut on the right, targets end with an end token.

    Raises UserError where the backbone's chat template cannot be used, or takes too many tokens itself.
    """
    form = make_form(task, backbone)
    sources, num_cut = form.source_ids(examples, max_source_length)
    limit = task.target_limit
    # many rows share a target, so each text is tokenised once; of a source its end decides what stands between the two
    keys = [(example.target, example.source[-1:]) for example in examples]
    whole = {key: form.target_ids(key[0], None, key[1]) for key in set(keys)}
    long = {key for key, ids in whole.items() if limit is not None and len(ids) > limit}
    known = whole | {key: form.target_ids(key[0], limit, key[1]) for key in long}
    targets = [known[key] for key in keys]
    num_long = sum(key in long for key in keys)
    return Encoded(*ragged(sources), *ragged(targets), num_cut_sources=num_cut, num_cut_targets=num_long)


def require_writable(examples: Sequence[Example], backbone: Backbone, task: Task) -> None:
    """Raise UserError for an answer that nobody could write in the task's form. Labels are the suite's own words."""
    if task.kind == "text":
        form = make_form(task, backbone)
        for example in examples:
            form.require_writable(example)


def has_cut_references(task: Task) -> bool:
    """Return whether references are cut like the targets of training, as DePT's code does for its text tasks."""
    return any(map(has_cut_references, task.parts)) or (task.kind == "text" and task.references == "first")


def cut_references(data: TaskData, tokenizer: Any) -> TaskData:
    """Cut the references of dev and test to the target limit, where the task is scored so (`has_cut_references`).

    This holds for rules as well, with the tokenizer of the backbone whose table they stand in: all rows of a table
    column must have the same references.
    """
    if data.parts:
        parts = tuple(cut_references(part, tokenizer) for part in data.parts)
        dev, test = ([row for part in parts for row in part.split(name)] for name in ("dev", "test"))
        return replace(data, parts=parts, dev=dev, test=test)
    task = data.task
    if not has_cut_references(task):
        return data
    limit = task.max_target_length - 1  # the end token takes one

    def cut(example: Example) -> Example:
        ids = list(tokenizer(example.target, add_special_tokens=False)["input_ids"])
        if len(ids) <= limit:
            return example
        return replace(example, references=(tokenizer.decode(ids[:limit], skip_special_tokens=True).strip(),))

    return replace(data, dev=[cut(row) for row in data.dev], test=[cut(row) for row in data.test])


def max_new_tokens(task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label") -> int:
    """Most tokens of a written answer: the longest label with its end, or the task's own limit.

    As `recipe.label_tokens` says, labels get more steps than they need; never fewer. A text without a limit of its own
    gets the tokens of the longest one that is trained on, less the start token, as in the papers' code.
    """
    if task.parts:
        return max(max_new_tokens(part, backbone, label_tokens) for part in task.parts)
    if task.kind == "choice":
        return 1  # nothing is written
    if task.kind == "classification":
        longest = make_form(task, backbone).longest_target(task.targets)
        wanted = 0 if label_tokens == "longest_label" else label_tokens - 1
        return max(longest, wanted, task.max_new_tokens or 0)
    return task.max_new_tokens or task.max_target_length - 1


def writings(task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label") -> tuple[Writing, ...]:
    """How the answers of a task are written, or of each task of a mixture.

    Tasks of a mixture that set no limit share one, the longest among them, so that their rows are written together.
    """
    parts = task.parts or (task,)
    limits = [max_new_tokens(part, backbone, label_tokens) for part in parts]
    shared = max((limit for part, limit in zip(parts, limits, strict=True) if not part.max_new_tokens), default=0)
    return tuple(
        _writing(part, backbone, limit if part.max_new_tokens else shared)
        for part, limit in zip(parts, limits, strict=True)
    )


def _writing(task: Task, backbone: Backbone, limit: int) -> Writing:
    # texts are decoded without special tokens, so such a text could never be found in one
    vocabulary = backbone.tokenizer.get_vocab() if task.stop else {}
    special = set(getattr(backbone.tokenizer, "all_special_ids", ())) if task.stop else set()
    tokens = {text: vocabulary[text] for text in task.stop if vocabulary.get(text) in special}
    ends = dict.fromkeys([*make_form(task, backbone).end_ids, *tokens.values()])
    return Writing(limit, tuple(ends), task.num_beams, tuple(text for text in task.stop if text not in tokens))


def longest_answer(
    encoded: Mapping[str, Encoded], task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label"
) -> int:
    """Tokens of the longest answer that is trained on or chosen from, in any of the splits, or may be written."""
    trained = max(int(np.diff(split.target_offsets).max(initial=0)) for split in encoded.values())
    ranked = [int(np.diff(split.choices.offsets).max(initial=0)) for split in encoded.values() if split.choices]
    return max(trained, *ranked, max_new_tokens(task, backbone, label_tokens) if backbone.writes_text else 0)


def cached_encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Return what `encode` returns: read from disk if the same rows were tokenised before, else made and stored.

    Raises UserError as `encode` and `require_writable` do.
    """
    require_writable(examples, backbone, task)  # references are no part of what is kept on disk
    folder = cache_folder()
    tokenizer = tokenizer_fingerprint(backbone.tokenizer)
    if folder is None or tokenizer is None:
        return encode(examples, backbone, task, max_source_length)
    limit = task.target_limit
    # everything beside the texts that decides the ids
    layout = "encoder" if backbone.kind.text_marks == "both" else backbone.kind.text_suffix
    form = make_form(task, backbone).settings
    settings = [FORMAT, tokenizer, backbone.eos_id, layout, max_source_length, limit, *form]
    path = folder / "tokens" / f"{_digest(examples, settings)}.npz"
    found = _read(path, len(examples))
    if found is None:
        found = encode(examples, backbone, task, max_source_length)
        _write(path, found)
    return found


def cache_folder() -> Path | None:
    """Return the folder of the cache; None if the user wants no files kept."""
    chosen = os.environ.get("HARNESS_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")  # the standard says to ignore a path that is relative
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "peft-harness"


@functools.lru_cache(maxsize=8)  # to write T5's 32,000 pieces out anew for every split would be wasted work
def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Return a hash of all that decides a tokenizer's ids; None for a tokenizer in Python, which has no text form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # set by whoever called the tokenizer last, and set anew at each call
        rules.pop(state, None)
    # the same rules may give other ids in another release of these libraries
    rules["code"] = [metadata.version("tokenizers"), metadata.version("transformers")]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _digest(examples: Sequence[Example], settings: Sequence[Any]) -> str:
    """Return the name of a file: a hash of the settings and of every text. References are not tokenised."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for example in examples:
        digest.update(json.dumps([*example.read_texts, example.target]).encode())
    return digest.hexdigest()[:32]


def _read(path: Path, num_rows: int) -> Encoded | None:
    """Return what a file holds; None if it is missing or damaged. NumPy's zip format has a checksum for each array."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = [stored[name].astype(np.int64) for name in ARRAYS]
            num_cut_sources, num_cut_targets = map(int, stored["num_cut"])
    except UNREADABLE:
        return None
    # a checksum does not tell that a file belongs to these rows: offsets that do not fit would read out of bounds
    for values, offsets in (arrays[:2], arrays[2:]):
        if values.ndim != 1 or offsets.shape != (num_rows + 1,) or offsets[0] != 0 or offsets[-1] != len(values):
            return None
    return replace(Encoded(*arrays), num_cut_sources=num_cut_sources, num_cut_targets=num_cut_targets)


def _write(path: Path, encoded: Encoded) -> None:
    """Write to a hidden file and rename it, so that no process reads half a file. A folder that refuses is no error.

    Unlike results the file is not flushed to the disk: after a power cut it is damaged, found so, and made again.
    """
    # half the size of the int64 in memory; offsets of more than 2^31 tokens would not fit, and _read would refuse them
    arrays = {name: getattr(encoded, name).astype(np.int32) for name in ARRAYS}
    arrays["num_cut"] = np.array([encoded.num_cut_sources, encoded.num_cut_targets], np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        return


def join_encoded(splits: Sequence[Encoded]) -> Encoded:
    """Return the token arrays of one split of several tasks as one, task after task; each row knows its task."""
    return Encoded(
        np.concatenate([split.source_ids for split in splits]),
        joined_offsets([split.source_offsets for split in splits]),
        np.concatenate([split.target_ids for split in splits]),
        joined_offsets([split.target_offsets for split in splits]),
        np.repeat(np.arange(len(splits)), [len(split) for split in splits]),
        sum(split.num_cut_sources for split in splits),
        sum(split.num_cut_targets for split in splits),
        join_choices([split.choices for split in splits], [len(split) for split in splits]),
    )


def require_known_ids(encoded: Encoded, backbone: Backbone, what: str) -> None:
    """Raise UserError where rows hold a token that the network has no vector for. `what` names the rows."""
    rows = backbone.embedding.num_embeddings
    choices = () if encoded.choices is None else (("choice", encoded.choices.ids),)
    for kind, ids in (("source", encoded.source_ids), ("target", encoded.target_ids), *choices):
        largest = int(ids.max(initial=0))  # max() of no ids at all would raise
        if largest >= rows:
            token = backbone.tokenizer.decode([largest])
            raise UserError(
                f"a {kind} of {what} holds '{token}', id {largest}, backbone '{backbone.name}' has {rows} embeddings",
                hint="The token was added to the tokenizer and not to the network: resize its embedding, or drop it.",
            )
