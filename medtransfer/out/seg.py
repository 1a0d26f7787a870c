"""Masks as DICOM SEG objects that refer to the series they are of (extra ``dicom-out``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medtransfer
from medtransfer.errors import DataError, require
from medtransfer.io.frames import Frame, is_mosaic
from medtransfer.io.record import SeriesRecord
from medtransfer.io.segments import slices_of

MAKER = "medtransfer"
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator")  # fmt: skip


def write_seg(
    labels: NDArray[np.uint8],
    record: SeriesRecord,
    path: str | Path,
    *,
    structures: Sequence[str],
    algorithm: str = "medtransfer segmentation",
    description: str = "automatic segmentation, for research",
) -> Path:
    """Write a mask as a DICOM SEG object beside the study it is of.

    Each structure is a binary segment with a frame for every slice of the series; patient and study are the
    source's, so that viewers such as 3D Slicer and OHIF show it on the images.

    Parameters
    ----------
    labels : ndarray of uint8 [x, y, z]
        On the voxels that reading the record gives.
    record : SeriesRecord
        The series, from :func:`medtransfer.scan`.
    path : path
        A ``.dcm`` file.
    structures : sequence of str
        Names of labels 1, 2, ...
    algorithm, description : str
        What the object says about its making.

    Raises
    ------
    DataError
        Where the mask is not on the series' voxels, or marks nothing.
    """
    hd: Any = require("highdicom", "dicom-out")
    if labels.shape != record.shape[:3]:
        raise DataError("the mask is not on the voxels of the series", got=f"{labels.shape} and {record.shape[:3]}")
    present = sorted(int(v) for v in np.unique(labels) if v)
    if not present or present[-1] > len(structures):
        raise DataError(
            "the mask has no structure that can be named", got=f"labels {present}, {len(structures)} structures"
        )
    slices = slices_of(record)
    stacked = slices.stack(labels)
    first = slices.frames[0]
    assert first.spacing is not None
    step = float(np.linalg.norm(slices.affine[:3, 2]))
    sources = sources_of(slices.frames)
    thickness = _thickness(sources[0])
    with unquoted():
        made = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=np.stack([stacked == value for value in present], axis=-1).astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[
                _segment(hd, i, structures[v - 1], algorithm) for i, v in enumerate(present, start=1)
            ],
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=medtransfer.__version__,
            device_serial_number="0",
            content_description=description[:64],
            content_label="SEGMENTATION",
            pixel_measures=hd.PixelMeasuresSequence(first.spacing, thickness or step, step),
            plane_orientation=hd.PlaneOrientationSequence("PATIENT", first.orientation.tolist()),
            plane_positions=[hd.PlanePositionSequence("PATIENT", _short(f.position)) for f in slices.frames],
            omit_empty_frames=False,
        )
    made.SeriesDescription = algorithm[:64]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path


@contextmanager
def unquoted() -> Iterator[None]:
    """Without the warnings of highdicom, which quote patients' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def sources_of(frames: Sequence[Frame]) -> list[Any]:
    """Headers of the files of some frames, each once, in their order, with all that an object of the study copies.

    Elements that may be empty are there; place and spacing are those of the file's first frame, whatever form
    the file has them in.
    """
    import pydicom

    files: dict[str, list[Frame]] = {}
    for frame in frames:
        files.setdefault(str(frame.header.path), []).append(frame)
    return [_completed(pydicom.dcmread(p, stop_before_pixels=True, force=True), f) for p, f in files.items()]


def _completed(source: Any, frames: Sequence[Frame]) -> Any:
    from pydicom.uid import generate_uid

    frame = frames[0]
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not source.get(keyword):  # the same for all files of the series
            setattr(source, keyword, generate_uid(entropy_srcs=[keyword, str(source.get("SeriesInstanceUID", ""))]))
    if is_mosaic(frame.header) or len(frames) == 1:
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames"):
            if keyword in source:
                delattr(source, keyword)
    else:
        _complete_groups(source, frames)
    source.ImagePositionPatient = _short(frame.position)
    source.ImageOrientationPatient = _short(frame.orientation)
    source.PixelSpacing = _short(np.array(frame.spacing))
    source.SliceThickness = _thickness(source)
    charset = source.get("SpecificCharacterSet") or ""
    if isinstance(charset, str) and charset.startswith("ISO 2022 IR "):  # one set needs no code extensions
        number = charset.removeprefix("ISO 2022 IR ")
        source.SpecificCharacterSet = "ISO_IR 100" if number == "6" else f"ISO_IR {number}"
    return source


def _complete_groups(source: Any, frames: Sequence[Frame]) -> None:
    """Functional groups of a file of several frames: as they are, what all frames share said once."""
    from pydicom import Dataset

    first = frames[0]
    shared = (source.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _short(np.array(first.spacing)), _thickness(source) or 1.0
    orientation.ImageOrientationPatient = _short(first.orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    source.SharedFunctionalGroupsSequence = [shared]
    if "PerFrameFunctionalGroupsSequence" in source:
        return
    groups = []
    for frame in sorted(frames, key=lambda f: f.index):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = _short(frame.position)
        group.PlanePositionSequence = [position]
        groups.append(group)
    source.PerFrameFunctionalGroupsSequence = groups


def _segment(hd: Any, number: int, name: str, algorithm: str) -> Any:
    from pydicom.sr.codedict import codes

    how = hd.AlgorithmIdentificationSequence(algorithm, codes.DCM.ArtificialIntelligence, medtransfer.__version__)
    return hd.seg.SegmentDescription(
        number,
        name[:64],
        codes.SCT.AnatomicalStructure,
        codes.SCT.AnatomicalStructure,
        "AUTOMATIC",
        how,
        tracking_uid=hd.UID(),
        tracking_id=name[:64],
    )


def _thickness(source: Any) -> float | None:
    value = source.get("SliceThickness")
    return float(value) if value not in (None, "") and float(value) > 0 else None


def _short(values: NDArray[np.float64]) -> list[float]:
    """Numbers that fit into the 16 characters of a decimal string."""
    return [float(f"{v:.10g}") for v in values]
