"""Weights with their papers: where tensors came from, what they expect, and the store that needs no network.

Nothing is unpickled: safetensors first, ``torch.load(weights_only=True)`` otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer.cache import file_digest, write_atomically
from medtransfer.errors import WeightsError
from medtransfer.pseudonym import data_folder

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES = ("module.", "model.", "backbone.", "encoder.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "teacher")
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
    """

    name: str
    arch: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: Path | None = None
    sha256: str = ""
    licence: str = "not stated"
    origin: str = ""

    def to_record(self) -> dict[str, object]:
        """Plain types, without the folder the file lies in."""
        return {**asdict(self), "file": self.file.name if self.file else None}


def store_folder() -> Path:
    """The offline store: one folder a weights name, with the tensors and ``record.json``."""
    return data_folder() / "weights"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, wrappers such as ``state_dict`` and common prefixes taken off.

    Raises
    ------
    WeightsError
        For a missing or damaged file, one that would run code, one that holds other things than
        tensors, and tensors that are not finite.
    """
    import torch

    if not path.is_file():
        raise WeightsError(
            "there is no such weights file", where=path.name, fix="give the path of a .safetensors or .pth file"
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: object = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise WeightsError("the weights file is damaged", where=path.name, got=str(error)) from error
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler of damaged bytes fails in any way it likes
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise WeightsError(
                "the weights file is damaged or holds more than tensors, which could run code",
                where=path.name,
                got=reason,
                fix="save the state_dict alone, best as safetensors",
            ) from error
    tensors = _unwrapped(found, path.name)
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise WeightsError(
            "tensors hold values that are not finite", where=path.name, got=f"{len(bad)}, first {bad[0]}"
        )
    return tensors


def _unwrapped(found: object, where: str) -> dict[str, Tensor]:
    import torch

    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError("the file does not hold a state_dict", where=where, got=type(found).__name__)
    tensors: dict[str, Tensor] = {str(k): v for k, v in found.items()}
    for prefix in _PREFIXES:
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


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
