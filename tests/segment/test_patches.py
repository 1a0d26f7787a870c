"""Grids, patches, losses and post-processing: image and mask must stay together, and come back where they were."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from medtransfer.augment import Augment
from medtransfer.errors import ConfigError
from medtransfer.image import Geometry, Image
from medtransfer.prepare import resampling_matrix
from medtransfer.segment.fingerprint import Fingerprint
from medtransfer.segment.finish import apply_finish, dice
from medtransfer.segment.grid import to_grid, turn, turn_back
from medtransfer.segment.infer import segment_image
from medtransfer.segment.loss import dice_cross_entropy, supervised
from medtransfer.segment.patches import Patches, Resident
from medtransfer.segment.plan import Plan, fit_patch

STILL = {"rotate_deg": 0.0, "zoom": 0.0, "augment": Augment()}


def volume(shape=(12, 15, 9), spacing=(1.0, 1.0, 1.0), axes=None):
    affine = np.diag([*spacing, 1.0])
    if axes is not None:
        affine[:3, :3] = axes @ affine[:3, :3]
    rng = np.random.default_rng(0)
    return Image(rng.random(shape).astype(np.float32), Geometry.from_affine(affine))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_masks_are_turned_as_prepare_turns_images(signs):
    image = volume(axes=np.diag(signs))
    plan = Plan(patch=(8, 8, 8), scale=(0.0, 1.0))
    prepared = plan.prepare(image)(image)[0]
    assert np.allclose(prepared, turn(image.array, image), atol=1e-6)
    assert np.array_equal(turn_back(turn(image.array, image), image), image.array)


class Threshold(torch.nn.Module):
    """Class 1 where the image is bright: an answer whose right place is known."""

    def forward(self, x):
        return torch.cat([torch.full_like(x, 0.0), 50 * (x - 0.5)], 1)


@pytest.mark.parametrize("shape", [(12, 15, 9), (30, 20, 26)])
def test_a_mask_on_the_images_own_grid_is_exact(shape):
    image = volume(shape, axes=np.diag([-1, 1, -1]))
    plan = Plan(patch=(16, 16, 16), scale=(0.0, 1.0), spacing_mm=(1.0, 1.0, 1.0))
    found = segment_image([Threshold()], plan, image)
    assert np.array_equal(found, image.array > 0.5)


def test_a_mask_comes_back_through_another_grid_to_the_right_voxels():
    axes = [np.arange(n) for n in (40, 30, 16)]
    spacing = np.array([0.8, 0.8, 3.0])
    x, y, z = np.meshgrid(*axes, indexing="ij")
    ramp = (x * spacing[0] + 0.5 * y * spacing[1] + 0.7 * z * spacing[2]) / 90  # linear, so that resampling keeps it
    image = Image(ramp.astype(np.float32), Geometry.from_affine(np.diag([*spacing, 1.0])))
    plan = Plan(patch=(16, 16, 16), scale=(0.0, 1.0), spacing_mm=(1.2, 1.2, 1.5))
    found = segment_image([Threshold()], plan, image)
    wanted = ramp > 0.5
    inner = (slice(3, -3), slice(3, -3), slice(2, -2))  # antialiasing bends the ramp at the very border
    clear = np.abs(ramp - 0.5) > 0.02
    assert np.array_equal(found[inner][clear[inner]] > 0, wanted[inner][clear[inner]])
    array, _ = to_grid(plan, image)
    assert array.shape == (1, 32, 20, 27)


def test_streamed_planes_are_those_of_the_whole(monkeypatch):
    from medtransfer.segment import infer

    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.random((2, 31, 6, 5), dtype=np.float32))
    cuts = [0, 4, 5, 13, 27, 31]
    slabs = ((a, b, whole[:, a:b]) for a, b in pairwise(cuts))
    matrices = [resampling_matrix(31, 47, 31 / 47), None, resampling_matrix(5, 3, 5 / 3)]
    found = list(infer._natively(slabs, matrices, 47))
    assert [f[0] for f in found[1:]] == [f[1] for f in found[:-1]]
    ours = torch.cat([f[2] for f in found], 1).numpy()
    wanted = np.einsum("zi,kiyx,wx->kzyw", matrices[0], whole.numpy(), matrices[2])
    assert np.allclose(ours, wanted, atol=1e-5)


def test_a_patch_without_variation_is_a_piece_of_the_image():
    rng = np.random.default_rng(0)
    array = rng.random((1, 20, 22, 24), dtype=np.float32)
    labels = (array[0] > 0.7).astype(np.uint8)
    plan = Plan(patch=(8, 8, 8), foreground=0.0, **STILL)
    patches = Patches([Resident.make(array, labels, 2)], plan, 2)
    patches._middle = lambda case, generator: torch.tensor([5.5, 9.5, 12.5])
    images, found = patches.batch(torch.Generator().manual_seed(0))
    box = (slice(2, 10), slice(6, 14), slice(9, 17))
    assert np.allclose(images[0, 0].numpy(), array[0][box], atol=1e-5)
    assert np.array_equal(found[0].numpy(), labels[box])


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_mask_move_together(dims):
    """The image is the mask: wherever it is turned, scaled, mirrored and shifted, it still is."""
    shape = (40, 44, 36)[:dims]
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    labels = ((at**2).sum(0) < 0.4).astype(np.uint8) + ((at[0] > 0) & ((at**2).sum(0) < 0.2))
    plan = Plan(
        patch=(24, 16, 32)[:dims], batch_size=8, rotate_deg=90, zoom=0.4, augment=Augment(),
        mirror=("x", "y", "z")[:dims],
    )  # fmt: skip
    patches = Patches([Resident.make((labels / 2).astype(np.float32)[None], labels.astype(np.uint8), 3)], plan, 3)
    images, found = patches.batch(torch.Generator().manual_seed(1))
    assert images.shape[2:] == plan.window
    clear = ((images[:, 0] * 2 - (images[:, 0] * 2).round()).abs() < 0.01) & (images[:, 0] != 0)
    assert clear.float().mean() > 0.1
    assert torch.equal((images[:, 0] * 2).round().long()[clear], found[clear])


def test_patches_are_the_generators_alone():
    rng = np.random.default_rng(0)
    case = Resident.make(rng.random((1, 30, 30), dtype=np.float32), rng.integers(0, 3, (30, 30)).astype(np.uint8), 3)
    patches = Patches([case], Plan(patch=(16, 16), augment=Augment(modality="mr")), 3)
    one, same, other = (patches.batch(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_rare_structures_are_met_as_often_as_large_ones():
    labels = np.zeros((64, 64), np.uint8)
    labels[:32, :32] = 1
    labels[60, 60] = 2
    plan = Plan(patch=(8, 8), batch_size=64, foreground=1.0, **STILL)
    patches = Patches([Resident.make(np.zeros((1, 64, 64), np.float32), labels, 3)], plan, 3)
    _, found = patches.batch(torch.Generator().manual_seed(0))
    rare = int((found == 2).flatten(1).any(1).sum())
    assert 16 < rare < 48  # 32 expected, binomial with deviation 4


def test_the_loss_by_hand():
    logits = torch.zeros(1, 2, 4)  # every share is a half
    labels = torch.tensor([[0, 1, 1, 1]])
    wanted = math.log(2) - 2 * 1.5 / (2 + 3)
    assert float(dice_cross_entropy(logits, labels)) == pytest.approx(wanted, abs=1e-5)
    halves = [torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)]  # the coarse labels are voxels 0 and 2: 0, 1
    coarse = math.log(2) - 2 * 0.5 / (1 + 1)
    assert float(supervised(halves, labels)) == pytest.approx((wanted + coarse / 2) / 1.5, abs=1e-5)


def test_dice_and_components_by_hand():
    found = np.array([[1, 1, 0, 2], [0, 0, 0, 0], [1, 0, 2, 2]], np.uint8)
    reference = np.array([[1, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 2]], np.uint8)
    assert dice(found, reference, 4)[:2] == pytest.approx([2 * 1 / 4, 2 * 2 / 5])
    assert math.isnan(dice(found, reference, 4)[2])
    kept = apply_finish(found, {"1": "largest", "2": 1.5, "3": None}, 1.0)
    assert kept.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    assert np.array_equal(apply_finish(found, {"2": 1.5}, 2.0), found)


def test_a_plan_is_written_readably_and_read_back(tmp_path):
    found = Fingerprint(n=20, shape=(320, 320, 24), spacing_mm=(0.7, 0.7, 5.0), finest_mm=(0.6, 0.6, 4.0),
                        modality="CT", intensity=(-120.0, 240.0))  # fmt: skip
    plan = Plan.for_data(found, memory_gb=4)
    assert plan.window_hu == ((-120.0, 240.0),)
    assert plan.mirror == ()
    assert plan.batch_size >= 2
    assert plan.spacing_mm == (0.7, 0.7, 4.0)
    assert plan.strides[1] == (2, 2, 1)  # thick slices are not halved at first
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == plan
    (tmp_path / "plan.yaml").write_text("patch: [32, 32, 16]\nmirror: [x]\n")
    assert Plan.load(tmp_path / "plan.yaml").mirrored == (4,)
    (tmp_path / "plan.yaml").write_text("patch: [32, 32, 16]\nbatch_size: 1\n")
    with pytest.raises(ConfigError, match="not a plan"):
        Plan.load(tmp_path / "plan.yaml")


@pytest.mark.parametrize("shape", [(512, 512, 300), (36, 51, 34), (512, 512, 12), (64, 64, 64), (300, 20, 20)])
def test_patches_fit_their_budget_and_their_strides(shape):
    patch, strides = fit_patch(shape, (1.0, 1.0, 1.0), 200_000)
    total = np.prod(strides, axis=0)
    assert all(p % t == 0 for p, t in zip(patch, total, strict=True))
    assert np.prod(patch) <= 200_000 * 1.5
    assert min(np.array(patch) // total) >= 1
