"""A synthetic chest radiograph cohort: drawn thoraxes, written as DICOM by two invented scanners.

No person was imaged. A drawn chest (thickness of water) goes through Beer-Lambert attenuation, scatter, grid,
noise and a 12-bit detector, and is written as a scanner writes it.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer._thorax import Map, Pose, thickness_mm
from medtransfer.errors import CohortError, ConfigError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

COLUMNS = ("PatientID", "StudyInstanceUID", "label", "age", "sex", "site")
_TITLE = "medtransfer phantom cohort"
_MU = 0.019  # attenuation of water per mm at the mean energy of a 120 kVp beam behind a chest


@dataclass(frozen=True)
class Site:
    """A hospital with its scanner: how it images and how it writes."""

    name: str
    manufacturer: str
    model: str
    modality: str
    sop_class: str
    photometric: str
    shape: tuple[int, int]
    spacing_mm: float
    photons: float  # detected per pixel in air
    scatter: float  # scattered over primary energy
    grid_mm: float  # period of the anti-scatter grid's moiré
    gamma: float  # steepness of the detector's characteristic curve
    sharpening: float  # how much of the fine structure the console adds
    syntaxes: tuple[str, ...]


_EXPLICIT, _IMPLICIT, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
SITES = (
    Site(
        "north", "Phantom Radiography", "Drawn DX 1", "DX", "1.2.840.10008.5.1.4.1.1.1.1",
        "MONOCHROME2", (248, 216), 1.5, 9e4, 0.25, 5.3, 0.8, 0.9, (_EXPLICIT, _EXPLICIT, _RLE),
    ),
    Site(
        "south", "Synthetic Plates", "Sketch CR 2", "CR", "1.2.840.10008.5.1.4.1.1.1",
        "MONOCHROME1", (200, 180), 1.8, 5e4, 0.35, 6.9, 0.72, 0.7, (_IMPLICIT, _IMPLICIT, _EXPLICIT),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """One study of one patient."""

    patient: int
    number: int
    site: Site
    sex: str
    age: int
    day: date
    view: str
    nodule: bool

    def uid(self, seed: int, level: str) -> str:
        """A DICOM UID (2.25 and the decimal of a UUID) that is the same for the same seed."""
        text = f"{_TITLE}/{seed}/{self.patient}/{self.number}/{level}"
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"

    @property
    def patient_id(self) -> str:
        return f"PHANTOM-{self.patient:04d}"


def draw_visits(patients: int, seed: int) -> list[Visit]:
    """Who is imaged when, where, and with what: about 40 % of the images show nodules at either site.

    The chance of nodules grows a little with age and with nothing else; once there, they stay.

    Examples
    --------
    >>> visits = draw_visits(40, seed=0)
    >>> len({v.patient for v in visits}), visits == draw_visits(40, seed=0)
    (40, True)
    """
    rng = np.random.default_rng([seed, patients])
    age = np.clip(rng.normal(60, 13, patients), 22, 88).round().astype(int)
    place = rng.permutation(np.arange(patients) % len(SITES))
    risk = 0.3 * (age - 60) / 13 + rng.logistic(0, 1, patients)
    visits: list[Visit] = []
    for i in range(patients):
        same = risk[place == place[i]]
        ill = (same > risk[i]).mean() < 0.45  # ranked within the site, so that the site says nothing
        count = int(rng.choice([1, 2, 3], p=[0.72, 0.2, 0.08]))
        onset = int(rng.integers(count)) if ill else count
        day = date(2019, 1, 7) + timedelta(days=int(rng.integers(1400)))
        sex = "FM"[int(rng.integers(2))]
        born = day - timedelta(days=365.25 * (float(age[i]) + rng.uniform()))
        for k in range(count):
            years = int((day - born).days // 365.25)
            view = "AP" if rng.uniform() < 0.2 else "PA"
            visits.append(Visit(i + 1, k + 1, SITES[place[i]], sex, years, day, view, k >= onset))
            day += timedelta(days=int(rng.integers(90, 500)))
    return visits


# --- images -----------------------------------------------------------------------------------------------


def radiograph(visit: Visit, seed: int) -> NDArray[np.uint16]:
    """Detector values 0..4095 of one visit, dense tissue high, shape ``visit.site.shape``.

    Examples
    --------
    >>> image = radiograph(draw_visits(4, seed=0)[0], seed=0)
    >>> image.dtype.name, bool(image.max() < 4096)
    ('uint16', True)
    """
    site = visit.site
    chest = np.random.default_rng([seed, visit.patient])
    rng = np.random.default_rng([seed, visit.patient, visit.number])
    thickness = thickness_mm(
        Pose(site.shape, site.spacing_mm, ap=visit.view == "AP"),
        sex=visit.sex, age=visit.age, nodule=visit.nodule, chest=chest, rng=rng,
    )  # fmt: skip
    return _expose(thickness, site, rng)


def _expose(thickness_mm: Map, site: Site, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Beam, scatter, grid, noise and characteristic curve of a site."""
    from scipy.ndimage import gaussian_filter, zoom

    primary = np.exp(-_MU * np.clip(thickness_mm, 0, None))
    coarse = gaussian_filter(primary[::4, ::4], 30 / (4 * site.spacing_mm), mode="nearest")
    halo = zoom(coarse, [n / m for n, m in zip(primary.shape, coarse.shape, strict=True)], order=1)
    beam = gaussian_filter(primary, 0.45) + site.scatter * np.minimum(halo, 0.25)
    stripes = 1 + 0.006 * np.sin(2 * np.pi * site.spacing_mm * np.arange(primary.shape[1]) / site.grid_mm)
    photons = site.photons * rng.uniform(0.8, 1.25) * beam * stripes
    noisy = photons + np.sqrt(photons) * rng.standard_normal(photons.shape, dtype=np.float32)
    dense = -np.log(np.maximum(noisy, 1) / site.photons)
    dense += site.sharpening * (dense - gaussian_filter(dense, 9 / site.spacing_mm, truncate=2.5))
    rows, cols = dense.shape
    low, high = np.percentile(dense[rows // 6 : -rows // 6, cols // 8 : -cols // 8], [1, 99])
    grey = np.clip((dense - low) / (high - low), -0.3, 1.2)
    curve = 1 / (1 + np.exp(-4 * site.gamma * (grey - 0.5)))
    return np.asarray(np.clip(200 + 3650 * curve, 0, 4095), np.uint16)


# --- files ------------------------------------------------------------------------------------------------


def _dataset(visit: Visit, seed: int, pixels: NDArray[np.uint16]) -> Dataset:
    """The DICOM object as the site's scanner would write it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, RLELossless

    site = visit.site
    syntax = site.syntaxes[visit.patient % len(site.syntaxes)]
    inverse = site.photometric == "MONOCHROME1"
    stored = (4095 - pixels if inverse else pixels).astype("<u2")
    low, high = (float(v) for v in np.percentile(stored, [1, 99]))
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.ImageType = ["ORIGINAL", "PRIMARY", ""]
    d.SOPClassUID, d.SOPInstanceUID = site.sop_class, visit.uid(seed, "instance")
    d.StudyDate = d.SeriesDate = d.AcquisitionDate = d.ContentDate = visit.day.strftime("%Y%m%d")
    d.StudyTime = d.ContentTime = f"{8 + visit.patient % 9:02d}{visit.patient * 7 % 60:02d}00"
    d.AccessionNumber = ""
    d.Modality, d.Manufacturer, d.ManufacturerModelName = site.modality, site.manufacturer, site.model
    d.InstitutionName, d.ReferringPhysicianName = f"Phantom Hospital {site.name.title()}", ""
    d.StudyDescription, d.SeriesDescription = "CHEST", f"CHEST {visit.view}"
    d.PatientName, d.PatientID = f"Phantom^{visit.patient:04d}", visit.patient_id
    d.PatientBirthDate, d.PatientSex, d.PatientAge = "", visit.sex, f"{visit.age:03d}Y"
    d.PatientIdentityRemoved, d.DeidentificationMethod = "YES", "SYNTHETIC, NO PATIENT"
    d.BodyPartExamined, d.ViewPosition, d.KVP = "CHEST", visit.view, 120 if site.modality == "DX" else 110
    d.ImagerPixelSpacing = [site.spacing_mm, site.spacing_mm]
    if site.modality == "CR":
        d.PixelSpacing = d.ImagerPixelSpacing
    d.StudyInstanceUID, d.SeriesInstanceUID = visit.uid(seed, "study"), visit.uid(seed, "series")
    d.StudyID, d.SeriesNumber, d.InstanceNumber = str(visit.number), 1, 1
    d.PatientOrientation, d.ImageLaterality = ["L", "F"], "U"
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, site.photometric
    d.Rows, d.Columns = pixels.shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.BurnedInAnnotation = "NO"
    d.PixelIntensityRelationship, d.PixelIntensityRelationshipSign = "LOG", 1 if inverse else -1
    d.WindowCenter, d.WindowWidth = round((low + high) / 2), round(high - low)
    d.RescaleIntercept, d.RescaleSlope, d.RescaleType = 0, 1, "US"
    d.LossyImageCompression = "00"
    d.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    d.PixelData = stored.tobytes()
    d["PixelData"].VR = "OW"
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    d.file_meta.ImplementationClassUID = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, _TITLE).int}")
    d.file_meta.ImplementationVersionName = "MEDTRANSFER"
    d.file_meta.TransferSyntaxUID = UID(_EXPLICIT if syntax == _RLE else syntax)
    if syntax == _RLE:
        d.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return d


def _capture(visit: Visit, seed: int) -> Dataset:
    """A secondary capture of a dose sheet: of another modality, to be left out of any chest cohort."""
    from pydicom.uid import UID

    page = np.full(visit.site.shape, 3800, dtype=np.uint16)
    page[20:-20:12, 20:-40] = 400
    d = _dataset(visit, seed, page)
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    d.Modality, d.ConversionType, d.SeriesDescription = "OT", "WSD", "Dose sheet"
    d.ImageType = ["DERIVED", "SECONDARY"]
    for name in ("BodyPartExamined", "ViewPosition", "ImagerPixelSpacing", "PixelSpacing"):
        d.pop(name, None)
    return d


def _readme(patients: int, seed: int) -> str:
    return f"""{_TITLE} (version 1, {patients} patients, seed {seed})

Every image here is drawn by a program. No person was imaged; names, dates and identifiers are invented.

dicom/      chest radiographs of two sites as DICOM, in folders whose names mean nothing
labels.csv  {", ".join(COLUMNS)}; one row a study, label is normal or nodule

As in a real dump a few things do not fit: a text file, a secondary capture of another modality, one image
that has no row in labels.csv, and one row (the last) that has no image. Join on StudyInstanceUID.

Use it to try the software. A model trained on it has no medical meaning.
"""


def write_phantom(folder: str | Path, *, patients: int = 160, seed: int = 0) -> Path:
    """Write the synthetic cohort: ``dicom/``, ``labels.csv`` and ``README.txt``.

    The table is written last: a folder with it is complete and is left as it is when the same cohort is
    asked for again, anything else is written anew. The same arguments give the same bytes.

    Parameters
    ----------
    folder : path
        Where to write; made if missing.
    patients : int
        Number of patients with labelled images (at least 4); about 1.35 images each.
    seed : int
        Seed of everything random, 0 or larger.

    Returns
    -------
    Path
        The table of labels.

    Raises
    ------
    ConfigError
        For too few patients or a negative seed.
    CohortError
        Where the folder already holds ``dicom`` or ``labels.csv`` of something else.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(write_phantom(folder, patients=4).read_text().splitlines()[0])
    PatientID,StudyInstanceUID,label,age,sex,site
    """
    if patients < 4 or seed < 0:
        raise ConfigError(
            "the phantom cohort needs at least 4 patients and a seed of 0 or more",
            got=f"{patients} patients, seed {seed}",
        )
    folder = Path(folder)
    readme, images, table = folder / "README.txt", folder / "dicom", folder / "labels.csv"
    words = _readme(patients, seed)
    there = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if table.is_file() and images.is_dir() and there == words:
        return table
    if (table.exists() or images.exists() or there) and not there.startswith(_TITLE):
        raise CohortError(
            "the folder for the phantom cohort holds other data", where=folder.name, fix="give an empty or a new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    table.unlink(missing_ok=True)
    _write(readme, words)
    draft = Path(tempfile.mkdtemp(prefix=".phantom-", dir=folder))
    try:
        rows = _write_images(draft / "dicom", patients, seed)
        shutil.rmtree(images, ignore_errors=True)
        os.replace(draft / "dicom", images)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    _write(table, text.getvalue())
    return table


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)


def _write_images(root: Path, patients: int, seed: int) -> list[tuple[str, ...]]:
    """Write all files below ``root``; return the rows of the table."""
    visits = draw_visits(patients, seed)
    rng = np.random.default_rng([seed, 1, patients])
    stray = Visit(patients + 1, 1, SITES[0], "F", 57, date(2021, 5, 3), "PA", False)
    lost = Visit(patients + 2, 1, SITES[1], "M", 64, date(2021, 9, 6), "PA", False)
    sheet = Visit(1, 99, SITES[0], visits[0].sex, visits[0].age, visits[0].day, "PA", False)
    places = rng.permutation(len(visits) + 2)
    for place, visit in zip(places, [*visits, stray, sheet], strict=True):
        d = _capture(visit, seed) if visit is sheet else _dataset(visit, seed, radiograph(visit, seed))
        target = root / "DICOM" / f"{place // 48:04d}" / f"{place // 8 % 6:04d}" / f"{place:08d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        d.save_as(target, enforce_file_format=True)
    (root / "DICOM" / "0000" / "transfer.txt").write_text(
        "exported 3 volumes, 0 errors\n", encoding="utf-8", newline="\n"
    )
    return [
        (v.patient_id, v.uid(seed, "study"), "nodule" if v.nodule else "normal", str(v.age), v.sex, v.site.name)
        for v in [*visits, lost]
    ]
