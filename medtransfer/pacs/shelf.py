"""Where fetched instances lie: a private folder whose names are pseudonyms, and say by themselves what is whole.

``<study>/<series>/<instance>-<digest>.dcm``: all keyed hashes, the last one of the file's bytes. A file whose bytes
have that digest is complete; there is no list beside the files that could disagree with them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from medtransfer.cache import file_digest
from medtransfer.errors import PacsError, ReadError
from medtransfer.io.pixels import pixel_format
from medtransfer.io.tagwalk import read_header
from medtransfer.pacs.found import Instance
from medtransfer.pacs.pace import Damaged
from medtransfer.pseudonym import pseudonym

_DRAFT = "._"  # scans leave out what begins so
_STALE_S = 6 * 3600


class Shelf:
    """A folder of fetched instances.

    Parameters
    ----------
    folder : path
        Made, for this user alone, if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise PacsError("the folder cannot be made", where=self.folder.name, got=error.strerror) from None
        for draft in self.folder.glob(f"*/*/{_DRAFT}*"):  # of a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > _STALE_S:
                    draft.unlink()

    def place(self, instance: Instance) -> Path:
        """The folder of its series."""
        return self.folder / pseudonym("study", instance.study) / pseudonym("series", instance.series)

    def have(self, instance: Instance) -> int | None:
        """Bytes of the instance if it lies here whole, else None; what is not whole is removed."""
        for path in self.place(instance).glob(f"{pseudonym('instance', instance.uid)}-*.dcm"):
            with contextlib.suppress(OSError):
                if path.name == self._name(instance, path):
                    return path.stat().st_size
                path.unlink()
        return None

    def keep(self, instance: Instance, content: Iterable[bytes]) -> int:
        """Write an instance, checked, whole or not at all; its bytes.

        Raises
        ------
        Damaged
            Where it is no DICOM file, another instance, or cut off.
        PacsError
            Where it cannot be written.
        """
        place = self.place(instance)
        draft = place / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            for folder in (place.parent, place):
                folder.mkdir(exist_ok=True, mode=0o700)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            size = draft.stat().st_size
            _check(draft, instance)
            os.replace(draft, place / self._name(instance, draft))
            return size
        except OSError as error:
            raise PacsError("the instance cannot be written", where=self.folder.name, got=error.strerror) from None
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    @staticmethod
    def _name(instance: Instance, path: Path) -> str:
        digest = pseudonym("content", file_digest(path)).removeprefix("content-")
        return f"{pseudonym('instance', instance.uid)}-{digest}.dcm"


def _check(path: Path, instance: Instance) -> None:
    """Refuse a file that is not this instance from its first to its last byte, as far as DICOM lets one see."""
    try:
        header = read_header(path)
    except ReadError as error:
        raise Damaged(f"corrupt: {error.what}") from None
    if header.text("SOPInstanceUID") != instance.uid:
        raise Damaged("corrupt: it is another instance than was asked for")
    if not header.pixel_tag:
        if instance.bytes:
            raise Damaged("truncated: it has no pixels, though the archive describes them")
        return
    try:
        pixel_format(header)
    except ReadError as error:
        if error.what.startswith("truncated"):
            raise Damaged(error.what) from None
