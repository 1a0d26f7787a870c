"""What a DICOM file says about itself: raw values by tag, read as text or numbers only where they are used."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from medtransfer.errors import ReadError
from medtransfer.pseudonym import pseudonym

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
SEQUENCES = (0x00283000, 0x52009229, 0x52009230)  # Modality LUT, shared and per-frame functional groups: presence only

TAGS = {
    "SpecificCharacterSet": 0x00080005,
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "SeriesDescription": 0x0008103E,
    "ManufacturerModelName": 0x00081090,
    "AccessionNumber": 0x00080050,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "PatientBirthDate": 0x00100030,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
    "BodyPartExamined": 0x00180015,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "EchoTime": 0x00180081,
    "EchoNumbers": 0x00180086,
    "SpacingBetweenSlices": 0x00180088,
    "TriggerTime": 0x00181060,
    "ImagerPixelSpacing": 0x00181164,
    "NominalScannedPixelSpacing": 0x00182010,
    "ViewPosition": 0x00185101,
    "DiffusionBValue": 0x00189087,
    "MosaicCount": 0x0019100A,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "TemporalPositionIdentifier": 0x00200100,
    "FrameOfReferenceUID": 0x00200052,
    "ImageLaterality": 0x00200062,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "BurnedInAnnotation": 0x00280301,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "ModalityLUTSequence": 0x00283000,
    "GEImageKind": 0x0043102F,
    "SharedFunctionalGroupsSequence": 0x52009229,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
}
IDENTIFIERS = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "AccessionNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)


def substitute(path: str | os.PathLike[str]) -> str:
    """A name for a file whose own name identifies a patient, always the same for this user."""
    return f"file-{path_pseudonym('case', path)[5:11]}{os.path.splitext(path)[1][:5]}"


def path_pseudonym(kind: str, path: str | os.PathLike[str]) -> str:
    """The pseudonym of a file by its path, whatever bytes its name has."""
    return pseudonym(kind, os.fsencode(path).decode("latin-1"))


@dataclass(slots=True)
class Header:
    """What a DICOM file says about itself, its pixels left where they are.

    Parameters
    ----------
    path : str
        The file.
    syntax : str
        Transfer Syntax UID.
    raw : dict
        Tag number to value bytes (binary numbers little-endian); sequences are only marked as present.
    pixel_tag, offset, length : int
        Pixel element (0: none), where its value starts (-1: not known) and its length (-1: undefined).
    size : int
        Bytes in the file.
    changed : int
        When it was last written, nanoseconds.
    walked : bool
        False if pydicom had to read it.
    form : pixels.Format or None
        The pixel description once it has been checked.
    """

    path: str
    syntax: str
    raw: dict[int, bytes]
    pixel_tag: int
    offset: int
    length: int
    size: int
    changed: int
    walked: bool = True
    form: Any = None

    @property
    def name(self) -> str:
        """Name of the file, for messages; a substitute where it holds one of the file's own identifiers."""
        name = os.path.basename(self.path)
        lowered = name.lower()
        for keyword in IDENTIFIERS:
            for part in re.split(r"[\^=\\\s,]+", self.text(keyword).lower()):
                if len(part) > 2 and part in lowered:
                    return substitute(self.path)
        return name

    def has(self, keyword: str) -> bool:
        """Whether the element is there and not empty."""
        value = self.raw.get(TAGS[keyword])
        return bool(value and value.strip(b"\0 "))

    def text(self, keyword: str) -> str:
        """Value as text, blanks stripped, ``''`` if missing; several values stay joined by backslashes."""
        value = self.raw.get(TAGS[keyword])
        return value.decode("latin-1").strip("\0 \t\r\n") if value else ""

    def numbers(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """Decimal or integer strings as numbers, None if missing.

        Raises
        ------
        ReadError
            Where the text is no finite number (``2,34375`` for instance) or the count is another.
        """
        text = self.text(keyword)
        if not text:
            return None
        try:
            values = tuple(map(float, text.split("\\")))
        except ValueError:
            values = (float("nan"),)
        if not all(map(isfinite, values)) or (count and len(values) != count):
            fix = "write numbers with a decimal point" if "," in text else ""
            wanted = f"{count} numbers" if count and count > 1 else "a number"
            raise ReadError(f"{keyword} is not {wanted}", where=self.name, got=repr(text[:80]), fix=fix)
        return values

    def number(self, keyword: str, default: float) -> float:
        """First of the numbers, or the default if missing."""
        values = self.numbers(keyword)
        return values[0] if values else default

    def integer(self, keyword: str, default: int | None = None, *, signed: bool = False) -> int:
        """A 16-bit binary number.

        Raises
        ------
        ReadError
            Where it is missing and there is no default, or is not 16 bits long.
        """
        value = self.raw.get(TAGS[keyword], b"")
        if not value and default is not None:
            return default
        if len(value) < 2:
            raise ReadError(f"{keyword} is missing or damaged", where=self.name, got=f"{len(value)} bytes")
        return int.from_bytes(value[:2], "little", signed=signed)
