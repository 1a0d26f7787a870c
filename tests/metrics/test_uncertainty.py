"""Deferral and conformal prediction of every task, put together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medtransfer.errors import MetricError
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.names import LABELS
from medtransfer.metrics.threshold import Threshold
from medtransfer.metrics.uncertainty import Uncertainty, uncertainty
from medtransfer.predictions import Predictions


def two(part: str, n: int = 200, seed: int = 0) -> Predictions:
    rng = np.random.default_rng([seed, len(part)])
    y = (rng.random(n) < 0.4).astype(np.int64)
    p = np.clip(0.3 + 0.3 * y + rng.normal(size=n) * 0.2, 0.01, 0.99)
    ids = np.array([f"{part}{i}" for i in range(n)])
    return Predictions(ids, ids, y, np.c_[1 - p, p], ("no", "yes"), np.arange(n) % 2, part)


def judged(test: Predictions, val: Predictions | None = None, threshold: Threshold | None = None) -> Uncertainty:
    return uncertainty(
        test, ClusterBootstrap.draw(test.patient, resamples=100), threshold=threshold, val=val, coverage=0.8
    )


def test_two_classes_by_the_threshold_of_each_fold() -> None:
    test, cut = two("test"), Threshold("youden", {0: 0.4, 1: 0.6})
    found = judged(test, two("val"), cut)
    called = test.positive >= np.where(test.fold == 0, 0.4, 0.6)
    assert found.deferral[0][1]["error"].value == pytest.approx((called != test.reference).mean())
    sensitivity = called[test.reference == 1].mean()
    assert found.deferral[0][1]["sensitivity"].value == pytest.approx(sensitivity)
    assert set(found.conformal[""].quantile) == {0, 1}
    held = found.conformal[""].sets(test)[np.arange(200), test.reference]
    assert found.rows[""]["set_coverage"].value == pytest.approx(held.mean())
    assert found.rows["yes"]["set_coverage"].value == pytest.approx(held[test.reference == 1].mean())
    assert 0.7 < held.mean() < 0.9
    assert {name for row in found.rows.values() for name in row} | set(found.estimates) <= set(LABELS)


def test_json_names_no_case() -> None:
    text = json.dumps(judged(two("test"), two("val")).to_json(), allow_nan=False)
    assert "val1" not in text
    assert "test1" not in text


def test_labels_and_numbers() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for part in ("val", "test"):
        ids, truth = np.array([f"{part}{i}" for i in range(2000)]), rng.normal(size=(2000, 2))
        truth[::7, 0] = np.nan
        said = np.nan_to_num(truth) + rng.normal(size=(2000, 2)) * [1, 3]
        parts.append(Predictions(ids, ids, truth, said, ("a", "b"), np.zeros(2000, int), part, task="regression"))
    found = judged(parts[1], parts[0])
    assert not found.estimates
    assert not found.deferral
    for name, width in (("a", 1), ("b", 3)):
        assert found.rows[name]["interval_coverage"].value == pytest.approx(0.8, abs=0.05)
        assert found.rows[name]["interval_width"].value == pytest.approx(2 * 1.2816 * width, rel=0.1)  # ± z of 90 %
    for i, part in enumerate(parts):
        risk = 1 / (1 + np.exp(-part.probability))
        yes = np.where(np.isnan(part.reference), np.nan, part.reference > 0)
        yes[:, 1] = yes[:, 1] if i == 0 else np.nan
        parts[i] = Predictions(part.case, part.patient, yes, risk, ("a", "b"), part.fold, part.part, task="multilabel")
    found = judged(parts[1], parts[0])
    assert set(found.rows) == {"a"}
    assert found.rows["a"]["set_coverage"].value == pytest.approx(0.8, abs=0.05)
    assert judged(parts[1]).rows == {}


def test_refuses_validation_patients_in_the_test_part() -> None:
    with pytest.raises(MetricError, match="conformal predictor was fitted on"):
        judged(two("test"), two("test"))
