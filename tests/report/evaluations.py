"""Evaluations of every task, for the report's tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medtransfer.evaluate import Evaluation, evaluate
from medtransfer.predictions import Predictions, Task


def predictions(task: Task, classes: tuple[str, ...], n: int = 200, seed: int = 0) -> Predictions:
    """Scores that follow the reference, two cases a patient."""
    rng = np.random.default_rng(seed)
    size = len(classes)
    ids = np.array([f"case-{i:05d}" for i in range(n)])
    patient = np.array([f"patient-{i // 2:05d}" for i in range(n)])
    if task == "regression":
        reference = rng.normal(40, 8, (n, size))
        said = 0.85 * reference + 5 + rng.normal(0, 3, (n, size))
        reference[::17, -1] = np.nan
    elif task == "multilabel":
        reference = (rng.random((n, size)) < np.linspace(0.4, 0.1, size)).astype(float)
        said = 1 / (1 + np.exp(-(2.5 * reference - 1.5 + rng.normal(size=(n, size)))))
        reference[::11, 0] = np.nan
    else:
        reference = rng.integers(0, size, n)
        place = reference + rng.normal(0, 0.8, n) if task == "ordinal" else reference
        scores = -((np.arange(size) - place[:, None]) ** 2) + (rng.normal(size=(n, size)) if task != "ordinal" else 0)
        said = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return Predictions(ids, patient, reference, said, classes, np.zeros(n, int), "test", task=task)


def result(task: Task, classes: tuple[str, ...], record: dict[str, object] | None = None, n: int = 200) -> Evaluation:
    """An evaluation of a task as the statistics give it."""
    fixed = 0.5 if task == "classification" and len(classes) == 2 else None
    return replace(evaluate(predictions(task, classes, n), threshold=fixed, bootstrap=100), record=record or {})


def between(value: float, low: float, high: float) -> dict[str, float]:
    """An estimate in its JSON form."""
    return {"value": value, "low": low, "high": high}


SETS = {"set_coverage": between(0.91, 0.86, 0.95), "set_size": between(1.2, 1.1, 1.3)}
DEFERRAL = [
    {"coverage": 1.0, "error": between(0.2, 0.1, 0.3), "sensitivity": between(0.8, 0.7, 0.9)},
    {"coverage": 0.8, "error": between(0.1, 0.0, 0.2), "sensitivity": between(0.9, 0.8, 1.0)},
]
COVERAGE = {
    "x": [0.2, 0.4, 0.6, 0.8, 1.0],
    "y": [0.02, 0.04, 0.08, 0.11, 0.16],
    "low": [0.0, 0.01, 0.05, 0.08, 0.12],
    "high": [0.06, 0.08, 0.12, 0.15, 0.2],
}
CURVE = {
    "cases": [50, 100, 200, 400],
    "value": [0.78, 0.84, 0.88, 0.9],
    "low": [0.7, 0.8, 0.84, 0.85],
    "high": [0.85, 0.88, 0.92, 0.95],
}
STRUCTURE = {"name": "anterior", "cases": 5, "missed": 1, "false_positive": 0, "dice": between(0.7, 0.5, 0.9)}
EXTRAS: dict[str, object] = {
    "uncertainty": {
        "risk_coverage": COVERAGE,
        "deferral": DEFERRAL,
        "coverage": 0.9,
        "rows": {"": SETS, "yes": {"set_coverage": between(0.89, 0.8, 0.95)}},
    },
    "learning_curve": {
        "measure": "auroc",
        "points": [
            {"cases": 50, "value": between(0.78, 0.7, 0.85)},
            {"cases": 100, "value": between(0.84, 0.79, 0.88)},
        ],
        "curve": CURVE,
        "held_back": {"cases": 200, "value": between(0.87, 0.84, 0.9)},
        "predicted": {"cases": 400, "value": between(0.9, 0.85, 0.95)},
        "target": 0.9,
        "needed": 400,
    },
    "segmentation": {
        "tolerance_mm": 2.0,
        "structures": [STRUCTURE | {"nsd": 0.8, "hd95_mm": 4.2, "volume_bias_ml": -0.3}],
        "cases": [
            {"case": f"c{i}", "structure": "anterior", "dice": d, "nsd": d, "hd95_mm": 9 * (1 - d)}
            | {"reference_ml": 3.0 + i, "predicted_ml": 2.9 + i}
            for i, d in enumerate([0.9, 0.85, 0.88, 0.0, 0.87])
        ],
    },
}
