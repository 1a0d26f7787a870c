"""Masks as DICOM SEG objects that refer to the series they are of (extra ``dicom-out``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medtransfer
from medtransfer.errors import DataError, require
from medtransfer.io.record import SeriesRecord
from medtransfer.io.segments import slices_of
from medtransfer.out.names import colour
from medtransfer.out.source import MAKER, hidden, save, short, sources_of, thickness_of, unquoted


def write_seg(
    labels: NDArray[np.uint8],
    record: SeriesRecord,
    path: str | Path,
    *,
    structures: Sequence[str],
    algorithm: str = "medtransfer segmentation",
    description: str = "automatic segmentation, for research",
    deidentified: bool = False,
) -> Path:
    """Write a mask as a DICOM SEG object beside the study it is of.

    Label ``i`` is segment ``i`` in every object that names the same structures: all of them are described, whether
    the mask marks them or not. Frames are there where a segment marks something; a mask that marks nothing has one
    empty frame a segment. Colours are those of the names beside NIfTI masks. Patient and study are the source's, so
    that viewers such as 3D Slicer and OHIF show the object on the images.

    Parameters
    ----------
    labels : ndarray of uint8 [x, y, z]
        On the voxels that reading the record gives.
    record : SeriesRecord
        The series, from :func:`medtransfer.scan`.
    path : path
        A ``.dcm`` file.
    structures : sequence of str
        Names of labels 1, 2, ...
    algorithm, description : str
        What the object says about its making.
    deidentified : bool
        Instead of the source's patient and study, name those that :func:`medtransfer.deidentify` gives them: the
        object then belongs to the de-identified copy of the series.

    Raises
    ------
    DataError
        Where the mask is not on the series' voxels, or holds a label without a name.
    """
    hd: Any = require("highdicom", "dicom-out")
    if labels.shape != record.shape[:3]:
        raise DataError("the mask is not on the voxels of the series", got=f"{labels.shape} and {record.shape[:3]}")
    names = [name[:64] for name in structures]
    if not names or len(set(names)) < len(names) or int(labels.max(initial=0)) > len(names):
        got = f"labels up to {int(labels.max(initial=0))}, {len(set(names))} different names"
        raise DataError("each structure needs a name of its own, of which 64 characters count", got=got)
    slices = slices_of(record)
    stacked, frames = slices.stack(labels), slices.frames
    if not labels.any():
        stacked, frames = stacked[:1], frames[:1]
    first = slices.frames[0]
    assert first.spacing is not None
    step = float(np.linalg.norm(slices.affine[:3, 2]))
    sources = hidden(sources_of(slices.frames, step), deidentified)
    thickness = thickness_of(sources[0])
    with unquoted():
        made = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=stacked,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(hd, i, name, algorithm) for i, name in enumerate(names, start=1)],
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=medtransfer.__version__,
            device_serial_number="0",
            content_description=description[:64],
            content_label="SEGMENTATION",
            pixel_measures=hd.PixelMeasuresSequence(first.spacing, thickness or step, step),
            plane_orientation=hd.PlaneOrientationSequence("PATIENT", first.orientation.tolist()),
            plane_positions=[hd.PlanePositionSequence("PATIENT", short(f.position)) for f in frames],
            omit_empty_frames=bool(labels.any()),
        )
    made.SeriesDescription, made.ContentCreatorName = algorithm[:64], ""
    return save(made, Path(path), deidentified=deidentified)


def _segment(hd: Any, number: int, name: str, algorithm: str) -> Any:
    from pydicom.sr.codedict import codes

    how = hd.AlgorithmIdentificationSequence(algorithm, codes.DCM.ArtificialIntelligence, medtransfer.__version__)
    return hd.seg.SegmentDescription(
        number,
        name[:64],
        codes.SCT.AnatomicalStructure,
        codes.SCT.AnatomicalStructure,
        "AUTOMATIC",
        how,
        tracking_uid=hd.UID(),
        tracking_id=name[:64],
        display_color=hd.color.CIELabColor.from_rgb(*colour(number)),
    )
