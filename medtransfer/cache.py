"""A cache of arrays on disk: named by their content and settings, checksummed, safe with many writers.

Whatever is here can be made again: a damaged entry is dropped and rebuilt, the oldest ones go when the
limit is reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtransfer.pseudonym import cache_folder

_DIGEST = 16  # bytes


def fingerprint(*parts: bytes | str | NDArray[np.generic]) -> str:
    """A name for content and settings together, 32 hexadecimal digits.

    Examples
    --------
    >>> fingerprint("a", "bc") == fingerprint("ab", "c")
    False
    """
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            raw = np.ascontiguousarray(part).tobytes()
        else:
            raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all: a draft in the same folder is flushed, then renamed."""
    raw = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


class Cache:
    """Arrays kept by name under one folder.

    Parameters
    ----------
    folder : Path or None
        Where; by default ``arrays`` in the user's cache folder.
    limit_bytes : int
        When the entries exceed it, the least recently used go.

    Examples
    --------
    >>> import tempfile
    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.put("0" * 32, np.arange(3))
    >>> cache.get("0" * 32).tolist()
    [0, 1, 2]
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = 50 * 2**30) -> None:
        self.folder = folder or cache_folder() / "arrays"
        self.limit_bytes = limit_bytes
        self._written = 0

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.npy"

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def get(self, name: str) -> NDArray[np.generic] | None:
        """The array of that name, or None if it is not here or damaged."""
        path = self._path(name)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        digest, body = raw[:_DIGEST], raw[_DIGEST:]
        if hashlib.blake2b(body, digest_size=_DIGEST, key=name.encode()).digest() != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # another process has just dropped it; the bytes are here already
            os.utime(path)
        return np.load(io.BytesIO(body), allow_pickle=False)  # type: ignore[no-any-return]

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Keep an array; a full disk means that it is not kept, which costs time and no result."""
        body = io.BytesIO()
        np.save(body, array, allow_pickle=False)
        raw = body.getvalue()
        digest = hashlib.blake2b(raw, digest_size=_DIGEST, key=name.encode()).digest()
        try:
            self._path(name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(name), digest + raw)
        except OSError:
            return
        self._written += len(raw)
        if self._written > self.limit_bytes // 20:
            self.trim()

    def room(self) -> int:
        """Bytes that may still be written: at most the limit, and a tenth of the disk's free space stays for others."""
        at = self.folder
        while not at.exists():
            at = at.parent
        return min(self.limit_bytes, int(0.9 * shutil.disk_usage(at).free))

    def trim(self) -> None:
        """Drop the least recently used entries until the rest fits the limit."""
        self._written = 0
        entries = []
        for path in self.folder.glob("*/*.npy"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
