"""Folders: every file accounted for, results reused only while nothing changed, and nobody named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_files import instance, save, stack
from pydicom.fileset import FileSet

from medtransfer.errors import MedTransferError, MedTransferWarning, ReadError
from medtransfer.io import read
from medtransfer.io.scan import scan

CANARIES = (
    "SECRET17",
    "Doe",
    "Jane",
    "1.2.3.4",
    "StLuke",
    "19610203",
    "ACC998",
    "Herz^Klaus",
    "MRN_5531",
    "Kommentar_Q",
)


def test_every_file_is_accounted_for(tmp_path):
    save(tmp_path / "series", stack(4))
    (tmp_path / "series" / "notes.txt").write_text("hello")
    (tmp_path / "series" / "empty.dcm").write_bytes(b"")
    (tmp_path / "series" / "broken.dcm").write_bytes(b"no DICOM at all" * 50)
    (tmp_path / "series" / "Thumbs.db").write_bytes(b"x" * 100)
    with pytest.warns(MedTransferWarning) as told:
        found = scan(tmp_path, progress=False)
    assert len(found) == 1
    assert found.skipped == {"not DICOM": 2, "empty file": 1, "not an image": 1}
    assert found[0].n_files + sum(found.skipped.values()) == 8
    assert {str(w.message).split(":")[0] for w in told} == {"empty.dcm", "broken.dcm"}


def test_an_empty_folder_and_a_missing_one_are_errors(tmp_path):
    with pytest.raises(ReadError, match="no image was found; found an empty folder"):
        scan(tmp_path, progress=False)
    with pytest.raises(ReadError, match="no such file or folder"):
        scan(tmp_path / "nowhere", progress=False)


def test_a_loop_of_links_ends(tmp_path):
    save(tmp_path / "a", stack(3))
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "dangling").symlink_to(tmp_path / "gone")
    found = scan(tmp_path, progress=False)
    assert [r.n_files for r in found] == [3]
    assert found.skipped == {"link to a folder seen before": 1, "broken link": 1}


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(tmp_path):
    save(tmp_path, stack(3))
    (tmp_path / "0.dcm").chmod(0)
    with pytest.warns(MedTransferWarning, match="unreadable"):
        assert scan(tmp_path, progress=False).skipped == {"unreadable": 1}


def test_an_unreadable_file_by_the_systems_word(tmp_path, monkeypatch):
    """The same without depending on who runs the test."""
    save(tmp_path, stack(3))
    from medtransfer.io import scan as module

    honest = module.read_header
    monkeypatch.setattr(module, "read_header", lambda p: _refuse() if p.endswith("0.dcm") else honest(p))
    with pytest.warns(MedTransferWarning, match=r"0\.dcm: unreadable"):
        assert scan(tmp_path, progress=False).skipped == {"unreadable": 1}


def _refuse() -> None:
    raise PermissionError(13, "Permission denied", "DOE/0.dcm")


def test_a_file_that_vanished_is_an_error_of_the_family(tmp_path):
    record = scan(save(tmp_path, stack(3)), progress=False)[0]
    (tmp_path / "1.dcm").unlink()
    with pytest.raises(ReadError, match="cannot be opened") as caught:
        record.read()
    assert str(tmp_path) not in str(caught.value)


def test_documents_without_an_image_are_counted(tmp_path):
    report = instance(
        np.zeros((2, 2), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None, PixelData=None
    )
    save(tmp_path / "a", report)
    save(tmp_path / "b", stack(3))
    assert scan(tmp_path, progress=False).skipped == {"DICOM without an image": 1}


def test_a_dicomdir_lists_its_own_files(tmp_path):
    files = FileSet()
    for ds in stack(4):
        ds.SeriesNumber, ds.StudyID, ds.StudyDate, ds.StudyTime = 1, "1", "20200101", "101010"
        ds.AccessionNumber = ""
        files.add(ds)
    files.write(tmp_path / "disc")
    (tmp_path / "disc" / "extra.dcm").write_bytes(b"not listed")
    found = scan(tmp_path / "disc" / "DICOMDIR", progress=False)
    assert [(r.kind, r.n_files) for r in found] == [("volume", 4)]
    assert found[0].read().array.shape == (5, 4, 4)
    with pytest.warns(MedTransferWarning):
        assert scan(tmp_path / "disc", progress=False).skipped["DICOMDIR"] == 1


def test_a_dicomdir_in_capitals_finds_small_letters(tmp_path):
    files = FileSet()
    for ds in stack(3):
        ds.SeriesNumber, ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = 1, "1", "20200101", "101010", ""
        files.add(ds)
    files.write(tmp_path / "disc")
    for path in sorted((tmp_path / "disc").rglob("*"), key=lambda p: -len(p.parts)):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    assert scan(tmp_path / "disc" / "DICOMDIR", progress=False)[0].n_files == 3


def test_an_archive_is_a_folder(tmp_path):
    save(tmp_path / "in", stack(3))
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as archive:
        for file in (tmp_path / "in").iterdir():
            archive.write(file, file.name)
    assert read(tmp_path / "dump.zip").array.shape == (5, 4, 3)


def test_series_without_geometry_are_single_images(tmp_path):
    views = [instance(np.full((3, 4), k, np.uint16), Modality="DX", InstanceNumber=k) for k in range(3)]
    found = scan(save(tmp_path, views), progress=False)
    assert [(r.kind, r.n_files) for r in found] == [("image", 1)] * 3
    assert sorted(int(r.read().array[0, 0]) for r in found) == [0, 1, 2]
    assert len({r.instance for r in found}) == 3
    assert len({r.series for r in found}) == 1


def test_a_stored_scan_is_reused_until_a_file_changes(tmp_path, monkeypatch):
    folder, store = save(tmp_path / "dump", stack(4)), tmp_path / "run" / "scan.json"
    first = scan(folder, progress=False, store=store)
    from medtransfer.io import scan as module

    monkeypatch.setattr(module, "_read_all", lambda *a: pytest.fail("the files were read again"))
    again = scan(folder, progress=False, store=store)
    assert again.to_rows() == first.to_rows()
    assert again[0].files == first[0].files
    assert again[0].description == first[0].description
    np.testing.assert_array_equal(again[0].read().array, first[0].read().array)
    monkeypatch.undo()
    os.utime(folder / "0.dcm", (1, 1))
    (folder / "3.dcm").unlink()
    assert scan(folder, progress=False, store=store)[0].n_files == 3
    store.write_text("{damaged")
    assert scan(folder, progress=False, store=store)[0].n_files == 3


def test_no_identifier_leaves(tmp_path, recwarn):
    """Names, ids, dates and UIDs planted in the files are in no table, store, warning or error."""
    files = stack(
        4, InstitutionName="StLuke", PatientBirthDate="19610203", AccessionNumber="ACC998",
        ReferringPhysicianName="Herz^Klaus", OtherPatientIDs="MRN_5531", ImageComments="Kommentar_Q",
        SeriesDescription="Doe Jane thorax", SpecificCharacterSet="ISO_IR 999",
    )  # fmt: skip
    folder = save(tmp_path / "Doe_Jane", [*files, files[1]])
    (folder / "x.dcm").write_bytes(b"")
    found = scan(folder, progress=False, store=tmp_path / "scan.json")
    found[0].read()
    del files[1]
    broken = scan(save(tmp_path / "SECRET17", files), progress=False)
    with pytest.raises(MedTransferError) as caught:
        broken[0].read()
    said = [repr(found), found.to_json(), found.to_csv(), found.to_table(), found._repr_html_(), repr(found[0])]
    said += [str(w.message) for w in recwarn] + [str(caught.value), (tmp_path / "scan.json").read_text()]
    assert recwarn
    for text in said:
        assert not [c for c in CANARIES if c in text]


def test_pseudonyms_are_stable_and_differ(tmp_path):
    one = scan(save(tmp_path / "a", stack(3)), progress=False)[0]
    two = scan(save(tmp_path / "b", stack(3, PatientID="OTHER")), progress=False)[0]
    assert one.patient.startswith("patient-")
    assert one.patient != two.patient
    assert one.study == two.study


def test_exports_agree(tmp_path):
    found = scan(save(tmp_path, stack(3)), progress=False)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert json.loads(found.to_json())["series"][0]["series"] == rows[0]["series"] == found[0].series
    assert rows[0]["shape"] == "5 x 4 x 3"
    assert rows[0]["spacing_mm"] == "0.25 x 0.5 x 2.0"


def test_slices_of_a_scan_and_choosing(tmp_path):
    save(tmp_path / "a", stack(3))
    save(tmp_path / "b", stack(4, SeriesInstanceUID="1.2.9", SeriesDescription="lung"))
    found = scan(tmp_path, progress=False)
    assert [r.n_files for r in found.where(lambda r: r.description == "lung")] == [4]
    assert len(found[:1]) == 1


def test_a_gzip_bomb_is_refused_in_little_time_and_memory(tmp_path):
    """2 GB of zeros behind a valid NIfTI header, 2 MB on the disk."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 2048))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for _ in range(64):
            file.write(bytes(2**25))
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ReadError, match="far too large"):
        read(path)
    took, peak = time.monotonic() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 1
    assert peak < 100e6


