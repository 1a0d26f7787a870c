"""Networks that answer for every voxel: an encoder cut into stages, and a decoder as its head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from medtransfer.backbones import architecture
from medtransfer.checkpoints import read_tensors
from medtransfer.errors import WeightsError
from medtransfer.heads import Head
from medtransfer.memory import lonely, through
from medtransfer.model import Depth, Description, Model, Triple, load_model, rebuild
from medtransfer.segment.decoder import Block, Decoder, Strides, lay_levels, probe

WHOLE = ("unet", "segresnet", "dynunet")  # networks with a decoder of their own, or made for this one
_SUPERVISED = 3


@dataclass(frozen=True)
class Blueprint(Description):
    """A :class:`medtransfer.model.Description` with the decoder's settings.

    Parameters
    ----------
    width : int
        Channels of the decoder at full resolution; they double from level to level up to ``widest``.
    strides : tuple of tuple of int
        Of each stage of a ``unet``; empty for other encoders, which have their own.
    """

    width: int = 16
    widest: int = 128
    strides: tuple[Strides, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Blueprint:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values |= {k: tuple(values[k]) for k in ("pool_from", "mean", "std", "native") if k in values}
        values["strides"] = tuple(tuple(s) for s in values["strides"])
        return cls(**{**values, "head": Head(**values["head"])})

    def widths(self, levels: int) -> list[int]:
        """Channels of the decoder at each level, finest first."""
        return [min(self.width * 2**i, self.widest) for i in range(levels)]


class Segmenter(Model):
    """Stages and a decoder; made by :func:`load_segmenter`. Freezing and learning rates act on stages as elsewhere.

    ``description`` tells how to build it again, ``head`` is the decoder.
    """

    def __init__(self, blueprint: Blueprint, stages: dict[str, nn.Module], head: nn.Module | None = None) -> None:
        super().__init__(blueprint, stages, 1)
        self.blueprint = blueprint
        if head is None:
            side = 64 if blueprint.arch == "unet" else max(32, architecture(blueprint.arch).min_side)
            levels = lay_levels(probe(self.stages, blueprint.dims, blueprint.in_channels, side))
            widths = blueprint.widths(len(levels))
            head = Decoder(blueprint.dims, levels, widths, blueprint.in_channels, blueprint.classes, _SUPERVISED)
        self.head = cast(Any, head)  # where a classifier has a row of layers

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Logits ``[n, classes, ...]`` at full resolution, then at the coarser ones that learn too."""
        return self._answer(x, pyramid=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes, ...]`` of images ``[n, channels, ...]`` in [0, 1]."""
        return self._answer(x, pyramid=False)[0]

    def _answer(self, x: Tensor, *, pyramid: bool) -> list[Tensor]:
        if lonely(x):
            return [level[:1] for level in self._answer(torch.cat([x, x]), pyramid=pyramid)]
        image, skips = x, {}
        for name, stage in self.stages.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns_until(name)):
                x = through(stage, x, again=self.recompute and name in self.trained)
            skips[name] = x
        if isinstance(self.head, Decoder):
            return self.head(image, skips, pyramid=pyramid)  # type: ignore[no-any-return]
        return [self.head(x)]

    def __repr__(self) -> str:
        b, count = self.blueprint, sum(p.numel() for p in self.parameters())
        name = b.weights.get("name", b.arch)
        return (
            f"Segmenter({name}, {b.dims}D, {b.classes} classes, stages {' > '.join(self.stages)}, {count / 1e6:.2f} M)"
        )


def load_segmenter(
    weights: str,
    *,
    dims: Literal[2, 3] = 3,
    in_channels: int = 1,
    classes: int = 2,
    width: int | None = None,
    widest: int | None = None,
    strides: Sequence[Strides] | None = None,
    arch: str | None = None,
    mean: Triple | tuple[float] | None = None,
    std: Triple | tuple[float] | None = None,
    until: str | None = None,
    allow_new: Sequence[str] = (),
    depth: Depth = "centre",
    flat_until: str | None = None,
    seed: int = 0,
) -> Segmenter:
    """Load an encoder and put a new U-Net decoder on it.

    Parameters
    ----------
    weights : str
        Any name or file that :func:`medtransfer.load_model` takes, and ``random/unet``, a plain U-Net;
        ``random/segresnet`` and ``random/dynunet`` are MONAI's own networks as they are, as is the path of a weights
        file of one of them, with ``arch`` beside it.
    dims, in_channels, arch, mean, std, until, allow_new, depth, flat_until, seed
        As in :func:`medtransfer.load_model`; ``depth`` inflates (``centre``, ``mean``, ``acs``).
    classes : int
        Structures and the background, which is class 0.
    width, widest : int or None
        Channels at full resolution; they double from level to level up to ``widest``. None is 16 in 3D, 32 in 2D.
    strides : sequence of tuple of int, or None
        For a ``unet`` and ``dynunet``: of each stage relative to the one before. None is 1, 2, 2, 2.

    Raises
    ------
    WeightsError
        Where the weights do not fit, or the encoder gives no maps to decode.

    Examples
    --------
    >>> segmenter = load_segmenter("random/unet", classes=3, width=4)
    >>> segmenter(torch.zeros(2, 1, 16, 24, 16)).shape
    torch.Size([2, 3, 16, 24, 16])
    >>> [level.shape[2:] for level in segmenter.pyramid(torch.zeros(2, 1, 16, 24, 16))][1]
    torch.Size([8, 12, 8])
    """
    width, widest = width or (16 if dims == 3 else 32), widest or (128 if dims == 3 else 256)
    plain = weights.removeprefix("random/") if weights.startswith("random/") else (arch or "")
    if plain in WHOLE:
        steps = tuple(tuple(s) for s in strides or ((1,) * dims, *[(2,) * dims] * 3))
        name = weights if weights.startswith("random/") else f"file/{Path(weights).stem}"
        blueprint = Blueprint(
            plain, dims, in_channels, classes, Head(), None, (), "mean", "centre", (0.0,), (1.0,), {"name": name},
            native=(dims, in_channels, 0), width=width, widest=widest, strides=steps,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(blueprint)
        if not weights.startswith("random/"):
            _fill(model, Path(weights))
        return model
    base = load_model(
        weights, dims=dims, in_channels=in_channels, arch=arch, mean=mean, std=std, until=until, allow_new=allow_new,
        depth=depth, flat_until=flat_until, seed=seed,
    )  # fmt: skip
    found = architecture(base.description.arch)
    if found.has_token or base.description.by_slice:
        raise WeightsError(
            f"{found.name} gives no maps of several resolutions to decode",
            where="model.weights",
            got=f"depth: {depth}",
            fix="choose a convolutional encoder such as resnet18 or compact3d, with depth centre, mean or acs",
        )
    facts = {**base.description.__dict__, "classes": classes, "width": width, "widest": widest}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(Blueprint(**facts), dict(base.stages.items()))


def build(blueprint: Blueprint) -> Segmenter:
    """The same network with untrained weights, ready to take a checkpoint's tensors."""
    b = blueprint
    if b.arch == "unet":
        widths = [b.in_channels, *b.widths(len(b.strides))]
        blocks = [Block(b.dims, widths[i], widths[i + 1], s) for i, s in enumerate(b.strides)]
        return Segmenter(b, {f"level{i}": block for i, block in enumerate(blocks)})
    if b.arch in WHOLE:
        return _monai(b)
    plain = {k: v for k, v in b.__dict__.items() if k not in ("width", "widest", "strides")}
    return Segmenter(b, dict(rebuild(Description(**plain)).stages.items()))


