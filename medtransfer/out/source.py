"""What objects of a study copy from its files, and how they are saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.deid.dataset import Options, deidentify_dataset, tell
from medtransfer.errors import DataError
from medtransfer.io.frames import Frame, is_mosaic
from medtransfer.io.record import SeriesRecord

MAKER = "medtransfer"
_MAY_BE_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator")  # fmt: skip
_COPIED = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040)


def save(made: Any, path: Path, *, deidentified: bool = False) -> Path:
    """Write an object; one made from de-identified sources without its own dates and texts, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if deidentified:  # UIDs are new, or their sources' new ones
        deidentify_dataset(made, Options(keep_uids=True), own_content=True)
        tell(made, Options())
    made.save_as(path)
    return path


def hidden(sources: list[Any], deidentified: bool) -> list[Any]:
    """The sources, de-identified where that is asked for."""
    for source in sources if deidentified else ():
        deidentify_dataset(source)
    return sources


@contextmanager
def unquoted() -> Iterator[None]:
    """Without the warnings of highdicom, which quote patients' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def sources_of(frames: Sequence[Frame], step_mm: float | None = None) -> list[Any]:
    """Headers of the files of some frames, each once, in their order, with all that an object of the study copies.

    Elements that may be empty are there; place and spacing are those of the file's first frame, whatever form
    the file has them in. Where it does not say how thick a slice is, it is as thick as slices are apart.
    """
    import pydicom

    files: dict[str, list[Frame]] = {}
    for frame in frames:
        files.setdefault(str(frame.header.path), []).append(frame)
    return [_completed(pydicom.dcmread(p, stop_before_pixels=True, force=True), f, step_mm) for p, f in files.items()]


def headers_of(record: SeriesRecord) -> list[Any]:
    """Headers of all files of a series of any kind, with all that an object of the study copies but its geometry.

    Raises
    ------
    DataError
        Where the files are not DICOM, or do not say which instances they are.
    """
    import pydicom

    found = []
    for path in record.files:
        source: pydicom.Dataset
        try:
            source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        except (pydicom.errors.InvalidDicomError, ValueError, EOFError):
            source = pydicom.Dataset()
        if not (source.get("SOPInstanceUID") and source.get("SOPClassUID")):
            raise DataError("a DICOM object refers to DICOM files", where=record.series, got=record.transfer_syntax)
        found.append(_named(source))
    return found


def _named(source: Any) -> Any:
    """The header with patient, study and a character set that every reader knows, without what breaks the rules."""
    from pydicom.config import RAISE
    from pydicom.uid import generate_uid
    from pydicom.valuerep import validate_value

    for tag in [t for t in source.keys() if t.group in _COPIED]:  # noqa: SIM118
        try:
            element = source[tag]
            for value in element.value if element.VM > 1 and element.VR != "SQ" else [element.value]:
                if element.VR not in ("SQ", "UI", "UN"):
                    validate_value(element.VR, "" if value is None else str(value), RAISE)
        except (ValueError, TypeError, OverflowError, NotImplementedError):
            del source[tag]
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not source.get(keyword):  # the same for all files of the series
            setattr(source, keyword, generate_uid(entropy_srcs=[keyword, str(source.get("SeriesInstanceUID", ""))]))
    source.SpecificCharacterSet = "ISO_IR 192"  # any name fits; OHIF's reader knows no code extensions
    return source


def _completed(source: Any, frames: Sequence[Frame], step_mm: float | None) -> Any:
    frame = frames[0]
    _named(source)
    source.SliceThickness = thickness_of(source) or (float(f"{step_mm:.10g}") if step_mm else None)
    if is_mosaic(frame.header) or len(frames) == 1:
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames"):
            if keyword in source:
                delattr(source, keyword)
    else:
        _complete_groups(source, frames)
    source.ImagePositionPatient = short(frame.position)
    source.ImageOrientationPatient = short(frame.orientation)
    source.PixelSpacing = short(np.array(frame.spacing))
    return source


def _complete_groups(source: Any, frames: Sequence[Frame]) -> None:
    """Functional groups of a file of several frames: as they are, what all frames share said once."""
    from pydicom import Dataset

    first = frames[0]
    shared = (source.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = short(np.array(first.spacing)), thickness_of(source) or 1.0
    orientation.ImageOrientationPatient = short(first.orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    source.SharedFunctionalGroupsSequence = [shared]
    if "PerFrameFunctionalGroupsSequence" in source:
        return
    groups = []
    for frame in sorted(frames, key=lambda f: f.index):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = short(frame.position)
        group.PlanePositionSequence = [position]
        groups.append(group)
    source.PerFrameFunctionalGroupsSequence = groups


def thickness_of(source: Any) -> float | None:
    value = source.get("SliceThickness")
    return float(value) if value not in (None, "") and float(value) > 0 else None


def short(values: NDArray[np.float64]) -> list[float]:
    """Numbers that fit into the 16 characters of a decimal string."""
    return [float(f"{v:.10g}") for v in values]
