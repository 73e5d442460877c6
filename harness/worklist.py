"""What is left of a plan, given out bundle by bundle as this process can claim it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import stop
from harness.bundle import Bundle
from harness.caches import cached_task
from harness.checkpoint import CheckpointPlan, drop_markers, read_header
from harness.claims import Claims
from harness.loading import best_device, fingerprint
from harness.packing import pack
from harness.planning import Plan
from harness.provenance import collect
from harness.schema import Cell, Key, Result

SECONDS = {"s": 1, "m": 60, "h": 3_600}


class Worklist:
    """Claims cells for this process, and takes in what other processes finish."""

    def __init__(
        self, plan: Plan, claims: Claims, replaced: Mapping[Key, Result], on_found: Callable[[Result], None]
    ) -> None:
        """`replaced` are stored results that are to be made again."""
        self.plan = plan
        self.claims = claims
        self.replaced = replaced
        self.on_found = on_found
        self.given: set[Key] = set()
        """Cells handed to the engine."""

    def round(self) -> Iterator[Bundle]:
        """Claimed bundles: what a checkpoint has begun, else the grids, else the winners' further seeds.

        One kind a round, so that a run that was interrupted packs the same bundles as one that was not.
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
        """Take in results that other processes have stored; return whether there were any."""
        found = [result for cell in self.plan.pending() if (result := self._stored(cell)) is not None]
        for result in found:
            self._take_in(result)
        return bool(found)

    def tidy(self) -> None:
        """Drop the checkpoints of cells that are all finished."""
        self._begun([])

    def _stored(self, cell: Cell) -> Result | None:
        """A result that came since this process made its plan."""
        result = self.plan.load(cell)
        return None if result == self.replaced.get(cell.key) else result

    def _take_in(self, result: Result) -> None:
        self.plan.record(result)
        self.on_found(result)

    def _claimed(self, bundles: Sequence[Bundle]) -> Iterator[Bundle]:
        """Bundles of what could be claimed; first those that nobody has begun to claim, then single cells of others."""
        for whole in (True, False):
            for bundle in bundles:
                stop.check()
                cells = self._claim(bundle, whole)
                if cells:
                    self.given |= {cell.key for cell in cells}
                    yield self._with_checkpoint(replace(bundle, cells=tuple(cells)))

    def _claim(self, bundle: Bundle, whole: bool) -> list[Cell]:
        """Claim the cells of a bundle that are still missing; those of a race all together or not at all."""
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
        """Say where the bundle's checkpoint goes; one that it continues from stays where it is."""
        if bundle.checkpoint is not None:
            return bundle
        key, every = self._key(bundle), self.plan.suite.file.execution.checkpoint_every
        if every == "off" or key is None:
            return bundle
        name = _digest([key, *(cell.key for cell in bundle.cells)])
        return replace(bundle, checkpoint=self._checkpoint(self._folder / f"{name}.safetensors", key, bundle.cells))

    def _begun(self, pending: Sequence[Cell]) -> list[Bundle]:
        """Bundles as their checkpoints name them, less what is finished by now; the newest first."""
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
            if any(sources[cell.key] != self._source(cell) for cell in cells):
                continue
            if not cells and set(header.keys) <= known and not pending:
                path.unlink(missing_ok=True)
            bundles = pack(self.plan, cells) if cells else []
            if len(bundles) == 1 and header.key == self._key(bundles[0]):
                begun.append(replace(bundles[0], checkpoint=self._checkpoint(path, header.key, cells)))
                for cell in cells:
                    del left[cell.key]
        return begun

    def _checkpoint(self, path: Path, key: str, cells: Iterable[Cell]) -> CheckpointPlan:
        seconds, steps = interval(self.plan.suite.file.execution.checkpoint_every)
        return CheckpointPlan(path, key, seconds, steps, {cell.key: self._source(cell) for cell in cells})

    def _source(self, cell: Cell) -> str:
        starts = [start.sha256 or "" for start in self.plan.start_files(cell)]
        return " ".join([self.plan.methods[cell.method].spec.source_sha256, *starts])

    def _key(self, bundle: Bundle) -> str | None:
        """Digest of all that a state must have in common with who goes on from it; None for what has no state."""
        methods = [self.plan.methods[cell.method] for cell in bundle.cells]
        if any(method.spec.is_rule or method.cls is None for method in methods):
            return None
        try:
            rows = cached_task(bundle.cells[0], bundle.data_dir, bundle.suite_folder).record.fingerprint
        except Exception:  # the bundle will say so
            return None
        made = collect(best_device())
        versions = [made["harness"], made["commit"], made["versions"].get("torch")]
        weights = fingerprint(bundle.backbone, bundle.cells[0].recipe.quantization)
        processes = [bundle.processes, bundle.sharding]
        return _digest([rows, weights, bundle.micro_batch_tokens, made["device"], versions, processes])

    @property
    def _folder(self) -> Path:
        return self.plan.store.root / ".checkpoints" / self.plan.suite.file.suite


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
