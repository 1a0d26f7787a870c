"""Predictions as DICOM structured reports, one an image, beside the studies they are of."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medtransfer
from medtransfer.errors import ConfigError
from medtransfer.export.opened import Exported, open_exported


def write_reports(
    model: str | Path | Exported,
    images: Sequence[str | Path],
    table: str,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    deidentified: bool = False,
    version: str = "",
) -> list[Path]:
    """Write what was predicted of each image as a DICOM SR after TID 1500.

    Parameters
    ----------
    model : path or Exported
        What predicted.
    images : sequence of path
        DICOM files or folders of one series, in the order of the table.
    table : str
        What :func:`medtransfer.pipeline.predict_files` or :func:`medtransfer.masks.predict_masks` answered.
    out : path
        Folder for ``<pseudonym>.sr.dcm``.
    masks : path or None
        Of a segmentation, the folder of its DICOM SEG objects, to whose segments volumes refer.
    deidentified : bool
        See :func:`medtransfer.out.sr.write_sr`.
    version : str
        Of the model, beside that of this package: :func:`version_of`.

    Raises
    ------
    ConfigError
        Where the masks are not DICOM SEG.
    DataError
        Where an image is not DICOM.
    """
    from medtransfer.io.scan import scan
    from medtransfer.out.sr import write_sr

    opened, made = open_exported(model), []
    card = opened.card
    name = str(card.weights.get("name") or card.weights.get("arch") or "medtransfer").rsplit("/", 1)[-1]
    release = medtransfer.__version__ + (f"+{version}" if version else "")
    for image, row in zip(images, csv.DictReader(io.StringIO(table)), strict=True):
        path = Path(out) / f"{row['case']}.sr.dcm"
        found = {key.partition(":")[2]: float(v) for key, v in row.items() if key[:2] in ("p:", "ml") and v}
        results: dict[str, Any] = {"probabilities": found, "thresholds": card.thresholds}
        if card.task == "regression":
            results = {"values": found}
        elif card.task == "segmentation":
            if masks is None or not row["mask"].endswith(".dcm"):
                raise ConfigError("volumes refer to the segments of a DICOM SEG", where="--sr", fix="add --as seg")
            results = {"volumes_ml": found, "seg": Path(masks) / row["mask"]}
        record = scan(image, progress=False)[0]
        made.append(write_sr(record, path, model=name, version=release, deidentified=deidentified, **results))
    return made


def version_of(path: str | Path) -> str:
    """Twelve digits that tell one trained model from another: of the digest of its tensors."""
    path = Path(path)
    files = sorted(path.rglob("*.safetensors")) or sorted(path.rglob("*.pt2")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.stem != "last":
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
