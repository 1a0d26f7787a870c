"""A drawn chest: maps of the water-equivalent thickness (mm) that a beam passes on its way to the detector.

Lengths are in millimetres, ``x`` grows to the image's right (the patient's left), ``y`` downwards, the
origin is the middle of the thorax. Everything is procedural: no person was imaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Grid = NDArray[np.float32] | NDArray[np.float64]

_AIR = 0.76  # share of a lung's thickness that is air
_NODULES, _RADIUS_MM, _DENSITY = (3, 6), (13, 19), (1.4, 1.8)  # smallest and largest; density of water is 1
_SUBTLE = 0.12  # share of the images with nodules where these are faint: what keeps any reader below 1
_HAZE_MM = 14  # how far the mass of a nodule is spread in images without
_VARIETY = 0.6  # how much chests differ; 1 would be as much as adults do
_SHIFT_MM, _TURN_RAD = 3.0, 0.02  # standard deviation of how the patient is placed


@dataclass(frozen=True)
class Pose:
    """The detector's matrix and spacing, and whether the beam comes from the front."""

    shape: tuple[int, int]
    spacing_mm: float
    ap: bool


def _step(distance: Grid, softness: float) -> Map:
    """0 below, 1 above zero, over ``softness`` mm on either side."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / softness), np.float32)


def _ellipse(x: Map, y: Map, cx: float, cy: float, a: float, b: float, turn: float = 0.0) -> Map:
    """Distance (mm, roughly) inside an ellipse; negative outside."""
    c, s = math.cos(turn), math.sin(turn)
    u, v = (c * (x - cx) + s * (y - cy)) / a, (c * (y - cy) - s * (x - cx)) / b
    return ((1 - np.hypot(u, v)) * min(a, b)).astype(np.float32)


def _tube(distance: Map, radius: float, marrow: float, cortex: float) -> Map:
    """Profile of a long bone: a rounded body of ``marrow`` mm with denser walls of ``cortex`` mm."""
    inside = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
    wall = np.exp(-(((distance - radius + 1.0) / 1.2) ** 2))
    return np.asarray(marrow * inside + cortex * wall, np.float32)


@dataclass(frozen=True)
class Body:
    """What differs between two people's chests; drawn once per patient."""

    size: float
    girth: float
    depth_mm: float
    heart: float
    tilt: float
    dome_mm: float
    rib_mm: float
    bone: float
    breast_mm: float
    aorta_mm: float
    wander: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, sex: str, age: int) -> Body:
        """A chest of this sex and age."""
        female = sex == "F"

        def vary(mean: float, deviation: float) -> float:
            return float(rng.normal(mean, _VARIETY * deviation))

        return cls(
            size=vary(0.98 if female else 1.0, 0.025),
            girth=vary(1.0, 0.03),
            depth_mm=vary(205 if female else 210, 9),
            heart=vary(1.0, 0.06),
            tilt=vary(0.5, 0.08),
            dome_mm=vary(104, 5),
            rib_mm=vary(25.5, 0.6),
            bone=vary(1.1 - 0.002 * age, 0.07),
            breast_mm=vary(18, 5) if female else 0.0,
            aorta_mm=vary(14 + 0.05 * age, 1.2),
            wander=_VARIETY * rng.normal(0, 1, 64),
        )


def _ribs(body: Body, x: Map, y: Map) -> Map:
    """Ten pairs of tilted rings: the posterior halves dense, the anterior ones fading into cartilage."""
    out, side = np.zeros_like(x), np.abs(x)
    wide = x < 0
    for i in range(10):
        reach = 138 * body.girth * (1 - 0.62 * max(0.0, (3.2 - i) / 3.2) ** 2.2)
        start, drop = -146 + body.rib_mm * i + 1.2 * body.wander[i], 46 + 6.5 * min(i, 6)
        shift = np.where(wide, 1.5 * body.wander[10 + i], 0.0)
        t = np.clip(side / reach, 0, 0.999)
        cosine = np.sqrt(1 - t * t)
        arch, bend = start + shift - 13 * t * (1 - 0.5 * t), 0.5 * drop
        steep = bend * t / (cosine * reach)
        inside = _step(reach - side + 1, 2.0)
        lean = 1 / np.sqrt(1 + steep * steep)
        back = _tube(np.abs(y - arch - bend * (1 - cosine)) * lean, 5.6, 9.0, 6.0)
        out += back * inside * _step(side - 16, 4.0)
        if i < 8:
            front = _tube(np.abs(y - arch - bend * (1 + cosine) - 6) * lean, 6.0, 6.0, 3.5)
            out += front * inside * _step(side - 62 - 4 * body.wander[20 + i], 12.0)
    return out


