"""Predictions: what a model said about cases, beside the reference standard. No torch here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError


class Source(Protocol):
    """Where predictions came from: what the report asks a run for."""

    def record(self) -> dict[str, object]:
        """Everything the run wrote down about itself, as plain JSON types."""

    def picture(self, case: str, at: int | None = None) -> NDArray[np.uint8] | None:
        """The prepared image of a case, ``[rows, cols]`` or ``[rows, cols, 3]``, of a volume one slice, or None."""

    def heatmap(self, case: str, class_index: int) -> NDArray[np.float32] | None:
        """Where the evidence for a class lies in a case's prepared image, in [0, 1] in its shape, or None."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities and reference labels of n cases over C classes.

    Parameters
    ----------
    case, patient : ndarray (n,) of str
        Pseudonyms; several cases may belong to one patient.
    reference : ndarray (n,) of int
        Class index by the reference standard, -1 where unknown.
    probability : ndarray (n, C) of float
        Rows sum to one. In a two-class task column 1 is the positive class.
    classes : tuple of str
        Class names in column order.
    fold : ndarray (n,) of int
        Which fold's model spoke; 0 throughout for a holdout split.
    part : str
        ``'val'``, ``'test'``, ``'external'`` ...
    source : Source or None
        The run behind the predictions, for the report.

    Examples
    --------
    >>> p = Predictions(np.array(["a", "b"]), np.array(["x", "y"]), np.array([0, 1]),
    ...                 np.array([[0.9, 0.1], [0.2, 0.8]]), ("no", "yes"), np.zeros(2, int), "test")
    >>> p.positive
    array([0.1, 0.8])
    """

    case: NDArray[np.str_]
    patient: NDArray[np.str_]
    reference: NDArray[np.int64]
    probability: NDArray[np.float64]
    classes: tuple[str, ...]
    fold: NDArray[np.int64]
    part: str
    source: Source | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.case)
        sizes = {"patient": self.patient, "reference": self.reference, "fold": self.fold}
        wrong = [f"{name} has {len(value)}" for name, value in sizes.items() if len(value) != n]
        if wrong or self.probability.shape != (n, len(self.classes)):
            raise MetricError(
                f"predictions of {n} cases over {len(self.classes)} classes do not fit together",
                got=", ".join([*wrong, f"probability {self.probability.shape}"]),
            )
        if not np.isfinite(self.probability).all():
            raise MetricError("probabilities are not finite", got=f"{(~np.isfinite(self.probability)).sum()} values")

    def __len__(self) -> int:
        return len(self.case)

    @property
    def positive(self) -> NDArray[np.float64]:
        """Probability of the positive class of a two-class task, shape (n,)."""
        if len(self.classes) != 2:
            raise MetricError("a positive class exists only among two", got=f"{len(self.classes)} classes")
        return self.probability[:, 1]

    def take(
        self, keep: NDArray[np.bool_] | NDArray[np.int64] | Callable[[Predictions], NDArray[np.bool_]]
    ) -> Predictions:
        """The cases selected by a mask, by indices, or by a function of these predictions."""
        index = keep(self) if callable(keep) else keep
        return replace(
            self,
            case=self.case[index],
            patient=self.patient[index],
            reference=self.reference[index],
            probability=self.probability[index],
            fold=self.fold[index],
        )

    def to_csv(self) -> str:
        """One row a case, floats in full precision so that reading gives the same numbers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "patient", "part", "fold", "reference", *(f"p:{c}" for c in self.classes)])
        for i in range(len(self)):
            label = self.classes[self.reference[i]] if self.reference[i] >= 0 else ""
            row = [self.case[i], self.patient[i], self.part, int(self.fold[i]), label]
            writer.writerow([*row, *(repr(float(v)) for v in self.probability[i])])
        return text.getvalue()

    @classmethod
    def from_csv(cls, path: str | Path, source: Source | None = None) -> Predictions:
        """Read what :meth:`to_csv` wrote."""
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise MetricError("no predictions", where=Path(path).name)
        classes = tuple(name[2:] for name in rows[0] if name.startswith("p:"))
        position = {name: i for i, name in enumerate(classes)} | {"": -1}
        return cls(
            case=np.array([r["case"] for r in rows]),
            patient=np.array([r["patient"] for r in rows]),
            reference=np.array([position[r["reference"]] for r in rows], dtype=np.int64),
            probability=np.array([[float(r[f"p:{c}"]) for c in classes] for r in rows], dtype=np.float64),
            classes=classes,
            fold=np.array([int(r["fold"]) for r in rows], dtype=np.int64),
            part=rows[0]["part"],
            source=source,
        )


def concatenate(parts: list[Predictions]) -> Predictions:
    """Pool predictions, e.g. the held-out parts of all folds."""
    first = parts[0]
    if any(p.classes != first.classes for p in parts):
        raise MetricError("predictions over different classes cannot be pooled")
    return replace(
        first,
        case=np.concatenate([p.case for p in parts]),
        patient=np.concatenate([p.patient for p in parts]),
        reference=np.concatenate([p.reference for p in parts]),
        probability=np.concatenate([p.probability for p in parts]),
        fold=np.concatenate([p.fold for p in parts]),
    )
