"""Tables of labels as people keep them: CSV with any separator, Excel; every cell stays text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medtransfer.errors import CohortError

_MISSING = {"", "na", "n/a", "nan", "null", "<na>", "#n/a"}  # not "none", which may name a class
_COMMA = re.compile(r"[+-]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")


@dataclass(frozen=True)
class Table:
    """Rows of text with the line each came from.

    Parameters
    ----------
    name : str
        File name, for messages.
    columns : tuple of str
        Header cells, blanks stripped.
    rows : tuple of dict
        One mapping a row; a missing value (empty, NA, NaN, null ...) is ``''``.
    lines : tuple of int
        Line number in the file of each row, counted from 1, the header being line 1.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def find(self, *names: str) -> str | None:
        """The first of these columns that the table has, upper case, blanks and underscores aside; or None."""
        for name in names:
            if name in self.columns:
                return name
        plain = {_plain(c): c for c in reversed(self.columns)}
        return next((plain[_plain(n)] for n in names if _plain(n) in plain), None)

    def require(self, columns: Mapping[str, str | Sequence[str] | None]) -> None:
        """Refuse a table that lacks a column, naming the nearest one it has and the key of the cohort that says which.

        Parameters
        ----------
        columns : mapping of str to str, sequence of str or None
            Key -> the column, or columns, that it names.
        """
        import difflib

        for key, named in columns.items():
            for column in [named] if isinstance(named, str) else named or ():
                if column not in self.columns:
                    near = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.5)
                    says = f"cohort.{key} says which column holds it"
                    raise CohortError(
                        f"there is no column '{column}'",
                        where=self.name,
                        got=f"columns {', '.join(self.columns)}",
                        fix=f"did you mean '{near[0]}'? {says}" if near else says,
                    )

    def with_points(self, columns: Sequence[str], *, strict: bool = False) -> Table:
        """The table with numbers such as ``0,5``, as spreadsheets write them in many languages, as ``0.5``.

        A column is changed where all its cells are such numbers or whole ones.

        Parameters
        ----------
        columns : sequence of str
            Those that may hold numbers.
        strict : bool
            Refuse a column in which ``1,234`` may be a thousand or a little more than one; else it stays as it is.

        Examples
        --------
        >>> table = Table("t.csv", ("ml",), ({"ml": "0,5"}, {"ml": "1.250,25"}, {"ml": "3"}), (2, 3, 4))
        >>> [row["ml"] for row in table.with_points(["ml"]).rows]
        ['0.5', '1250.25', '3']
        """
        changed: dict[str, list[str]] = {}
        for column in columns:
            cells = [row[column] for row in self.rows]
            commas = [c for c in cells if "," in c]
            if not commas or not all(_COMMA.fullmatch(c) or _WHOLE.fullmatch(c) for c in cells if c):
                continue
            if not all(_THOUSANDS.fullmatch(c) for c in commas):
                changed[column] = [c.replace(".", "").replace(",", ".") if "," in c else c for c in cells]
            elif strict:
                line = self.lines[cells.index(commas[0])]
                raise CohortError(
                    f"whether the comma in column '{column}' ends the whole number or groups thousands is not clear",
                    where=f"{self.name} line {line}", got=repr(commas[0]), fix="write numbers with a decimal point",
                )  # fmt: skip
        rows = tuple(row | {c: cells[i] for c, cells in changed.items()} for i, row in enumerate(self.rows))
        return replace(self, rows=rows) if changed else self


def read_table(path: str | Path, *, sheet: str | int = 0) -> Table:
    """Read a CSV, TSV or Excel table with every cell as text, so that ``0012`` stays ``0012``.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv``, ``.txt`` (comma, semicolon or tab, found from the header line; UTF-8 with or
        without byte-order mark) or ``.xlsx``.
    sheet : str or int
        Name or number of the Excel sheet.

    Raises
    ------
    CohortError
        Where the file is missing or empty, a header is blank or twice there, or a row has too many cells.
    """
    path = Path(path)
    if not path.is_file():
        raise CohortError("there is no such table", where=path.name, fix="give the path of a CSV or Excel file")
    cells = _excel(path, sheet) if path.suffix.lower() in {".xlsx", ".xlsm"} else _text(path)
    cells = [(line, values) for line, values in cells if any(v.strip() for v in values)]
    if not cells:
        raise CohortError("the table is empty", where=path.name)
    (_, head), body = cells[0], cells[1:]
    columns = tuple(c.strip() for c in head)
    while columns and not columns[-1] and all(not v.strip() for _, row in body for v in row[len(columns) - 1 :]):
        columns = columns[:-1]  # an empty column at the right, as spreadsheets leave it
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice or "" in columns:
        raise CohortError(
            "column names must be there and differ",
            where=f"{path.name} line 1",
            got=f"{', '.join(repr(c) for c in (twice or ['']))} {'twice' if twice else 'as a name'}",
        )
    rows, lines = [], []
    for line, values in body:
        while len(values) > len(columns) and not values[-1].strip():
            values = values[:-1]
        if len(values) != len(columns):
            raise CohortError(
                f"a row has {len(values)} cells where the header has {len(columns)}",
                where=f"{path.name} line {line}",
                fix="quote cells that hold the separator",
            )
        clean = ("" if v.strip().lower() in _MISSING else v.strip() for v in values)
        rows.append(dict(zip(columns, clean, strict=True)))
        lines.append(line)
    if not rows:
        raise CohortError("the table has a header and no rows", where=path.name)
    return Table(path.name, columns, tuple(rows), tuple(lines))


def _text(path: Path) -> list[tuple[int, list[str]]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = raw.decode("utf-16")
        else:
            what = "the table is not UTF-8 text"
            raise CohortError(what, where=path.name, fix="save it as 'CSV UTF-8' or as .xlsx") from None
    header = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(";\t,", key=header.count))
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        where = f"{path.name} line {reader.line_num}"
        raise CohortError("a row cannot be read", where=where, got=str(error)) from error


def _excel(path: Path, sheet: str | int) -> list[tuple[int, list[str]]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # a damaged workbook fails in many ways inside the library
        raise CohortError("the Excel file cannot be opened", where=path.name, got=type(error).__name__) from error
    names = book.sheetnames
    if isinstance(sheet, str) and sheet not in names:
        raise CohortError(f"there is no sheet '{sheet}'", where=path.name, got=f"sheets {', '.join(names)}")
    if isinstance(sheet, int) and not 0 <= sheet < len(names):
        what = f"there is no sheet number {sheet}, counted from 0"
        raise CohortError(what, where=path.name, got=f"sheets {', '.join(names)}")
    page = book[sheet] if isinstance(sheet, str) else book.worksheets[sheet]
    return [(i, [_cell(v) for v in row]) for i, row in enumerate(page.iter_rows(values_only=True), start=1)]


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " _-")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
