"""Scenes drawn by code: label maps, textures and scanner physics from random numbers alone, in 2D and 3D.

Each chunk of scenes draws how it is made (which background, whether structures hide each other or add up as in
a projection, which physics); each scene draws its own parameters. What was drawn is kept as the training's target.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

BACKGROUNDS = ("plain", "patches", "cells", "layers", "fractal", "body")
PHYSICS = ("none", "speckle", "mask", "grain")
NUMBERS = (
    "lesion", "lesion_size", "lesion_contrast", "lesion_rough", "lesion_soft", "slope0", "slope1", "slope2",
    "texture", "warp", "count", "rough", "soft", "speckle", "shadow", "hollow", "adds", "long",
)  # fmt: skip
ATTRIBUTES = (*NUMBERS, *(f"background_{b}" for b in BACKGROUNDS), *(f"physics_{p}" for p in PHYSICS))


@dataclass
class Scenes:
    """``image``, ``clean`` (without texture and noise), ``lesion`` and ``texture`` are ``[n, 1, ...]`` in [0, 1]."""

    image: Tensor
    clean: Tensor
    lesion: Tensor
    texture: Tensor
    attributes: Tensor

    def stacked(self) -> Tensor:
        """The four maps as uint8 ``[n, 4, ...]``."""
        maps = [getattr(self, f.name) for f in fields(self) if f.name != "attributes"]
        return (torch.cat(maps, 1).clamp(0, 1) * 255).round().to(torch.uint8)


class Draw:
    """Random numbers for ``n`` scenes of one shape."""

    def __init__(self, n: int, dims: int, side: int, generator: torch.Generator) -> None:
        self.n, self.dims, self.shape, self.g = n, dims, (side,) * dims, generator
        axis = torch.linspace(-1, 1, side)
        self.grid = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"))[None]

    def one(self, low: float, high: float) -> float:
        """A number for the whole chunk."""
        return low + (high - low) * float(torch.rand((), generator=self.g))

    def pick(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.g))

    def each(self, low: float, high: float) -> Tensor:
        """A number for each scene, shaped ``[n, 1, ...]`` to multiply maps."""
        return (low + (high - low) * torch.rand(self.n, generator=self.g)).reshape(-1, 1, *[1] * self.dims)

    def smooth(self, channels: int, cells: int) -> Tensor:
        """Smooth random maps of about unit deviation with ``cells`` cells a side."""
        coarse = torch.randn(self.n, channels, *[cells] * self.dims, generator=self.g)
        mode = "bicubic" if self.dims == 2 else "trilinear"
        return F.interpolate(coarse, self.shape, mode=mode, align_corners=True)

    def noise(self, slope: Tensor, stretch: float = 0.5, low: float = 1.0) -> Tensor:
        """Spectral noise of unit deviation whose power falls as frequency to the minus ``slope``."""
        axes = tuple(range(2, 2 + self.dims))
        white = torch.randn(self.n, 1, *self.shape, generator=self.g)
        spectrum = torch.fft.rfftn(white, dim=axes)
        pulls = torch.exp(stretch * torch.randn(self.n, self.dims, generator=self.g))
        square = torch.full((1,) * (2 + self.dims), low**2 / self.shape[0] ** 2)
        for i, size in enumerate(self.shape):
            last = i == self.dims - 1
            f = torch.fft.rfftfreq(size) if last else torch.fft.fftfreq(size)
            line = (f[None] * pulls[:, i, None]) ** 2
            square = square + line.reshape(self.n, 1, *[len(f) if j == i else 1 for j in range(self.dims)])
        field = torch.fft.irfftn(spectrum * square ** (-slope / 4), s=self.shape, dim=axes)
        return (field - field.mean(axes, keepdim=True)) / field.std(axes, keepdim=True).clamp_min(1e-6)

    def turns(self) -> Tensor:
        """Random rotations ``[n, dims, dims]``, one for each scene."""
        return torch.linalg.qr(torch.randn(self.n, self.dims, self.dims, generator=self.g))[0]

    def radius(self, where: Tensor, size: Tensor, stretch: float, reach: float = 0.85) -> tuple[Tensor, Tensor]:
        """How far each position is from the middle of a random body in units of its size; its smallest half axis."""
        centre = (2 * torch.rand(self.n, self.dims, generator=self.g) - 1) * reach
        shape = torch.exp(stretch * torch.randn(self.n, self.dims, generator=self.g))
        axes = size.reshape(self.n, 1) * shape / shape.prod(1, keepdim=True) ** (1 / self.dims)
        matrix = self.turns() / axes[:, :, None]
        flat = where.expand(self.n, -1, *self.shape).flatten(2)
        v = (matrix @ (flat - centre[:, :, None])).reshape(self.n, self.dims, *self.shape)
        power = self.pick(6)
        if power == 0:
            r = v.abs().amax(1, keepdim=True)  # a box
        elif power == 1:
            r = v.abs().sum(1, keepdim=True) / self.dims**0.5  # a diamond
        else:
            r = v.square().sum(1, keepdim=True).sqrt()
        return r, axes.amin(1).reshape(-1, 1, *[1] * self.dims)


def draw_scenes(n: int, dims: int, side: int, generator: torch.Generator) -> Scenes:
    """``n`` scenes of ``side`` pixels or voxels a side."""
    d = Draw(n, dims, side, generator)
    background = BACKGROUNDS[d.pick(len(BACKGROUNDS))]
    physics = ("none", "none", "none", "grain", "grain", "speckle", "speckle", "mask")[d.pick(8)]
    adds = d.one(0, 1) < 0.35
    a: dict[str, Tensor] = {
        "warp": d.each(0, 0.35),
        "rough": d.each(0, 1) ** 2,
        "soft": 0.01 + d.each(0, 1) ** 2 * 0.12,
    }
    where = d.grid + a["warp"] * d.smooth(dims, 3 + d.pick(4))
    if d.one(0, 1) < 0.3:  # left and right alike, as in most of the body
        where = torch.cat([where[:, :-1], where[:, -1:].abs()], 1)
    slopes = {f"slope{i}": d.each(0.6, 4) for i in range(3)}
    grains = torch.cat([d.noise(s) for s in slopes.values()], 1)
    a |= slopes | {"texture": d.each(0, 1) ** 2 * 0.4}

    clean, amount = _background(d, background, where)
    mix = torch.zeros(n, 3, *d.shape)
    mix[:, d.pick(3)] = 1.0
    bumps = d.noise(torch.full((n, *[1] * (dims + 1)), 2.5), 0.2, low=3.0)

    count = torch.zeros_like(a["warp"])
    solid = torch.zeros(n, 1, *d.shape)
    a["hollow"] = d.each(-0.6, 1).clamp_min(0)
    long = d.one(0, 1)
    often = d.each(0.15, 1)
    for k in range(2 + d.pick(11)):
        size = (0.09 * d.each(0.04, 1) ** -0.6).clamp_max(0.6)
        there = (d.each(0, 1) < often).float()
        r, width = d.radius(where, size, 0.25 + 0.9 * long)
        distance = (r - 1) * width + 0.12 * a["rough"] * bumps * width.sqrt()
        if k % 3 == 2:
            wall = 0.2 * width
            distance = torch.where(d.each(0, 1) < a["hollow"], distance.abs() - wall, distance)
        body = there * torch.sigmoid(-distance / (a["soft"] * 0.5 + 0.004))
        level = d.each(-0.5, 0.5) if adds else d.each(0, 1)
        count = count + there
        solid = torch.maximum(solid, body)
        if adds:
            bulge = (1 - r.square()).clamp_min(0).sqrt()
            clean = clean + level * there * (0.5 * body + 0.5 * bulge)
        else:
            clean = clean + body * (level - clean)
            own = torch.zeros(1, 3, *[1] * dims)
            own[:, d.pick(3)] = 1.0
            mix = mix + body * (own - mix)
            amount = amount + body * (d.each(0, 1) ** 2 - amount)
    a |= {"count": count / 12, "long": torch.full_like(count, long), "adds": torch.full_like(count, float(adds))}

    there = (d.each(0, 1) < 0.5).float()
    size, contrast, rough, soft = d.each(0.08, 0.4), d.each(-1, 1), d.each(0, 1), d.each(0, 1)
    r, width = d.radius(d.grid + 0.15 * a["warp"] * d.smooth(dims, 4), size, 0.25, 0.55)
    spikes = d.noise(torch.full((n, *[1] * (dims + 1)), 1.5), 0.0, low=6.0)
    lesion = there * torch.sigmoid(-((r - 1) * width + 0.16 * rough * spikes * width) / (0.004 + 0.08 * soft**2))
    strength = torch.sign(contrast) * (0.12 + 0.4 * contrast.abs())
    clean = clean + lesion * strength
    amount = amount + lesion * (d.each(0, 1) ** 2 - amount)
    a |= {"lesion": there, "lesion_size": there * size, "lesion_contrast": there * strength}
    a |= {"lesion_rough": there * (rough - 0.5), "lesion_soft": there * (soft - 0.5)}

    a |= {"speckle": torch.zeros_like(count), "shadow": torch.zeros_like(count)}
    if physics == "mask":
        solid = torch.maximum(solid, lesion)
        clean, amount = (solid > 0.5).float(), torch.zeros_like(solid)
        if d.one(0, 1) < 0.5:  # a shape with rough edges
            clean = ((solid + 0.15 * a["rough"] * bumps) > 0.5).float()
    texture = amount * a["texture"]
    image = clean + texture * (mix * grains).sum(1, keepdim=True)
    if physics == "speckle":
        image, extra = _ultrasound(d, image, clean, lesion)
        a |= extra
    elif physics == "grain":
        image = image + d.each(0, 0.12) * d.noise(d.each(-1, 1.5), 0.6)
    clean, image = scaled(clean, image)
    numbers = [a[name].reshape(n) for name in NUMBERS]
    chosen = [torch.full((n,), float(b == background)) for b in BACKGROUNDS]
    chosen += [torch.full((n,), float(p == physics)) for p in PHYSICS]
    return Scenes(image, clean, lesion, texture * 2, torch.stack(numbers + chosen, 1))


def _background(d: Draw, kind: str, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mean values and amount of texture of what lies behind all structures."""
    count = 2 + d.pick(6)
    if kind in ("plain", "body"):
        ramp = (where * torch.randn(d.n, d.dims, *[1] * d.dims, generator=d.g)).sum(1, keepdim=True)
        clean, amount = d.each(0, 0.9) + 0.15 * d.each(0, 1) * ramp, d.each(0, 1).expand(-1, 1, *d.shape)
        if kind == "body":
            middle = where * (1.0 / (0.6 + 0.5 * torch.rand(d.n, d.dims, *[1] * d.dims, generator=d.g)))
            inside = torch.sigmoid((1 - middle.square().sum(1, keepdim=True).sqrt()) / 0.03)
            rim = torch.exp(-(((1 - middle.square().sum(1, keepdim=True).sqrt() - 0.1) / 0.05) ** 2))
            clean, amount = inside * (clean * 0.6 + 0.2) + d.each(-0.3, 0.5) * rim, amount * inside
        return clean, amount
    if kind == "fractal":
        cloud = _fractal(d)
        return d.each(0, 0.6) + d.each(-0.6, 0.8) * cloud, d.each(0, 1) * (0.3 + cloud)
    if kind == "patches":
        fields = d.smooth(count, 4 + d.pick(8 if d.dims == 2 else 4))
        chosen = fields.argmax(1, keepdim=True)
    elif kind == "cells":
        points = 2 * torch.rand(d.n, d.dims, 4 * count, generator=d.g) - 1
        flat = where.flatten(2).transpose(1, 2).contiguous()
        nearest = torch.cdist(flat, points.transpose(1, 2).contiguous()).argmin(2) % count
        chosen = nearest.reshape(d.n, 1, *d.shape)
    else:
        turn = d.turns()[:, :1]
        along = (turn @ where.expand(d.n, -1, *d.shape).flatten(2)).reshape(d.n, 1, *d.shape)
        chosen = (along * d.each(1, 8)).floor().long() % count
    levels, amounts = torch.rand(d.n, count, generator=d.g), torch.rand(d.n, count, generator=d.g) ** 2
    index = chosen.flatten(1)
    return levels.gather(1, index).reshape(chosen.shape), amounts.gather(1, index).reshape(chosen.shape)


