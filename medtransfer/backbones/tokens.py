"""Transformers as stages that take and give channels first, so that pooling and cutting need no special case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def laid_out(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Tokens ``[n, width, 1 + places]`` of images of this shape as the maps ``[n, width, ...]`` they cover.

    Examples
    --------
    >>> laid_out(torch.zeros(1, 8, 1 + 6), (32, 48)).shape
    torch.Size([1, 8, 2, 3])
    """
    patch = round((math.prod(shape) / (tokens.shape[2] - 1)) ** (1 / len(shape)))
    return tokens[:, :, 1:].reshape(*tokens.shape[:2], *(s // patch for s in shape))


class Tokens(nn.Module):
    """Patches, class token and position embeddings: images ``[n, channels, ...]`` to tokens ``[n, width, 1 + places]``.

    Embeddings of another grid than the pretraining's are interpolated (bicubic, corners aligned; trilinear in 3D).

    Parameters
    ----------
    patches : Module
        The convolution that cuts the image into patches.
    token : Parameter (1, 1, width)
    positions : Parameter (1, places, width) or (1, 1 + places, width)
        With or without an entry for the class token, on a square or cubic grid.
    """

    def __init__(self, patches: nn.Module, token: nn.Parameter, positions: nn.Parameter) -> None:
        super().__init__()
        self.patches, self.token, self.positions = patches, token, positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        grid = x.shape[2:]
        side = round((self.positions.shape[1] - 1) ** (1 / len(grid)))
        own = int(side ** len(grid) + 1 == self.positions.shape[1])  # whether the token has an entry of its own
        first, places = self.positions[:, :own], self.positions[:, own:]
        places = places.transpose(1, 2)
        side = round(places.shape[2] ** (1 / len(grid)))
        if tuple(grid) != (side,) * len(grid):
            mode = "bicubic" if len(grid) == 2 else "trilinear"
            places = F.interpolate(
                places.reshape(1, -1, *(side,) * len(grid)), size=grid, mode=mode, align_corners=True
            ).flatten(2)
        token = self.token + first if own else self.token
        return torch.cat([token.transpose(1, 2).expand(x.shape[0], -1, -1), x.flatten(2) + places], 2)


class Blocks(nn.Module):
    """Transformer blocks on tokens ``[n, width, places]``."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2)


class Move(nn.Module):
    """Move the channels: ``Move(1, -1)`` makes them last, ``Move(-1, 1)`` first."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.start, self.end)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class Contiguous(nn.Module):
    """Memory in the order of the shape, for layers that ask for it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


class SwinEncoder(nn.Module):
    """The encoder of a SwinUNETR under its name in whole checkpoints."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.swinViT = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.swinViT(x)[-1]  # type: ignore[no-any-return]


class SegEncoder(nn.Module):
    """The encoder of a SegResNet under its names in whole checkpoints."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.convInit, self.down_layers = whole.convInit, whole.down_layers

    def forward(self, x: Tensor) -> Tensor:
        x = self.convInit(x)  # type: ignore[operator]
        for layer in self.down_layers:  # type: ignore[union-attr]
            x = layer(x)
        return x


class VitEncoder(nn.Module):
    """MONAI's vision transformer, answering with its normalised tokens alone."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.patch_embedding, self.blocks, self.norm = whole.patch_embedding, whole.blocks, whole.norm
        self.cls_token = whole.cls_token

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x)  # type: ignore[operator]
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # type: ignore[operator, arg-type, union-attr]
        for block in self.blocks:  # type: ignore[union-attr]
            x = block(x)
        return self.norm(x).transpose(1, 2)  # type: ignore[operator, no-any-return]
