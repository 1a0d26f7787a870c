"""Pseudonyms: identifiers become keyed hashes before they reach a log, a report, a cache or a checkpoint.

The key is a random secret of this user (``private.key``, mode 0600). The same key gives the same
pseudonym in every run, so that runs can be compared; without the key nobody can go back by guessing.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from functools import lru_cache
from pathlib import Path

import platformdirs

from medtransfer.errors import ConfigError

_FORM = re.compile(r"^(case|patient|study|series)-[0-9a-f]{12}$")


def data_folder() -> Path:
    """Folder for what belongs to the user: the private key and the store of weights.

    ``MEDTRANSFER_HOME`` moves it.
    """
    return Path(os.environ.get("MEDTRANSFER_HOME") or platformdirs.user_data_dir("medtransfer"))


def cache_folder() -> Path:
    """Folder for what can be made again: prepared images, features, scans. ``MEDTRANSFER_CACHE`` moves it."""
    return Path(os.environ.get("MEDTRANSFER_CACHE") or platformdirs.user_cache_dir("medtransfer"))


@lru_cache(maxsize=8)
def _key(folder: Path) -> bytes:
    try:
        return _read_or_draw(folder)
    except OSError as error:
        fix = "set MEDTRANSFER_HOME to a folder of your own; of a container, say who you are (--user)"
        raise ConfigError("the private key cannot be read or made", got=error.strerror, fix=fix) from error


def _read_or_draw(folder: Path) -> bytes:
    path = folder / "private.key"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".private.{secrets.token_hex(6)}"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
    try:
        os.link(draft, path)  # fails if another process was first: its key stands
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_bytes()


def patient_key(patient_id: str) -> str:
    """The text by which patients are compared: case, blanks and leading zeros do not make another patient.

    Spreadsheets change ids in just these ways, and taking one patient for two would let a leak through.

    Examples
    --------
    >>> patient_key(" P01 ") == patient_key("p01"), patient_key("007") == patient_key("7.0")
    (True, True)
    """
    text = " ".join(unicodedata.normalize("NFKC", str(patient_id)).split()).casefold()
    if re.fullmatch(r"[0-9]+(\.0*)?", text):
        text = text.split(".")[0].lstrip("0") or "0"
    return text


def keyed(kind: str, text: str, size: int) -> bytes:
    """So many bytes that depend on a text and on this user's key, and tell nothing of either."""
    return hashlib.blake2b(f"{kind}\0{text}".encode(), key=_key(data_folder()), digest_size=size).digest()


def pseudonym(kind: str, original: object) -> str:
    """The pseudonym of an identifier, e.g. ``'patient-1f0a9c3b77e2'``.

    Parameters
    ----------
    kind : {'case', 'patient', 'study', 'series'}
        What is named; the same text under two kinds gives two unrelated pseudonyms.
    original : object
        The identifier; surrounding blanks are ignored, of a patient all that :func:`patient_key` ignores. A
        pseudonym is returned as it is.

    Examples
    --------
    >>> pseudonym("patient", "P01") == pseudonym("patient", " P01 ")
    True
    >>> pseudonym("patient", pseudonym("case", "x")) == pseudonym("case", "x")
    True
    """
    text = str(original).strip()
    if _FORM.match(text):
        return text
    if kind == "patient":
        text = patient_key(text)
    return f"{kind}-{keyed(kind, text, 6).hex()}"
