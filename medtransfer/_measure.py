"""What is measured of predictions, by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError
from medtransfer.metrics import classification, panel
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate
from medtransfer.metrics.multilabel import multilabel
from medtransfer.metrics.ordinal import ordinal
from medtransfer.metrics.panel import Panel
from medtransfer.metrics.regression import regression
from medtransfer.metrics.threshold import Threshold, fixed, per_fold, refuse_overlap
from medtransfer.predictions import Predictions

Points = Mapping[str, Threshold]


@dataclass(frozen=True)
class Measured:
    """Estimates of all cases, rows of estimates by class, label, split or target, counts and calls.

    Parameters
    ----------
    found : Panel
    rows : dict of str to dict of str to Estimate
    table : ndarray
        Counts ``[C, C]`` by reference and call; ``[labels, 2, 2]`` of a multi-label task; empty of a regression.
    called : ndarray
        Class called ``[n]``, labels called ``[n, labels]`` as bool, or the predicted values.
    second : Panel or None
        After recalibration.
    """

    found: Panel
    rows: dict[str, dict[str, Estimate]]
    table: NDArray[np.int64]
    called: NDArray[np.generic]
    second: Panel | None = None
    points: dict[str, Threshold] = field(default_factory=dict)


def measure(
    test: Predictions, resamples: ClusterBootstrap, point: Threshold | None, points: Points, after: Predictions | None
) -> Measured:
    """Measure predictions whose references are known."""
    if test.task == "regression":
        found, each = regression(test.reference, test.probability, resamples)
        rows = dict(zip(test.classes, each, strict=True)) if each else {}
        return Measured(found, rows, np.zeros((0, 0), np.int64), test.probability)
    if test.task == "multilabel":
        return _labels(test, resamples, points)
    reference, count = test.reference.astype(np.int64), len(test.classes)
    if test.task == "ordinal":
        called = test.probability.argmax(axis=1)
        found, each = ordinal(reference, test.probability, resamples)
        rows = {f"{name} or above": row for name, row in zip(test.classes[1:], each, strict=True)}
        return Measured(found, rows, classification.confusion(reference, called, count).astype(np.int64), called)
    if count == 2 and point is not None:
        called = point.called(test).astype(np.int64)
        calibrated = after.positive if after else None
        found, second = panel.binary(reference == 1, test.positive, called == 1, test.fold, resamples, calibrated)
        return Measured(found, {}, classification.confusion(reference, called, 2).astype(np.int64), called, second)
    called = test.probability.argmax(axis=1)
    found, each = panel.multiclass(reference, test.probability, resamples)
    second = panel.measure(panel.many_classes(reference, after.probability), resamples) if after else None
    table = classification.confusion(reference, called, count).astype(np.int64)
    return Measured(found, dict(zip(test.classes, each, strict=True)), table, called, second)


def _labels(test: Predictions, resamples: ClusterBootstrap, points: Points) -> Measured:
    if unknown := set(points) - set(test.classes):
        raise MetricError(f"there is no label '{sorted(unknown)[0]}'", where="threshold", got=", ".join(test.classes))
    chosen = {
        name: points.get(name) or Threshold("default 0.5", fixed(0.5, test.fold).by_fold) for name in test.classes
    }
    for name, point in chosen.items():
        refuse_overlap(f"threshold of '{name}'", point.cases, point.patients, test)
    limits = np.stack([per_fold(chosen[name].by_fold, test, "threshold") for name in test.classes], axis=1)
    called = test.probability >= limits
    found, each = multilabel(test.reference, test.probability, resamples, limits)
    table = np.zeros((len(test.classes), 2, 2), np.int64)
    for k in range(len(test.classes)):
        known = ~np.isnan(test.reference[:, k])
        np.add.at(table[k], (test.reference[known, k].astype(np.int64), called[known, k].astype(np.int64)), 1)
    rows = dict(zip(test.classes, each, strict=True))
    return Measured(found, rows, table, called, points=chosen)
