"""Pack a bundle for a worker on another machine, with the files that may exist only on the driver's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.backbone import SHIPPED
from harness.method import SourceFile
from harness.runner.ray.worker import Parcel
from harness.suite import NO_TEXT, SHIPPED_TEXT
from harness.train import Bundle


@dataclass(frozen=True)
class StoredFile:
    """A file's content in Ray's object store; a worker calls it to fetch the content if it needs it."""

    reference: Any

    def __call__(self) -> bytes:
        import ray

        content: bytes = ray.get(self.reference)
        return content


class Parcels:
    """Makes the parcels of a run. A file of tensors that many cells start from is put into the object store once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._sent: dict[str, StoredFile] = {}

    def parcel(self, bundle: Bundle, is_rule: bool, marker: Path | None) -> Parcel:
        """A bundle with the content of its method files, the tensors that its cells start from, and its folders' paths.

        Rows and weights are not sent: they may be many gigabytes, so every machine must have them.
        """
        starts = list(_starts(bundle))
        methods = {start.method_file: start.method_file.read_bytes() for start in starts if start.method_file}
        return Parcel(
            bundle,
            {name: path.read_bytes() for name, path in bundle.method_files.items()},
            is_rule,
            Path.cwd(),
            _folders(bundle),
            marker,
            methods,
            {start.sha256: self._send(start.sha256, start.path) for start in starts if start.sha256},
        )

    def _send(self, sha256: str, path: Path) -> StoredFile:
        if sha256 not in self._sent:
            self._sent[sha256] = StoredFile(self._ray.put(path.read_bytes()))
        return self._sent[sha256]


def _starts(bundle: Bundle) -> Iterator[SourceFile]:
    """The files that cells start from and that exist; a cell whose file is missing fails when it is trained."""
    for files in bundle.starts.values():
        yield from (start for start in files if not start.problem and start.path.exists())


def _folders(bundle: Bundle) -> dict[str, Path]:
    """Folders that a bundle needs on the worker's machine, by kind."""
    folders = {}
    if bundle.data_dir is not None:
        folders["data"] = Path(bundle.data_dir)
    if bundle.backbone not in SHIPPED and Path(bundle.backbone).is_dir():
        folders["backbone"] = Path(bundle.backbone)
    first = bundle.cells[0]
    parts = [first] if first.mixture is None else first.mixture.parts
    texts = {cell.recipe.forgetting_text for cell in bundle.cells} - {NO_TEXT, SHIPPED_TEXT}
    if texts or any(part.definition is not None for part in parts):
        folders["suite"] = Path(bundle.suite_folder)
    return {what: folder.absolute() for what, folder in folders.items()}