def _fractal(d: Draw, points: int = 600, steps: int = 24) -> Tensor:
    """Density of an iterated function system of random affine maps, by the chaos game, in [0, 1]."""
    maps = 2 + d.pick(4)
    matrix = d.turns()[:, None] * (0.35 + 0.4 * torch.rand(d.n, maps, 1, d.dims, generator=d.g))
    matrix = matrix @ torch.linalg.qr(torch.randn(d.n, maps, d.dims, d.dims, generator=d.g))[0]
    shift = 1.2 * torch.rand(d.n, maps, d.dims, generator=d.g) - 0.6
    x = torch.zeros(d.n, points, d.dims)
    side, rows = d.shape[0], torch.arange(d.n)[:, None]
    density = torch.zeros(d.n, side**d.dims)
    for step in range(steps):
        chosen = torch.randint(maps, (d.n, points), generator=d.g)
        x = (matrix[rows, chosen] @ x[..., None])[..., 0] + shift[rows, chosen]
        if step > 5:
            cell = ((x.clamp(-0.999, 0.999) + 1) / 2 * side).long()
            index = sum(cell[..., i] * side ** (d.dims - 1 - i) for i in range(d.dims))
            density.scatter_add_(1, index, torch.ones(d.n, points))
    cloud = torch.log1p(density).reshape(d.n, 1, *d.shape)
    pool = F.avg_pool2d if d.dims == 2 else F.avg_pool3d
    cloud = pool(cloud, 3, 1, 1)
    return cloud / cloud.amax(tuple(range(1, cloud.ndim)), keepdim=True).clamp_min(1e-6)


