"""The plan of a segmentation: grid, patch, batch, network and grey values, derived from the data and written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medtransfer.augment import Augment, Modality
from medtransfer.cache import write_atomically
from medtransfer.errors import ConfigError
from medtransfer.image import Image
from medtransfer.memory import available
from medtransfer.prepare import Prepare, Window
from medtransfer.segment.fingerprint import Fingerprint

Axis = Literal["x", "y", "z"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Sizes = tuple[Count, Count] | tuple[Count, Count, Count]

_COARSE = 3.0  # an axis whose voxels are this much longer than the others is treated apart (nnU-Net's rule)
_TENSORS = 40  # activations of full resolution and width that a training step holds, roughly
_CPU_VOXELS, _GPU_VOXELS = 400_000, 4_000_000  # a batch that keeps a machine busy without making a step long


class Plan(BaseModel):
    """How a segmentation is done. Everything can be given; :meth:`for_data` derives it.

    Sizes, spacings and strides are in the order of :class:`medtransfer.Prepare`: (x, y, z) for volumes, (rows, columns)
    for images.

    Parameters
    ----------
    spacing_mm : tuple of float or None
        Grid that images are resampled to; None leaves them as they are.
    patch : tuple of int
        Voxels that the network sees at once.
    batch_size : int
        Patches a step, at least 2: a 3D convolution of a single image is several times slower on a CPU.
    strides : tuple of tuple of int
        Of each stage of a plain U-Net relative to the one before; encoders that are loaded have their own.
    width : int
        Channels at full resolution.
    window_hu, scale, percentiles
        Grey values, as in :class:`medtransfer.Prepare`.
    mirror : tuple of {'x', 'y', 'z'}
        Axes along which training patches are mirrored and predictions averaged; 'x' is left to right. Only where
        mirrored structures keep their names.
    rotate_deg, zoom : float
        Half-widths of the ranges in which training patches are turned and scaled.
    augment : Augment
        How their grey values vary.
    foreground : float
        Share of training patches whose middle is a voxel of a structure, each structure alike.
    steps_per_epoch : int
        Steps after which training is validated.
    overlap : float
        Of neighbouring windows in prediction, as a share of the patch.

    Examples
    --------
    >>> Plan(patch=(32, 32), batch_size=1)
    Traceback (most recent call last):
    ...
    pydantic_core._pydantic_core.ValidationError: 1 validation error for Plan
    ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_mm: tuple[Positive, Positive] | tuple[Positive, Positive, Positive] | None = None
    patch: Sizes = (64, 64, 64)
    batch_size: Annotated[int, Field(ge=2)] = 2
    strides: tuple[Sizes, ...] = ()
    width: Count = 16
    window_hu: tuple[Window, ...] | None = None
    scale: Literal["percentile", "range"] | Window = "percentile"
    percentiles: Window = (0.5, 99.5)
    mirror: tuple[Axis, ...] = ()
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 15.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.2
    augment: Augment = Augment()
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    steps_per_epoch: Count = 100
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        for name in ("spacing_mm", *(["strides"] if self.strides else [])):
            value = getattr(self, name)
            if value is not None and len(value if name == "spacing_mm" else value[0]) != self.dims:
                raise ValueError(f"{name} and patch differ in their number of axes")
        if self.dims == 2 and "z" in self.mirror:
            raise ValueError("an image has no axis z to mirror")
        return self

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.patch)

    @property
    def window(self) -> tuple[int, ...]:
        """The patch in the order of the network's arrays: (z, y, x), or (rows, columns)."""
        return tuple(self.patch if self.dims == 2 else self.patch[::-1])

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Strides in the order of the network's arrays."""
        return tuple(tuple(s if self.dims == 2 else s[::-1]) for s in self.strides)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Axes to mirror, counted in a batch ``[n, channels, ...]``."""
        return tuple(sorted(1 + self.dims - "xyz".index(a) for a in self.mirror))

    def prepare(self, image: Image) -> Prepare:
        """The preparation of one image, which keeps its whole extent."""
        shape = image.spatial_shape
        own = image.geometry.spacing_mm
        if self.spacing_mm is not None and own is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, own, self.spacing_mm, strict=True))
        return Prepare(
            size=cast(Any, shape), spacing_mm=self.spacing_mm if own is not None else None, window_hu=self.window_hu,
            scale=self.scale, percentiles=self.percentiles,
        )  # fmt: skip

    @classmethod
    def for_data(
        cls, found: Fingerprint, *, memory_gb: float | None = None, gpu: bool = False, laterality: bool = True
    ) -> Plan:
        """Derive a plan, after the rules of nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).

        Parameters
        ----------
        found : Fingerprint
            Of the training cases.
        memory_gb : float or None
            To be used in training; None is half of what is there, on a GPU of its own.
        gpu : bool
            Whether a GPU trains: larger patches and batches.
        laterality : bool
            Whether left and right mean something: then nothing is mirrored.

        Examples
        --------
        >>> from medtransfer.segment.fingerprint import Fingerprint
        >>> plan = Plan.for_data(Fingerprint(n=150, shape=(35, 50, 36), spacing_mm=(1, 1, 1)), memory_gb=8)
        >>> plan.patch, plan.batch_size, plan.strides
        ((40, 56, 40), 4, ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)))
        """
        dims = len(found.shape)
        spacing = target_spacing(found)
        shape = found.shape
        if spacing is not None and found.spacing_mm is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, found.spacing_mm, spacing, strict=True))
        width = 16 if dims == 3 else 32
        memory = (
            memory_gb * 2**30 if memory_gb else available("cuda" if gpu and torch.cuda.is_available() else "cpu") / 2
        )
        voxels = min(_GPU_VOXELS if gpu else _CPU_VOXELS, int(memory / (_TENSORS * width * 4)))
        patch, strides = fit_patch(shape, spacing or (1.0,) * dims, voxels // 2)
        batch = min(max(2, voxels // math.prod(patch)), 4 if dims == 3 else 16)
        ct = found.modality == "CT"
        return cls.model_validate(
            {
                "spacing_mm": spacing,
                "patch": patch,
                "batch_size": batch,
                "strides": strides,
                "width": width,
                "window_hu": (found.intensity,) if ct else None,
                "mirror": () if laterality else ("x", "y", "z")[:dims],
                "augment": _grey_values(found.modality),
                "steps_per_epoch": max(25, min(250, math.ceil(found.n / batch))),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML, a line a setting, with what it means beside it."""
        write_atomically(Path(path), self.to_yaml())

    def to_yaml(self) -> str:
        """The plan as text that :meth:`load` reads and a person can change."""
        import json

        lines = ["# plan of a segmentation; sizes are (x, y, z) for volumes and (rows, columns) for images"]
        for name, value in self.model_dump(mode="json").items():
            text = json.dumps(value)
            lines.append(f"{name}: {text}  # {_MEANING[name]}" if name in _MEANING else f"{name}: {text}")
        return "\n".join(lines) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what :meth:`save` wrote, or a person wrote: what is left out keeps its default.

        Raises
        ------
        ConfigError
            Where the file is not a plan.
        """
        from pydantic import ValidationError
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        path = Path(path)
        try:
            return cls.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError("the plan cannot be read", where=path.name, got=error.strerror) from None
        except (YAMLError, ValidationError) as error:
            raise ConfigError("this is not a plan", where=path.name, got=" ".join(str(error).split())[:200]) from None


_MEANING = {
    "spacing_mm": "grid that images are resampled to",
    "patch": "voxels that the network sees at once",
    "batch_size": "patches a step, at least 2",
    "strides": "of each stage of a plain U-Net",
    "width": "channels at full resolution",
    "window_hu": "Hounsfield range shown, CT only",
    "scale": "grey values where no window is given",
    "mirror": "only where mirrored structures keep their names",
    "foreground": "share of patches around a voxel of a structure",
    "overlap": "of neighbouring windows in prediction",
}


def target_spacing(found: Fingerprint) -> tuple[float, ...] | None:
    """The usual spacing; along an axis of much longer voxels a finer one, so that thin slices keep their detail."""
    if found.spacing_mm is None:
        return None
    spacing = [float(f"{s:.4g}") for s in found.spacing_mm]
    longest = int(np.argmax(spacing))
    others = max(s for i, s in enumerate(spacing) if i != longest)
    if spacing[longest] > _COARSE * others and found.finest_mm is not None:
        spacing[longest] = max(float(f"{found.finest_mm[longest]:.4g}"), others)
    return tuple(spacing)


def fit_patch(
    shape: Sequence[int], spacing: Sequence[float], voxels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """A patch like the image, shrunk to so many voxels, and the strides of a U-Net that halves long axes thrice.

    An axis is halved while 8 voxels of it are left and its voxels are not twice as long as the shortest.

    Examples
    --------
    >>> fit_patch((512, 512, 40), (0.7, 0.7, 5.0), 200_000)
    ((112, 112, 16), ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)))
    """
    patch = [float(n) for n in shape]
    while math.prod(patch) > voxels:
        longest = int(np.argmax([n * s for n, s in zip(patch, spacing, strict=True)]))
        patch[longest] *= 0.95
    strides, step, left = [(1,) * len(shape)], list(spacing), list(patch)
    for _ in range(3):
        halve = [n / 2 >= 4 and s <= 2 * min(step) * 0.999 for n, s in zip(left, step, strict=True)]
        if not any(halve):
            break
        strides.append(tuple(2 if h else 1 for h in halve))
        left = [n / 2 if h else n for n, h in zip(left, halve, strict=True)]
        step = [s * 2 if h else s for s, h in zip(step, halve, strict=True)]
    total = [math.prod(s[i] for s in strides) for i in range(len(shape))]
    full = [n >= whole - 0.5 for n, whole in zip(patch, shape, strict=True)]
    sides = [t * (math.ceil(n / t) if f else max(1, round(n / t))) for n, t, f in zip(patch, total, full, strict=True)]
    return tuple(sides), tuple(strides)


def _grey_values(modality: str) -> Augment:
    """One grey-value change at a time; geometry is varied together with the mask, not here."""
    kinds: dict[str, Modality] = {"CT": "ct", "MR": "mr", "US": "ultrasound", "CR": "radiograph", "DX": "radiograph"}
    preset = Augment(modality=kinds.get(modality, "mr")).model_dump()
    still = {"modality": "none", "rotate_deg": 0.0, "zoom": 0.0, "shift": 0.0, "one_at_a_time": True}
    stronger = {} if modality == "CT" else {"gamma": 0.5, "contrast": 0.3, "brightness": 0.1}
    return Augment(**{**preset, **stronger, "noise_std": 0.08, "blur": 1.0, "low_resolution": 0.5, **still})
