"""The phantom cohort: read back with pydicom alone, judged by DICOM's rules and by hand-set expectations."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medtransfer.errors import CohortError, ConfigError
from medtransfer.phantom import draw_visits, write_phantom

PATIENTS = 36


def _digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("phantom") / "cohort"
    assert write_phantom(target, patients=PATIENTS, seed=3) == target / "labels.csv"
    return target


@pytest.fixture(scope="module")
def datasets(folder: Path) -> list[Dataset]:
    files = [p for p in sorted((folder / "dicom").rglob("*")) if p.is_file() and p.suffix != ".txt"]
    return [pydicom.dcmread(p) for p in files]


@pytest.fixture(scope="module")
def chests(datasets: list[Dataset]) -> list[Dataset]:
    return [d for d in datasets if d.Modality in {"DX", "CR"}]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_phantom(tmp_path / name, patients=6, seed=seed)
    a, b, c = (_digests(tmp_path / name) for name in "abc")
    assert a == b
    assert not set(a.values()) & set(c.values()) - {a["dicom/DICOM/0000/transfer.txt"]}


def test_a_complete_folder_is_left_alone_and_an_interrupted_one_is_redone(tmp_path: Path) -> None:
    table = write_phantom(tmp_path, patients=4)
    before, stamp = _digests(tmp_path), table.stat().st_mtime_ns
    write_phantom(tmp_path, patients=4)
    assert table.stat().st_mtime_ns == stamp
    table.unlink()  # the table is written last, so this is what an interruption leaves
    next(p for p in (tmp_path / "dicom").rglob("0*") if p.is_file()).unlink()
    write_phantom(tmp_path, patients=4)
    assert _digests(tmp_path) == before
    write_phantom(tmp_path, patients=5)
    assert len({r["PatientID"] for r in _rows(tmp_path)}) == 6


def test_other_peoples_data_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(CohortError, match="other data"):
        write_phantom(tmp_path, patients=4)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]


@pytest.mark.parametrize(("patients", "seed"), [(3, 0), (4, -1)])
def test_impossible_wishes_are_refused(tmp_path: Path, patients: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        write_phantom(tmp_path, patients=patients, seed=seed)
    assert not list(tmp_path.iterdir())


def test_the_table_and_the_files_fit_except_where_a_real_dump_would_not(folder: Path, datasets: list[Dataset]) -> None:
    rows = _rows(folder)
    assert list(rows[0]) == ["PatientID", "StudyInstanceUID", "label", "age", "sex", "site"]
    labelled = {r["StudyInstanceUID"]: r for r in rows}
    imaged = Counter(d.StudyInstanceUID for d in datasets)
    assert len(labelled) == len(rows)
    assert set(imaged.values()) == {1}
    assert [r["StudyInstanceUID"] for r in rows if r["StudyInstanceUID"] not in imaged] == [
        rows[-1]["StudyInstanceUID"]
    ]
    extra = [d for d in datasets if d.StudyInstanceUID not in labelled]
    assert sorted(d.Modality for d in extra) == ["DX", "OT"]
    assert sum(p.suffix == ".txt" for p in folder.rglob("dicom/**/*")) == 1
    for d in datasets:
        if d.StudyInstanceUID in labelled:
            row = labelled[d.StudyInstanceUID]
            assert (row["PatientID"], row["sex"], f"{int(row['age']):03d}Y") == (
                d.PatientID,
                d.PatientSex,
                d.PatientAge,
            )
            assert row["site"].title() in d.InstitutionName


def test_every_file_is_a_chest_radiograph_of_twelve_bits(chests: list[Dataset]) -> None:
    for d in chests:
        assert (d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation, d.SamplesPerPixel) == (
            16,
            12,
            11,
            0,
            1,
        )
        assert d.BodyPartExamined == "CHEST"
        assert d.ViewPosition in {"PA", "AP"}
        assert d.Modality == {"1.1.1": "DX", "1.1": "CR"}[d.SOPClassUID.removeprefix("1.2.840.10008.5.1.4.1.")]
        assert d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID
        pixels = d.pixel_array
        assert pixels.shape == (d.Rows, d.Columns)
        assert 160 <= min(pixels.shape) <= max(pixels.shape) <= 256
        assert 0 <= pixels.min() < 1400 < 2600 < pixels.max() <= 4095
        low, high = np.percentile(pixels, [5, 95])
        assert d.WindowCenter - d.WindowWidth / 2 - 1 <= low < high <= d.WindowCenter + d.WindowWidth / 2 + 1


def test_sites_differ_as_scanners_do(chests: list[Dataset]) -> None:
    seen = {}
    for d in chests:
        key = (d.PhotometricInterpretation, d.Rows, d.Columns, float(d.ImagerPixelSpacing[0]), d.Modality)
        seen.setdefault(d.Manufacturer, set()).add(key)
    (one,), (other,) = seen.values()
    assert all(a != b for a, b in zip(one, other, strict=True))
    syntaxes = {d.file_meta.TransferSyntaxUID.name for d in chests}
    assert syntaxes == {"Explicit VR Little Endian", "Implicit VR Little Endian", "RLE Lossless"}


def test_identifiers_are_valid_and_plainly_invented(datasets: list[Dataset]) -> None:
    instances = [d.SOPInstanceUID for d in datasets]
    assert len(set(instances)) == len(instances)
    for d in datasets:
        for uid in (d.SOPInstanceUID, d.SeriesInstanceUID, d.StudyInstanceUID):
            assert uid.is_valid
            assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid)
            assert len(uid) <= 64
        assert re.fullmatch(r"Phantom\^\d{4}", str(d.PatientName))
        assert re.fullmatch(r"PHANTOM-\d{4}", d.PatientID)
        assert d.PatientBirthDate == d.AccessionNumber == d.ReferringPhysicianName == ""
        assert "Phantom" in d.InstitutionName


def test_both_photometric_interpretations_show_the_same_chest(chests: list[Dataset]) -> None:
    """After the inversion that MONOCHROME1 asks for, spine is brighter than lung and lung than nothing."""
    for d in chests:
        shown = d.pixel_array.astype(float)
        if d.PhotometricInterpretation == "MONOCHROME1":
            shown = 4095 - shown
        rows, cols = shown.shape
        middle = shown[int(0.4 * rows) : int(0.6 * rows)]
        spine = middle[:, int(0.47 * cols) : int(0.53 * cols)].mean()
        lungs = [middle[:, int(a * cols) : int((a + 0.1) * cols)].mean() for a in (0.2, 0.72)]
        corner = shown[: rows // 20, : cols // 10].mean()
        assert spine > max(lungs) + 600
        assert min(lungs) > corner + 50


def test_a_patients_visits_agree(folder: Path, datasets: list[Dataset]) -> None:
    day = {d.StudyInstanceUID: d.StudyDate for d in datasets}
    visits: dict[str, list[dict[str, str]]] = {}
    for row in _rows(folder)[:-1]:
        visits.setdefault(row["PatientID"], []).append(row)
    assert len(visits) == PATIENTS
    assert max(map(len, visits.values())) > 1
    for rows in visits.values():
        rows.sort(key=lambda r: day[r["StudyInstanceUID"]])
        assert len({(r["sex"], r["site"]) for r in rows}) == 1
        ages = [int(r["age"]) for r in rows]
        assert ages == sorted(ages)
        labels = [r["label"] for r in rows]
        assert labels == sorted(labels, reverse=True), "normal, then nodule, never back"


@pytest.mark.parametrize("seed", range(6))
def test_the_label_says_nothing_about_the_site(seed: int) -> None:
    visits = draw_visits(160, seed)
    nodule = np.array([v.nodule for v in visits])
    assert 0.34 < nodule.mean() < 0.46
    north = np.array([v.site.name == "north" for v in visits])
    last = {v.patient: v for v in visits}.values()
    share = [np.mean([v.nodule for v in last if v.site.name == s]) for s in ("north", "south")]
    assert abs(share[0] - share[1]) < 0.02
    assert abs(nodule[north].mean() - nodule[~north].mean()) < 0.12


def test_the_label_follows_age_a_little() -> None:
    """The mean over seeds of the chance that an image with nodules is of the older of two patients."""
    chances = []
    for seed in range(12):
        visits = draw_visits(160, seed)
        age, nodule = np.array([v.age for v in visits]), np.array([v.nodule for v in visits])
        pairs = age[nodule][:, None] - age[~nodule][None]
        chances.append((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert 0.53 < np.mean(chances) < 0.65
    assert max(chances) < 0.8


def test_some_patients_turn_from_normal_to_nodule() -> None:
    labels: dict[int, set[bool]] = {}
    for v in draw_visits(160, 0):
        labels.setdefault(v.patient, set()).add(v.nodule)
    assert sum(len(s) == 2 for s in labels.values()) >= 3
