"""From a group of DICOM files to an Image: pixels put in their places, values made physical, axes canonical."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ReadError
from medtransfer.image import Geometry, Image
from medtransfer.io import pixels
from medtransfer.io.decode import Values
from medtransfer.io.dicom import Group
from medtransfer.io.enhanced import frame_scales
from medtransfer.io.findings import refuse
from medtransfer.io.frames import Frame, in_plane_spacing, is_enhanced, is_mosaic, rescale
from medtransfer.io.header import Header
from medtransfer.io.volume import Layout, canonical


def outline(group: Group) -> tuple[tuple[int, ...], Geometry]:
    """Shape and geometry of what reading gives, without decoding anything."""
    form = pixels.pixel_format(group.headers[0])
    tail = (3,) if form.rgb else ()
    if group.layout is None or group.layout.affine is None:
        frames = (form.frames,) if form.frames > 1 and group.frame is None else ()
        spacing = group.frame.spacing if group.frame is not None else in_plane_spacing(group.headers[0])
        return (*frames, form.rows, form.columns, *tail), Geometry(spacing_mm=spacing)
    rows, columns = _tile(group, form)
    times, depth = len(group.layout.grid), len(group.layout.grid[0])
    turned, affine = canonical(np.broadcast_to(np.uint8(0), (columns, rows, depth)), group.layout.affine)
    return (*turned.shape, *((times,) if times > 1 else ()), *tail), Geometry.from_affine(affine)


def _tile(group: Group, form: pixels.Format) -> tuple[int, int]:
    if not is_mosaic(group.headers[0]):
        return form.rows, form.columns
    side = _side(group)
    return form.rows // side, form.columns // side


def _side(group: Group) -> int:
    assert group.layout is not None
    return int(np.ceil(np.sqrt(len(group.layout.grid[0]))))


def read_group(group: Group) -> Image:
    """Voxels of a group.

    Raises
    ------
    ReadError
        Where a finding forbids it, or the pixels cannot be decoded.
    """
    refuse(group.findings)
    if group.layout is None:
        return _read_image(group)
    return _read_volume(group, group.layout)


def _common(header: Header, form: pixels.Format) -> tuple[str, bool, bool]:
    return header.text("Modality"), form.rgb, form.photometric == "MONOCHROME1"


def _read_image(group: Group) -> Image:
    header = group.headers[0]
    form = pixels.pixel_format(header)
    array = pixels.stored_values(header, form)
    if group.frame is not None:
        array, scales = array[group.frame.index], [(group.frame.slope, group.frame.intercept)]
    else:
        array = array[0] if form.frames == 1 else array
        scales = frame_scales(header) if is_enhanced(header) else [rescale(header)]
    modality, rgb, inverted = _common(header, form)
    padding = None if rgb else _padding(array, header, form)
    limits = form.range if not rgb else (0.0, 2.0 ** (8 * array.dtype.itemsize) - 1)
    if not rgb and len(set(scales)) == 1:
        array, limits = _physical(array, header, form, scales[0])
    elif not rgb:
        each = [_physical(frame, header, form, scale) for frame, scale in zip(array, scales, strict=True)]
        whole = all(values.dtype.kind in "iu" for values, _ in each)
        array = np.stack([values if whole else values.astype(np.float32) for values, _ in each])
        limits = min(low for _, (low, _) in each), max(high for _, (_, high) in each)
    return Image(
        array,
        outline(group)[1],
        modality=modality,
        rgb=rgb,
        inverted=inverted,
        padding=padding,
        value_range=None if form.dtype.kind == "f" else limits,
    )


def _physical(
    array: Values, header: Header, form: pixels.Format, scale: tuple[float, float]
) -> tuple[Values, tuple[float, float]]:
    """Values after Modality LUT or rescale, and the range they can have."""
    lut = pixels.modality_lut(header)
    if lut is not None:
        table, first = lut
        mapped = table[np.clip(array.astype(np.int64) - first, 0, len(table) - 1)].astype(np.int32)
        return mapped, (float(table.min()), float(table.max()))
    ends = sorted(v * scale[0] + scale[1] for v in form.range)
    return pixels.physical(array, *scale, form), (ends[0], ends[1])


def _padding(array: Values, header: Header, form: pixels.Format) -> NDArray[np.bool_] | None:
    """Where the stored value is Pixel Padding Value, or lies between it and the Range Limit; None if nowhere."""
    if (not header.has("PixelPaddingValue") and not header.raw.get(0x00280120)) or form.dtype.kind == "f":
        return None
    value = header.integer("PixelPaddingValue", signed=form.signed)
    limit = header.integer("PixelPaddingRangeLimit", value & 0xFFFF, signed=False)
    if form.signed and limit >= 32768:
        limit -= 65536
    low, high = sorted((value, limit))
    mask = array == value if low == high else (array >= low) & (array <= high)
    return mask if mask.any() else None


def _read_volume(group: Group, layout: Layout) -> Image:
    assert layout.affine is not None
    first = group.headers[0]
    forms = {id(h): pixels.pixel_format(h) for h in group.headers}
    form = forms[id(first)]
    modality, rgb, inverted = _common(first, form)
    times, depth = len(layout.grid), len(layout.grid[0])
    if rgb and times > 1:
        raise ReadError("a colour volume with a time axis is not supported", where=first.name)
    rows, columns = _tile(group, form)
    scales = {(f.slope, f.intercept) for line in layout.grid for f in line if f is not None}
    same = len({(f.dtype, f.stored, f.high, f.photometric, f.allocated) for f in forms.values()}) == 1
    slope, intercept = next(iter(scales))
    lut = any(h.has("ModalityLUTSequence") for h in group.headers)
    whole = same and len(scales) == 1 and slope == 1 and intercept == int(intercept) and not lut
    dtype = form.dtype if whole and not rgb else np.dtype(np.float32)
    dtype = np.dtype(np.uint8 if form.allocated <= 8 else np.uint16) if rgb else dtype
    shape = (times, depth, rows, columns) + ((3,) if rgb else ())
    empty = any(f is None for line in layout.grid for f in line)
    array: Values = np.zeros(shape, dtype) if empty else np.empty(shape, dtype)
    padding = np.zeros(shape, np.bool_) if any(h.raw.get(0x00280120) for h in group.headers) and not rgb else None
    files = _by_file(layout)
    direct = (
        whole and not rgb and all(_is_one_slice(h, places) and pixels.is_direct(h, forms[id(h)]) for h, places in files)
    )
    ends: list[float] = []
    for header, places in files:
        file_form = forms[id(header)]
        if direct:
            t, z, _ = places[0]
            pixels.read_direct(header, file_form, array[t, z][None])
            continue
        stored = _tiles(pixels.stored_values(header, file_form), header, group)
        for t, z, frame in places:
            values = stored[frame.index]
            if padding is not None and (mask := _padding(values, header, file_form)) is not None:
                padding[t, z] = mask
            if whole or rgb:
                array[t, z] = values
            else:
                array[t, z], limits = _physical(values, header, file_form, (frame.slope, frame.intercept))
                ends += limits
    if direct:
        array = pixels.clean_bits(array, form)
        for header, places in files if padding is not None else []:
            t, z, _ = places[0]
            if padding is not None and (mask := _padding(array[t, z], header, form)) is not None:
                padding[t, z] = mask
    _check_copies(layout)
    if whole and not rgb:
        array, limits = _physical(array, first, form, (slope, intercept))
        ends = list(limits)
    turned, affine = canonical(_columns_first(array, rgb), layout.affine)
    mask_out: Values | None = None
    if padding is not None and padding.any():
        mask_out = canonical(_columns_first(padding, rgb), layout.affine)[0]
    return Image(
        turned,
        Geometry.from_affine(affine),
        modality=modality,
        rgb=rgb,
        inverted=inverted,
        padding=mask_out,
        value_range=None if form.dtype.kind == "f" or rgb or not ends else (min(ends), max(ends)),
    )


def _columns_first(array: Values, rgb: bool) -> Values:
    """[t, z, rows, columns] to [columns, rows, z] or [columns, rows, z, t]; colour stays last."""
    if len(array) > 1:
        return array.transpose(3, 2, 1, 0)
    only: Values = array[0]
    return only.transpose(2, 1, 0, 3) if rgb else only.transpose(2, 1, 0)


def _is_one_slice(header: Header, places: list[tuple[int, int, Frame]]) -> bool:
    return len(places) == 1 and pixels.pixel_format(header).frames == 1 and not is_mosaic(header)


def _by_file(layout: Layout) -> list[tuple[Header, list[tuple[int, int, Frame]]]]:
    """Each file once, with the places of the grid that its frames fill."""
    files: dict[int, tuple[Header, list[tuple[int, int, Frame]]]] = {}
    for t, line in enumerate(layout.grid):
        for z, frame in enumerate(line):
            if frame is not None:
                files.setdefault(id(frame.header), (frame.header, []))[1].append((t, z, frame))
    return list(files.values())


def _tiles(stored: Values, header: Header, group: Group) -> Values:
    """A mosaic's sheet cut into its tiles, row by row; other files as they are."""
    if not is_mosaic(header):
        return stored
    side = _side(group)
    rows, columns = stored.shape[1] // side, stored.shape[2] // side
    sheet = stored[0, : rows * side, : columns * side].reshape(side, rows, side, columns)
    return sheet.swapaxes(1, 2).reshape(side * side, rows, columns)


def _check_copies(layout: Layout) -> None:
    for kept, copy in layout.copies:
        pair = [pixels.stored_values(f.header, pixels.pixel_format(f.header))[f.index] for f in (kept, copy)]
        if not np.array_equal(pair[0], pair[1]) or (kept.slope, kept.intercept) != (copy.slope, copy.intercept):
            raise ReadError(
                "duplicate: two slices at one place have different pixels",
                where=copy.header.name,
                got=f"another version of {kept.header.name}",
                fix="keep one of the files",
            )
