"""Strategies on the same folds: the table's numbers by hand, the verdict only where the difference is shown."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_cohorts import blobs

from medtransfer import Predictions, Prepare, Recipe, load_model, split_by_patient
from medtransfer.strategies import METADATA, SCRATCH, adjust, compare_strategies, judged


def predictions(score, labels):
    ids = np.array([f"c{i}" for i in range(len(labels))])
    return Predictions(ids, ids, labels, np.c_[1 - score, score], ("no", "yes"), np.zeros(len(labels), int), "test")


def test_values_and_gains_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    good, bad = (np.clip(0.5 + a * (labels - 0.5) + rng.normal(0, 0.2, 200), 0, 1) for a in (0.5, 0.05))
    found = judged({SCRATCH: predictions(bad, labels), "probe": predictions(good, labels)}, bootstrap=500)
    scratch, probe = found.rows
    assert scratch.value.value == pytest.approx(roc_auc_score(labels, bad))
    assert probe.gain.value == pytest.approx(roc_auc_score(labels, good) - roc_auc_score(labels, bad))
    assert scratch.gain is None
    assert probe.p == probe.p_holm == pytest.approx(2 / 501)
    assert found.verdict.startswith("transfer helped here: probe")


def test_equal_strategies_are_not_called_better():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 100)
    score = rng.random((2, 100))
    found = judged({SCRATCH: predictions(score[0], labels), "full": predictions(score[0], labels),
                    "lp-ft": predictions(score[1], labels)}, bootstrap=500)  # fmt: skip
    assert found.rows[1].p == 1
    assert "cannot be shown to help" in found.verdict
    worse = judged({SCRATCH: predictions(labels * 0.8 + 0.1, labels), "full": predictions(score[0], labels)})
    assert worse.rows[1].p < 0.01
    assert "cannot be shown to help" in worse.verdict  # a difference, but to the worse


def test_holm_by_hand():
    assert adjust([0.04, 0.001, 0.02, 0.5]) == pytest.approx([0.08, 0.004, 0.06, 0.5])
    assert adjust([0.6, 0.7]) == [1, 1]


@pytest.mark.slow
def test_strategies_train_on_the_same_folds(tmp_path):
    cohort = blobs(60)
    split = split_by_patient(cohort, folds=2, val=0.2)
    few = {
        SCRATCH: Recipe(method="full", epochs=2, freeze_epochs=0, batch_size=8),
        "probe": Recipe(method="logistic"),
        "full": Recipe(method="full", epochs=2, freeze_epochs=0, batch_size=8),
    }
    model = load_model("random/resnet18", until="layer1", seed=3)
    found = compare_strategies(model, cohort, split, Prepare(size=40, scale="range"), out=tmp_path / "s",
                               strategies=few, bootstrap=200, progress=False)  # fmt: skip
    assert [r.name for r in found.rows] == [SCRATCH, "probe", "full", METADATA]
    assert all(sorted(p.case) == sorted(cohort.aliases) for p in found.predictions.values())
    assert (tmp_path / "s" / "scratch" / "split.json").read_text() == (
        tmp_path / "s" / "full" / "split.json"
    ).read_text()
    assert found.rows[0].value.value != found.rows[2].value.value  # one of them starts from other weights
    assert "minus scratch" in str(found)
    json.dumps(found.to_record())
