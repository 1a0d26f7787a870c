"""What a training logs, for those who watch it in TensorBoard or MLflow."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medtransfer.claims import alone
from medtransfer.errors import ConfigError, MedTransferWarning, MissingPackage, require
from medtransfer.run import read_state, write_json

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation
    from medtransfer.segment.evaluate import Segmented

_NUMBERS = ("train_loss", "val_loss", "val_auroc", "held_out_loss", "learning_rate", "seconds")
NOTES = "track.json"
_FILES = ("report.html", "model_card.md", "model_card.xml", "metrics.json", "config.yaml")


class Tracker:
    """Passes the log of a run on; given to :func:`medtransfer.fit` as ``watch``.

    A run that goes on after an interruption goes on in the same place, and processes that train its folds share it.
    Losses, rates, settings, results, report and model card are passed on; no id of a case or patient, and no file.
    MLflow that cannot be reached costs a warning and not the run: what it missed is passed on when the run ends, or
    by the same command later.

    Parameters
    ----------
    out : Path
        The run folder.
    tensorboard : bool
        Write event files into ``tensorboard`` of the run folder, one place a fold or trial.
    mlflow : str or None
        A folder for MLflow's file store, or the URI of a database or server; a server is the only one that needs
        a connection. Folds, and the trials of a search, are nested runs.
    name : str
        MLflow's experiment.
    """

    def __init__(self, out: Path, *, tensorboard: bool = False, mlflow: str | None = None, name: str = "medtransfer"):
        self.out, self.name = out, name
        self._writers: dict[str, Any] = {}
        self._writer = _tensorboard() if tensorboard else None
        self._mlflow = _MLflow(out, mlflow, name) if mlflow else None

    def __call__(self, entry: dict[str, Any]) -> None:
        """Pass one entry of the log on: the numbers of an epoch of a fold."""
        fold, step = f"fold-{entry['fold']}", int(entry["epoch"]) + 1
        found = {k: float(entry[k]) for k in _NUMBERS if _is_number(entry.get(k))}
        self._write(fold, found, step)
        if self._mlflow is not None:
            self._mlflow.epoch(fold, found, step)

    def trial(self, record: dict[str, Any]) -> None:
        """Pass a trial of a search on: number, state, candidate as in a config, mean loss, seconds."""
        place = f"trial-{record['number']}"
        found = {k: float(record[k]) for k in ("loss", "seconds") if _is_number(record.get(k))}
        self._write(place, found, 0)
        if self._mlflow is not None:
            self._mlflow.trial(place, found, record)

    def finish(self, evaluation: Evaluation | Segmented) -> None:
        """Pass the test results and the report on, once, and close what is open."""
        estimates = evaluation.estimates.items()
        found = {f"test_{k}": e.value for k, e in estimates if e.value is not None and math.isfinite(e.value)}
        if self._writer is not None and not read_notes(self.out).get("tensorboard"):
            self._write(".", found, 0)
            write_json(self.out / NOTES, read_notes(self.out) | {"tensorboard": "written"})
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._mlflow is not None:
            self._mlflow.finish(found)

    def _write(self, place: str, numbers: dict[str, Any], step: int) -> None:
        if self._writer is None:
            return
        if place not in self._writers:
            self._writers[place] = self._writer(str(self.out / "tensorboard" / place))
        for key, value in numbers.items():
            self._writers[place].add_scalar(key, value, step)
        self._writers[place].flush()


class _MLflow:
    """A run in MLflow with nested ones; ``track.json`` of the run folder knows their numbers there."""

    def __init__(self, out: Path, place: str, name: str) -> None:
        self.out, self.name = out, name
        self._client, self._lost = _client(place)
        self._remote = place.startswith(("http://", "https://"))
        self._known: dict[str, str] = {}
        self._gone = False

    def epoch(self, fold: str, numbers: dict[str, float], step: int) -> None:
        """Numbers of an epoch."""
        self._pass(lambda: self._log(self._run(fold), numbers, step))

    def trial(self, place: str, numbers: dict[str, float], record: dict[str, Any]) -> None:
        """A finished trial."""

        def send() -> None:
            run = self._run(place)
            for key, value in record["parameters"].items():
                self._client.log_param(run, key, value)
            self._client.set_tag(run, "state", record["state"])
            self._log(run, numbers, 0)
            self._client.set_terminated(run, "FINISHED" if record["state"] == "complete" else "KILLED")

        self._pass(send)

    def finish(self, results: dict[str, float]) -> None:
        """Whatever was missed, the results, and the files of the report."""
        if read_notes(self.out).get("mlflow"):
            return
        self._gone = False

        def send() -> None:
            parent = self._run("")
            self._catch_up()
            self._log(parent, results, 0)
            kept = urlsplit(self._client.get_run(parent).info.artifact_uri).scheme
            if kept in (("mlflow-artifacts",) if self._remote else ("", "file")):
                for file in (self.out / n for n in _FILES):
                    if file.is_file():
                        self._client.log_artifact(parent, str(file))
            else:
                where = kept or "a folder"
                warnings.warn(f"the report is not passed on: the server keeps files elsewhere ({where}), and not by "
                              "--serve-artifacts", MedTransferWarning, stacklevel=4)  # fmt: skip
            for name, run in self._known.items():
                if not name.startswith("trial"):
                    self._client.set_terminated(run)

        if self._pass(send):
            write_json(self.out / NOTES, read_notes(self.out) | {"mlflow": "finished"})

    def _pass(self, send: Callable[[], None]) -> bool:
        """Whether MLflow took it; the first time that it does not is told."""
        if self._gone:
            return False
        try:
            send()
        except (self._lost, OSError) as error:
            self._gone = True
            warnings.warn(
                f"MLflow cannot be reached ({type(error).__name__}); the run goes on and stands in its folder, and the "
                "same command passes on later what is missing", MedTransferWarning, stacklevel=4,
            )  # fmt: skip
            return False
        return True

    def _log(self, run: str, numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            self._client.log_metric(run, key, value, step=step)

    def _catch_up(self) -> None:
        """Epochs of the run's own log that MLflow has not."""
        path = self.out / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = {(e["fold"], e["epoch"]): e for e in map(json.loads, lines)}
        for fold in sorted({k for k, _ in entries}):
            run = self._run(f"fold-{fold}")
            there = {m.step for m in self._client.get_metric_history(run, "train_loss")}
            for (k, epoch), entry in entries.items():
                if k == fold and epoch + 1 not in there:
                    self._log(run, {n: float(entry[n]) for n in _NUMBERS if _is_number(entry.get(n))}, epoch + 1)

    def _run(self, place: str) -> str:
        """MLflow's number of the run (empty name), of a fold or of a trial; made the first time, by one process."""
        if place in self._known:
            return self._known[place]
        with alone(self.out, ".track", wait=True):
            notes = read_notes(self.out)
            self._known = dict(notes.get("runs", {}))
            try:
                for name in dict.fromkeys(("", place)):
                    if name not in self._known:
                        self._known[name] = self._make(name)
                if "settings" not in notes and (settings := _settings(self.out)):
                    for key, value in settings.items():
                        self._client.log_param(self._known[""], key, value)
                    notes["settings"] = "written"
            finally:
                write_json(self.out / NOTES, notes | {"runs": self._known})
        return self._known[place]

    def _make(self, name: str) -> str:
        found = self._client.get_experiment_by_name(self.name)
        experiment = self._client.create_experiment(self.name) if found is None else found.experiment_id
        tags = {"mlflow.runName": name or self.out.name}
        tags |= {"mlflow.parentRunId": self._known[""]} if name else {}
        return str(self._client.create_run(experiment, tags=tags).info.run_id)


