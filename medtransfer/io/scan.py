"""A folder of scans as a table of series: headers only, in parallel, every file accounted for."""

from __future__ import annotations

import html
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from medtransfer.errors import MedTransferWarning, ReadError
from medtransfer.io import archive, nifti, raster
from medtransfer.io.dicom import by_series
from medtransfer.io.findings import Finding
from medtransfer.io.header import Header, path_pseudonym
from medtransfer.io.record import SeriesRecord, dicom_records
from medtransfer.io.tagwalk import read_header
from medtransfer.parallel import in_threads, spread

__all__ = ["Finding", "Scan", "SeriesRecord", "scan"]
DICOMDIR = "1.2.840.10008.1.3.10"
KEEP_HEADERS = 20_000  # of larger dumps headers are read again with the pixels, to save memory
SLOW_FILE_S = 0.002  # a header from a local disk takes a tenth of this
_IGNORED = (".ds_store", "thumbs.db", "desktop.ini")


class Scan(Sequence[SeriesRecord]):
    """Series found in a folder, in the order of their files.

    Parameters
    ----------
    records : sequence of SeriesRecord
    skipped : mapping of str to int
        How many files were left out, by reason.
    findings : sequence of Finding
        What is wrong with files that belong to no series.
    """

    def __init__(
        self, records: Sequence[SeriesRecord], skipped: dict[str, int] | None = None, findings: Sequence[Finding] = ()
    ) -> None:
        self.records = tuple(records)
        self.skipped = dict(skipped or {})
        self.findings = tuple(findings)

    @overload
    def __getitem__(self, index: int) -> SeriesRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Scan: ...
    def __getitem__(self, index: int | slice) -> SeriesRecord | Scan:
        if isinstance(index, slice):
            return Scan(self.records[index], self.skipped, self.findings)
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[SeriesRecord]:
        return iter(self.records)

    def where(self, choose: Callable[[SeriesRecord], bool]) -> Scan:
        """The series for which ``choose`` is true."""
        return Scan([r for r in self.records if choose(r)], self.skipped, self.findings)

    def to_rows(self) -> list[dict[str, Any]]:
        """One mapping a series, without files, descriptions or original identifiers."""
        return [record.as_row() for record in self.records]

    def to_table(self) -> str:
        """A table for the terminal."""
        head = ("series", "kind", "mod", "shape", "spacing mm", "axes", "files", "problems")
        rows = [head]
        for r in self.records:
            shape = "x".join(map(str, r.shape)) or "?"
            spacing = " ".join(f"{v:.3g}" for v in r.spacing_mm) if r.spacing_mm else "?"
            worst = ", ".join(f"{p.name}{'!' if p.severity == 'error' else ''}" for p in r.problems) or "-"
            axes = r.orientation or "-"
            rows.append((r.series, r.kind, r.modality or "?", shape, spacing, axes, str(r.n_files), worst))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        if self.skipped:
            lines.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.skipped.items())))
        lines += [str(f) for f in self.findings]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The table as JSON."""
        findings = [f.without_file() for f in self.findings]
        whole = {"series": self.to_rows(), "skipped": self.skipped, "findings": findings}
        return json.dumps(whole, indent=1, ensure_ascii=False)

    def to_csv(self) -> str:
        """The table as CSV, one line a series."""
        import csv
        import io

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        rows = self.to_rows()
        columns = [c for c in (rows[0] if rows else {"series": ""}) if c != "tags"]
        writer.writerow(columns)
        for row in rows:
            joints = {"problems": "; "}
            cells = [(joints.get(c, " x "), row[c]) for c in columns]
            writer.writerow([joint.join(map(str, v)) if isinstance(v, list) else v for joint, v in cells])
        return out.getvalue()

    def __repr__(self) -> str:
        kinds = Counter(r.kind for r in self.records)
        bad = sum(not r.ok for r in self.records)
        return f"Scan({len(self)} series: {dict(kinds)}, {bad} unreadable, skipped {self.skipped})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.to_table())}</pre>"


def scan(
    folder: str | os.PathLike[str], *, progress: bool = True, workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Scan:  # fmt: skip
    """List the series below a folder, in a DICOMDIR, an archive, or one file.

    Parameters
    ----------
    folder : path
        Searched with all its subfolders; a DICOMDIR lists its own files; ``.zip`` and ``.tar`` are unpacked.
    progress : bool
        Show a progress bar where there is a terminal.
    workers : int or None
        Threads that read headers; None for one while files come fast, and several from slow storage. Under
        :func:`medtransfer.parallel.computing` processes, or those of a cluster.
    store : path or None
        File that keeps the result; it is reused while no file has changed.

    Returns
    -------
    Scan
        The series, how many files were left out by reason, and findings of files that belong to none.

    Raises
    ------
    ReadError
        Where the path does not exist or holds no image at all.

    Examples
    --------
    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     PIL.Image.new("L", (4, 3)).save(folder + "/a.png")
    ...     [(record.kind, record.shape) for record in scan(folder, progress=False)]
    [('image', (3, 4))]
    """
    root = Path(folder)
    if not root.exists():
        raise ReadError("there is no such file or folder", where=root.name)
    if archive.is_archive(root):
        root = archive.unpack(root)
    from medtransfer.io import stored

    listed, skipped, findings = _list_files(root)
    stamp = stored.stamp(listed) if store is not None else ""
    if store is not None and (kept := stored.load(Path(store), stamp, listed)) is not None:
        return _told(kept)
    headers, others = _read_all(listed, skipped, findings, progress, workers)
    keep = len(headers) <= KEEP_HEADERS
    series = by_series(headers)
    records = [r for group in series.values() for r in dicom_records(group, keep=keep)]
    owners = Counter(uid for _, _, uid in series)
    for (_, _, uid), group in series.items():
        if owners[uid] > 1:
            text = "one series UID stands under several patients or studies; each is read apart"
            findings.append(Finding("several patients", "warning", text, group[0].name))
    records += [r for path in others if (r := _other(path)) is not None]
    if not records:
        got = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items())) or "an empty folder"
        raise ReadError("no image was found", where=root.name if root.is_file() else "the folder", got=got)
    found = Scan(sorted(records, key=lambda r: (str(r.files[0]), r.part)), dict(skipped), findings)
    if store is not None:
        stored.save(Path(store), stamp, found, listed)
    return _told(found)


def _told(found: Scan) -> Scan:
    for finding in found.findings:
        if finding.severity != "note":
            warnings.warn(f"{finding.file}: {finding.name}: {finding.message}", MedTransferWarning, stacklevel=3)
    return found


def _list_files(root: Path) -> tuple[list[str], Counter[str], list[Finding]]:
    skipped: Counter[str] = Counter()
    findings: list[Finding] = []
    if root.is_file():
        if root.name.upper().startswith("DICOMDIR"):
            return _dicomdir(root, findings), skipped, findings
        return [str(root)], skipped, findings
    files, seen, stack = [], set(), [str(root)]
    while stack:
        folder = stack.pop()
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:  # a link that leads back
                skipped["link to a folder seen before"] += 1
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            skipped["unreadable folder"] += 1
            findings.append(Finding("unreadable", "warning", "a folder cannot be opened"))
            continue
        for entry in entries:
            try:
                if entry.is_dir():
                    stack.append(entry.path)
                elif entry.is_file():
                    files.append(entry.path)
                else:
                    skipped["broken link"] += 1
            except OSError:
                skipped["broken link"] += 1
    return sorted(files), skipped, findings


def _dicomdir(path: Path, findings: list[Finding]) -> list[str]:
    from medtransfer.io.parsed import dataset

    files = []
    for item in dataset(path, pixels=False).get("DirectoryRecordSequence") or []:
        parts = item.get("ReferencedFileID")
        if not parts:
            continue
        target = _as_spelt(path.parent, [parts] if isinstance(parts, str) else [str(p) for p in parts])
        if path.parent.resolve() not in target.resolve().parents:
            findings.append(Finding("outside", "warning", "the DICOMDIR points outside its folder", path.name))
        elif not target.is_file():
            text = "the DICOMDIR lists a file that is not there"
            findings.append(Finding("missing file", "warning", text, target.name))
        else:
            files.append(str(target))
    return sorted(set(files))


def _as_spelt(folder: Path, parts: list[str]) -> Path:
    """The file below the folder, its name in capitals in the DICOMDIR and often in small letters on the disk."""
    for part in parts:
        exact = folder / part
        if not exact.exists() and folder.is_dir():
            exact = next((e for e in folder.iterdir() if e.name.lower() == part.lower()), exact)
        folder = exact
    return folder


def _read_all(
    files: list[str], skipped: Counter[str], findings: list[Finding], progress: bool, workers: int | None
) -> tuple[list[Header], list[Path]]:
    from tqdm import tqdm

    headers: list[Header] = []
    others: list[Path] = []
    with tqdm(total=len(files), unit="file", desc="scan", disable=None if progress else True) as bar:
        for chunk in _results(files, workers):
            for result in chunk:
                if isinstance(result, Header):
                    headers.append(result)
                elif isinstance(result, Path):
                    others.append(result)
                else:
                    reason, finding = result
                    skipped[reason] += 1
                    if finding is not None:
                        findings.append(finding)
            bar.update(len(chunk))
    return headers, others


Result = Header | Path | tuple[str, Finding | None]


def _results(files: list[str], workers: int | None) -> Iterator[list[Result]]:
    """Results in chunks; by threads where the storage is slow enough that waiting together helps."""
    chunks = [files[i : i + 64] for i in range(0, len(files), 64)]
    if not in_threads():
        yield from spread(_read_chunk, chunks, workers=workers or os.cpu_count() or 1)
        return
    while chunks and workers != 1:
        began = time.perf_counter()
        first = _read_chunk(chunks[0])
        waiting = time.perf_counter() - began > SLOW_FILE_S * len(chunks[0])
        yield first
        chunks = chunks[1:]
        if workers or waiting:
            yield from spread(_read_chunk, chunks, workers=workers or 8)
            return
    yield from map(_read_chunk, chunks)


def _read_chunk(paths: list[str]) -> list[Result]:
    return [_classify(path) for path in paths]


def _classify(path: str) -> Result:
    """A DICOM header, the path of another image, or why the file is left out."""
    name = os.path.basename(path)
    try:
        if name.lower() in _IGNORED or name.startswith("._"):
            return "not an image", None
        if nifti.is_nifti(path) or raster.is_raster(path):
            paired = name.lower().endswith(".hdr") and os.path.exists(path[:-4] + ".img")
            return ("second of a pair", None) if paired else _unless_empty(path, Path(path))
        header = read_header(path)
    except PermissionError:
        return "unreadable", Finding("unreadable", "warning", "the file cannot be opened", name)
    except OSError as error:
        return "unreadable", Finding("unreadable", "warning", f"the file cannot be read ({type(error).__name__})", name)
    except ReadError as error:
        named = name.lower().endswith((".dcm", ".ima", ".dicom"))
        finding = Finding("not DICOM", "warning", f"{error.what}, though its name says so", name) if named else None
        return _unless_empty(path, ("not DICOM", finding))
    if header.text("SOPClassUID") == DICOMDIR or name.upper() == "DICOMDIR":
        return "DICOMDIR", None
    if not header.pixel_tag and not header.has("Rows"):
        return "DICOM without an image", None
    return header


def _unless_empty(path: str, result: Result) -> Result:
    if os.path.getsize(path):
        return result
    return "empty file", Finding("empty file", "warning", "the file has no bytes", os.path.basename(path))


def _other(path: Path) -> SeriesRecord | None:
    """The record of a NIfTI or raster file."""
    series = path_pseudonym("series", path)
    problems: tuple[Finding, ...] = ()
    shape: tuple[int, ...] = ()
    spacing, orientation, syntax = None, None, "NIfTI"
    volume = nifti.is_nifti(path)
    try:
        if volume:
            found = nifti.read_nifti_header(path)
            import numpy as np

            from medtransfer.image import Geometry
            from medtransfer.io.volume import canonical

            full = found.shape + (1,) * (3 - len(found.shape))
            turned, affine = canonical(np.broadcast_to(np.uint8(0), full), found.affine)
            geometry = Geometry.from_affine(affine)
            shape = turned.shape + ((3,) if found.rgb else ())
            spacing, orientation, problems = geometry.spacing_mm, geometry.orientation, tuple(found.findings)
        else:
            syntax, shape = raster.raster_kind(path)
            syntax = "JPEG" if syntax == "MPO" else syntax
    except (ReadError, OSError) as error:
        what = f"{error.what}; found {error.got or 'nothing'}" if isinstance(error, ReadError) else "unreadable"
        problems = (Finding("damaged", "error", what, path.name),)
        syntax = "NIfTI" if volume else "raster"
    return SeriesRecord(
        kind="volume" if volume else "image",
        modality="",
        shape=shape,
        spacing_mm=spacing,
        orientation=orientation,
        n_files=1,
        patient="",
        study="",
        series=series,
        transfer_syntax=syntax,
        problems=problems,
        files=(path,),
    )
