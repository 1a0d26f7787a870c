"""Sliding windows against MONAI's, and the planes that are given out on the way."""

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import nn

from medtransfer.segment.slide import _Pace, fitting, importance, slide, starts


@pytest.mark.parametrize(("size", "window", "overlap"), [(10, 4, 0.5), (37, 16, 0.25), (16, 16, 0.5), (50, 12, 0.7)])
def test_windows_start_where_monais_do(size, window, overlap):
    theirs = dense_patch_slices((size,), (window,), (max(1, int(window * (1 - overlap))),))
    assert starts(size, window, overlap) == [s[0].start for s in theirs]


@pytest.mark.parametrize("window", [(8, 8, 8), (12, 20), (40, 56, 40)])
def test_the_gaussian_is_monais(window):
    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125, device="cpu")
    assert torch.allclose(importance(window), theirs.float().squeeze(), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [((37, 30, 41), (16, 16, 16), 0.25), ((20, 9, 33), (16, 16, 16), 0.5), ((8, 9, 10), (16, 16, 16), 0.5),
     ((45, 61), (16, 24), 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_answer_is_monais_at_the_same_windows(shape, window, overlap, batch):
    dims = len(shape)
    torch.manual_seed(0)
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    net = nn.Sequential(kind(1, 4, 3, padding=1), nn.Tanh(), kind(4, 3, 3, padding=1)).eval()
    image = torch.randn(1, *shape)
    with torch.inference_mode():
        theirs = SlidingWindowInferer(window, 2, overlap, mode="gaussian")(image[None], net)[0]
        slabs = list(slide(net, image, window, overlap=overlap, batch=batch))
    assert [a for a, _, _ in slabs][1:] == [b for _, b, _ in slabs][:-1]  # planes follow each other without a gap
    assert slabs[0][0] == 0
    assert slabs[-1][1] == shape[0]
    assert max(s.shape[1] for _, _, s in slabs) <= window[0]
    ours = torch.cat([s for _, _, s in slabs], 1)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-5


def test_no_window_is_sent_alone():
    sizes = []

    def net(views):
        sizes.append(len(views))
        return views.clone()

    image = torch.rand(1, 40, 16, 16)  # four windows
    for batch, sent in ((3, [2, 2]), (2, [2, 2]), (4, [4]), (1, [2, 2])):
        sizes.clear()
        slabs = list(slide(net, image, (16, 16, 16), overlap=0.5, batch=batch))
        assert torch.allclose(torch.cat([s for _, _, s in slabs], 1), image, atol=1e-6)
        assert sizes == sent
    sizes.clear()
    list(slide(net, torch.zeros(1, 24, 16, 16), (16, 16, 16), overlap=0.5, batch=2))  # two
    list(slide(net, torch.zeros(1, 16, 16, 16), (16, 16, 16), batch=4))  # one
    list(slide(net, torch.zeros(1, 32, 16, 16), (16, 16, 16), overlap=0.5, batch=2))  # three
    assert sizes == [2, 2, 3]


def test_batches_are_tried_on_windows_that_are_due_and_the_fastest_goes_on():
    pace, sent, clock = _Pace([2, 4, 8]), [], {2: 2.0, 4: 1.0, 8: 3.0}
    left = 60
    while left:
        n = pace.next(left)
        sent.append(n)
        left -= n
        pace.took(n, torch.zeros(0), 0.0)
        pace.times = {k: clock[k] for k in pace.times}
    assert sent == [2, 2, 4, 4, 8, 8, *[4] * 8]


def test_the_batch_fits_the_memory():
    one = 32**3 * 4 * 60
    assert fitting((1, 32, 32, 32), memory=int(2.5 * one)) == [2]
    assert fitting((1, 32, 32, 32), memory=5 * one) == [2, 4]
    assert fitting((1, 32, 32, 32), memory=9 * one) == [2, 4, 8]
    assert fitting((1, 32, 32, 32), memory=0) == [2]


@pytest.mark.parametrize("shape", [(45, 33, 20), (10, 40, 12), (9, 7, 8)])
def test_planes_on_demand_are_the_same_image(shape):
    class Planes:
        def __init__(self, image):
            self.image, self.asked = image, []

        @property
        def shape(self):
            return tuple(self.image.shape)

        def read(self, first, end):
            self.asked.append((first, end))
            return self.image[:, first:end].numpy()

    image = torch.rand(2, *shape)
    planes = Planes(image)
    window = (16, 16, 16)
    whole, parts = (list(slide(lambda v: v * 2, source, window, overlap=0.4, batch=3)) for source in (image, planes))
    assert all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(whole, parts, strict=True))
    assert max(b - a for a, b in planes.asked) <= 16
    assert sum(b - a for a, b in planes.asked) == shape[0]  # each plane once
