"""What a training logs, for those who watch it in TensorBoard or MLflow."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import MissingPackage, require
from medtransfer.run import read_state, write_json

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation
    from medtransfer.segment.evaluate import Segmented

_NUMBERS = ("train_loss", "val_loss", "val_auroc", "held_out_loss", "learning_rate", "seconds")
_NOTES = "track.json"


class Tracker:
    """Passes the log of a run on; given to :func:`medtransfer.fit` as ``watch``.

    A run that goes on after an interruption goes on in the same place. Losses, rates, settings and results are
    passed on; no case, patient or file is named.

    Parameters
    ----------
    out : Path
        The run folder.
    tensorboard : bool
        Write event files into ``tensorboard`` of the run folder, one place a fold.
    mlflow : str or None
        A folder for MLflow's file store, or the URI of a database or server; a server is the only one that needs
        a connection. Folds are nested runs.
    name : str
        MLflow's experiment.
    """

    def __init__(self, out: Path, *, tensorboard: bool = False, mlflow: str | None = None, name: str = "medtransfer"):
        self.out, self.name = out, name
        self._writers: dict[str, Any] = {}
        self._writer = _tensorboard() if tensorboard else None
        self._client = _mlflow(mlflow) if mlflow else None
        self._known: dict[str, str] = {}

    def __call__(self, entry: dict[str, Any]) -> None:
        """Pass one entry of the log on: the numbers of an epoch of a fold."""
        fold, step = f"fold-{entry['fold']}", int(entry["epoch"]) + 1
        found = {k: float(entry[k]) for k in _NUMBERS if _is_number(entry.get(k))}
        self._write(fold, found, step)
        if self._client is not None:
            run = self._run(fold)
            for key, value in found.items():
                self._client.log_metric(run, key, value, step=step)

    def finish(self, evaluation: Evaluation | Segmented) -> None:
        """Pass the test results on, once, and close what is open."""
        found = {f"test_{k}": e.value for k, e in evaluation.estimates.items() if _is_number(e.value)}
        if self._writer is not None and not self._notes().get("tensorboard"):
            self._write(".", found, 0)
            write_json(self.out / _NOTES, self._notes() | {"tensorboard": "written"})
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._client is None or self._notes().get("mlflow"):
            return
        parent = self._run("")
        for key, value in found.items():
            self._client.log_metric(parent, key, value)
        for run in self._known.values():
            self._client.set_terminated(run)
        write_json(self.out / _NOTES, self._notes() | {"mlflow": "finished"})

    def _write(self, place: str, numbers: dict[str, Any], step: int) -> None:
        if self._writer is None:
            return
        if place not in self._writers:
            self._writers[place] = self._writer(str(self.out / "tensorboard" / place))
        for key, value in numbers.items():
            self._writers[place].add_scalar(key, value, step)
        self._writers[place].flush()

    def _notes(self) -> dict[str, Any]:
        path = self.out / _NOTES
        return json.loads(path.read_text()) if path.is_file() else {}

    def _run(self, fold: str) -> str:
        """MLflow's number of the run (empty name) or of a fold; made the first time."""
        client = self._client
        assert client is not None
        self._known = self._known or dict(self._notes().get("runs", {}))
        for name in dict.fromkeys(("", fold)):
            if name in self._known:
                continue
            found = client.get_experiment_by_name(self.name)
            experiment = client.create_experiment(self.name) if found is None else found.experiment_id
            tags = {"mlflow.runName": name or self.out.name}
            tags |= {"mlflow.parentRunId": self._known[""]} if name else {}
            self._known[name] = client.create_run(experiment, tags=tags).info.run_id
            if not name:
                for key, value in _settings(self.out).items():
                    client.log_param(self._known[""], key, value)
            write_json(self.out / _NOTES, self._notes() | {"runs": self._known})
        return self._known[fold]


def track(out: str | Path, *, tensorboard: bool = False, mlflow: str | None = None, name: str = "medtransfer"
          ) -> Tracker | None:  # fmt: skip
    """A tracker, or None where nothing is to be tracked; see :class:`Tracker`.

    Raises
    ------
    MissingPackage
        Where TensorBoard (extra ``track``) or MLflow (extra ``mlflow``) is not installed.

    Examples
    --------
    >>> track("runs/a") is None
    True
    """
    return Tracker(Path(out), tensorboard=tensorboard, mlflow=mlflow, name=name) if tensorboard or mlflow else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _settings(out: Path) -> dict[str, Any]:
    """What was asked, as parameters: recipe, preparation or plan, weights, seed."""
    asked = read_state(out)["asked"]
    found = {f"{s}.{k}": v for s in ("recipe", "prepare", "plan") for k, v in asked.get(s, {}).items() if v is not None}
    weights = asked["model"]["weights"]["name"]
    return found | {"model.arch": asked["model"]["arch"], "model.weights": weights, "seed": asked["seed"]}


def _tensorboard() -> Any:
    require("tensorboard", "track")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackage("TensorBoard cannot be used", got=str(error), fix="pip install 'medtransfer[track]'"
                             ) from error  # fmt: skip
    return SummaryWriter


def _mlflow(place: str) -> Any:
    """A client of the store; MLflow's own reports about its use stay off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if "://" not in place:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = Path(place).resolve().as_uri()
    mlflow = require("mlflow", "mlflow")
    return mlflow.MlflowClient(tracking_uri=place)
