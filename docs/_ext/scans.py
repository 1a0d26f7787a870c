"""CT and other volumes for the pages of the hospital, as DICOM and NIfTI, and two small runs that learned from them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from here import Absent, _copy, _folder, _keep, _table, standin, volumes

TESTS = Path(__file__).parents[2] / "tests"
sys.path.append(str(TESTS))
KEY = b"the key of the manual's patients"  # pseudonyms on the pages are the same in every build
UIDS = "1.2.826.0.1.3680043.8.498.7"

LIVER = """\
# liver.yaml
title: Liver and tumour, drawn
task: segmentation
synthetic: true
structures: {1: liver, 2: tumour}
cohort: {dicom: abdomen}
split: {val: 0.15, test: 0.2, seed: 0}
plan: {patch: [16, 16, 16], width: 4, steps_per_epoch: 20}
recipe: {method: full, freeze_epochs: 0, epochs: 10, patience: 10, lr: 0.03, backbone_lr_scale: 1, layer_decay: 1}
evaluate: {tolerance_mm: 1, bootstrap: 200}
precision: 32-true
out: runs/liver
"""
NODULE = """\
# nodule.yaml
title: Nodules in drawn volumes
synthetic: true
cohort: {csv: volumes.csv, root: volumes}
split: {folds: 2, val: 0.2, seed: 0}
prepare: {spacing_mm: [1, 1, 3], size: [32, 32, 12], scale: [0, 100]}
model: {weights: embedded/compact3d, dims: 3, pool: mean_std, pool_from: [block1, block2, block3]}
recipe: {method: logistic}
evaluate: {bootstrap: 200, controls: [], explain: false, robustness: false, shuffled_labels: false}
out: runs/nodule
"""


def abdomen(place: Path) -> None:
    """``abdomen/``: CT series of 14 patients, each with a DICOM SEG of a liver and a tumour, and ``patients.csv``.

    Beside it a scan as NIfTI, ``scan.nii.gz``, with masks of several origins.
    """
    if find_spec("highdicom") is None:
        raise Absent("highdicom is not installed")
    _key(place / ".home")
    _copy(_keep("abdomen", _draw), place)


def liver(place: Path) -> None:
    """The abdomen, ``liver.yaml`` and ``runs/liver``, a finished segmentation."""
    abdomen(place)
    _finished(place, "liver", LIVER, abdomen)


def nodule(place: Path) -> None:
    """Volumes, ``nodule.yaml``, ``runs/nodule``, a finished run, and new ``scans/`` as NIfTI and as DICOM."""
    volumes(place)
    _key(place / ".home")
    _finished(place, "nodule", NODULE, volumes)
    from small_dicom import write_series

    _folder(place / "scans")
    shutil.copyfile(place / "volumes" / "01.nii.gz", place / "scans" / "scan1.nii.gz")
    values = np.random.default_rng(8).normal(40, 12, (14, 30, 32))
    write_series(place / "scans" / "scan2", values.astype(np.int16), patient="N2")


def schema(place: Path) -> None:
    """``schema.json``: what MONAI's bundle specification asks of ``metadata.json``."""
    from bundle_schema import SPECIFIED

    (place / "schema.json").write_text(json.dumps(SPECIFIED), encoding="utf-8")


def examples(place: Path) -> None:
    """``examples/`` and ``tools/`` of the repository."""
    for name in ("examples", "tools"):
        (place / name).symlink_to(TESTS.parent / name)


def slices(place: Path) -> None:
    """``cohort.csv`` and ``data/``: single CT slices of a chest, and ``imagenet/resnet50`` as a stand-in."""
    from small_dicom import write_series

    rng = np.random.default_rng(4)
    at = np.stack(np.indices((96, 96)))
    rows: list[list[object]] = []
    for i in range(48):
        plane = rng.normal(-850, 40, (96, 96))
        if i % 2:
            middle = rng.uniform(20, 76, 2)
            plane[((at - middle[:, None, None]) ** 2).sum(0) < 60] = 0
        (file,) = write_series(place / "data" / f"{i:02d}", plane.astype(np.int16)[None], patient=f"P{i:02d}")
        rows.append([f"scan-{i:02d}", f"P{i:02d}", file.relative_to(place / "data"), ("normal", "nodule")[i % 2]])
    _table(place / "cohort.csv", ["case_id", "patient_id", "image", "label"], rows)
    standin(place, "resnet50")