def _ultrasound(d: Draw, image: Tensor, clean: Tensor, lesion: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Speckle of a coherent beam, shadow or enhancement behind the lesion, attenuation with depth."""
    slope = d.each(0.5, 2.5)
    beam = (d.noise(slope, 0.6, 4.0).square() + d.noise(slope, 0.6, 4.0).square()).sqrt() / 1.25
    strength, shadow = d.each(0.2, 1), d.each(-1, 1.5)
    behind = lesion.cumsum(2) / (lesion.sum(2, keepdim=True).amax(tuple(range(1, lesion.ndim)), keepdim=True) + 1e-3)
    field = torch.exp(-shadow * 0.6 * behind * (1 - 0.5 * lesion)) * torch.exp(-d.each(-0.2, 0.6) * (d.grid[:, :1] + 1))
    echo = image.clamp_min(0.02) * field * (1 - strength + strength * beam)
    if d.one(0, 1) < 0.6:
        echo = torch.log1p(8 * echo) / 2.2
    there = lesion.amax(tuple(range(1, lesion.ndim)), keepdim=True)
    return echo, {"speckle": strength, "shadow": there * shadow}


def scaled(clean: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the scale where the image's middle 98 % fill [0, 1]."""
    ordered = image.flatten(1).sort(1).values
    last = ordered.shape[1] - 1
    low, high = (ordered[:, round(q * last)].reshape(-1, *[1] * (image.ndim - 1)) for q in (0.01, 0.99))
    span = (high - low).clamp_min(0.05)
    return (clean - low) / span, (image - low) / span


def scene_bank(
    count: int, dims: int, side: int, seed: int, chunk: int, projections: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``count`` scenes as uint8 maps ``[count, 4, ...]`` and attributes ``[count, A]``; the same for the same seed.

    With ``projections`` above 0 this share of the chunks are projections (2D), and attributes tell of them too.
    """
    from projections import EXTRA, draw_projections

    generator = torch.Generator().manual_seed(seed)
    maps = torch.empty(count, 4, *[side] * dims, dtype=torch.uint8)
    attributes = torch.zeros(count, len(ATTRIBUTES) + len(EXTRA) * (projections > 0))
    for start in range(0, count, chunk):
        stop = min(count, start + chunk)
        if projections > 0 and float(torch.rand((), generator=generator)) < projections:
            scenes = draw_projections(stop - start, side, generator)
        else:
            scenes = draw_scenes(stop - start, dims, side, generator)
        maps[start:stop] = scenes.stacked()
        attributes[start:stop, : scenes.attributes.shape[1]] = scenes.attributes
    return maps, attributes
