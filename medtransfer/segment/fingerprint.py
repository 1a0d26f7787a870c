"""What a plan is derived from: sizes, spacings, grey values and how much of the images is structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Cohort
from medtransfer.errors import DataError
from medtransfer.segment.masks import read_pair

_VOXELS = 10_000  # of the structures of each case, for their grey values


@dataclass(frozen=True)
class Fingerprint:
    """Numbers over the training cases; axes are (x, y, z) for volumes, (rows, columns) for images.

    Parameters
    ----------
    n : int
        Cases.
    shape : tuple of int
        Median size.
    spacing_mm, finest_mm : tuple of float or None
        Median and 10th percentile of the spacing along each axis; None where files do not say.
    modality : str
        DICOM modality that most images have, or ``''``.
    intensity : (low, high)
        Percentiles .5 and 99.5 of the grey values inside structures.
    share : tuple of float
        Part of the voxels that each class takes, background first.
    channels : int
    """

    n: int
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None = None
    finest_mm: tuple[float, ...] | None = None
    modality: str = ""
    intensity: tuple[float, float] = (0.0, 1.0)
    share: tuple[float, ...] = ()
    channels: int = 1

    def in_slices(self) -> Fingerprint:
        """Of the axial slices of volumes, (rows, columns).

        Examples
        --------
        >>> found = Fingerprint(n=5, shape=(60, 80, 20), spacing_mm=(1.0, 0.9, 3.0)).in_slices()
        >>> found.shape, found.spacing_mm
        ((80, 60), (0.9, 1.0))
        """
        spacing, finest = (None if v is None else (v[1], v[0]) for v in (self.spacing_mm, self.finest_mm))
        return replace(self, shape=(self.shape[1], self.shape[0]), spacing_mm=spacing, finest_mm=finest)

    def to_record(self) -> dict[str, object]:
        """As plain types."""
        return asdict(self)


def fingerprint_of(cohort: Cohort, indices: Sequence[int], classes: int, *, most: int = 60) -> Fingerprint:
    """Measure some training cases, evenly taken from all.

    Parameters
    ----------
    cohort : Cohort
        Cases with masks.
    indices : sequence of int
        Training cases; no other is looked at.
    classes : int
        Background included.
    most : int
        Cases that are read.

    Raises
    ------
    DataError
        Where the cases are not of one kind.
    """
    chosen = [indices[i] for i in sorted({round(k) for k in np.linspace(0, len(indices) - 1, most)})]
    shapes, spacings, modalities, greys, counts = [], [], [], [], np.zeros(classes)
    channels = set()
    for i in chosen:
        image, labels, _ = read_pair(cohort.cases[i], classes)
        shapes.append(image.spatial_shape)
        spacings.append(image.geometry.spacing_mm)
        modalities.append(image.modality)
        channels.add(3 if image.rgb else 1)
        counts += np.bincount(labels.ravel(), minlength=classes)[:classes]
        greys.append(_some(image.array[labels > 0]))
    if len({len(s) for s in shapes}) > 1 or len(channels) > 1:
        raise DataError(
            "the cases are not of one kind", got=f"{sorted({len(s) for s in shapes})} axes, {sorted(channels)} channels"
        )
    inside = np.concatenate(greys)
    low, high = (float(v) for v in np.percentile(inside, (0.5, 99.5))) if inside.size else (0.0, 1.0)
    known = None if any(s is None for s in spacings) else np.array(spacings, dtype=np.float64)
    return Fingerprint(
        n=len(indices),
        shape=tuple(int(v) for v in np.median(shapes, axis=0)),
        spacing_mm=None if known is None else tuple(np.median(known, axis=0).tolist()),
        finest_mm=None if known is None else tuple(np.percentile(known, 10, axis=0).tolist()),
        modality=max(set(modalities), key=modalities.count),
        intensity=(low, high if high > low else low + 1),
        share=tuple((counts / counts.sum()).round(6).tolist()),
        channels=channels.pop(),
    )


def _some(values: NDArray[np.generic]) -> NDArray[np.float64]:
    step = max(1, len(values) // _VOXELS)
    return values[::step].astype(np.float64).ravel()