def track(out: str | Path, *, tensorboard: bool = False, mlflow: str | None = None, name: str = "medtransfer"
          ) -> Tracker | None:  # fmt: skip
    """A tracker, or None where nothing is to be tracked; see :class:`Tracker`.

    Raises
    ------
    MissingPackage
        Where TensorBoard (extra ``track``) or MLflow (extra ``mlflow``) is not installed.
    ConfigError
        Where MLflow's address holds a password, which belongs into the environment.

    Examples
    --------
    >>> track("runs/a") is None
    True
    """
    return Tracker(Path(out), tensorboard=tensorboard, mlflow=mlflow, name=name) if tensorboard or mlflow else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_notes(out: Path) -> dict[str, Any]:
    """What stands in ``track.json`` of a run folder."""
    path = out / NOTES
    return json.loads(path.read_text()) if path.is_file() else {}


def _settings(out: Path) -> dict[str, Any]:
    """What was asked, as parameters: recipe, preparation or plan, model, seed, sizes; nothing before training."""
    if not (out / "run.json").is_file():
        return {}
    asked = read_state(out)["asked"]
    sections = ("recipe", "prepare", "augment", "plan")
    found = {f"{s}.{k}": v for s in sections for k, v in asked.get(s, {}).items() if v is not None}
    keys = ("arch", "dims", "in_channels", "classes", "task")
    model = {f"model.{k}": asked["model"][k] for k in keys if k in asked["model"]}
    folds = {"split.folds": len(asked["split"])}
    folds |= {f"split.{k}": len(part) for k, part in zip(("train", "val", "test"), asked["split"][0], strict=True)}
    return found | model | folds | {"model.weights": asked["model"]["weights"]["name"], "seed": asked["seed"]}


def _tensorboard() -> Any:
    require("tensorboard", "track")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackage("TensorBoard cannot be used", got=str(error), fix="pip install 'medtransfer[track]'"
                             ) from error  # fmt: skip
    return SummaryWriter


def _client(place: str) -> tuple[Any, type[Exception]]:
    """A client of the store, and what it raises; MLflow's own reports about its use stay off.

    Raises
    ------
    ConfigError
        Where the address holds a password.
    """
    if urlsplit(place).password or (urlsplit(place).username and place.startswith("http")):
        raise ConfigError(
            "a password does not belong into a config", where="track.mlflow",
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )  # fmt: skip
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven would hold up a training for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if "://" not in place:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = Path(place).resolve().as_uri()
    mlflow = require("mlflow", "mlflow")
    return mlflow.MlflowClient(tracking_uri=place), mlflow.exceptions.MlflowException
