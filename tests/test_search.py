"""A search sees the training part only, is shared by processes, and admits when the default was as good."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cohorts import blobs

from medtransfer import Head, Prepare, Recipe, Split, load_model, split_by_patient
from medtransfer.search import search
from medtransfer.trials import gain_of_choosing

optuna = pytest.importorskip("optuna", reason="the extra hpo is not installed")
PREPARE = Prepare(size=40, scale="range")


def weighed(trial, default):
    return Recipe(method="logistic", class_weights=trial.suggest_categorical("weigh", [True, False]))


def tried(cohort, split, out, **options):
    settings = {"trials": 2, "folds": 2, "propose": weighed, "progress": False, **options}
    return search(load_model("random/resnet18", until="layer1"), cohort, split, PREPARE, out=out, **settings)


def timeless(found):
    return {k: v for k, v in found.to_record().items() if k not in ("seconds", "energy_wh")}


def test_what_stands_outside_the_training_part_changes_nothing(tmp_path):
    cohort = blobs(60)
    split = split_by_patient(cohort)
    split.save(tmp_path / "split.json")
    changed = list(cohort.cases)
    for i in [*split.val, *split.test]:
        changed[i] = replace(changed[i], image=np.zeros((40, 40), np.uint8), label=1 - changed[i].label)
    other = replace(cohort, cases=tuple(changed))
    first = tried(cohort, split, tmp_path / "a", sizes=(32,))
    second = tried(other, Split.load(tmp_path / "split.json", other), tmp_path / "b", sizes=(32,))
    assert timeless(first) == timeless(second)
    assert not list((tmp_path / "a").iterdir())  # trials leave nothing behind
    changed = list(cohort.cases)
    for i in split.train:
        changed[i] = replace(changed[i], image=255 - changed[i].image // 2)
    third = tried(replace(cohort, cases=tuple(changed)), split, tmp_path / "c", sizes=(32,))
    assert third.default_loss != first.default_loss  # while a training image does change it


def test_the_default_stays_unless_the_interval_lies_above_zero(tmp_path):
    cohort = blobs(60)
    found = tried(cohort, split_by_patient(cohort), tmp_path / "s")
    assert found.trials == 3
    assert (found.chosen == found.best) or not found.helped
    assert (found.chosen == found.default) or found.helped
    assert ("no better than the default" in str(found)) == (not found.helped)
    assert "Wh, estimated" in str(found)
    assert found.energy_wh > 0
    json.dumps(found.to_record())


def test_the_best_of_many_equal_candidates_is_no_gain():
    """Sixty candidates of pure noise: the naive gain of the best is large, the honest one is not."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 2).astype(str)
    helped, naive = 0, 0
    for seed in range(20):
        losses = rng.normal(0.6, 0.3, (61, 120))
        gain, low, high = gain_of_choosing(losses, 0, patients, seed)
        assert low <= gain <= high
        helped += low > 0
        naive += losses[0].mean() - losses.mean(1).min() > 0.03
    assert helped <= 2
    assert naive >= 15


def test_hopeless_trials_are_stopped_and_a_given_default_is_never(tmp_path):
    cohort = blobs(60)

    def propose(trial, default):
        lr = [1e-2, 1e-2, 1e-2, 1e-2, 1e-7, 1e-7, 1e-7, 1e-7][min(trial.number, 7)]
        return Recipe(method="probe", epochs=6, lr=lr, batch_size=8)

    found = tried(cohort, split_by_patient(cohort), tmp_path / "s", propose=propose, trials=7,
                  default=Recipe(method="probe", epochs=6, lr=1e-2, batch_size=8))  # fmt: skip
    assert found.pruned > 0
    assert found.trials == 8


@pytest.mark.slow
def test_a_head_that_no_linear_model_fits_is_searched_by_descent(tmp_path):
    cohort, head = blobs(40), Head(hidden=(4,))
    found = search(load_model("random/resnet18", until="layer1", head=head), cohort, split_by_patient(cohort), PREPARE,
                   out=tmp_path / "s", trials=1, folds=2, propose=weighed, progress=False)  # fmt: skip
    assert found.trials == 2
    assert {found.default.recipe.method, found.best.recipe.method} == {"probe"}


PROGRAM = """
import sys
from test_search import tried
from small_cohorts import blobs
from medtransfer import split_by_patient
cohort = blobs(40)
print(tried(cohort, split_by_patient(cohort), sys.argv[1] + "/out", storage=sys.argv[2], trials=5).trials)
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal.log", "sqlite:///{}/search.db"])
def test_processes_share_one_search(tmp_path, storage):
    here = Path(__file__).resolve().parent
    shared = storage.format(tmp_path) if "://" in storage else str(tmp_path / storage)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), shared]
    import os

    paths = os.pathsep.join([str(here.parent), str(here)])
    settings = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(p.communicate()[0]) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert all(6 <= n <= 8 for n in counts)  # both end when five trials and a default are there; a race adds one each
    cohort = blobs(40)
    again = tried(cohort, split_by_patient(cohort), tmp_path / "out", storage=shared, trials=5)
    assert again.trials == max(counts)  # nothing is tried again


def test_optuna_is_an_extra(tmp_path, monkeypatch):
    from medtransfer.errors import MissingPackage

    monkeypatch.setitem(sys.modules, "optuna", None)
    cohort = blobs(40)
    with pytest.raises(MissingPackage, match="hpo"):
        tried(cohort, split_by_patient(cohort), tmp_path / "s")


def test_databases_that_are_made_together_or_do_not_open(tmp_path, monkeypatch):
    from sqlalchemy.exc import IntegrityError

    from medtransfer.errors import ConfigError

    searching, calls, plain = sys.modules["medtransfer.search"], [], optuna.storages.get_storage
    monkeypatch.setattr(searching.time, "sleep", lambda seconds: None)

    def racing(url):
        calls.append(url)
        if len(calls) < 3:
            raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))
        return plain(url)

    monkeypatch.setattr(optuna.storages, "get_storage", racing)
    assert searching._storage(optuna, f"sqlite:///{tmp_path / 'a.db'}") is not None
    assert len(calls) == 3
    with pytest.raises(ConfigError, match="cannot be opened") as caught:
        searching._storage(optuna, "nothing://user:word@host/db")
    assert "word" not in str(caught.value)
