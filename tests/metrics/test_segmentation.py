"""Masks against distance transforms, MONAI and hand-drawn shapes; estimates against plain means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medtransfer.errors import MetricError
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.masks import MaskScore, score_mask, score_masks
from medtransfer.metrics.segmentation import segmentation, segmentation_difference


def pairs() -> list[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """200 pairs of random blobs, 2D and 3D, anisotropic, touching edges, some empty."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        axes = 2 if seed % 4 == 0 else 3
        shape = tuple(int(v) for v in rng.integers(5, 20, axes))
        spacing = tuple(float(v) for v in np.round(rng.uniform(0.4, 5, axes), 2))
        field = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        other = field + 0.6 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        a, b = field > np.quantile(field, rng.uniform(0.5, 0.95)), other > np.quantile(other, rng.uniform(0.5, 0.95))
        if seed % 10 == 1:
            a[:] = False
        if seed % 10 in (1, 2) and seed % 20 < 10:
            b[:] = False
        found.append((a, b, spacing))
    return found


def independent(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    """Distances by distance transforms of padded masks."""
    a, b = np.pad(a, 1), np.pad(b, 1)

    def surface(mask: np.ndarray) -> np.ndarray:
        buried = mask.copy()
        for axis in range(mask.ndim):
            buried &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        return mask & ~buried

    edge_a, edge_b = surface(a), surface(b)
    to_b = ndimage.distance_transform_edt(~edge_b, sampling=spacing)[edge_a]
    to_a = ndimage.distance_transform_edt(~edge_a, sampling=spacing)[edge_b]
    both = np.concatenate([to_b, to_a])
    return {
        "dice": 2 * (a & b).sum() / (a.sum() + b.sum()),
        "iou": (a & b).sum() / (a | b).sum(),
        "nsd": (both <= tolerance).mean(),
        "hd95": max(np.percentile(to_b, 95), np.percentile(to_a, 95)),
        "assd": both.mean(),
    }


def test_two_hundred_pairs_equal_an_independent_implementation() -> None:
    empty = 0
    for a, b, spacing in pairs():
        tolerance = 1.3 * min(spacing)
        found = score_mask(a, b, spacing, tolerance_mm=tolerance)
        if a.any() and b.any():
            for name, value in independent(a, b, spacing, tolerance).items():
                assert getattr(found, name) == pytest.approx(value, abs=1e-9), name
            continue
        empty += 1
        values = (found.dice, found.iou, found.nsd, found.hd95, found.assd)
        if not a.any() and not b.any():
            assert all(math.isnan(v) for v in values)
        else:
            diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(a.shape, spacing, strict=True)))
            assert values == pytest.approx((0, 0, 0, diagonal, diagonal))
    assert empty >= 30


def test_equals_monai() -> None:
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    for a, b, spacing in pairs()[3:200:11]:
        if not (a.any() and b.any()):
            continue
        one, other = (torch.from_numpy(m)[None, None].float() for m in (a, b))
        options = {"include_background": True, "spacing": spacing}
        found = score_mask(a, b, spacing, tolerance_mm=2.0)
        hd95 = metrics.compute_hausdorff_distance(other, one, percentile=95, **options)
        assd = metrics.compute_average_surface_distance(other, one, symmetric=True, **options)
        nsd = metrics.compute_surface_dice(other, one, [2.0], **options)
        theirs = [float(v) for v in (hd95, assd, nsd)]
        assert [found.hd95, found.assd, found.nsd] == pytest.approx(theirs, abs=1e-4)


def test_two_cubes_by_hand() -> None:
    # cubes of 3³ voxels of 2 × 1 × 1 mm, moved by two voxels along the first axis: 4 mm; the middle layer is shared
    a, b = np.zeros((9, 7, 7), bool), np.zeros((9, 7, 7), bool)
    a[1:4, 2:5, 2:5], b[3:6, 2:5, 2:5] = True, True
    s = score_mask(a, b, (2, 1, 1), tolerance_mm=1.0)
    assert s.dice == pytest.approx(2 * 9 / 54)
    assert s.iou == pytest.approx(9 / 45)
    assert s.volume_reference == 54
    assert s.volume_shared == 18
    assert s.hd95 == 4
    # of 26 surface voxels: the far layer of 9 is 4 mm away; of the 8 in the middle 2 mm; the near layer of 9 is 0,
    # but for its centre, which faces the buried centre of the other cube's end layer: that layer is surface, so 0 too
    assert s.assd == pytest.approx((9 * 4 + 8 * 2) / 26)
    assert s.nsd == pytest.approx(9 / 26)