def test_a_deflated_bomb_is_refused(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    ds = instance(np.zeros((2, 2), np.uint8))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.PixelData = bytes(3 * 10**8)
    path = save(tmp_path, ds) / "0.dcm"
    tracemalloc.start()
    with pytest.raises(ReadError):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_several_series_are_listed_not_guessed(tmp_path: Path):
    save(tmp_path / "a", stack(3))
    save(tmp_path / "b", stack(4, SeriesInstanceUID="1.2.9"))
    with pytest.raises(ReadError, match=r"several series: one is wanted.*2: series-"):
        read(tmp_path)


def test_a_file_name_that_identifies_is_replaced(tmp_path):
    """The name of a file is told, unless it holds the file's own patient, date or UIDs."""
    files = stack(4)
    del files[1]
    save(tmp_path, files)
    for number, name in enumerate(("doe_1", "SECRET17-2", "plain")):
        (tmp_path / f"{number}.dcm").rename(tmp_path / f"{name}.dcm")
    store = tmp_path.parent / "store.json"
    first, again = (scan(tmp_path, progress=False, store=store) for _ in range(2))
    assert first[0].problems == again[0].problems
    with pytest.raises(ReadError, match=r"^(file-[0-9a-f]{6}|plain)\.dcm: gap"):
        again[0].read()
    for text in (first.to_json(), first.to_csv(), first.to_table(), store.read_text()):
        assert "doe" not in text
        assert "plain" not in text.replace("plain images", "")


def test_one_series_uid_under_two_patients_is_two_series(tmp_path):
    others = stack(4, PatientID="OTHER")
    with pytest.warns(MedTransferWarning, match="several patients"):
        found = scan(save(tmp_path, stack(3) + others), progress=False)
    assert sorted(r.n_files for r in found) == [3, 4]
    assert len({r.patient for r in found}) == 2


def test_other_mixtures_are_told_or_refused(tmp_path):
    files = stack(4)
    files[2].PhotometricInterpretation = "MONOCHROME1"
    with pytest.raises(ReadError, match="mixed photometric"):
        read(save(tmp_path / "a", files))
    files = stack(4)
    for number, ds in enumerate(files):
        ds.FrameOfReferenceUID = f"1.2.{number}"
    with pytest.warns(MedTransferWarning, match="frame of reference"):
        read(save(tmp_path / "b", files))
    view = instance(np.zeros((3, 4), np.uint16), Modality="DX")
    found = scan(save(tmp_path / "c", [view, view]), progress=False)
    assert [[p.name for p in r.problems] for r in found] == [[], ["duplicate"]]


def test_nothing_is_said_at_debug_level_or_in_a_traceback(tmp_path, caplog):
    """Text inside pictures and the folders of files that cannot be opened stay out of logs and chained errors."""
    import logging
    import traceback

    import PIL.Image
    import PIL.PngImagePlugin

    folder = tmp_path / "DOE_JANE"
    folder.mkdir()
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Patient", "SECRET17 Doe")
    picture = PIL.Image.new("L", (5, 4))
    picture.save(folder / "a.png", pnginfo=text)
    picture.save(folder / "b.tif", description="SECRET17 Doe")
    (folder / "c.png").write_bytes(b"not a picture")
    save(folder / "Doe", stack(3))
    with caplog.at_level(logging.DEBUG):
        found = scan(folder, progress=False)
        trouble = ""
        (folder / "a.png").unlink()
        for record in found:
            try:
                record.read()
            except MedTransferError as error:
                trouble += "".join(traceback.format_exception(error, limit=0))
    assert trouble.count("medtransfer.errors.ReadError") == 2
    for said in (caplog.text, trouble):
        assert not [c for c in ("SECRET17", "Doe", "DOE_JANE") if c in said]


def test_names_in_any_bytes(tmp_path):
    import PIL.Image

    PIL.Image.new("L", (5, 4)).save(tmp_path / "a.png")
    save(tmp_path, instance(np.zeros((2, 3), np.uint8), Modality="DX", SeriesInstanceUID="", SOPInstanceUID=""))
    try:
        for old, new in (("a.png", b"\xff\xfe.png"), ("0.dcm", "影像 ä.dcm".encode())):
            os.rename(os.fsencode(tmp_path / old), os.path.join(os.fsencode(tmp_path), new))
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    found = scan(tmp_path, progress=False, store=tmp_path.parent / "names.json")
    assert sorted(r.read().array.shape for r in found) == [(2, 3), (4, 5)]
    assert found.to_json()
