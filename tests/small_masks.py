"""Tiny volumes with two balls each, their masks, a table and a config: segmentations that take seconds."""

from pathlib import Path

import nibabel
import numpy as np

CONFIG = """\
task: segmentation
structures: {{1: large, 2: small}}
data: {root}
title: Two balls
synthetic: true
cohort: {{csv: cohort.csv, root: ., part: part}}
split: {{official: true}}
plan: {{patch: [16, 16, 16], width: 4, steps_per_epoch: 10}}
recipe: {{method: full, freeze_epochs: 0, epochs: 4, patience: 4, lr: 0.01, backbone_lr_scale: 1, layer_decay: 1}}
evaluate: {{tolerance_mm: 1, bootstrap: 100}}
precision: 32-true
out: {out}
"""


def write_balls(root: Path, *, cases: int = 10, seed: int = 0) -> Path:
    """Images, masks and ``cohort.csv``: all but the last four cases train, two validate, two test."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = ["case_id,patient_id,image,mask,part"]
    for i in range(cases):
        shape = (18 + i % 3, 20, 14)
        at = np.stack(np.indices(shape)).astype(float)
        labels = np.zeros(shape, np.uint8)
        for value, radius in ((1, 4.5), (2, 3)):
            middle = np.array([5.5 if value == 1 else 13, rng.uniform(6, 13), rng.uniform(5, 9)])
            labels[((at - middle[:, None, None, None]) ** 2).sum(0) < radius**2] = value
        image = 100 * labels + rng.normal(0, 10, shape)
        affine = np.array([[-1.0, 0, 0, 7], [0, 0, 1.5, -3], [0, 1, 0, 2], [0, 0, 0, 1]])  # turned and not cubic
        for name, array in (("image", image.astype(np.float32)), ("mask", labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine), root / f"{name}{i}.nii.gz")
        part = "train" if i < cases - 4 else "val" if i < cases - 2 else "test"
        rows.append(f"scan-{i},subject-{i},image{i}.nii.gz,mask{i}.nii.gz,{part}")
    (root / "cohort.csv").write_text("\n".join(rows) + "\n")
    return root


def config(root: Path, out: Path, **changes: str) -> str:
    """The config of these balls, whole lines replaced by their first word."""
    lines = CONFIG.format(root=root.as_posix(), out=out.as_posix()).splitlines()
    kept = [line for line in lines if line.split(":")[0] not in changes]
    return "\n".join([*kept, *(f"{k}: {v}" for k, v in changes.items())]) + "\n"
