"""Volumes larger than memory: the same answers as in memory, where memory is a hard limit of the kernel."""

import gzip
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch

from medtransfer.errors import ReadError
from medtransfer.image import Geometry, Image
from medtransfer.io.mapped import read_mapped, scratch
from medtransfer.io.nifti import read_nifti
from medtransfer.prepare import Prepare
from medtransfer.segment.finish import apply_finish
from medtransfer.segment.grid import to_grid
from medtransfer.segment.infer import chances, segment_image
from medtransfer.segment.network import load_segmenter
from medtransfer.segment.plan import Plan

AFFINES = (np.eye(4), np.array([[0, 0, 2.0, 4], [-1.5, 0, 0, 3], [0, 1, 0, 2], [0, 0, 0, 1]]))

# what runs with little memory: a mask of a NIfTI file, by a network that says where voxels are bright
LITTLE = """
import resource, sys
import numpy as np, torch
from medtransfer.cohort import Case
from pathlib import Path
from medtransfer.segment.infer import segment_image
from medtransfer.segment.room import read_image
from medtransfer.segment.finish import apply_finish
from medtransfer.segment.plan import Plan
from medtransfer.out.nifti import write_mask

class Bright(torch.nn.Module):
    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)

source, out, extra, whole = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "whole"
torch.set_num_threads(1)
plan = Plan(patch=(64, 64, 8), width=1, overlap=0.0, scale=(0.0, 1000.0))
small = np.zeros((8, 8, 8), np.int16)
segment_image([Bright()], plan, Case("a", "a", small).read())  # whatever is made once is there
import nibabel, scipy.ndimage  # noqa
used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + extra, used + extra))
case = Case("b", "b", source)
image = case.read() if whole else read_image(case)
labels = segment_image([Bright()], plan, image)
if not whole:
    labels = apply_finish(labels, {"1": "largest"}, 1.0, in_place=True)
write_mask(labels, image, out, source=source)
"""


def big(path, *, packed=False, shape=(256, 256, 900)):
    """A volume with two bright boxes, written plane by plane."""
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    raw = path.with_suffix("") if packed else path
    with open(raw, "wb") as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        for z in range(shape[2]):
            plane = np.full(shape[:2], 100, np.int16)
            if 300 <= z < 320:
                plane[50:80, 60:90] = 900
            if z >= 880:
                plane[200:210, 200:210] = 900
            file.write(plane.tobytes(order="F"))
    if packed:
        with open(raw, "rb") as plain, gzip.open(path, "wb", 1) as file:
            shutil.copyfileobj(plain, file)
        raw.unlink()


def run(*arguments):
    command = [sys.executable, "-c", LITTLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory that belongs to no file are Linux's")
@pytest.mark.parametrize("packed", [False, True])
def test_a_volume_of_several_times_the_memory_is_segmented(tmp_path, packed):
    source, limit = tmp_path / ("big.nii.gz" if packed else "big.nii"), 40 * 2**20
    big(source, packed=packed)
    voxels = 256 * 256 * 900
    assert 2 * voxels > 2.5 * limit  # as stored; as numbers that a network takes it is twice that
    done = run(source, tmp_path / "mask.nii", limit, "planes")
    assert done.returncode == 0, done.stderr
    labels = np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj)
    assert labels.shape == (256, 256, 900)
    expected = np.zeros_like(labels)
    expected[50:80, 60:90, 300:320] = 1  # the other box is smaller
    assert np.array_equal(labels, expected)
    if not packed:
        assert run(source, tmp_path / "whole.nii", limit, "whole").returncode != 0  # the limit is one


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (0.0, 200.0)},
        {"spacing_mm": (1.3, 1.1, 2.5)},
        {"spacing_mm": (0.7, 1.5, 1.0), "window_hu": ((-50.0, 100.0), (0.0, 200.0))},
        {"spacing_mm": (1.0, 2.0, 1.5), "size": (40, 12, 9)},
    ],
)
def test_planes_are_the_prepared_image(settings, affine):
    rng = np.random.default_rng(0)
    array = rng.normal(80, 40, (21, 18, 14)).astype(np.float32)
    padding = rng.random(array.shape) < 0.1
    image = Image(array, Geometry.from_affine(affine), padding=padding, inverted="window_hu" not in settings)
    prepare = Prepare(**({"size": (23, 17, 30)} | settings))
    whole, planes = prepare(image), prepare.planes(image)
    assert planes.shape == whole.shape
    for cuts in ([0, 1, 5, 6], [0, 3, 8], [0, 2]):
        ends = [*cuts[1:], whole.shape[1]]
        parts = [planes.read(a, b) for a, b in zip(cuts, ends, strict=True)]
        assert np.abs(np.concatenate(parts, axis=1) - whole).max() < 1e-6
    assert np.abs(planes.read(whole.shape[1] - 1) - whole[:, -1:]).max() < 1e-6


