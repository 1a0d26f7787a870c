"""Who belongs to which subgroup: columns of the table, header values, geometry; numbers are cut into bands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer.probes import native_geometry

if TYPE_CHECKING:
    from medtransfer.cache import Cache
    from medtransfer.cohort import Case, Cohort

Texts = NDArray[np.str_]

AGE_BANDS = (18.0, 40.0, 60.0, 80.0)  # years
_FEW = 6  # different numbers that are kinds of their own
UNKNOWN = "unknown"
GEOMETRY = ("pixel_spacing_mm", "slice_spacing_mm")


def groupings(
    cohort: Cohort, indices: Sequence[int], names: Sequence[str], *, cache: Cache | None = None
) -> dict[str, Texts]:
    """The level of each case in each grouping that tells cases apart.

    Parameters
    ----------
    cohort : Cohort
    indices : sequence of int
        Cases wanted, in this order.
    names : sequence of str
        Covariates (columns of the table), DICOM tags that a scan keeps such as ``KVP`` or ``SliceThickness``, or
        ``pixel_spacing_mm`` and ``slice_spacing_mm`` from the geometry. A column comes before a tag.
    cache : Cache or None
        See :func:`medtransfer.probes.native_geometry`.

    Returns
    -------
    dict of str to ndarray (n,) of str
        Without those that are unknown or the same for all. Columns of more than six different numbers come in
        bands: age at 18, 40, 60 and 80 years, others at the thirds of the whole cohort. Bands are named by their
        limits; the lower one belongs to the band.

    Examples
    --------
    >>> from medtransfer.cohort import Case, Cohort
    >>> cases = [Case(str(i), str(i), np.zeros((2, 2)), covariates={"age": str(9 * i)}) for i in range(9)]
    >>> groupings(Cohort(tuple(cases)), [0, 3, 8], ["age", "sex"])["age"].tolist()
    ['below 18', '18 to below 40', '60 to below 80']
    """
    found: dict[str, Texts] = {}
    for name in names:
        values = [_value(case, name, cache) for case in cohort]
        levels = bands(values, AGE_BANDS if name == "age" else None)[list(indices)]
        if len(set(levels.tolist())) > 1:
            found[name] = levels
    return found


def _value(case: Case, name: str, cache: Cache | None) -> str:
    if name in case.covariates:
        return case.covariates[name]
    if name in GEOMETRY:
        spacing = native_geometry(case, cache)[1]
        chosen = spacing[_slice_axis(case)] if name == "slice_spacing_mm" else np.delete(spacing, _slice_axis(case))[0]
        return f"{chosen:.3g}" if np.isfinite(chosen) else ""
    return str(getattr(case.image, "tags", {}).get(name, ""))


def _slice_axis(case: Case) -> int:
    axis = getattr(case.image, "slice_axis", 2)
    return int(axis)


def bands(values: Sequence[str], limits: Sequence[float] | None = None) -> Texts:
    """Words as they are, many different numbers as bands; what is missing is ``'unknown'``.

    Parameters
    ----------
    values : sequence of str
    limits : sequence of float or None
        Lower ends of all bands but the first; None takes the thirds of the values.

    Examples
    --------
    >>> bands(["F", "M", ""]).tolist()
    ['F', 'M', 'unknown']
    >>> sorted(set(bands([str(v) for v in range(9)]).tolist()))
    ['2.67 to below 5.33', 'at least 5.33', 'below 2.67']
    """
    numbers = np.array([_number(v) for v in values])
    known = np.isfinite(numbers)
    words = [v or UNKNOWN for v in values]
    few = len(set(numbers[known].tolist())) <= (0 if limits else _FEW)
    if few or any(v and not k for v, k in zip(values, known, strict=True)):
        return np.array(words, dtype=np.str_)
    ends = np.quantile(numbers[known], [1 / 3, 2 / 3]) if limits is None else np.asarray(limits)
    ends = np.unique([float(f"{end:.3g}") for end in ends])
    said = [f"below {ends[0]:g}"]
    said += [f"{low:g} to below {high:g}" for low, high in pairwise(ends)]
    said += [f"at least {ends[-1]:g}"]
    place = np.searchsorted(ends, np.where(known, numbers, ends[0]), side="right")
    return np.array([said[p] if k else UNKNOWN for p, k in zip(place, known, strict=True)], dtype=np.str_)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
