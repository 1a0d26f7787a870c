"""Runs beside each other: common cases, paired intervals, a permutation test against scipy, an escaped page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_evaluate import predictions

from medtransfer.errors import MetricError, RunError
from medtransfer.evaluate import compare, evaluate, fixed
from medtransfer.metrics.permutation import between_models, holm
from medtransfer.report import write_report
from medtransfer.rivals import compare_runs, page, read_runs, write_comparison


def worse(base, seed: int, noise: float):
    p = np.clip(base.positive + np.random.default_rng(seed).normal(0, noise, len(base)), 0.001, 0.999)
    return replace(base, probability=np.c_[1 - p, p])


def test_three_runs_on_the_cases_that_all_tested() -> None:
    base = predictions(1, n=400)
    runs = {
        "a": base,
        "b": worse(base, 1, 0.05).take(np.arange(20, 400)),
        "c": worse(base, 2, 0.8).take(np.arange(380)),
    }
    points = {name: fixed(0.5, [0]) for name in runs}
    found = compare_runs(runs, thresholds=points, bootstrap=400, permutations=500)
    assert found.cases == 360
    assert [r.left_out for r in found.rivals] == [40, 20, 20]
    part = slice(20, 380)
    for r, p in zip(found.rivals, (base, worse(base, 1, 0.05), worse(base, 2, 0.8)), strict=True):
        assert r.values["auroc"].value == pytest.approx(roc_auc_score(p.reference[part], p.positive[part]), abs=1e-12)
        hit = (p.positive[part] >= 0.5)[p.reference[part] == 1].mean()
        assert r.values["sensitivity"].value == pytest.approx(hit, abs=1e-12)
    first, near, far = found.rivals
    assert first.p is None
    assert not first.differences
    assert near.p_adjusted > 0.05
    assert far.p_adjusted == pytest.approx(2 * far.p) == pytest.approx(2 / 501)
    assert far.differences["auroc"].high < 0
    mask = np.arange(400)
    keep = (mask >= 20) & (mask < 380)
    pair = compare(worse(base, 2, 0.8).take(keep), base.take(keep), bootstrap=400)  # the same resamples
    assert far.differences["auroc"] == pair["auroc"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["runs"][2]["p_adjusted"] < 0.01
    assert "p (Holm)" in str(found)


def test_permutation_p_agrees_with_scipy() -> None:
    """Swapping scores within pairs is scipy's paired permutation of samples."""
    from scipy.stats import permutation_test, rankdata

    rng = np.random.default_rng(3)
    y = np.arange(60) % 2
    a, b = y + rng.normal(0, 1, 60), y + rng.normal(0, 1.6, 60)

    def gap(x: np.ndarray, z: np.ndarray) -> float:
        return roc_auc_score(y, x) - roc_auc_score(y, z)

    theirs = permutation_test((rankdata(a), rankdata(b)), gap, permutation_type="samples", vectorized=False,
                              n_resamples=400, rng=0).pvalue  # fmt: skip
    ours = between_models(y == 1, a, b, np.arange(60), permutations=4000).p
    assert ours == pytest.approx(theirs, abs=0.07)


def test_several_classes_are_compared_by_the_mean_of_their_auroc() -> None:
    base = predictions(2, n=300, classes=("x", "y", "z"))
    noise = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    found = compare_runs({"a": base, "b": replace(base, probability=noise)}, bootstrap=100, permutations=200)
    means = [
        np.mean([roc_auc_score(base.reference == k, p[:, k]) for k in range(3)]) for p in (base.probability, noise)
    ]
    assert found.rivals[1].differences["macro_auroc"].value == pytest.approx(means[1] - means[0], abs=1e-12)
    assert found.rivals[1].p == pytest.approx(1 / 201)
    y = base.reference[:, None] == np.arange(3)
    each = between_models(y, base.probability, noise, base.patient, permutations=20).value
    assert each == pytest.approx(means[0] - means[1], abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    some = holm([0.01, float("nan"), 0.04])
    assert some[0] == pytest.approx(0.02)
    assert np.isnan(some[1])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    base = predictions(1)
    with pytest.raises(MetricError, match="two runs"):
        compare_runs({"a": base})
    with pytest.raises(MetricError, match="no tested case in common"):
        compare_runs({"a": base, "b": replace(base, case=np.array([f"x{i}" for i in range(len(base))]))})
    with pytest.raises(MetricError, match="other reference"):
        compare_runs({"a": base, "b": replace(base, reference=1 - base.reference)})
    with pytest.raises(RunError, match="no evaluated run"):
        read_runs([tmp_path])


def test_folders_in_a_page_out(tmp_path: Path) -> None:
    base = predictions(1)
    evil = "<img src=x onerror=boom()>"
    for name, p in (("first", base), (evil, worse(base, 1, 0.3)), ("third", predictions(4))):
        p = replace(p, case=base.case, patient=base.patient, reference=base.reference)
        write_report(evaluate(p, threshold=0.4, bootstrap=100), tmp_path / name / "report.html")
    runs, points = read_runs([tmp_path / "first", tmp_path / evil, tmp_path / "third"])
    found = compare_runs(runs, thresholds=points, bootstrap=100, permutations=100)
    assert found.rivals[1].rule == "fixed"
    text = page(found)
    assert "<img" not in text
    assert "&lt;img src=x onerror=boom()&gt;" in text
    assert "<script" not in text
    assert text.count("<svg") == 5
    assert write_comparison(found, tmp_path / "out").read_text() == text
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["baseline"] == "first"
