"""An evaluation as a whole: refusals, undefined numbers, controls, flags, repeatability."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medtransfer.errors import MetricError
from medtransfer.evaluate import calibrate, compare, evaluate, youden
from medtransfer.metrics.intervals import delong
from medtransfer.predictions import Predictions, concatenate


def predictions(
    seed: int = 0,
    n: int = 200,
    classes: tuple[str, ...] = ("no", "yes"),
    fold: int = 0,
    part: str = "test",
    shift: float = 2,
) -> Predictions:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(classes), n)
    scores = rng.normal(size=(n, len(classes)))
    scores[np.arange(n), y] += shift
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    ids = np.array([f"case-{part}{fold}-{i:05d}" for i in range(n)])
    patient = np.array([f"patient-{part}{fold}-{i // 2:05d}" for i in range(n)])
    return Predictions(ids, patient, y, p, classes, np.full(n, fold), part)


def test_refuses_a_threshold_or_calibrator_that_has_seen_test() -> None:
    val, test = predictions(1, part="val"), predictions(2)
    leaky = concatenate([val, test.take(np.array([5]))])
    for option in ({"threshold": youden(leaky)}, {"calibrator": calibrate(leaky)}):
        with pytest.raises(MetricError, match="1 case it would be tested on"):
            evaluate(test, bootstrap=100, **option)
    same_patient = replace(leaky, case=np.array([f"case-x{i}" for i in range(len(leaky))]))
    with pytest.raises(MetricError, match="1 patient"):
        evaluate(test, threshold=youden(same_patient), bootstrap=100)


def test_cross_validation_may_test_in_one_fold_what_validated_another() -> None:
    a, b = predictions(1, fold=0), predictions(2, fold=1)
    val = concatenate([replace(b, fold=a.fold), replace(a, fold=b.fold)])
    result = evaluate(concatenate([a, b]), threshold=youden(val), bootstrap=200)
    areas = [roc_auc_score(p.reference, p.positive) for p in (a, b)]
    assert result.estimates["fold_auroc"].value == pytest.approx(np.mean(areas), abs=1e-12)
    assert result.counts["folds"] == 2
    with pytest.raises(MetricError):
        evaluate(concatenate([a, b]), threshold=youden(concatenate([a, replace(b)])), bootstrap=100)


@pytest.mark.parametrize("kind", [0, 1])
def test_one_kind_of_case_is_not_defined_and_says_so(kind: int) -> None:
    test = predictions()
    result = evaluate(test.take(test.reference == kind), threshold=0.5, bootstrap=100)
    auroc = result.estimates["auroc"]
    assert auroc.value is auroc.low is None
    assert auroc.note
    text = json.dumps(result.to_json(), allow_nan=False)
    assert "NaN" not in text
    assert any(c.status == "serious" for c in result.checks)
    assert "not defined" in str(result)


def test_unknown_references_are_counted_and_left_out() -> None:
    test = predictions()
    blind = replace(test, reference=np.where(np.arange(200) < 7, -1, test.reference))
    result = evaluate(blind, bootstrap=100)
    assert result.counts["unknown"] == 7
    assert len(result.predictions) == 193
    with pytest.raises(MetricError, match="no case has a reference"):
        evaluate(replace(test, reference=np.full(200, -1)))
    with pytest.raises(MetricError, match="more than once"):
        evaluate(concatenate([test, test]))
    with pytest.raises(MetricError, match="two classes"):
        evaluate(predictions(classes=("a", "b", "c")), threshold=0.5)


def test_a_control_as_good_as_the_model_is_a_flag() -> None:
    test = predictions(3, n=400)
    weak = replace(test, probability=predictions(9, n=400, shift=0).probability)
    result = evaluate(test, controls={"Metadata only": test, "Untrained weights": weak}, bootstrap=300)
    shortcut = next(c for c in result.checks if c.name == "Shortcut")
    assert shortcut.status == "serious"
    transfer = next(c for c in result.checks if c.name == "Did transfer help?")
    assert transfer.status == "ok"
    assert transfer.text.startswith("Yes: pretraining helped")
    assert result.controls[0].difference.value == 0
    with pytest.raises(MetricError, match="lacks 1 of 400"):
        evaluate(test, controls={"short": weak.take(np.arange(399))}, bootstrap=100)


def test_paired_difference_is_that_of_scikit_learn_and_follows_the_order() -> None:
    a = predictions(4)
    b = replace(a, probability=predictions(4, shift=1).probability)
    expected = roc_auc_score(a.reference, a.positive) - roc_auc_score(b.reference, b.positive)
    shuffled = b.take(np.random.default_rng(0).permutation(len(b)))
    found = compare(a, shuffled, bootstrap=300)
    assert found["auroc"].value == pytest.approx(expected, abs=1e-12)
    assert found["auroc"].low <= expected <= found["auroc"].high
    json.dumps(found.to_json(), allow_nan=False)


def test_perfect_separation_still_has_an_interval() -> None:
    ids = np.arange(60).astype(str)
    y = np.arange(60) % 2
    p = np.where(y == 1, 0.9, 0.1)
    test = Predictions(ids, ids, y, np.c_[1 - p, p], ("no", "yes"), np.zeros(60, int), "test")
    result = evaluate(test, threshold=0.5, bootstrap=200)
    auroc = result.estimates["auroc"]
    assert auroc.value == 1
    assert 0.8 < auroc.low < 1
    assert result.estimates["calibration_slope"].value is None
    assert result.estimates["sensitivity"].low == pytest.approx(0.886, abs=0.001)  # Wilson, 30 of 30
    assert result.most_confident_errors() == []


def test_surest_errors_come_first() -> None:
    result = evaluate(predictions(5, shift=1), threshold=0.5, bootstrap=100)
    errors = result.most_confident_errors(4)
    false_positives = [e for e in errors if e.called == "yes"]
    assert len(false_positives) == 4
    p = result.predictions
    wrong = p.positive[(p.reference == 0) & (p.positive >= 0.5)]
    np.testing.assert_allclose([e.probability for e in false_positives], sorted(wrong, reverse=True)[:4])


def test_several_classes() -> None:
    test = predictions(6, n=300, classes=("a", "b", "c"))
    result = evaluate(test, bootstrap=300)
    expected = roc_auc_score(test.reference, test.probability, multi_class="ovr", average="macro")
    assert result.estimates["macro_auroc"].value == pytest.approx(expected, abs=1e-12)
    assert set(result.per_class) == {"a", "b", "c"}
    assert result.table.sum() == 300
    absent = evaluate(test.take(test.reference != 2), bootstrap=100)
    assert absent.per_class["c"]["auroc"].value is None
    assert "2 classes" in absent.estimates["macro_auroc"].note
    json.dumps(absent.to_json(), allow_nan=False)


def test_small_subgroups_are_suppressed() -> None:
    test = predictions(7)
    site = np.array(["A"] * 190 + ["B"] * 10)
    result = evaluate(test, subgroups={"site": site}, bootstrap=200)
    large, small = result.subgroups
    assert large.auroc.value == pytest.approx(roc_auc_score(test.reference[:190], test.positive[:190]), abs=1e-12)
    assert small.auroc.value is None
    assert "suppressed" in small.auroc.note


def test_same_input_same_numbers_whatever_the_names_of_patients() -> None:
    test, val = predictions(8), predictions(9, part="val")
    first = evaluate(test, threshold=youden(val), bootstrap=200, prevalences=(0.1,)).to_json()
    renamed = replace(test, patient=np.array([f"z{p[::-1]}" for p in test.patient]))
    again = evaluate(renamed, threshold=youden(val), bootstrap=200, prevalences=(0.1,)).to_json()
    assert json.dumps(first, sort_keys=True) == json.dumps(again, sort_keys=True)


def test_interval_is_delongs_where_every_patient_has_one_case() -> None:
    test = predictions(10, n=300)
    found = evaluate(replace(test, patient=test.case), bootstrap=2000).estimates["auroc"]
    expected = delong(test.reference == 1, test.positive)
    assert found.low == pytest.approx(expected.low, abs=0.015)
    assert found.high == pytest.approx(expected.high, abs=0.015)


def test_two_thousand_resamples_of_six_hundred_cases_are_quick() -> None:
    test, start = predictions(11, n=600), time.perf_counter()
    evaluate(test, bootstrap=2000)
    assert time.perf_counter() - start < 6  # about 0.7 s on an idle core
