"""Reference masks of scans: DICOM SEG objects in the same dump, or a column of the table that names files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer._rows import paths
from medtransfer.errors import CohortError
from medtransfer.pseudonym import pseudonym
from medtransfer.table import Table

if TYPE_CHECKING:
    from medtransfer.io.record import SeriesRecord

SEG = "SEG"  # as the Modality of DICOM SEG objects
_FIX = "mask names a column of the table with one file a row"


def mask_of(
    record: SeriesRecord, row: Mapping[str, str], mask: str | None, known: Mapping[str, Path], root: Path, table: Table
) -> Path | None:
    """The mask of a series: what refers to it, or what its row names."""
    if mask == SEG:
        return known.get(record.series)
    return paths(table, [dict(row)], [table.lines[0]], mask, root)[0] if mask and row[mask] else None


def masks_of_series(records: Sequence[SeriesRecord]) -> dict[str, Path]:
    """The DICOM SEG object of each series that one refers to, by the series' pseudonym.

    Raises
    ------
    CohortError
        Where there is none, several refer to one series, or a segment's number names different structures.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    names: dict[int, set[str]] = defaultdict(set)
    objects = 0
    for record in records:
        for path in record.files if record.modality == SEG else ():
            objects += 1
            series, segments = _refers(path)
            for uid in series:
                found[pseudonym("series", uid)].append(path)
            for number, name in segments.items():
                names[number].add(name)
    if not found:
        got = f"{objects} SEG objects" + (", none of which names its series" if objects else "")
        raise CohortError("there are no DICOM SEG objects that refer to a series", got=got, fix=_FIX)
    several = [series for series, files in found.items() if len(files) > 1]
    if several:
        got = f"{len(several)} series of {len(found)}"
        raise CohortError(
            "several DICOM SEG objects refer to one series",
            where=several[0],
            got=got,
            fix=f"leave one in it, or {_FIX}",
        )
    unlike = sorted(number for number, told in names.items() if len(told) > 1)
    if unlike:
        what, got = (
            f"segment {unlike[0]} is not one structure in all DICOM SEG objects",
            f"{len(names[unlike[0]])} names",
        )
        raise CohortError(what, got=got, fix=f"number the structures alike, or {_FIX}")
    return {series: files[0] for series, files in found.items()}


def _refers(path: Path) -> tuple[list[str], dict[int, str]]:
    """Series that a SEG object refers to, and the names of its segments."""
    from medtransfer.io.parsed import dataset
    from medtransfer.io.segments import segment_names

    found: Any = dataset(path, pixels=False)
    series = [str(s.get("SeriesInstanceUID") or "") for s in found.get("ReferencedSeriesSequence") or []]
    return [uid for uid in series if uid], segment_names(path)


def table_of(known: Mapping[str, Path]) -> Table:
    """A table whose rows are the series that have a mask, for a dump that comes without one."""
    rows = tuple({"SeriesInstanceUID": series} for series in sorted(known))
    return Table("the DICOM SEG objects", ("SeriesInstanceUID",), rows, tuple(range(1, len(rows) + 1)))
