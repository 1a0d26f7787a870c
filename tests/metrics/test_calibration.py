"""Calibration and decision curves against scikit-learn, scipy's optimiser and worked examples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn import metrics as oracle
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from medtransfer.metrics import calibration as c
from medtransfer.metrics import decision
from medtransfer.metrics.recalibration import Calibrator, calibrate
from medtransfer.predictions import Predictions


def data(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-0.5, 1.2, n)))
    return rng.random(n) < p**1.5, p


@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_scikit_learn(seed: int) -> None:
    y, p = data(seed)
    assert float(c.brier(y, p)) == pytest.approx(oracle.brier_score_loss(y, p), abs=1e-12)
    assert float(c.log_loss(y, p)) == pytest.approx(oracle.log_loss(y, p), abs=1e-12)
    w = np.random.default_rng(seed).integers(0, 3, (3, len(y))).astype(float)
    for row, brier, loss in zip(w, c.brier(y, p, w), c.log_loss(y, p, w), strict=True):
        assert brier == pytest.approx(oracle.brier_score_loss(y, p, sample_weight=row), abs=1e-12)
        assert loss == pytest.approx(oracle.log_loss(y, p, sample_weight=row), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_slope_is_that_of_an_unpenalised_logistic_regression(seed: int) -> None:
    y, p = data(seed)
    x = np.log(p / (1 - p))
    w = np.random.default_rng(seed + 9).integers(0, 3, len(y)).astype(float)
    fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x[:, None], y, sample_weight=w)
    intercept, slope = c.recalibration_line(y, p, w[None])[0]
    assert slope == pytest.approx(fit.coef_[0, 0], abs=1e-5)
    assert intercept == pytest.approx(fit.intercept_[0], abs=1e-5)


def test_intercept_in_the_large_against_an_optimiser() -> None:
    y, p = data(7)
    x = np.log(p / (1 - p))
    best = minimize(lambda a: float((np.logaddexp(0, x + a[0]) - y * (x + a[0])).sum()), [0.0], tol=1e-12).x[0]
    assert float(c.intercept_in_the_large(y, p)) == pytest.approx(best, abs=1e-6)


def test_no_line_where_risks_separate_the_outcomes() -> None:
    assert np.isnan(c.recalibration_line([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9])).all()
    assert np.isnan(c.recalibration_line([1, 1, 0, 0], [0.1, 0.2, 0.7, 0.9])).all()
    assert np.isnan(c.recalibration_line([1, 1, 1], [0.1, 0.2, 0.7])).all()
    assert np.isnan(c.recalibration_line([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5])).all()


def test_observed_over_expected_and_brier_by_hand() -> None:
    assert float(c.observed_expected([1, 0, 0, 1], [0.5, 0.25, 0.25, 0.5])) == pytest.approx(2 / 1.5)
    assert float(c.null_brier([0, 1, 2, 2], 3)) == pytest.approx(1 - (1 / 16 + 1 / 16 + 1 / 4))
    three = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    assert float(c.brier([0, 2], three)) == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.64 + 0.81) / 2)


def test_smooth_curve_finds_a_known_curve() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 20_000)
    grid = np.array([0.2, 0.5, 0.8])
    found = c.smooth_curve(rng.random(20_000) < p**2, p, grid)
    np.testing.assert_allclose(found, grid**2, atol=0.03)


def test_net_benefit_of_a_worked_example() -> None:
    # 200 cases, 60 diseased; at a threshold of 20 %: 50 true and 40 false positives
    y = np.repeat([1, 1, 0, 0], [50, 10, 40, 100])
    p = np.repeat([0.9, 0.1, 0.9, 0.1], [50, 10, 40, 100])
    assert decision.net_benefit(y, p, [0.2])[0] == pytest.approx(50 / 200 - 40 / 200 * 0.25)
    everyone = decision.treat_all(y, [0.2])
    assert everyone[0] == pytest.approx(0.3 - 0.7 * 0.25)
    # true negatives 100 of 200, less the 10 missed weighed by 4: 0.5 - 0.05 * 4 = 30 per 100
    assert decision.interventions_avoided(np.array([0.2]), everyone, [0.2])[0] == pytest.approx(30.0)


def _validation(n: int, curve: object, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    p, ids = rng.uniform(0.01, 0.99, n), np.array([f"{seed}-{i}" for i in range(n)])
    y = (rng.random(n) < curve(p)).astype(np.int64)
    return Predictions(ids, ids, y, np.c_[1 - p, p], ("no", "yes"), np.zeros(n, dtype=np.int64), "val")


def test_isotonic_is_scikit_learns_and_mends_what_a_line_cannot() -> None:
    val, new = (_validation(3000, lambda p: np.where(p < 0.5, 0.2, 0.7), seed) for seed in (0, 1))
    isotonic, platt = calibrate(val, "isotonic"), calibrate(val, "platt")
    again = IsotonicRegression(y_min=1 / 3002, y_max=1 - 1 / 3002, out_of_bounds="clip")
    expected = again.fit(val.positive, val.reference).predict(new.positive)
    np.testing.assert_allclose(isotonic.apply(new).positive, expected, atol=1e-12)
    y = new.reference
    assert c.brier(y, isotonic.apply(new).positive) < c.brier(y, platt.apply(new).positive) - 0.005
    assert isotonic.apply(new).positive.min() > 0
    for fitted in (isotonic, platt):
        assert Calibrator.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


def test_isotonic_is_chosen_from_a_thousand_patients() -> None:
    assert calibrate(_validation(999, lambda p: p)).method == "platt"
    assert calibrate(_validation(1000, lambda p: p)).method == "isotonic"
    few = _validation(2000, lambda p: p)
    repeated = replace(few, patient=np.array([f"p{i // 4}" for i in range(2000)]))
    assert calibrate(repeated).method == "platt"


@pytest.mark.parametrize("seed", range(3))
def test_calibration_agrees_with_statsmodels(seed: int) -> None:
    api = pytest.importorskip("statsmodels.api", reason="the oracle statsmodels is not installed")
    y, p = data(seed)
    x = np.log(p / (1 - p))
    family = api.families.Binomial()
    line = api.GLM(y.astype(float), api.add_constant(x), family=family).fit(tol=1e-12).params
    np.testing.assert_allclose(c.recalibration_line(y, p), line, atol=1e-7)
    shift = api.GLM(y.astype(float), np.ones((len(y), 1)), family=family, offset=x).fit(tol=1e-12).params
    assert float(c.intercept_in_the_large(y, p)) == pytest.approx(float(shift[0]), abs=1e-7)
