"""Projections drawn by code: structures whose thicknesses add up on the way of a beam, veils and hazes among them.

Nothing hides anything: a body, hollows in it, bands that repeat like ribs or slats, a column, branching strands,
solid balls, and in half of the scenes a haze. No organ is copied; where everything lies is drawn for each scene.
"""

from __future__ import annotations

import torch
from scenes import ATTRIBUTES, NUMBERS, Draw, Scenes, scaled
from torch import Tensor

EXTRA = (
    "projection", "haze", "haze_extent", "haze_mass", "haze_soft", "haze_grain", "bands", "band_count",
    "band_narrow", "hollow_air", "strands", "column", "absorption",
)  # fmt: skip


def draw_projections(n: int, side: int, generator: torch.Generator) -> Scenes:
    """``n`` projections of ``side`` pixels a side; attributes are those of scenes and then ``EXTRA``."""
    d = Draw(n, 2, side, generator)
    a: dict[str, Tensor] = {"warp": d.each(0, 0.2)}
    where = d.grid + a["warp"] * d.smooth(2, 3 + d.pick(3))
    if d.one(0, 1) < 0.6:  # left and right nearly alike
        tilt = d.each(-0.15, 0.15)
        across = where[:, 1:] + tilt * where[:, :1] + d.each(-0.15, 0.15)
        where = torch.cat([where[:, :1], across.abs() * d.each(0.8, 1.1) ** torch.sign(across)], 1)
    down, across = where[:, :1], where[:, 1:]

    thick = d.each(0.4, 1) * _dome(down / d.each(0.9, 2.2), across / d.each(0.8, 1.8), d.one(1.5, 5))
    open_share = torch.zeros_like(thick)
    a["hollow_air"] = d.each(-0.3, 1).clamp_min(0)
    for _ in range(d.pick(3) + 1):  # hollows, mirrored with the rest where left and right are alike
        u = (down - d.each(-0.4, 0.4)) / d.each(0.35, 1.0)
        v = (across - d.each(0.1, 0.7)) / d.each(0.2, 0.55)
        open_share = torch.maximum(open_share, _dome(u, v, d.one(1.8, 4)))
    clean = thick * (1 - a["hollow_air"] * open_share)

    a["bands"], a["band_count"], a["band_narrow"] = d.each(-0.3, 1).clamp_min(0), d.each(2, 9), d.each(0, 1)
    for bow in (d.each(-0.6, 0.9), d.each(-0.9, 0.2)):  # near and far side of a cage
        height = down + bow * across.square() + d.each(-0.3, 0.3) * across
        wave = torch.cos(torch.pi * (a["band_count"] * height + d.each(0, 2))).clamp_min(0)
        clean = clean + 0.22 * d.each(0.3, 1) * a["bands"] * wave ** (1 + 8 * a["band_narrow"]) * (thick > 0.05)
    a["column"] = d.each(-0.5, 1).clamp_min(0)
    step = 1 + 0.3 * torch.cos(torch.pi * down * d.each(3, 10))
    clean = clean + 0.35 * a["column"] * step * (1 - (across / d.each(0.08, 0.25)).square()).clamp_min(0).sqrt()

    count = torch.zeros_like(a["warp"])
    for _ in range(d.pick(6)):
        there = (d.each(0, 1) < 0.6).float()
        r, _ = d.radius(where, d.each(0.08, 0.6), 0.4)
        clean = clean + there * d.each(-0.15, 0.4) * (1 - r.square()).clamp_min(0).sqrt()
        count = count + there
    a["strands"] = d.each(-0.3, 1).clamp_min(0)
    ridge = (1 - d.noise(d.each(2, 3.5), 0.3, low=3.0).abs()).clamp_min(0)
    clean = clean + 0.12 * a["strands"] * ridge**3 * open_share

    haze, told = _haze(d, where, open_share)
    there = (d.each(0, 1) < 0.3).float()
    size, contrast = d.each(0.06, 0.25), d.each(0.1, 0.35)
    r, _ = d.radius(where, size, 0.2, 0.6)
    ball = there * (1 - r.square()).clamp_min(0).sqrt()
    clean = clean + haze + contrast * ball
    lesion = torch.maximum(ball, (haze / 0.25).clamp(0, 1))

    grains, a["texture"] = d.noise(d.each(1, 3)), d.each(0, 1) ** 2 * 0.08
    told["haze_grain"] = told["haze_grain"] * told["haze"]
    texture = a["texture"] * (0.3 + open_share) * grains
    texture = texture + 0.25 * told["haze_grain"] * haze * d.noise(d.each(0.5, 2.5))
    a["absorption"] = d.each(-1, 3).clamp_min(0)
    image, clean = (_film(x, a["absorption"]) for x in (clean + texture, clean))
    noise = d.each(0, 1) ** 2 * 0.04
    clean, image = scaled(clean, image + noise * d.noise(d.each(-0.5, 1.0), 0.0))

    a |= told | {"projection": torch.ones_like(count), "adds": torch.ones_like(count), "count": count / 12}
    a |= {"lesion": there, "lesion_size": there * size, "lesion_contrast": there * contrast}
    none = torch.zeros(n)
    rows = [a[name].reshape(n) if name in a else none for name in (*NUMBERS, *EXTRA)]
    numbers, extra = rows[: len(NUMBERS)], rows[len(NUMBERS) :]
    kinds = [none] * (len(ATTRIBUTES) - len(NUMBERS))
    amount = 2 * (a["texture"] * (0.3 + open_share) + 0.25 * told["haze_grain"] * haze)
    return Scenes(image, clean, lesion, amount, torch.stack([*numbers, *kinds, *extra], 1))


def _dome(u: Tensor, v: Tensor, power: float) -> Tensor:
    """Thickness of a solid of side 1: round for ``power`` 2, a box with rounded edges above."""
    return (1 - u.abs() ** power - v.abs() ** power).clamp_min(0).sqrt()


def _film(thickness: Tensor, absorption: Tensor) -> Tensor:
    """Darkening by an absorbing body: linear in its thickness for none, saturating for much."""
    return torch.where(absorption > 0, -torch.expm1(-absorption * thickness) / absorption.clamp_min(1e-3), thickness)


def _haze(d: Draw, where: Tensor, open_share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Soft, uneven opacity over a part of the hollows or of everything, and the numbers that tell it."""
    there = (d.each(0, 1) < 0.55).float()
    soft, strength = d.each(0, 1), d.each(0.05, 0.4)
    cloud = d.noise(torch.full((d.n, 1, 1, 1), 3.0), 0.3, low=2.0) + 1.5 * (
        1 - d.radius(where, d.each(0.2, 0.9), 0.3, 0.7)[0]
    ).clamp(-1.5, 1)
    field = torch.sigmoid((cloud - d.each(-0.8, 1.0)) / (0.05 + 0.6 * soft))
    if d.one(0, 1) < 0.7:
        field = field * open_share
    haze = there * strength * field
    extent = there * field.mean((2, 3), keepdim=True)
    told = {"haze": there, "haze_extent": extent, "haze_mass": haze.mean((2, 3), keepdim=True)}
    return haze, told | {"haze_soft": there * (soft - 0.5), "haze_grain": d.each(0, 1)}
