"""Claimed bundles: the missing cells of a plan, bundle by bundle, as far as this process can claim them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import stop
from harness.backbone import best_device, local_tokenizer, weights_fingerprint
from harness.data import cell_rows, template_digest
from harness.provenance import code_digest, collect_provenance
from harness.results import Result
from harness.runner.claims import Claims
from harness.runner.pack import pack
from harness.runner.plan import Plan
from harness.suite import Cell, Key
from harness.train import Bundle, CheckpointPlan, drop_markers, read_header

SECONDS = {"s": 1, "m": 60, "h": 3_600}
COMPUTING = ("torch", "transformers", "peft")
"""Libraries that compute the steps of a training."""


class ClaimedBundles:
    """Gives out bundles whose cells it has claimed, and adds to the plan what other processes finish."""

    def __init__(
        self,
        plan: Plan,
        claims: Claims,
        replaced: Mapping[Key, Result],
        on_found: Callable[[Result], None],
        say: Callable[[str], None],
    ) -> None:
        """`replaced` holds stored results that shall be made again; `on_found` gets those of other processes.

        `say` tells the user of checkpoints that are passed over.
        """
        self.plan = plan
        self.claims = claims
        self.replaced = replaced
        self.on_found = on_found
        self.say = say
        self._passed_over: set[Path] = set()
        self.given: set[Key] = set()
        """Cells that an engine has got, by key."""

    def round(self) -> Iterator[Bundle]:
        """Claimed bundles of one kind: those with a checkpoint, else the grids, else the winners' further seeds.

        One kind a round: a run that was interrupted then packs the same bundles as one that was not.
        """
        self.refresh()
        search, further = self.plan.stages()
        begun = self._begun([*search, *further])
        begun_keys = {cell.key for bundle in begun for cell in bundle.cells}
        num_given = len(self.given)
        yield from self._claimed(begun)
        for cells in (search, further):
            if len(self.given) == num_given:
                rest = [cell for cell in cells if cell.key not in begun_keys]
                yield from self._claimed(pack(self.plan, rest))

    def refresh(self) -> bool:
        """Add results that other processes have stored to the plan; return whether there were any."""
        found = [result for cell in self.plan.pending() if (result := self._stored(cell)) is not None]
        for result in found:
            self._take_in(result)
        return bool(found)

    def tidy(self) -> None:
        """Delete the checkpoints of which all cells are finished."""
        self._begun([])

    def _stored(self, cell: Cell) -> Result | None:
        """The result that another process has stored since this one made its plan, or None."""
        result = self.plan.load(cell)
        return None if result == self.replaced.get(cell.key) else result

    def _take_in(self, result: Result) -> None:
        """Add a result of another process to the plan."""
        self.plan.record(result)
        self.on_found(result)

    def _claimed(self, bundles: Sequence[Bundle]) -> Iterator[Bundle]:
        """The bundles, each with the cells of it that could be claimed.

        First those that no other process has begun to claim, then what is left of the others. So several processes
        share out whole bundles before they divide one.
        """
        for whole in (True, False):
            for bundle in bundles:
                stop.raise_if_stopped()
                cells = self._claim(bundle, whole)
                if cells:
                    self.given |= {cell.key for cell in cells}
                    yield self._with_checkpoint(replace(bundle, cells=tuple(cells)))

    def _claim(self, bundle: Bundle, whole: bool) -> list[Cell]:
        """Claim the cells of a bundle that are still missing, and return them.

        The cells of a race are claimed all together or not at all. With `whole`, a bundle is also left alone if another
        process holds its first missing cell.
        """
        mine: list[Cell] = []
        for cell in bundle.cells:
            if self.plan.has_result(cell) or cell.key in self.given:
                continue  # stored, or in training on a worker of this process
            if self.claims.take(cell):
                found = self._stored(cell)
                if found is None:
                    mine.append(cell)
                else:  # finished between the last look and the claim
                    self.claims.release(cell)
                    self._take_in(found)
            elif bundle.races or (whole and not mine):
                for taken in mine:
                    self.claims.release(taken)
                return []
        return mine

    def _with_checkpoint(self, bundle: Bundle) -> Bundle:
        """The bundle with a checkpoint file; one that goes on from a checkpoint keeps its file."""
        if bundle.checkpoint is not None:
            return bundle
        key, every = self._key(bundle), self.plan.suite.file.execution.checkpoint_every
        if every == "off" or key is None:
            return bundle
        name = _digest([key, *(cell.key for cell in bundle.cells)])
        return replace(bundle, checkpoint=self._checkpoint(self._folder / f"{name}.safetensors", key, bundle.cells))

    def _begun(self, pending: Sequence[Cell]) -> list[Bundle]:
        """The bundles that have a checkpoint, without the cells that are finished by now; the newest first.

        A checkpoint is passed over unless its cells still make one bundle with the same key and the same method files.
        Without `pending` cells, checkpoints of which all cells are finished are deleted.
        """
        drop_markers(self._folder)
        if self.plan.suite.file.execution.checkpoint_every == "off":
            return []
        left = {cell.key: cell for cell in pending}
        known = {cell.key for group in self.plan.groups for cell in group.cells.values()}
        begun = []
        for path in sorted(self._folder.glob("*.safetensors"), key=_modified, reverse=True):
            header = read_header(path)
            if header is None:
                continue
            sources = {key: cell["source"] for key, cell in zip(header.keys, header.cells, strict=True)}
            cells = [left[key] for key in header.keys if key in left]
            if any(sources[cell.key] != self._origin(cell) for cell in cells):
                self._pass_over(path, cells, header.step, "another method file or starting tensor")
                continue
            if not cells and set(header.keys) <= known and not pending:
                path.unlink(missing_ok=True)
            bundles = pack(self.plan, cells) if cells else []
            key = self._key(bundles[0]) if len(bundles) == 1 else None
            if header.key == key:
                begun.append(replace(bundles[0], checkpoint=self._checkpoint(path, header.key, cells)))
                for cell in cells:
                    del left[cell.key]
            elif cells:
                self._pass_over(path, cells, header.step, _said_to_differ(header.key, key))
        return begun

    def _pass_over(self, path: Path, cells: Sequence[Cell], step: int, why: str) -> None:
        """Say once that cells start anew, since hours of training may be in their checkpoint."""
        if path not in self._passed_over:
            self._passed_over.add(path)
            labels = ", ".join(dict.fromkeys(cell.label for cell in cells))
            self.say(f"{cells[0].task}: the checkpoint of {labels} at step {step:,} is passed over: {why}")

    def _checkpoint(self, path: Path, key: str, cells: Iterable[Cell]) -> CheckpointPlan:
        """Where and how often the checkpoint of these cells is written."""
        seconds, steps = interval(self.plan.suite.file.execution.checkpoint_every)
        return CheckpointPlan(path, key, seconds, steps, {cell.key: self._origin(cell) for cell in cells})

    def _origin(self, cell: Cell) -> str:
        """Hashes of the method's file and of the tensors that a cell starts from."""
        starts = [start.sha256 or "" for start in self.plan.start_files(cell)]
        return " ".join([self.plan.methods[cell.method].spec.source_sha256, *starts])

    def _key(self, bundle: Bundle) -> str | None:
        """Digests of all that a checkpoint must share with a run that goes on from it; None for a rule or broken file.

        Device, versions and the program's code are in it: on another device, or with another PyTorch, the numbers would
        differ. Each has a digest of its own, so that one can say which of them is another.
        """
        methods = [self.plan.methods[cell.method] for cell in bundle.cells]
        if any(method.spec.is_rule or method.cls is None for method in methods):
            return None
        try:
            rows = cell_rows(bundle.cells[0], bundle.data_dir, bundle.suite_folder).record.fingerprint
        except Exception:  # training the bundle will raise it again, and record it
            return None
        made = collect_provenance(best_device())
        task = self.plan.tasks[bundle.cells[0].task]
        chats = any(part.form in ("chat", "auto") for part in task.parts or (task,))
        parts: dict[str, object] = {
            "rows": rows,
            "weights": weights_fingerprint(bundle.backbone, bundle.cells[0].recipe.quantization),
            "chat template": template_digest(local_tokenizer(bundle.backbone)) if chats else None,  # it makes the ids
            "code of the program": [made["harness"], code_digest()],
            "versions of libraries": [made["versions"].get(name) for name in COMPUTING],
            "device": made["device"],
            "bundles": [bundle.micro_batch_tokens, bundle.processes, bundle.sharding],
        }
        return json.dumps({name: _digest(part) for name, part in parts.items()})

    @property
    def _folder(self) -> Path:
        return self.plan.store.root / ".checkpoints" / self.plan.suite.file.suite


def _said_to_differ(stored: str, key: str | None) -> str:
    """Which parts of two keys differ; without a key the cells make several bundles today."""
    if key is None:
        return "other bundles"
    then = json.loads(stored) if stored.startswith("{") else {}  # keys had no parts once
    return ", ".join(f"other {name}" for name, digest in json.loads(key).items() if then.get(name) != digest)


def interval(text: str) -> tuple[float | None, int | None]:
    """`checkpoint_every` as (seconds, steps), one of them None; both for "off"."""
    found = re.fullmatch(r"(\d+) ?(s|m|h|steps)", text)
    if found is None:
        return None, None
    if found[2] == "steps":
        return None, int(found[1])
    return float(int(found[1]) * SECONDS[found[2]]), None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
