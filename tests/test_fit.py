"""Fitting: what is frozen stays, what was interrupted goes on exactly, and test cases leave no trace."""

import json
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_cohorts import blobs

from medtransfer import Augment, Head, Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.dataset import Prepared
from medtransfer.errors import ConfigError, Interrupted, RunError
from medtransfer.features import fit_logistic, frozen_features
from medtransfer.run import Run, read_checkpoint
from medtransfer.training import Stop

FIT = import_module("medtransfer.fit")
PREPARE = Prepare(size=48, scale="range")
FINETUNE = Recipe(epochs=3, freeze_epochs=1, unfreeze_from="layer2", batch_size=8, lr=3e-3)


def small():
    return load_model("random/resnet18", until="layer2", head=Head(hidden=(8,), dropout=0.3, batchnorm=True))


def linear():
    return load_model("random/resnet18", until="layer2", pool="mean_std")


@contextmanager
def interrupted_at(monkeypatch, at):
    """A signal before the step of that number."""

    class After(Stop):
        left = at

        def is_set(self):
            self.left -= 1
            return self.left < 0

    @contextmanager
    def stopping():
        yield After()

    with monkeypatch.context() as patch:
        patch.setattr(FIT, "stopping", stopping)
        yield


def weights_of(run, fold=0, name="model"):
    return read_checkpoint(run.folder / f"fold-{fold}" / f"{name}.safetensors")[0]


def test_frozen_parameters_and_buffers_are_bit_identical(cohort, tmp_path):
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = fit(model, cohort, split_by_patient(cohort), PREPARE, FINETUNE, out=tmp_path / "r", progress=False)
    after = {k[6:]: v for k, v in weights_of(run, name="last").items() if k.startswith("model.")}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model passed in
    assert not any(k.startswith(("stages.stem", "stages.layer1")) for k in after)  # a checkpoint leaves them out
    final = weights_of(run)
    frozen = [k for k in final if k.startswith(("stages.stem", "stages.layer1"))]
    assert any("running_mean" in k for k in frozen)
    assert all(torch.equal(final[k], before[k]) for k in frozen)
    assert final.keys() == before.keys()
    learned = [k for k in after if k.startswith(("stages.layer2", "head")) and "weight" in k]
    norms = [k for k in after if k.startswith("stages.layer2") and (".bn" in k or "downsample.1" in k)]
    assert all(not torch.equal(after[k], before[k]) for k in learned if k not in norms)
    assert any("running_var" in k for k in norms)
    assert any("weight" in k for k in norms)
    assert all(torch.equal(after[k], before[k]) for k in norms)  # normalisation as pretrained, all of it


