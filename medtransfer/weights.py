"""Weights with their papers: where tensors came from, what they expect, and the store that needs no network.

Nothing is unpickled: safetensors first, ``torch.load(weights_only=True)`` otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medtransfer.cache import file_digest, write_atomically
from medtransfer.checkpoints import read_tensors
from medtransfer.errors import WeightsError
from medtransfer.pseudonym import data_folder

__all__ = ["Weights", "download", "export", "header", "read_tensors", "refuse_offline", "register", "store_folder",
           "stored", "stored_as", "verify"]  # fmt: skip

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*$")


@dataclass(frozen=True)
class Weights:
    """A record of pretrained weights.

    Parameters
    ----------
    name : str
        ``source/architecture``, for example ``imagenet/resnet50``.
    arch : str
        Name of the architecture in :mod:`medtransfer.backbones`.
    mean, std : tuple of float
        Per-channel normalisation of the pretraining on values in [0, 1]; it is folded into the stem.
    file : Path or None
        Where the tensors lie; None for random initialisation.
    sha256 : str
        Of that file.
    licence, origin : str
        What is known about them.
    side : int or None
        Side in pixels or voxels of the images they were pretrained on; None where that is not known.
    """

    name: str
    arch: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: Path | None = None
    sha256: str = ""
    licence: str = "not stated"
    origin: str = ""
    side: int | None = None

    def to_record(self) -> dict[str, object]:
        """Plain types, without the folder the file lies in."""
        return {**asdict(self), "file": self.file.name if self.file else None}


def store_folder() -> Path:
    """The offline store: one folder a weights name, with the tensors and ``record.json``."""
    return data_folder() / "weights"


def register(weights: Weights) -> Weights:
    """Copy a weights file and its record into the store, whole or not at all; the record as stored."""
    if not _NAME.match(weights.name):
        raise WeightsError(
            "a weights name reads source/architecture in small letters",
            got=f"'{weights.name}'",
            fix="for example hospital/resnet50",
        )
    assert weights.file is not None
    folder = store_folder() / weights.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"weights{weights.file.suffix}"
    draft = folder / f".draft{weights.file.suffix}"
    shutil.copyfile(weights.file, draft)
    draft.replace(target)
    stored = replace(weights, file=target, sha256=file_digest(target))
    write_atomically(folder / "record.json", json.dumps(stored.to_record(), indent=2) + "\n")
    return stored


def stored_as(name: str) -> Weights | None:
    """The verified record of that name, or None if nothing was imported under it."""
    record = store_folder() / name / "record.json"
    if not _NAME.match(name) or not record.is_file():
        return None
    weights = _read_record(record)
    verify(weights)
    return weights


def stored() -> list[Weights]:
    """Every record of the store, by name."""
    return [_read_record(path) for path in sorted(store_folder().glob("*/*/record.json"))]


def _read_record(path: Path) -> Weights:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {"file": path.parent / values["file"], "mean": tuple(values["mean"]), "std": tuple(values["std"])}
        return Weights(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            "a record in the store is damaged",
            where="/".join(path.parent.parts[-2:]),
            got=type(error).__name__,
            fix="import the weights again",
        ) from error


def verify(weights: Weights) -> None:
    """Compare the stored file with the hash in its record.

    Raises
    ------
    WeightsError
        Where they differ.
    """
    assert weights.file is not None
    if not weights.file.is_file() or (found := file_digest(weights.file)) != weights.sha256:
        raise WeightsError(
            "the stored weights are not the ones that were imported",
            where=weights.name,
            got="no file" if not weights.file.is_file() else f"sha256 {found[:16]}… instead of {weights.sha256[:16]}…",
            fix="import or fetch them again",
        )


def export(weights: Weights, out: Path) -> str:
    """Write weights and their record into one safetensors file, to be imported on another machine; its sha256.

    Raises
    ------
    WeightsError
        Where the weights have no file, or ``out`` exists or is no ``.safetensors``.
    """
    from safetensors.torch import save

    if weights.file is None:
        raise WeightsError("random weights need no export", got=weights.name, fix="name them on the other machine")
    if out.suffix != ".safetensors" or out.exists():
        raise WeightsError(
            "the export goes into a new .safetensors file",
            where=out.name,
            got="a file" if out.exists() else f"'{out.suffix}'",
            fix=f"for example {weights.arch}.safetensors",
        )
    tensors = {k: v.contiguous() for k, v in read_tensors(weights.file).items()}
    record = json.dumps(weights.to_record(), sort_keys=True)
    write_atomically(out, save(tensors, metadata={"medtransfer_weights": record}))
    return file_digest(out)


def header(file: Path) -> dict[str, object]:
    """The record that :func:`export` wrote into a file; empty for files of other origin."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("medtransfer_weights")
        found = json.loads(text) if text else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "the weights file is damaged", where=file.name, got=type(error).__name__, fix="carry it over again"
        ) from error
    return found if isinstance(found, dict) else {}


def refuse_offline(name: str, filename: str, digest: str, place: str) -> None:
    """Refuse a download where a switch says that there is no network.

    Raises
    ------
    WeightsError
        Where ``MEDTRANSFER_OFFLINE``, ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is set.
    """
    for switch in ("MEDTRANSFER_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(switch, "").lower() in ("1", "true", "yes", "on"):
            raise WeightsError(
                f"{name} is not downloaded: {switch} is set",
                got=f"no file {filename} here",
                fix=f"put {filename}{f' (sha256 beginning {digest})' if digest else ''} into {place}",
            )


def download(address: str, file: Path, digest: str, place: str, *, timeout: float = 10) -> None:
    """Download a published file, whole and with the right hash or not at all.

    Parameters
    ----------
    digest : str
        First digits of its sha256.
    place : str
        Where a file fetched by hand would go, in words.
    timeout : float
        Seconds without an answer after which it is given up.

    Raises
    ------
    WeightsError
        Where there is no network, or the file is another one.
    """
    from urllib.request import urlopen

    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(address, timeout=timeout) as source, open(draft, "wb") as target:  # noqa: S310 published, hashed
            shutil.copyfileobj(source, target, 1 << 20)
        if not (found := file_digest(draft)).startswith(digest):
            raise WeightsError("the download is not the published file", where=file.name, got=f"sha256 {found[:16]}…")
        os.replace(draft, file)
    except OSError as error:
        raise WeightsError(
            "the download failed",
            where=file.name,
            got=type(error).__name__,
            fix=f"fetch {file.name} (sha256 beginning {digest}) on a connected machine and put it into {place}",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
