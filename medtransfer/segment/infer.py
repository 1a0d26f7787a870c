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
from medtransfer.memory import available
from medtransfer.segment.grid import in_slices, native_matrices, turn
from medtransfer.segment.network import Segmenter
from medtransfer.segment.plan import Plan
from medtransfer.segment.room import zeros
from medtransfer.segment.slide import Source, fitting, slide

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
    models: Sequence[Segmenter],
    plan: Plan,
    image: Tensor | Source,
    *,
    mirror: bool = True,
    batch: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Class probabilities on the plan's grid, slab by slab; see :func:`medtransfer.segment.slide.slide`.

    Parameters
    ----------
    image : Tensor [channels, ...] or Source
        As :func:`medtransfer.segment.grid.to_grid` gives it, or :meth:`medtransfer.Prepare.planes`.
    mirror : bool
        Average mirrored views along the plan's axes.
    batch : int or None
        Windows at once; None tries those that fit into memory, and goes on with the fastest.
    """
    yield from _windows(speaker(_ready(models), plan.mirrored if mirror else ()), plan, image, batch, device)


def _ready(models: Sequence[Segmenter]) -> list[Segmenter]:
    return [model.eval() for model in models]


def _windows(
    predict: Callable[[Tensor], Tensor],
    plan: Plan,
    image: Tensor | Source,
    batch: int | None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    with torch.inference_mode():
        place = device or (image.device if isinstance(image, Tensor) else "cpu")
        tensors = 4 * plan.width  # that a network of this width holds at once, roughly
        sizes = fitting((image.shape[0], *plan.window), memory=available(place) // 4, tensors=tensors)
        yield from slide(predict, image, plan.window, overlap=plan.overlap, batch=batch or sizes, device=device)


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
    """Class of every voxel of an image, on its own grid; a volume is seen slice by slice by a plan of two axes.

    The image is prepared, and probabilities are interpolated back to its voxels before the largest is taken, for the
    planes of the windows at hand; no more is in memory. A mask that would take much of it is an array on disk.

    Returns
    -------
    ndarray of uint8
        On the image's spatial axes.
    """
    return segment_by(
        speaker(_ready(models), plan.mirrored if mirror else ()), plan, image, batch=batch, device=device, where=where
    )


def segment_by(
    predict: Callable[[Tensor], Tensor],
    plan: Plan,
    image: Image,
    *,
    batch: int | None = None,
    device: str = "cpu",
    where: str = "",
) -> Labels:
    """As :func:`segment_image`, by anything that gives class probabilities of windows ``[n, channels, ...]``."""
    result: Labels = zeros(image.spatial_shape, np.uint8)
    turned = turn(result, image)  # a view, in the network's order
    if plan.dims == 2 and image.kind == "volume":
        for plane, one in zip(turned, in_slices(image), strict=True):
            plane[...] = segment_by(predict, plan, one, batch=batch, device=device, where=where)
        return result
    planes = plan.prepare(image).planes(image, where=where)
    matrices = native_matrices(plan, image, planes.shape[1:])
    slabs = _windows(predict, plan, planes, batch, device)
    for first, end, native in _natively(slabs, matrices, turned.shape[0]):
        turned[first:end] = native.argmax(0).to(torch.uint8).cpu().numpy()
    return result


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