def _skeleton(body: Body, x: Map, y: Map) -> Map:
    """Ribs, clavicles, shoulder blades, and a spine of vertebrae with pedicles and spinous processes."""
    side = np.abs(x)
    bone = _ribs(body, x, y)
    s = np.clip((side - 12) / 140, 0, 1)
    clavicle = -112 - 34 * s + 9 * np.sin(2 * np.pi * s) + 2.5 * body.wander[30] * np.sign(x)
    bone += _tube(np.abs(y - clavicle), 6.2, 13.0, 8.0) * _step(side - 13, 3.0) * _step(158 - side, 4.0)
    blade = _ellipse(side, y, 152, -78, 30, 72, -0.12)
    bone += 9 * _step(blade, 2.0) + 9 * np.exp(-((blade / 2.2) ** 2))
    phase = np.mod(y + 3 * body.wander[31], 23.5) / 23.5
    disc = np.exp(-(((phase - 0.5) / 0.1) ** 2))
    width = 17 + 0.02 * (y + 150)
    body_of = np.sqrt(np.clip(1 - (x / width) ** 2, 0, None))
    bone += body_of * (20 - 9 * disc)
    across, along = (side - 11) / 3.2, (phase - 0.25) * 23.5 / 4.2
    bone += 7 * np.exp(-(across**2) - along**2)
    bone += 9 * np.exp(-((x / 2.6) ** 2) - ((phase - 0.62) * 23.5 / 6.5) ** 2)
    return (body.bone * bone).astype(np.float32)


def _vessels(body: Body, x: Map, y: Map, pixel_mm: float, rng: np.random.Generator) -> Map:
    """Branching pulmonary vessels: points strewn along tapering arcs, blurred to their calibre."""
    from scipy.ndimage import gaussian_filter

    layers = {1.1: np.zeros_like(x), 1.9: np.zeros_like(x), 3.2: np.zeros_like(x)}
    x0, y0 = float(x[0, 0]), float(y[0, 0])
    for sign in (-1.0, 1.0):
        roots = [(sign * 34.0, -14.0, a, 1.0) for a in np.linspace(-1.35, 1.5, 11) + rng.normal(0, 0.08, 11)]
        for px, py, angle, calibre in roots + [(*r[:2], r[2] + rng.normal(0, 0.25), 0.6) for r in roots]:
            length = rng.uniform(70, 120) * (0.8 if calibre < 1 else 1.0)
            t = np.arange(0, length, 0.8)
            bend = angle + rng.normal(0, 0.35) * (t / length) ** 2 + 0.06 * np.sin(t / 14 + rng.uniform(0, 6))
            vx = px + sign * np.cumsum(np.cos(bend)) * 0.8
            vy = py + np.cumsum(np.sin(bend)) * 0.8
            radius = 4.2 * calibre * (1 - t / length) ** 1.1 + 0.5
            cols = np.rint((vx - x0) / pixel_mm).astype(int)
            rows = np.rint((vy - y0) / pixel_mm).astype(int)
            seen = (cols >= 0) & (cols < x.shape[1]) & (rows >= 0) & (rows < x.shape[0])
            edges = np.array([0, 1.6, 2.7, 9])
            for k, (sigma, layer) in enumerate(layers.items()):
                here = seen & (radius >= edges[k]) & (radius < edges[k + 1])
                weight = 2 * radius * 0.8 * sigma * math.sqrt(2 * math.pi) / pixel_mm**2
                np.add.at(layer, (rows[here], cols[here]), weight[here])
    out = np.zeros_like(x)
    for sigma, layer in layers.items():
        out += gaussian_filter(layer, sigma / pixel_mm, truncate=3.0)
    return 18 * np.tanh(out / 18)


def _lungs(body: Body, x: Map, y: Map, breath_mm: float, heart_scale: float) -> tuple[Map, Map]:
    """Thickness of air-holding lung (mm) and the share of it that the heart and great vessels displace."""
    side, right = np.abs(x), x < 0
    dome = body.dome_mm + breath_mm + np.where(right, -9.0, 3.0)
    base = dome + 30 * ((side - 66) / 62) ** 2
    centre = 52 + 26 * _step(y + 60, 75)
    high = np.clip(np.abs((y - 20) / 177), 0, 1)
    half = 57 * body.girth * np.sqrt(1 - high**3.2) + 1e-3
    u = np.clip(np.abs(side - centre) / half, 0, 1)
    deep = (148 - 0.13 * np.abs(y - 30)) * np.sqrt(1 - u**3.2) * np.clip((1 - high**2) * 2.2, 0, 1) ** 0.5
    lung = deep * _step(base - y, 2.2)
    k = body.heart * heart_scale
    solid = _step(_ellipse(x, y, 24 * k, 60 + 0.5 * breath_mm, 64 * k, 46 * k, body.tilt), 2.2)
    solid = np.maximum(solid, _step(_ellipse(x, y, -14, 62 + 0.5 * breath_mm, 30 * k, 42), 2.6))
    solid = np.maximum(solid, _step(_ellipse(x, y, 17, -58, body.aorta_mm, body.aorta_mm + 3), 2.0))
    solid = np.maximum(solid, _step(_ellipse(x, y, 20, -20, 22, 26), 3.0))
    solid = np.maximum(solid, _step(_ellipse(x, y, -10, -60, 18, 70), 3.0))
    return lung.astype(np.float32), (0.86 * solid).astype(np.float32)


