"""Enhanced multi-frame files: position, orientation, spacing and rescale of each frame from the functional groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from medtransfer.errors import ReadError
from medtransfer.io.frames import Frame, checked_spacing, frame_count, in_plane_spacing, orientation_of, rescale
from medtransfer.io.header import Header
from medtransfer.io.parsed import dataset

_SCALE = "PixelValueTransformationSequence"
# dimensions of space, not of time: Stack ID, In-Stack Position Number, Image Position (Patient), Slice Location
_SPATIAL = (0x00209056, 0x00209057, 0x00200032, 0x00201041)


def enhanced_frames(header: Header) -> list[Frame]:
    """All frames of an enhanced file that say where they lie; an empty list if they do not.

    Raises
    ------
    ReadError
        Where the functional groups are fewer than the frames, or damaged.
    """
    return _guarded(header, _frames)


def frame_scales(header: Header) -> list[tuple[float, float]]:
    """Slope and intercept of each frame of an enhanced file that does not say where its frames lie."""
    return _guarded(header, _scales)


def _guarded(header: Header, take: Callable[[Header, Any], list[Any]]) -> list[Any]:
    found = dataset(header.path, pixels=False)
    try:
        return take(header, found)
    except ReadError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, NotImplementedError) as error:
        got = type(error).__name__
        raise ReadError("the functional groups are damaged", where=header.name, got=got) from None


def _scales(header: Header, found: Any) -> list[tuple[float, float]]:
    shared = _first(found, "SharedFunctionalGroupsSequence")
    groups = found.get("PerFrameFunctionalGroupsSequence") or []
    slope, intercept = rescale(header)
    made = []
    for index in range(frame_count(header)):
        item = _first(groups[index] if index < len(groups) else None, _SCALE) or _first(shared, _SCALE)
        values = (item.get("RescaleSlope"), item.get("RescaleIntercept")) if item is not None else (None, None)
        made.append((slope if values[0] is None else float(values[0]), float(values[1] or intercept)))
    return made


def _frames(header: Header, found: Any) -> list[Frame]:
    shared = _first(found, "SharedFunctionalGroupsSequence")
    groups = found.get("PerFrameFunctionalGroupsSequence") or []
    count = frame_count(header)
    if len(groups) < count:
        raise ReadError(
            "there are fewer functional groups than frames", where=header.name, got=f"{len(groups)} for {count} frames"
        )
    time_like = _time_like(found)
    base = rescale(header)
    plane = in_plane_spacing(header)
    order = ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
    file_when = tuple(header.number(keyword, 0) for keyword in order)
    frames = []
    for index in range(count):
        group = groups[index]

        def pick(sequence: str, keyword: str, group: Any = group) -> Any:
            for source in (group, shared):
                item = _first(source, sequence)
                if item is not None and item.get(keyword) not in (None, ""):
                    return item.get(keyword)
            return None

        position = pick("PlanePositionSequence", "ImagePositionPatient")
        cosines = pick("PlaneOrientationSequence", "ImageOrientationPatient")
        if position is None:
            position = header.numbers("ImagePositionPatient", 3) if count == 1 else None
        if cosines is None:
            cosines = header.numbers("ImageOrientationPatient", 6)
        if position is None or cosines is None:
            return []
        spacing = pick("PixelMeasuresSequence", "PixelSpacing")
        slope = pick(_SCALE, "RescaleSlope")
        intercept = pick(_SCALE, "RescaleIntercept")
        content = _first(group, "FrameContentSequence")
        indices = list(content.get("DimensionIndexValues") or []) if content is not None else []
        segment = float(pick("SegmentIdentificationSequence", "ReferencedSegmentNumber") or 0)
        when: tuple[Any, ...] = (
            float(pick("FrameContentSequence", "TemporalPositionIndex") or 0),
            tuple(int(indices[i]) for i in time_like if i < len(indices)),
            float(pick("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime") or 0),
            float(pick("MREchoSequence", "EffectiveEchoTime") or 0),
            float(pick("MRDiffusionSequence", "DiffusionBValue") or 0),
            file_when,
        )
        numbers = tuple(float(v) for v in cosines)
        place = np.array([float(v) for v in position])
        if len(numbers) != 6 or place.shape != (3,) or not (np.abs(place) < 1e6).all():
            raise ReadError("a frame's position or orientation is damaged", where=f"{header.name} frame {index + 1}")
        frames.append(
            Frame(
                header,
                index,
                place,
                orientation_of(numbers, header),
                plane if spacing is None else checked_spacing([float(v) for v in spacing], "PixelSpacing", header),
                float(slope) if slope is not None else base[0],
                float(intercept) if intercept is not None else base[1],
                "\\".join(_frame_type(group) or _frame_type(shared)),
                (segment,) if segment else when,
            )
        )
    return frames


def _first(source: Any, sequence: str) -> Any:
    items = source.get(sequence) if source is not None else None
    return items[0] if items else None


def _frame_type(group: Any) -> tuple[str, ...]:
    """Frame Type: tells magnitude from phase, water from fat."""
    for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
        item = _first(group, name)
        if item is not None and item.get("FrameType"):
            return tuple(str(value) for value in item.FrameType)
    return ()


def _time_like(found: Any) -> list[int]:
    """Which of the dimension indices do not number places."""
    dimensions = found.get("DimensionIndexSequence") or []
    pointers = [int(d.get("DimensionIndexPointer") or 0) for d in dimensions]
    return [i for i, pointer in enumerate(pointers) if pointer not in _SPATIAL]
