"""A series as a record: what it is, what is wrong with it, and how to read it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtransfer.errors import ReadError
from medtransfer.image import Image
from medtransfer.io.assemble import outline, read_group
from medtransfer.io.dicom import Group, groups
from medtransfer.io.findings import Finding, refuse, tell
from medtransfer.io.header import Header, path_pseudonym
from medtransfer.io.tagwalk import read_header
from medtransfer.pseudonym import pseudonym

SAFE_TAGS = (
    "Modality", "Manufacturer", "ManufacturerModelName", "SliceThickness", "KVP", "PatientSex", "PatientAge",
    "ViewPosition", "BodyPartExamined", "ImageLaterality", "ImageType", "PhotometricInterpretation",
)  # fmt: skip

_PLANES = ("sagittal", "coronal", "axial")  # by the array axis that the slices follow


@dataclass(frozen=True)
class SeriesRecord:
    """One series, or one part of a series that is an image of its own.

    Parameters
    ----------
    kind : {'volume', 'image'}
        Whether reading gives a volume with an affine or a plain image.
    modality : str
        DICOM modality, ``''`` if the file has none.
    shape : tuple of int
        Of the array that reading gives; empty where it is not known.
    spacing_mm : tuple of float or None
        Along the array's spatial axes.
    orientation : str or None
        ``'RAS'`` or the like for a volume.
    n_files : int
    patient, study, series : str
        Pseudonyms; ``''`` where the file has no such identifier.
    transfer_syntax : str
        Name of the DICOM transfer syntax, or ``'NIfTI'``, ``'PNG'`` ...
    problems : tuple of Finding
        Errors forbid reading; warnings are given at reading; notes are for the table.
    tags : mapping
        A few header values that identify nobody.
    description : str
        Series Description, for choosing among series; never exported, for people write names there.
    files : tuple of Path
        Never exported.
    part : int
        Number among the images that the same files make.
    instance : str
        Pseudonym of the SOP Instance UID where the record is of one file: tells images of one series apart.
    plane : str
        ``'sagittal'``, ``'coronal'`` or ``'axial'``: how a DICOM volume's slices were acquired; ``''`` otherwise.
    """

    kind: Literal["volume", "image"]
    modality: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    orientation: str | None
    n_files: int
    patient: str
    study: str
    series: str
    transfer_syntax: str
    problems: tuple[Finding, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    description: str = field(default="", repr=False, compare=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    part: int = 0
    instance: str = ""
    plane: str = ""
    _group: Group | None = field(default=None, repr=False, compare=False)

    @property
    def slice_axis(self) -> int:
        """Array axis along which a volume's slices follow each other."""
        return _PLANES.index(self.plane) if self.plane else 2

    @property
    def ok(self) -> bool:
        """Whether nothing forbids reading."""
        return all(p.severity != "error" for p in self.problems)

    def read(self) -> Image:
        """Voxels and geometry; warnings among the problems are given as :class:`MedTransferWarning`.

        Raises
        ------
        ReadError
            For the first error among the problems, or where the pixels cannot be decoded.
        """
        refuse(self.problems)
        try:
            return self._read()
        except OSError as error:
            raise unreadable(self.files[0], error) from None
        except MemoryError:
            raise ReadError("there is not enough memory for it", where=self.files[0].name, got=self.shape) from None

    def _read(self) -> Image:
        if self.transfer_syntax == "NIfTI":
            from medtransfer.io.nifti import read_nifti

            return read_nifti(self.files[0])
        tell(self.problems)
        if self.transfer_syntax in ("PNG", "JPEG", "TIFF", "BMP"):
            from medtransfer.io.raster import read_raster

            return read_raster(self.files[0])
        if self._group is not None and all(_unchanged(header) for header in self._group.headers):
            return read_group(self._group)
        made = groups([read_header(file) for file in self.files])
        return read_group(made[min(self.part, len(made) - 1)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None}  # headers are read again where the record goes

    def each(self) -> list[SeriesRecord]:
        """One record a file, for studies of single images and series that are no volume."""
        if len(self.files) < 2:
            return [self]
        return [record for file in self.files for record in dicom_records([read_header(file)])]

    def as_row(self) -> dict[str, Any]:
        """What may be exported, as plain values."""
        return {
            "series": self.series + (f".{self.part}" if self.part else ""),
            "kind": self.kind,
            "modality": self.modality,
            "shape": list(self.shape),
            "spacing_mm": [round(v, 4) for v in self.spacing_mm] if self.spacing_mm else None,
            "orientation": self.orientation,
            "plane": self.plane,
            "n_files": self.n_files,
            "patient": self.patient,
            "study": self.study,
            "transfer_syntax": self.transfer_syntax,
            "problems": [p.without_file() for p in self.problems],
            "tags": dict(self.tags),
        }


def _instance(header: Header) -> str:
    uid = header.text("SOPInstanceUID")
    return pseudonym("case", uid) if uid else path_pseudonym("case", header.path)


def _unchanged(header: Header) -> bool:
    about = os.stat(header.path)
    return about.st_size == header.size and about.st_mtime_ns == header.changed


def unreadable(path: Path, error: OSError) -> ReadError:
    """The package's error for one of the operating system's, which would name folders."""
    return ReadError("a file cannot be opened", where=path.name, got=error.strerror or type(error).__name__)


def dicom_records(headers: list[Header], *, keep: bool = False) -> list[SeriesRecord]:
    """Records of the files of one series; ``keep`` leaves the headers with them for reading."""
    return [_record(group, keep) for group in groups(headers)]


def _plane(group: Group) -> str:
    if group.layout is None or group.layout.affine is None:
        return ""
    across = [abs(float(v)) for v in group.layout.affine[:3, 2]]
    return _PLANES[across.index(max(across))]


def _record(group: Group, keep: bool) -> SeriesRecord:
    from pydicom.uid import UID

    first = group.headers[0]
    broken = any(f.severity == "error" for f in group.findings)
    shape: tuple[int, ...] = ()
    spacing, orientation = None, None
    if not broken:
        shape, geometry = outline(group)
        spacing, orientation = geometry.spacing_mm, None if geometry.affine is None else "RAS"  # canonical
    volume = group.layout is not None or (broken and len(group.headers) > 1)
    uid = first.text("SeriesInstanceUID")
    return SeriesRecord(
        kind="volume" if volume else "image",
        modality=first.text("Modality"),
        shape=shape,
        spacing_mm=spacing,
        orientation=orientation,
        n_files=len(group.headers),
        patient=pseudonym("patient", first.text("PatientID")) if first.has("PatientID") else "",
        study=pseudonym("study", first.text("StudyInstanceUID")) if first.has("StudyInstanceUID") else "",
        series=pseudonym("series", uid) if uid else path_pseudonym("series", first.path),
        transfer_syntax=UID(first.syntax).name,
        problems=tuple(dict.fromkeys(group.findings)),
        tags={key: first.text(key) for key in SAFE_TAGS if first.has(key)},
        description=first.text("SeriesDescription"),
        files=tuple(Path(h.path) for h in group.headers),
        part=group.part,
        _group=group if keep else None,
        instance=_instance(first) if len(group.headers) == 1 else "",
        plane=_plane(group),
    )
