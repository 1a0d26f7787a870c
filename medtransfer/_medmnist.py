"""MedMNIST files: arrays of images and labels by official part."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer._case import Case, FlowStep
from medtransfer.errors import CohortError
from medtransfer.predictions import BY_CLASS, Task


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
        if labels.ndim not in (1, 2):
            raise CohortError("labels are [n, 1] or [n, labels]", where=f"{path.name} {part}", got=labels.shape)
        if len(images) != len(labels) or images.ndim not in (3, 4) or not np.issubdtype(images.dtype, np.number):
            raise CohortError(
                "images and labels do not fit together", where=f"{path.name} {part}",
                got=f"{images.shape} {images.dtype} and {labels.shape}",
            )  # fmt: skip
        if not np.issubdtype(labels.dtype, np.number) or (labels != np.floor(labels)).any() or (labels < 0).any():
            raise CohortError("labels must be whole numbers from 0", where=f"{path.name} {part}", got=labels.dtype)
        parts[part] = (images, labels.astype(np.int64))
    return parts


def from_arrays(
    path: Path, classes: Sequence[object] | None, task: Task | None
) -> tuple[list[Case], tuple[str, ...], list[FlowStep], Task]:
    """Cases of all parts, names of classes or labels, the flow, and the task."""
    parts = load_npz(path)
    several = {labels.ndim for _, labels in parts.values()} == {2}
    task = task or ("multilabel" if several else "classification")
    if several != (task == "multilabel"):
        got = "several an image" if several else "one an image"
        raise CohortError(f"the labels are not those of {task}", where=path.name, got=got, fix="leave task out")
    most = max(labels.shape[1] - 1 if several else int(labels.max()) for _, labels in parts.values())
    names = tuple(str(c) for c in classes) if classes is not None else tuple(str(i) for i in range(most + 1))
    if task == "regression":
        names = names[:1] if classes is not None else ("value",)
    elif len(names) <= most or len(set(names)) < max(len(names), 2):
        raise CohortError(f"the labels run from 0 to {most}", where=path.name, got=f"classes {', '.join(names)}")
    cases: list[Case] = []
    steps: list[FlowStep] = []
    for part, (images, labels) in parts.items():
        for i, (image, said) in enumerate(zip(images, labels, strict=True)):
            label = int(said) if task in BY_CLASS else None
            target = tuple(map(float, said)) if several else float(said) if task == "regression" else None
            cases.append(Case(f"{part}-{i:05d}", f"{part}-{i:05d}", image, label=label, part=part, target=target))
        steps.append(FlowStep(f"images of the official part '{part}'", len(images)))
    return cases, names, steps, task
