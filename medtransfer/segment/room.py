"""Room for arrays as large as a volume: in memory where it is a small part of it, else on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medtransfer.cohort import Case
from medtransfer.image import Image
from medtransfer.io.mapped import read_mapped, scratch
from medtransfer.io.nifti import is_nifti, read_nifti_header
from medtransfer.memory import available

_SHARE = 4  # what takes more than this part of the memory that is there stays on disk


def large(size: int) -> bool:
    """Whether so many bytes are much of the memory that is there."""
    return size > available() // _SHARE


def zeros(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros, on disk where it is large."""
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    return scratch(shape, dtype) if large(size) else np.zeros(shape, dtype)


def read_image(case: Case) -> Image:
    """Read a case's image; the voxels of a large NIfTI file stay on disk."""
    path = case.image
    if isinstance(path, Path) and path.is_file() and is_nifti(path):
        voxels = int(np.prod(read_nifti_header(path).shape, dtype=object))
        if large(8 * voxels):  # as stored, and as numbers on the way
            return read_mapped(path)
    return case.read()
