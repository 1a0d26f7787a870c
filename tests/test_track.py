"""What is logged arrives in TensorBoard and MLflow, in folds, once, and without a connection."""

import json
import socket

import pytest
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, evaluate, fit, load_model, split_by_patient
from medtransfer.errors import Interrupted, MissingPackage
from medtransfer.track import Tracker, track


@pytest.fixture
def trained(tmp_path):
    """Train two folds under a tracker, stopped once on the way, and hand over what the run itself logged."""

    def go(**options):
        cohort, out = blobs(60), tmp_path / "run"
        split = split_by_patient(cohort, folds=2, val=0.2)
        settings = {"out": out, "progress": False}
        model, recipe = load_model("random/resnet18", until="layer1"), Recipe(method="probe", epochs=3, batch_size=8)
        first = Tracker(out, **options)

        def stopped(entry):
            first(entry)
            if entry["fold"] == 0 and entry["epoch"] == 1:
                raise Interrupted("stopped by hand")

        with pytest.raises(Interrupted):
            fit(model, cohort, split, Prepare(size=40, scale="range"), recipe, watch=stopped, **settings)
        second = Tracker(out, **options)
        run = fit(model, cohort, split, Prepare(size=40, scale="range"), recipe, watch=second, **settings)
        evaluation = evaluate(run.test(), bootstrap=100)
        second.finish(evaluation)
        Tracker(out, **options).finish(evaluation)  # a third call, as the same command gives, adds nothing
        history = [json.loads((out / f"fold-{k}" / "history.json").read_text()) for k in range(2)]
        return out, history, evaluation

    return go


def test_tensorboard_reads_the_numbers_of_the_history(trained):
    pytest.importorskip("tensorboard", reason="the extra track is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, history, evaluation = trained(tensorboard=True)
    for k in range(2):
        events = EventAccumulator(str(out / "tensorboard" / f"fold-{k}")).Reload()
        seen = {e.step: e.value for e in events.Scalars("val_loss")}
        assert seen == {e["epoch"] + 1: pytest.approx(e["val_loss"], rel=1e-6) for e in history[k]}
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    found = events.Scalars("test_auroc")
    assert [e.value for e in found] == [pytest.approx(evaluation.estimates["auroc"].value, rel=1e-6)]


def test_mlflow_has_nested_runs_in_a_file_store_and_opens_no_socket(trained, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    store = tmp_path / "mlruns"
    _, history, evaluation = trained(mlflow=str(store))
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    runs = client.search_runs([client.get_experiment_by_name("medtransfer").experiment_id])
    by_name = {r.data.tags["mlflow.runName"]: r for r in runs}
    assert sorted(by_name) == ["fold-0", "fold-1", "run"]
    assert len(runs) == 3  # the second call went on in the runs of the first
    parent = by_name["run"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["recipe.method"] == "probe"
    assert parent.data.metrics["test_auroc"] == pytest.approx(evaluation.estimates["auroc"].value)
    for k in range(2):
        assert by_name[f"fold-{k}"].data.tags["mlflow.parentRunId"] == parent.info.run_id
        seen = client.get_metric_history(by_name[f"fold-{k}"].info.run_id, "val_loss")
        assert {m.step: m.value for m in seen} == {e["epoch"] + 1: pytest.approx(e["val_loss"]) for e in history[k]}
    written = b"".join(p.read_bytes() for p in store.rglob("*") if p.is_file())
    assert not any(alias.encode() in written for alias in blobs(60).aliases)


def test_packages_are_extras(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingPackage, match=r"medtransfer\[track\]"):
        track(tmp_path, tensorboard=True)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(MissingPackage, match=r"medtransfer\[mlflow\]"):
        track(tmp_path, mlflow="mlruns")
    assert track(tmp_path) is None


def test_trials_of_a_search_are_nested_beside_the_folds(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("optuna", reason="the extra hpo is not installed")
    from medtransfer.search import search

    cohort, store = blobs(60), tmp_path / "mlruns"
    tracker = Tracker(tmp_path / "run", mlflow=str(store), name="ward")
    (tmp_path / "run").mkdir()
    search(load_model("random/resnet18", until="layer1"), cohort, split_by_patient(cohort), Prepare(
        size=40, scale="range"), out=tmp_path / "run" / "search", trials=1, folds=2, progress=False,
        propose=lambda trial, default: Recipe(method="logistic", class_weights=0.5), watch=tracker.trial)  # fmt: skip
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    runs = client.search_runs([client.get_experiment_by_name("ward").experiment_id])
    by_name = {r.data.tags["mlflow.runName"]: r for r in runs}
    assert sorted(by_name) == ["run", "trial-0", "trial-1"]
    for k in range(2):
        trial = by_name[f"trial-{k}"]
        assert trial.data.tags["mlflow.parentRunId"] == by_name["run"].info.run_id
        assert trial.data.params["recipe.method"] == "logistic"
        assert trial.data.metrics["loss"] > 0
    assert by_name["trial-1"].data.params["recipe.class_weights"] == "0.5"


def test_processes_that_train_folds_share_one_parent(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    store, out = tmp_path / "mlruns", tmp_path / "run"
    out.mkdir()
    entry = {"epoch": 0, "train_loss": 0.5, "seconds": 1.0}
    first, second = (Tracker(out, mlflow=str(store)) for _ in range(2))
    first(entry | {"fold": 0})
    second(entry | {"fold": 1})
    first(entry | {"fold": 2})
    known = json.loads((out / "track.json").read_text())["runs"]
    assert sorted(known) == ["", "fold-0", "fold-1", "fold-2"]
    assert len(set(known.values())) == 4
