"""Preparation against torch's interpolation, hand-drawn volumes and the meaning of its settings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medtransfer.errors import PrepareError
from medtransfer.image import Geometry, Image
from medtransfer.prepare import WINDOWS, Prepare, resampling_matrix

RNG = np.random.default_rng(0)


def volume(array, affine=None, **options):
    return Image(array, Geometry.from_affine(np.eye(4) if affine is None else affine), **options)


@pytest.mark.parametrize("size", [(20, 31), (80, 90), (37, 100), (1, 1)])
def test_resizing_is_antialiased_bilinear_interpolation(size):
    x = RNG.random((37, 53), dtype=np.float32)
    wanted = torch.nn.functional.interpolate(torch.tensor(x)[None, None], size=size, mode="bilinear", antialias=True)
    assert np.allclose(Prepare(size=size, scale=(0, 1))(Image(x)), wanted[0].numpy(), atol=1e-5)


@given(n=st.integers(1, 60), m=st.integers(1, 60), step=st.none() | st.floats(0.05, 20))
def test_resampling_weights_are_averages_and_keep_symmetry(n, m, step):
    matrix = resampling_matrix(n, m, step)
    assert matrix.shape == (m, n)
    assert (matrix >= 0).all()
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(matrix, matrix[::-1, ::-1], atol=1e-5)


def test_spacing_crops_the_centre_at_true_scale_and_continues_the_border():
    x = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    image = Image(x, Geometry(spacing_mm=(2.0, 2.0)))
    finer = Prepare(size=(4, 4), spacing_mm=(1.0, 1.0), scale=(0, 7))(image)[0] * 7
    # centre 3.5 in old rows; new rows lie at -1.5, -.5, .5, 1.5 mm, i.e. 2.75, 3.25, 3.75, 4.25 old rows
    assert np.allclose(finer[:, 0], [2.75, 3.25, 3.75, 4.25], atol=1e-5)
    wider = Prepare(size=(16, 16), spacing_mm=(2.0, 2.0), scale=(0, 7))(image)[0] * 7
    assert np.allclose(wider[:4, 0], 0)
    assert np.allclose(wider[-4:, 0], 7)
    assert np.allclose(wider[4:12, 5], np.arange(8), atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "PIL"])
def test_volumes_come_out_as_axial_slices_are_read_whatever_their_axes(codes):
    # a world with one bright voxel at the patient's right, front, bottom: (x, y, z) = (2, 3, 0) of (3, 4, 5) in RAS
    world = np.zeros((3, 4, 5), np.float32)
    world[2, 3, 0] = 1
    axis = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    order = [axis[c] for c in codes]
    flips = tuple(slice(None, None, -1) if c in "LPI" else slice(None) for c in codes)
    stored = world.transpose(order)[flips]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, code in enumerate(codes):
        affine[axis[code], column] = -1 if code in "LPI" else 1
    result = Prepare(size=(3, 4, 5), scale=(0, 1))(volume(stored, affine))
    assert result.shape == (1, 5, 4, 3)
    assert np.argwhere(result[0] > 0.5).tolist() == [[0, 0, 0]]  # lowest slice, front row, right of the patient first


def test_windows_become_channels_in_hounsfield_units():
    x = np.array([[-1000.0, 0.0], [40.0, 400.0]])
    prepare = Prepare(size=2, window_hu=["soft_tissue", (0, 400)])
    result = prepare(Image(x, modality="CT"))
    assert prepare.window_hu == (WINDOWS["soft_tissue"], (0.0, 400.0))
    assert np.allclose(result, [[[0, 0.4], [0.5, 1]], [[0, 0], [0.1, 1]]])


def test_monochrome1_shows_the_same_as_its_monochrome2_twin():
    x = RNG.integers(0, 4096, (40, 50))
    settings = Prepare(size=(20, 25))
    twin = Image(4095 - x, inverted=True, value_range=(0, 4095))
    assert np.allclose(settings(Image(x)), settings(twin), atol=1e-3)


def test_padding_leaves_percentiles_alone_and_becomes_background():
    x = RNG.random((30, 30)) + 100
    padded = x.copy()
    padded[:5] = -2000
    mask = np.zeros(x.shape, bool)
    mask[:5] = True
    result = Prepare(size=30, percentiles=(0, 100))(Image(padded, padding=mask))
    assert (result[0, :4] == 0).all()
    assert np.allclose(result[0, 6:], (x[6:] - x[5:].min()) / np.ptp(x[5:]), atol=1e-4)


def test_not_a_number_counts_as_padding():
    x = np.array([[np.nan, 1.0], [2.0, 3.0]])
    assert Prepare(size=2, percentiles=(0, 100))(Image(x)).tolist() == [[[0, 0], [0.5, 1]]]


def test_percentiles_survive_a_single_wild_voxel():
    x = RNG.random((64, 64))
    x[3, 3] = 1e9
    assert Prepare(size=64)(Image(x)).mean() == pytest.approx(0.5, abs=0.05)


def test_constant_and_coloured_images():
    assert (Prepare(size=3)(Image(np.full((3, 3), 7.0))) == 0).all()
    rgb = Image(np.full((2, 2, 3), [255, 0, 0], np.uint8), rgb=True)
    assert Prepare(size=2, scale="range")(rgb).shape == (3, 2, 2)
    assert Prepare(size=2, scale="range", gray=True)(rgb)[0, 0, 0] == pytest.approx(0.299, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "image", "word"),
    [
        ({"size": (4, 4, 4)}, Image(np.zeros((4, 4))), "size"),
        ({"size": 4}, volume(np.zeros((4, 4, 4))), "size"),
        ({"size": 4}, Image(np.zeros((2, 4, 4))), "frames"),
        ({"size": 4, "window_hu": "lung"}, Image(np.zeros((4, 4)), modality="MR"), "Hounsfield"),
        ({"size": 4, "spacing_mm": (1, 1)}, Image(np.zeros((4, 4))), "spacing"),
        ({"size": 4, "scale": "range"}, Image(np.zeros((4, 4), np.int16)), "range"),
        ({"size": 4}, Image(np.full((4, 4), np.nan)), "padding"),
    ],
)
def test_what_cannot_be_prepared_says_so(settings, image, word):
    with pytest.raises(PrepareError, match=word):
        Prepare(**settings)(image)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_hu": "lungs"},
        {"window_hu": (5, 1)},
        {"size": 0},
        {"spacing_mm": (1, 1, 1)},
        {"siz": 3},
        {"spacing_mm": (0, 1)},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Prepare(**wrong)


@given(n=st.integers(1, 12), m=st.integers(1, 12))
def test_voxels_of_the_right_spacing_are_taken_as_they_are(n, m):
    line = np.arange(n, dtype=np.float32)
    image = Image(np.stack([line] * 2, axis=1), Geometry(spacing_mm=(1.0, 1.0)))
    result = Prepare(size=(m, 2), spacing_mm=(1, 1), scale=(0, 100))(image)[0, :, 0] * 100
    start = n // 2 - m // 2
    assert np.allclose(result, [line[min(max(start + i, 0), n - 1)] for i in range(m)], atol=1e-4)


def test_only_what_is_needed_is_touched_with_the_same_result():
    x = RNG.normal(0, 300, (40, 50, 60)).astype(np.float32)
    affine = np.diag([0.9, 1.3, 2.5, 1.0])
    small = Prepare(size=(12, 10, 6), spacing_mm=(1.5, 1.5, 3.0), window_hu=(-200, 200))(
        volume(x, affine, modality="CT")
    )
    large = Prepare(size=(24, 22, 20), spacing_mm=(1.5, 1.5, 3.0), window_hu=(-200, 200))(
        volume(x, affine, modality="CT")
    )
    assert np.allclose(small, large[:, 7:13, 6:16, 6:18], atol=1e-5)


def test_volumes_of_the_right_spacing_equal_the_monai_pipeline():
    from monai.transforms import Compose, ResizeWithPadOrCrop, ScaleIntensityRange

    x = RNG.normal(0, 300, (37, 44, 25)).astype(np.float32)
    prepare = Prepare(size=(24, 32, 20), spacing_mm=(1, 1, 1), window_hu=(-200, 200))
    monai = Compose([ScaleIntensityRange(-200, 200, 0, 1, clip=True), ResizeWithPadOrCrop((24, 32, 20))])
    wanted = np.asarray(monai(torch.tensor(x)[None]))[0]
    found = prepare(volume(x))[0].transpose(2, 1, 0)[::-1, ::-1]  # back to x to the right, y to the front
    start = [(n // 2 - m // 2, (n - 1) - (n // 2 - m // 2) - (m - 1)) for n, m in ((37, 24), (44, 32))]
    shift = [b - a for a, b in start]  # an even and an odd side differ by a voxel once an axis is turned round
    assert all(s in (0, 1, -1) for s in shift)
    inner = found[1:-1, 1:-1], wanted[1 + shift[0] : 23 + shift[0], 1 + shift[1] : 31 + shift[1]]
    assert np.allclose(*inner, atol=1e-6)


def test_resampling_equals_linear_interpolation_at_the_same_points():
    from scipy.ndimage import map_coordinates

    x = RNG.random((20, 24, 16)).astype(np.float32)
    prepare = Prepare(size=(15, 15, 15), spacing_mm=(0.8, 0.9, 0.7), scale=(0, 1))
    axes = [(n - 1) / 2 + (np.arange(15) - 7) * s for n, s in zip(x.shape, (0.8, 0.9, 0.7), strict=True)]
    wanted = map_coordinates(x, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(prepare(volume(x))[0].transpose(2, 1, 0)[::-1, ::-1], wanted, atol=1e-5)
