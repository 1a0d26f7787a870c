"""Tiny DICOM series with two balls each and DICOM SEG objects of them, written by pydicom and highdicom alone."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAMES = ("large", "small")
# direction of a row's columns, of a column's rows, in the patient's LPS: oblique
ROW, COLUMN = (0.96, 0.28, 0.0), (-0.28 * 0.8, 0.96 * 0.8, 0.6)
SPACING, STEP = (1.25, 0.75), 2.0


def write_series(folder: Path, values: np.ndarray, *, patient: str, **more: object) -> list[Path]:
    """Slices ``[slices, rows, columns]`` of one CT series; ``more`` are elements of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, place = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(ROW, COLUMN)
    files = []
    for i, plane in enumerate(values):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, place
        ds.PatientID, ds.PatientName, ds.Modality = patient, f"{patient}^Test", "CT"
        ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.AccessionNumber = "", "", "1", ""
        ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20200102", "030405", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.Manufacturer, ds.PositionReferenceIndicator = 1, i + 1, "", ""
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.KVP, ds.AcquisitionNumber = 120, 1
        ds.ImageOrientationPatient = [round(v, 6) for v in (*ROW, *COLUMN)]
        ds.PatientPosition, ds.Laterality = "HFS", ""
        ds.ImagePositionPatient = [float(f"{v:.6f}") for v in np.array([-20.0, 10, 5]) + i * STEP * normal]
        ds.PixelSpacing, ds.SliceThickness = list(SPACING), STEP
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = plane.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        for keyword, value in more.items():
            setattr(ds, keyword, value)
        ds.PixelData = plane.astype("<i2").tobytes()
        files.append(folder / f"{i:03}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    return files


def write_reference(files: list[Path], labels: np.ndarray, path: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A DICOM SEG of labels ``[slices, rows, columns]``, empty frames left out."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(i, name, codes.SCT.AnatomicalStructure, codes.SCT.AnatomicalStructure, "MANUAL")
        for i, name in enumerate(names, start=1)
    ]
    sources = [pydicom.dcmread(f) for f in files]
    seg = hd.seg.Segmentation(
        sources, labels.astype(np.uint8), "BINARY", described, generate_uid(), 2, generate_uid(), 1, "x", "x", "1", "1"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def two_balls(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels ``[slices, rows, columns]``."""
    at = np.stack(np.indices(shape)).astype(float)
    labels = np.zeros(shape, np.uint8)
    for value, radius in ((1, 4.5), (2, 3)):
        middle = np.array([rng.uniform(5, 9), 5.5 if value == 1 else 13, rng.uniform(6, 13)])
        labels[((at - middle[:, None, None, None]) ** 2).sum(0) < radius**2] = value
    return 100.0 * labels + rng.normal(0, 10, shape), labels


def write_dump(root: Path, *, cases: int = 8, seed: int = 0) -> Path:
    """Series and SEG objects of as many patients, and a scout without a mask."""
    rng = np.random.default_rng(seed)
    for i in range(cases):
        values, labels = two_balls(rng, (14, 20, 18 + i % 3))
        files = write_series(root / f"study{i}" / "images", values, patient=f"P{i}")
        write_reference(files, labels, root / f"study{i}" / "seg" / "mask.dcm")
    write_series(root / "study0" / "scout", values[:3], patient="P0")
    return root
