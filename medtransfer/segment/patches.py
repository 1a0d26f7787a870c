"""Training patches: cut, turned and scaled from resident volumes in one interpolation, image and mask together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medtransfer.segment.plan import Plan

_PLACES = 20_000  # voxels of a structure that are remembered for each case


@dataclass(frozen=True, eq=False)
class Resident:
    """A prepared case in memory.

    Parameters
    ----------
    image : Tensor [channels, ...]
        Values in [0, 1].
    labels : Tensor of uint8 [...]
    places : tuple of Tensor
        Of each structure that the case has, indices ``[n, dims]`` of some of its voxels.
    """

    image: Tensor
    labels: Tensor
    places: tuple[Tensor, ...]

    @classmethod
    def make(cls, array: NDArray[np.float32], labels: NDArray[np.uint8], classes: int) -> Resident:
        """From arrays on the plan's grid."""
        places = []
        for value in range(1, classes):
            found = np.flatnonzero(labels == value)
            found = found[:: max(1, len(found) // _PLACES)]
            if len(found):
                places.append(torch.from_numpy(np.stack(np.unravel_index(found, labels.shape), axis=1)))
        return cls(torch.from_numpy(array), torch.from_numpy(labels), tuple(places))


class Patches:
    """Batches of patches of a plan.

    Parameters
    ----------
    cases : sequence of Resident
    plan : Plan
    classes : int
        Background included.
    """

    def __init__(self, cases: Sequence[Resident], plan: Plan, classes: int) -> None:
        self.cases, self.plan, self.classes = cases, plan, classes
        size = plan.window
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
        self.offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # [..., dims], voxels from the middle
        spacing = plan.spacing_mm or (1.0,) * plan.dims
        self.spacing = torch.tensor(spacing if plan.dims == 2 else spacing[::-1], dtype=torch.float32)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One batch: images ``[n, channels, ...]`` in [0, 1] and labels ``[n, ...]`` (int64)."""
        n = self.plan.batch_size
        chosen = torch.randint(len(self.cases), (n,), generator=generator).tolist()
        pairs = [self._patch(self.cases[i], generator) for i in chosen]
        images, labels = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        if self.plan.augment.active:
            images = self.plan.augment.sample(n, self.plan.dims, generator)(images)
        return images, labels

    def _patch(self, case: Resident, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = case.labels.shape
        points = self.offsets @ self._matrix(generator).T + self._middle(case, generator)
        low = [max(0, int(v)) for v in points.flatten(0, -2).amin(0).floor().tolist()]
        high = [min(n, int(v) + 2) for v, n in zip(points.flatten(0, -2).amax(0).tolist(), shape, strict=True)]
        box = tuple(slice(min(a, n - 1), max(b, a + 1)) for a, b, n in zip(low, high, shape, strict=True))
        image, labels = case.image[(slice(None), *box)], case.labels[box]
        shares = torch.stack([labels == value for value in range(1, self.classes)]).float()
        whole = torch.cat([image, shares])[None]
        sides = torch.tensor(whole.shape[2:], dtype=torch.float32)
        start = torch.tensor([s.start for s in box], dtype=torch.float32)
        grid = (2 * (points - start) + 1) / sides - 1
        drawn = F.grid_sample(whole, grid.flip(-1)[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        channels = len(image)
        best, label = drawn[channels:].max(0)
        rest = 1 - drawn[channels:].sum(0)  # the background's share
        return drawn[:channels], torch.where(best > rest, label + 1, 0)

    def _middle(self, case: Resident, generator: torch.Generator) -> Tensor:
        """Where the patch lies: around a voxel of a structure, or anywhere; inside of the image where it fits."""
        shape = torch.tensor(case.labels.shape)
        if case.places and torch.rand((), generator=generator) < self.plan.foreground:
            kind = case.places[int(torch.randint(len(case.places), (), generator=generator))]
            wanted = kind[int(torch.randint(len(kind), (), generator=generator))].float()
        else:
            wanted = torch.rand(len(shape), generator=generator) * (shape - 1)
        half = (torch.tensor(self.plan.window) - 1) / 2
        low, high = torch.minimum(half, (shape - 1) / 2), torch.maximum(shape - 1 - half, (shape - 1) / 2)
        slack = 0.05 * torch.tensor(self.plan.window) * (2 * torch.rand(len(shape), generator=generator) - 1)
        return torch.clamp(wanted, low, high) + slack

    def _matrix(self, generator: torch.Generator) -> Tensor:
        """From offsets in the patch to offsets in the image: turned and scaled in millimetres, half of the patches."""
        plan, dims = self.plan, self.plan.dims
        draw = torch.rand(8, generator=generator)
        flip = torch.ones(dims)
        for axis in plan.mirrored:
            flip[axis - 2] = -1.0 if torch.rand((), generator=generator) < 0.5 else 1.0
        angles = (2 * draw[:3] - 1) * plan.rotate_deg * torch.pi / 180 * (draw[6] < 0.5)
        zoom = 1 + (2 * draw[3] - 1) * plan.zoom * (draw[7] < 0.5)
        flat = float(self.spacing.max() / self.spacing.min()) > 3  # thick slices turn in their plane alone
        turn = torch.eye(dims)
        planes = ((dims - 2, dims - 1), (0, 1), (0, 2))
        for k, (a, b) in enumerate(planes[:1] if flat or dims == 2 else planes):
            cos, sin = torch.cos(angles[k]), torch.sin(angles[k])
            plane = torch.eye(dims)
            plane[a, a], plane[a, b], plane[b, a], plane[b, b] = cos, -sin, sin, cos
            turn = turn @ plane
        return torch.diag(1 / self.spacing) @ turn @ torch.diag(self.spacing * flip) / zoom
