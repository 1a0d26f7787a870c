"""Rows of a label table as ids, paths, numbers and covariates; what is wrong is told with its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from medtransfer._case import Case, clean_age, clean_sex
from medtransfer._labels import say_lines
from medtransfer.errors import CohortError
from medtransfer.table import Table

_COVARIATES = {
    "age": ("age", "PatientAge", "age_years"),
    "sex": ("sex", "PatientSex", "gender"),
    "site": ("site",),
    "manufacturer": ("manufacturer",),
}


def covariate_columns(table: Table, extra: Sequence[str]) -> dict[str, str]:
    """Covariate name -> column of the table: the usual four where they are there, and those asked for."""
    usual = {name: table.find(*columns) for name, columns in _COVARIATES.items()}
    return {name: column for name, column in usual.items() if column} | {name: name for name in extra}


def read_covariates(row: dict[str, str], carry: dict[str, str]) -> dict[str, str]:
    """Covariates of one row, age in years and sex as a letter; missing ones are left out."""
    values = {name: row[column] for name, column in carry.items()}
    if "age" in values:
        values["age"] = clean_age(values["age"])
    if "sex" in values:
        values["sex"] = clean_sex(values["sex"])
    return {name: value for name, value in values.items() if value}


def refuse_blank(table: Table, column: str, what: str) -> None:
    """Refuse a table with an empty id."""
    blank = [n for row, n in zip(table.rows, table.lines, strict=True) if row[column].casefold() in ("", "none")]
    if blank:
        raise CohortError(
            f"a {what} id is missing in column '{column}'", where=f"{table.name} {say_lines(blank)}",
            got=f"{len(blank)} empty cells", fix="fill it in, or delete the row",
        )  # fmt: skip


def case_ids(table: Table, column: str) -> list[str]:
    """Case ids by row: the column, or the line where there is none."""
    if column not in table.columns:
        if column != "case_id":
            table.require({"case": column})
        return [f"row {line}" for line in table.lines]
    refuse_blank(table, column, "case")
    first: dict[str, int] = {}
    for row, line in zip(table.rows, table.lines, strict=True):
        if (before := first.setdefault(row[column], line)) != line:
            raise CohortError(
                "a case id stands twice", where=f"{table.name} lines {before}, {line}", got=f"column '{column}'",
                fix="give every row an id of its own, or leave the column out",
            )  # fmt: skip
    return [row[column] for row in table.rows]


def complete(table: Table, columns: dict[str, str | tuple[str, ...] | None]) -> tuple[list[int], dict[str, list[int]]]:
    """Rows that have these cells (of several columns one at least), and the lines of the others by what they lack."""
    keep: list[int] = []
    lacking: dict[str, list[int]] = {}
    for i, row in enumerate(table.rows):
        asked = {what: (c,) if isinstance(c, str) else c for what, c in columns.items() if c}
        what = next((what for what, several in asked.items() if not any(row[c] for c in several)), None)
        if what is None:
            keep.append(i)
        else:
            lacking.setdefault(f"without {what}", []).append(table.lines[i])
    return keep, lacking


def paths(table: Table, rows: list[dict[str, str]], lines: list[int], column: str, root: Path) -> list[Path]:
    """Existing paths from a column, below root unless they are absolute."""
    if not root.is_dir():
        raise CohortError(
            "the root folder of the images does not exist", where="cohort.root", got=repr(root.name),
            fix="correct it; it starts from 'data' of the config, or else from the folder where the command runs",
        )  # fmt: skip
    paths: list[Path] = []
    missing: list[int] = []
    for row, line in zip(rows, lines, strict=True):
        cell = row[column]
        relative = Path(cell.replace("\\", "/"))
        outside = not relative.is_absolute() and ".." in relative.parts
        if outside or (PureWindowsPath(cell).drive and not Path(cell).drive and not (root / cell).exists()):
            raise CohortError(
                "a path leaves the root folder" if outside else "a path names a Windows drive",
                where=f"{table.name} line {line}", got=f"column '{column}'",
                fix="write paths relative to root",
            )  # fmt: skip
        path = root / cell if (root / cell).exists() else root / relative
        paths.append(path)
        if not path.exists():
            missing.append(line)
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(rows)} files in column '{column}' do not exist",
            where=f"{table.name} {say_lines(missing)}",
            fix="root='folder' names the folder that the paths start from",
        )
    return paths


def refuse_contradiction(table: Table, images: list[Path], labels: Sequence[object], lines: list[int]) -> None:
    """Refuse a table in which one image has two labels."""
    first: dict[Path, int] = {}
    for k, path in enumerate(images):
        before = first.setdefault(path, k)
        if labels[before] != labels[k]:
            raise CohortError(
                "one image has two labels", where=f"{table.name} lines {lines[before]}, {lines[k]}",
                fix="decide for one label, or exclude the image",
            )  # fmt: skip


def gather(table: Table, cases: Sequence[Case], keys: list[str], lines: list[int], column: str) -> tuple[Case, ...]:
    """Cases with the same key become one whose images are a bag; what they say must agree."""
    members: dict[str, list[int]] = {}
    for k, key in enumerate(keys):
        members.setdefault(key or f"line {lines[k]}", []).append(k)
    found = []
    for key, ks in members.items():
        first = cases[ks[0]]
        for what in ("patient_id", "label", "target", "part"):
            if other := [k for k in ks if repr(getattr(cases[k], what)) != repr(getattr(first, what))]:
                raise CohortError(
                    f"rows of one '{column}' differ in their {what.removesuffix('_id')}",
                    where=f"{table.name} {say_lines([lines[ks[0]], lines[other[0]]])}",
                    fix="mend the rows, or gather them by another column",
                )
        if any(cases[k].mask for k in ks):
            raise CohortError("images with masks cannot be gathered", where=table.name, fix="leave bag out")
        found.append(
            replace(first, case_id=f"{column} {key}", image=tuple(image for k in ks for image in cases[k].images))
        )
    return tuple(found)
