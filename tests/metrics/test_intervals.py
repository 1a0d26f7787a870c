"""Intervals against published numbers, scipy, an explicit bootstrap and a simulation of their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medtransfer.metrics.classification import auroc
from medtransfer.metrics.intervals import (
    ClusterBootstrap,
    Estimate,
    boundary_auroc,
    delong,
    interval,
    proportion,
    wilson,
)
from medtransfer.metrics.panel import measure
from medtransfer.metrics.regression import agreement


@pytest.mark.parametrize(("k", "n"), [(0, 10), (8, 10), (10, 10), (81, 263), (15, 148)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_newcombes_paper() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_repeated_cases_of_a_patient_widen_the_interval_to_that_of_patients() -> None:
    one = proportion([True] * 8 + [False] * 2, np.arange(10))
    copied = proportion(np.repeat([True] * 8 + [False] * 2, 4), np.repeat(np.arange(10), 4))
    assert copied.value == one.value
    assert copied.low == pytest.approx(one.low, abs=0.03)  # n - 1 for n in the variance is all that differs
    naive = wilson(32, 40)
    assert copied.high - copied.low > 1.5 * (naive[1] - naive[0])
    assert proportion([True] * 40, np.repeat(np.arange(10), 4)).low == pytest.approx(wilson(10, 10)[0])
    assert proportion([], []).value is None


def test_delong_variance_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(60) < 0.4
    s = np.round(rng.normal(size=60) + y, 1)
    win = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
    se = np.sqrt(win.mean(1).var(ddof=1) / y.sum() + win.mean(0).var(ddof=1) / (~y).sum())
    found = delong(y, s)
    assert found.value == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert found.low == pytest.approx(found.value - stats.norm.ppf(0.975) * se, abs=1e-12)


def test_bootstrap_weights_are_copies_of_rows() -> None:
    rng = np.random.default_rng(1)
    patient = rng.integers(0, 30, 90)
    y = rng.random(90) < 0.5
    s = rng.normal(size=90) + y
    b = ClusterBootstrap.draw(patient, resamples=50, seed=3)
    found = b.apply(lambda w: {"a": auroc(y, s, w)})["a"]
    for counts, area in zip(b.counts, found, strict=True):
        rows = np.concatenate([np.flatnonzero(b.patient == k) for k, times in enumerate(counts) for _ in range(times)])
        assert area == pytest.approx(roc_auc_score(y[rows], s[rows]), abs=1e-12)


def test_strata_keep_their_size_and_names_do_not_matter() -> None:
    stratum = np.array([0] * 6 + [1] * 4)
    b = ClusterBootstrap.draw(np.arange(10), resamples=40, seed=0, stratum=stratum)
    assert (b.counts[:, :6].sum(axis=1) == 6).all()
    names = np.array(list("qwertzuiop"))
    np.testing.assert_array_equal(ClusterBootstrap.draw(names, resamples=40, seed=0, stratum=stratum).counts, b.counts)
    assert not np.array_equal(ClusterBootstrap.draw(names, resamples=40, seed=1, stratum=stratum).counts, b.counts)


def test_bootstrap_agrees_with_delong_where_every_patient_has_one_case() -> None:
    rng = np.random.default_rng(5)
    y = rng.random(400) < 0.4
    s = rng.normal(size=400) + 1.2 * y
    draws = ClusterBootstrap.draw(np.arange(400), resamples=2000, seed=0).apply(lambda w: {"a": auroc(y, s, w)})["a"]
    found, expected = interval(float(auroc(y, s)), draws, scale="log odds", units=int(y.sum())), delong(y, s)
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_undefined_has_no_number() -> None:
    assert interval(float("nan"), np.zeros(10), why="no case").to_json()["value"] is None
    rare = interval(0.5, np.array([np.nan] * 10 + [0.5] * 90))
    assert rare.value == 0.5
    assert rare.low is None
    assert "10 of 100" in rare.note
    assert str(Estimate(None, note="no case")) == "not defined (no case)"


def test_boundary_interval_solves_its_equation() -> None:
    low, high = boundary_auroc(1.0, 20, 20)
    z = stats.norm.ppf(0.975)
    spread = 1 + 19 * ((1 - low) / (2 - low) + low / (1 + low))
    assert (1 - low) ** 2 == pytest.approx(z**2 * low * (1 - low) * spread / 400, rel=1e-9)
    assert high == 1.0
    assert boundary_auroc(0.0, 20, 20) == pytest.approx((0.0, 1 - low))


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "simulations"), [(50, 1000), (100, 1000), (200, 1000)])
def test_coverage_of_the_auroc_interval(patients: int, simulations: int) -> None:
    shift, hits, total = 1.8, 0, 0
    truth = stats.norm.cdf(shift / np.sqrt(2 * 0.98))
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        images = rng.integers(1, 5, patients)
        patient = np.repeat(np.arange(patients), images)
        ill = rng.random(patients) < 0.3
        y = np.repeat(ill, images)
        s = np.repeat(ill * shift + rng.normal(size=patients) * 0.7, images) + rng.normal(size=len(y)) * 0.7
        if not 2 <= ill.sum() <= patients - 2:
            continue
        draws = ClusterBootstrap.draw(patient, resamples=300, seed=seed).apply(
            lambda w, y=y, s=s: {"a": auroc(y, s, w)}
        )
        e = interval(float(auroc(y, s)), draws["a"], scale="log odds", units=int(min(ill.sum(), patients - ill.sum())))
        if e.value == 1.0:
            e = Estimate(1.0, *boundary_auroc(1.0, int(ill.sum()), int((~ill).sum())))
        total += 1
        hits += e.low <= truth <= e.high
    assert 0.93 <= hits / total <= 0.97


def test_percentiles_of_a_mean_reach_as_far_as_students_t() -> None:
    x = np.random.default_rng(0).normal(size=15)
    drawn = ClusterBootstrap.draw(np.arange(15), resamples=40_000).apply(lambda w: {"m": w @ x / w.sum(axis=1)})["m"]
    found, plain = interval(float(x.mean()), drawn, patients=15), interval(float(x.mean()), drawn)
    student = stats.t.ppf(0.975, 14) * x.std(ddof=1) / np.sqrt(15)
    assert (found.high - found.low) / 2 == pytest.approx(student, rel=0.02)
    assert (plain.high - plain.low) / 2 < 0.92 * student
    assert "expanded" in found.method


def test_standard_errors_of_one_case_a_patient_are_the_textbooks() -> None:
    rng = np.random.default_rng(4)
    n = 60
    x = rng.normal(5, 2, n)
    y = 0.8 * x + rng.normal(0, 1, n)
    draws = ClusterBootstrap.draw(np.arange(n), resamples=4000)
    means = draws.apply(lambda w: {"m": w @ x / n})["m"]
    found = interval(float(x.mean()), means, scale="plain", patients=n)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x)), rel=1e-2)
    agreed = draws.apply(agreement(x, y))
    point = float(np.corrcoef(x, y)[0, 1])
    found = interval(point, agreed["pearson"], scale="Fisher", patients=n)
    low, high = np.tanh(np.arctanh(point) + np.array([-1, 1]) * stats.norm.ppf(0.975) / np.sqrt(n - 3))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)
    size = float(np.abs(x - y).mean())
    found = interval(size, agreed["mae"], scale="log", patients=n)
    assert found.low * found.high == pytest.approx(size**2)  # as far up as down, as factors
    assert interval(0.0, np.zeros(100), scale="log").method.endswith("percentile, 100 resamples")


def test_limits_of_agreement_reach_as_far_as_the_exact_ones() -> None:
    """Differences that are normal: the exact interval of a limit is that of a noncentral t (Carkeet 2015)."""
    n = 200
    gap = np.random.default_rng(1).normal(3, 2, n)
    panel = measure(agreement(np.zeros(n), gap), ClusterBootstrap.draw(np.arange(n), resamples=4000))
    upper = panel.estimates["loa_upper"]
    far = stats.nct.ppf([0.025, 0.975], n - 1, 1.96 * np.sqrt(n)) / np.sqrt(n)
    assert (upper.low, upper.high) == pytest.approx(gap.mean() + gap.std(ddof=1) * far, abs=0.12)
    assert upper.value == pytest.approx(gap.mean() + 1.96 * gap.std(ddof=1))
    lower = panel.estimates["loa_lower"]
    assert lower.high - lower.value == pytest.approx(upper.value - upper.low, rel=1e-6)  # mirrored