def test_one_slice_is_measured_by_its_outline() -> None:
    a = np.zeros((1, 12, 12), bool)
    b = a.copy()
    a[0, 2:10, 2:10], b[0, 3:11, 2:10] = True, True
    flat = score_mask(a[0], b[0], (0.5, 0.5), tolerance_mm=0.2)
    deep = score_mask(a, b, (5.0, 0.5, 0.5), tolerance_mm=0.2)
    assert (deep.nsd, deep.hd95, deep.assd) == (flat.nsd, flat.hd95, flat.assd)
    assert deep.volume_reference == pytest.approx(5 * flat.volume_reference)


def test_lesions_by_drawing() -> None:
    truth, said = np.zeros((10, 10), int), np.zeros((10, 10), int)
    truth[0, 0] = truth[1, 1] = 1  # one lesion over a corner
    truth[5:7, 5:7] = 1
    truth[9, 0] = 1
    said[1, 1] = said[6, 6] = 1  # finds two of three
    said[0, 9] = said[9, 9] = 1  # and two that are not there
    s = score_mask(truth, said, (1, 1), tolerance_mm=1)
    assert (s.lesions, s.lesions_found, s.lesions_false) == (3, 2, 2)


def test_refuses_what_does_not_fit() -> None:
    a = np.ones((3, 3), bool)
    for bad in ((a[:2], (1, 1), 1), (a, (1, 1, 1), 1), (a, (0, 1), 1), (a, (1, float("nan")), 1), (a, (1, 1), 0)):
        with pytest.raises(MetricError):
            score_mask(a, bad[0], bad[1], tolerance_mm=bad[2])


def cases(seed: int, n: int) -> list[dict[str, MaskScore]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        field = ndimage.gaussian_filter(rng.normal(size=(14, 14)), 2)
        other = field + 0.5 * ndimage.gaussian_filter(rng.normal(size=(14, 14)), 2)
        maps = [np.digitize(f / field.std(), [0.3, 1.2]) for f in (field, other)]
        found.append(score_masks(*maps, (1.0, 2.0), structures={"shell": 1, "core": 2}, tolerance_mm=2))
    return found


def test_estimates_are_means_over_cases_and_patients_are_drawn() -> None:
    scores = cases(0, 30)
    b = ClusterBootstrap.draw(np.arange(30) // 2, resamples=300)
    found, rows = segmentation(scores, b)
    for k, name in enumerate(("shell", "core")):
        each = [s[name] for s in scores]
        for kind in ("dice", "nsd", "hd95", "assd"):
            values = np.array([getattr(s, kind) for s in each])
            assert rows[k][kind].value == pytest.approx(np.nanmean(values)), kind
        shared, total = sum(s.volume_shared for s in each), sum(s.volume_reference + s.volume_predicted for s in each)
        assert rows[k]["pooled_dice"].value == pytest.approx(2 * shared / total)
        gap = np.array([s.volume_predicted - s.volume_reference for s in each])
        assert rows[k]["volume_bias"].value == pytest.approx(gap.mean())
        assert rows[k]["volume_loa_upper"].value == pytest.approx(gap.mean() + 1.96 * gap.std(ddof=1))
        assert rows[k]["lesions_false"].value == pytest.approx(np.mean([s.lesions_false for s in each]))
        assert rows[k]["dice"].low < rows[k]["dice"].value < rows[k]["dice"].high
    assert found.estimates["dice"].value == pytest.approx((rows[0]["dice"].value + rows[1]["dice"].value) / 2)


def test_misses_count_and_are_counted_apart() -> None:
    full, none = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    full[2:4, 2:4] = True
    both = [(full, full), (full, full), (full, none), (none, full), (none, none)]
    scores = [{"x": score_mask(a, b, (1, 1), tolerance_mm=1)} for a, b in both]
    found, _ = segmentation(scores, ClusterBootstrap.draw(range(5), resamples=100))
    e = found.estimates
    assert e["dice"].value == 0.5  # 1, 1, 0, 0; the case without the structure is left out
    assert e["hd95"].value == pytest.approx(10 * 2 / 4)
    assert "image diagonal" in e["hd95"].note
    assert "1 case without" in e["dice"].note
    assert e["missed"].value == pytest.approx(1 / 3)
    assert e["invented"].value == 0.5
    nothing, _ = segmentation(scores[4:], ClusterBootstrap.draw(range(1), resamples=10))
    assert nothing.estimates["dice"].value is None
    assert nothing.estimates["missed"].value is None


def test_paired_difference() -> None:
    first, second = cases(1, 20), cases(1, 20)
    gap = segmentation_difference(first, second, ClusterBootstrap.draw(range(20), resamples=50))
    assert gap["shell"]["dice"].value == 0
    worse = [dict(case, core=cases(2, 1)[0]["core"]) for case in first]
    gap = segmentation_difference(first, worse, ClusterBootstrap.draw(range(20), resamples=50))
    expected = np.mean([a["core"].dice - b["core"].dice for a, b in zip(first, worse, strict=True)])
    assert gap["core"]["dice"].value == pytest.approx(expected)
