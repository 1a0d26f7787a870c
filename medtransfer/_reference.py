"""The reference standard of each row of a table: a class, several labels, an order, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medtransfer._labels import natural, read_labels, say_lines
from medtransfer.errors import CohortError, ConfigError
from medtransfer.predictions import Task
from medtransfer.table import Table

Columns = str | Sequence[str] | None

_YES = re.compile(r"1(\.0*)?|y|yes|true|t|x|\+|pos|positive|present")
_NO = re.compile(r"0(\.0*)?|n|no|false|f|-|neg|negative|absent")
_NOTHING = re.compile(r"no[-_ ]?finding|none|normal|negative|no|0")
_SEPARATORS = re.compile(r"[|;,]")


@dataclass(frozen=True)
class References:
    """What the table says about each of its rows.

    Parameters
    ----------
    task : {'classification', 'multilabel', 'ordinal', 'regression'}
    labels : list of int or None
        Class index, in the tasks of one class a case.
    targets : list of tuple of float, or None
        Values of all targets or labels, NaN where a label is not known; None where the row says nothing.
    classes : tuple of str
        Names of the classes, labels or targets.
    notes : tuple of str
    """

    task: Task
    labels: list[int | None]
    targets: list[tuple[float, ...] | None]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, row: int) -> float | tuple[float, ...] | None:
        """Target of a case; one number where there is one."""
        found = self.targets[row]
        return found[0] if found is not None and len(found) == 1 and self.task == "regression" else found

    def missing(self, row: int) -> bool:
        """Whether a row has no reference although the others have."""
        return bool(self.classes) and self.labels[row] is None and self.targets[row] is None


def columns_of(label: Columns, target: Columns) -> tuple[str, ...]:
    """The columns that hold references."""
    named = label if target is None else target
    return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def read_references(
    table: Table, rows: Sequence[dict[str, str]], lines: Sequence[int], *,
    task: Task | None, label: Columns, target: Columns, classes: Sequence[object] | None,
) -> References:  # fmt: skip
    """Read labels or targets as the task asks.

    Parameters
    ----------
    task : str or None
        None takes several label columns as ``multilabel``, targets as ``regression``, else ``classification``.
    label : str, sequence of str or None
        Column of the class; of a multi-label task one column a label (yes, no or empty: unknown), or one
        column that lists what is present, as in ``'effusion|nodule'``.
    target : str, sequence of str or None
        Columns of numbers.

    Raises
    ------
    CohortError, ConfigError
    """
    columns, empty = columns_of(label, target), [None] * len(rows)
    if target is not None and label is not None:
        raise ConfigError("a task has labels or targets, not both", where="cohort.target", fix="leave label out")
    several = label is not None and not isinstance(label, str)
    task = task or ("regression" if target is not None else "multilabel" if several else "classification")
    if not columns:
        return References(task, list(empty), list(empty))
    if task == "regression":
        values = [tuple(_number(row[c], c, f"{table.name} line {n}") for c in columns)
                  for row, n in zip(rows, lines, strict=True)]  # fmt: skip
        told = [None if all(map(math.isnan, v)) else v for v in values]
        if not any(v is not None for v in told):
            raise CohortError("no row has a number to predict", where=table.name, got=", ".join(columns))
        return References(task, list(empty), told, columns)
    if task == "multilabel":
        return _multilabel(table, rows, lines, columns, classes)
    if len(columns) > 1:
        raise ConfigError(f"{task} reads one column", where="cohort.label", got=", ".join(columns))
    words = [row[columns[0]] for row in rows]
    labels, names, notes = read_labels(words, lines, classes, table.name)
    if task == "ordinal" and classes is None and not all(re.search("[0-9]", n) for n in names):
        raise CohortError(
            "the order of the classes is not known", where=f"{table.name} column '{columns[0]}'", got=", ".join(names),
            fix=f"classes=[{', '.join(map(repr, names))}] in rising order",
        )  # fmt: skip
    return References(task, labels, list(empty), names, notes)


def _number(cell: str, column: str, where: str) -> float:
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CohortError(f"column '{column}' must hold numbers", where=where, got=repr(cell),
                          fix="write 0.5, or 0,5 in every row; leave unknown cells empty")  # fmt: skip
    return value


def _multilabel(
    table: Table, rows: Sequence[dict[str, str]], lines: Sequence[int], columns: tuple[str, ...],
    classes: Sequence[object] | None,
) -> References:  # fmt: skip
    if len(columns) == 1:
        names, values = _listed(table, [row[columns[0]] for row in rows], lines, classes)
    else:
        names = columns
        values = [tuple(_yes(row[c], c, f"{table.name} line {n}") for c in columns)
                  for row, n in zip(rows, lines, strict=True)]  # fmt: skip
    for k, name in enumerate(names):
        found = {v[k] for v in values if not math.isnan(v[k])}
        if len(found) < 2:
            said = "present in every row" if found == {1.0} else "in no row" if found else "never told"
            raise CohortError(f"the label '{name}' is {said}", where=table.name, fix="leave it out of the labels")
    told = [None if all(map(math.isnan, v)) else v for v in values]
    return References("multilabel", [None] * len(rows), told, names)


def _yes(cell: str, column: str, where: str) -> float:
    word = cell.casefold()
    if not word:
        return math.nan
    if _YES.fullmatch(word):
        return 1.0
    if _NO.fullmatch(word):
        return 0.0
    raise CohortError(
        f"column '{column}' must say yes or no", where=where, got=repr(cell), fix="1, 0, or an empty cell for unknown"
    )


def _listed(
    table: Table, cells: Sequence[str], lines: Sequence[int], classes: Sequence[object] | None
) -> tuple[tuple[str, ...], list[tuple[float, ...]]]:
    """One column that lists what is present; an empty cell says nothing."""
    present = [[w.strip() for w in _SEPARATORS.split(cell) if w.strip()] for cell in cells]
    found = {w.casefold(): w for words in present for w in words if not _NOTHING.fullmatch(w.casefold())}
    names = tuple(str(c) for c in classes) if classes is not None else tuple(sorted(found.values(), key=natural))
    wanted = {n.casefold() for n in names}
    wrong = [n for words, n in zip(present, lines, strict=True)
             if any(w.casefold() not in wanted and not _NOTHING.fullmatch(w.casefold()) for w in words)]  # fmt: skip
    if wrong:
        raise CohortError(
            f"a label is none of {', '.join(names)}", where=f"{table.name} {say_lines(wrong)}",
            fix="mend the label, or name it in classes",
        )  # fmt: skip
    if not names:
        raise CohortError("no row has a label", where=table.name)
    sets = [{w.casefold() for w in words} for words in present]
    values = [tuple(float(n.casefold() in said) for n in names) if said else (math.nan,) * len(names) for said in sets]
    return names, values
