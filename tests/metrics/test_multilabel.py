"""Statistics of several labels against scikit-learn, with and without unknown labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.multilabel import multilabel
from medtransfer.metrics.names import LABELS

THRESHOLDS = np.array([0.4, 0.5, 0.3])


def findings(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 3)) < [0.5, 0.3, 0.1]).astype(float)
    y[0], y[1] = 1, 0
    return y, np.clip(0.4 * y + rng.random((n, 3)) * 0.6, 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn_where_all_is_known(seed: int) -> None:
    y, p = findings(seed)
    found, rows = multilabel(y, p, ClusterBootstrap.draw(np.arange(len(y)) // 2, resamples=60), THRESHOLDS)
    e = {name: estimate.value for name, estimate in found.estimates.items()}
    for kind in ("macro", "micro", "weighted"):
        assert e[f"{kind}_auroc"] == pytest.approx(oracle.roc_auc_score(y, p, average=kind), abs=1e-12)
        expected = oracle.average_precision_score(y, p, average=kind)
        assert e[f"{kind}_average_precision"] == pytest.approx(expected, abs=1e-12)
    called = p >= THRESHOLDS
    assert e["exact_match"] == pytest.approx(oracle.accuracy_score(y, called), abs=1e-12)
    assert e["hamming_loss"] == pytest.approx(oracle.hamming_loss(y, called), abs=1e-12)
    for k, row in enumerate(rows):
        assert row["auroc"].value == pytest.approx(oracle.roc_auc_score(y[:, k], p[:, k]), abs=1e-12)
        assert row["brier"].value == pytest.approx(oracle.brier_score_loss(y[:, k], p[:, k]), abs=1e-12)
        assert row["f1"].value == pytest.approx(oracle.f1_score(y[:, k], called[:, k]), abs=1e-12)
        assert row["ppv"].value == pytest.approx(oracle.precision_score(y[:, k], called[:, k]), abs=1e-12)
    assert set(e) | set(rows[0]) <= set(LABELS)


def test_unknown_labels_are_left_out_of_their_label_only() -> None:
    y, p = findings(7)
    y[::3, 1] = np.nan
    b = ClusterBootstrap.draw(np.arange(len(y)) // 2, resamples=60)
    found, rows = multilabel(y, p, b, THRESHOLDS)
    known = np.isfinite(y)
    assert rows[1]["auroc"].value == pytest.approx(oracle.roc_auc_score(y[known[:, 1], 1], p[known[:, 1], 1]))
    assert rows[0]["auroc"].value == pytest.approx(oracle.roc_auc_score(y[:, 0], p[:, 0]))
    assert found.estimates["micro_auroc"].value == pytest.approx(oracle.roc_auc_score(y[known], p[known]))
    wrong = (y == 1) != (p >= THRESHOLDS)
    assert found.estimates["hamming_loss"].value == pytest.approx(wrong[known].mean())
    whole = known.all(axis=1)
    assert found.estimates["exact_match"].value == pytest.approx((~wrong[whole].any(axis=1)).mean())
    # a label's interval is that of the same patients alone
    alone, _ = multilabel(y[:, 1:2], p[:, 1:2], b, THRESHOLDS[1:2])
    assert alone.estimates["macro_auroc"].value == rows[1]["auroc"].value
    assert alone.estimates["macro_auroc"].low == pytest.approx(rows[1]["auroc"].low)


def test_labels_without_cases_of_both_kinds_are_not_defined() -> None:
    y, p = findings(3)
    y[:, 1], y[:, 2] = 0, np.nan
    found, rows = multilabel(y, p, ClusterBootstrap.draw(np.arange(len(y)), resamples=40), THRESHOLDS)
    assert rows[1]["auroc"].value is None
    assert rows[2]["auroc"].value is None
    assert "known" in rows[2]["sensitivity"].note
    assert found.estimates["macro_auroc"].value == rows[0]["auroc"].value
    assert "1 of 3 labels" in found.estimates["macro_auroc"].note
    assert found.estimates["exact_match"].value is None


def test_thresholds_may_differ_from_case_to_case() -> None:
    y, p = findings(5)
    b = ClusterBootstrap.draw(np.arange(len(y)), resamples=10)
    each = multilabel(y, p, b, THRESHOLDS)[0].estimates["hamming_loss"]
    assert multilabel(y, p, b, np.tile(THRESHOLDS, (len(y), 1)))[0].estimates["hamming_loss"] == each
