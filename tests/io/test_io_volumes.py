"""Volumes: every voxel lies where the DICOM definition puts it, and what is no even grid is named."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_files import instance, item, placed, save, stack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medtransfer.errors import MedTransferWarning, ReadError
from medtransfer.io import read
from medtransfer.io.scan import scan


def names(found: object) -> set[str]:
    return {p.name for record in found for p in record.problems}  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1),
    spacing=st.tuples(*[st.floats(0.3, 3)] * 3),
    order=st.permutations(range(4)),
    corner=st.tuples(*[st.floats(-200, 200)] * 3),
)
def test_every_voxel_lies_where_dicom_says(tmp_path_factory, turn, spacing, order, corner):
    """PS3.3 C.7.6.2.1.1: P = IPP + row direction * column spacing * c + column direction * row spacing * r."""
    w, x, y, z = turn / np.linalg.norm(turn)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    row, column, normal = rotation.T
    pixels = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)  # slices, rows, columns
    places = [np.array(corner) + normal * spacing[2] * k for k in range(4)]
    files = [
        placed(
            pixels[k],
            [f"{v:.9g}" for v in places[k]],
            ImageOrientationPatient=[f"{v:.10f}" for v in (*row, *column)],
            PixelSpacing=[f"{spacing[0]:.8f}", f"{spacing[1]:.8f}"],
            InstanceNumber=k + 1,
        )
        for k in order
    ]
    folder = save(tmp_path_factory.mktemp("series"), files)
    image = read(folder)
    inverse = np.linalg.inv(image.geometry.affine)
    for k in range(4):
        for r in range(3):
            for c in range(5):
                lps = places[k] + row * spacing[1] * c + column * spacing[0] * r
                index = inverse @ np.array([-lps[0], -lps[1], lps[2], 1])
                assert np.abs(index[:3] - np.rint(index[:3])).max() < 0.01
                assert image.array[tuple(np.rint(index[:3]).astype(int))] == pixels[k, r, c]
    if np.diff(np.sort(np.abs(rotation), axis=0)[1:], axis=0).min() > 1e-3:  # else two answers are as close
        assert image.geometry.orientation == "RAS"
    np.testing.assert_allclose(sorted(image.geometry.spacing_mm), sorted(spacing), rtol=1e-4)


def test_affine_by_hand(tmp_path):
    """Axial, LPS corner (10, 20, 0): RAS x grows where columns fall, y where rows fall."""
    image = read(save(tmp_path, stack(4)))
    assert image.array.shape == (5, 4, 4)
    expected = [[0.25, 0, 0, -10 - 4 * 0.25], [0, 0.5, 0, -20 - 3 * 0.5], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.geometry.affine, expected)
    assert image.geometry.spacing_mm == (0.25, 0.5, 2.0)
    assert image.array[4, 3, 1] == 100  # first pixel of the second slice
    assert image.array[0, 0, 3] == 319  # last pixel of the last slice


def test_a_missing_slice_is_a_gap(tmp_path):
    files = stack(6)
    del files[2]
    found = scan(save(tmp_path, files), progress=False)
    assert names(found) == {"gap"}
    with pytest.raises(ReadError, match=r"gap: 1 slice\(s\) are missing after slice 2"):
        found[0].read()


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_gap_is_found_in_short_series(tmp_path, missing):
    files = stack(5)
    del files[missing]
    assert names(scan(save(tmp_path, files), progress=False)) == {"gap"}


def test_uneven_spacing_is_refused_and_jitter_tolerated(tmp_path):
    files = stack(5)
    files[2].ImagePositionPatient[2] = 4.7
    with pytest.raises(ReadError, match="uneven spacing"):
        read(save(tmp_path / "uneven", files))
    files[2].ImagePositionPatient[2] = 4.02
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(save(tmp_path / "jitter", files)).array.shape == (5, 4, 5)


def test_tilt_is_told_and_the_affine_is_sheared(tmp_path):
    files = stack(4)
    for k, ds in enumerate(files):
        ds.ImagePositionPatient[1] = 20 + 0.4 * k
    with pytest.warns(MedTransferWarning, match="tilt"):
        image = read(save(tmp_path, files))
    np.testing.assert_allclose(image.geometry.affine[:3, 2], [0, -0.4, 2])


def test_slices_off_the_line_are_refused(tmp_path):
    files = stack(5)
    files[2].ImagePositionPatient[0] += 3
    with pytest.raises(ReadError, match="not on a line"):
        read(save(tmp_path, files))


def test_equal_copies_are_left_out_with_a_warning(tmp_path):
    files = stack(4)
    with pytest.warns(MedTransferWarning, match="duplicate"):
        image = read(save(tmp_path, [*files, files[1]]))
    assert image.array.shape == (5, 4, 4)


def test_a_whole_series_stored_twice_is_read_once(tmp_path):
    files = stack(4)
    save(tmp_path / "a", files)
    save(tmp_path / "b", files)
    with pytest.warns(MedTransferWarning, match=r"4 slice\(s\) are there twice"):
        assert read(tmp_path).array.shape == (5, 4, 4)


def test_unequal_copies_are_refused(tmp_path):
    files = stack(4)
    other = placed(np.zeros((4, 5), np.int16), (10, 20, 2.0), InstanceNumber=2)
    with pytest.warns(MedTransferWarning), pytest.raises(ReadError, match=r"duplicate: .* different pixels"):
        read(save(tmp_path, [*files, other]))


def test_a_localiser_is_set_apart(tmp_path):
    scout = placed(np.zeros((4, 5), np.int16), (0, 0, 0), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    found = scan(save(tmp_path, [scout, *stack(4)]), progress=False)
    assert sorted(r.kind for r in found) == ["image", "volume"]
    volume = next(r for r in found if r.kind == "volume")
    with pytest.warns(MedTransferWarning, match="localiser inside"):
        assert volume.read().array.shape == (5, 4, 4)
    with pytest.raises(ReadError, match="several series"):
        read(tmp_path)


def test_mixed_orientations_are_read_apart(tmp_path):
    turned = stack(3)
    for k, ds in enumerate(turned):
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [3 * k, 0, 0]
    found = scan(save(tmp_path, stack(3) + turned), progress=False)
    assert len(found) == 2
    assert names(found) == {"mixed orientation"}


def test_mixed_sizes_are_refused(tmp_path):
    files = stack(4)
    files[2] = placed(np.zeros((3, 5), np.int16), (10, 20, 4.0))
    with pytest.raises(ReadError, match="mixed size"):
        read(save(tmp_path, files))


@pytest.mark.parametrize(
    ("tag", "finding"),
    [("PixelSpacing", "missing spacing"), ("ImageOrientationPatient", "missing orientation")],
)
def test_missing_geometry_is_refused(tmp_path, tag, finding):
    files = stack(4)
    for ds in files:
        delattr(ds, tag)
    found = scan(save(tmp_path, files), progress=False)
    assert names(found) == {finding}
    with pytest.raises(ReadError, match=finding):
        found[0].read()
    assert [r.read().array.shape for r in found[0].each()] == [(4, 5)] * 4


def test_a_decimal_comma_is_refused_not_misread(tmp_path):
    path = save(tmp_path, placed(np.zeros((4, 5), np.int16), (0, 0, 0), PixelSpacing=[2.34375, 2.34375])) / "0.dcm"
    path.write_bytes(path.read_bytes().replace(b"2.34375", b"2,34375"))
    with pytest.raises(ReadError, match=r"PixelSpacing is not 2 numbers.*2,34375.*decimal point"):
        read(path)


def test_slices_at_one_place_are_no_volume(tmp_path):
    files = [placed(np.full((4, 5), k, np.int16), (0, 0, 0), InstanceNumber=k) for k in range(3)]
    found = scan(save(tmp_path, files), progress=False)
    assert names(found) == {"not a volume"}
    assert sorted(int(r.read().array[0, 0]) for r in found[0].each()) == [0, 1, 2]
    assert len({r.instance for r in found[0].each()}) == 3


def test_a_time_series_is_split_by_time(tmp_path):
    files = []
    for t in range(3):
        for k, ds in enumerate(stack(4)):
            ds.TemporalPositionIdentifier, ds.InstanceNumber = t + 1, 1 + k * 3 + t  # numbered place by place
            ds.PixelData = (np.full((4, 5), 10 * t + k, np.int16)).tobytes()
            files.append(ds)
    for ds in files:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
    image = read(save(tmp_path, files))
    assert image.array.shape == (5, 4, 4, 3)
    assert [[int(image.array[0, 0, k, t]) for k in range(4)] for t in range(3)] == [
        [10 * t + k for k in range(4)] for t in range(3)
    ]


def test_an_incomplete_time_series_is_refused(tmp_path):
    files = [ds for t in range(2) for ds in stack(4, TemporalPositionIdentifier=t + 1)]
    with pytest.raises(ReadError, match=r"incomplete time series|duplicate"):
        read(save(tmp_path, files[:-1]))


def test_magnitude_and_phase_are_two_volumes(tmp_path):
    files = [ds for kind in "MP" for ds in stack(4, ImageType=["ORIGINAL", "PRIMARY", kind])]
    found = scan(save(tmp_path, files), progress=False)
    assert [r.shape for r in found] == [(5, 4, 4)] * 2


def test_rescale_of_each_slice(tmp_path):
    files = stack(4)
    for k, ds in enumerate(files):
        ds.RescaleSlope, ds.RescaleIntercept = [1, 2, 0.5, 1][k], [0, -100, 0, 7][k]
    image = read(save(tmp_path, files))
    assert image.array.dtype == np.float32
    assert [float(image.array[4, 3, k]) for k in range(4)] == [0, 100, 100, 307]


def enhanced(order: list[int]) -> object:
    """An enhanced file whose frames stand in the given order of places; frame values are 10 times the place."""
    pixels = np.stack([np.full((4, 5), 10 * k, np.uint16) for k in order])
    ds = instance(pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    ds.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SliceThickness=2)],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3 * k])],
            PixelValueTransformationSequence=[item(RescaleSlope=k + 1, RescaleIntercept=-1, RescaleType="US")],
        )
        for k in order
    ]
    return ds


def test_enhanced_frames_are_sorted_and_scaled(tmp_path):
    image = read(save(tmp_path, enhanced([2, 0, 3, 1])))  # type: ignore[arg-type]
    assert image.array.shape == (5, 4, 4)
    assert [float(image.array[0, 0, k]) for k in range(4)] == [10 * k * (k + 1) - 1 for k in range(4)]
    assert image.geometry.spacing_mm == (0.25, 0.5, 3.0)


def test_a_sparse_segmentation_is_filled_with_nothing(tmp_path):
    """Frames at places 0, 1 and 4 of an even grid: 2 and 3 are empty."""
    ds = enhanced([0, 1, 4])
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "SEG"  # type: ignore[attr-defined]
    for group in ds.PerFrameFunctionalGroupsSequence:  # type: ignore[attr-defined]
        del group.PixelValueTransformationSequence
        group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=1)]
    bits = np.packbits(np.ones(60, np.uint8), bitorder="little").tobytes()
    ds.BitsAllocated = ds.BitsStored = 1  # type: ignore[attr-defined]
    ds.HighBit, ds.PixelData = 0, bits  # type: ignore[attr-defined]
    image = read(save(tmp_path, ds))  # type: ignore[arg-type]
    assert image.array.shape == (5, 4, 5)
    assert image.array.max(axis=(0, 1)).tolist() == [1, 1, 0, 0, 1]


def test_padding_is_a_mask(tmp_path):
    files = stack(3, PixelPaddingValue=0)
    for ds in files:
        ds["PixelPaddingValue"].VR = "SS"
        ds.RescaleIntercept, ds.RescaleSlope = -1000, 1
    image = read(save(tmp_path, files))
    assert image.padding is not None
    assert image.padding.shape == image.array.shape
    assert np.argwhere(image.padding).tolist() == [[4, 3, 0]]
    assert image.array[4, 3, 0] == -1000


def test_reading_is_the_same_with_shuffled_names(tmp_path):
    files = stack(6)
    one = read(save(tmp_path / "a", files))
    two = read(save(tmp_path / "b", [files[i] for i in (3, 5, 0, 2, 4, 1)]))
    np.testing.assert_array_equal(one.array, two.array)
    np.testing.assert_array_equal(one.geometry.affine, two.geometry.affine)


def test_a_lone_slice_is_an_image(tmp_path):
    image = read(save(tmp_path, stack(1)))
    assert image.kind == "image"
    assert image.geometry.spacing_mm == (0.5, 0.25)
    assert image.array.shape == (4, 5)


def test_the_file_is_named_without_its_folder(tmp_path: Path):
    files = stack(4)
    del files[1]
    with pytest.raises(ReadError) as caught:
        read(save(tmp_path / "DOE_JANE", files))
    assert "DOE" not in str(caught.value)
    assert "SECRET17" not in str(caught.value)
    assert ".dcm" in str(caught.value)


def test_enhanced_frames_without_a_place_are_scaled_too(tmp_path):
    """Each frame has its own rescale although nothing says where it lies."""
    ds = enhanced([1, 2, 3])
    for group in ds.PerFrameFunctionalGroupsSequence:  # type: ignore[attr-defined]
        del group.PlanePositionSequence
    image = read(save(tmp_path, ds))  # type: ignore[arg-type]
    assert image.kind == "image"
    assert image.array[:, 0, 0].tolist() == [10 * 2 - 1, 20 * 3 - 1, 30 * 4 - 1]
    assert image.array.dtype.itemsize == 4


def test_enhanced_time_points_follow_the_dimension_index(tmp_path):
    """Two places at two times, the frames in any order; the index of the place is no time."""
    order = [(1, 1), (0, 1), (1, 0), (0, 0)]  # place, time
    ds = enhanced([0, 0, 0, 0])
    ds.PixelData = np.stack([np.full((4, 5), 10 * t + k, np.uint16) for k, t in order]).tobytes()  # type: ignore[attr-defined]
    ds.DimensionIndexSequence = [  # type: ignore[attr-defined]
        item(DimensionIndexPointer=0x00209057),
        item(DimensionIndexPointer=0x00200100),
    ]
    for group, (k, t) in zip(ds.PerFrameFunctionalGroupsSequence, order, strict=True):  # type: ignore[attr-defined]
        del group.PixelValueTransformationSequence
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * k]
        group.FrameContentSequence = [item(DimensionIndexValues=[k + 1, t + 1])]
    image = read(save(tmp_path, ds))  # type: ignore[arg-type]
    assert image.array.shape == (5, 4, 2, 2)
    assert image.array[0, 0].tolist() == [[0, 10], [1, 11]]


def test_two_segments_are_two_channels(tmp_path):
    ds = enhanced([0, 1, 2, 0, 1, 2])
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "SEG"  # type: ignore[attr-defined]
    ds.PixelData = np.stack([np.full((4, 5), k, np.uint16) for k in range(6)]).tobytes()  # type: ignore[attr-defined]
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):  # type: ignore[attr-defined]
        del group.PixelValueTransformationSequence
        group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=1 + number // 3)]
    image = read(save(tmp_path, ds))  # type: ignore[arg-type]
    assert image.array[0, 0].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_records_survive_pickling_and_changed_files(tmp_path):
    import pickle

    files = stack(3)
    record = scan(save(tmp_path, files), progress=False)[0]
    assert pickle.loads(pickle.dumps(record)).read().array[4, 3, 1] == 100
    files[1].PixelData = (np.arange(20, dtype=np.int16) + 7).tobytes()
    files[1].PatientComments = "a longer header moves the pixels"
    save(tmp_path, files)
    assert record.read().array[4, 3, 1] == 7


def test_absurd_numbers_are_refused(tmp_path):
    for tag, value in (("PixelSpacing", [0, 0]), ("PixelSpacing", [1e9, 1e9]), ("ImagePositionPatient", [0, 0, 1e12])):
        with pytest.raises(ReadError, match=tag):
            read(save(tmp_path / f"{tag}{value[-1]}", stack(3, **{tag: value})))
    with pytest.raises(ReadError, match="perpendicular"):
        read(save(tmp_path / "skew", stack(3, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])))
