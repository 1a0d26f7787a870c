"""MedMNIST files: arrays of images and labels by official part."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import CohortError


def load_npz(path: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Images and labels of each part, checked."""
    if not path.is_file():
        raise CohortError("there is no such file", where=path.name, fix="give the path of a MedMNIST .npz")
    parts: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(m.file_size for m in archive.infolist()) > 64 * 2**30:
                raise CohortError("the file unpacks to more than 64 GiB", where=path.name)
        with np.load(path, allow_pickle=False) as file:
            for part in ("train", "val", "test"):
                if f"{part}_images" in file.files and f"{part}_labels" in file.files:
                    parts[part] = (file[f"{part}_images"], file[f"{part}_labels"])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        what = "the file is not a sound .npz of plain arrays"
        raise CohortError(what, where=path.name, got=type(error).__name__) from error
    if not parts:
        raise CohortError("there are no arrays train_images and train_labels", where=path.name)
    for part, (images, labels) in parts.items():
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            what = "several labels an image are not supported"
            raise CohortError(what, where=f"{path.name} {part}", got=f"labels {labels.shape}")
        if len(images) != len(labels) or images.ndim not in (3, 4) or not np.issubdtype(images.dtype, np.number):
            raise CohortError(
                "images and labels do not fit together", where=f"{path.name} {part}",
                got=f"{images.shape} {images.dtype} and {labels.shape}",
            )  # fmt: skip
        if not np.issubdtype(labels.dtype, np.number) or (labels != np.floor(labels)).any() or (labels < 0).any():
            raise CohortError("labels must be whole numbers from 0", where=f"{path.name} {part}", got=labels.dtype)
        parts[part] = (images, labels.astype(np.int64))
    return parts
