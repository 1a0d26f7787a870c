"""Augmentation: exact where it can be worked out by hand, reproducible from its generator."""

import math

import pytest
import torch

from medtransfer.augment import Augment


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def vary(batch, seed=0, **settings):
    g = seeded(seed)
    return Augment(**settings).sample(len(batch), batch.ndim - 2, g)(batch)


def test_nothing_asked_changes_nothing():
    x = torch.rand(3, 2, 9, 7)
    assert not Augment().active
    assert torch.equal(vary(x), x)


@pytest.mark.parametrize("shape", [(4, 1, 16, 16), (2, 3, 8, 10, 12)])
def test_the_same_generator_gives_the_same_images_within_range(shape):
    x = torch.rand(shape)
    settings = {"rotate_deg": 20, "zoom": 0.2, "shift": 0.1, "brightness": 0.1, "contrast": 0.2, "gamma": 0.3,
                "noise_std": 0.1, "blur": 1.0, "bias_field": 0.3, "low_resolution": 0.5,
                "flip_left_right": True}  # fmt: skip
    a, b, c = vary(x, 1, **settings), vary(x, 1, **settings), vary(x, 2, **settings)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == x.shape
    assert 0 <= a.min() <= a.max() <= 1


def test_mirror_is_the_mirror():
    x = torch.rand(64, 1, 5, 6)
    y = vary(x, flip_left_right=True)
    mirrored = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, y, strict=True)]
    same = [torch.allclose(b, a, atol=1e-5) for a, b in zip(x, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_quarter_turn_is_exact():
    from dataclasses import replace

    x = torch.rand(1, 1, 7, 7)
    still = Augment(rotate_deg=1).sample(1, 2, seeded())
    turned = replace(still, angle=torch.tensor([math.pi / 2]))(x)
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5)


def test_contrast_and_brightness_by_hand():
    from dataclasses import replace

    x = torch.tensor([[[[0.4, 0.6]]]])
    still = Augment().sample(1, 2, seeded())
    assert torch.allclose(replace(still, contrast=torch.tensor([2.0]))(x), torch.tensor([[[[0.3, 0.7]]]]))
    assert torch.allclose(replace(still, brightness=torch.tensor([0.1]))(x), x + 0.1)
    assert torch.allclose(replace(still, gamma=torch.tensor([2.0]))(x), x**2)


def test_sampled_amounts_fill_their_range_and_no_more():
    v = Augment(rotate_deg=10, zoom=0.1, shift=0.05, gamma=0.5, noise_std=0.2).sample(5000, 3, seeded())
    degrees = torch.rad2deg(v.angle)
    assert 9.5 < degrees.abs().max() <= 10
    assert 0.9 <= v.zoom.min() < 0.905
    assert v.shift.shape == (5000, 3)
    assert v.shift.abs().max() <= 0.1
    assert 1 / 1.5 <= v.gamma.min() < v.gamma.max() <= 1.5
    assert 0 <= v.noise_std.min() < v.noise_std.max() <= 0.2


@pytest.mark.parametrize("shape", [(6, 1, 16, 16), (3, 2, 8, 8, 8)])
def test_an_image_varies_alike_whatever_stands_beside_it(shape):
    x = torch.rand(shape)
    variation = Augment.preset("mr").sample(len(x), x.ndim - 2, seeded())
    whole = variation(x)
    some = torch.tensor([2, 0])
    assert torch.allclose(variation[some](x[some]), whole[some], atol=1e-6)


def test_one_at_a_time_changes_each_image_in_one_way():
    v = Augment.preset("ultrasound").sample(400, 2, seeded())
    ways = torch.stack([v.angle != 0, v.zoom != 1, v.shift.any(1), v.brightness != 0, v.contrast != 1, v.gamma != 1,
                        v.noise_std != 0, v.blur != 0])  # fmt: skip
    assert (ways.sum(0) == 1).all()
    assert (ways.sum(1) > 20).all()


def test_a_bias_field_is_smooth_and_positive():
    flat = torch.full((8, 1, 24, 24), 0.5)
    ratio = vary(flat, bias_field=0.3) / 0.5
    assert math.exp(-0.3) - 1e-5 <= ratio.min() < ratio.max() <= math.exp(0.3) + 1e-5
    assert (ratio[..., 1:] - ratio[..., :-1]).abs().max() < 0.6 / 11.5 * math.exp(0.3)  # linear between 3 nodes


@pytest.mark.parametrize("modality", ["radiograph", "ct", "mr", "ultrasound", "mask", "none"])
def test_presets_never_mirror(modality):
    preset = Augment.preset(modality)
    assert not preset.flip_left_right
    assert preset.active == (modality != "none")
    if modality == "ct":  # the density is the sign
        assert preset.brightness == preset.contrast == preset.gamma == 0
    assert len(preset.sample(2, 2, seeded()).to_record()["angle"]) == 2
