"""Augmentation: parameters are sampled first, then applied to a whole batch. Off by default.

Nothing here mirrors an image unless asked: left and right mean something in medicine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Augment(BaseModel):
    """How training images are varied. Every value is the half-width of a uniform range around 'no change'.

    Parameters
    ----------
    rotate_deg : float
        Rotation in the image plane (the axial plane of volumes), degrees.
    zoom : float
        Relative change of size: 0.1 means 0.9 to 1.1.
    shift : float
        Displacement along each axis as a share of the image's side.
    brightness, contrast : float
        Added to, and multiplied around the mean of, values in [0, 1]. Do not use brightness with
        ``window_hu`` where the absolute density is the sign to be found.
    gamma : float
        Exponent between 1 / (1 + gamma) and 1 + gamma.
    noise_std : float
        Largest standard deviation of added Gaussian noise.
    blur : float
        Largest share by which the image is mixed with its 3-pixel average.
    flip_left_right : bool
        Mirror half of the images. Only where laterality carries no meaning.

    Examples
    --------
    >>> Augment(rotate_deg=10).active
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Share = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    gamma: Amount = 0.0
    noise_std: Amount = 0.0
    blur: Share = 0.0
    flip_left_right: bool = False

    @property
    def active(self) -> bool:
        """Whether anything is varied."""
        return self != Augment()

    def sample(self, n: int, dims: int, generator: torch.Generator) -> Variation:
        """Draw the parameters for n images."""
        import torch

        def around(width: float, *shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) * 2 - 1) * width

        flips = torch.rand(n, generator=generator) < 0.5
        return Variation(
            angle=around(self.rotate_deg * torch.pi / 180, n),
            zoom=1 + around(self.zoom, n),
            shift=around(2 * self.shift, n, dims),  # the grid runs from -1 to 1
            mirror=torch.where(flips & torch.tensor(self.flip_left_right), -1.0, 1.0),
            brightness=around(self.brightness, n),
            contrast=1 + around(self.contrast, n),
            gamma=(1 + self.gamma) ** around(1.0, n),
            noise_std=torch.rand(n, generator=generator) * self.noise_std,
            blur=torch.rand(n, generator=generator) * self.blur,
            moves=bool(self.rotate_deg or self.zoom or self.shift or self.flip_left_right),
        )


@dataclass(frozen=True)
class Variation:
    """Sampled parameters of n images; ``angle`` in radians, ``shift`` ``[n, dims]`` in grid units."""

    angle: Tensor
    zoom: Tensor
    shift: Tensor
    mirror: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    noise_std: Tensor
    blur: Tensor
    moves: bool

    def matrix(self) -> Tensor:
        """Affine matrices ``[n, dims, dims + 1]`` in the (x, y, z) order of ``affine_grid``."""
        import torch

        n, dims = self.shift.shape
        cos, sin = torch.cos(self.angle) / self.zoom, torch.sin(self.angle) / self.zoom
        theta = torch.zeros(n, dims, dims + 1)
        theta[:, 0, 0], theta[:, 0, 1] = cos * self.mirror, -sin
        theta[:, 1, 0], theta[:, 1, 1] = sin * self.mirror, cos
        if dims == 3:
            theta[:, 2, 2] = 1 / self.zoom
        theta[:, :, dims] = self.shift
        return theta

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Vary a batch ``[n, channels, ...]`` of values in [0, 1]; border values continue outside."""
        import torch
        from torch.nn import functional as F

        def each(values: Tensor) -> Tensor:
            return values.to(batch).reshape(-1, *[1] * (batch.ndim - 1))

        if self.moves:
            grid = F.affine_grid(self.matrix().to(batch), list(batch.shape), align_corners=False)
            batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.blur.any():
            pool = F.avg_pool2d if batch.ndim == 4 else F.avg_pool3d
            batch = batch + each(self.blur) * (pool(batch, 3, 1, 1, count_include_pad=False) - batch)
        if (self.gamma != 1).any():
            batch = batch.clamp(0, 1) ** each(self.gamma)
        if (self.contrast != 1).any():
            mean = batch.flatten(1).mean(1)
            batch = (batch - each(mean)) * each(self.contrast) + each(mean)
        batch = batch + each(self.brightness)
        if self.noise_std.any():
            noise = torch.randn(batch.shape, generator=generator).to(batch)
            batch = batch + each(self.noise_std) * noise
        return batch.clamp(0, 1)
