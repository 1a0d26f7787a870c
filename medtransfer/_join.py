"""Scans joined to a table of labels: the two sides meet by pseudonym, or by file name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medtransfer._case import Case, FlowStep, clean_age, clean_sex
from medtransfer._join_masks import SEG, mask_of, masks_of_series, table_of
from medtransfer._labels import say_lines
from medtransfer._reference import Columns, References, columns_of, read_references
from medtransfer._rows import covariate_columns, read_covariates, refuse_blank
from medtransfer.cohort import Cohort
from medtransfer.errors import CohortError, ConfigError
from medtransfer.predictions import Task
from medtransfer.pseudonym import pseudonym
from medtransfer.table import Table, read_table

if TYPE_CHECKING:
    from medtransfer.io.scan import Scan, SeriesRecord

_KINDS = {"PatientID": "patient", "StudyInstanceUID": "study", "SeriesInstanceUID": "series"}
_ENDINGS = (".nii.gz", ".nii", ".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


class _Row(NamedTuple):
    """One key of the table: its first row, and all lines it stands on."""

    cells: Mapping[str, str]
    label: int | None
    target: float | tuple[float, ...] | None
    lines: tuple[int, ...]


def join_dicom(
    dicom: str | Path | Scan, *, labels: str | Path | None, on: str, column: str | None, label: Columns,
    target: Columns, classes: Sequence[object] | None, task: Task | None, patient: str | None, part: str | None,
    modality: str | None, description: str | None, plane: str | None, choose: str, covariates: Sequence[str],
    sheet: str | int, scan_store: str | Path | None, progress: bool, mask: str | None = None, root: str | Path = ".",
) -> Cohort:  # fmt: skip
    """See :meth:`Cohort.from_dicom`."""
    _one_of("on", on, (*_KINDS, "file"))
    _one_of("choose", choose, ("only", "all", "bag", "most_slices", "thinnest"))
    found = _scan(dicom, scan_store, progress)
    records = list(found)
    known = masks_of_series(records) if mask == SEG else {}
    if labels is None:
        if not known:
            raise ConfigError("scans without a table of labels need masks", fix=f"labels='TABLE', or mask='{SEG}'")
        table, on, label, column = table_of(known), "SeriesInstanceUID", None, None
    else:
        table = read_table(labels, sheet=sheet)
    if mask and label == "label" and label not in table.columns:
        label = None
    key = column or table.find(on, *({"file": ("filename", "image", "path")}.get(on, ()))) or on
    named = columns_of(label, target)
    table.require({"column": key, "label" if target is None else "target": named, "patient": patient, "part": part,
                   "mask": None if mask == SEG else mask, "covariates": covariates})  # fmt: skip
    table = table.with_points(covariates).with_points(columns_of(None, target), strict=True)
    refuse_blank(table, key, on)
    skipped = tuple((f"files: {reason}", n) for reason, n in sorted(found.skipped.items()))
    units = [one for r in records for one in r.each()] if on == "file" else records
    if modality != SEG:  # a mask is no image
        units = [one for one in units if one.modality != SEG]
    usable, unusable = _usable(units, modality, description, plane)
    flow = [
        FlowStep("files", sum(r.n_files for r in records) + sum(n for _, n in skipped)),
        FlowStep("series", len(records), skipped),
        FlowStep("images" if on == "file" else "readable series", len(usable), unusable),
    ]
    if not usable:
        got = ", ".join(f"{n} {reason}" for reason, n in unusable)
        raise CohortError("no series can be used", got=got, fix="on='file' takes every file as an image of its own")
    told = read_references(table, table.rows, table.lines, task=task, label=label, target=target, classes=classes)
    rows, notes = _rows(table, key, told)
    matched = _match_files(table, rows, usable) if on == "file" else _match_ids(rows, usable, _KINDS[on])
    if not any(matched.values()):
        raise _nothing_joins(table, key, on, usable, skip=named)
    reasons: Counter[str] = Counter()
    reasons["without a row in the table"] = len(usable) - sum(len(m) for m in matched.values())
    carry = covariate_columns(table, covariates)
    cases: list[Case] = []
    ambiguous: list[tuple[_Row, list[SeriesRecord]]] = []
    for name, row in rows.items():
        candidates = [piece for record in matched[name] for piece in _pieces(record)]
        if mask == SEG:
            reasons["without a DICOM SEG object"] += sum(one.series not in known for one in candidates)
            candidates = [one for one in candidates if one.series in known]
        if not candidates:
            reasons["rows of the table without an image"] += 1
        elif named and row.label is None and row.target is None:
            reasons["without a label"] += len(candidates)
        elif choose == "bag":
            cases.append(_bag(candidates, row, on, patient, part, carry))
        else:
            chosen = _choose(candidates, choose)
            if not chosen:
                ambiguous.append((row, candidates))
            reasons["not chosen"] += len(candidates) - len(chosen)
            made = [_case(one, row, on, patient, part, carry) for one in chosen]
            masks = [mask_of(one, row.cells, mask, known, Path(root), table) for one in chosen]
            reasons["without a mask"] += sum(mask is not None and m is None for m in masks)
            cases += [replace(c, mask=m) for c, m in zip(made, masks, strict=True) if m or mask is None]
    if ambiguous:
        raise _several(table, ambiguous, on, choose)
    if not cases:
        raise CohortError(f"no image has a {'mask' if mask else 'label'}", where=table.name)
    unknown = sum(not c.patient_id for c in cases)
    if unknown:
        raise CohortError(
            f"the patient of {unknown} of {len(cases)} cases is unknown: PatientID is missing in the header",
            where=table.name, fix="patient='...' names a column of the table that holds it",
        )  # fmt: skip
    if len({c.case_id for c in cases}) < len(cases):  # one file name in several folders of a series
        cases = [replace(c, case_id=pseudonym("case", f"{c.case_id} {i}")) for i, c in enumerate(cases)]
    flow.append(FlowStep("cases", len(cases), tuple((r, n) for r, n in reasons.items() if n)))
    return Cohort.build(tuple(cases), told.classes, flow, notes=notes, task=told.task)


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"unknown value of {option}", got=repr(value), fix=f"one of {', '.join(allowed)}")


def _scan(dicom: str | Path | Scan, store: str | Path | None, progress: bool) -> Scan:
    if not isinstance(dicom, str | Path):
        return dicom
    from medtransfer.io.archive import is_archive, unpack
    from medtransfer.io.scan import scan

    folder = Path(dicom)
    return scan(unpack(folder) if is_archive(folder) else folder, progress=progress, store=store)


def _usable(
    units: Iterable[SeriesRecord], modality: str | None, description: str | None, plane: str | None
) -> tuple[list[SeriesRecord], tuple[tuple[str, int], ...]]:
    """Units without errors and of the wanted kind, and how many others for which reason."""
    try:
        pattern = re.compile(description or "", re.IGNORECASE)
    except re.error as error:
        raise ConfigError("description is no regular expression", got=repr(description), fix=str(error)) from error
    usable, reasons = [], Counter[str]()
    for unit in units:
        wrong = next((p.name for p in unit.problems if p.severity == "error"), None)
        if wrong:
            reasons[wrong] += 1
        elif modality and unit.modality != modality:
            reasons[f"modality {unit.modality or 'unknown'}"] += 1
        elif plane and unit.plane != plane:
            reasons[f"plane {unit.plane or 'unknown'}"] += 1
        elif not pattern.search(unit.description):
            reasons["another description"] += 1
        else:
            usable.append(unit)
    return usable, tuple(sorted(reasons.items()))


def _rows(table: Table, key: str, told: References) -> tuple[dict[str, _Row], tuple[str, ...]]:
    """Rows by key; a key on several lines must have one reference."""
    notes, rows = told.notes, dict[str, _Row]()
    for i, (cells, line) in enumerate(zip(table.rows, table.lines, strict=True)):
        index, target = told.labels[i], told.value(i)
        before = rows.get(cells[key])
        if before is not None and (before.label != index or repr(before.target) != repr(target)):
            raise CohortError(
                f"one '{key}' has two labels", where=f"{table.name} lines {before.lines[0]}, {line}",
                fix="decide for one label, or join on what the label belongs to: on='StudyInstanceUID', "
                "'SeriesInstanceUID' or 'file'",
            )  # fmt: skip
        lines = (*(before.lines if before else ()), line)
        rows[cells[key]] = _Row(before.cells if before else cells, index, target, lines)
    blank = [line for i, line in enumerate(table.lines) if told.missing(i)]
    if blank:
        notes = (*notes, f"rows without a label were left out: {say_lines(blank)}")
    repeated = sum(len(r.lines) - 1 for r in rows.values())
    if repeated:
        notes = (*notes, f"{repeated} rows of the table repeat an earlier one and were not used")
    return rows, notes


def _match_ids(keys: Iterable[str], records: Sequence[SeriesRecord], kind: str) -> dict[str, list[SeriesRecord]]:
    by_alias: dict[str, list[SeriesRecord]] = defaultdict(list)
    for record in records:
        by_alias[getattr(record, kind)].append(record)
    return {key: by_alias.get(pseudonym(kind, key), []) for key in keys}


def _match_files(
    table: Table, rows: Mapping[str, _Row], records: Sequence[SeriesRecord]
) -> dict[str, list[SeriesRecord]]:
    """Records by file name: as much of the path as the cell gives, upper case and ending aside."""
    by_name: dict[str, list[tuple[tuple[str, ...], SeriesRecord]]] = defaultdict(list)
    for record in records:
        parts = _path_parts(str(record.files[0]))
        by_name[parts[-1]].append((parts, record))
    matched: dict[str, list[SeriesRecord]] = {}
    several: list[int] = []
    taken: dict[int, int] = {}
    for key, row in rows.items():
        wanted = _path_parts(key)
        fits = [record for parts, record in by_name.get(wanted[-1], []) if parts[-len(wanted) :] == wanted]
        matched[key] = fits
        if len(fits) > 1:
            several.append(row.lines[0])
        elif fits and (before := taken.setdefault(id(fits[0]), row.lines[0])) != row.lines[0]:
            raise CohortError("two rows name the same file", where=f"{table.name} lines {before}, {row.lines[0]}")
    if several:
        raise CohortError(
            "a file name fits several files", where=f"{table.name} {say_lines(several)}",
            fix="write more of the path, such as 'folder/file', or its ending",
        )  # fmt: skip
    return matched


def _path_parts(path: str) -> tuple[str, ...]:
    parts = [p for p in path.replace("\\", "/").casefold().split("/") if p not in ("", ".")] or [""]
    ending = next((e for e in _ENDINGS if parts[-1].endswith(e)), "")
    return (*parts[:-1], parts[-1].removesuffix(ending))


def _pieces(record: SeriesRecord) -> list[SeriesRecord]:
    """The record itself, or its images where it is not a volume."""
    return list(record.each()) if record.kind == "image" and record.n_files > 1 else [record]


def _slices(record: SeriesRecord) -> int:
    return record.shape[record.slice_axis] if record.kind == "volume" else 1


def _thickness(record: SeriesRecord) -> float:
    spacing = record.spacing_mm if record.kind == "volume" else None
    return round(float(spacing[record.slice_axis]), 3) if spacing else float("inf")


def _choose(candidates: list[SeriesRecord], rule: str) -> list[SeriesRecord]:
    """The candidates that become cases; none where the rule leaves several."""
    if rule == "all" or len(candidates) == 1:
        return candidates
    if rule == "only":
        return []
    ranks = [(-_slices(r),) if rule == "most_slices" else (_thickness(r), -_slices(r)) for r in candidates]
    best = [r for r, rank in zip(candidates, ranks, strict=True) if rank == min(ranks)]
    return best if len(best) == 1 else []


def _several(table: Table, ambiguous: list[tuple[_Row, list[SeriesRecord]]], on: str, rule: str) -> CohortError:
    candidates = ambiguous[0][1]
    listed = "; ".join(
        f"{r.series} {r.modality or '?'}, {_slices(r)} slices"
        + (f" every {_thickness(r):g} mm" if _thickness(r) != float("inf") else "")
        for r in candidates[:6]
    )
    more = f" and {len(candidates) - 6} more" if len(candidates) > 6 else ""
    return CohortError(
        f"several images fit one {on}" + ("" if rule == "only" else f", and '{rule}' does not tell them apart"),
        where=f"{table.name} {say_lines([r.lines[0] for r, _ in ambiguous])}",
        got=f"on the first line: {listed}{more}",
        fix="choose='most_slices', 'thinnest' or 'all'; modality='CT', plane='axial' or "
        "description='...' keep some; or join on SeriesInstanceUID",
    )


def _case(
    record: SeriesRecord, row: _Row, on: str, patient: str | None, part: str | None, carry: dict[str, str]
) -> Case:
    tags = {
        "age": clean_age(str(record.tags.get("PatientAge", ""))),
        "sex": clean_sex(str(record.tags.get("PatientSex", ""))),
        "manufacturer": str(record.tags.get("Manufacturer", "")).strip(),
    }
    nobody = pseudonym("patient", "")
    own = record.instance or (record.series if record.n_files > 1 else f"{record.series} {record.files[0].name}")
    return Case(
        case_id=pseudonym("case", own if not record.part else f"{own} {record.part}"),
        patient_id=row.cells[patient] if patient else record.patient.replace(nobody, ""),
        image=record,
        label=row.label,
        target=row.target,
        covariates={name: value for name, value in tags.items() if value} | read_covariates(dict(row.cells), carry),
        part=row.cells[part] if part else "",
    )


def _bag(
    records: Sequence[SeriesRecord], row: _Row, on: str, patient: str | None, part: str | None, carry: dict[str, str]
) -> Case:
    """One case of all the images of a row."""
    each = [_case(record, row, on, patient, part, carry) for record in records]
    if len({c.patient_id for c in each}) > 1:
        raise CohortError(
            "the images of one row are of several patients", got=f"{len(each)} images", fix="choose='all'"
        )
    name = pseudonym("case", " ".join(sorted(c.case_id for c in each)))
    return replace(each[0], case_id=name, image=tuple(records))


def _nothing_joins(
    table: Table, key: str, on: str, records: Sequence[SeriesRecord], *, skip: Sequence[str]
) -> CohortError:
    """Say what both sides look like, and which other way of joining would work."""
    cells = list(dict.fromkeys(row[key] for row in table.rows))
    if on == "file":
        other = [_path_parts(str(r.files[0]))[-1] for r in records]
        scans = f"{len(other)} files" + (f" written like {_shape(other)}" if other else "")
    else:
        scans = f"{len({getattr(r, _KINDS[on]) for r in records})} different ones in {len(records)} scans"
    return CohortError(
        f"no row of the table fits any scan on {on}",
        where=table.name,
        got=f"{len(cells)} ids written like {_shape(cells)} in column '{key}'; {scans}",
        fix=_other_join(table, records, skip) or "check that the table belongs to these scans",
    )


def _other_join(table: Table, records: Sequence[SeriesRecord], skip: Sequence[str]) -> str:
    known = {on: {getattr(r, kind) for r in records} for on, kind in _KINDS.items()}
    files = {_path_parts(str(f))[-1] for r in records for f in r.files}
    best, fix = 0, ""
    for column in (c for c in table.columns if c not in skip):
        cells = {row[column] for row in table.rows[:1000] if row[column]}
        widths = (0, *range(2, 13)) if all(cell.isdecimal() for cell in cells) else (0,)
        for on, kind in _KINDS.items():
            for width in widths:
                hits = sum(pseudonym(kind, cell.zfill(width)) in known[on] for cell in cells)
                if hits > best:
                    zeros = f" once zeros fill them to {width} digits, as before a spreadsheet" if width else ""
                    best, fix = hits, f"on='{on}', column='{column}' fits {hits} of {len(cells)} ids{zeros}"
        hits = sum(_path_parts(cell)[-1] in files for cell in cells)
        if hits > best:
            best, fix = hits, f"on='file', column='{column}' fits {hits} of {len(cells)} names"
    return fix


def _shape(texts: Iterable[str]) -> str:
    """The most common form of texts with letters as A and digits as 9, so that no id is shown."""
    forms = Counter(re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "9", t))[:40] for t in texts)
    return repr(forms.most_common(1)[0][0])