def test_the_same_call_gives_the_same_bytes_and_another_seed_does_not(cohort, tmp_path):
    split = split_by_patient(cohort)
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = fit(small(), cohort, split, PREPARE, FINETUNE, out=tmp_path / name, seed=seed, progress=False,
                  augment=Augment(rotate_deg=10, noise_std=0.1))  # fmt: skip
        files.append((run.folder / "fold-0" / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.parametrize("at", [0, 2, 5, 7, 11])
def test_an_interrupted_run_goes_on_to_the_same_bytes(cohort, tmp_path, monkeypatch, at):
    split, options = split_by_patient(cohort), {"progress": False, "augment": Augment(noise_std=0.1)}
    whole = fit(small(), cohort, split, PREPARE, FINETUNE, out=tmp_path / "whole", **options)

    with interrupted_at(monkeypatch, at):
        with pytest.raises(Interrupted, match="same command") as caught:
            fit(small(), cohort, split, PREPARE, FINETUNE, out=tmp_path / "cut", **options)
        assert caught.value.exit_code == 75
    with pytest.raises(RunError, match="not complete"):
        Run.open(tmp_path / "cut", cohort)
    again = fit(small(), cohort, split, PREPARE, FINETUNE, out=tmp_path / "cut", **options)
    for name in ("model", "last"):
        a, b = weights_of(whole, name=name), weights_of(again, name=name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_complete_run_is_opened_and_another_one_refused(cohort, tmp_path, monkeypatch):
    split, recipe = split_by_patient(cohort), Recipe(method="logistic")
    run = fit(linear(), cohort, split, PREPARE, recipe, out=tmp_path / "r", progress=False)
    monkeypatch.setattr(FIT.Job, "fit_fold", None)  # nothing may be trained again
    again = fit(linear(), cohort, split, PREPARE, recipe, out=tmp_path / "r", progress=False)
    assert (again.predict(split.test).probability == run.predict(split.test).probability).all()
    with pytest.raises(RunError, match="other recipe"):
        fit(linear(), cohort, split, PREPARE, recipe.model_copy(update={"class_weights": True}), out=tmp_path / "r")
    with pytest.raises(RunError, match="other seed"):
        fit(linear(), cohort, split, PREPARE, recipe, out=tmp_path / "r", seed=5)


def test_test_cases_change_nothing_that_is_learned(cohort, tmp_path):
    split = split_by_patient(cohort)
    run = fit(small(), cohort, split, PREPARE, FINETUNE, out=tmp_path / "a", progress=False)
    swapped = list(cohort.cases)
    for i in split.test:
        swapped[i] = replace(swapped[i], image=np.zeros((40, 40), np.uint8))
    other = replace(cohort, cases=tuple(swapped))
    twin = fit(small(), other, split, PREPARE, FINETUNE, out=tmp_path / "b", progress=False)
    a, b = weights_of(run), weights_of(twin)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_logistic_regression_is_scikit_learns_on_standardised_features():
    rng = np.random.default_rng(0)
    x = rng.normal(3, [1, 10, 0.01, 5], (200, 4)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=200) > 3).astype(np.int64)
    patients = np.arange(200).astype(str)
    found = fit_logistic(x, y, patients, 2, strengths=(0.1,))
    scaler = StandardScaler().fit(x.astype(np.float64))
    oracle = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(scaler.transform(x.astype(np.float64)), y)
    assert np.allclose(found.probability(x), oracle.predict_proba(scaler.transform(x.astype(np.float64))), atol=1e-4)
    three = fit_logistic(x, y + (x[:, 1] > 10), patients, 3, strengths=(1.0,))
    assert three.probability(x).shape == (200, 3)


def test_held_out_probabilities_come_from_models_that_did_not_see_the_patient():
    rng = np.random.default_rng(0)
    n = 120
    patients = np.repeat(np.arange(n // 2), 2).astype(str)
    x = np.repeat(rng.normal(size=(n // 2, 300)), 2, axis=0)  # twins: whoever saw one knows the other
    y = np.repeat(rng.integers(0, 2, n // 2), 2)
    found = fit_logistic(x, y, patients, 2, strengths=(10.0,))
    inside = (found.probability(x).argmax(1) == y).mean()
    outside = (found.held_out.argmax(1) == y).mean()
    assert inside == 1
    assert 0.3 < outside < 0.7


def test_frozen_features_are_computed_once(cohort, tmp_path, monkeypatch):
    from medtransfer.model import Model

    seen, walk = [], Model.walk
    monkeypatch.setattr(Model, "walk", lambda self, x, names: (seen.append(len(x)), walk(self, x, names))[1])
    split = split_by_patient(cohort)
    fit(linear(), cohort, split, PREPARE, Recipe(method="probe", epochs=6), out=tmp_path / "r", progress=False)
    assert sum(seen) == len(split.train) + len(split.val)
    seen.clear()
    folds = split_by_patient(cohort, folds=3, val=0)
    fit(linear(), cohort, folds, PREPARE, Recipe(method="logistic"), out=tmp_path / "f", progress=False)
    assert sum(seen) == len(cohort)


def test_features_do_not_depend_on_the_batch(cohort):
    prepared = Prepared(cohort.cases, PREPARE, progress=False)
    a = frozen_features(linear(), prepared, range(20), batch_size=20, progress=False)
    b = frozen_features(linear(), prepared, range(20), batch_size=3, progress=False)
    assert np.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_folds_predict_every_case_once_and_validation_never_overlaps(tmp_path):
    cohort = blobs(80)
    split = split_by_patient(cohort, folds=4, val=0)
    run = fit(linear(), cohort, split, PREPARE, Recipe(method="logistic"), out=tmp_path / "r", progress=False)
    test, val = run.test(), run.validation()
    assert sorted(test.case) == sorted(cohort.aliases)
    for fold in range(4):
        assert not set(test.patient[test.fold == fold]) & set(val.patient[val.fold == fold])
    again = Run.open(tmp_path / "r", cohort, progress=False)
    assert (again.test().probability == test.probability).all()
    assert (test.positive[test.reference == 1].mean() - test.positive[test.reference == 0].mean()) > 0.2


def test_learning_learns(tmp_path):
    cohort = blobs(120)
    split = split_by_patient(cohort)
    recipe = Recipe(epochs=10, freeze_epochs=2, batch_size=8, lr=3e-3, backbone_lr_scale=0.3)
    run = fit(
        load_model("random/resnet18", until="layer1"),
        cohort,
        split,
        PREPARE,
        recipe,
        out=tmp_path / "r",
        progress=False,
    )
    history = [e["train_loss"] for e in run.record()["history"]]
    assert history[-1] < 0.75 * history[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": {"classes": 3}}, "classes"),
        ({"prepare": {"size": (8, 8, 8)}}, "3D"),
        ({"prepare": {"size": 48, "window_hu": ["lung", "bone"]}}, "window"),
        ({"recipe": {"unfreeze_from": "layer7"}}, "layer7"),
        ({"recipe": {"method": "logistic"}, "model": {"head": Head(hidden=(3,))}}, "linear head"),
        (
            {
                "recipe": {"method": "logistic"},
                "prepare": {"size": (8, 8, 8)},
                "model": {"dims": 3, "depth": "slices", "head": Head(attention=4)},
            },
            "weigh slices",
        ),
        ({"split": {"folds": 3, "val": 0}}, "validation"),
    ],
)
def test_what_does_not_fit_together_is_refused(cohort, tmp_path, change, word):
    model = load_model("random/resnet18", until="layer1", **change.get("model", {}))
    split = split_by_patient(cohort, **change.get("split", {}))
    with pytest.raises(ConfigError, match=word):
        fit(
            model,
            cohort,
            split,
            Prepare(**change.get("prepare", {"size": 48})),
            Recipe(**change.get("recipe", {})),
            out=tmp_path,
        )


def test_an_output_folder_that_cannot_be_made_is_named(cohort, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        fit(linear(), cohort, split_by_patient(cohort), PREPARE, Recipe(method="logistic"), out=tmp_path / "file" / "r")


def test_a_full_disk_says_what_is_missing(cohort, tmp_path, monkeypatch):
    import os

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((RunError, OSError), match=r"bytes|space|written"):
        fit(
            linear(),
            cohort,
            split_by_patient(cohort),
            PREPARE,
            Recipe(method="logistic"),
            out=tmp_path / "r",
            progress=False,
        )


def test_no_identifier_leaves_memory(tmp_path):
    base = blobs(40)
    named = tuple(replace(c, case_id=f"CANARY-{c.case_id}", patient_id=f"CANARY-{c.patient_id}") for c in base.cases)
    cohort = replace(base, cases=named)
    run = fit(
        linear(),
        cohort,
        split_by_patient(cohort),
        PREPARE,
        Recipe(method="logistic"),
        out=tmp_path / "r",
        progress=False,
    )
    run.predict(run.split.test)
    for path in (tmp_path / "r").rglob("*"):
        if path.is_file() and "private" not in path.parts:
            assert b"CANARY" not in path.read_bytes(), path.name
    private = tmp_path / "r" / "private" / "ids.csv"
    assert b"CANARY" in private.read_bytes()
    assert private.stat().st_mode & 0o077 == 0


def test_a_head_that_learns_alone_writes_no_backbone_until_the_end(cohort, tmp_path):
    model = small()
    run = fit(model, cohort, split_by_patient(cohort), PREPARE, FINETUNE.model_copy(update={"method": "probe"}),
              out=tmp_path / "r", progress=False)  # fmt: skip
    names = {k.split(".")[1] for k in weights_of(run, name="last") if k.startswith("model.")}
    assert names == {"head"}
    assert weights_of(run).keys() == model.state_dict().keys()


def test_checkpoints_left_by_a_process_killed_at_the_end_are_removed(cohort, tmp_path):
    split = split_by_patient(cohort, val=0.2, test=0.2)
    model, prepare = load_model("random/resnet18", until="layer1"), Prepare(size=40, scale="range")
    run = fit(model, cohort, split, prepare, Recipe(method="probe", epochs=1), out=tmp_path / "run", progress=False)
    left = run.folder / "fold-0" / "kept-0.safetensors"
    left.write_bytes(b"left")
    state = json.loads((run.folder / "run.json").read_text()) | {"status": "running"}
    (run.folder / "run.json").write_text(json.dumps(state))
    fit(model, cohort, split, prepare, Recipe(method="probe", epochs=1), out=tmp_path / "run", progress=False)
    assert not left.exists()
