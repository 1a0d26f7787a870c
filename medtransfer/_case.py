"""One case: an image, the patient it is of, and the reference standard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import CohortError
from medtransfer.image import Geometry, Image
from medtransfer.pseudonym import pseudonym


class Readable(Protocol):
    """What a scan finds: something that reads itself (a series record)."""

    def read(self) -> Image:
        """Decode the voxels."""


OneImage = Path | Readable | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One image of one patient with its reference standard, or several images that share it.

    ``case_id`` and ``patient_id`` are the user's own text and stay in memory; whatever is written,
    printed or logged uses :attr:`alias` and :attr:`patient_alias`.

    Parameters
    ----------
    case_id, patient_id : str
        As in the table, or already pseudonyms where they come from DICOM files.
    image : Path, series record or ndarray, or a tuple of them
        A file or folder that :func:`medtransfer.read` reads, a record of a scan, or pixels
        ``[rows, cols]``, ``[rows, cols, 3]`` or ``[x, y, z]``. Several make a bag, such as the views of a study.
    label : int or None
        Class index by the reference standard.
    covariates : mapping of str to str
        Age (years), sex, site, manufacturer and the columns that were asked for.
    part : str
        Part of an official split, ``''`` if there is none.
    mask : Path or None
        Reference segmentation.
    target : float, tuple of float or None
        Reference values of a regression; of a multi-label task 0, 1 or NaN (unknown) for each label.

    Examples
    --------
    >>> case = Case("scan 7", "Doe^Jane", np.zeros((28, 28), np.uint8), label=1)
    >>> case.read().array.shape, "Doe" in repr(case), case.patient_alias[:8]
    ((28, 28), False, 'patient-')
    """

    case_id: str
    patient_id: str
    image: OneImage | tuple[OneImage, ...] = field(repr=False)
    label: int | None = None
    covariates: Mapping[str, str] = field(default_factory=dict, repr=False)
    part: str = ""
    mask: Path | None = field(default=None, repr=False)
    target: float | tuple[float, ...] | None = None

    @property
    def alias(self) -> str:
        """Pseudonym of the case."""
        return pseudonym("case", self.case_id)

    @property
    def patient_alias(self) -> str:
        """Pseudonym of the patient; one for all spellings that ``patient_key`` holds equal."""
        return pseudonym("patient", self.patient_id)

    @property
    def study(self) -> str:
        """Pseudonym of the study where the image comes from DICOM, else ``''``."""
        return str(getattr(self.images[0], "study", "") or "")

    @property
    def images(self) -> tuple[OneImage, ...]:
        """The images of a bag, or the one image."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def pieces(self) -> tuple[Case, ...]:
        """A case for each image of a bag; the case itself where it has one image."""
        if not isinstance(self.image, tuple):
            return (self,)
        return tuple(replace(self, case_id=f"{self.case_id} {n}", image=one) for n, one in enumerate(self.images, 1))

    def read(self) -> Image:
        """Read the image; an array becomes a plain image, or a volume of unknown spacing if it is 3D."""
        if isinstance(self.image, tuple):
            raise CohortError(
                "the case has several images", where=self.alias, got=f"{len(self.image)}", fix="read its pieces()"
            )
        if isinstance(self.image, np.ndarray):
            return _wrap(self.image)
        if isinstance(self.image, Path):
            from medtransfer.io import read

            return read(self.image)
        return self.image.read()

    def __repr__(self) -> str:
        extra = f", part={self.part!r}" if self.part else ""
        return f"Case({self.alias}, {self.patient_alias}, label={self.label}{extra})"


@dataclass(frozen=True)
class FlowStep:
    """One box of the participant flow.

    Parameters
    ----------
    label : str
        What is counted: ``'files'``, ``'series'``, ``'cases'`` ...
    count : int
        How many there are after the exclusions.
    excluded : tuple of (str, int)
        What was left out on the way into this box, and how many.
    """

    label: str
    count: int
    excluded: tuple[tuple[str, int], ...] = ()


def clean_age(text: str) -> str:
    """Age in years as text, from ``'061Y'``, ``'18M'`` or ``'61'``; ``''`` where it is none.

    Examples
    --------
    >>> clean_age("061Y"), clean_age("18M"), clean_age("61.5"), clean_age("61,5"), clean_age("unknown")
    ('61', '1.5', '61.5', '61.5', '')
    """
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:[.,][0-9]+)?)\s*([YMWD]?)\s*", text, re.IGNORECASE)
    if match is None:
        return ""
    years = float(match[1].replace(",", ".")) / {"M": 12, "W": 52.18, "D": 365.25}.get(match[2].upper(), 1)
    return f"{years:.4g}" if years <= 120 else ""


def clean_sex(text: str) -> str:
    """``'F'``, ``'M'`` or ``'O'`` where the text says so, else the text.

    Examples
    --------
    >>> clean_sex("female"), clean_sex("m "), clean_sex("1")
    ('F', 'M', '1')
    """
    known = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M", "o": "O", "other": "O"}
    return known.get(text.strip().casefold(), text.strip())


def _wrap(array: NDArray[Any]) -> Image:
    rgb = array.ndim in (3, 4) and array.shape[-1] == 3
    volume = array.ndim - rgb == 3
    limits = np.iinfo(array.dtype) if np.issubdtype(array.dtype, np.integer) else None
    return Image(
        array,
        Geometry(affine=np.eye(4)) if volume else Geometry(),
        rgb=rgb,
        value_range=(float(limits.min), float(limits.max)) if limits else None,
    )


def images_of(path: Path) -> tuple[Path, ...]:
    """The images of a bag: the files of a folder, or the one file."""
    return tuple(sorted(p for p in path.iterdir() if not p.name.startswith("."))) if path.is_dir() else (path,)
