"""AUROC, average precision, curves and tables against scikit-learn and hand calculations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from medtransfer.metrics import classification as c


def data(seed: int, n: int = 80, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    y[:2] = [True, False]
    s = rng.normal(size=n) + y
    return y, np.round(s, 0 if ties else 8)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_scikit_learn_weighted_or_not(seed: int, ties: bool) -> None:
    y, s = data(seed, ties=ties)
    w = np.random.default_rng(seed + 100).integers(0, 4, size=(5, len(y))).astype(float)
    assert c.auroc(y, s) == pytest.approx(oracle.roc_auc_score(y, s), abs=1e-12)
    assert c.average_precision(y, s) == pytest.approx(oracle.average_precision_score(y, s), abs=1e-12)
    for row, area, precision in zip(w, c.auroc(y, s, w), c.average_precision(y, s, w), strict=True):
        assert area == pytest.approx(oracle.roc_auc_score(y, s, sample_weight=row), abs=1e-12)
        assert precision == pytest.approx(oracle.average_precision_score(y, s, sample_weight=row), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_pairs(cases: list[tuple[bool, int]]) -> None:
    y, s = np.array([a for a, _ in cases]), np.array([b for _, b in cases], dtype=float)
    pairs = [(a > b) + 0.5 * (a == b) for a in s[y] for b in s[~y]]
    area = float(c.auroc(y, s))
    assert np.isnan(area) if not pairs else area == pytest.approx(np.mean(pairs), abs=1e-12)


def test_undefined_is_nan_and_never_a_half() -> None:
    assert np.isnan(c.auroc([1, 1], [0.2, 0.3]))
    assert np.isnan(c.auroc([0, 0], [0.2, 0.3]))
    assert np.isnan(c.average_precision([0, 0], [0.2, 0.3]))
    rates = c.rates(*(np.array(float(v)) for v in (0, 0, 0, 5)))
    assert np.isnan(rates["sensitivity"])
    assert np.isnan(rates["ppv"])
    assert np.isnan(rates["mcc"])


@pytest.mark.parametrize("seed", range(5))
def test_curves_pass_through_scikit_learns_points(seed: int) -> None:
    y, s = data(seed, ties=seed % 2 == 0)
    fpr, tpr, _ = oracle.roc_curve(y, s, drop_intermediate=False)
    highest = {f: max(t for g, t in zip(fpr, tpr, strict=True) if g == f) for f in fpr}
    grid = np.array(sorted(highest))
    np.testing.assert_allclose(c.roc_curve(y, s, grid), [highest[f] for f in grid], atol=1e-12)
    precision, recall, _ = oracle.precision_recall_curve(y, s)
    for r in np.unique(recall[recall > 0]):
        best = precision[recall == r].max()  # the first threshold that reaches a recall has the fewest false alarms
        assert c.precision_recall_curve(y, s, np.array([r]))[0] == pytest.approx(best, abs=1e-12)


def test_table_by_hand() -> None:
    # 40 true positives, 10 false positives, 5 false negatives, 45 true negatives
    r = {k: float(v) for k, v in c.rates(*(np.array(float(v)) for v in (40, 10, 5, 45))).items()}
    assert r["sensitivity"] == pytest.approx(40 / 45)
    assert r["specificity"] == pytest.approx(45 / 55)
    assert r["ppv"] == 0.8
    assert r["npv"] == 0.9
    assert r["lr_positive"] == pytest.approx((40 / 45) / (10 / 55))
    assert r["lr_negative"] == pytest.approx((5 / 45) / (45 / 55))
    assert r["f1"] == pytest.approx(80 / 95)
    y = np.repeat([1, 0, 1, 0], [40, 10, 5, 45])
    called = np.repeat([1, 1, 0, 0], [40, 10, 5, 45])
    assert r["mcc"] == pytest.approx(oracle.matthews_corrcoef(y, called), abs=1e-12)
    assert r["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(y, called), abs=1e-12)


def test_confusion_and_matthews_of_several_classes() -> None:
    rng = np.random.default_rng(3)
    y, called = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    called[:60] = y[:60]
    table = c.confusion(y, called, 4)
    np.testing.assert_array_equal(table, oracle.confusion_matrix(y, called))
    assert float(c.matthews(table)) == pytest.approx(oracle.matthews_corrcoef(y, called), abs=1e-12)


def test_predictive_values_by_counting() -> None:
    # of 1000 with prevalence 2 %: 20 diseased, 18 found at 90 %; 980 healthy, 98 false alarms at 90 %
    ppv, npv = c.predictive_values(0.9, 0.9, 0.02)
    assert ppv == pytest.approx(18 / 116)
    assert npv == pytest.approx(882 / 884)
