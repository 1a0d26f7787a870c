"""Parts of the ROC curve against scikit-learn and integration, and permutation tests by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn import metrics as oracle

from medtransfer.metrics.partial import partial_auroc, sensitivity_at_specificity, specificity_at_sensitivity
from medtransfer.metrics.permutation import against_chance, between_models


def data(seed: int, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.random(90) < 0.4
    return y, np.round(rng.normal(size=90) + y, digits)


@pytest.mark.parametrize("digits", [1, 6])
@pytest.mark.parametrize("seed", range(4))
def test_partial_area_is_scikit_learns(seed: int, digits: int) -> None:
    y, s = data(seed, digits)
    w = np.random.default_rng(seed).integers(0, 3, (3, 90)).astype(float)
    for least in (0.5, 0.8, 0.9):
        expected = oracle.roc_auc_score(y, s, max_fpr=1 - least)
        assert float(partial_auroc(y, s, specificity=(least, 1.0))) == pytest.approx(expected, abs=1e-12)
        drawn = partial_auroc(y, s, w, specificity=(least, 1.0))
        for row, area in zip(w, drawn, strict=True):
            assert area == pytest.approx(oracle.roc_auc_score(y, s, sample_weight=row, max_fpr=1 - least), abs=1e-12)
        # seen from the other class sensitivity is specificity
        other = oracle.roc_auc_score(~y, -s, max_fpr=1 - least)
        assert float(partial_auroc(y, s, sensitivity=(least, 1.0))) == pytest.approx(other, abs=1e-12)


def test_partial_area_of_a_band_by_integration() -> None:
    y, s = data(9)
    fpr, tpr, _ = oracle.roc_curve(y, s, drop_intermediate=False)
    x = np.linspace(0.1, 0.3, 200_001)
    mean = np.interp(x, fpr, tpr).mean()
    expected = 0.5 * (1 + (mean * 0.2 - 0.04) / (0.2 - 0.04))
    assert float(partial_auroc(y, s, specificity=(0.7, 0.9))) == pytest.approx(expected, abs=1e-4)
    assert float(partial_auroc(y, s, specificity=(0.0, 1.0))) == pytest.approx(oracle.roc_auc_score(y, s))
    assert np.isnan(partial_auroc(np.ones(5), s[:5], specificity=(0.9, 1.0)))


@pytest.mark.parametrize("seed", range(4))
def test_rates_at_rates_by_search(seed: int) -> None:
    y, s = data(seed, 1)
    cuts = [np.inf, *np.unique(s)]
    both = [((s[y] >= c).mean(), (s[~y] < c).mean()) for c in cuts]
    for level in (0.5, 0.9, 0.95, 1.0):
        best = max(se for se, sp in both if sp >= level - 1e-12)
        assert float(sensitivity_at_specificity(y, s, level)) == pytest.approx(best)
        best = max(sp for se, sp in both if se >= level - 1e-12)
        assert float(specificity_at_sensitivity(y, s, level)) == pytest.approx(best)
    assert np.isnan(sensitivity_at_specificity(np.ones(4), s[:4], 0.9))


def test_chance_by_enumeration() -> None:
    # two of six labels: 15 ways; the positives have ranks 6 and 4, and only 6 and 5 is better: 3 of 15 with ties none
    y, s = np.array([0, 0, 0, 1, 0, 1]), np.arange(6.0)
    found = against_chance(y, s, np.arange(6), permutations=20_000)
    reach = [sum(pair) >= 8 for pair in itertools.combinations(range(6), 2)]
    assert found.value == pytest.approx(7 / 8)
    assert found.p == pytest.approx(np.mean(reach), abs=0.01)


def test_copies_of_a_patient_are_no_evidence() -> None:
    y, s = np.array([0, 0, 0, 1, 0, 1]), np.arange(6.0)
    copied = against_chance(np.repeat(y, 10), np.repeat(s, 10), np.repeat(np.arange(6), 10), permutations=5000)
    assert copied.p == pytest.approx(2 / 15, abs=0.02)
    naive = against_chance(np.repeat(y, 10), np.repeat(s, 10), np.arange(60), permutations=2000)
    assert naive.p < 0.001


def test_patients_with_labels_of_both_kinds_exchange_them_as_blocks() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 3)
    y = rng.random(120) < 0.4
    assert "equally many" in against_chance(y, rng.random(120), patient, permutations=200).method
    assert against_chance(y, y + rng.random(120), patient, permutations=999).p == pytest.approx(0.001)
    assert against_chance(np.ones(5), np.arange(5), np.arange(5)).value is None


def test_p_values_are_uniform_where_nothing_is_there() -> None:
    single, paired = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(30), 2)
        y = np.repeat(rng.random(30) < 0.5, 2)
        y[0], y[-1] = True, False
        common = np.repeat(rng.normal(size=30), 2)
        a, b = common + rng.normal(size=60), common + rng.normal(size=60)
        single.append(against_chance(y, a, patient, permutations=99, seed=seed).p)
        paired.append(between_models(y, a, 10 * b + 3, patient, permutations=99, seed=seed).p)
    for p in (single, paired):
        assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
        assert 0.42 <= np.mean(np.array(p) <= 0.5) <= 0.58


def test_difference_of_two_models_by_enumeration() -> None:
    y = np.array([0, 1, 0, 1, 1])
    a, b = np.array([1.0, 4, 2, 5, 3]), np.array([5.0, 1, 3, 2, 4])
    gaps = []
    for swap in itertools.product([False, True], repeat=5):
        left, right = np.where(swap, b, a), np.where(swap, a, b)
        gaps.append(oracle.roc_auc_score(y, left) - oracle.roc_auc_score(y, right))
    found = between_models(y, a, b, np.arange(5), permutations=20_000)
    assert found.value == pytest.approx(gaps[0])
    assert found.p == pytest.approx(np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12), abs=0.01)
