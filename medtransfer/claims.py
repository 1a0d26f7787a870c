"""Claims: files by which processes on one or several machines divide work among them, without a server.

A claim is made whole or not at all, by a hard link that fails where the name is taken. Its holder touches it again
and again; one that stays untouched for the lease is taken over, at once where its holder ran on this machine and is
gone. Staleness is what this process sees on its own clock, so that machines need not agree on the time.

A claim saves work that would be done twice and protects nothing: a process that was halted for longer than its lease
wakes and goes on. What is written under a claim must therefore be the same bytes whoever writes it, and be written at
once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

from medtransfer.errors import RunError

LEASE_S = 120.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Claims:
    """The claims that this process holds in a folder; as a context, they are kept alive and let go at its end.

    Parameters
    ----------
    folder : Path
        Shared by all who divide the work.
    lease_s : float
        After so many seconds without a sign of its holder a claim is taken over.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Claims(folder) as mine, Claims(folder) as yours:
    ...     mine.take("study-1"), yours.take("study-1"), yours.take("study-2")
    (True, False, True)
    """

    def __init__(self, folder: Path, *, lease_s: float = LEASE_S) -> None:
        self.folder, self.lease_s = folder, lease_s
        self._held: dict[str, str] = {}  # name and what stands in its file
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}  # of others: last sign of life, and when it was new
        self._over = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Claims:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._beating is not None:
            self._beating.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim a piece of work; False where another process has it, who may be living."""
        text = json.dumps({"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid()),
                           "token": secrets.token_hex(8)})  # fmt: skip
        path = self.folder / name
        if not create(path, text, lasting=False):
            holder = self._stale(name)
            if holder is None or not _put_aside(path, holder) or not create(path, text, lasting=False):
                return False
        self._held[name] = text
        return True

    def release(self, name: str) -> None:
        """Let go of a claim; one that was taken over meanwhile stays its new holder's."""
        text = self._held.pop(name, None)
        with contextlib.suppress(OSError):
            if text is not None and (self.folder / name).read_text(encoding="utf-8") == text:
                (self.folder / name).unlink()

    def living(self, name: str) -> bool:
        """Whether the holder has been seen to live since this process first looked."""
        path = self.folder / name
        try:
            text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
        except OSError:
            return False
        if (here := _runs_here(text)) is not None and here:
            return True
        before = self._seen.get(name)
        return before is not None and before[0] != (text, touched)

    def _stale(self, name: str) -> str | None:
        """What stands in a claim whose holder is gone; None where it may live. An absent claim is no one's."""
        path = self.folder / name
        try:
            text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
        except OSError:
            return ""
        if _runs_here(text) is False:
            return text
        sign, since = self._seen.get(name, (("", 0), 0.0))
        if sign != (text, touched):
            self._seen[name] = ((text, touched), time.monotonic())
            return None
        return text if time.monotonic() - since > self.lease_s else None

    def _beat(self) -> None:
        while not self._over.wait(self.lease_s / 5):
            for name in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(self.folder / name)


@contextmanager
def alone(folder: Path, name: str, *, lease_s: float = LEASE_S, wait: bool = False) -> Iterator[None]:
    """Hold a claim while the block runs; that of a holder who gives no sign is waited for and taken over.

    With ``wait`` a living holder is waited for too.

    Raises
    ------
    RunError
        Where another living process has it.
    """
    with Claims(folder, lease_s=lease_s) as claims:
        while not claims.take(name):
            if not wait and claims.living(name):
                raise RunError(
                    "another process is at work here", where=f"{folder.parent.name}/{folder.name}",
                    fix="wait until it ends; the same command then goes on from there",
                )  # fmt: skip
            time.sleep(0.05 if wait else min(1.0, lease_s / 10))
        yield


def divide(
    folder: Path, portions: int, compute: Callable[[int], str], *, lease_s: float = LEASE_S,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Path]:  # fmt: skip
    """Compute numbered portions together with every process that calls this for the same folder, until all are there.

    Parameters
    ----------
    folder : Path
        The results go to ``parts``, each whole or not at all; claims stand in ``claims``.
    portions : int
    compute : function of int
        The text of a portion: the same whoever computes it.
    lease_s : float
        As for :class:`Claims`.
    tell : function of int
        Is given the number of finished portions, others' included.

    Returns
    -------
    list of Path
        One a portion, in order.

    Examples
    --------
    >>> import tempfile
    >>> [p.read_text() for p in divide(Path(tempfile.mkdtemp()), 3, lambda number: f"{number * number}")]
    ['0', '1', '4']
    """
    parts = [folder / "parts" / f"{n:06d}.csv" for n in range(portions)]
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    left = list(range(portions))
    with Claims(folder / "claims", lease_s=lease_s) as claims:
        while left:
            worked = False
            for number in left:
                part, name = parts[number], parts[number].stem
                if part.is_file() or not claims.take(name):
                    continue
                try:
                    if not part.is_file():  # finished between the look and the claim
                        create(part, compute(number))
                        worked = True
                finally:
                    claims.release(name)
                tell(sum(p.is_file() for p in parts))
            left = [n for n in left if not parts[n].is_file()]
            if left and not worked:
                time.sleep(min(1.0, lease_s / 10))
    tell(portions)
    return parts


def create(path: Path, text: str, *, mode: int = 0o644, lasting: bool = True) -> bool:
    """Make a file with this text, whole; False where there is one of that name already.

    A ``lasting`` one is on the disk before it has its name. A process that is killed may leave a hidden draft.

    Raises
    ------
    RunError
        Where the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(draft, text, mode, lasting)
        try:
            os.link(draft, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_new(path, text, mode, lasting)  # a file system without hard links
    except FileExistsError:
        return False
    except OSError as error:
        raise RunError(
            "this cannot be written", where=f"{path.parent.name}/{path.name}", got=error.strerror,
            fix="free space or rights; what was there before is intact",
        ) from error  # fmt: skip
    finally:
        draft.unlink(missing_ok=True)
    return True


def _write_new(path: Path, text: str, mode: int, lasting: bool) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if lasting:
            os.fsync(file.fileno())


def _put_aside(path: Path, holder: str) -> bool:
    """Remove a stale claim, unless another process has just taken it over; that one's is put back."""
    if not holder:
        return True
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)
    except OSError:
        return False
    try:
        ours = aside.read_text(encoding="utf-8") == holder
        if not ours:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        return ours
    finally:
        aside.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """This machine since it was started, and this container on it: within it process numbers mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in the system's own count; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _runs_here(text: str) -> bool | None:
    """Whether the holder of a claim runs on this machine; None where that cannot be known."""
    try:
        holder = json.loads(text)
        if not _machine() or holder["machine"] != _machine():
            return None
        return bool(_born(int(holder["pid"])) == holder["born"] != "")
    except (ValueError, KeyError, TypeError):
        return None
