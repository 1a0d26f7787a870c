"""Which class a label is, and which class is the positive one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

from medtransfer.errors import CohortError

# Words that mean "not the finding". Exactly one of two classes must be such a word.
_NEGATIVE = re.compile(
    r"0|-1|-|n|no|none|nein|non|false|f|neg|negative|negativ|normal|norm|benign|healthy|gesund|absent|control|controls|"
    r"unaffected|clear|"
    r"non[-_ ]?.+|not?[-_ ].+|without[-_ ].+|absence[-_ ].+|without|nofinding|"
    r"(negative|normal|healthy)[-_ ].+"
)


def order_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Put class names in order: of two, the positive one last; of more, natural order.

    Raises
    ------
    CohortError
        Where two names do not say which is the positive one.

    Examples
    --------
    >>> order_classes(["pneumonia", "normal"]), order_classes(["grade 10", "grade 2", "grade 1"])
    (('normal', 'pneumonia'), ('grade 1', 'grade 2', 'grade 10'))
    """
    names = sorted(set(names), key=natural)
    if len(names) != 2:
        return tuple(names)
    negative = [n for n in names if _NEGATIVE.fullmatch(n.casefold())]
    if len(negative) != 1:
        raise CohortError(
            "two classes, and their names do not say which one is positive",
            got=f"{names[0]!r} and {names[1]!r}",
            fix=f"classes=[{names[0]!r}, {names[1]!r}], the positive class last",
        )
    return (negative[0], next(n for n in names if n not in negative))


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which 2 comes before 10.

    Examples
    --------
    >>> sorted(["b10", "b2", "a"], key=natural)
    ['a', 'b2', 'b10']
    """
    pieces = re.findall(r"[0-9]+|[^0-9]+", text.casefold())
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pieces)


def read_labels(
    values: Sequence[str], lines: Sequence[int], classes: Sequence[object] | None, where: str
) -> tuple[list[int | None], tuple[str, ...], tuple[str, ...]]:
    """Turn label cells into class indices.

    Parameters
    ----------
    values : sequence of str
        One cell a row; ``''`` is a missing label.
    lines : sequence of int
        Line of each row, for messages.
    classes : sequence or None
        Class names in order; None finds them.
    where : str
        Name of the table, for messages.

    Returns
    -------
    labels : list of int or None
    classes : tuple of str
    notes : tuple of str
        What was changed silently otherwise: spellings that were merged.
    """
    words = _whole_numbers(values)
    if not any(words):
        raise CohortError("every label is missing", where=where, got=f"{len(words)} empty cells")
    notes: tuple[str, ...] = ()
    if classes is not None:
        names = tuple(_whole_numbers([str(c).strip() for c in classes]))
        if len({n.casefold() for n in names}) < max(len(names), 2):
            raise CohortError("classes must be at least two different names", got=", ".join(names) or "nothing")
    else:
        spellings = Counter(w for w in words if w)
        chosen = {w.casefold(): w for w, _ in sorted(spellings.items(), key=lambda item: (item[1], item[0]))}
        if len(chosen) < len(spellings):
            merged = ", ".join(sorted(chosen.values()))
            notes = (f"labels that differ only in upper and lower case count as one: {merged}",)
        _refuse_numbers(list(chosen), sum(spellings.values()), where)
        names = order_classes(list(chosen.values()))
    index = {name.casefold(): i for i, name in enumerate(names)}
    wrong = [i for i, w in enumerate(words) if w and w.casefold() not in index]
    if wrong:
        word, kinds = words[wrong[0]], len({words[i] for i in wrong})
        near = difflib.get_close_matches(word.casefold(), list(index), n=1, cutoff=0.6)
        raise CohortError(
            f"a label is none of the classes {', '.join(names)}",
            where=f"{where} {say_lines([lines[i] for i in wrong])}",
            got=repr(word) if kinds <= 3 else f"{kinds} other values",  # many are ids of a wrong column
            fix=f"did you mean '{names[index[near[0]]]}'?" if near else "mend the label, or name it in classes",
        )
    return [index[w.casefold()] if w else None for w in words], names, notes


def say_lines(lines: Sequence[int], most: int = 5) -> str:
    """``'line 4'``, ``'lines 4, 9'``, or the first few and how many more.

    Examples
    --------
    >>> say_lines([4]), say_lines([4, 9, 12], most=2)
    ('line 4', 'lines 4, 9 and 1 more')
    """
    shown = ", ".join(str(n) for n in lines[:most])
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


def _whole_numbers(values: Sequence[str]) -> list[str]:
    """Write 0.0 and 1.0, as spreadsheets save whole numbers beside gaps, as 0 and 1."""
    if all(re.fullmatch(r"-?[0-9]+(\.0*)?", v) for v in values if v):
        return [str(int(float(v))) if v else "" for v in values]
    return list(values)


def _refuse_numbers(names: list[str], rows: int, where: str) -> None:
    if len(names) < 2:
        raise CohortError("there is only one class", where=where, got=f"{rows} rows with the same label")
    if len(names) > 8 and len(names) > rows / 3:
        raise CohortError(
            "the label column holds almost as many values as rows",
            where=where, got=f"{len(names)} values in {rows} rows",
            fix="name the column of classes with label=..., or a column of numbers with target=...",
        )  # fmt: skip
