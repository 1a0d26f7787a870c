"""Statistics of ordered classes against scikit-learn, SciPy and hand calculations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from medtransfer.metrics.classification import confusion
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.ordinal import kendall_tau, ordinal, ranked_probability, weighted_kappa


def grades(seed: int, n: int = 90, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    middle = y + rng.normal(size=n)
    p = np.exp(-((np.arange(classes) - middle[:, None]) ** 2))
    return y, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_scikit_learn_and_scipy(seed: int) -> None:
    y, p = grades(seed)
    called = p.argmax(axis=1)
    found, rows = ordinal(y, p, ClusterBootstrap.draw(np.arange(len(y)), resamples=40))
    e = {name: estimate.value for name, estimate in found.estimates.items()}
    assert e["kappa_quadratic"] == pytest.approx(oracle.cohen_kappa_score(y, called, weights="quadratic"), abs=1e-12)
    assert e["kappa_linear"] == pytest.approx(oracle.cohen_kappa_score(y, called, weights="linear"), abs=1e-12)
    assert e["kendall_tau"] == pytest.approx(stats.kendalltau(y, called)[0], abs=1e-12)
    assert e["class_mae"] == pytest.approx(oracle.mean_absolute_error(y, called), abs=1e-12)
    assert e["exact_agreement"] == pytest.approx(oracle.accuracy_score(y, called), abs=1e-12)
    assert e["within_one"] == pytest.approx((np.abs(y - called) <= 1).mean(), abs=1e-12)
    areas = [oracle.roc_auc_score(y >= k, p[:, k:].sum(axis=1)) for k in range(1, 5)]
    assert [row["auroc"].value for row in rows] == pytest.approx(areas, abs=1e-12)
    assert e["cumulative_auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    # the ranked probability score is the mean Brier score of the splits
    scores = [oracle.brier_score_loss(y >= k, np.clip(p[:, k:].sum(axis=1), 0, 1)) for k in range(1, 5)]
    assert e["rps"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert rows[1]["sensitivity"].value == pytest.approx(oracle.recall_score(y >= 2, called >= 2), abs=1e-12)


def test_kappa_of_two_classes_by_hand() -> None:
    # observed agreement .75, by chance .5; with two classes every weight is the same
    table = np.array([[40.0, 15], [10, 35]])
    expected = (0.75 - (0.55 * 0.5 + 0.45 * 0.5)) / (1 - 0.5)
    assert float(weighted_kappa(table, 1)) == pytest.approx(expected)
    assert float(weighted_kappa(table, 2)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_copies_of_rows(seed: int) -> None:
    y, p = grades(seed, 40, 4)
    times = np.random.default_rng(seed).integers(0, 3, (3, 40))
    tau = kendall_tau(confusion(y, p.argmax(axis=1), 4, times))
    score = ranked_probability(y, p, times.astype(float))
    for i, t in enumerate(times):
        again, said = np.repeat(y, t), np.repeat(p, t, axis=0)
        assert tau[i] == pytest.approx(stats.kendalltau(again, said.argmax(axis=1))[0], abs=1e-12)
        step = again[:, None] <= np.arange(3)
        loss = (np.cumsum(said, axis=1)[:, :3] - step) ** 2
        chance = (step.mean(axis=0) - step) ** 2
        assert score["rps"][i] == pytest.approx(loss.mean(), abs=1e-12)
        assert score["scaled_rps"][i] == pytest.approx(1 - loss.mean() / chance.mean(), abs=1e-12)


def test_ranked_probability_by_hand() -> None:
    # class 0 said with .2, .3, .5: (.2 − 1)² + (.5 − 1)² = .89, over two splits
    assert float(ranked_probability([0], [[0.2, 0.3, 0.5]])["rps"]) == pytest.approx(0.445)
    assert np.isnan(ranked_probability([0], [[0.2, 0.3, 0.5]])["scaled_rps"])


def test_one_class_alone_is_not_defined() -> None:
    p = np.tile([0.2, 0.7, 0.1], (6, 1))
    found, rows = ordinal([1] * 6, p, ClusterBootstrap.draw(np.arange(6), resamples=30))
    for name in ("kappa_quadratic", "kappa_linear", "kendall_tau", "cumulative_auroc", "scaled_rps"):
        assert found.estimates[name].value is None
        assert found.estimates[name].note
    assert rows[0]["auroc"].value is None
    assert rows[0]["specificity"].value is None
    assert found.estimates["exact_agreement"].value == 1


def test_two_classes_give_what_binary_gives() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 50)
    risk = np.clip(0.3 * y + rng.random(50) * 0.7, 0, 1)
    found, rows = ordinal(y, np.c_[1 - risk, risk], ClusterBootstrap.draw(np.arange(50), resamples=50))
    assert len(rows) == 1
    assert found.estimates["rps"].value == pytest.approx(oracle.brier_score_loss(y, risk))
    assert found.estimates["kendall_tau"].value == pytest.approx(oracle.matthews_corrcoef(y, risk >= 0.5))