@pytest.mark.parametrize("affine", AFFINES)
def test_chances_and_masks_of_planes_are_those_of_the_whole(affine, tmp_path):
    rng = np.random.default_rng(1)
    array = rng.normal(100, 30, (37, 26, 31)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "image.nii.gz")
    plan = Plan(patch=(16, 16, 16), width=4, spacing_mm=(1.2, 0.9, 1.4), strides=((1, 1, 1), (2, 2, 2)), mirror=("x",))
    models = [load_segmenter("random/unet", classes=3, width=4, strides=plan.steps, seed=s) for s in (0, 1)]
    image = read_nifti(tmp_path / "image.nii.gz")
    mapped = read_mapped(tmp_path / "image.nii.gz", folder=tmp_path)
    assert isinstance(np.asarray(mapped.array).base, np.ndarray)
    tensor = torch.from_numpy(to_grid(plan, image)[0])
    whole = torch.cat([p for _, _, p in chances(models, plan, tensor, batch=2)], 1)
    parts = torch.cat([p for _, _, p in chances(models, plan, plan.prepare(mapped).planes(mapped), batch=2)], 1)
    assert float((whole - parts).abs().max()) < 1e-5
    assert np.array_equal(segment_image(models, plan, image, batch=2), segment_image(models, plan, mapped, batch=2))
    assert list(tmp_path.iterdir()) == [tmp_path / "image.nii.gz"]  # temporary files have no name


@pytest.mark.parametrize(("slope", "kind", "ending"), [(1, np.int16, ".nii"), (0.5, np.uint8, ".nii.gz"),
                                                       (1, np.float32, ".nii.gz"), (2, np.uint16, ".nii")])  # fmt: skip
@pytest.mark.parametrize("affine", AFFINES)
def test_what_stays_on_disk_is_what_is_read(tmp_path, slope, kind, ending, affine):
    array = np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(kind)
    stored = nibabel.Nifti1Image(array, affine)
    stored.header.set_slope_inter(slope, 3 if slope != 1 else 0)
    nibabel.save(stored, tmp_path / f"image{ending}")
    whole, mapped = read_nifti(tmp_path / f"image{ending}"), read_mapped(tmp_path / f"image{ending}")
    assert np.array_equal(whole.array, mapped.array)
    assert np.array_equal(whole.geometry.affine, mapped.geometry.affine)
    assert isinstance(mapped.array, np.memmap)


def test_damaged_and_unfit_files_are_refused_on_disk_too(tmp_path):
    array = np.random.default_rng(0).normal(size=(40, 40, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "whole.nii.gz")
    data = (tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "wrong.nii.gz").write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "nan.nii")
    for name in ("short.nii.gz", "wrong.nii.gz", "nan.nii"):
        with pytest.raises(ReadError):
            read_nifti(tmp_path / name)
        with pytest.raises(ReadError):
            read_mapped(tmp_path / name)


def test_components_are_found_in_the_box_of_their_structure():
    rng = np.random.default_rng(0)
    labels = (rng.random((12, 11, 10)) < 0.3).astype(np.uint8) + (rng.random((12, 11, 10)) < 0.1)
    before = labels.copy()
    from scipy import ndimage

    components, _ = ndimage.label(labels == 1)  # by hand, on the whole volume
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    expected = np.where((labels == 1) & (components != sizes.argmax()), 0, labels)
    assert np.array_equal(apply_finish(labels, {"1": "largest", "2": None}, 1.0), expected)
    assert np.array_equal(labels, before)
    same = apply_finish(labels, {"1": "largest"}, 1.0, in_place=True)
    assert same is labels
    assert np.array_equal(labels, expected)


def test_arrays_on_disk_are_empty_and_can_be_written(tmp_path):
    array = scratch((3, 4), np.float32, folder=tmp_path)
    assert not array.any()
    array[1] = 2
    assert array.sum() == 8
    assert not list(tmp_path.iterdir())
