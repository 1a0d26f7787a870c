"""DICOM that goes out names nobody: canaries in all that holds text, in sequences, private and overlay elements."""

import shutil
import subprocess
import warnings
from datetime import date

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from small_dicom import write_series

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.deid.dataset import Options, actions, deidentify_dataset, new_uid
from medtransfer.errors import ConfigError, DataError

CANARY = "Canary"
DATE, UID = "19310217", "1.2.826.0.1.3680043.8.498.4711"
TEXTS = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}


def value_of(vr):
    """A canary that fits a value representation; None where it holds no text."""
    known = {"AS": "077Y", "CS": "CANARY", "DA": DATE, "DT": f"{DATE}112233", "TM": "112233.4711", "UI": f"{UID}.1",
             "UR": "http:Canary"}  # fmt: skip
    return CANARY if vr in TEXTS else known.get(vr)


def hits(raw):
    return [w for w in (b"canary", DATE.encode(), UID.encode(), b"112233.4711", b"077Y") if w.lower() in raw.lower()]


def canaries(ds, depth=0):
    """Every element of the profile's table that holds text, and free text that no table names."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    planted = 0
    for tag in [*actions(), 0x00181008, 0x0040A123, 0x00284000, 0x00181251]:
        if not dictionary_has_tag(tag) or tag >> 16 in (0x0002, 0x0000):
            continue
        vr, keyword = dictionary_VR(tag), keyword_for_tag(tag)
        if keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            continue
        if vr == "SQ" and depth == 0:
            item = Dataset()
            canaries(item, 1)
            ds.add_new(tag, "SQ", Sequence([item]))
        elif vr in ("OB", "UN"):
            ds.add_new(tag, vr, b"Canary")
        elif value_of(vr) is not None:
            ds.add_new(tag, vr, value_of(vr))
            planted += 1
    return planted


@pytest.fixture
def planted(tmp_path):
    folder = tmp_path / "canary"
    files = write_series(folder, np.arange(3 * 40).reshape(3, 5, 8), patient="CANARY1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            ds = pydicom.dcmread(file)
            assert canaries(ds) > 300
            block = ds.private_block(0x0011, "CANARYMAKER", create=True)
            block.add_new(1, "LO", CANARY)
            nested = Dataset()
            nested.private_block(0x0013, "CANARYINNER", create=True).add_new(2, "UT", CANARY)
            block.add_new(2, "SQ", Sequence([nested]))
            ds.add_new(0x60003000, "OW", b"Canary")
            ds.add_new(0x60021500, "LO", CANARY)
            ds.add_new(0x50003000, "OW", b"Canary")
            ds.add_new(0x00090010, "LO", "CANARYLOOSE")
            ds.add_new(0x0040FFFE, "LO", CANARY)  # no element of the standard
            ds.SpecificCharacterSet = "ISO_IR 192"
            ds.AnatomicRegionSequence = [Dataset()]
            item = ds.AnatomicRegionSequence[0]
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "SCT", "of CANARY1"
            item.PatientName = "Canary^Nested"
            ds.Manufacturer, ds.BurnedInAnnotation = "Maker", "NO"
            ds.preamble = b"Canary".ljust(128, b"\0")
            ds.file_meta.SourceApplicationEntityTitle = "CANARY"
            ds.save_as(file)
    return folder


def test_no_canary_leaves_and_the_image_stays(planted, tmp_path):
    before = mt.read(planted)
    done = mt.deidentify(planted, tmp_path / "out", progress=False)
    assert (done.written, done.left_out) == (3, {})
    written = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(written) == 3
    for path in written:
        assert not hits(str(path.relative_to(tmp_path / "out")).encode())
        assert not hits(path.read_bytes())
    after = mt.read(written[0].parent)
    assert np.array_equal(before.array, after.array)
    assert np.allclose(before.geometry.affine, after.geometry.affine, atol=1e-9)
    one = pydicom.dcmread(written[0])
    assert one.PatientIdentityRemoved == "YES"
    assert str(one.PatientName) == one.PatientID
    assert one.PatientID.startswith("patient-")
    assert [i.CodeValue for i in one.DeidentificationMethodCodeSequence] == ["113100"]
    assert one.LongitudinalTemporalInformationModified == "REMOVED"
    assert one.Manufacturer == "Maker"
    assert len({pydicom.dcmread(p).SeriesInstanceUID for p in written}) == 1
    assert len({pydicom.dcmread(p).SOPInstanceUID for p in written}) == 3
    again = mt.deidentify([planted / "000.dcm"], tmp_path / "again", progress=False)
    assert next(again.folder.rglob("*.dcm")).read_bytes() in [p.read_bytes() for p in written]


def test_an_independent_list_of_the_profile_agrees(planted):
    """dicom-anonymizer knows the table too: what it removes or changes, we do not let through."""
    theirs = pytest.importorskip("dicomanonymizer", reason="dicom-anonymizer is not installed")
    found = pydicom.dcmread(planted / "000.dcm")
    ours, other = pydicom.dcmread(planted / "000.dcm"), pydicom.dcmread(planted / "000.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deidentify_dataset(ours)
        theirs.anonymize_dataset(other)
    changed = [e.tag for e in found if e.tag not in other or other[e.tag].value != e.value]
    assert len(changed) > 300
    kept = [t for t in changed if t in ours and ours[t].value == found[t].value and not ours[t].is_empty]
    assert [str(t) for t in kept] == []


def test_what_the_options_keep_is_kept_and_told():
    def made():
        ds = Dataset()
        ds.PatientID, ds.PatientName, ds.PatientSex, ds.PatientAge, ds.PatientWeight = "P7", "A^B", "F", "093Y", "61"
        ds.StudyDate, ds.AcquisitionDate, ds.AcquisitionDateTime = "20200131", "20200203", "20200203101112.5+0100"
        ds.AcquisitionTime, ds.PatientBirthDate, ds.StudyInstanceUID = "101112", "19270101", "1.2.3"
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        return ds

    plain, kept, other = made(), made(), made()
    other.PatientID = "P8"
    deidentify_dataset(plain)
    assert not plain.StudyDate
    assert not plain.PatientSex
    assert not any(k in plain for k in ("PatientAge", "PatientWeight"))
    assert plain.get("AcquisitionDateTime", "")[:8] in ("", "19000101")
    assert plain.StudyInstanceUID == new_uid("1.2.3") != "1.2.3"
    assert plain.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    options = Options(shift_dates=True, keep_uids=True, characteristics=True)
    deidentify_dataset(kept, options)
    deidentify_dataset(other, options)
    days = [date(int(d[:4]), int(d[4:6]), int(d[6:8])) for d in (kept.StudyDate, kept.AcquisitionDate)]
    assert (days[1] - days[0]).days == 3  # 31 January to 3 February
    assert 365 <= (date(2020, 1, 31) - days[0]).days < 3650
    assert kept.AcquisitionDateTime == kept.AcquisitionDate + "101112.5+0100"
    assert kept.StudyDate != other.StudyDate
    assert not kept.PatientBirthDate
    assert (kept.PatientSex, kept.PatientAge, str(kept.PatientWeight)) == ("F", "090Y", "61")
    assert kept.StudyInstanceUID == "1.2.3"
    codes = [i.CodeValue for i in kept.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108", "113110"]


def test_text_in_the_pixels_is_refused_until_somebody_looked(tmp_path):
    values = np.zeros((1, 4, 4))
    write_series(tmp_path / "a", values, patient="A", Modality="US")
    write_series(tmp_path / "b", values, patient="B", BurnedInAnnotation="YES")
    write_series(tmp_path / "c", values, patient="C")
    write_series(tmp_path / "d", values, patient="D", Modality="US", BurnedInAnnotation="NO")
    write_series(tmp_path / "e", values, patient="E", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    sources = [tmp_path / name for name in "abcde"]
    with pytest.raises(DataError, match="nothing was written") as refused:
        mt.deidentify(sources, tmp_path / "out", progress=False)
    assert "1 text may be burned in: US" in str(refused.value)
    assert not (tmp_path / "out").exists()
    done = mt.deidentify(sources, tmp_path / "out", burned_in="skip", progress=False)
    assert (done.written, sum(done.left_out.values())) == (2, 3)
    every = CliRunner().invoke(
        cli, ["deidentify", *map(str, sources), str(tmp_path / "all"), "--burned-in", "accept", "-q"]
    )
    assert every.exit_code == 0, every.output
    assert "5 files" in every.output
    (tmp_path / "a" / "notes.txt").write_text("Canary")
    sr = pydicom.dcmread(next((tmp_path / "c").glob("*.dcm")))
    del sr.PixelData
    sr.save_as(tmp_path / "c" / "report.dcm")
    done = mt.deidentify([tmp_path / "a", tmp_path / "c"], tmp_path / "some", burned_in="skip", progress=False)
    assert done.written == 1
    assert {"not DICOM": 1, "without pixels": 1}.items() <= done.left_out.items()
    with pytest.raises(ConfigError, match="among their sources"):
        mt.deidentify(tmp_path / "a", tmp_path / "a" / "out", progress=False)


NAMES = ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "examples_overlay.dcm", "MR_small_bigendian.dcm",
         "693_J2KI.dcm", "SC_rgb_small_odd.dcm", "liver.dcm", "rtdose.dcm"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_real_files_keep_their_pixels_and_lose_their_names(name, tmp_path):
    source = get_testdata_file(name, download=False)
    if source is None:
        pytest.skip(f"{name} does not come with this pydicom")
    before = pydicom.dcmread(source)
    done = mt.deidentify(source, tmp_path / "out", burned_in="accept", progress=False)
    path = next(done.folder.rglob("*.dcm"))
    after = pydicom.dcmread(path)
    assert after.PixelData == before.PixelData
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    raw = path.read_bytes()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "AccessionNumber", "StudyDate"):
        value = str(before.get(keyword) or "")
        assert len(value) < 4 or value.encode() not in raw, keyword
    assert not [e for e in after.iterall() if e.tag.is_private]
    if name == "CT_small.dcm" and shutil.which("dciodvfy"):
        errors = [{line for line in checked(p) if "Missing" in line or "Empty" in line} for p in (source, path)]
        assert errors[1] <= errors[0]  # nothing that the standard wants was lost


def checked(path):
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", timeout=60)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def test_masks_and_reports_belong_to_the_de_identified_series(planted, tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    from medtransfer.io.segments import read_segmentation, segment_names
    from medtransfer.out.seg import write_seg
    from medtransfer.out.sr import write_sr

    record = mt.scan(planted, progress=False)[0]
    labels = np.zeros(record.shape[:3], np.uint8)
    labels[2, 3, 1] = 2
    seg = write_seg(labels, record, tmp_path / "m" / "seg.dcm", structures=("liver", "spleen"), deidentified=True)
    sr = write_sr(record, tmp_path / "m" / "sr.dcm", volumes_ml={"spleen": 1.5}, seg=seg, deidentified=True)
    copies = mt.deidentify(planted, tmp_path / "out", progress=False).folder
    sources = {pydicom.dcmread(p).SOPInstanceUID for p in copies.rglob("*.dcm")}
    one = pydicom.dcmread(next(copies.rglob("*.dcm")))
    for path in (seg, sr):
        made = pydicom.dcmread(path)
        assert not hits(path.read_bytes())
        assert (made.PatientID, made.StudyInstanceUID) == (one.PatientID, one.StudyInstanceUID)
        assert [i.CodeValue for i in made.DeidentificationMethodCodeSequence] == ["113100"]
    made = pydicom.dcmread(seg)
    refers = {i.ReferencedSOPInstanceUID for i in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert refers == sources
    assert pydicom.dcmread(sr).CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == one.StudyInstanceUID
    evidence = [i.ReferencedSOPInstanceUID for e in pydicom.dcmread(sr).CurrentRequestedProcedureEvidenceSequence
                for s in e.ReferencedSeriesSequence for i in s.ReferencedSOPSequence]  # fmt: skip
    assert made.SOPInstanceUID in evidence
    assert segment_names(seg) == {1: "liver", 2: "spleen"}
    back, _ = read_segmentation(seg, mt.read(next(copies.rglob("*.dcm")).parent))
    assert np.array_equal(back, labels)
    if shutil.which("dciodvfy"):
        write_series(tmp_path / "plain", np.zeros((3, 5, 8)), patient="CANARY2", BurnedInAnnotation="NO")
        plain = mt.scan(tmp_path / "plain", progress=False)[0]
        seg = write_seg(labels, plain, tmp_path / "seg.dcm", structures=("liver", "spleen"), deidentified=True)
        sr = write_sr(plain, tmp_path / "sr.dcm", volumes_ml={"spleen": 1.5}, seg=seg, deidentified=True)
        copy = next(mt.deidentify(tmp_path / "plain", tmp_path / "p", progress=False).folder.rglob("*.dcm"))
        assert [*checked(seg), *checked(sr), *checked(copy)] == []
