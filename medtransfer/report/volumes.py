"""Volumes inside a page: cut out, thinned to a size, compressed, with nothing of their source in the header."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.image import Image

Labels = NDArray[np.uint8]
MARGIN = 10  # least voxels around the structures
LIMIT = 6 * 2**20  # characters that the volumes of a report take in all
_LEAST = 8  # voxels along an axis that is thinned no further
_BEST = 8  # times that compression helps, at the very best
_ENOUGH = 4_000_000  # values that tell a window


@dataclass(frozen=True, eq=False)
class Scene:
    """A case as the viewer in the page shows it.

    Parameters
    ----------
    case : str
        Pseudonym.
    low, high : float
        Grey values shown black and white, in the image's units.
    layers : tuple of (str, str)
        ``'image'``, then ``'reference'`` and ``'predicted'`` where there are any, each with its voxels as
        gzipped NIfTI in base64.
    steps : tuple of int
        Every how manieth voxel was taken along each axis.
    """

    case: str
    low: float
    high: float
    layers: tuple[tuple[str, str], ...] = field(repr=False)
    steps: tuple[int, ...] = (1, 1, 1)

    @property
    def size(self) -> int:
        """Characters that the volumes take in the page."""
        return sum(len(text) for _, text in self.layers)

    def to_json(self) -> dict[str, Any]:
        """What the script reads."""
        return {"case": self.case, "low": self.low, "high": self.high, "layers": dict(self.layers)}


def scene(
    case: str,
    image: Image,
    masks: Mapping[str, Labels],
    *,
    limit: int,
    crop: bool = True,
    bits: Literal[8, 16] = 8,
) -> Scene | None:
    """The volumes of a case for the page, on one grid; None of a plain image.

    Parameters
    ----------
    case : str
        Pseudonym.
    image : Image
        Of several frames the first, of colours the mean.
    masks : mapping of {'reference', 'predicted'} to ndarray of uint8
        On the image's voxels.
    limit : int
        Characters that the volumes may take: beyond it every second, third, ... voxel is taken, first along the
        finest axis.
    crop : bool
        Keep only a box around the structures.
    bits : {8, 16}
        8 keeps the grey values of the window, 16 all of them.

    Examples
    --------
    >>> from medtransfer.image import Geometry
    >>> image = Image(np.random.default_rng(0).normal(size=(40, 40, 20)), Geometry.from_affine(np.diag([1, 1, 2, 1])))
    >>> whole, thin = (scene("c", image, {}, limit=n) for n in (10**6, 12_000))
    >>> whole.steps, thin.steps, thin.size <= 12_000
    ((1, 1, 1), (2, 2, 1), True)
    """
    if image.kind != "volume":
        return None
    array = image.array[..., 0] if image.array.ndim > 3 and not image.rgb else image.array
    array = array.mean(-1) if image.rgb else array
    marked = np.zeros(array.shape, bool)
    for labels in masks.values():
        marked |= labels > 0
    box = around(marked) if crop else (slice(0, n) for n in array.shape)
    spans = [range(*s.indices(n)) for s, n in zip(box, array.shape, strict=True)]
    low, high = window_of(array[tuple(slice(r.start, r.stop) for r in spans)])
    spacing = image.geometry.spacing_mm or (1.0, 1.0, 1.0)
    affine = np.eye(4) if image.geometry.affine is None else image.geometry.affine
    steps = [1, 1, 1]
    while True:
        shape = [math.ceil(len(r) / s) for r, s in zip(spans, steps, strict=True)]
        free = [a for a in range(3) if shape[a] > _LEAST]
        if not free or math.prod(shape) * bits / 8 < limit * _BEST:
            at = tuple(slice(r.start, r.stop, s) for r, s in zip(spans, steps, strict=True))
            placed = _placed(affine, [r.start for r in spans], steps)
            stored, slope, start = _stored(array[at], low, high, bits)
            layers = [("image", _text(stored, placed, slope, start))]
            layers += [(k, _text(m[at].astype(np.uint8), placed)) for k, m in masks.items()]
            found = Scene(case, low, high, tuple(layers), tuple(steps))
            if not free or found.size <= limit:
                return found
        steps[min(free, key=lambda a: (spacing[a] * steps[a], a))] += 1


def around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """A box around a mask with room on every side; all of the image where the mask is empty."""
    if not mask.any():
        return (slice(None),) * mask.ndim
    box = []
    for axis, n in enumerate(mask.shape):
        at = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        first, last = int(at[0]), int(at[-1]) + 1
        room = max(MARGIN, (last - first) // 2)
        box.append(slice(max(0, first - room), min(n, last + room)))
    return tuple(box)


def window_of(values: NDArray[np.generic]) -> tuple[float, float]:
    """Grey values shown black and white: nearly all that occur."""
    flat = values.ravel()[:: max(1, values.size // _ENOUGH)]
    known = flat[np.isfinite(flat)].astype(np.float64)
    low, high = (float(v) for v in np.percentile(known, (0.5, 99.5))) if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _placed(affine: NDArray[np.float64], first: Sequence[int], steps: Sequence[int]) -> NDArray[np.float64]:
    """Where the voxels lie of which every manieth is taken, from a first one on."""
    found = affine.copy()
    found[:3, 3] = affine[:3, :3] @ np.array(first) + affine[:3, 3]
    found[:3, :3] = affine[:3, :3] * np.array(steps)
    return found


def _stored(
    values: NDArray[np.generic], low: float, high: float, bits: Literal[8, 16]
) -> tuple[NDArray[Any], float, float]:
    """Whole numbers, and slope and intercept that make them grey values."""
    if bits == 16 and np.issubdtype(values.dtype, np.integer) and _short(values):
        return values.astype(np.int16), 1.0, 0.0
    real = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    grey = np.nan_to_num(real, nan=low, posinf=high, neginf=low)
    if bits == 16:
        if _short(grey) and np.array_equal(grey, np.rint(grey)):
            return grey.astype(np.int16), 1.0, 0.0
        low, high = float(grey.min()), float(grey.max())
    kind, most = (np.uint8, 255) if bits == 8 else (np.int16, 2**15 - 1)
    slope = (high - low) / most or 1.0
    return np.rint((np.clip(grey, low, high) - low) / slope).astype(kind), slope, low


def _short(values: NDArray[np.generic]) -> bool:
    """Whether values fit into 16 bits."""
    return bool(values.min() >= -(2**15) and values.max() < 2**15)  # type: ignore[operator]


def _text(array: NDArray[Any], affine: NDArray[np.float64], slope: float | None = None, start: float = 0.0) -> str:
    """A gzipped NIfTI in base64, its header made anew: place, type and scale, no text; labels where not scaled."""
    import nibabel

    made: Any = nibabel.Nifti1Image(np.asarray(array), affine)  # type: ignore[attr-defined, no-untyped-call]
    made.header.set_xyzt_units("mm")
    if slope is None:
        made.header.set_intent("label")
    else:
        made.header.set_slope_inter(slope, start)
    return base64.b64encode(gzip.compress(made.to_bytes(), mtime=0)).decode()
