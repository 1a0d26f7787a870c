"""A search sees the training part only and admits when the default was as good."""

import pytest
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, load_model, split_by_patient

optuna = pytest.importorskip("optuna")


def test_a_search_stays_inside_the_training_part(tmp_path, monkeypatch):
    from importlib import import_module

    from medtransfer.search import search

    cohort = blobs(60)
    split, seen, module = split_by_patient(cohort), set(), import_module("medtransfer.fit")
    plain = module.fit

    def spied(model, inner, *rest, **options):
        seen.update(inner.aliases)
        return plain(model, inner, *rest, **options)

    monkeypatch.setattr(module, "fit", spied)

    def propose(trial, default):
        return Recipe(method="logistic", class_weights=trial.suggest_categorical("weigh", [True, False]))

    found = search(load_model("random/resnet18", until="layer1"), cohort, split, Prepare(size=40, scale="range"),
                   out=tmp_path / "search", trials=2, folds=2, propose=propose)  # fmt: skip
    assert seen == {cohort.aliases[i] for i in split.train}
    assert found.interval[0] <= found.default_loss - found.loss <= found.interval[1]
    assert (found.recipe == Recipe.for_size(10)) == (found.interval[0] <= 0)
    assert "trials in" in str(found)
