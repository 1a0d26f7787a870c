"""Repeated folds: every repeat counts, no case counts twice, and patients are resampled with all their predictions."""

import numpy as np
import pytest
from sklearn.metrics import recall_score
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, evaluate, fit, load_model, split_by_patient


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    cohort = blobs(60)
    split = split_by_patient(cohort, folds=3, repeats=2, val=0)
    model = load_model("random/resnet18", until="layer1")
    out = tmp_path_factory.mktemp("run") / "r"
    run = fit(model, cohort, split, Prepare(size=40, scale="range"), Recipe(method="logistic"), out=out,
              progress=False)  # fmt: skip
    return cohort.aliases, run.test(), run.validation()


def test_each_case_is_predicted_once_a_repeat_by_models_that_had_not_seen_its_patient(repeated):
    aliases, test, val = repeated
    assert sorted(test.case) == sorted(aliases * 2)
    for fold in range(6):
        assert not set(test.patient[test.fold == fold]) & set(val.patient[val.fold == fold])
    first, second = (test.take(np.isin(test.fold, folds)) for folds in ((0, 1, 2), (3, 4, 5)))
    assert sorted(first.case) == sorted(second.case) == sorted(aliases)


def test_results_are_means_over_the_repeats_and_cases_are_counted_once(repeated):
    _, test, _ = repeated
    found = evaluate(test, threshold=0.5, bootstrap=300, subgroups={"all": np.full(len(test), "x")})
    assert found.counts["cases"] == 60
    assert found.counts["patients"] == 30
    assert found.counts["folds"] == 6
    by_hand = [recall_score(t.reference, t.positive >= 0.5)
               for t in (test.take(test.fold < 3), test.take(test.fold >= 3))]  # fmt: skip
    assert found.estimates["sensitivity"].value == pytest.approx(np.mean(by_hand))
    assert found.subgroups[0].cases == 60
    once = evaluate(test.take(test.fold < 3), threshold=0.5, bootstrap=300)
    wide = [e.estimates["auroc"].high - e.estimates["auroc"].low for e in (once, found)]
    assert wide[1] > 0.6 * wide[0]  # a second repeat makes no second set of patients
