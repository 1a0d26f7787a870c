"""A U-Net decoder over the outputs of any encoder's stages, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """One resolution of the decoder.

    Parameters
    ----------
    stride : tuple of int
        Voxels of the image from one position to the next, along each axis.
    stage : str
        Stage of the encoder that gives the skip connection; ``''`` where the level is reached by interpolation
        alone, ``'image'`` where the image itself is looked at.
    width : int
        Channels of that stage's output.
    """

    stride: Strides
    stage: str
    width: int


class Block(nn.Module):
    """Two convolutions of side 3 with instance normalisation, and a way around them."""

    def __init__(self, dims: int, width_in: int, width_out: int, stride: int | Strides = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(dims, width_in, width_out, 3, stride), norm(dims, width_out)
        self.conv2, self.norm2 = conv(dims, width_out, width_out, 3), norm(dims, width_out)
        still = width_in == width_out and stride in (1, (1,) * dims)
        self.around: nn.Module = nn.Identity() if still else conv(dims, width_in, width_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.around(x), 0.01)


class Decoder(nn.Module):
    """From the coarsest stage back to the image: each level is halved in width, interpolated, and joined by addition.

    Parameters
    ----------
    dims : {2, 3}
    levels : sequence of Level
        Finest first; the first has stride 1.
    widths : sequence of int
        Channels of the decoder at each level; the coarsest level keeps its stage's output.
    in_channels : int
        Of the image, for a level that looks at it.
    classes : int
        Background included.
    supervised : int
        Levels that answer in training (deep supervision: Lee et al. 2015, arXiv 1409.5185).
    """

    def __init__(
        self, dims: int, levels: Sequence[Level], widths: Sequence[int], in_channels: int, classes: int, supervised: int
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.names = [level.stage for level in levels]
        found = [*widths[: len(levels) - 1], levels[-1].width]
        self.detail = conv(dims, in_channels, found[0], 3) if "image" in self.names else nn.Identity()
        self.reduce = nn.ModuleList(conv(dims, b, a, 1) for a, b in pairwise(found))
        self.lateral = nn.ModuleList(
            conv(dims, level.width, w, 1) if level.stage not in ("", "image") and level.width != w else nn.Identity()
            for level, w in zip(levels[:-1], found[:-1], strict=True)
        )
        self.blocks = nn.ModuleList(Block(dims, w, w) for w in found[:-1])
        answers = max(1, min(supervised, len(levels) - 1))
        self.answers = nn.ModuleList(conv(dims, w, classes, 1) for w in found[:answers])

    def forward(self, image: Tensor, skips: dict[str, Tensor], *, pyramid: bool = False) -> list[Tensor]:
        """Logits of the finest level, or of all supervised levels, finest first.

        Parameters
        ----------
        image : Tensor [n, channels, ...]
        skips : dict
            Output of each stage that :attr:`levels` name.
        """
        x = skips[self.names[-1]]
        answers: list[Tensor] = []
        for i in reversed(range(len(self.levels) - 1)):
            level = self.levels[i]
            skip = self.detail(image) if level.stage == "image" else skips.get(level.stage)
            size = [-(-n // s) for n, s in zip(image.shape[2:], level.stride, strict=True)]
            x = F.interpolate(self.reduce[i](x), list(skip.shape[2:]) if skip is not None else size, mode="nearest")
            x = self.blocks[i](x if skip is None else x + self.lateral[i](skip))
            if i < len(self.answers) and (pyramid or i == 0):
                answers.insert(0, self.answers[i](x))
        return answers


def lay_levels(found: Sequence[Level]) -> tuple[Level, ...]:
    """Levels of a decoder over an encoder's stages: the last stage of each stride, gaps filled, the image on top.

    Examples
    --------
    >>> stages = [Level((4, 4), "stem", 64), Level((4, 4), "layer1", 256), Level((8, 8), "layer2", 512)]
    >>> [(level.stride[0], level.stage) for level in lay_levels(stages)]
    [(1, 'image'), (2, ''), (4, 'layer1'), (8, 'layer2')]
    """
    last = {level.stride: level for level in found}
    levels = sorted(last.values(), key=lambda level: level.stride)
    if any(s > 1 for s in levels[0].stride):
        levels.insert(0, Level((1,) * len(levels[0].stride), "image", 0))
    whole = [levels[0]]
    for level in levels[1:]:
        while any(s > 2 * w for s, w in zip(level.stride, whole[-1].stride, strict=True)):
            between = tuple(min(2 * w, s) for s, w in zip(level.stride, whole[-1].stride, strict=True))
            whole.append(Level(between, "", 0))
        whole.append(level)
    return tuple(whole)


def probe(stages: nn.ModuleDict, dims: int, in_channels: int, side: int) -> list[Level]:
    """Stride and width of each stage's output, found by sending an empty image through."""
    x = torch.zeros(1, in_channels, *[side] * dims)
    found = []
    with torch.no_grad():
        for name, stage in stages.items():
            was = stage.training
            x = stage.eval()(x)
            stage.train(was)
            found.append(Level(tuple(max(1, round(side / n)) for n in x.shape[2:]), name, x.shape[1]))
    return found


def conv(dims: int, width_in: int, width_out: int, side: int, stride: int | Strides = 1) -> nn.Module:
    """A convolution that keeps the size, or divides it by the stride."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(width_in, width_out, side, stride, side // 2)  # type: ignore[arg-type]


def norm(dims: int, width: int) -> nn.Module:
    """Instance normalisation with scale and shift: the same for one image as for many."""
    return nn.InstanceNorm2d(width, affine=True) if dims == 2 else nn.InstanceNorm3d(width, affine=True)
