"""The embedded default: a phantom cohort made by code, and configs to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from medtransfer.config import Experiment

if TYPE_CHECKING:
    from medtransfer.pipeline import Result

_DEMO = """
title: Nodules on phantom radiographs
synthetic: true
cohort: {dicom: dicom, labels: labels.csv, on: StudyInstanceUID, classes: [normal, nodule]}
split: {folds: 5, val: 0}
prepare: {size: 128}
model: {weights: embedded/compact2d, pool_from: [block1, block2, block3, block4], pool: mean_std}
recipe: {method: logistic}
evaluate: {bootstrap: 2000}
author:
  intended_use: Shows what a run of medtransfer leaves behind; no clinical use.
  index_test: Frozen network features with logistic regression, one score an image.
  reference_standard: Known by construction, the phantom's code drew a nodule or did not.
"""

_STARTER = """# medtransfer train {name}
# Paths start from this folder; --set data=/somewhere moves all of them.
data: .
title: What the study asks
{cohort}
split:    {{val: 0.15, test: 0.15, seed: 0}}          # or {{folds: 5, val: 0.15}}; patients never stand in two parts
# CT: window_hu: soft_tissue; volumes: size: [96, 96, 96], spacing_mm: [1, 1, 1]
prepare:  {{size: 128}}
augment:  {{rotate_deg: 10, zoom: 0.1, shift: 0.05}}  # no mirror images: left and right mean something
# embedded/compact2d lies in the package; imagenet/resnet50 and others: see 'medtransfer weights list'
model:    {{weights: embedded/compact2d, classes: 2, pool_from: [block1, block2, block3, block4], pool: mean_std}}
# recipe: {{epochs: 40, lr: 3e-4, freeze_epochs: 5}}  # left out, it follows from the number of training cases
evaluate: {{threshold: youden, bootstrap: 2000}}
author:
  intended_use: ""        # the report marks what is missing
  reference_standard: ""
out: runs/first
"""

_CSV = "cohort:   {csv: cohort.csv, root: images}          # columns case_id, patient_id, image, label; also .xlsx"
_DUMP = "cohort:   {dicom: dump, labels: labels.csv, on: PatientID}  # or StudyInstanceUID, SeriesInstanceUID, file"


def starter(*, dicom: bool = False) -> str:
    """A commented config to change.

    Examples
    --------
    >>> Experiment.from_text(starter()).top.out
    'runs/first'
    """
    return _STARTER.format(name="experiment.yaml", cohort=_DUMP if dicom else _CSV)


def run_demo(
    out: str | Path, *, patients: int = 160, seed: int = 0, command: str = "", progress: bool = True
) -> Result:
    """Make the phantom cohort beside the run folder, then train, evaluate and report on it.

    Parameters
    ----------
    out : path
        Run folder; the cohort lies in ``<out>-data``.
    patients : int
        Size of the cohort.
    seed : int
        Of the cohort and the split.
    """
    from medtransfer.phantom import write_phantom
    from medtransfer.pipeline import Result, train

    out = Path(out)
    data = out.with_name(f"{out.name}-data")
    write_phantom(data, patients=patients, seed=seed)
    changes = [f"split.seed={seed}", f"seed={seed}"]
    text = _DEMO + f"data: '{data.as_posix()}'\nout: '{out.as_posix()}'\n"
    experiment = Experiment.from_text(text, name="demo", changes=changes)
    return cast(Result, train(experiment, command=command, progress=progress))  # of classes, not of masks
