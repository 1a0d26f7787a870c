"""From an image to a mask on its own voxels: windows, mirrored views, ensembles, and back to the native grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.image import Image
from medtransfer.segment.grid import native_matrices, to_grid, turn_back
from medtransfer.segment.network import Segmenter
from medtransfer.segment.plan import Plan, machine_gb
from medtransfer.segment.slide import choose_batch, slide, starts

Labels = NDArray[np.uint8]


def speaker(models: Sequence[Segmenter], mirrored: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
    """Mean class probabilities over models and mirrored views of windows ``[n, channels, ...]``."""
    flips = [axes for k in range(len(mirrored) + 1) for axes in itertools.combinations(mirrored, k)]

    def predict(views: Tensor) -> Tensor:
        answer: Tensor | None = None
        for axes in flips:
            shown = views.flip(axes) if axes else views
            for model in models:
                found = torch.softmax(model(shown).float(), 1)
                found = found.flip(axes) if axes else found
                answer = found if answer is None else answer.add_(found)
        assert answer is not None
        return answer / (len(flips) * len(models))

    return predict


def chances(
    models: Sequence[Segmenter], plan: Plan, array: Tensor, *, mirror: bool = True, batch: int | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Class probabilities on the plan's grid, slab by slab; see :func:`medtransfer.segment.slide.slide`.

    Parameters
    ----------
    array : Tensor [channels, ...]
        As :func:`medtransfer.segment.grid.to_grid` gives it.
    mirror : bool
        Average mirrored views along the plan's axes.
    batch : int or None
        Windows at once; None chooses by memory and a short measurement.
    """
    for model in models:
        model.eval()
    yield from _windows(speaker(models, plan.mirrored if mirror else ()), plan, array, batch)


def _windows(
    predict: Callable[[Tensor], Tensor], plan: Plan, array: Tensor, batch: int | None
) -> Iterator[tuple[int, int, Tensor]]:
    with torch.inference_mode():
        if batch is None:
            count = int(np.prod([len(starts(n, w, plan.overlap)) for n, w in zip(array.shape[1:], plan.window)]))  # noqa: B905
            view = array.new_zeros(1, len(array), *plan.window)
            batch = choose_batch(predict, view, count, memory_gb=machine_gb() / 4, tensors=4 * plan.width)
        yield from slide(predict, array, plan.window, overlap=plan.overlap, batch=batch)


def segment_image(
    models: Sequence[Segmenter],
    plan: Plan,
    image: Image,
    *,
    mirror: bool = True,
    batch: int | None = None,
    device: str = "cpu",
    where: str = "",
) -> Labels:
    """Class of every voxel of an image, on its own grid.

    Probabilities are interpolated back to the image's voxels before the largest is taken; only the planes of
    the windows at hand are in memory.

    Returns
    -------
    ndarray of uint8
        On the image's spatial axes.
    """
    array, _ = to_grid(plan, image, where=where)
    slabs = chances(models, plan, torch.from_numpy(array).to(device), mirror=mirror, batch=batch)
    return _labels(slabs, plan, image, array.shape[1:])


def segment_by(
    predict: Callable[[Tensor], Tensor], plan: Plan, image: Image, *, batch: int | None = None, where: str = ""
) -> Labels:
    """As :func:`segment_image`, by anything that gives class probabilities of windows ``[n, channels, ...]``."""
    array, _ = to_grid(plan, image, where=where)
    return _labels(_windows(predict, plan, torch.from_numpy(array), batch), plan, image, array.shape[1:])


def _labels(slabs: Iterator[tuple[int, int, Tensor]], plan: Plan, image: Image, grid: tuple[int, ...]) -> Labels:
    """The likeliest class on the image's own voxels."""
    matrices = native_matrices(plan, image, grid)
    sides = [n if m is None else m.shape[0] for n, m in zip(grid, matrices, strict=True)]
    result = np.zeros(sides, np.uint8)
    for first, end, native in _natively(slabs, matrices, sides[0]):
        result[first:end] = native.argmax(0).to(torch.uint8).cpu().numpy()
    return turn_back(result, image)


def _natively(
    slabs: Iterator[tuple[int, int, Tensor]], matrices: Sequence[NDArray[Any] | None], side: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Slabs of the plan's grid as slabs of native planes: each as soon as all it is made of is known."""
    depth, *rest = matrices
    if depth is not None:
        used = depth > 0
        needed_first = used.argmax(1)
        needed_last = depth.shape[1] - 1 - used[:, ::-1].argmax(1)
    held: Tensor | None = None
    base = row = 0
    for first, end, slab in slabs:
        for axis, matrix in enumerate(rest, start=2):
            if matrix is not None:
                weights = torch.from_numpy(matrix).to(slab)
                slab = torch.movedim(torch.tensordot(weights, slab, dims=([1], [axis])), 0, axis)
        if depth is None:
            yield first, end, slab
            continue
        held = slab if held is None else torch.cat([held, slab], 1)
        stop = row + int((needed_last[row:] < end).sum())
        if stop > row:
            weights = torch.from_numpy(np.ascontiguousarray(depth[row:stop, base:end])).to(slab)
            yield row, stop, torch.movedim(torch.tensordot(weights, held, dims=([1], [1])), 0, 1)
            row = stop
            kept = int(needed_first[row]) if row < side else end
            held, base = held[:, max(0, kept - base) :], max(base, kept)
