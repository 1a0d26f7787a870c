"""Results as a DICOM structured report after TID 1500 (extra ``dicom-out``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medtransfer
from medtransfer.errors import DataError, require
from medtransfer.io.record import SeriesRecord
from medtransfer.out.source import MAKER, headers_of, hidden, save, unquoted

SCHEME = "99MEDTRANSFER"  # concepts that no public coding scheme knows: the classes and targets of a model


def write_sr(
    record: SeriesRecord,
    path: str | Path,
    *,
    volumes_ml: Mapping[str, float] | None = None,
    seg: Path | None = None,
    probabilities: Mapping[str, float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    values: Mapping[str, float] | None = None,
    model: str = "medtransfer",
    version: str = medtransfer.__version__,
    deidentified: bool = False,
) -> Path:
    """Write volumes of structures, probabilities of classes or predicted values beside the study they are of.

    The object is a Comprehensive 3D SR, preliminary and unverified; each result is a measurement group that names
    the model and refers to the images, or to the segment, that it is of.

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
    thresholds : mapping of str to float
        Of some of the classes; the report says whether the probability reaches it.
    values : mapping of str to float
        Predicted value of each target, without a unit.
    model, version : str
        What made the results.
    deidentified : bool
        As for :func:`medtransfer.out.seg.write_seg`; the SEG must then be de-identified, too.

    Raises
    ------
    DataError
        Where there is nothing to report, a structure is no segment, or the series is not DICOM.
    """
    hd: Any = require("highdicom", "dicom-out")
    if not (volumes_ml or probabilities or values):
        raise DataError("there is nothing to report", fix="give volumes_ml with seg, probabilities or values")
    if volumes_ml and seg is None:
        raise DataError("volumes refer to the segments they were measured in", fix="write the DICOM SEG first")
    sources = hidden(headers_of(record), deidentified)
    header = _read(seg) if seg is not None else None
    maker = hd.sr.AlgorithmIdentification(model[:64], version[:64], manufacturer=MAKER)
    limits = thresholds or {}
    groups = [_volume(hd, header, name, value, maker) for name, value in (volumes_ml or {}).items()]
    groups += [_class(hd, name, p, limits.get(name), maker, sources) for name, p in (probabilities or {}).items()]
    groups += [_value(hd, name, value, maker, sources) for name, value in (values or {}).items()]
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name=MAKER, manufacturer_name=MAKER, model_name=MAKER
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with unquoted():
        made = hd.sr.Comprehensive3DSR(
            evidence=[*sources, *([header] if header is not None else [])],
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
    return save(made, Path(path), deidentified=deidentified)


def _volume(hd: Any, header: Any, name: str, volume_ml: float, maker: Any) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    segment = next((s for s in header.SegmentSequence if s.SegmentLabel == name[:64]), None)
    if segment is None:
        raise DataError(f"there is no segment '{name}'")
    series = header.ReferencedSeriesSequence[0].SeriesInstanceUID
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=name[:64]),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=header.SOPClassUID,
            sop_instance_uid=header.SOPInstanceUID,
            segment_number=int(segment.SegmentNumber),
            source_series=hd.sr.SourceSeriesForSegmentation(series),
        ),
        finding_type=codes.SCT.AnatomicalStructure,
        algorithm_id=maker,
        measurements=[_measured(hd, codes.SCT.Volume, volume_ml, Code("mL", "UCUM", "milliliter"))],
    )


def _class(hd: Any, name: str, chance: float, limit: float | None, maker: Any, sources: Sequence[Any]) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    one = codes.UCUM.NoUnits
    found = [_measured(hd, codes.DCM.Probability, chance, one)]
    called = []
    if limit is not None:
        found.append(_measured(hd, codes.DCM.ThresholdValue, limit, one))
        reached = Code("reached", SCHEME, "Probability reaches the threshold")
        called = [hd.sr.QualitativeEvaluation(reached, codes.SCT.Yes if chance >= limit else codes.SCT.No)]
    return _group(hd, name, "class", found, called, maker, sources)


def _value(hd: Any, name: str, value: float, maker: Any, sources: Sequence[Any]) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    predicted = Code("predicted", SCHEME, "Predicted value")
    return _group(hd, name, "target", [_measured(hd, predicted, value, codes.UCUM.NoUnits)], [], maker, sources)


def _group(hd: Any, name: str, kind: str, measured: Any, called: Any, maker: Any, sources: Sequence[Any]) -> Any:
    from pydicom.sr.coding import Code

    number = hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=5).hexdigest()  # one code for one name, always
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=name[:64]),
        finding_type=Code(f"{kind}-{number}"[:16], SCHEME, name[:64]),
        algorithm_id=maker,
        measurements=measured,
        qualitative_evaluations=called or None,
        source_images=[hd.sr.SourceImageForMeasurementGroup(s.SOPClassUID, s.SOPInstanceUID) for s in sources],
    )


def _measured(hd: Any, name: Any, value: float, unit: Any) -> Any:
    return hd.sr.Measurement(name=name, value=float(f"{value:.8g}"), unit=unit)


def _read(path: Path) -> Any:
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=True)
