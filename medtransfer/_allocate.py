"""Give groups of cases to parts so that every part gets its share of every class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def allocate(
    counts: NDArray[np.float64],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    cover: bool = True,
    sizes: NDArray[np.float64] | None = None,
) -> NDArray[np.int64] | None:
    """Which part each group goes to.

    Parameters
    ----------
    counts : ndarray (groups, classes)
        Cases of each class that a group has.
    shares : ndarray (parts,)
        Positive fractions that sum to one.
    rng : numpy.random.Generator
        Breaks ties: shuffles groups of equal size.
    cover : bool
        Every part must have every class; else every part must have some group.
    sizes : ndarray (groups,) or None
        Cases that a group has, where a case may count in several columns or in none.

    Returns
    -------
    ndarray (groups,) or None
        Part of each group; None where some class has fewer groups than there are parts and so cannot
        be in each, or the groups overlap in such a way that none was found.

    Examples
    --------
    >>> counts = np.tile([[1.0, 0.0], [0.0, 1.0]], (10, 1))
    >>> part = allocate(counts, np.array([0.6, 0.2, 0.2]), np.random.default_rng(0))
    >>> [(counts[part == p].sum(axis=0)).tolist() for p in range(3)]
    [[6.0, 6.0], [2.0, 2.0], [2.0, 2.0]]
    """
    has = counts > 0 if cover else np.ones((len(counts), 1), dtype=bool)
    sizes = counts.sum(axis=1) if sizes is None else sizes
    counts = np.column_stack([counts, sizes])  # sizes are kept in proportion like classes
    target = shares[:, None] * counts.sum(axis=0)  # (parts, classes + 1)
    weight = 1 / np.where(target > 0, target, 1)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    part = np.zeros(len(counts), dtype=np.int64)
    filled = np.zeros_like(target)
    for group in order:
        x = counts[group]
        # growth of sum((filled - target)^2 / target) if the group came here
        growth = (x * (2 * (filled - target) + x) * weight).sum(axis=1)
        part[group] = np.argmin(growth)
        filled[part[group]] += x
    return part if _cover(part, has, len(shares)) else None


def _cover(part: NDArray[np.int64], has: NDArray[np.bool_], parts: int) -> bool:
    """Move groups until every part has every class; False where that fails."""
    for _ in range(parts * has.shape[1] * 4):
        number = np.stack([has[part == p].sum(axis=0) for p in range(parts)])  # groups by part and class
        lacking = np.argwhere((number == 0) & (has.sum(axis=0) > 0))
        if not len(lacking):
            return bool(np.bincount(part, minlength=parts).all())
        p, c = lacking[0]
        spare = [g for g in np.flatnonzero(has[:, c]) if (number[part[g]][has[g]] > 1).all()]
        if not spare:
            return False
        part[min(spare, key=lambda g: (has[g].sum(), -number[part[g], c], g))] = p
    return False


def parts_html(split: Any) -> str:
    """The sizes of a split's parts as HTML, for notebooks."""
    from html import escape

    names = [part.name for part in split.folds[0].parts()]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("fold", *names))
    rows = "".join(
        f"<tr><td>{i}</td>" + "".join(f"<td style='text-align:right'>{len(p)}</td>" for p in fold.parts()) + "</tr>"
        for i, fold in enumerate(split.folds, start=1)
    )
    return f"<table><caption>{escape(split.scheme)}, seed {split.seed}</caption><tr>{head}</tr>{rows}</table>"
