"""Reading: DICOM, NIfTI, rasters and whole folders, right or refused with a reason.

Errors raised here are not chained to their causes: those of the operating system and of the libraries below quote
folders and values that may identify a patient.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ReadError

if TYPE_CHECKING:
    from medtransfer.image import Image
    from medtransfer.io.findings import Finding
    from medtransfer.io.record import SeriesRecord
    from medtransfer.io.scan import Scan

__all__ = ["Finding", "Scan", "SeriesRecord", "read"]  # scan() is in medtransfer.io.scan


def __getattr__(name: str) -> Any:
    import importlib

    homes = {"Finding": "findings", "SeriesRecord": "record", "Scan": "scan"}
    if name in homes:
        return getattr(importlib.import_module(f"medtransfer.io.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def read(
    source: str | os.PathLike[str] | SeriesRecord, *, dims: int | None = None, labels: bool = False,
    fill: float | None = None,
) -> Image:  # fmt: skip
    """Read one image: a DICOM file, a folder with one series, a NIfTI or raster file, or a record of a scan.

    Parameters
    ----------
    source : path or SeriesRecord
    dims : {2, 3, 4} or None
        Refuse what has another number of dimensions: 2 a plain image, 3 a volume, 4 a time series.
    labels : bool
        Whether the values are labels: they must be whole numbers, and stay so.
    fill : float or None
        Replaces NaN and infinite values of a NIfTI file; without it they are refused.

    Returns
    -------
    Image

    Raises
    ------
    ReadError
        Where there is no such file, it cannot be read rightly, or a folder holds several series.

    Examples
    --------
    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("RGB", (4, 3)).save(folder + "/a.png")
    ...     read(folder + "/a.png")
    Image(? image (3, 4, 3) uint8, plain, spacing_mm=None, rgb)
    """
    from medtransfer.io.record import SeriesRecord, unreadable
    from medtransfer.io.scan import scan

    if not isinstance(source, SeriesRecord):
        path = Path(source)
        if path.is_file() and _is_nifti(path):
            from medtransfer.io.nifti import read_nifti

            try:
                return read_nifti(path, dims=dims, labels=labels, fill=fill)
            except OSError as error:
                raise unreadable(path, error) from None
        found = scan(path, progress=False)
        if len(found) > 1:
            listed = "; ".join(f"{r.series} {r.modality} {r.kind} {r.shape} {r.n_files} file(s)" for r in found[:6])
            raise ReadError(
                "several series: one is wanted",
                where=path.name if path.is_file() else "the folder",
                got=f"{len(found)}: {listed}",
                fix="choose one of scan(folder) and read() it",
            )
        source = found[0]
    image = source.read()
    return _checked(image, dims, labels, source)


def _is_nifti(path: Path) -> bool:
    from medtransfer.io.nifti import is_nifti

    return is_nifti(path)


def _checked(image: Image, dims: int | None, labels: bool, record: SeriesRecord) -> Image:
    import numpy as np

    rank = image.array.ndim - image.rgb
    name = record.files[0].name
    if dims is not None and (rank != dims or (dims == 3 and image.kind == "image")):
        raise ReadError(f"a {dims}D image is wanted", where=name, got=f"a {image.kind} of shape {image.array.shape}")
    if labels and image.array.dtype.kind == "f" and not np.array_equal(image.array, np.rint(image.array)):
        raise ReadError("labels must be whole numbers", where=name, fix="threshold or round the mask on purpose")
    return image
