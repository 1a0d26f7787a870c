"""From a DICOM dump with DICOM SEG objects to a trained segmentation and DICOM SEG again: not one voxel may move."""

import csv

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from small_dicom import NAMES, two_balls, write_dump, write_reference, write_series
from small_masks import config

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.errors import CohortError, ConfigError
from medtransfer.segment.masks import read_pair

hd = pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return write_dump(tmp_path_factory.mktemp("dump"))


def pixels_of(seg, files):
    """Labels [slices, rows, columns] of a SEG by the files they are of, as highdicom reads them."""
    found = hd.seg.segread(seg)
    uids = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files]
    return found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)


def test_a_dump_with_its_masks_is_a_cohort_without_a_table(dump):
    cohort = mt.Cohort.from_dicom(dump, mask="SEG", progress=False)
    assert len(cohort) == 8
    assert len(set(cohort.patients.tolist())) == 8
    files = sorted((dump / "study3" / "images").glob("*.dcm"))
    case = next(c for c in cohort if c.image.files[0] in files)
    image, labels, note = read_pair(case, 3)
    assert note == ""
    theirs = pixels_of(dump / "study3" / "seg" / "mask.dcm", files)
    values = np.stack([pydicom.dcmread(f).pixel_array for f in files])
    assert sorted(image.array[labels > 0].tolist()) == sorted(values[theirs > 0].tolist())  # the mask is on its voxels
    for value in (1, 2):
        assert image.array[labels == value].sum() == values[theirs == value].sum()


def test_from_dump_to_segments_and_back(dump, tmp_path):
    text = config(dump, tmp_path / "run", cohort="{dicom: .}", split="{val: 0.25, test: 0.25, seed: 0}",
                  recipe="{method: full, freeze_epochs: 0, epochs: 2, lr: 0.01, backbone_lr_scale: 1}")  # fmt: skip
    (tmp_path / "seg.yaml").write_text(text)
    done = CliRunner().invoke(cli, ["train", str(tmp_path / "seg.yaml"), "-q"])
    assert done.exit_code == 0, done.output
    folder = dump / "study1" / "images"
    made = CliRunner().invoke(
        cli, ["predict", str(tmp_path / "run"), str(folder), "--as", "seg", "--out", str(tmp_path / "new"), "-q"]
    )
    assert made.exit_code == 0, made.output
    row = next(csv.DictReader(made.output.splitlines()))
    seg = tmp_path / "new" / row["mask"]
    cohort = mt.Cohort.from_dicom(dump, mask="SEG", progress=False)
    from medtransfer.segment.run import SegmentationRun

    run = SegmentationRun.open(tmp_path / "run", cohort)
    case = next(c for c in cohort if c.image.files[0].parent == folder)
    labels = run.segment(case.read(), where=case.alias)
    assert labels.any()
    for file in (dump / "study1" / "seg").iterdir():  # the prediction takes the reference's place in a second dump
        assert hd.seg.segread(file).StudyInstanceUID == hd.seg.segread(seg).StudyInstanceUID
    second = tmp_path / "second"
    second.mkdir()
    (second / "images").symlink_to(folder)
    (second / "mask.dcm").write_bytes(seg.read_bytes())
    back = mt.Cohort.from_dicom(second, mask="SEG", progress=False)
    _, again, _ = read_pair(back[0], 3)
    assert int((again != labels).sum()) == 0
    theirs = pixels_of(seg, sorted(folder.glob("*.dcm")))
    assert {v: int((theirs == v).sum()) for v in (1, 2)} == {v: int((labels == v).sum()) for v in (1, 2)}
    spacing = 1.25 * 0.75 * 2.0 / 1000
    assert float(row["ml:large"]) == pytest.approx((theirs == 1).sum() * spacing, abs=1e-3)


def test_a_column_names_masks_too(dump, tmp_path):
    rows = ["PatientID,mask,part"] + [f"P{i},study{i}/seg/mask.dcm,train" for i in range(6)] + ["P6,,test"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    cohort = mt.Cohort.from_dicom(
        dump, labels=tmp_path / "t.csv", mask="mask", root=dump, choose="most_slices", progress=False
    )
    assert len(cohort) == 6
    assert "without a mask" in str(cohort.flow)
    assert all(c.mask.parent.parent == c.image.files[0].parent.parent for c in cohort)


def test_what_cannot_be_matched_is_refused(dump, tmp_path):
    with pytest.raises(ConfigError, match="without a table"):
        mt.Cohort.from_dicom(dump, progress=False)
    rng = np.random.default_rng(5)
    values, labels = two_balls(rng, (14, 20, 18))
    files = write_series(tmp_path / "images", values, patient="P")
    with pytest.raises(CohortError, match="no DICOM SEG"):
        mt.Cohort.from_dicom(tmp_path, mask="SEG", progress=False)
    write_reference(files, labels, tmp_path / "a.dcm")
    write_reference(files, labels, tmp_path / "b.dcm")
    with pytest.raises(CohortError, match="several DICOM SEG"):
        mt.Cohort.from_dicom(tmp_path, mask="SEG", progress=False)
    other = write_series(tmp_path / "other", values, patient="Q")
    write_reference(other, labels, tmp_path / "b.dcm", names=NAMES[::-1])
    with pytest.raises(CohortError, match="segment 1 is not one structure"):
        mt.Cohort.from_dicom(tmp_path, mask="SEG", progress=False)
