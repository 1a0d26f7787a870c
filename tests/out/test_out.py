"""Masks and measurements written and read back: not one voxel may move."""

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medtransfer.errors import DataError, ReadError
from medtransfer.image import Geometry, Image
from medtransfer.io import read
from medtransfer.io.grid import check_same_grid
from medtransfer.io.scan import scan
from medtransfer.io.segments import read_segmentation, slices_of
from medtransfer.out.nifti import write_mask

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "dicom_truth"


def regular_volumes():
    if not (TRUTH / "open.json").is_file():
        return []
    cases = json.loads((TRUTH / "open.json").read_text())["cases"]
    return [c["id"] for c in cases if any(v.get("affine_ras") for v in c["expected"] or ())]


def marked(shape, seed=0):
    """Structures 1 and 2 at random voxels, and at the corners, where an axis that is flipped shows."""
    labels = np.random.default_rng(seed).choice(3, size=shape, p=(0.9, 0.06, 0.04)).astype(np.uint8)
    labels[0, 0, 0], labels[-1, 0, 0], labels[0, -1, 0], labels[0, 0, -1] = 1, 2, 2, 1
    return labels


@pytest.mark.parametrize("name", regular_volumes())
def test_no_voxel_moves_on_the_way_out_and_back(name, tmp_path):
    pytest.importorskip("highdicom")
    from medtransfer.out.seg import write_seg

    volumes = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in scan(TRUTH / "open" / name, progress=False):
            if record.kind != "volume" or not record.ok:
                continue
            image = record.read()
            labels = marked(image.spatial_shape)
            write_mask(labels, image, tmp_path / "mask.nii.gz")
            nifti = read(tmp_path / "mask.nii.gz", labels=True)
            check_same_grid(image, nifti)
            assert int((nifti.array != labels).sum()) == 0
            file = write_seg(labels, record, tmp_path / "mask.dcm", structures=("one", "two"))
            back, off = read_segmentation(file, image)
            assert int((back != labels).sum()) == 0
            assert off < 0.01
            plain = read(file)  # the package's reader of any DICOM volume, which knows nothing of the writer
            check_same_grid(Image(image.array[..., 0] if image.array.ndim > 3 else image.array, image.geometry),
                            Image(plain.array[..., 0], plain.geometry), tolerance=0.02)  # fmt: skip
            assert np.array_equal(plain.array[..., 0] > 0, labels == 1)
            volumes += 1
    assert volumes


def test_another_library_reads_the_same_segments_and_where_they_come_from(tmp_path):
    hd = pytest.importorskip("highdicom")
    import pydicom

    from medtransfer.out.seg import write_seg

    if not regular_volumes():
        pytest.skip("the DICOM truth set is not beside this repository")
    record = next(r for r in scan(TRUTH / "open" / "ct_regular", progress=False) if r.kind == "volume")
    labels = marked(record.shape[:3])
    file = write_seg(labels, record, tmp_path / "mask.dcm", structures=("one", "two"))
    found = hd.seg.segread(file)
    sources = [pydicom.dcmread(f, stop_before_pixels=True) for f in record.files]
    assert found.StudyInstanceUID == sources[0].StudyInstanceUID
    assert found.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    refers = {i.ReferencedSOPInstanceUID for i in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert refers == {s.SOPInstanceUID for s in sources}
    for source in sources:
        pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)[0]
        # pixel (row, column) of this file in RAS+ millimetres, by the DICOM standard's own formula
        row, column = np.array(source.ImageOrientationPatient[:3]), np.array(source.ImageOrientationPatient[3:])
        r, c = np.indices(pixels.shape)
        at = (np.array(source.ImagePositionPatient)[:, None, None] + row[:, None, None] * c * source.PixelSpacing[1]
              + column[:, None, None] * r * source.PixelSpacing[0])  # fmt: skip
        ras = np.concatenate([-at[:2], at[2:], np.ones((1, *pixels.shape))])
        index = np.rint(np.tensordot(np.linalg.inv(record.read().geometry.affine), ras, axes=1)[:3]).astype(int)
        assert np.array_equal(pixels, labels[tuple(index)])


