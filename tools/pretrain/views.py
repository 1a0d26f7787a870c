"""Views of scenes: where they are cut, how they are turned, and what a scanner and a window do to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NUMBERS = ("zoom", "blur", "noise", "bias", "gamma")


def cut(maps: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Maps ``[n, c, ...]`` in [0, 1] turned, mirrored, zoomed, moved and cut to ``side``; log zoom ``[n]``."""
    n, dims = len(maps), maps.ndim - 2
    zoom = 0.45 + 0.55 * torch.rand(n, generator=generator)
    turn = torch.linalg.qr(torch.randn(n, dims, dims, generator=generator))[0]
    upright = (torch.rand(n, generator=generator) < 0.5).reshape(n, 1, 1)  # half of them only mirrored
    signs = torch.sign(torch.randn(n, dims, generator=generator))
    signs[:, -1] = signs[:, -1].abs()
    turn = torch.where(upright, torch.diag_embed(signs.flip(1)), turn)
    stretch = torch.exp(0.12 * torch.randn(n, 1, dims, generator=generator))
    room = (1 - zoom).reshape(n, 1)
    middle = (2 * torch.rand(n, dims, generator=generator) - 1) * room
    theta = torch.cat([turn * zoom.reshape(n, 1, 1) * stretch, middle[..., None]], 2)
    grid = F.affine_grid(theta, [n, maps.shape[1], *[side] * dims], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="reflection", align_corners=False), torch.log(zoom)


def window(maps: Tensor, gamma: Tensor, gain: Tensor, shift: Tensor, inverse: Tensor) -> Tensor:
    """The same grey curve for a picture and for its clean version; all numbers ``[n, 1, ...]``."""
    y = maps.clamp(0, 1) ** gamma
    y = torch.where(inverse > 0, 1 - y, y)
    return (gain * (y - 0.5) + 0.5 + shift).clamp(0, 1)


def acquire(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture after bias field, loss of resolution, and noise; and how much of each ``[n, 3]``."""
    n, dims, side = len(image), image.ndim - 2, image.shape[-1]
    ones = [1] * (dims + 1)
    mode = "bilinear" if dims == 2 else "trilinear"

    def some(share: float) -> Tensor:
        strength = torch.rand(n, generator=generator)
        return (strength * (torch.rand(n, generator=generator) < share)).reshape(n, *ones)

    bias = some(0.4)
    field = F.interpolate(torch.randn(n, 1, *[3] * dims, generator=generator), image.shape[2:], mode=mode)
    y = image * torch.exp(0.35 * bias * field)
    speckle = some(0.25)
    y = y * (1 + 0.35 * speckle * torch.randn(y.shape, generator=generator))
    noise = some(0.4) ** 2
    early = noise * (torch.rand(n, generator=generator) < 0.5).reshape(n, *ones)
    y = y + 0.25 * early * torch.randn(y.shape, generator=generator)
    small = round(side * (0.3 + 0.6 * float(torch.rand((), generator=generator))))
    coarse = F.interpolate(F.interpolate(y, (small,) * dims, mode="area"), y.shape[2:], mode=mode)
    blur = some(0.55).sign()
    y = torch.where(blur > 0, coarse, y)
    y = y + 0.25 * (noise - early) * torch.randn(y.shape, generator=generator)
    lost = blur * (1 - small / side)
    return y.clamp(0, 1), torch.cat([v.reshape(n, 1) for v in (lost, noise + speckle * 0.5, bias)], 1)


def _turned(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Volumes with their axes in another order and direction, all alike."""
    order = [2 + int(i) for i in torch.randperm(3, generator=generator)]
    back = [2 + i for i in range(3) if torch.rand((), generator=generator) < 0.5]
    return maps.permute(0, 1, *order).flip(back)


def two_views(maps: Tensor, side: int, generator: torch.Generator, alike: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of every scene, one after the other.

    Parameters
    ----------
    alike : float
        How much of the grey curve both views of a scene share, 0 to 1: what they share need not be ignored.

    Returns
    -------
    pictures : Tensor (2 n, 1, ...)
        In [0, 1], as a network would see them.
    targets : Tensor (2 n, 3, ...)
        Clean picture, lesion and amount of texture at the same places.
    numbers : Tensor (2 n, 5)
        How the views were made: zoom, loss of resolution, noise, bias, gamma.
    """
    if maps.ndim == 6:  # volumes that were cut before, [n, 2, 4, ...]
        n, dims = len(maps), 3
        both, zoom = torch.cat([_turned(maps[:, i], generator) for i in (0, 1)]).float() / 255, torch.zeros(2 * n)
    else:
        n, dims = len(maps), maps.ndim - 2
        both, zoom = cut(torch.cat([maps, maps]).float() / 255, side, generator)
    shape = (2 * n, *[1] * (dims + 1))

    def share(own: Tensor) -> Tensor:
        return alike * own[:n].repeat(2, *[1] * (own.ndim - 1)) + (1 - alike) * own

    gamma = torch.exp(0.35 * share(torch.randn(shape, generator=generator)))
    gain = 0.6 + 0.6 * share(torch.rand(shape, generator=generator))
    shift = 0.24 * share(torch.rand(shape, generator=generator)) - 0.12
    inverse = (torch.rand(n, generator=generator) < 0.3).float().repeat(2).reshape(shape)  # for both views alike
    image = window(both[:, :1], gamma, gain, shift, inverse)
    clean = window(both[:, 1:2], gamma, gain, shift, inverse)
    image, made = acquire(image, generator)
    numbers = torch.cat([zoom[:, None], made, gamma.log().reshape(-1, 1)], 1)
    return image, torch.cat([clean, both[:, 2:]], 1), numbers