def views(place: Path) -> None:
    """``views.csv`` and ``views/``: 40 studies of two radiographs; a square is on one of them, or on none."""
    from PIL import Image

    rng = np.random.default_rng(5)
    rows: list[list[object]] = []
    _folder(place / "views")
    for i in range(80):
        study = i // 2
        image = rng.integers(0, 110, (64, 64)).astype(np.uint8)
        if study % 2 and i % 2 == study // 2 % 2:
            r, c = rng.integers(4, 46, 2)
            image[r : r + 14, c : c + 14] += 90
        Image.fromarray(image).save(place / "views" / f"{i:02d}.png")
        rows.append([f"P{study:02d}", f"study-{study:02d}", f"{i:02d}.png", ("normal", "square")[study % 2]])
    _table(place / "views.csv", ["patient_id", "study_id", "image", "label"], rows)


def _draw(folder: Path) -> None:
    import nibabel
    from small_dicom import two_balls, write_reference, write_series

    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for i in range(14):
        values, labels = two_balls(rng, (14, 20, 18 + i % 3))
        uids = {f"{name}InstanceUID": f"{UIDS}.{i}.{k}" for k, name in enumerate(("Study", "Series"), start=1)}
        dated = {"StudyDate": f"2024{i % 6 + 1:02d}14", "AccessionNumber": f"A{1000 + i}", "PatientAge": "061Y"}
        study = folder / "abdomen" / f"study{i:02d}"
        series = write_series(study / "ct", values, patient=f"P{i:02d}", **uids, **dated)
        write_reference(series, labels, study / "seg" / "mask.dcm", names=("liver", "tumour"))
        rows.append([f"P{i:02d}", f"A{1000 + i}", ("benign", "malignant")[i // 2 % 2]])
    _table(folder / "patients.csv", ["PatientID", "AccessionNumber", "label"], rows)
    values, labels = two_balls(rng, (14, 20, 19))
    late = np.roll(labels, 1, axis=2)  # somebody else's outline, a voxel off
    files = {"scan": values, "expert": labels, "mask": late, "liver": late == 1, "tumour": late == 2}
    for name, array in files.items():
        kind = np.float32 if name == "scan" else np.uint8
        file = nibabel.Nifti1Image(array.astype(kind).transpose(2, 1, 0), np.diag([0.75, 1.25, 2.0, 1.0]))
        nibabel.save(file, folder / f"{name}.nii.gz")


def _finished(place: Path, name: str, config: str, data: object) -> None:
    """``NAME.yaml`` and ``runs/NAME``, trained once a build."""
    from medtransfer.config import Experiment
    from medtransfer.pipeline import train

    def make(folder: Path) -> None:
        assert callable(data)
        data(folder)
        _key(folder / ".home")
        (folder / f"{name}.yaml").write_text(config, encoding="utf-8")
        before = os.environ["MEDTRANSFER_HOME"]
        os.environ["MEDTRANSFER_HOME"] = str(folder / ".home")
        try:
            with contextlib.chdir(folder):
                train(Experiment.from_file(f"{name}.yaml"), command=f"medtransfer train {name}.yaml", progress=False)
        finally:
            os.environ["MEDTRANSFER_HOME"] = before

    kept = _keep(name, make)
    for what in (f"{name}.yaml", "runs"):
        _copy(kept / what, place / what)


def _key(home: Path) -> None:
    _folder(home)
    (home / "private.key").write_bytes(KEY)


SCANS = {f.__name__: f for f in (abdomen, liver, nodule, schema, examples, slices, views)}
