"""Preparation: one image as stored becomes one array as a network wants it. Deterministic, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medtransfer.errors import PrepareError
from medtransfer.image import Image

# width and level in Hounsfield units as radiology sets them, written as (lowest, highest) shown value
WINDOWS: dict[str, tuple[float, float]] = {
    "abdomen": (-150.0, 250.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-45.0, 105.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-125.0, 225.0),
    "soft_tissue": (-160.0, 240.0),
    "stroke": (20.0, 60.0),
    "subdural": (-25.0, 175.0),
    "vessel": (
        100.0,
        300.0,
    ),  # starts above unenhanced soft tissue: what remains bright holds contrast medium, or is bone
}

Window = tuple[float, float]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=4096)]


class Prepare(BaseModel):
    """How images are prepared: orientation, grid, grey values. Calling it prepares one image.

    Parameters
    ----------
    size : tuple of int
        Voxels of the result: (rows, columns) for images, (x, y, z) for volumes. One number means a
        square image.
    spacing_mm : tuple of float or None
        Millimetres between voxels of the result, in the order of ``size``. With it the result is the
        centre of the image at true scale, cropped or continued with its border values; without it
        the whole image is resized to ``size``.
    window_hu : (low, high), name of a window, list of these, or None
        Hounsfield range shown, for CT only. Several windows become several channels.
    scale : 'percentile', 'range' or (low, high)
        Where no window is given: between two percentiles of the image itself (robust to a few
        extreme voxels), over the whole range that the file could hold, or between two fixed values.
    percentiles : (low, high)
        For ``scale='percentile'``; padding is left out of them.
    gray : bool
        Turn colour images to gray (ITU-R BT.601 luma) instead of keeping three channels.

    Examples
    --------
    >>> prepare = Prepare(size=2, scale=(0, 4))
    >>> prepare(Image(np.array([[0, 4], [2, 2]]))).tolist()
    [[[0.0, 1.0], [0.5, 0.5]]]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side] | tuple[Side, Side, Side] = (224, 224)
    spacing_mm: tuple[Positive, Positive] | tuple[Positive, Positive, Positive] | None = None
    window_hu: tuple[Window, ...] | None = None
    scale: Literal["percentile", "range"] | Window = "percentile"
    percentiles: Window = (0.5, 99.5)
    gray: bool = False

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @field_validator("window_hu", mode="before")
    @classmethod
    def _windows(cls, value: object) -> object:
        several = value if isinstance(value, list | tuple) and not _is_pair(value) else (value,)
        return None if value is None else tuple(_window(item) for item in several)

    @model_validator(mode="after")
    def _consistent(self) -> Prepare:
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError(f"spacing_mm has {len(self.spacing_mm)} values where size has {len(self.size)}")
        pairs = [*(self.window_hu or ()), self.percentiles]
        pairs += [self.scale] if isinstance(self.scale, tuple) else []
        if wrong := [pair for pair in pairs if not pair[0] < pair[1]]:
            raise ValueError(f"the low end of {wrong[0]} is not below its high end")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles} do not lie between 0 and 100")
        return self

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.size)

    def __call__(self, image: Image, *, where: str = "") -> NDArray[np.float32]:
        """Prepare one image.

        Returns
        -------
        ndarray of float32 in [0, 1]
            ``[channels, rows, columns]``, or ``[channels, z, y, x]`` for a volume with y running to
            the back and x to the patient's left, as axial slices are read.

        Raises
        ------
        PrepareError
            Where the image does not have the dimensions, spacing or modality that the settings ask for.
        """
        return self.planes(image, where=where).read()

    def planes(self, image: Image, *, where: str = "") -> Planes:
        """The same without computing it yet: planes of the first axis on demand, for volumes larger than memory.

        Raises
        ------
        PrepareError
            As above.
        """
        self._check(image, where)
        stored, padding = _oriented(image)
        stored = stored if image.rgb else stored[..., None]
        window = self._ranges(image, stored, padding, where)
        steps = self._grid(image, stored.shape)
        channels = (stored.shape[-1] if not self.gray else 1) * len(window)
        size = self.size if self.dims == 2 else self.size[::-1]
        return Planes(self, image, stored, padding, window, tuple(steps), (channels, *size))

    def _check(self, image: Image, where: str) -> None:
        if (image.kind == "volume" and self.dims != 3) or (image.kind == "image" and self.dims != 2):
            raise PrepareError(
                f"a {image.kind} cannot be prepared to size {self.size}",
                where=where,
                got=f"shape {image.array.shape}",
                fix="give size three numbers for volumes and two for images",
            )
        extra = image.array.ndim - self.dims - image.rgb
        if extra:
            raise PrepareError(
                "several frames cannot be prepared as one image",
                where=where,
                got=f"shape {image.array.shape}",
                fix="choose one frame or time point a case",
            )
        if self.window_hu and image.modality == "" and image.value_range == (0.0, 255.0):
            raise PrepareError(
                "Hounsfield units are asked for, and this image holds 8 bits of grey",
                where=where,
                got=f"{image.array.dtype}, values 0 to 255",
                fix="use scale: range instead of window_hu, or the original CT files",
            )
        if self.window_hu and image.modality not in {"CT", ""}:
            raise PrepareError(
                "window_hu is given in Hounsfield units, which only CT has",
                where=where,
                got=f"modality {image.modality}",
                fix="use scale: percentile for this modality",
            )
        if self.spacing_mm and image.geometry.spacing_mm is None:
            raise PrepareError(
                "spacing_mm is asked for an image whose spacing is not known",
                where=where,
                fix="leave spacing_mm out: the whole image is then resized",
            )

    def _ranges(
        self, image: Image, array: NDArray[np.generic], padding: NDArray[np.bool_] | None, where: str
    ) -> tuple[Window, ...]:
        if self.window_hu:
            return self.window_hu
        if isinstance(self.scale, tuple):
            return (self.scale,)
        if self.scale == "range":
            if image.value_range is not None:
                return (image.value_range,)
            if image.array.dtype == np.uint8:
                return ((0.0, 255.0),)
            raise PrepareError(
                "the range of values that this file could hold is not known",
                where=where,
                got=f"{image.array.dtype}",
                fix="use scale: percentile, or name two values",
            )
        shape = array.shape[:-1]
        thin = tuple(slice(None, None, max(1, round((np.prod(shape) / 2e6) ** (1 / len(shape))))) for _ in shape)
        some = self._gray(image, array[thin].astype(np.float32))  # some million voxels say where percentiles lie
        empty = _empty(some, None if padding is None else padding[thin])
        valid = some.ravel() if empty is None else some[~empty].ravel()
        if not valid.size:
            raise PrepareError("every pixel is padding or not a number", where=where)
        low, high = (float(v) for v in np.percentile(valid, self.percentiles))
        if not low < high:
            low, high = float(valid.min()), float(valid.max())
        return ((low, high if high > low else low + 1.0),)

    def _gray(self, image: Image, array: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.rgb and self.gray:
            luma: NDArray[np.float32] = np.dot(array, np.array([0.299, 0.587, 0.114], np.float32))[..., None]
            return luma
        return array

    def _grid(self, image: Image, shape: tuple[int, ...]) -> list[tuple[slice, Change]]:
        """For each array axis the part that is needed, and what is done to it."""
        size = self.size if self.dims == 2 else self.size[::-1]
        steps: list[float | None] = [None] * self.dims
        if self.spacing_mm is not None and image.geometry.spacing_mm is not None:
            ratios = [t / s for t, s in zip(self.spacing_mm, image.geometry.spacing_mm, strict=True)]
            steps = list(ratios if self.dims == 2 else ratios[::-1])
        return [_axis(n, m, step) for n, m, step in zip(shape, size, steps, strict=False)]


@dataclass(frozen=True, eq=False)
class Planes:
    """A prepared image that is computed when it is asked for; made by :meth:`Prepare.planes`.

    ``shape`` is that of the whole, ``[channels, ...]``. What :meth:`read` gives does not depend on how it is cut, but
    for rounding.
    """

    prepare: Prepare
    image: Image
    stored: NDArray[np.generic]
    padding: NDArray[np.bool_] | None
    window: tuple[Window, ...]
    steps: tuple[tuple[slice, Change], ...]
    shape: tuple[int, ...]

    def read(self, first: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Planes ``[channels, end - first, ...]`` of the first axis."""
        rows, change = _cut(*self.steps[0], first, self.shape[1] if end is None else end)
        steps = [(rows, change), *self.steps[1:]]
        needed = tuple(part for part, _ in steps)  # nothing outside is touched
        array = self.prepare._gray(self.image, self.stored[needed].astype(np.float32))
        inverted, window = self.image.inverted, self.window
        empty = _empty(array, None if self.padding is None else self.padding[needed])
        if empty is not None:
            array[empty] = window[0][1] if inverted else window[0][0]
        # shown values first, then the grid: a display too windows before it scales, and a clipped
        # extreme does not bleed into its neighbours
        channels = [_shown(array if len(window) == 1 else array.copy(), low, high) for low, high in window]
        shown = np.moveaxis(channels[0] if len(channels) == 1 else np.concatenate(channels, axis=-1), -1, 0)
        if inverted:
            shown = 1 - shown
        for axis, (_, change) in enumerate(steps, start=1):
            if isinstance(change, np.ndarray):
                shown = np.moveaxis(np.tensordot(change, shown, axes=(1, axis)), 0, axis)
            elif change is not None:
                shown = np.pad(shown, [change if a == axis else (0, 0) for a in range(shown.ndim)], mode="edge")
        return np.ascontiguousarray(shown, dtype=np.float32)


# samples repeated before and after, a matrix of weights, or nothing
Change = tuple[int, int] | NDArray[np.float32] | None


def _axis(n: int, m: int, step: float | None) -> tuple[slice, Change]:
    """The samples of n that m new ones need, and their weights; voxels of the right spacing are taken as they are."""
    if n == m if step is None else abs(step - 1) < 1e-6:
        start = n // 2 - m // 2
        before, after = max(0, -start), max(0, start + m - n)
        return slice(max(0, start), min(n, start + m)), (before, after) if before or after else None
    matrix = resampling_matrix(n, m, step)
    used = np.flatnonzero(matrix.any(axis=0))
    part = slice(int(used[0]), int(used[-1]) + 1)
    return part, np.ascontiguousarray(matrix[:, part])


def _cut(part: slice, change: Change, first: int, end: int) -> tuple[slice, Change]:
    """What :func:`_axis` found, for some of the new samples.

    Examples
    --------
    >>> _cut(slice(0, 4), (2, 0), 1, 4), _cut(slice(0, 4), (2, 0), 0, 1), _cut(slice(3, 9), None, 2, 4)
    ((slice(0, 2, None), (1, 0)), (slice(0, 1, None), (0, 0)), (slice(5, 7, None), None))
    """
    if isinstance(change, np.ndarray):
        rows = change[first:end]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        return slice(part.start + low, part.start + high), np.ascontiguousarray(rows[:, low:high])
    before, n = change[0] if change is not None else 0, part.stop - part.start
    low, high = (min(max(i - before, 0), n - 1) for i in (first, end - 1))
    again = min(max(before - first, 0), end - first - 1)  # times that the first of them is repeated
    pads = (again, end - first - again - (high + 1 - low))
    return slice(part.start + low, part.start + high + 1), None if change is None else pads


def _empty(array: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Where there is padding or no number; None where there is neither."""
    finite = np.isfinite(array).all(axis=-1) if not np.isfinite(array.sum(dtype=np.float64)) else None
    if finite is None:
        return padding if padding is not None and padding.any() else None
    empty: NDArray[np.bool_] = np.logical_not(finite)
    return empty if padding is None else np.logical_or(empty, padding)


def _shown(array: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Grey values of a window in [0, 1], in place."""
    array -= np.float32(low)
    array *= np.float32(1 / (high - low))
    return np.clip(array, 0, 1, out=array)


def _is_pair(value: list[object] | tuple[object, ...]) -> bool:
    return len(value) == 2 and all(isinstance(v, int | float) for v in value)


def _window(item: object) -> object:
    if not isinstance(item, str):
        return item
    if item not in WINDOWS:
        raise ValueError(f"there is no window '{item}'; known are {', '.join(WINDOWS)}")
    return WINDOWS[item]


def _oriented(image: Image) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """A volume ``[x, y, z]`` in RAS becomes ``[z, y, x]`` with x to the left and y to the back."""
    if image.kind == "image":
        return image.array, image.padding
    codes = image.geometry.orientation or "RAS"
    flips = tuple(slice(None, None, -1 if code in "RAI" else 1) for code in codes)
    zyx = [next(i for i, code in enumerate(codes) if code in pair) for pair in ("IS", "PA", "LR")]
    order = [*zyx, *range(3, image.array.ndim)]
    padding = None if image.padding is None else np.transpose(image.padding[flips], order[: image.padding.ndim])
    return np.transpose(image.array[flips], order), padding


def resampling_matrix(n: int, m: int, step: float | None = None) -> NDArray[np.float32]:
    """Weights ``[m, n]`` that resample n samples to m with a triangle kernel as wide as one new sample.

    Parameters
    ----------
    n, m : int
        Samples before and after; both grids share their centre.
    step : float or None
        Distance of new samples in old ones; None spreads m samples over the whole extent (n / m).
        New samples beyond the extent take the border value.

    Examples
    --------
    >>> resampling_matrix(4, 2).astype(float).round(3).tolist()  # antialiased: each result sees its neighbours too
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    step = n / m if step is None else step
    centre = (n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * step
    centre = np.clip(centre, -0.5, n - 0.5)
    width = max(1.0, step)
    weight = np.clip(1 - np.abs(np.arange(n)[None] - centre[:, None]) / width, 0, None)
    result: NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return result
