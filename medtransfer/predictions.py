"""Predictions: what a model said about cases, beside the reference standard. No torch here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError

Task = Literal["classification", "multilabel", "ordinal", "regression"]
BY_CLASS: tuple[Task, ...] = ("classification", "ordinal")  # one class a case; in the others one value a column


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
    """What a model says about n cases over C classes, labels or targets, and what the reference standard says.

    Parameters
    ----------
    case, patient : ndarray (n,) of str
        Pseudonyms; several cases may belong to one patient.
    reference : ndarray (n,) of int, or (n, C) of float
        Class index by the reference standard, -1 where unknown. In a multi-label task 0 or 1 of each label, in a
        regression the value of each target; NaN where unknown.
    probability : ndarray (n, C) of float
        Of each class, rows sum to one; in a two-class task column 1 is the positive class. Of each label in a
        multi-label task. In a regression the predicted values.
    classes : tuple of str
        Names of the classes, labels or targets in column order.
    fold : ndarray (n,) of int
        Which fold's model spoke; 0 throughout for a holdout split.
    part : str
        ``'val'``, ``'test'``, ``'external'`` ...
    source : Source or None
        The run behind the predictions, for the report.
    task : {'classification', 'multilabel', 'ordinal', 'regression'}

    Examples
    --------
    >>> p = Predictions(np.array(["a", "b"]), np.array(["x", "y"]), np.array([0, 1]),
    ...                 np.array([[0.9, 0.1], [0.2, 0.8]]), ("no", "yes"), np.zeros(2, int), "test")
    >>> p.positive
    array([0.1, 0.8])
    """

    case: NDArray[np.str_]
    patient: NDArray[np.str_]
    reference: NDArray[np.int64] | NDArray[np.float64]
    probability: NDArray[np.float64]
    classes: tuple[str, ...]
    fold: NDArray[np.int64]
    part: str
    source: Source | None = field(default=None, repr=False)
    task: Task = "classification"

    def __post_init__(self) -> None:
        n = len(self.case)
        sizes = {"patient": self.patient, "reference": self.reference, "fold": self.fold}
        wrong = [f"{name} has {len(value)}" for name, value in sizes.items() if len(value) != n]
        whole = (n,) if self.task in BY_CLASS else (n, len(self.classes))
        if wrong or self.probability.shape != (n, len(self.classes)) or self.reference.shape != whole:
            raise MetricError(
                f"predictions of {n} cases over {len(self.classes)} classes do not fit together",
                got=", ".join([*wrong, f"probability {self.probability.shape}, reference {self.reference.shape}"]),
            )
        if not np.isfinite(self.probability).all():
            raise MetricError("probabilities are not finite", got=f"{(~np.isfinite(self.probability)).sum()} values")

    def __len__(self) -> int:
        return len(self.case)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Cases with a reference, for one label or target at least, shape (n,)."""
        if self.task in BY_CLASS:
            return np.asarray(self.reference >= 0)
        return np.asarray(~np.isnan(self.reference).all(axis=1))

    @property
    def positive(self) -> NDArray[np.float64]:
        """Probability of the positive class of a two-class task, shape (n,)."""
        if len(self.classes) != 2:
            raise MetricError("a positive class exists only among two", got=f"{len(self.classes)} classes")
        return self.probability[:, 1]

    def label(self, name: str) -> Predictions:
        """One label of a multi-label task as a task of two classes, ``'no <label>'`` and the label."""
        if self.task != "multilabel" or name not in self.classes:
            raise MetricError(f"there is no label '{name}'", got=f"{self.task} of {', '.join(self.classes)}")
        k = self.classes.index(name)
        said, chance = self.reference[:, k], self.probability[:, k]
        return replace(
            self,
            reference=np.where(np.isnan(said), -1, said).astype(np.int64),
            probability=np.stack([1 - chance, chance], axis=1),
            classes=(f"no {name}", name),
            task="classification",
        )

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
        by_class = self.task in BY_CLASS
        task = [] if self.task == "classification" else ["task"]
        columns = ["reference"] if by_class else [f"r:{c}" for c in self.classes]
        writer.writerow(["case", "patient", "part", "fold", *task, *columns, *(f"p:{c}" for c in self.classes)])
        for i in range(len(self)):
            if by_class:
                said = [self.classes[int(self.reference[i])] if self.reference[i] >= 0 else ""]
            else:
                said = ["" if np.isnan(v) else repr(float(v)) for v in self.reference[i]]
            row = [self.case[i], self.patient[i], self.part, int(self.fold[i]), *([self.task] if task else []), *said]
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
        task: Task = next((t for t in get_args(Task) if t == rows[0].get("task")), "classification")
        reference: NDArray[np.int64] | NDArray[np.float64]
        if task in BY_CLASS:
            position = {name: i for i, name in enumerate(classes)} | {"": -1}
            reference = np.array([position[r["reference"]] for r in rows], dtype=np.int64)
        else:
            reference = np.array([[float(r[f"r:{c}"] or "nan") for c in classes] for r in rows], dtype=np.float64)
        return cls(
            case=np.array([r["case"] for r in rows]),
            patient=np.array([r["patient"] for r in rows]),
            reference=reference,
            probability=np.array([[float(r[f"p:{c}"]) for c in classes] for r in rows], dtype=np.float64),
            classes=classes,
            fold=np.array([int(r["fold"]) for r in rows], dtype=np.int64),
            part=rows[0]["part"],
            source=source,
            task=task,
        )


def concatenate(parts: list[Predictions]) -> Predictions:
    """Pool predictions, e.g. the held-out parts of all folds."""
    first = parts[0]
    if any(p.classes != first.classes or p.task != first.task for p in parts):
        raise MetricError("predictions over different classes cannot be pooled")
    return replace(
        first,
        case=np.concatenate([p.case for p in parts]),
        patient=np.concatenate([p.patient for p in parts]),
        reference=np.concatenate([p.reference for p in parts]),
        probability=np.concatenate([p.probability for p in parts]),
        fold=np.concatenate([p.fold for p in parts]),
    )