def _monai(b: Blueprint) -> Segmenter:
    """MONAI's network with its last convolution as the head."""
    from monai.networks import nets

    network: nn.Module
    if b.arch == "segresnet":
        network = nets.SegResNet(b.dims, b.width, b.in_channels, b.classes)
        last = "conv_final"
    else:
        kernels = [[3] * b.dims] * len(b.strides)
        filters = b.widths(len(b.strides))
        steps = [list(s) for s in b.strides]
        network = nets.DynUNet(b.dims, b.in_channels, b.classes, kernels, steps, steps[1:], filters)
        last = "output_block"
    head = network.get_submodule(last)
    setattr(network, last, nn.Identity())
    return Segmenter(b, {"network": network}, head)


def _fill(model: Segmenter, path: Path) -> None:
    """Take a weights file of MONAI's network, every tensor of it."""
    last = {"segresnet": "conv_final.", "dynunet": "output_block."}[model.blueprint.arch]
    tensors = {
        f"head.{k.removeprefix(last)}" if k.startswith(last) else f"stages.network.{k}": v
        for k, v in read_tensors(path).items()
    }
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    wrong = sorted(k for k in wanted.keys() | tensors.keys() if k not in tensors or tensors[k].shape != wanted.get(k))
    if wrong:
        raise WeightsError(
            "the file is not of this network",
            where=path.name,
            got=f"{len(wrong)} tensors missing, strange or of another shape, first {wrong[0]}",
            fix="give width, strides and classes as they were in its training",
        )
    model.load_state_dict(tensors)
