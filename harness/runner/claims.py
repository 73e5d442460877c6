"""Claims: which process trains which cell, when several processes and machines share a results folder.

A claim is a file below `.claims/` that only one process can create. No lock of the file system is needed: making a hard
link and renaming a file are atomic on NFS too. A claim holds as long as its owner shows signs of life: on the same
machine its process exists, on another one it touches a file of its own every RENEW_S seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from harness.errors import UserError
from harness.suite import Cell

RENEW_S = 20.0
"""Seconds between two signs of life. They are one small request to the file server each."""
EXPIRE_S = 600.0
"""Seconds without a sign after which an owner on another machine counts as dead: 30 signs missed in a row. NFS clients
may see a sign a minute late, and a machine may stall for minutes; too short a time would train a cell twice."""


@dataclass(frozen=True)
class Owner:
    """A process, in a form that no later process with the same number can have."""

    token: str
    """Random; names the file of its signs of life."""
    host: str
    place: str
    """Host, boot and process namespace. Two processes with the same value see each other's process numbers."""
    pid: int
    started: str
    """When it began; see `_started`."""


@dataclass(frozen=True)
class Claim:
    """The content of a claim file."""

    owner: Owner
    nonce: str
    """Random; never used twice, so that a claim which was replaced by another of the same owner is noticed."""


