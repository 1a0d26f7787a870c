"""DICOM files for tests, written with pydicom from hand-chosen numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def instance(array: np.ndarray, **tags: Any) -> FileDataset:
    """A CT instance that holds ``array`` ``[rows, columns]`` or ``[frames, rows, columns]``; ``tags`` come on top."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    ds.PatientID, ds.PatientName, ds.Modality = "SECRET17", "Doe^Jane", "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = array.shape[-2:]
    if array.ndim == 3:
        ds.NumberOfFrames = len(array)
    bits = 8 * array.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    ds.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def placed(array: np.ndarray, position: Any, **tags: Any) -> FileDataset:
    """An axial instance at a position, spacing 0.5 mm between rows and 0.25 mm between columns."""
    place = {
        "ImagePositionPatient": [float(v) for v in position],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [0.5, 0.25],
    }
    return instance(array, **{**place, **tags})


def stack(count: int = 4, step: float = 2.0, **tags: Any) -> list[FileDataset]:
    """An axial series; slice k holds values around 100 k."""
    base = np.arange(20, dtype=np.int16).reshape(4, 5)
    return [placed(base + np.int16(100 * k), (10, 20, step * k), InstanceNumber=k + 1, **tags) for k in range(count)]


def save(folder: Path, files: list[FileDataset] | FileDataset, **options: Any) -> Path:
    """Write instances as 0.dcm, 1.dcm ... and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, ds in enumerate(files if isinstance(files, list) else [files]):
        pydicom.dcmwrite(folder / f"{number}.dcm", ds, enforce_file_format=True, **options)
    return folder


def item(**values: Any) -> Dataset:
    """A sequence item."""
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds
