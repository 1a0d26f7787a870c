"""Copies of images: exact ones by a digest of the decoded values, near ones by how their edges lie.

A near copy is the same picture after another window, lossy compression, resizing, flipping or inversion.
Two steps find it among n images without comparing all pairs in full:

1. a perceptual hash, the low cosine frequencies of the rank-transformed thumbnail, each in units of its
   spread over the cohort, so that what all images of a kind share counts little; flips only change signs;
2. for the nearest neighbours by that, the agreement of gradient directions (normalised gradient fields,
   Haber and Modersitzki 2006), which a monotone change of intensity leaves as they are.
"""

from __future__ import annotations

import hashlib
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtransfer.image import Image

Floats = NDArray[np.float32]

_SIDE = {2: 64, 3: 20}  # thumbnail
_LOW = {2: 16, 3: 8}  # cosine frequencies kept along each axis
_NEIGHBOURS = 5
_ALIKE = 0.3  # smallest similarity of hashes that is looked at closely


class Look(NamedTuple):
    """What is kept of an image to find its copies."""

    digest: str
    thumbnail: NDArray[np.float16]


def look(image: Image) -> Look:
    """Digest and thumbnail of an image.

    Parameters
    ----------
    image : Image
        As read. Images with the same values have the same digest, however they are stored.

    Examples
    --------
    >>> a = Image(np.arange(12, dtype=np.uint8).reshape(3, 4))
    >>> b = Image(np.arange(12, dtype=np.int16).reshape(3, 4))
    >>> look(a).digest == look(b).digest, look(a).thumbnail.shape
    (True, (64, 64))
    """
    values = np.ascontiguousarray(image.array, dtype="<f4")
    digest = hashlib.sha256(f"{values.shape}".encode())
    digest.update(values.data)
    x = values.mean(axis=-1) if image.rgb else values
    if image.padding is not None and image.padding.any() and not image.padding.all():
        hidden = image.padding.any(axis=-1) if image.rgb and image.padding.ndim > x.ndim else image.padding
        x = np.where(hidden, x[~hidden].min(), x)
    while x.ndim > len(image.spatial_shape):  # time of a volume, frames of an image
        x = x.mean(axis=-1 if image.kind == "volume" else 0)
    x = np.nan_to_num(-x if image.inverted else x)
    for axis in range(x.ndim):
        x = _resize(x, _SIDE[x.ndim], axis)
    low, high = float(x.min()), float(x.max())
    return Look(digest.hexdigest(), ((x - low) / ((high - low) or 1)).astype(np.float16))


def near_pairs(thumbnails: NDArray[np.floating[Any]]) -> list[tuple[int, int, float]]:
    """Pairs of images that look like copies of each other.

    Parameters
    ----------
    thumbnails : ndarray (n, side, side) or (n, side, side, side)
        Of different images.

    Returns
    -------
    list of (int, int, float)
        Two positions, the smaller first, and their agreement in [0, 1].
    """
    scores = _scores(thumbnails)
    limit = _limit(scores)
    return sorted((i, j, score) for (i, j), score in scores.items() if score >= limit)


def _resize(x: NDArray[Any], side: int, axis: int) -> NDArray[np.float32]:
    """Mean over equal cells along one axis."""
    x = np.moveaxis(x, axis, 0)
    x = x[:: max(1, len(x) // (8 * side))]
    total = np.zeros((len(x) + 1, *x.shape[1:]), dtype=np.float64)
    np.cumsum(x, axis=0, out=total[1:])
    edges = np.linspace(0, len(x), side + 1)
    whole = np.minimum(edges.astype(int), len(x) - 1)
    part = (edges - whole).reshape(-1, *(1,) * (x.ndim - 1))
    at_edges = total[whole] * (1 - part) + total[whole + 1] * part
    return np.moveaxis((np.diff(at_edges, axis=0) * side / len(x)).astype(np.float32), 0, axis)


def _hashes(thumbnails: NDArray[np.floating[Any]]) -> Floats:
    """Low cosine frequencies of the ranks of each thumbnail, shape (n, low, ..., low)."""
    from scipy.fft import dctn
    from scipy.stats import rankdata

    n, axes = len(thumbnails), tuple(range(1, thumbnails.ndim))
    low = _LOW[len(axes)]
    small = thumbnails.astype(np.float32)
    if len(axes) == 2:
        small = (small[:, ::2] + small[:, 1::2])[:, :, ::2] + (small[:, ::2] + small[:, 1::2])[:, :, 1::2]
    ranks = rankdata(small.reshape(n, -1), axis=1).reshape(small.shape).astype(np.float32)
    waves = dctn(ranks / ranks[0].size - 0.5, axes=axes, norm="ortho")[(slice(None), *(slice(low) for _ in axes))]
    waves[(slice(None), *(0 for _ in axes))] = 0
    return np.ascontiguousarray(waves, dtype=np.float32)


def _scores(thumbnails: NDArray[np.floating[Any]]) -> dict[tuple[int, int], float]:
    """Agreement of every pair whose hashes are alike, over all flips."""
    n, dims = len(thumbnails), thumbnails.ndim - 1
    if n < 2:
        return {}
    waves = _hashes(thumbnails)
    mean = waves.mean(axis=0) * n / (n + 100)
    spread = np.sqrt(((waves - mean) ** 2).mean(axis=0)) + 1e-6
    sign = np.where(np.arange(_LOW[dims]) % 2, -1, 1).astype(np.float32)

    def units(flips: tuple[bool, ...]) -> Floats:
        turned = waves
        for axis, flip in enumerate(flips):
            if flip:
                turned = turned * sign.reshape(-1, *(1,) * (dims - 1 - axis))
        flat: Floats = ((turned - mean) / spread).reshape(n, -1).astype(np.float32)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12
        return flat

    plain = units((False,) * dims)
    fields = _gradients(thumbnails)
    scores: dict[tuple[int, int], float] = {}
    for flips in product((False, True), repeat=dims):
        other = units(flips)
        for start in range(0, n, 1024):
            alike = np.abs(plain[start : start + 1024] @ other.T)
            rows = np.arange(len(alike))
            alike[rows, rows + start] = 0
            nearest = np.argpartition(-alike, min(_NEIGHBOURS, n - 1) - 1, axis=1)[:, :_NEIGHBOURS]
            i, k = np.nonzero(np.take_along_axis(alike, nearest, axis=1) > _ALIKE)
            pairs = np.stack([i + start, nearest[i, k]], axis=1)
            for (a, b), score in zip(pairs.tolist(), _agreement(fields, pairs, flips).tolist(), strict=True):
                key = (min(a, b), max(a, b))
                scores[key] = max(score, scores.get(key, 0.0))
    return scores


def _gradients(thumbnails: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """Gradients scaled to at most one: near one at edges, small in noise, shape (n, dims, side, ...)."""
    n, axes = len(thumbnails), tuple(range(1, thumbnails.ndim))
    fields = np.empty((n, len(axes), *thumbnails.shape[1:]), dtype=np.float16)
    for start in range(0, n, 256):
        x = thumbnails[start : start + 256].astype(np.float32)
        g = np.stack([np.gradient(x, axis=axis) for axis in axes], axis=1)
        size = np.sqrt((g**2).sum(axis=1))
        typical = np.median(size.reshape(len(x), -1), axis=1).reshape(-1, *(1,) * len(axes)) + 1e-4
        fields[start : start + 256] = g / np.sqrt(size**2 + typical**2)[:, None]
    return fields


def _agreement(fields: NDArray[np.float16], pairs: NDArray[np.int64], flips: tuple[bool, ...]) -> NDArray[np.float64]:
    """Mean cosine of the gradient directions of each pair, the second image flipped, weighted by edge strength."""
    out = np.zeros(len(pairs))
    turn = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    sign = np.where(flips, -1, 1).astype(np.float32).reshape(1, -1, *(1,) * len(flips))
    axes = tuple(range(1, len(flips) + 1))
    for start in range(0, len(pairs), 128):
        a = fields[pairs[start : start + 128, 0]].astype(np.float32)
        b = fields[pairs[start : start + 128, 1]].astype(np.float32)[(slice(None), slice(None), *turn)] * sign
        inner = np.einsum("nd...,nd...->n...", a, b).sum(axis=axes)
        sizes = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)).sum(axis=axes)
        out[start : start + 128] = np.abs(inner) / (sizes + 1e-6)
    return out


def _limit(scores: dict[tuple[int, int], float]) -> float:
    """Agreement from which a pair is a copy: the place between 0.72 and 0.95 where the fewest pairs lie.

    Unrelated images of one kind agree the more the more alike their anatomy is, with a tail that ends at
    0.6 for CT slices and 0.86 for chest radiographs of 28 pixels; copies lie beyond a gap.
    """
    found = np.fromiter(scores.values(), dtype=float)
    places = np.linspace(0.72, 0.95, 47)
    return float(places[np.argmin([np.count_nonzero(np.abs(found - place) < 0.03) for place in places])])
