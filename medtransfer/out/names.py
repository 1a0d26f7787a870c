"""Names of labels beside NIfTI masks, for ITK-SNAP (label descriptions) and 3D Slicer (a colour table)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medtransfer.cache import write_atomically

# Okabe and Ito's colours, which the colour-blind tell apart, the bright ones first
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
)  # fmt: skip


def colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue of a label, 1 or more; after seven labels they repeat, darker.

    Examples
    --------
    >>> colour(1), colour(8)
    ((230, 159, 0), (161, 111, 0))
    """
    rounds, place = divmod(number - 1, len(COLOURS))
    red, green, blue = (int(v * 0.7**rounds) for v in COLOURS[place])
    return red, green, blue


def write_names(folder: str | Path, structures: Sequence[str]) -> tuple[Path, Path]:
    """Write ``labels.txt`` and ``labels.ctbl`` into a folder of masks, which say what its labels are.

    ITK-SNAP takes the first by *Segmentation > Import Label Descriptions*, 3D Slicer the second as a colour table.

    Parameters
    ----------
    folder : path
    structures : sequence of str
        Names of labels 1, 2, ...

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     snap, slicer = write_names(out, ["liver", "left kidney"])
    ...     print(snap.read_text().splitlines()[-1])
    ...     print(slicer.read_text().splitlines()[-1])
        2    86  180  233        1  1  1    "left kidney"
    2 left_kidney 86 180 233 255
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(i, name, colour(i)) for i, name in enumerate(structures, start=1)]
    snap = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
            '    0     0    0    0        0  0  0    "Clear Label"']  # fmt: skip
    snap += [f'{i:5d} {r:5d}{g:5d}{b:5d}        1  1  1    "{_quoted(name)}"' for i, name, (r, g, b) in rows]
    slicer = ["# Color table file", "0 background 0 0 0 0"]
    slicer += [f"{i} {'_'.join(name.split())} {r} {g} {b} 255" for i, name, (r, g, b) in rows]
    made = (folder / "labels.txt", folder / "labels.ctbl")
    for path, lines in zip(made, (snap, slicer), strict=True):
        write_atomically(path, "\n".join(lines) + "\n")
    return made


def read_names(folder: str | Path) -> dict[int, str]:
    """Names of labels from ``labels.txt`` of a folder (ITK-SNAP's label descriptions); none where there is none."""
    path = Path(folder) / "labels.txt"
    if not path.is_file():
        return {}
    rows = re.findall(r'^\s*(\d+)\s+(?:\S+\s+){6}"(.*)"\s*$', path.read_text(encoding="utf-8", errors="replace"), re.M)
    return {int(number): name for number, name in rows if int(number)}


def _quoted(name: str) -> str:
    """A name without what would end it."""
    return " ".join(name.replace('"', "'").split())
