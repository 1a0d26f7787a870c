"""The shortcut without parameters of the first residual networks (He et al. 2016, option A)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PaddedShortcut(nn.Module):
    """Every ``stride``-th element of ``[n, channels, ...]`` in 2D or 3D, with channels of zeros behind.

    The same numbers as MONAI's function of this kind, whose gradients stop there: blocks before it would learn through
    the residual branch alone.

    Parameters
    ----------
    channels : int
        Channels to answer with, at least those that come in.
    stride : int
        Step along every spatial axis.

    Examples
    --------
    >>> import torch
    >>> PaddedShortcut(4, 2)(torch.ones(1, 3, 5, 5)).sum((2, 3))
    tensor([[9., 9., 9., 0.]])
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        spatial = x.ndim - 2
        step = slice(None, None, self.stride)
        x = x[:, :, step, step, step] if spatial == 3 else x[:, :, step, step]
        return F.pad(x, (0, 0) * spatial + (0, self.channels - x.shape[1]))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, stride={self.stride}"
