"""Conformal sets and intervals against MAPIE, their promise by simulation, and the guard against test patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medtransfer.errors import ConfigError, MetricError
from medtransfer.metrics.conformal import Conformal, conformal, interval_estimates, quantile_of, set_estimates
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.predictions import Predictions


def predictions(reference: np.ndarray, probability: np.ndarray, start: int = 0, part: str = "val") -> Predictions:
    n, width = probability.shape
    ids = np.array([f"case-{start + i}" for i in range(n)])
    names = tuple(f"c{k}" for k in range(width))
    task = "regression" if reference.ndim == 2 else "classification"
    return Predictions(ids, ids, reference, probability, names, np.zeros(n, dtype=np.int64), part, task=task)


def softmax(seed: int, n: int, classes: int = 4, share: object = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=share)
    z = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]
    p = np.exp(1.5 * z) * (np.ones(classes) if share is None else share)  # Bayes: a rare class gets little
    return y, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_equal_those_of_mapie(coverage: float) -> None:
    module = pytest.importorskip("mapie.classification", reason="the oracle MAPIE is not installed")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Said(ClassifierMixin, BaseEstimator):
        """Gives the probabilities it is asked about."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> Said:
            self.classes_, self.fitted_ = np.arange(4), True
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return np.asarray(x)

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.asarray(x).argmax(axis=1)

    (y, p), (_, new) = softmax(0, 150), softmax(1, 200)
    theirs = module.SplitConformalClassifier(Said().fit(p, y), confidence_level=coverage, conformity_score="lac")
    sets = theirs.conformalize(p, y).predict_set(new)[1][:, :, 0]
    ours = conformal(predictions(y, p), coverage, "lac").sets(predictions(np.zeros(200, int), new, 1000, "test"))
    np.testing.assert_array_equal(ours, sets)


def test_adaptive_scores_equal_those_of_mapie() -> None:
    module = pytest.importorskip("mapie.conformity_scores", reason="the oracle MAPIE is not installed")
    y, p = softmax(2, 99)
    theirs, _ = module.APSConformityScore.get_true_label_cumsum_proba(y, p, np.arange(4))
    expected = np.sort(theirs[:, 0])[89]  # the ⌈100 · 0.9⌉-th of 99
    assert conformal(predictions(y, p), 0.9, "aps").quantile[0][0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_intervals_equal_those_of_mapie(coverage: float) -> None:
    module = pytest.importorskip("mapie.regression", reason="the oracle MAPIE is not installed")
    from sklearn.base import BaseEstimator, RegressorMixin

    class Said(RegressorMixin, BaseEstimator):
        """Gives the number it is asked about."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> Said:
            self.fitted_ = True
            return self

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.asarray(x)[:, 0]

    rng = np.random.default_rng(3)
    said, new = rng.normal(size=(80, 1)), rng.normal(size=(30, 1))
    y = said[:, 0] + rng.normal(size=80)
    theirs = module.SplitConformalRegressor(Said().fit(said, y), confidence_level=coverage, prefit=True)
    ends = theirs.conformalize(said, y).predict_interval(new)[1][:, :, 0]
    found = conformal(predictions(y[:, None], said), coverage, "residual")
    lower, upper = found.bounds(predictions(np.zeros((30, 1)), new, 1000, "test"))
    np.testing.assert_allclose(np.c_[lower, upper], ends, atol=1e-12)


def test_quantile_by_hand() -> None:
    assert quantile_of(range(1, 10), 0.9) == 9  # ⌈10 · 0.9⌉ = 9th of 9
    assert quantile_of(range(1, 9), 0.9) == np.inf  # ⌈9 · 0.9⌉ = 9th of 8
    assert quantile_of(range(1, 100), 0.9) == 90


@pytest.mark.parametrize("method", ["lac", "aps", "mondrian"])
def test_the_promise_holds_over_many_draws(method: str) -> None:
    share, held, rare = [0.7, 0.2, 0.1], [], []
    for seed in range(200):
        (y, p), (new_y, new_p) = softmax(seed, 100, 3, share), softmax(9000 + seed, 60, 3, share)
        sets = conformal(predictions(y, p), 0.8, method).sets(predictions(new_y, new_p, 1000, "test"))
        inside = sets[np.arange(60), new_y]
        held.append(inside.mean())
        rare += inside[new_y == 2].tolist()
    assert np.mean(held) >= 0.8 - 0.012
    if method == "lac":
        assert np.mean(held) <= 0.8 + 1 / 101 + 0.012
        assert np.mean(rare) < 0.77  # the promise is not kept for the rare class
    if method == "mondrian":
        assert np.mean(rare) >= 0.78


def test_too_few_cases_of_a_class_rule_nothing_out() -> None:
    y, p = softmax(5, 60, 3, [0.9, 0.07, 0.03])
    found = conformal(predictions(y, p), 0.95, "mondrian")
    assert found.quantile[0][2] == np.inf
    assert found.sets(predictions(y, p, 1000, "test"))[:, 2].all()
    assert Conformal.from_json(found.to_json()) == found


def test_refuses_patients_it_was_fitted_on() -> None:
    y, p = softmax(6, 50)
    found = conformal(predictions(y, p), 0.8)
    with pytest.raises(MetricError, match="fitted on 50 cases"):
        found.sets(predictions(y, p, part="test"))
    with pytest.raises(MetricError, match="sets"):
        found.bounds(predictions(y, p, 1000, part="test"))
    with pytest.raises(ConfigError):
        conformal(predictions(y, p), 1.0)
    with pytest.raises(ConfigError):
        conformal(predictions(y, p), 0.9, "magic")
    with pytest.raises(MetricError, match="not of this task"):
        conformal(predictions(y, p), 0.9, "residual")
    labels = replace(predictions(np.zeros((50, 4)), p), task="multilabel")
    with pytest.raises(MetricError, match="not of this task"):
        conformal(labels)
    assert conformal(labels.label("c1")).method == "mondrian"
    assert conformal(predictions(np.zeros((50, 4)), p)).method == "residual"


def test_estimates_by_counting() -> None:
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=bool)
    found = set_estimates(sets, [0, 2, 1, 2], ClusterBootstrap.draw(range(4), resamples=50))
    values = {name: e.value for name, e in found.items()}
    assert values["set_coverage"] == 0.5
    assert values["set_size"] == 1.25
    assert values["set_single"] == 0.25
    assert values["set_empty"] == 0.25
    assert values["class:2:set_coverage"] == 0.5
    ends = np.array([[0.0], [0.0], [5.0]])
    rows = interval_estimates(
        ends, ends + 2, np.array([[1.0], [3.0], [np.nan]]), ClusterBootstrap.draw(range(3), resamples=50)
    )
    assert rows[0]["interval_coverage"].value == 0.5
    assert rows[0]["interval_width"].value == 2
