"""Names of labels as ITK-SNAP and 3D Slicer read them: by these programs' own formats, written out by hand."""

import re

from medtransfer.out.names import colour, read_names, write_names

# IDX -R- -G- -B- -A- VIS MSH "LABEL", as ITK-SNAP's reader scans it
SNAP = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"$')


def test_itk_snap_finds_every_label_once_and_a_background(tmp_path):
    names = ["liver", "left kidney", 'the "odd" one', "zwei\nZeilen"]
    snap, slicer = write_names(tmp_path / "masks", names)
    rows = [SNAP.match(line) for line in snap.read_text().splitlines() if not line.startswith("#")]
    assert all(rows)
    assert [int(r[1]) for r in rows] == [0, 1, 2, 3, 4]
    assert [r[8] for r in rows] == ["Clear Label", "liver", "left kidney", "the 'odd' one", "zwei Zeilen"]
    assert rows[0][5] == "0"
    assert len({r.group(2, 3, 4) for r in rows}) == 5
    lines = [line.split() for line in slicer.read_text().splitlines() if not line.startswith("#")]
    assert all(len(line) == 6 for line in lines)  # number, name without blanks, red, green, blue, opacity
    assert [line[1] for line in lines[1:3]] == ["liver", "left_kidney"]
    assert read_names(tmp_path / "masks") == dict(
        enumerate(["liver", "left kidney", "the 'odd' one", "zwei Zeilen"], 1)
    )
    assert read_names(tmp_path) == {}


def test_colours_stay_colours_and_differ():
    many = [colour(i) for i in range(1, 22)]
    assert len(set(many)) == 21
    assert all(0 <= v <= 255 for c in many for v in c)