def _nodules(lung: Map, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """A few soft, slightly lobulated balls inside the open lung."""
    out = np.zeros_like(x)
    rows, cols = np.nonzero(lung > 95)
    faint = 0.12 if rng.uniform() < _SUBTLE else 1.0
    for _ in range(int(rng.integers(_NODULES[0], _NODULES[1] + 1))):
        pick = int(rng.integers(len(rows)))
        dx, dy = x - x[rows[pick], cols[pick]], y - y[rows[pick], cols[pick]]
        radius, lobes = rng.uniform(*_RADIUS_MM), int(rng.integers(3, 6))
        angle = np.arctan2(dy, dx)
        rim = radius * (
            1 + 0.04 * np.sin(lobes * angle + rng.uniform(0, 6)) + 0.06 * np.sin(2 * angle + rng.uniform(0, 6))
        )
        ball = np.sqrt(np.clip(1 - (dx * dx + dy * dy) / rim**2, 0, None))
        out += (2 * faint * radius * rng.uniform(*_DENSITY) * ball).astype(np.float32)
    return out


def thickness_mm(
    pose: Pose, *, sex: str, age: int, nodule: bool, chest: np.random.Generator, rng: np.random.Generator
) -> Map:
    """Water-equivalent thickness in mm, shape ``pose.shape``.

    ``chest`` draws what stays with the patient, ``rng`` what differs between two visits.
    """
    from scipy.ndimage import gaussian_filter

    body = Body.draw(chest, sex, age)
    shift, turn = rng.normal(0, _SHIFT_MM, 2), rng.normal(0, _TURN_RAD)
    ap = pose.ap
    zoom = body.size * (1.015 if ap else 1.0)
    rows, cols = pose.shape
    px = ((np.arange(cols) - (cols - 1) / 2) * pose.spacing_mm - shift[0]) / zoom
    py = ((np.arange(rows) - (rows - 1) / 2) * pose.spacing_mm - shift[1]) / zoom - 18
    gx, gy = np.meshgrid(px.astype(np.float32), py.astype(np.float32))
    x = (gx + turn * gy).astype(np.float32)
    y = (gy - turn * gx).astype(np.float32)
    pixel_mm = pose.spacing_mm / zoom

    side = np.abs(x)
    wide = 168 * body.girth + 55 * _step(-62 - y, 22)
    flank = np.clip(1 - (side / wide) ** 3, 0, None)
    top = _step(y + 196 - 0.42 * np.hypot(np.clip(side - 44, 0, None), 22), 6.0)
    soft = body.depth_mm * np.sqrt(flank) * top * (0.78 + 0.22 * _step(y + 110, 50))
    lung, solid = _lungs(body, x, y, rng.normal(-4 if ap else 0, 1.5), 1.05 if ap else 1.0)
    lung *= np.minimum(1, soft / (1.2 * lung + 1e-3))
    open_lung = lung * (1 - solid)
    air = _AIR * open_lung
    air += 15 * _step(9 - np.abs(x + 2), 1.5) * _step(-48 - y, 4.0)  # trachea
    gas = _ellipse(x, y, 62, body.dome_mm + 34, 34, 17)
    air += rng.uniform(10, 40) * np.clip(gas / 17, 0, 1) ** 0.5
    if body.breast_mm:
        fold = _ellipse(side, y, 78, 66, 62, 52)
        soft = soft + body.breast_mm * np.clip(fold / 26, 0, 1) ** 0.5
    share = open_lung / 140
    soft = soft + _vessels(body, x, y, pixel_mm, rng) * share
    mottle = gaussian_filter(rng.standard_normal(pose.shape, dtype=np.float32), 3.5 / pixel_mm)
    soft = soft + 1.6 * mottle / mottle.std() * share
    # without nodules the same mass lies in the lungs as a haze: grey values alone shall not tell them apart
    edge_mm = 1.2 if nodule else _HAZE_MM
    soft = soft + _AIR * gaussian_filter(_nodules(open_lung, x, y, rng), edge_mm / pixel_mm)
    return np.asarray(soft - air + _skeleton(body, x, y) * top, np.float32)
