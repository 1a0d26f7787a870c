"""What we write, judged by others: dicom3tools' and dcmtk's checks, and highdicom's readers."""

import shutil
import subprocess
import warnings

import numpy as np
import pytest
from test_out import TRUTH, marked, regular_volumes

from medtransfer.errors import DataError
from medtransfer.io.scan import scan
from medtransfer.io.segments import read_segmentation, segment_names

hd = pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
pydicom = pytest.importorskip("pydicom")


def said(tool, *files):
    """Standard error of a checker, or a skip where it is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian packages dicom3tools and dcmtk)")
    done = subprocess.run([tool, *map(str, files)], capture_output=True, text=True, errors="replace", timeout=60)
    return done.returncode, done.stdout + done.stderr


def errors_of(*files):
    """Errors that dciodvfy finds in each file, and dcentvfy between them, warnings left aside."""
    found = []
    for file in files:
        found += [line for line in said("dciodvfy", file)[1].splitlines() if line.startswith("Error")]
    return found


def record_of(case, kind="volume"):
    if not regular_volumes():
        pytest.skip("the DICOM truth set is not beside this repository")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(r for r in scan(TRUTH / "open" / case, progress=False) if r.kind == kind and r.ok)


@pytest.mark.slow
@pytest.mark.parametrize("name", regular_volumes())
def test_objects_of_every_volume_hold_to_the_standard(name, tmp_path):
    from medtransfer.out.seg import write_seg
    from medtransfer.out.sr import write_sr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = [r for r in scan(TRUTH / "open" / name, progress=False) if r.kind == "volume" and r.ok]
    assert records
    for record in records:
        labels = marked(record.shape[:3])
        seg = write_seg(labels, record, tmp_path / "mask.dcm", structures=("absent", "two", "one")[::-1])
        sr = write_sr(record, tmp_path / "sr.dcm", volumes_ml={"two": 12.5, "absent": 0.0}, seg=seg)
        assert errors_of(seg, sr) == []
        told = said("dcentvfy", seg, sr, *record.files)[1].splitlines()
        assert not [line for line in told if "Error" in line and ("mask.dcm" in line or "sr.dcm" in line)]


@pytest.mark.parametrize("present", [(), (1,), (2,), (3,), (1, 3), (1, 2, 3)])
def test_numbers_of_segments_do_not_depend_on_what_a_mask_marks(present, tmp_path):
    from medtransfer.out.seg import write_seg

    record = record_of("ct_regular")
    labels = np.zeros(record.shape[:3], np.uint8)
    for value in present:
        labels[value, 2 * value : 2 * value + 3, value % record.shape[2]] = value
    names = ("liver", "left kidney", "Körper")
    file = write_seg(labels, record, tmp_path / "mask.dcm", structures=names)
    image = record.read()
    back, _ = read_segmentation(file, image)
    assert int((back != labels).sum()) == 0
    assert segment_names(file) == dict(enumerate(names, start=1))
    theirs = hd.seg.segread(file)
    assert [theirs.get_segment_description(i).segment_label for i in (1, 2, 3)] == list(names)
    assert [int(s.SegmentNumber) for s in theirs.SegmentSequence] == [1, 2, 3]
    frames = pydicom.dcmread(file).NumberOfFrames
    assert frames == (len(present) or len(names))  # one slice each; an empty mask has one empty frame a segment
    assert errors_of(file) == []


def test_a_mask_with_a_label_nobody_named_is_refused(tmp_path):
    from medtransfer.out.seg import write_seg

    record = record_of("ct_regular")
    labels = marked(record.shape[:3])
    for names in (("one",), ("one", "one"), ()):
        with pytest.raises(DataError, match="name of its own"):
            write_seg(labels, record, tmp_path / "mask.dcm", structures=names)


def test_a_report_of_classes_says_who_found_what_on_which_images(tmp_path):
    from medtransfer.out.sr import write_sr

    record = record_of("dx_mono1", kind="image")
    file = write_sr(
        record,
        tmp_path / "sr.dcm",
        probabilities={"healthy": 0.2, "ill": 0.8},
        thresholds={"ill": 0.35},
        values={"age": 61.5},
        model="imagenet/resnet50",
        version="1.2+abc",
    )
    report = hd.sr.srread(file)
    source = pydicom.dcmread(record.files[0], stop_before_pixels=True)
    assert report.StudyInstanceUID == source.StudyInstanceUID
    assert report.PatientID == source.PatientID
    groups = {g.tracking_identifier: g for g in report.content.get_image_measurement_groups()}
    assert set(groups) == {"healthy", "ill", "age"}
    measured = {m.name.meaning: (m.value, m.unit.value) for m in groups["ill"].get_measurements()}
    assert measured == {"Probability": (0.8, "1"), "Threshold Value": (0.35, "1")}
    assert [e.value.meaning for e in groups["ill"].get_qualitative_evaluations()] == ["Yes"]
    assert groups["healthy"].get_qualitative_evaluations() == []
    assert groups["age"].get_measurements()[0].value == 61.5
    assert groups["ill"].finding_type.meaning == "ill"
    assert groups["ill"].source_images[0].referenced_sop_instance_uid == source.SOPInstanceUID
    again = write_sr(record, tmp_path / "again.dcm", probabilities={"ill": 0.1})
    other = hd.sr.srread(again).content.get_image_measurement_groups()[0]
    assert other.finding_type == groups["ill"].finding_type  # one name has one code in all reports
    assert errors_of(file) == []
    code, text = said("dsrdump", file)
    assert code == 0
    assert '"Algorithm Name")="imagenet/resnet50"' in text
    assert '"Algorithm Version")="1.2+abc"' in text
    assert "PRELIMINARY" in text


def test_a_report_refers_to_dicom_alone(tmp_path):
    import PIL.Image

    from medtransfer.out.sr import write_sr

    PIL.Image.new("L", (8, 8)).save(tmp_path / "a.png")
    record = scan(tmp_path / "a.png", progress=False)[0]
    with pytest.raises(DataError, match="DICOM files"):
        write_sr(record, tmp_path / "sr.dcm", probabilities={"ill": 0.5})
    with pytest.raises(DataError, match="nothing to report"):
        write_sr(record, tmp_path / "sr.dcm")
