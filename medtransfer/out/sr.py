"""Measurements as a DICOM structured report after TID 1500 (extra ``dicom-out``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import medtransfer
from medtransfer.errors import DataError, require
from medtransfer.io.record import SeriesRecord
from medtransfer.io.segments import slices_of
from medtransfer.out.seg import MAKER, sources_of, unquoted


def write_sr(
    record: SeriesRecord,
    path: str | Path,
    *,
    volumes_ml: Mapping[str, float] | None = None,
    seg: Path | None = None,
    probabilities: Mapping[str, float] | None = None,
) -> Path:
    """Write volumes of structures, or probabilities of classes, as a Comprehensive 3D SR beside its study.

    Parameters
    ----------
    record : SeriesRecord
        The series that was measured.
    path : path
        A ``.dcm`` file.
    volumes_ml : mapping of str to float
        Volume of each structure in millilitres.
    seg : Path or None
        The DICOM SEG that :func:`medtransfer.out.seg.write_seg` wrote; volumes refer to its segments by name.
    probabilities : mapping of str to float
        Probability of each class, in [0, 1]; said to be a probability, not a finding.

    Raises
    ------
    DataError
        Where there is nothing to report, or a structure is no segment.
    """
    hd: Any = require("highdicom", "dicom-out")
    from pydicom.sr.codedict import codes

    if not volumes_ml and not probabilities:
        raise DataError("there is nothing to report", fix="give volumes_ml with seg, or probabilities")
    if volumes_ml and seg is None:
        raise DataError("volumes refer to the segments they were measured in", fix="write the DICOM SEG first")
    sources = sources_of(slices_of(record).frames)
    groups = [_volume(hd, codes, seg, name, value) for name, value in (volumes_ml or {}).items()]
    groups += [_probability(hd, codes, name, value) for name, value in (probabilities or {}).items()]
    observer = hd.sr.ObserverContext(
        codes.DCM.Device,
        hd.sr.DeviceObserverIdentifyingAttributes(uid=hd.UID(), name=MAKER, manufacturer_name=MAKER, model_name=MAKER),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = [*sources, *([_read(seg)] if seg is not None else [])]
    with unquoted():
        made = hd.sr.Comprehensive3DSR(
            evidence=evidence,
            content=content[0],
            series_number=901,
            series_instance_uid=hd.UID(),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MAKER,
            is_complete=True,
        )
    made.SoftwareVersions = medtransfer.__version__
    made.SeriesDescription = "medtransfer measurements, for research"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path


def _volume(hd: Any, codes: Any, seg: Path | None, name: str, volume_ml: float) -> Any:
    from pydicom.sr.coding import Code

    assert seg is not None
    header = _read(seg)
    number = next((int(s.SegmentNumber) for s in header.SegmentSequence if s.SegmentLabel == name[:64]), None)
    if number is None:
        raise DataError(f"there is no segment '{name}'", where=seg.name)
    series = header.ReferencedSeriesSequence[0].SeriesInstanceUID
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=header.SegmentSequence[number - 1].TrackingUID, identifier=name[:64]
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=header.SOPClassUID,
            sop_instance_uid=header.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(series),
        ),
        finding_type=codes.SCT.AnatomicalStructure,
        measurements=[
            hd.sr.Measurement(
                name=codes.SCT.Volume, value=float(f"{volume_ml:.8g}"), unit=Code("mL", "UCUM", "milliliter")
            )
        ],
    )


def _probability(hd: Any, codes: Any, name: str, value: float) -> Any:
    from pydicom.sr.coding import Code

    meaning = Code("probability", "99MEDTRANSFER", f"Probability of {name}"[:64])
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=name[:64]),
        measurements=[hd.sr.Measurement(name=meaning, value=float(f"{value:.8g}"), unit=codes.UCUM.NoUnits)],
    )


def _read(path: Path) -> Any:
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=True)
