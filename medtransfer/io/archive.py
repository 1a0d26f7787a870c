"""Archives as folders: a .zip or .tar of scans is unpacked once, and nothing leaves the target folder.

The unpacked files hold identifiers: they lie in a private folder that goes when the program ends.
"""

from __future__ import annotations

import atexit
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from functools import cache
from pathlib import Path

from medtransfer.errors import ReadError

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    """Whether the name is that of a supported archive."""
    return path.is_file() and path.name.lower().endswith(_ENDINGS)


def unpack(path: Path, *, limit_bytes: int = 100 * 2**30, ratio: int = 200) -> Path:
    """Unpack an archive and return the folder; a second call of the same program finds it there.

    Parameters
    ----------
    path : Path
        A .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz file.
    limit_bytes : int
        Refuse an archive whose members say they are larger than this in all.
    ratio : int
        Refuse an archive that says it grows by more than this factor.

    Raises
    ------
    ReadError
        For a damaged archive, members that point outside the target or are links, and size bombs.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = _private_folder() / digest[:32]
    if target.is_dir():
        return target
    draft = Path(tempfile.mkdtemp(dir=target.parent))
    most = min(limit_bytes, max(path.stat().st_size * ratio, 2**20))
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
            _extract(archive, draft, most, path.name)
        try:
            os.replace(draft, target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first
                raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ReadError("the archive cannot be unpacked", where=path.name, got=type(error).__name__) from None
    except (RuntimeError, NotImplementedError):  # zipfile's way to say encrypted, or an unknown compression
        fix = "unpack it yourself"
        raise ReadError("the archive is encrypted or of an unknown kind", where=path.name, fix=fix) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


@cache
def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="medtransfer-"))  # readable by this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _extract(archive: zipfile.ZipFile | tarfile.TarFile, draft: Path, most: int, name: str) -> None:
    if isinstance(archive, zipfile.ZipFile):
        members = [
            (m.filename, m.file_size, m.is_dir() or (m.external_attr >> 28) in (0, 8)) for m in archive.infolist()
        ]
    else:
        members = [(m.name, m.size, m.isfile() or m.isdir()) for m in archive.getmembers()]
    if (total := sum(size for _, size, _ in members)) > most:
        raise ReadError(
            "the archive would grow too large", where=name, got=f"{total:,} bytes", fix="unpack it yourself"
        )
    for number, (member, _, plain) in enumerate(members):
        unix = member.replace("\\", "/")
        if not plain or unix.startswith("/") or ":" in unix.split("/")[0] or ".." in unix.split("/"):
            raise ReadError(
                "the archive holds a link or a path that leaves its folder", where=name, got=f"member {number}"
            )
    if isinstance(archive, zipfile.ZipFile):
        archive.extractall(draft)  # noqa: S202  (every member was checked above)
    else:
        archive.extractall(draft, filter="data")
