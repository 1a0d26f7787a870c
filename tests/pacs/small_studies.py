"""Small CT studies with two bright balls each, as DICOM files whose identifiers are easy to look for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

CANARIES = ("CANARYID", "Canaryname", "19310217", "CANARYACC", "1.2.826.0.1.3680043.8.498.66666")
ROOT = CANARIES[-1]


def balls(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Labels [x, y, z] of a large (1) and a small ball (2), as in ``small_masks``."""
    at = np.stack(np.indices(shape)) * np.array([1, 1.5, 1]).reshape(3, 1, 1, 1)
    labels = np.zeros(shape, np.uint8)
    for value, radius in ((1, 4.5), (2, 3.0)):
        middle = [5.5 if value == 1 else 13.0, rng.uniform(8, 13), rng.uniform(7, 13)]
        labels[((at - np.array(middle).reshape(3, 1, 1, 1)) ** 2).sum(0) < radius**2] = value
    return labels


def write_studies(root: Path, *, studies: int = 3, slices: int = 20, shape: tuple[int, int] = (18, 14)) -> list[Path]:
    """One CT series of axial slices a study, two studies a patient; the files in the order of studies and slices."""
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for study in range(studies):
        rng = np.random.default_rng(study)
        labels = balls((*shape, slices), rng)
        volume = (100 * labels + rng.normal(0, 10, labels.shape)).astype(np.int16)
        frame = f"{ROOT}.{study}.9"
        for z in range(slices):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = f"{ROOT}.{study}.2.{z + 1}"
            ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
            ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{study}.1", f"{ROOT}.{study}.2"
            ds.FrameOfReferenceUID = frame
            ds.PatientID, ds.PatientName = f"CANARYID{study // 2}", "Canaryname^Anna"
            ds.PatientBirthDate, ds.PatientSex, ds.AccessionNumber = "19310217", "F", f"CANARYACC{study}"
            ds.StudyDate, ds.StudyTime, ds.StudyID = f"202401{study % 28 + 1:02d}", "120000", str(study)
            ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, z + 1
            ds.ReferringPhysicianName, ds.PositionReferenceIndicator, ds.PatientAge = "", "", "063Y"
            ds.Manufacturer, ds.ImageType = "phantom", ["ORIGINAL", "PRIMARY", "AXIAL"]
            ds.SeriesDescription, ds.StudyDescription = "thin", "two balls"
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.Rows, ds.Columns = shape[1], shape[0]
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
            ds.RescaleSlope, ds.RescaleIntercept = 1, 0
            ds.PixelSpacing, ds.SliceThickness = [1.5, 1.0], 1.0
            ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]  # columns run to the right and rows to the front: RAS
            ds.ImagePositionPatient = [0, 0, float(z)]
            ds.PixelData = np.ascontiguousarray(volume[:, :, z].T).tobytes()
            ds["PixelData"].VR = "OW"
            path = root / f"{study:03d}_{z:03d}.dcm"
            pydicom.dcmwrite(path, ds, enforce_file_format=True)
            files.append(path)
    return files


def write_labels(root: Path, studies: int) -> Path:
    """A table of patients: two classes in turn."""
    rows = [f"CANARYID{p},{'yes' if p % 2 else 'no'}" for p in range((studies + 1) // 2)]
    (root / "labels.csv").write_text("\n".join(["PatientID,label", *rows]) + "\n")
    return root / "labels.csv"