class Claims:
    """The claims of this process on cells of one results folder; use as a context."""

    def __init__(self, root: Path, expire_s: float = EXPIRE_S, renew_s: float = RENEW_S) -> None:
        self.folder = root / ".claims"
        self.expire_s = expire_s
        self.renew_s = renew_s
        self.me = Owner(secrets.token_hex(8), socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()))
        self.held: dict[str, str] = {}
        """Claims of this process: name -> nonce."""
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="claims")

    def __enter__(self) -> Claims:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._show_life()
        except OSError as error:
            raise UserError(f"cannot claim cells: {error.strerror}", where=str(self.folder)) from None
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        with contextlib.suppress(OSError):
            for name in list(self.held):
                self._release(name)
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._sweep()
        with contextlib.suppress(OSError):
            self._sign(self.me.token).unlink(missing_ok=True)
            self.folder.rmdir()  # only where it is empty

    def take(self, cell: Cell) -> bool:
        """Claim a cell, also from a dead owner; return False if a living process has it. Raises OSError."""
        return _name(cell) in self.held or self._take(_name(cell))

    def holds(self, cell: Cell) -> bool:
        """Whether the claim on a cell is still this process's. Another takes it over when this one sleeps too long."""
        name = _name(cell)
        found = self._read(name)
        if found is None or found.nonce != self.held.get(name):
            self.held.pop(name, None)
            return False
        return True

    def release(self, cell: Cell) -> None:
        """Give a claim back; does nothing without one. Raises OSError."""
        if _name(cell) in self.held:
            self._release(_name(cell))

    def _take(self, name: str) -> bool:
        """Claim a name; return False if a living process has it, or is faster."""
        if self._create(name):
            return True
        other = self._read(name)
        if other is None:  # given back at this moment
            return self._create(name)
        return not self._is_alive(other.owner) and self._replace(name, other)

    def _release(self, name: str) -> None:
        """Remove a claim of this process, unless another has taken it over meanwhile."""
        nonce = self.held.pop(name)
        with self._right_to_end(nonce) as granted:
            found = self._read(name) if granted else None
            if found is not None and found.nonce == nonce:
                self._path(name).unlink(missing_ok=True)

    def _replace(self, name: str, dead: Claim) -> bool:
        """Put a claim of this process in the place of a dead one; of several processes that try, one succeeds."""
        with self._right_to_end(dead.nonce) as granted:
            found = self._read(name) if granted else None
            if found is None or found.nonce != dead.nonce:
                return False
            nonce, aside = self._write_aside()
            os.replace(aside, self._path(name))
            self.held[name] = nonce
            return True

    @contextlib.contextmanager
    def _right_to_end(self, nonce: str) -> Iterator[bool]:
        """The right to remove or replace the claim with this nonce, for one process at a time.

        It is a claim itself, so that one of a dead process can be taken over. While it is held, a claim found with
        this nonce stays: whoever changes it has had this right, and gives it back only afterwards.
        """
        name = f"end-{nonce}"
        granted = self._take(name)
        try:
            yield granted
        finally:
            if granted:
                del self.held[name]
                self._path(name).unlink(missing_ok=True)

    def _create(self, name: str) -> bool:
        """Create a claim unless there is one; return whether it was created.

        The file is written aside and then linked to its name, so nobody reads half a claim.
        """
        nonce, aside = self._write_aside()
        try:
            os.link(aside, self._path(name))
        except FileExistsError:
            # when the answer to a request is lost, an NFS client repeats it and finds the link that it made itself
            if os.stat(aside).st_nlink != 2:
                return False
        except OSError:  # a file system without hard links
            try:
                with open(self._path(name), "xb") as file:
                    file.write(aside.read_bytes())
            except FileExistsError:
                return False
        finally:
            aside.unlink(missing_ok=True)
        self.held[name] = nonce
        return True

    def _write_aside(self) -> tuple[str, Path]:
        """Write a new claim under a name that nobody looks at; return its nonce and path."""
        nonce = secrets.token_hex(8)
        aside = self.folder / f"{self.me.token}.{nonce}.tmp"
        aside.write_text(json.dumps(asdict(Claim(self.me, nonce))))
        return nonce, aside

    def _read(self, name: str) -> Claim | None:
        """Read a claim; None if there is none. A damaged one belongs to nobody, so that it can be taken over."""
        try:
            text = self._path(name).read_text()
        except FileNotFoundError:
            return None
        try:
            content = json.loads(text)
            return Claim(Owner(**content["owner"]), str(content["nonce"]))
        except (ValueError, TypeError, KeyError):
            return Claim(Owner("nobody", "", "", 0, ""), hashlib.sha256(text.encode()).hexdigest()[:16])

    def _is_alive(self, owner: Owner) -> bool:
        """Whether an owner still runs: on this machine by its process, elsewhere by its last sign of life."""
        if owner.place == self.me.place:
            return _started(owner.pid) == owner.started
        try:
            with open(self._sign(owner.token)) as file:  # opening makes an NFS client ask the server
                last = os.fstat(file.fileno()).st_mtime
        except OSError:
            return False
        # both times come from the file server, so the clocks of the machines may differ
        return self._show_life() - last < self.expire_s

    def _show_life(self) -> float:
        """Touch this process's sign of life; return the time that the file server gave it."""
        path = self._sign(self.me.token)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.write_text(json.dumps(asdict(self.me)))
        return path.stat().st_mtime

    def _beat(self) -> None:
        """Show life every `renew_s` seconds until the context ends; runs in a thread, so training cannot delay it."""
        while not self._stop.wait(self.renew_s):
            with contextlib.suppress(OSError):
                self._show_life()

    def _sweep(self) -> None:
        """Remove the files that dead processes have left."""
        for path in self.folder.glob("*.claim"):
            found = self._read(path.stem)
            if found is not None and not self._is_alive(found.owner) and self._replace(path.stem, found):
                self._release(path.stem)
        for path in [*self.folder.glob("*.alive"), *self.folder.glob("*.tmp")]:
            if not self._is_alive(self._signed(path)):
                path.unlink(missing_ok=True)

    def _signed(self, path: Path) -> Owner:
        """The process that wrote a sign of life, or a claim that was being written."""
        content = json.loads(path.read_text())
        return Owner(**content.get("owner", content))

    def _sign(self, token: str) -> Path:
        return self.folder / f"{token}.alive"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"


def _name(cell: Cell) -> str:
    return "--".join(cell.key)


def _machine() -> str:
    """Host, boot and process namespace; the latter two only on Linux. Containers of one host differ in the last."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: int) -> str:
    """When a process of this machine began, in clock ticks since the machine started; empty if it is gone.

    Process numbers are used again, and the time tells the old process from the new one. Without /proc, the answer is
    only "running" or empty.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
    try:  # a system without /proc: the number has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
