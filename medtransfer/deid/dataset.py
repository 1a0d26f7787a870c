"""One data set de-identified: the Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E.

``actions.csv`` holds the profile's column of Table E.1-1 (2026c). Where it allows several actions, the one is taken
that keeps the object valid whatever the type of the attribute: empty before removed, a dummy before empty. Beyond
the profile, free text that the table does not name goes too unless it is known to be technical, and so do private,
unknown and retired overlay and curve elements, all dates, and text that repeats an identifier of the patient.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import medtransfer
from medtransfer.pseudonym import keyed, pseudonym

REGISTERED = "1.2.840.10008."  # UIDs that the standard itself gives out
TEXT = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
DATES = {"DA", "DT", "TM"}
# free text that describes the device or the method, in words that scanners choose
TECHNICAL = frozenset(
    """
    Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel SequenceName PulseSequenceName FilterType
    CodeValue LongCodeValue URNCodeValue CodingSchemeDesignator CodingSchemeVersion CodeMeaning StackID RescaleType
    PositionReferenceIndicator ModalityLUTType LUTExplanation WindowCenterWidthExplanation SegmentLabel TrackingID
    SegmentAlgorithmName AlgorithmName AlgorithmVersion ImagedNucleus ReceiveCoilName TransmitCoilName
    DimensionDescriptionLabel Radiopharmaceutical RadiopharmaceuticalRoute ReconstructionMethod
    AttenuationCorrectionMethod ScatterCorrectionMethod CollimatorGridName DecayCorrection
    """.split()  # noqa: SIM905
)
_NAMING = ("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "AccessionNumber",
           "PatientMotherBirthName", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
           "InstitutionName", "StudyID", "PhysiciansOfRecord", "RequestingPhysician", "PatientAddress",
           "PatientTelephoneNumbers", "ResponsiblePerson", "StationName", "DeviceSerialNumber")  # fmt: skip
_CHARACTERISTICS = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "SmokingStatus", "PregnancyStatus")
_BIRTH = ("PatientBirthDate", "PatientBirthTime")
_DUMMIES: dict[str, Any] = {
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "DS": "0", "IS": "0", "UR": "urn:removed",
    "FD": 0.0, "FL": 0.0,
}  # fmt: skip
_OWN = ("TextValue", "ContentDescription")
_TYPE_2 = ("ContentDescription",)  # free text that a segmentation wants, if empty
_WHOLE = {"US", "SS", "UL", "SL", "UV", "SV", "AT"}
_BINARY = {"OB", "OW", "OF", "OD", "OL", "OV", "UN"}


@dataclass(frozen=True)
class Options:
    """Options of the profile, by which more is kept.

    Parameters
    ----------
    shift_dates : bool
        Dates of one patient are moved by the same secret number of days, one to ten years back (Retain
        Longitudinal Temporal Information With Modified Dates); otherwise they are removed.
    keep_uids : bool
        UIDs stay (Retain UIDs); otherwise each becomes another, always the same one under the same private key.
    characteristics : bool
        Sex, age up to 89 years, size and weight stay (Retain Patient Characteristics).
    """

    shift_dates: bool = False
    keep_uids: bool = False
    characteristics: bool = False

    def codes(self) -> list[tuple[str, str]]:
        """Codes and meanings of what was applied (PS3.16 CID 7050)."""
        chosen = [("113100", "Basic Application Confidentiality Profile")]
        if self.shift_dates:
            chosen.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
        if self.characteristics:
            chosen.append(("113108", "Retain Patient Characteristics Option"))
        if self.keep_uids:
            chosen.append(("113110", "Retain UIDs Option"))
        return chosen


@cache
def actions() -> dict[int, str]:
    """Action of the Basic Profile for each tag of Table E.1-1."""
    lines = Path(__file__).with_name("actions.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {int(tag, 16): action for tag, action, _ in (line.split(",") for line in lines)}


def new_uid(uid: str) -> str:
    """The UID that stands for another outside: always the same under one private key.

    Examples
    --------
    >>> new_uid("1.2.3") == new_uid("1.2.3"), new_uid("1.2.3") == new_uid("1.2.4")
    (True, False)
    >>> new_uid("1.2.840.10008.1.2")
    '1.2.840.10008.1.2'
    """
    text = uid.strip("\0 ")
    if not text or text.startswith(REGISTERED):
        return text
    return f"2.25.{uuid.UUID(bytes=keyed('uid', text, 16), version=4).int}"


def deidentify_dataset(found: Any, options: Options | None = None, *, own_content: bool = False) -> None:
    """De-identify a data set in place.

    Parameters
    ----------
    found : pydicom Dataset
    options : Options or None
    own_content : bool
        The object was written by this package from de-identified sources: the content of a report stays.
    """
    options = options or Options()
    patient = str(found.get("PatientID") or found.get("StudyInstanceUID") or "")
    days = -365 - int.from_bytes(keyed("shift", patient, 4), "big") % 3285
    _Rules(options, None if own_content else _words(found), days, own_content).apply(found)
    found.PatientID = found.PatientName = pseudonym("patient", patient)
    found.PatientIdentityRemoved = "YES"
    found.DeidentificationMethod = [f"medtransfer {medtransfer.__version__}", "DICOM PS3.15 2026c Basic Profile"]
    tell(found, options)


def tell(found: Any, options: Options) -> None:
    """Write down what was applied."""
    from pydicom import Dataset

    items = []
    for value, meaning in options.codes():
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    found.DeidentificationMethodCodeSequence = items
    found.LongitudinalTemporalInformationModified = "MODIFIED" if options.shift_dates else "REMOVED"


def _words(found: Any) -> re.Pattern[str] | None:
    """What names the patient in its proper place, so that it is found where it does not belong."""
    words = {word.lower() for k in _NAMING for word in re.split(r"[\^=\\\s,;\[\]']+", str(found.get(k) or ""))}
    words = {word for word in words if len(word) >= (6 if word.isdecimal() else 4)}
    return re.compile("|".join(map(re.escape, sorted(words)))) if words else None


class _Rules:
    """What happens to each element of one data set and of the data sets in it."""

    def __init__(self, options: Options, words: re.Pattern[str] | None, days: int, own_content: bool) -> None:
        self.options, self.words, self.days, self.own_content = options, words, days, own_content

    def apply(self, found: Any) -> None:
        """All elements of a data set."""
        from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

        for tag in list(found.keys()):
            group = tag.group
            foreign = tag.is_private or group in (0x0400, 0x4FFE, 0xFFFA, 0xFFFC) or group >> 8 in (0x50, 0x60)
            if foreign or tag.element == 0 or not dictionary_has_tag(tag):
                del found[tag]
                continue
            try:
                element = found[tag]
                kept = self._keep(element, dictionary_VR(tag), keyword_for_tag(tag), actions().get(int(tag), ""))
            except (ValueError, TypeError, KeyError, OverflowError, NotImplementedError, UnicodeError):
                kept = False  # damaged: what cannot be read cannot be judged
            if not kept:
                del found[tag]

    def _keep(self, element: Any, vr: str, keyword: str, action: str) -> bool:
        """Whether the element stays, changed where it must be."""
        if element.VR == "SQ" or vr == "SQ":
            return element.VR == "SQ" and self._sequence(element, keyword, action)
        if element.VR == "UN" and vr != "UN":
            return False
        if keyword in _CHARACTERISTICS and self.options.characteristics:
            element.value = _age(element.value) if keyword == "PatientAge" else element.value
            return True
        if vr == "UI":
            if not self.options.keep_uids:
                element.value = _each(element.value, new_uid)
            return action != "X" or self.options.keep_uids
        if vr in DATES and self.options.shift_dates and keyword not in _BIRTH:
            element.value = _each(element.value, lambda v: _moved(str(v), vr, self.days))
            return True
        if self.own_content and keyword in _OWN:
            return True
        if action == "X" or (vr in DATES and not action):
            return False
        if action in ("Z", "X/Z") or keyword in _TYPE_2:
            element.value = None
        elif action:
            element.value = _dummy(vr) if element.value not in (None, "") else None
        elif vr in TEXT and keyword not in TECHNICAL:
            return False
        elif self._named(element, vr):
            element.value = "REMOVED"
        return True

    def _named(self, element: Any, vr: str) -> bool:
        """Whether a text repeats what names the patient; of code strings those that describe pixels do not."""
        looked_at = vr in TEXT or (vr == "CS" and element.tag.group in (0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040))
        return looked_at and self.words is not None and self.words.search(str(element.value).lower()) is not None

    def _sequence(self, element: Any, keyword: str, action: str) -> bool:
        if action in ("Z", "X/Z", "X/Z/D"):
            element.value = []
        elif action and action != "X/Z/U*" and not (self.own_content and keyword == "ContentSequence"):
            return False
        for item in element.value or []:
            self.apply(item)
        return True


def _each(value: Any, change: Any) -> Any:
    if value is None or isinstance(value, str):
        return change(value or "")
    return [change(str(v)) for v in value] if hasattr(value, "__iter__") else change(str(value))


def _dummy(vr: str) -> Any:
    if vr in _DUMMIES:
        return _DUMMIES[vr]
    return 0 if vr in _WHOLE else b"\0\0" if vr in _BINARY else "REMOVED"


def _age(value: Any) -> Any:
    """An age at which there are many: above 89 years it is 90."""
    text = str(value or "")
    return "090Y" if text.endswith("Y") and text[:-1].isdecimal() and int(text[:-1]) > 89 else value


def _moved(text: str, vr: str, days: int) -> str:
    """A date so many days later, its time as it was; '' where it is none."""
    if vr == "TM":
        return text
    try:
        day = datetime.strptime(text[:8], "%Y%m%d") + timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return day.strftime("%Y%m%d") + (text[8:] if vr == "DT" else "")
