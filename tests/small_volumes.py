"""Tiny volumes with a ball each, as NIfTI files or as DICOM series, and the table of what is known about them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (24, 20, 12)
SPACING = (1.0, 1.0, 2.0)


def volumes(n=12, seed=0):
    """n volumes of noise with a ball, large in those of class 1; radius and class of each."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.indices(SHAPE)).astype(float) * np.array(SPACING)[:, None, None, None]
    found = []
    for i in range(n):
        radius = rng.uniform(6, 8) if i % 2 else rng.uniform(2, 4)
        middle = np.array([12, 10, 12]) + rng.uniform(-1, 1, 3)
        ball = ((at - middle[:, None, None, None]) ** 2).sum(0) < radius**2
        found.append(((100 + 300 * ball + rng.normal(0, 20, SHAPE)).astype(np.int16), radius, i % 2))
    return found


def part(i, n):
    """The first train, two validate, two test."""
    return "train" if i < n - 4 else "val" if i < n - 2 else "test"


def write_nifti(root: Path, *, n=12):
    """``cohort.csv`` of NIfTI files; its path."""
    rows = ["case_id,patient_id,image,label,radius,part"]
    for i, (array, radius, label) in enumerate(volumes(n)):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0])), root / f"v{i}.nii.gz")
        rows.append(f"c{i},p{i},v{i}.nii.gz,{label},{radius:.3f},{part(i, n)}")
    (root / "cohort.csv").write_text("\n".join(rows) + "\n")
    return root / "cohort.csv"


def write_dicom(root: Path, *, n=12):
    """A dump of axial series, one a patient, and ``labels.csv``; both paths."""
    rows = ["PatientID,label,radius,part"]
    for i, (array, radius, label) in enumerate(volumes(n)):
        folder = root / "dump" / f"s{i}"
        folder.mkdir(parents=True)
        study, series = generate_uid(), generate_uid()
        for z in range(SHAPE[2]):
            _write(folder / f"{z}.dcm", array[:, :, z].T, z, f"P{i}", study, series)
        rows.append(f"P{i},{label},{radius:.3f},{part(i, n)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "dump", root / "labels.csv"


def _write(path, pixels, z, patient, study, series):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID, ds.PatientName = study, series, patient, patient
    ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], z + 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, z * SPACING[2]], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    ds["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
