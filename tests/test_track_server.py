"""MLflow as a server on loopback: everything arrives, nobody else is called, and a server that goes takes no run along.

The server is `mlflow` of the path, or of MEDTRANSFER_TEST_MLFLOW: the whole package, which may have an environment of
its own.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, evaluate, fit, load_model, split_by_patient, write_report
from medtransfer.errors import ConfigError, MedTransferWarning
from medtransfer.track import NOTES, Tracker

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


class Server:
    """An MLflow server that can be stopped and started again at the same address with the same store."""

    def __init__(self, command, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command, self.folder, self.process = command, folder, None
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [self.command, "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                   "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}",
                   "--artifacts-destination", str(self.folder / "artifacts")]  # fmt: skip
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return self
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None:
                    pytest.skip(f"this mlflow cannot serve: {self.process.stderr.read().strip()[-200:]}")
                time.sleep(0.2)
        self.stop()
        pytest.skip("the mlflow server does not answer")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 15)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, 9)
                self.process.wait()


@pytest.fixture
def server(tmp_path):
    command = os.environ.get("MEDTRANSFER_TEST_MLFLOW") or shutil.which("mlflow")
    if command is None:
        pytest.skip("mlflow, as a server, is not installed")
    (tmp_path / "store").mkdir()
    made = Server(command, tmp_path / "store")
    yield made.start()
    made.stop()


def trained(out, watch):
    cohort = blobs(40)
    split = split_by_patient(cohort, folds=2, val=0.2)
    model, recipe = load_model("random/resnet18", until="layer1"), Recipe(method="probe", epochs=2, batch_size=8)
    run = fit(model, cohort, split, Prepare(size=40, scale="range"), recipe, out=out, progress=False, watch=watch)
    found = evaluate(run.test(), bootstrap=100)
    write_report(found, out / "report.html")
    return found, [json.loads((out / f"fold-{k}" / "history.json").read_text()) for k in range(2)]


def arrived(server):
    client = mlflow.MlflowClient(tracking_uri=server.address)
    runs = client.search_runs([client.get_experiment_by_name("ward").experiment_id])
    return client, {r.data.tags["mlflow.runName"]: r for r in runs}, len(runs)


@pytest.mark.slow
def test_everything_arrives_and_no_other_address_is_called(server, tmp_path, monkeypatch):
    called, connect = set(), socket.socket.connect

    def noted(self, address):
        called.add(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    tracker = Tracker(tmp_path / "run", mlflow=server.address, name="ward")
    evaluation, history = trained(tmp_path / "run", tracker)
    tracker.finish(evaluation)
    tracker.trial({"number": 4, "state": "pruned", "loss": 0.5, "seconds": 2.0, "parameters": {"recipe.lr": 0.01}})
    Tracker(tmp_path / "run", mlflow=server.address, name="ward").finish(evaluation)  # adds nothing
    assert {a[:2] for a in called} == {("127.0.0.1", server.port)}
    client, runs, count = arrived(server)
    assert sorted(runs) == ["fold-0", "fold-1", "run", "trial-4"]
    assert count == 4
    parent = runs["run"]
    assert parent.info.status == "FINISHED"
    assert (parent.data.params["recipe.method"], parent.data.params["split.folds"]) == ("probe", "2")
    assert parent.data.metrics["test_auroc"] == pytest.approx(evaluation.estimates["auroc"].value)
    kept = {f.path: f.file_size for f in client.list_artifacts(parent.info.run_id)}
    for name in ("report.html", "model_card.md", "metrics.json"):
        assert kept[name] == (tmp_path / "run" / name).stat().st_size
    for k in range(2):
        assert runs[f"fold-{k}"].data.tags["mlflow.parentRunId"] == parent.info.run_id
        seen = client.get_metric_history(runs[f"fold-{k}"].info.run_id, "val_loss")
        assert {m.step: m.value for m in seen} == {e["epoch"] + 1: pytest.approx(e["val_loss"]) for e in history[k]}
    trial = runs["trial-4"]
    assert (trial.info.status, trial.data.tags["state"], trial.data.params["recipe.lr"]) == ("KILLED", "pruned", "0.01")
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.slow
def test_a_server_that_goes_takes_no_run_along_and_gets_later_what_it_missed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(tmp_path / "run", mlflow=server.address, name="ward")

    def watch(entry):
        tracker(entry)
        if entry["fold"] == 0 and entry["epoch"] == 0:
            server.stop()

    with pytest.warns(MedTransferWarning, match="MLflow cannot be reached") as told:
        evaluation, history = trained(tmp_path / "run", watch)
    assert len([w for w in told if "MLflow" in str(w.message)]) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    with pytest.warns(MedTransferWarning, match="MLflow cannot be reached"):
        tracker.finish(evaluation)
    assert "mlflow" not in json.loads((tmp_path / "run" / NOTES).read_text())
    server.start()
    Tracker(tmp_path / "run", mlflow=server.address, name="ward").finish(evaluation)
    client, runs, count = arrived(server)
    assert count == 3
    for k in range(2):
        seen = client.get_metric_history(runs[f"fold-{k}"].info.run_id, "val_loss")
        assert [m.step for m in sorted(seen, key=lambda m: m.step)] == [e["epoch"] + 1 for e in history[k]]
    assert runs["run"].data.metrics["test_auroc"] == pytest.approx(evaluation.estimates["auroc"].value)


@pytest.mark.parametrize("address", ["https://ann:secret@host/x", "http://ann@host", "postgresql://ann:secret@host/db"])
def test_passwords_do_not_stand_in_a_config(address, tmp_path):
    with pytest.raises(ConfigError, match=r"track.mlflow.*MLFLOW_TRACKING_PASSWORD") as told:
        Tracker(tmp_path, mlflow=address)
    assert "secret" not in str(told.value)