def test_sparse_frames_of_a_segmentation_still_find_their_slices(tmp_path):
    hd = pytest.importorskip("highdicom")
    from medtransfer.out.source import sources_of

    if not regular_volumes():
        pytest.skip("the DICOM truth set is not beside this repository")
    record = next(r for r in scan(TRUTH / "open" / "mr_ge_anat", progress=False) if r.kind == "volume")
    image = record.read()
    slices = slices_of(record)
    labels = np.zeros(image.spatial_shape, np.uint8)
    stacked = slices.stack(labels)
    stacked[2, 10:20, 30:35] = 1
    code = hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    how = hd.AlgorithmIdentificationSequence("test", code, "1")
    segment = hd.seg.SegmentDescription(1, "one", code, code, "AUTOMATIC", how)
    made = hd.seg.Segmentation(
        sources_of(slices.frames), stacked, "BINARY", [segment], hd.UID(), 1, hd.UID(), 1, "x", "x", "1", "1"
    )
    assert made.NumberOfFrames == 1
    made.save_as(tmp_path / "sparse.dcm")
    found, off = read_segmentation(tmp_path / "sparse.dcm", image)
    assert np.array_equal(slices.stack(found), stacked)
    assert off < 0.01


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "IRP", "SAL"])
def test_a_mask_of_a_nifti_file_has_that_files_axes_and_affine(axes, tmp_path):
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    order = nibabel.orientations.axcodes2ornt(tuple(axes))
    base = np.eye(4)
    base[:3, :3] = np.eye(3)[:, [list(order[:, 0]).index(i) for i in range(3)]].T * order[:, 1]
    base[:3, :3] = _slightly(turn) @ base[:3, :3] @ np.diag([0.7, 1.3, 4.0])
    base[:3, 3] = (-20.5, 33.25, 7)
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(5, 6, 7)).astype(np.float32), base), tmp_path / "image.nii.gz")
    image = read(tmp_path / "image.nii.gz")
    labels = marked(image.spatial_shape, 1)
    write_mask(labels, image, tmp_path / "mask.nii.gz", source=tmp_path / "image.nii.gz")
    theirs, ours = nibabel.load(tmp_path / "image.nii.gz"), nibabel.load(tmp_path / "mask.nii.gz")
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.affine, theirs.affine)
    canonical = np.asarray(nibabel.as_closest_canonical(ours).dataobj)
    assert np.array_equal(canonical, labels)


def _slightly(turn):
    """A rotation of at most some degrees, so that the closest axes stay what they were."""
    skew = 0.05 * (turn - turn.T)
    return np.linalg.solve(np.eye(3) + skew, np.eye(3) - skew)


def test_measurements_name_their_segment_and_their_unit(tmp_path):
    hd = pytest.importorskip("highdicom")
    from medtransfer.out.seg import write_seg
    from medtransfer.out.sr import write_sr

    if not regular_volumes():
        pytest.skip("the DICOM truth set is not beside this repository")
    record = next(r for r in scan(TRUTH / "open" / "ct_regular", progress=False) if r.kind == "volume")
    labels = marked(record.shape[:3])
    seg = write_seg(labels, record, tmp_path / "mask.dcm", structures=("one", "two"))
    file = write_sr(record, tmp_path / "sr.dcm", volumes_ml={"two": 12.5}, seg=seg, probabilities={"ill": 0.25})
    report = hd.sr.srread(file)
    group = report.content.get_volumetric_roi_measurement_groups()[0]
    measured = group.get_measurements()[0]
    assert (measured.value, measured.unit.value) == (12.5, "mL")
    assert group.reference_type == hd.sr.CodedConcept("121191", "DCM", "Referenced Segment")
    other = report.content.get_image_measurement_groups()[0].get_measurements()[0]
    assert other.value == 0.25
    with pytest.raises(DataError, match="no segment 'three'"):
        write_sr(record, tmp_path / "sr.dcm", volumes_ml={"three": 1.0}, seg=seg)


def test_a_mask_of_another_shape_is_refused(tmp_path):
    image = Image(np.zeros((2, 3, 4)), Geometry.from_affine(np.eye(4)))
    with pytest.raises(DataError, match="not on the voxels"):
        write_mask(np.zeros((2, 3, 5), np.uint8), image, tmp_path / "mask.nii")


def test_a_segmentation_needs_a_volume():
    with pytest.raises(ReadError, match="plain image"):
        read_segmentation(Path("mask.dcm"), Image(np.zeros((2, 3))))
