"""What the folder of a page holds before its first block runs: small cohorts that are drawn by code, runs on them.

What runs beside a page, an archive or a queue of jobs, is in ``running.py``.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

KEPT = Path(__file__).parents[1] / "_made" / "kept"


class Absent(Exception):
    """What a page needs cannot be had on this machine; says why."""


def prepare(names: Sequence[str], place: Path, running: contextlib.ExitStack) -> dict[str, str]:
    """Write what the names ask for into a folder; what they start ends with ``running``.

    Returns
    -------
    dict
        Why there is not what some names ask for: a package or a program is not installed.
    """
    from running import SERVICES
    from scans import SCANS

    lacking = {}
    for name in names:
        try:
            if name in SERVICES:
                running.enter_context(SERVICES[name](place))
            else:
                (MAKERS | SCANS)[name](place)
        except Absent as why:
            lacking[name] = str(why)
    return lacking


def phantom(place: Path) -> None:
    """``dump/`` and ``labels.csv``: the phantom cohort of 40 patients, as a PACS export would look."""
    _copy(_phantom(patients=40, seed=0), place)


def elsewhere(place: Path) -> None:
    """``elsewhere/dump`` and ``elsewhere/labels.csv``: 24 other patients, as another hospital would send them."""
    _copy(_phantom(patients=24, seed=7), place / "elsewhere")


def study(place: Path) -> None:
    """The phantom cohort, ``study.yaml`` and ``runs/study``, a finished run on it."""
    phantom(place)
    kept = _keep("study", _train)
    for folder in ("home", "runs", "study.yaml"):
        _copy(kept / folder, place / {"home": ".home"}.get(folder, folder))


STUDY = """\
title: Nodules on phantom radiographs
synthetic: true
cohort: {dicom: dump, labels: labels.csv, on: StudyInstanceUID, classes: [normal, nodule]}
split: {val: 0.25, test: 0.3, seed: 0}
prepare: {size: 128}
model: {weights: embedded/compact2d, pool_from: [block1, block2, block3, block4], pool: mean_std}
recipe: {method: logistic}
evaluate: {bootstrap: 500, controls: [histogram], shuffled_labels: false, robustness: false}
out: runs/study
"""


def _train(folder: Path) -> None:
    """Train the study where the phantom lies; the key of its pseudonyms goes with it."""
    from medtransfer.config import Experiment
    from medtransfer.pipeline import train

    phantom(folder)
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    before = os.environ.get("MEDTRANSFER_HOME")
    os.environ["MEDTRANSFER_HOME"] = str(folder / "home")
    try:
        with contextlib.chdir(folder):
            train(Experiment.from_file("study.yaml"), command="medtransfer train study.yaml", progress=False)
    finally:
        if before is not None:
            os.environ["MEDTRANSFER_HOME"] = before


def _phantom(*, patients: int, seed: int) -> Path:
    from medtransfer.phantom import write_phantom

    def make(folder: Path) -> None:
        write_phantom(folder, patients=patients, seed=seed)
        (folder / "dicom").rename(folder / "dump")

    return _keep(f"phantom-{patients}-{seed}", make)


def _keep(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that several pages start from, made once a build."""
    kept = KEPT / name
    if not kept.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as draft:
            make(Path(draft) / name)
            with contextlib.suppress(OSError):  # another process was quicker
                (Path(draft) / name).rename(kept)
    return kept


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def cohort(place: Path) -> None:
    """``cohort.csv`` and ``data/``: 80 pictures of 40 patients; those labelled ``yes`` hold a bright square."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        label, patient = (i // 2) % 2, i // 2
        image = rng.integers(0, 120, (64, 64)).astype(np.uint8)
        if label:
            r, c = rng.integers(8, 40, 2)
            image[r : r + 14, c : c + 14] += 70
        _folder(place / "data")
        Image.fromarray(image).save(place / "data" / f"{i:03d}.png")
        rows.append([f"scan-{i:03d}", f"P{patient:03d}", f"{i:03d}.png", ("no", "yes")[label], 40 + i % 35])
    _table(place / "cohort.csv", ["case_id", "patient_id", "image", "label", "age"], rows)


def findings(place: Path) -> None:
    """``findings.csv`` and ``findings/``: pictures with a square, a bar, both or neither, a grade and a size in mm."""
    from PIL import Image

    rng = np.random.default_rng(1)
    rows = []
    for i in range(90):
        square, bar = int(rng.uniform() < 0.5), int(rng.uniform() < 0.5)
        side = int(rng.integers(6, 24))
        image = rng.integers(0, 110, (64, 64)).astype(np.uint8)
        if square:
            r, c = rng.integers(4, 60 - side, 2)
            image[r : r + side, c : c + side] += 90
        if bar:
            image[:, int(rng.integers(5, 55)) :][:, :4] += 90
        _folder(place / "findings")
        Image.fromarray(image).save(place / "findings" / f"{i:03d}.png")
        grade = ("none", "small", "large")[0 if not square else 1 if side < 15 else 2]
        known = "" if i % 15 == 7 else bar  # not everybody looked for the bar
        rows.append([f"P{i:03d}", f"{i:03d}.png", square, known, grade, 0.7 * side * square])
    _table(place / "findings.csv", ["patient_id", "image", "square", "bar", "grade", "size_mm"], rows)


def volumes(place: Path) -> None:
    """``volumes.csv`` and ``volumes/``: 40 NIfTI volumes with slices of 3 mm, half of them with a ball inside."""
    import nibabel

    rng = np.random.default_rng(2)
    rows = []
    for i in range(40):
        shape = (32, 32, 12)
        at = np.stack(np.indices(shape)) * np.array([1.0, 1.0, 3.0])[:, None, None, None]
        image = rng.normal(40, 12, shape)
        if i % 2:
            middle = np.array([*rng.uniform(9, 22, 2), rng.uniform(12, 22)])
            image[((at - middle[:, None, None, None]) ** 2).sum(0) < 36] += 45
        _folder(place / "volumes")
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0])),
                     place / "volumes" / f"{i:02d}.nii.gz")  # fmt: skip
        rows.append([f"scan-{i:02d}", f"P{i:02d}", f"{i:02d}.nii.gz", ("no", "ball")[i % 2]])
    _table(place / "volumes.csv", ["case_id", "patient_id", "image", "label"], rows)


def masks(place: Path) -> None:
    """``masks.csv`` and ``masks/``: volumes with a large and a small ball, and their outlines."""
    import nibabel

    rng = np.random.default_rng(3)
    rows = []
    for i in range(12):
        shape = (20, 20, 16)
        at = np.stack(np.indices(shape)).astype(float)
        labels = np.zeros(shape, np.uint8)
        for value, radius in ((1, 4.5), (2, 3)):
            middle = np.array([5.5 if value == 1 else 14, rng.uniform(6, 13), rng.uniform(5, 10)])
            labels[((at - middle[:, None, None, None]) ** 2).sum(0) < radius**2] = value
        image = 100 * labels + rng.normal(0, 10, shape)
        affine = np.diag([1.0, 1.0, 1.5, 1.0])
        _folder(place / "masks")
        for name, array in (("image", image.astype(np.float32)), ("mask", labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine), place / "masks" / f"{name}{i}.nii.gz")
        part = "train" if i < 7 else "val" if i < 9 else "test"
        rows.append([f"scan-{i}", f"P{i}", f"image{i}.nii.gz", f"mask{i}.nii.gz", part])
    _table(place / "masks.csv", ["case_id", "patient_id", "image", "mask", "part"], rows)


def standin(place: Path, name: str = "resnet18") -> None:
    """A weights file as a colleague would bring it, and an ``imagenet/`` name in the page's own store.

    Their tensors are drawn at random: the pages show the steps, not the result that trained weights give.
    """
    import torch
    import torchvision

    from medtransfer.adapt import import_file

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None)
    torch.save(network.state_dict(), place / f"{name}.pth")
    import_file(place / f"{name}.pth", name=f"imagenet/{name}", arch=None, mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225), licence="none", origin="random numbers")  # fmt: skip


def _folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def _table(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


MAKERS = {f.__name__: f for f in (phantom, elsewhere, study, cohort, findings, volumes, masks, standin)}
