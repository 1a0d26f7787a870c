"""Augmentation: parameters are sampled first, then applied to a whole batch. Off by default.

Nothing here mirrors an image unless asked: left and right mean something in medicine. What was sampled
for an image, the noise's seed included, is all that decides how it varies: a view can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Modality = Literal["radiograph", "ct", "mr", "ultrasound", "mask", "none"]

_MOVES = {"rotate_deg": 10.0, "zoom": 0.1, "shift": 0.05}
_STRONG = {"rotate_deg": 20.0, "zoom": 0.2, "shift": 0.1, "brightness": 0.2, "contrast": 0.4, "gamma": 0.5}
_PRESETS: dict[str, dict[str, float]] = {
    "radiograph": {**_MOVES, "brightness": 0.1, "contrast": 0.2, "gamma": 0.2, "noise_std": 0.02},
    "ct": {**_MOVES, "noise_std": 0.03, "blur": 0.3},
    "mr": {**_MOVES, "gamma": 0.1, "noise_std": 0.02, "bias_field": 0.3, "low_resolution": 0.3},
    "ultrasound": {**_STRONG, "noise_std": 0.1, "blur": 1.0, "one_at_a_time": True},
    "mask": _MOVES,
}


class Augment(BaseModel):
    """How training images are varied. Every value is the half-width of a uniform range around 'no change'.

    Parameters
    ----------
    modality : {'radiograph', 'ct', 'mr', 'ultrasound', 'mask', 'none'}
        Where the values that are not given come from. Radiographs differ in position and exposure; CT numbers are
        physical, so that only geometry, noise and sharpness vary; MR has no unit of intensity and a bias field;
        ultrasound gains from one strong change at a time (arXiv 2403.09828); masks only move. None mirrors.
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
    bias_field : float
        Largest logarithm of a smooth multiplicative field, as the coils of an MR scanner leave it.
    low_resolution : float
        Largest share by which the sampling is coarsened and interpolated back: 0.5 halves it.
    flip_left_right : bool
        Mirror half of the images. Only where laterality carries no meaning.
    one_at_a_time : bool
        Vary each image in one of the ways asked for, chosen anew, instead of all at once: TrivialAugment
        (Müller and Hutter 2021, arXiv 2103.10158).

    Examples
    --------
    >>> Augment(rotate_deg=10).active
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality = "none"
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Share = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    gamma: Amount = 0.0
    noise_std: Amount = 0.0
    blur: Share = 0.0
    bias_field: Amount = 0.0
    low_resolution: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flip_left_right: bool = False
    one_at_a_time: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_modality(cls, given: object) -> object:
        known = _PRESETS.get(given.get("modality", "none")) if isinstance(given, dict) else None
        return {**known, **given} if known and isinstance(given, dict) else given

    @classmethod
    def preset(cls, modality: Modality) -> Augment:
        """Mild variations that keep the meaning of images of a modality; the same as ``Augment(modality=...)``.

        Examples
        --------
        >>> Augment.preset("mask")
        Augment(modality='mask', rotate_deg=10.0, zoom=0.1, shift=0.05)
        >>> Augment(modality="mr", rotate_deg=0).rotate_deg, Augment.preset("none").active
        (0.0, False)
        """
        return cls(modality=modality)

    def __repr_args__(self) -> list[tuple[str | None, object]]:
        return [(k, v) for k, v in super().__repr_args__() if v != type(self).model_fields[str(k)].default]

    @property
    def active(self) -> bool:
        """Whether anything is varied."""
        idle = {"modality", "one_at_a_time"}
        return self.model_dump(exclude=idle) != Augment().model_dump(exclude=idle)

    def sample(self, n: int, dims: int, generator: torch.Generator) -> Variation:
        """Draw the parameters for n images."""
        import torch

        def around(width: float, *shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) * 2 - 1) * width

        flips = torch.rand(n, generator=generator) < 0.5
        variation = Variation(
            angle=around(self.rotate_deg * torch.pi / 180, n),
            zoom=1 + around(self.zoom, n),
            shift=around(2 * self.shift, n, dims),  # the grid runs from -1 to 1
            mirror=torch.where(flips & torch.tensor(self.flip_left_right), -1.0, 1.0),
            brightness=around(self.brightness, n),
            contrast=1 + around(self.contrast, n),
            gamma=(1 + self.gamma) ** around(1.0, n),
            noise_std=torch.rand(n, generator=generator) * self.noise_std,
            blur=torch.rand(n, generator=generator) * self.blur,
            bias=around(self.bias_field, n, *[3] * dims),
            coarse=torch.rand(n, generator=generator) * self.low_resolution,
            seed=torch.randint(2**62, (n,), generator=generator),
        )
        return self._one_each(variation, torch.rand(n, generator=generator)) if self.one_at_a_time else variation

    def _one_each(self, drawn: Variation, choice: Tensor) -> Variation:
        """Of every image's variations leave one, chosen by a number in [0, 1)."""
        import torch

        still = Augment().sample(len(choice), drawn.shift.shape[1], torch.Generator())
        asked = {
            "angle": self.rotate_deg, "zoom": self.zoom, "shift": self.shift, "brightness": self.brightness,
            "contrast": self.contrast, "gamma": self.gamma, "noise_std": self.noise_std, "blur": self.blur,
            "bias": self.bias_field, "coarse": self.low_resolution,
        }  # fmt: skip
        names = [name for name, amount in asked.items() if amount]
        chosen = (choice * len(names)).long()
        left = {}
        for i, name in enumerate(names):
            value = getattr(drawn, name)
            mask = (chosen == i).reshape(-1, *[1] * (value.ndim - 1))
            left[name] = torch.where(mask, value, getattr(still, name))
        kept = {f.name: left.get(f.name, getattr(drawn, f.name)) for f in fields(drawn)}
        return Variation(**kept)


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
    bias: Tensor
    coarse: Tensor
    seed: Tensor

    def __getitem__(self, index: Tensor) -> Variation:
        """The parameters of some of the images."""
        return Variation(*(getattr(self, f.name)[index] for f in fields(self)))

    def to_record(self) -> dict[str, list[object]]:
        """What was sampled, as plain types."""
        return {f.name: getattr(self, f.name).tolist() for f in fields(self)}

    @property
    def moves(self) -> bool:
        """Whether any image changes its place, size or direction."""
        return bool(self.angle.any() or (self.zoom != 1).any() or self.shift.any() or (self.mirror != 1).any())

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

    def __call__(self, batch: Tensor) -> Tensor:
        """Vary a batch ``[n, channels, ...]`` of values in [0, 1]; border values continue outside."""
        import torch
        from torch.nn import functional as F

        def each(values: Tensor) -> Tensor:
            return values.to(batch).reshape(-1, *[1] * (batch.ndim - 1))

        linear = "bilinear" if batch.ndim == 4 else "trilinear"
        if self.moves:
            grid = F.affine_grid(self.matrix().to(batch), list(batch.shape), align_corners=False)
            batch = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.coarse.any():
            images = []
            for image, coarse in zip(torch.split(batch, 1), self.coarse.tolist(), strict=True):
                small = [max(1, round(side * (1 - coarse))) for side in image.shape[2:]]
                low = F.interpolate(image, small, mode=linear, align_corners=False)
                images.append(F.interpolate(low, list(image.shape[2:]), mode=linear, align_corners=False))
            batch = torch.cat(images)
        if self.blur.any():
            pool = F.avg_pool2d if batch.ndim == 4 else F.avg_pool3d
            batch = batch + each(self.blur) * (pool(batch, 3, 1, 1, count_include_pad=False) - batch)
        if (self.gamma != 1).any():
            batch = batch.clamp(0, 1) ** each(self.gamma)
        if (self.contrast != 1).any():
            mean = batch.flatten(1).mean(1)
            batch = (batch - each(mean)) * each(self.contrast) + each(mean)
        if self.bias.any():
            field = F.interpolate(self.bias[:, None].to(batch), list(batch.shape[2:]), mode=linear, align_corners=True)
            batch = batch * field.exp()
        batch = batch + each(self.brightness)
        if self.noise_std.any():
            shape = batch.shape[1:]
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in self.seed.tolist()]
            batch = batch + each(self.noise_std) * torch.stack(noise).to(batch)
        return batch.clamp(0, 1)
