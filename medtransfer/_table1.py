"""Table 1 of a paper: who is in the cohort, in all and by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from medtransfer.cohort import Cohort


class SplitLike(Protocol):
    """What Table 1 asks of a split."""

    def parts(self) -> Mapping[str, Sequence[int]]:
        """Names and case indices of its parts."""


def table1(cohort: Cohort, split: SplitLike | None) -> dict[str, list[Any]]:
    """See :meth:`Cohort.table1`."""
    groups: dict[str, Sequence[int]] = {"all": range(len(cohort))}
    if split is not None:
        groups |= {name: part for name, part in split.parts().items() if len(part)}
    rows = [
        ["cases", *(str(len(g)) for g in groups.values())],
        ["patients", *(str(len({cohort.patients[i] for i in g})) for g in groups.values())],
    ]
    for k, name in enumerate(cohort.classes):
        rows.append([name, *(say_reference(cohort, g, k, share=True) for g in groups.values())])
    if any("age" in c.covariates for c in cohort):
        rows.append(["age in years, median [IQR]", *(_age(cohort, g) for g in groups.values())])
    for key in ("sex", "site", "manufacturer"):
        found = Counter(c.covariates[key] for c in cohort if key in c.covariates)
        for value, _ in found.most_common(8):
            counts = [sum(cohort[i].covariates.get(key) == value for i in g) for g in groups.values()]
            rows.append([f"{key} {value}", *(_share(n, len(g)) for n, g in zip(counts, groups.values(), strict=True))])
        unknown = [sum(key not in cohort[i].covariates for i in g) for g in groups.values()]
        if found and any(unknown):
            rows.append([f"{key} unknown", *(_share(n, len(g)) for n, g in zip(unknown, groups.values(), strict=True))])
    return {"columns": list(groups), "rows": rows}


def table1_html(cohort: Cohort) -> str:
    """Table 1 as HTML, for notebooks."""
    table = table1(cohort, None)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table["rows"])
    head = "".join(f"<th>{escape(c)}</th>" for c in ["", *table["columns"]])
    return f"<table><caption>{escape(repr(cohort))}</caption><tr>{head}</tr>{body}</table>"


def say_reference(cohort: Cohort, group: Sequence[int], column: int, *, share: bool = False) -> str:
    """How many cases have a class or label, or mean and deviation of a target."""
    said = cohort.references[list(group)]
    if said.ndim == 1:
        count, total = int((said == column).sum()), len(group)
    else:
        known = said[:, column][~np.isnan(said[:, column])]
        if cohort.task == "regression":
            return f"{known.mean():.3g} ± {known.std():.2g}" if len(known) else "unknown"
        count, total = int(known.sum()), len(known)
    return _share(count, total) if share else str(count)


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.0f} %)" if total else "0"


def _age(cohort: Cohort, group: Sequence[int]) -> str:
    ages = [float(cohort[i].covariates["age"]) for i in group if "age" in cohort[i].covariates]
    if not ages:
        return "unknown"
    low, middle, high = np.percentile(ages, [25, 50, 75])
    return f"{middle:.0f} [{low:.0f}-{high:.0f}]"
