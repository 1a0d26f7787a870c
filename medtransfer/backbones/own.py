"""The package's own networks, whose weights lie in the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medtransfer.backbones.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn

_STAGES = ("stem", "block1", "block2", "block3", "block4")


def _flat(dims: int, channels: int) -> nn.Module:
    return _make(2, channels)


def _deep(dims: int, channels: int) -> nn.Module:
    return _make(3, channels)


def _make(dims: Literal[2, 3], channels: int) -> nn.Module:
    from medtransfer.compact import CompactNet

    return CompactNet(dims, channels)


def table() -> tuple[Architecture, ...]:
    """``compact2d`` and ``compact3d``: gray images and volumes as they come, no inflation."""
    return tuple(
        Architecture(
            name,
            make,
            tuple((stage, (stage,)) for stage in _STAGES),
            top=(),
            stem="stem.0",
            tap="",
            dims=(dims,),
            channels=1,
            inflatable=False,
            source="medtransfer, images drawn by code",
            licence="Apache-2.0",
        )
        for name, make, dims in (("compact2d", _flat, 2), ("compact3d", _deep, 3))
    )
