"""From here to an archive: segmentations, reports or any DICOM files, by STOW-RS or C-STORE, each looked up after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtransfer.errors import PacsError, PacsRefused, ReadError
from medtransfer.io.parsed import dataset
from medtransfer.pacs.dimse import Dimse
from medtransfer.pacs.fetch import opened
from medtransfer.pacs.found import Archive
from medtransfer.pacs.pace import Pace
from medtransfer.pacs.server import Server
from medtransfer.pseudonym import pseudonym


@dataclass(frozen=True, repr=False)
class Object:
    """A DICOM file to be sent; its identifiers stay in memory."""

    path: Path
    patient_id: str
    study: str
    series: str
    uid: str
    modality: str
    bytes: int

    def row(self) -> dict[str, Any]:
        """Pseudonyms, modality and bytes."""
        return {
            "patient": pseudonym("patient", self.patient_id), "study": pseudonym("study", self.study),
            "series": pseudonym("series", self.series), "modality": self.modality, "bytes": self.bytes,
        }  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """What a call sent.

    Parameters
    ----------
    there : int
        How many the archive had before; they were not sent again.
    sent, bytes : int
        How many were sent, and their bytes.
    confirmed : bool
        Whether the archive, asked afterwards, has them all; False where it cannot be asked (C-STORE only), and
        its own answers to each are all there is.
    """

    there: int
    sent: int
    bytes: int
    confirmed: bool

    def __str__(self) -> str:
        sure = "found there" if self.confirmed else "the archive accepted each, and cannot be asked for them"
        return f"{self.sent:,} objects sent ({self.bytes / 1e6:,.2f} MB), {self.there:,} were there before; {sure}"


def objects(files: Sequence[str | Path]) -> list[Object]:
    """DICOM files, and those below folders, each instance once.

    Raises
    ------
    ReadError
        Where a file is missing or is no DICOM file with the UIDs that an archive needs.
    """
    found: dict[str, Object] = {}
    for given in map(Path, files):
        if not given.exists():
            raise ReadError("there is no such file or folder", where=given.name)
        inside = sorted(p for p in given.rglob("*") if p.is_file() and not p.name.startswith("."))
        for path in inside if given.is_dir() else [given]:
            if given.is_dir() and not _is_dicom(path):
                continue
            one = _object(path)
            found.setdefault(one.uid, one)
    if not found:
        raise ReadError("there is no DICOM file to send", fix="name files, or a folder that holds them")
    return list(found.values())


def missing_there(server: Server, files: Sequence[Object]) -> list[Object]:
    """Those of the files that the archive does not have; nothing is sent."""
    with opened(server) as (archive, pace):
        there = _there(archive, server, pace, files)
    return [one for one in files if one.uid not in (there or ())]


def send(server: Server, files: Sequence[Object], *, progress: bool = True) -> Sent:
    """Send files that the archive does not have, and look each of them up afterwards.

    A call that was interrupted is simply made again: what arrived is not sent twice.

    Parameters
    ----------
    files : sequence of Object
        From :func:`objects`.
    progress : bool
        Show a bar where there is a terminal.

    Raises
    ------
    PacsUnavailable, PacsRefused
        Where the archive stops answering, or refuses the credentials.
    PacsError
        Where it does not take an object, or took it and does not have it.
    """
    from tqdm import tqdm

    with opened(server) as (archive, pace):
        before = _there(archive, server, pace, files)
        left = [one for one in files if one.uid not in (before or ())]
        for one in tqdm(left, unit="object", desc="send", disable=None if progress else True):
            loaded = dataset(one.path, pixels=True)
            pace.patiently(lambda one=one, loaded=loaded: archive.store(one.path, loaded), attempts=server.attempts)  # type: ignore[misc]
        after = _there(archive, server, pace, files) if left else before
    if after is not None and (lost := [one for one in files if one.uid not in after]):
        raise PacsError(
            f"{len(lost)} of {len(files)} objects are not in the archive, though it accepted them", where=server.name,
            fix="ask whether it takes this kind of object; the same call sends them again",
        )  # fmt: skip
    return Sent(len(files) - len(left), len(left), sum(one.bytes for one in left), after is not None)


def _there(archive: Archive, server: Server, pace: Pace, files: Sequence[Object]) -> set[str] | None:
    """UIDs that the archive has of the series of these files; None where it cannot be asked."""
    uids: set[str] = set()
    for study, series in dict.fromkeys((one.study, one.series) for one in files):
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        try:
            rows = pace.patiently(lambda keys=keys: archive.find("IMAGE", keys), attempts=server.attempts)  # type: ignore[misc]
        except PacsRefused:
            raise
        except PacsError as error:
            if isinstance(archive, Dimse) and error.exit_code == PacsError.exit_code:  # it stores and does not search
                return None
            raise
        uids |= {row["SOPInstanceUID"] for row in rows if "SOPInstanceUID" in row}
    return uids


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _object(path: Path) -> Object:
    found = dataset(path, pixels=False)
    uids = [str(found.get(k, "") or "") for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if not _is_dicom(path) or not all(uids):
        raise ReadError("the file is not a DICOM object that an archive could take", where=path.name,
                        got="no UIDs" if _is_dicom(path) else "no file header")  # fmt: skip
    study, series, uid = uids
    return Object(path, str(found.get("PatientID", "") or ""), study, series, uid, str(found.get("Modality", "") or ""),
                  path.stat().st_size)  # fmt: skip
