"""NIfTI-1 and NIfTI-2: header checked before a byte of the image is allocated; geometry by one documented rule.

The rule for the affine is that of the standard's method 3 before 2: the sform if its code is above 0, else the qform
if its code is above 0, else only the voxel sizes, with a warning. Where both codes are set and disagree, the sform
is taken, with a warning.
"""

from __future__ import annotations

import importlib
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ReadError
from medtransfer.image import Geometry, Image
from medtransfer.io.findings import Finding, refuse, tell
from medtransfer.io.volume import canonical

ENDINGS = (".nii", ".nii.gz", ".hdr", ".img")
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
Values = NDArray[Any]
_RGB = {128: 3, 2304: 4}


@dataclass(eq=False)
class NiftiHeader:
    """What a NIfTI file says about itself.

    Parameters
    ----------
    path : Path
        File that holds the voxels.
    shape : tuple of int
        Without trailing ones beyond the third axis.
    dtype : numpy dtype
    affine : ndarray (4, 4)
        Index to RAS+ millimetres.
    slope, intercept : float
    offset : int
        Where the voxels start.
    rgb : bool
    findings : list of Finding
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    slope: float
    intercept: float
    offset: int
    rgb: bool
    findings: list[Finding]


def is_nifti(path: str | Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return str(path).lower().endswith(ENDINGS)


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read and check a header.

    Raises
    ------
    ReadError
        Where it is damaged, impossible, or of a kind that cannot be read rightly.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    path = Path(path)
    paired = path.name.lower().endswith((".hdr", ".img"))
    head = path.with_suffix(".hdr") if paired else path
    data = path.with_suffix(".img") if paired else path
    for part in (head, data):
        if not part.is_file():
            raise ReadError("there is no such file", where=part.name, fix="a .hdr needs its .img beside it")
    raw = _first_bytes(head, 544)
    if not raw:
        raise ReadError("the file is empty", where=head.name, got="0 bytes")
    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    kind = Nifti1Header if 348 in sizes else Nifti2Header if 540 in sizes else None
    length = 348 if 348 in sizes else 540
    magic = raw[344:348] if length == 348 else raw[4:8]
    if kind is None or len(raw) < length or magic[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise ReadError("this is not a NIfTI file", where=head.name, got=f"{len(raw)} bytes, magic {magic!r}")
    header = kind(raw[:length], check=False)
    shape = _shape(header, head.name)
    dtype, rgb = _dtype(header, head.name)
    findings: list[Finding] = []
    affine = _affine(header, head.name, findings)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if rgb or not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise ReadError("scl_inter is not a number", where=head.name, got=intercept)
    offset = float(header["vox_offset"]) if data == head else max(float(header["vox_offset"]), 0)
    if not np.isfinite(offset) or not (0 if data != head else length) <= offset < 2**40:
        raise ReadError("vox_offset is impossible", where=head.name, got=offset)
    found = NiftiHeader(data, shape, dtype, affine, slope, intercept, int(offset), rgb, findings)
    _check_size(found)
    return found


def _first_bytes(path: Path, count: int) -> bytes:
    """The first bytes, unpacked if they say they are gzip, whatever the name says."""
    with open(path, "rb") as file:
        raw = file.read(1 << 14)
    if raw[:2] != b"\x1f\x8b":
        return raw[:count]
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, count)
    except zlib.error as error:
        raise ReadError("the gzip stream is damaged", where=path.name, got=type(error).__name__) from None


def _shape(header: Any, name: str) -> tuple[int, ...]:
    dim = [int(v) for v in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(v < 1 for v in dim[1 : dim[0] + 1]):
        raise ReadError("dim is impossible", where=name, got=dim, fix="repair the header")
    shape = dim[1 : dim[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        raise ReadError("more than four dimensions are not supported", where=name, got=tuple(shape))
    return tuple(shape)


def _dtype(header: Any, name: str) -> tuple[np.dtype[Any], bool]:
    code = int(header["datatype"])
    if code in _RGB:
        return np.dtype(f"({_RGB[code]},)u1"), True
    try:
        dtype = np.dtype(header.get_data_dtype())
    except Exception:  # nibabel raises its own kinds here
        raise ReadError("datatype is not known", where=name, got=code) from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ReadError("this kind of number is not supported", where=name, got=str(dtype), fix="save it as float32")
    return dtype, False


def _affine(header: Any, name: str, findings: list[Finding]) -> NDArray[np.float64]:
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    zooms = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    rank = int(header["dim"][0])
    units = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    sform = np.vstack([np.asarray(header[f"srow_{a}"], dtype=np.float64) for a in "xyz"] + [np.array([0.0, 0, 0, 1])])
    qform = None
    if qform_code > 0:
        try:
            qform = np.asarray(header.get_qform(), dtype=np.float64)
        except Exception as error:  # nibabel raises several kinds for an impossible quaternion
            if sform_code <= 0:
                raise ReadError("the qform is impossible", where=name, got=type(error).__name__) from None
    bad = [a for a, z in zip("xyz"[:rank], zooms[:rank], strict=True) if not np.isfinite(z) or z <= 0]
    if sform_code > 0:
        affine, rule = sform, "sform"
        if qform is not None and not np.allclose(qform, sform, atol=1e-2 * max(1e-6, np.abs(sform[:3, :3]).max())):
            text = "qform and sform place the image differently; the sform is taken"
            findings.append(Finding("qform and sform disagree", "warning", text, name))
    elif qform is not None:
        affine, rule = qform, "qform"
    else:
        affine, rule = np.diag([*np.where(zooms > 0, zooms, 1.0), 1.0]), "pixdim"
        affine[:3, 3] = 0
        text = "neither qform nor sform is set: only voxel sizes are known; left and right may be swapped"
        findings.append(Finding("no orientation", "warning", text, name))
    if bad:
        text = f"pixdim along {', '.join(bad)} is not positive"
        if rule != "sform":
            raise ReadError(text, where=name, got=zooms.tolist(), fix="repair the voxel sizes in the header")
        findings.append(Finding("voxel size", "warning", f"{text}; the sform's sizes are taken", name))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ReadError(
            f"the {rule} is singular: it does not place the voxels in space",
            where=name,
            got=affine[:3].round(4).tolist(),
            fix="repair the header's sform or qform",
        )
    affine = affine.copy()
    affine[:3] *= units
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < 1e-5 or sizes.max() > 1e4:
        raise ReadError(f"the {rule} gives impossible voxel sizes", where=name, got=f"{sizes.tolist()} mm")
    columns = affine[:3, :3] / sizes
    skew = float(np.abs(columns.T @ columns - np.eye(3)).max())
    if skew > 1e-2:
        text = f"the axes are not perpendicular (cosine {skew:.3f}); the affine is sheared"
        findings.append(Finding("shear", "warning", text, name))
    elif rule == "sform" and not bad:
        lengths = np.linalg.norm(sform[:3, :3], axis=0)
        if np.abs(lengths - zooms)[:rank].max() > 0.01 * max(lengths):
            text = "pixdim and the sform give different voxel sizes; the sform's are taken"
            findings.append(Finding("voxel size", "warning", text, name))
    if rank < 3:
        findings.append(Finding("two-dimensional", "warning", "a 2D file is read as a volume of one slice", name))
    return affine


def _check_size(found: NiftiHeader) -> None:
    wanted = found.offset + int(np.prod([int(v) for v in found.shape], dtype=object)) * found.dtype.itemsize
    size = os.path.getsize(found.path)
    with open(found.path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    name = found.path.name
    if not packed and size < wanted:
        raise ReadError(
            "truncated: the file holds fewer bytes than its header says",
            where=name,
            got=f"{size:,} bytes where {wanted:,} are needed",
            fix="copy the file again",
        )
    if packed and (wanted > 1100 * size + 4096 or (wanted > _BOMB_BYTES and wanted > _BOMB_RATIO * size)):
        raise ReadError(
            "the image would be far too large for its file",
            where=name,
            got=f"dimensions {found.shape} from {size:,} compressed bytes",
            fix="check dim in the header",
        )


def read_nifti(path: Path, *, dims: int | None = None, labels: bool = False, fill: float | None = None) -> Image:
    """Read a NIfTI file as a closest-canonical RAS volume.

    Parameters
    ----------
    path : Path
        ``.nii``, ``.nii.gz``, or one of a ``.hdr`` and ``.img`` pair.
    dims : int or None
        Refuse an image with another number of dimensions (3 for a volume, 4 for a time series).
    labels : bool
        Whether the voxels are labels: they must be whole numbers, and stay so.
    fill : float or None
        Replaces NaN and infinite values; without it they are refused.

    Returns
    -------
    Image
        ``[x, y, z]``, ``[x, y, z, t]`` or ``[x, y, z, 3]``.

    Raises
    ------
    ReadError
        For every fault that would give wrong voxels or a wrong place.
    """
    found = read_nifti_header(Path(path))
    name = found.path.name
    rank = 2 if any(f.name == "two-dimensional" for f in found.findings) else len(found.shape)
    if dims is not None and rank != dims:
        raise ReadError(f"a {dims}D image is wanted", where=name, got=f"a {rank}D image of shape {found.shape}")
    refuse(found.findings)
    tell(found.findings)
    shape = found.shape + (1,) * (3 - len(found.shape))
    array = _voxels(found).reshape(shape + found.dtype.shape, order="F") if not found.rgb else _colour(found, shape)
    if not found.rgb:
        array = _scaled(array, found)
        array = _finite(array, name, fill)
        if labels:
            array = _labels(array, name)
    turned, affine = canonical(array, found.affine)
    return Image(turned, Geometry.from_affine(affine), rgb=found.rgb)


def _voxels(found: NiftiHeader) -> Values:
    name = found.path.name
    base = found.dtype.base
    count = int(np.prod(found.shape)) * int(np.prod(found.dtype.shape, dtype=int))
    wanted = count * base.itemsize
    with open(found.path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        if packed:
            file.seek(0)
            raw = _inflate(file.read(), found.offset + wanted, name)
            array = np.frombuffer(raw, base, count, offset=found.offset)
        else:
            array = np.fromfile(file, base, count, offset=found.offset - 2)
            if len(array) < count:
                got = f"{len(array):,} of {count:,} voxels"
                raise ReadError("truncated: voxels are missing", where=name, got=got, fix="copy the file again")
    native: Values = array.astype(base.newbyteorder("="), copy=not array.flags.writeable)
    return native


def _inflate(data: bytes, wanted: int, name: str) -> bytearray:
    """The first ``wanted`` bytes of a gzip file; its check sum must agree where the stream ends with them."""
    inflater: Any = zlib
    with suppress(ImportError):
        inflater = importlib.import_module("isal.isal_zlib")  # twice as fast, where it is installed
    out = bytearray()
    try:
        while data and len(out) <= wanted:
            stream = inflater.decompressobj(wbits=31)
            out += stream.decompress(data, wanted + 1 - len(out))
            if not stream.eof:
                if len(out) <= wanted:
                    break
                return out  # there is more than the header says
            data = stream.unused_data.lstrip(b"\0")
        else:
            if len(out) >= wanted:
                return out
    except (zlib.error, inflater.error):
        got = f"{len(out):,} of {wanted:,} bytes"
        raise ReadError("truncated or damaged gzip stream", where=name, got=got, fix="copy the file again") from None
    got = f"{len(out):,} of {wanted:,} bytes"
    raise ReadError("truncated or damaged gzip stream", where=name, got=got, fix="copy the file again")


def _colour(found: NiftiHeader, shape: tuple[int, ...]) -> Values:
    channels = found.dtype.shape[0]
    if len(shape) > 3:
        raise ReadError("a colour volume with a time axis is not supported", where=found.path.name, got=shape)
    voxels = _voxels(found).reshape(-1, channels)
    return np.stack([voxels[:, c].reshape(shape, order="F") for c in range(3)], axis=-1)


def _scaled(array: Values, found: NiftiHeader) -> Values:
    if found.slope == 1 and found.intercept == 0:
        wider = {"u2": np.int32, "u4": np.int64}.get(array.dtype.str[1:])  # unsigned differences would wrap
        return array if wider is None else array.astype(wider)
    return (array * np.float64(found.slope) + found.intercept).astype(np.float32)


def _finite(array: Values, name: str, fill: float | None) -> Values:
    if array.dtype.kind != "f":
        return array
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count and fill is None:
        got = f"{count:,} of {array.size:,}"
        raise ReadError("some voxels are NaN or infinite", where=name, got=got, fix="read(..., fill=0) replaces them")
    if count:
        array[bad] = fill
    return array


def _labels(array: Values, name: str) -> Values:
    if array.dtype.kind in "iu":
        return array
    whole = np.rint(array)
    off = np.abs(array - whole) > 1e-4
    if off.any():
        fix = "threshold or round the mask on purpose"
        raise ReadError("labels must be whole numbers", where=name, got=f"{array[off].flat[0]:.4g}", fix=fix)
    return whole.astype(np.int32)
