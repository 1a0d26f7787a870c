"""The embedded network: small, residual, one channel in, the same design in 2D and 3D.

Only convolutions, batch normalisation and ReLU: every normalisation folds into the convolution before it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

WIDTHS: dict[int, tuple[int, int, int, int, int]] = {2: (32, 32, 64, 128, 192), 3: (16, 16, 40, 80, 104)}


class Residual(nn.Module):
    """Two convolutions of side 3 and a way around them."""

    def __init__(self, dims: Literal[2, 3], width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(dims, width_in, width_out, 3, stride)
        self.bn1 = _norm(dims, width_out)
        self.conv2 = _conv(dims, width_out, width_out, 3, 1)
        self.bn2 = _norm(dims, width_out)
        self.relu = nn.ReLU()
        self.around: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.around = nn.Sequential(_conv(dims, width_in, width_out, 1, stride), _norm(dims, width_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.around(x))  # type: ignore[no-any-return]


class CompactNet(nn.Module):
    """Stages ``stem``, ``block1`` to ``block4`` at strides 2, 2, 4, 8, 16; 0.9 M parameters in 2D, 0.8 M in 3D.

    Parameters
    ----------
    dims : {2, 3}
        Of the images.
    in_channels : int
        Channels of the images; the embedded weights are for one.

    Examples
    --------
    >>> import torch
    >>> CompactNet(2)(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 192])
    """

    def __init__(self, dims: Literal[2, 3] = 2, in_channels: int = 1) -> None:
        super().__init__()
        stem, *widths = WIDTHS[dims]
        self.stem = nn.Sequential(_conv(dims, in_channels, stem, 3, 2), _norm(dims, stem), nn.ReLU())
        before = (stem, *widths[:-1])
        self.block1, self.block2, self.block3, self.block4 = (
            Residual(dims, a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """Outputs of every stage, first to last, each ``[n, width, ...]``."""
        outputs = []
        for stage in (self.stem, self.block1, self.block2, self.block3, self.block4):
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """The last stage averaged over all positions, ``[n, width]``."""
        return self.stages(x)[-1].flatten(2).mean(2)


def _conv(dims: Literal[2, 3], width_in: int, width_out: int, side: int, stride: int) -> nn.Module:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(width_in, width_out, side, stride, side // 2, bias=False)


def _norm(dims: Literal[2, 3], width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if dims == 2 else nn.BatchNorm3d(width)
