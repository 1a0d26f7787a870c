"""Thresholds and calibrators: right by exhaustive search, and blind to the test part."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from medtransfer.errors import ConfigError, MetricError
from medtransfer.metrics.recalibration import calibrate
from medtransfer.metrics.threshold import (
    Threshold,
    least_cost,
    sensitivity_at_least,
    specificity_at_least,
    threshold_by_rule,
    youden,
)
from medtransfer.predictions import Predictions


def predictions(seed: int, n: int = 120, folds: int = 1, ties: bool = False, part: str = "val") -> Predictions:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.35
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * y - 1)))
    p = np.round(p, 1) if ties else p
    ids = np.array([f"case-{part}{i}" for i in range(n)])
    fold = np.arange(n) % folds
    return Predictions(ids, ids, y.astype(np.int64), np.c_[1 - p, p], ("no", "yes"), fold, part)


def at(t: Threshold, p: Predictions) -> tuple[float, float]:
    called, y = t.called(p), p.reference == 1
    return float(called[y].mean()), float((~called[~y]).mean())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_rules_against_exhaustive_search(seed: int, ties: bool) -> None:
    val = predictions(seed, ties=ties)
    fpr, tpr, _ = roc_curve(val.reference, val.positive, drop_intermediate=False)
    se, sp = at(youden(val), val)
    assert se + sp - 1 == pytest.approx((tpr - fpr).max(), abs=1e-12)
    se, sp = at(sensitivity_at_least(val, 0.9), val)
    assert se >= 0.9
    assert sp == pytest.approx((1 - fpr)[tpr >= 0.9].max(), abs=1e-12)
    se, sp = at(specificity_at_least(val, 0.9), val)
    assert sp >= 0.9
    assert se == pytest.approx(tpr[1 - fpr >= 0.9].max(), abs=1e-12)
    se, sp = at(least_cost(val, 5), val)
    share = val.reference.mean()
    cost = 5 * (1 - tpr) * share + fpr * (1 - share)
    assert 5 * (1 - se) * share + (1 - sp) * (1 - share) == pytest.approx(cost.min(), abs=1e-12)


def test_one_threshold_a_fold_from_that_fold_alone() -> None:
    val = predictions(1, folds=3)
    found = youden(val)
    for k in range(3):
        assert found.by_fold[k] == youden(val.take(val.fold == k)).by_fold[k]
    assert Threshold.from_json(found.to_json()) == found
    assert len(repr(found)) < 120


def test_rules_by_name() -> None:
    val = predictions(2)
    assert threshold_by_rule("youden", val) == youden(val)
    assert threshold_by_rule("sensitivity >= 0.9", val) == sensitivity_at_least(val, 0.9)
    assert threshold_by_rule("specificity>=.8", val) == specificity_at_least(val, 0.8)
    assert threshold_by_rule("0.3", val).by_fold == {0: 0.3}
    for wrong in ("yuden", "sensitivity>=90", "1.5", "0.9.1", "", "sensitivity>=0.9.1"):
        with pytest.raises(ConfigError):
            threshold_by_rule(wrong, val)


def test_a_fold_with_one_class_is_refused() -> None:
    val = predictions(3)
    with pytest.raises(MetricError, match="positive and negative"):
        youden(val.take(val.reference == 0))
    with pytest.raises(MetricError):
        youden(val.take(np.zeros(len(val), dtype=bool)))
    with pytest.raises(MetricError, match="fold 1"):
        youden(val).called(predictions(3, folds=2))


def test_calibrators_lower_the_loss_and_keep_the_order() -> None:
    val = predictions(4, n=2000)
    logits = 3 * np.log(val.positive / (1 - val.positive)) + 1
    p = 1 / (1 + np.exp(-logits))
    raw = Predictions(val.case, val.patient, val.reference, np.c_[1 - p, p], val.classes, val.fold, "val")
    for method in ("platt", "temperature"):
        after = calibrate(raw, method).apply(raw)
        y = raw.reference == 1
        loss = [-np.where(y, np.log(q), np.log1p(-q)).mean() for q in (raw.positive, after.positive)]
        assert loss[1] < loss[0]
        assert (np.argsort(after.positive) == np.argsort(raw.positive)).all()
        np.testing.assert_allclose(after.probability.sum(axis=1), 1)


def test_platt_stays_finite_where_scores_separate() -> None:
    p = np.array([0.1] * 10 + [0.9] * 10)
    ids = np.arange(20).astype(str)
    val = Predictions(ids, ids, (p > 0.5).astype(np.int64), np.c_[1 - p, p], ("no", "yes"), np.zeros(20, int), "val")
    after = calibrate(val).apply(val).positive
    # Platt's targets of 10 and 10: 11/12 and 1/12
    assert after.max() == pytest.approx(11 / 12, abs=1e-4)
    assert after.min() == pytest.approx(1 / 12, abs=1e-4)
