"""What is wrong with a file or a series, by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medtransfer.errors import MedTransferWarning, ReadError


@dataclass(frozen=True)
class Finding:
    """Something a user must know about a file or series.

    Parameters
    ----------
    name : str
        Short name, e.g. ``'gap'``, ``'duplicate'``, ``'tilt'``.
    severity : {'error', 'warning', 'note'}
        An error forbids reading; a warning is given when the image is read; a note only stands in the table.
    message : str
        What was found.
    file : str
        Name of a file concerned, without its folder.
    fix : str
        What the user can do about it, where the name does not say it.

    Examples
    --------
    >>> print(Finding("gap", "error", "1 slice is missing", "3.dcm"))
    gap (error): 1 slice is missing [3.dcm]
    """

    name: str
    severity: Literal["error", "warning", "note"]
    message: str
    file: str = ""
    fix: str = ""

    def without_file(self) -> str:
        """The finding for exports, which name no file."""
        return f"{self.name} ({self.severity}): {self.message}"

    def __str__(self) -> str:
        return f"{self.name} ({self.severity}): {self.message}" + (f" [{self.file}]" if self.file else "")


_FIXES = {
    "gap": "add the missing files, or leave the series out",
    "uneven spacing": "resample it with a tool that knows the positions, or leave the series out",
    "duplicate": "keep one of the files",
    "missing spacing": "add Pixel Spacing, or read each slice as an image with record.each()",
    "not a volume": "read each slice as an image with record.each()",
    "missing orientation": "read each slice as an image with record.each()",
    "mixed size": "separate the sizes into folders, or read each slice with record.each()",
    "truncated": "copy the file again",
}


def refuse(findings: Iterable[Finding]) -> None:
    """Raise for the first error among the findings.

    Raises
    ------
    ReadError
        Says the finding, the file and what to do.
    """
    for finding in findings:
        if finding.severity == "error":
            fix = finding.fix or _FIXES.get(finding.name, "")
            raise ReadError(f"{finding.name}: {finding.message}", where=finding.file, fix=fix)


def tell(findings: Iterable[Finding]) -> None:
    """Warn of every finding that is a warning."""
    import warnings

    for finding in findings:
        if finding.severity == "warning":
            where = f"{finding.file}: " if finding.file else ""
            warnings.warn(f"{where}{finding.name}: {finding.message}", MedTransferWarning, stacklevel=3)
