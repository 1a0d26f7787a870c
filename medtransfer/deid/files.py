"""Series of DICOM images de-identified into another folder."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medtransfer.deid.dataset import Options, deidentify_dataset
from medtransfer.errors import ConfigError, DataError, ReadError
from medtransfer.io.parsed import dataset
from medtransfer.pseudonym import pseudonym

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
RISKY_MODALITIES = ("US", "IVUS", "ES", "XC", "OT", "SC", "DOC", "GM", "SM", "OP", "ECG", "TG", "BDUS", "BI")
RISKY_CLASSES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6.", "1.2.840.10008.5.1.4.1.1.3.",
                 "1.2.840.10008.5.1.4.1.1.77.")  # secondary capture, ultrasound, photographs and video  # fmt: skip
_UID_OF = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID", "case": "SOPInstanceUID"}


@dataclass(frozen=True)
class Deidentified:
    """What was written.

    Parameters
    ----------
    folder : Path
    written : int
        Files.
    left_out : mapping of str to int
        How many files did not go out, by reason.
    """

    folder: Path
    written: int
    left_out: dict[str, int]


def deidentify(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    burned_in: Literal["refuse", "skip", "accept"] = "refuse",
    shift_dates: bool = False,
    keep_uids: bool = False,
    characteristics: bool = False,
    progress: bool = True,
) -> Deidentified:
    """Write copies of DICOM images that name nobody, after the Basic Profile of PS3.15 Annex E.

    Pixels stay as they are. Patients, studies, series and instances get new names that are the same in every call
    under one private key, so that what is written later belongs to what was written before. Objects without
    pixels (reports, structure sets, documents) are left out: their texts cannot be judged.

    Parameters
    ----------
    files : path, or sequence of paths
        Folders, searched with all their subfolders, or files.
    out : path
        Folder for ``patient-.../study-.../series-.../case-....dcm``.
    burned_in : {'refuse', 'skip', 'accept'}
        What to do where text may stand in the pixels: Burned In Annotation says so, or the image is an ultrasound,
        a photograph, a scan of paper or a screenshot and does not say that there is none. ``'accept'`` is for
        images that somebody has looked at.
    shift_dates, keep_uids, characteristics : bool
        See :class:`medtransfer.deid.dataset.Options`.
    progress : bool

    Raises
    ------
    DataError
        Where text may stand in the pixels, before anything is written; or where there is no image.
    ConfigError
        Where ``out`` lies in a source folder.
    """
    from tqdm import tqdm

    options, folder = Options(shift_dates, keep_uids, characteristics), Path(out)
    left_out: Counter[str] = Counter()
    chosen: list[str] = []
    risky: list[str] = []
    for path in _listed(files, folder):
        reason = _judged(path)
        if reason.startswith("text may"):
            risky.append(reason)
            if burned_in == "accept":
                reason = ""
        if reason:
            left_out[reason] += 1
        else:
            chosen.append(path)
    if risky and burned_in == "refuse":
        got = "; ".join(f"{n} {reason}" for reason, n in sorted(Counter(risky).items()))
        raise DataError("identifying text may stand in the pixels; nothing was written", got=got,
                        fix="look at the images, then burned_in='accept', or 'skip' to leave them out")  # fmt: skip
    if not chosen:
        raise DataError("there is no DICOM image to write", got="; ".join(f"{n} {r}" for r, n in left_out.items()))
    for path in tqdm(chosen, unit="file", desc="deidentify", disable=None if progress else True):
        _write(path, folder, options)
    return Deidentified(folder, len(chosen), dict(sorted(left_out.items())))


def _listed(files: str | Path | Sequence[str | Path], out: Path) -> list[str]:
    given = [files] if isinstance(files, str | Path) else list(files)
    found: list[str] = []
    for one in map(Path, given):
        if not one.exists():
            raise ReadError("there is no such file or folder", where=one.name)
        if one.is_dir() and (out.resolve() == one.resolve() or one.resolve() in out.resolve().parents):
            raise ConfigError("the copies would lie among their sources", where=out.name, fix="name another folder")
        walked = os.walk(one) if one.is_dir() else [(str(one.parent), [], [one.name])]
        found += [os.path.join(at, name) for at, _, names in walked for name in names]
    return sorted(found)


def _judged(path: str) -> str:
    """Why a file cannot go out as it is; '' if it can."""
    try:
        header = dataset(path, pixels=True)
    except (ReadError, OSError):
        return "not DICOM"
    if not any(keyword in header for keyword in PIXELS):
        return "without pixels"
    if not (header.get("SOPInstanceUID") and header.get("SOPClassUID")):
        return "without an instance UID"
    return text_in_pixels(header)


def text_in_pixels(header: Any) -> str:
    """Why text may stand in an image's pixels; '' where nothing speaks for it.

    Parameters
    ----------
    header : pydicom Dataset
    """
    said = str(header.get("BurnedInAnnotation") or "").strip().upper()
    if said == "YES":
        return "text may be burned in: Burned In Annotation says so"
    if said == "NO":
        return ""
    kind, modality = str(header.get("SOPClassUID") or ""), str(header.get("Modality") or "")
    values = [str(v).upper() for v in header.get("ImageType") or []]
    captured = "ConversionType" in header or any("SCREEN" in v or "CAPTURE" in v for v in values)
    if captured or modality in RISKY_MODALITIES or kind.startswith(RISKY_CLASSES):
        return f"text may be burned in: {modality or 'unknown'} images of a kind that often holds some"
    return ""


def _write(path: str, folder: Path, options: Options) -> None:
    from pydicom.dataset import FileMetaDataset

    found = dataset(path, pixels=True)
    names = [pseudonym(kind, found.get(keyword) or path) for kind, keyword in _UID_OF.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        deidentify_dataset(found, options)
        syntax = found.file_meta.TransferSyntaxUID
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = syntax
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = found.SOPClassUID, found.SOPInstanceUID
        found.file_meta, found.preamble = meta, b"\0" * 128
        target = folder.joinpath(*names[:3], f"{names[3]}.dcm")
        target.parent.mkdir(parents=True, exist_ok=True)
        found.save_as(target, enforce_file_format=True)
