"""NIfTI: nibabel's closest-canonical form where a file is right, a named error or warning where it is not."""

from __future__ import annotations

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtransfer.errors import MedTransferError, MedTransferWarning, ReadError
from medtransfer.io import read

AFFINE = np.array([[0, 0, 3.0, 5], [-1, 0, 0, 6], [0, 2, 0, 7], [0, 0, 0, 1]])


def write(path, array, affine=AFFINE, *, change=None, kind=nib.Nifti1Image):
    """A NIfTI file; ``change(header)`` alters the header's bytes after nibabel wrote them."""
    nib.save(kind(array, affine), path)
    if change is not None:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        header = nib.Nifti1Header(raw[:348], check=False)
        change(header)
        raw = header.binaryblock + raw[348:]
        path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">f4", "<f8"]),
    axes=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    ending=st.sampled_from([".nii", ".nii.gz", ".hdr"]),
    version=st.sampled_from([1, 2]),
    times=st.sampled_from([0, 2]),
)
def test_equal_to_nibabel(tmp_path_factory, dtype, axes, signs, ending, version, times):
    shape = (3, 4, 5) + ((times,) if times else ())
    array = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, 2, 3])[:, axes] * signs
    affine[:3, 3] = 4, 5, 6
    pair = ending == ".hdr"
    kinds = {
        (1, False): nib.Nifti1Image,
        (2, False): nib.Nifti2Image,
        (1, True): nib.Nifti1Pair,
        (2, True): nib.Nifti2Pair,
    }
    image = kinds[version, pair](array, affine)
    image.set_data_dtype(array.dtype)
    path = tmp_path_factory.mktemp("nifti") / f"x{ending}"
    nib.save(image, path)
    expected = nib.as_closest_canonical(nib.load(path))
    got = read(path)
    np.testing.assert_array_equal(got.array, expected.get_fdata())
    np.testing.assert_allclose(got.geometry.affine, expected.affine)
    assert got.geometry.orientation == "RAS"


def test_slope_and_intercept(tmp_path):
    def change(header):
        header["scl_slope"], header["scl_inter"] = 0.5, -3

    path = write(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4), change=change)
    np.testing.assert_allclose(read(path).array, np.arange(24).reshape(2, 3, 4) * 0.5 - 3)


def test_colour(tmp_path):
    voxels = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["R"], voxels["B"] = 7, np.arange(24).reshape(2, 3, 4)
    image = read(write(tmp_path / "a.nii", voxels, np.eye(4)))
    assert image.rgb
    assert image.array.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(image.array[..., 2], np.arange(24).reshape(2, 3, 4))
    assert image.array[..., 0].min() == 7


WHOLE = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def _set(**values):
    def change(header):
        for name, value in values.items():
            header[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set(dim=[3, -2, 4, 5, 1, 1, 1, 1]), "dim is impossible"),
        (_set(dim=[9, 3, 4, 5, 1, 1, 1, 1]), "dim is impossible"),
        (_set(dim=[5, 3, 4, 5, 1, 3, 1, 1]), "more than four dimensions"),
        (_set(dim=[3, 3, 4, 6, 1, 1, 1, 1]), "truncated"),
        (_set(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "truncated|too large"),
        (_set(srow_x=[0, 0, 0, 0], srow_y=[0, 0, 0, 0]), "sform is singular"),
        (_set(srow_x=[np.nan, 0, 0, 0]), "sform is singular"),
        (_set(datatype=32, bitpix=64), "kind of number"),
        (_set(datatype=999), "datatype"),
        (_set(vox_offset=-5), "vox_offset"),
        (_set(vox_offset=np.nan), "vox_offset"),
        (_set(magic=b"xyz"), "not a NIfTI file"),
        (_set(sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1, 1, 1, 1, 1]), "pixdim along x is not positive"),
        (_set(scl_slope=2, scl_inter=np.inf), "scl_inter"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_impossible_headers_are_refused(tmp_path, change, match, ending):
    with pytest.raises(ReadError, match=match):
        read(write(tmp_path / f"a{ending}", WHOLE, change=change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set(sform_code=0, qform_code=0), "no orientation"),
        (_set(sform_code=1, qform_code=1, srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0]), "disagree"),
        (_set(srow_x=[1, 0.5, 0, 0], srow_y=[0.5, 1, 0, 0], srow_z=[0, 0, 1, 0], qform_code=0), "shear"),
        (_set(dim=[2, 3, 4, 1, 1, 1, 1, 1]), "two-dimensional"),
    ],
)
def test_doubtful_headers_are_told(tmp_path, change, match):
    with pytest.warns(MedTransferWarning, match=match):
        read(write(tmp_path / "a.nii.gz", WHOLE, change=change))


def test_the_sform_goes_before_the_qform(tmp_path):
    change = _set(sform_code=1, qform_code=1, srow_x=[2, 0, 0, 9], srow_y=[0, 2, 0, 0], srow_z=[0, 0, 2, 0])
    with pytest.warns(MedTransferWarning):
        image = read(write(tmp_path / "a.nii", WHOLE, change=change))
    np.testing.assert_allclose(image.geometry.affine[0], [2, 0, 0, 9])


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_truncated_gzip_is_refused(tmp_path, cut):
    path = write(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 999, (9, 9, 9)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ReadError, match="truncated"):
        read(path)


def test_a_plain_file_named_gz_and_the_other_way_round(tmp_path):
    plain = write(tmp_path / "a.nii", WHOLE)
    (tmp_path / "b.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "c.nii").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("b.nii.gz", "c.nii"):
        np.testing.assert_array_equal(read(tmp_path / name).array, read(plain).array)


def test_nan_is_refused_or_filled(tmp_path):
    array = WHOLE.astype(np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    path = write(tmp_path / "a.nii", array)
    with pytest.raises(ReadError, match="NaN or infinite; found 2 of 60"):
        read(path)
    assert np.isfinite(read(path, fill=0).array).all()


def test_labels_must_be_whole(tmp_path):
    path = write(tmp_path / "a.nii", WHOLE.astype(np.float32) + np.float32(0.25))
    with pytest.raises(ReadError, match=r"labels must be whole numbers; found 0\.25"):
        read(path, labels=True)
    whole = read(write(tmp_path / "b.nii", WHOLE.astype(np.float64)), labels=True)
    assert whole.array.dtype.kind == "i"


@pytest.mark.parametrize(("shape", "dims"), [((3, 4, 5, 2), 3), ((3, 4), 3), ((3, 4, 5), 4)])
def test_the_number_of_dimensions_can_be_asked_for(tmp_path, shape, dims):
    path = write(tmp_path / "a.nii", np.zeros(shape, np.int16), np.eye(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MedTransferError, match=f"a {dims}D image is wanted"):
            read(path, dims=dims)
        assert read(path).array.ndim == max(3, len(shape))


def test_the_largest_unsigned_value_stays(tmp_path):
    array = np.full((2, 2, 2), 65535, np.uint16)
    assert read(write(tmp_path / "a.nii", array, np.eye(4))).array.max() == 65535
