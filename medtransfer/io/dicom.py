"""DICOM series: which files make which volume or image, and their voxels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from medtransfer.errors import ReadError
from medtransfer.io import pixels
from medtransfer.io.decode import can_decode
from medtransfer.io.enhanced import enhanced_frames
from medtransfer.io.findings import Finding
from medtransfer.io.frames import (
    Frame,
    classic_frame,
    frame_count,
    is_enhanced,
    is_grid,
    is_mosaic,
    is_spatial,
    mosaic_frames,
)
from medtransfer.io.header import Header
from medtransfer.io.volume import Layout, arrange, by_orientation

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_TOMOGRAPHIC = ("CT", "MR", "PT")
_SINGLE = "1.2.840.10008.5.1.4.1.1.88", "1.2.840.10008.5.1.4.1.1.11", "1.2.840.10008.5.1.4.1.1.9"


@dataclass(eq=False)
class Group:
    """Files of one series that make one image or volume, or an error that says why they do not.

    Parameters
    ----------
    headers : list of Header
        In the order of the volume where there is one.
    layout : Layout or None
        How the frames make a volume; None for a plain image.
    frame : Frame or None
        The only frame of a group that is a single slice of a multi-frame file.
    findings : list of Finding
    part : int
        Number among the groups that the same files make.
    """

    headers: list[Header]
    layout: Layout | None = None
    frame: Frame | None = None
    findings: list[Finding] = field(default_factory=list)
    part: int = 0


def by_series(headers: Iterable[Header]) -> dict[tuple[str, str, str], list[Header]]:
    """Headers by patient, study and series; files without a series UID stay alone."""
    series: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in headers:
        uid = header.text("SeriesInstanceUID") or f"file {header.path}"
        series[header.text("PatientID"), header.text("StudyInstanceUID"), uid].append(header)
    return series


def groups(headers: list[Header]) -> list[Group]:
    """Split the files of one series into volumes and images, each with its findings."""
    made = _groups(headers)
    seen: dict[tuple[str, ...], int] = defaultdict(int)
    for group in made:
        files = tuple(sorted({h.path for h in group.headers}))
        group.part = seen[files]
        seen[files] += 1
        group.findings += _header_findings(group.headers)
    return made


def _groups(headers: list[Header]) -> list[Group]:
    frames: list[Frame] = []
    multi: list[Frame] = []
    plain: list[Header] = []
    damaged: list[Finding] = []
    for header in headers:
        try:
            pixels.pixel_format(header)
            found = _frames(header)
        except (ReadError, OSError, RecursionError) as error:
            damaged.append(_as_finding(error, header))
            continue
        if found and is_enhanced(header):
            multi += found
        elif found:
            frames += found
        else:
            plain.append(header)
    if damaged:
        return [Group(headers, findings=damaged)]
    if plain and len(plain) + len(frames) > 1:
        lost = [h for h in plain if h.text("Modality") in _TOMOGRAPHIC and frame_count(h) == 1]
        if lost:
            text = f"{len(lost)} slice(s) of a tomographic series do not say where they lie or how they are turned"
            return [Group(headers, findings=[Finding("missing orientation", "error", text, lost[0].name)])]
    return _stacks(frames) + _stacks(multi) + _singles(plain)


def _singles(headers: list[Header]) -> list[Group]:
    """Each file by itself, with a warning where a file is a copy or ought to have geometry."""
    made, seen = [], set()
    for header in headers:
        findings = []
        uid = header.text("SOPInstanceUID")
        if uid and uid in seen:
            findings.append(Finding("duplicate", "warning", "the same instance is there twice", header.name))
        if header.text("Modality") in _TOMOGRAPHIC and pixels.pixel_format(header).frames > 1:
            text = "the frames do not say where they lie; they are read as plain images"
            findings.append(Finding("missing orientation", "warning", text, header.name))
        seen.add(uid)
        made.append(Group([header], findings=findings))
    return made


def _frames(header: Header) -> list[Frame]:
    if is_enhanced(header):
        return enhanced_frames(header)
    if pixels.pixel_format(header).frames > 1:
        return []
    if is_grid(header):
        fix = "convert it with the maker's own tool"
        raise ReadError("a grid of slices of this maker cannot be taken apart", where=header.name, fix=fix)
    if is_mosaic(header):
        return mosaic_frames(header)
    return [classic_frame(header)] if is_spatial(header) else []


def _as_finding(error: Exception, header: Header) -> Finding:
    if not isinstance(error, ReadError):
        return Finding("damaged", "error", type(error).__name__, header.name)
    message = error.what + (f"; found {error.got}" if error.got else "")
    name = next((n for n in ("truncated", "no pixel data") if error.what.startswith(n)), "damaged")
    return Finding(name, "error", message.removeprefix(f"{name}: "), header.name, error.fix)


def _stacks(frames: list[Frame]) -> list[Group]:
    if not frames:
        return []
    made: list[Group] = []
    clusters = by_orientation(frames)
    main = len(clusters[0])
    for cluster in clusters:
        notes: list[Finding] = []
        if len(clusters) > 1:
            stray = [c for c in clusters if len(c) == 1]
            if main >= 3 and len(stray) == len(clusters) - 1:
                lone = cluster is not clusters[0]
                text = "a slice of another orientation stands in this series; it is read apart"
                notes.append(Finding("localiser inside", "note" if lone else "warning", text, stray[0][0].header.name))
            else:
                text = f"the series holds {len(clusters)} orientations; each is read apart"
                notes.append(Finding("mixed orientation", "warning", text, cluster[0].header.name))
        for stack in _by_type(cluster):
            made.append(_stack(stack, list(notes)))
    return made


def _by_type(cluster: list[Frame]) -> list[list[Frame]]:
    """Frames that share places but differ in Image Type (magnitude and phase, water and fat) in stacks of their own."""
    kinds: dict[str, list[Frame]] = defaultdict(list)
    for frame in cluster:
        kinds[frame.type].append(frame)
    if len(kinds) == 1:
        return [cluster]
    normal = np.cross(cluster[0].orientation[:3], cluster[0].orientation[3:])
    depths = [{round(float(f.position @ normal), 2) for f in stack} for stack in kinds.values()]
    if all(len(d) > 1 and d & depths[0] for d in depths):
        return list(kinds.values())
    return [cluster]


def _stack(frames: list[Frame], notes: list[Finding]) -> Group:
    headers = list({id(f.header): f.header for f in frames}.values())
    sizes = {_size(f.header) for f in frames}
    if len(sizes) > 1:
        text = "slices differ in size: " + ", ".join(f"{r} x {c}" for r, c, _ in sorted(sizes))
        odd = min(frames, key=lambda f: sum(_size(g.header) == _size(f.header) for g in frames))
        return Group(headers, findings=[*notes, Finding("mixed size", "error", text, odd.header.name)])
    if len({h.text("PhotometricInterpretation") for h in headers}) > 1:
        text = "slices differ in their photometric interpretation"
        return Group(headers, findings=[*notes, Finding("mixed photometric", "error", text, headers[-1].name)])
    if len({h.text("FrameOfReferenceUID") for h in headers}) > 1:
        text = "slices name different frames of reference, so their positions may not fit together"
        notes.append(Finding("frame of reference", "warning", text, headers[-1].name))
    if len(frames) == 1:
        return Group(headers, frame=frames[0], findings=notes)
    layout = arrange(frames, sparse=headers[0].text("SOPClassUID") == SEGMENTATION)
    return Group(headers, layout=layout, findings=[*notes, *layout.findings])


def _size(header: Header) -> tuple[int, int, int]:
    return header.integer("Rows"), header.integer("Columns"), header.integer("SamplesPerPixel", 1)


def _header_findings(headers: list[Header]) -> list[Finding]:
    first = headers[0]
    made = []
    charset = first.text("SpecificCharacterSet")
    if charset and not _known_charset(charset):
        text = f"the character set {charset[:32]!r} is not known; names and descriptions may be unreadable"
        made.append(Finding("character set", "warning", text, first.name))
    if first.pixel_tag and (missing := can_decode(first)) is not None:
        made.append(Finding("undecodable", "error", f"{missing.what} ({missing.got}); {missing.fix}", first.name))
    if first.text("BurnedInAnnotation").upper() == "YES":
        made.append(Finding("burned-in annotation", "warning", "the pixels may show the patient's name", first.name))
    return made


def _known_charset(text: str) -> bool:
    from pydicom.charset import python_encoding

    return all(part.strip() in python_encoding for part in text.split("\\"))
