"""A scan kept in a file and reused while nothing changed; it holds pseudonyms and keyed digests of paths only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.io.findings import Finding
from medtransfer.io.header import substitute
from medtransfer.io.record import SeriesRecord
from medtransfer.io.tagwalk import read_header
from medtransfer.pseudonym import pseudonym

if TYPE_CHECKING:
    from medtransfer.io.scan import Scan

VERSION = 2


def stamp(files: list[str]) -> str:
    """Digest of names, sizes and times of change of all files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            about = os.stat(file)
            digest.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{file}\0gone\n".encode("utf-8", "surrogateescape"))
    return pseudonym("case", digest.hexdigest())


def save(path: Path, stamp: str, found: Scan, files: list[str]) -> None:
    """Write a scan."""
    number = {file: i for i, file in enumerate(files)}
    records = []
    for record in found:
        row = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        row["problems"] = [_kept(p, [str(f) for f in record.files]) for p in record.problems]
        row["files"] = [number[str(f)] for f in record.files]
        del row["description"], row["_group"]
        records.append(row)
    whole = {
        "version": VERSION, "stamp": stamp, "records": records, "skipped": found.skipped,
        "findings": [_kept(f, files) for f in found.findings],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(whole, file)
    os.replace(draft, path)


def _kept(finding: Finding, files: list[str]) -> dict[str, Any]:
    """A finding with the number of its file instead of the name."""
    names = [(os.path.basename(f), substitute(f)) if finding.file else ("", "") for f in files]
    number = next((i for i, pair in enumerate(names) if finding.file in pair), -1) if finding.file else -1
    hidden = number >= 0 and finding.file == names[number][1]
    return {**dataclasses.asdict(finding), "file": number, "hidden": hidden}


def _told(row: dict[str, Any], files: list[str]) -> Finding:
    number, hidden = row.pop("file"), row.pop("hidden")
    name = "" if number < 0 else substitute(files[number]) if hidden else os.path.basename(files[number])
    return Finding(**row, file=name)


def load(path: Path, stamp: str, files: list[str]) -> Scan | None:
    """The scan kept there, None if there is none, it is damaged, or a file has changed."""
    from medtransfer.io.scan import Scan

    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["version"] != VERSION or whole["stamp"] != stamp:
            return None
        records = [_record(row, files) for row in whole["records"]]
        return Scan(records, whole["skipped"], [_told(f, files) for f in whole["findings"]])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _record(row: dict[str, Any], files: list[str]) -> SeriesRecord:
    row["files"] = tuple(Path(files[i]) for i in row["files"])
    row["problems"] = tuple(_told(p, [str(f) for f in row["files"]]) for p in row["problems"])
    row["shape"] = tuple(row["shape"])
    row["spacing_mm"] = tuple(row["spacing_mm"]) if row["spacing_mm"] else None
    description = read_header(row["files"][0]).text("SeriesDescription") if row["modality"] else ""
    return SeriesRecord(**row, description=description)
