"""Statistics of predicted numbers against scikit-learn, SciPy and the worked examples of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.regression import agreement, regression

# Bland & Altman 1986 (Lancet i: 307), table 1: first measurement of peak flow in l/min, Wright and mini meter
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def one(reference: object, predicted: object, times: object = None) -> dict[str, float]:
    y = np.asarray(reference, dtype=float)
    w = np.ones((1, len(y))) if times is None else np.asarray(times, dtype=float)[None]
    return {name: float(v[0]) for name, v in agreement(y, predicted)(w).items()}


def test_peak_flow_of_bland_and_altman() -> None:
    found = one(MINI, WRIGHT)  # the paper subtracts the mini meter from the Wright meter
    assert round(found["bias"], 1) == -2.1
    sd = (found["loa_upper"] - found["bias"]) / 1.96
    assert round(sd, 1) == 38.8
    assert round(found["pearson"], 2) == 0.94


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_scikit_learn_and_scipy_on_copied_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(300, 5, 70), seed % 3)  # far from 0, with ties
    p = np.round(0.7 * y + rng.normal(90, 4, 70), seed % 3)
    times = rng.integers(0, 4, 70)
    found = one(y, p, times)
    y, p = np.repeat(y, times), np.repeat(p, times)
    d = p - y
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(y, p), rel=1e-12)
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(y, p), rel=1e-12)
    assert found["median_absolute_error"] == pytest.approx(oracle.median_absolute_error(y, p), rel=1e-12)
    assert found["r2"] == pytest.approx(oracle.r2_score(y, p), rel=1e-10)
    assert found["pearson"] == pytest.approx(stats.pearsonr(y, p)[0], rel=1e-10)
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, p)[0], rel=1e-10)
    line = stats.linregress(p, y)
    assert found["linear_slope"] == pytest.approx(line.slope, rel=1e-9)
    assert found["linear_intercept"] == pytest.approx(line.intercept, rel=1e-8)
    assert found["bias"] == pytest.approx(d.mean(), rel=1e-10)
    assert found["loa_lower"] == pytest.approx(d.mean() - 1.96 * d.std(ddof=1), rel=1e-10)
    cov = np.cov(y, p, ddof=0)
    ccc = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (y.mean() - p.mean()) ** 2)
    assert found["ccc"] == pytest.approx(ccc, rel=1e-10)


def test_concordance_by_hand() -> None:
    # variances 2/3 and 8/3, covariance 4/3, means 1 apart: (8/3) / (10/3 + 1) = 8/13
    assert one([1, 2, 3], [1, 3, 5])["ccc"] == pytest.approx(8 / 13, abs=1e-12)
    assert one([1, 2, 3], [3, 2, 1])["ccc"] == pytest.approx(-1)
    # concordance = correlation × bias correction of Lin 1989: C_b = 2 / (v + 1/v + u²)
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    p = 0.5 * y + rng.normal(size=50) + 0.3
    v, u = y.std() / p.std(), (y.mean() - p.mean()) / np.sqrt(y.std() * p.std())
    assert one(y, p)["ccc"] == pytest.approx(stats.pearsonr(y, p)[0] * 2 / (v + 1 / v + u**2), rel=1e-10)


def test_what_is_not_defined_has_no_number() -> None:
    same = one([5.1, 5.1, 5.1], [1.0, 2.0, 3.0])
    assert np.isnan([same["r2"], same["pearson"], same["spearman"]]).all()
    assert same["linear_slope"] == 0
    flat = one([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])
    assert np.isnan([flat["linear_slope"], flat["pearson"], flat["spearman"]]).all()
    assert flat["r2"] < 0
    single = one([1.0], [2.0])
    assert single["mae"] == 1
    assert np.isnan([single["loa_lower"], single["r2"]]).all()
    assert np.isnan(list(one([], []).values())).all()


def test_unknown_references_are_left_out_target_by_target() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=(60, 2))
    p = y + rng.normal(size=(60, 2))
    y[::5, 0] = np.nan
    found, rows = regression(y, p, ClusterBootstrap.draw(np.arange(60) // 2, resamples=300))
    keep = np.isfinite(y[:, 0])
    assert rows[0]["mae"].value == pytest.approx(np.abs(y[keep, 0] - p[keep, 0]).mean())
    assert found.estimates["mae"].value == pytest.approx((rows[0]["mae"].value + rows[1]["mae"].value) / 2)
    assert set(rows[0]) == set(found.estimates)
    y[:, 1] = np.nan
    found, rows = regression(y, p, ClusterBootstrap.draw(np.arange(60) // 2, resamples=100))
    assert rows[1]["mae"].value is None
    assert found.estimates["mae"].value == pytest.approx(rows[0]["mae"].value)
    assert "mean over 1 targets" in found.estimates["mae"].note


def test_interval_of_the_bias_is_that_of_patients() -> None:
    rng = np.random.default_rng(1)
    of_patient = rng.normal(size=80)
    d = np.repeat(of_patient, 4) + rng.normal(size=320) * 0.1
    found, rows = regression(
        np.zeros((320, 1)), d[:, None], ClusterBootstrap.draw(np.repeat(np.arange(80), 4), resamples=2000)
    )
    bias = found.estimates["bias"]
    expected = 1.96 * of_patient.std(ddof=1) / np.sqrt(80)
    assert rows == []
    assert (bias.high - bias.low) / 2 == pytest.approx(expected, rel=0.12)  # of images it would be half as wide
