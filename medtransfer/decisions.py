"""What a run decided on validation, written down once: thresholds by their rule, and the calibrator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ConfigError, RunError
from medtransfer.metrics.recalibration import Calibrator, calibrate
from medtransfer.metrics.threshold import Threshold, threshold_by_rule
from medtransfer.run import write_json

if TYPE_CHECKING:
    from medtransfer.run import Run

FILE = "threshold.json"


def decide(
    run: Run, rule: str, *, calibrator: bool = False
) -> tuple[Threshold | dict[str, Threshold] | None, Calibrator | None]:
    """Threshold and calibrator of a run: as stored, or fitted on validation predictions now and stored.

    Parameters
    ----------
    run : Run
    rule : str
        As :func:`medtransfer.metrics.threshold.threshold_by_rule` takes it. Another rule than before is fitted, on
        validation again, and stored beside the first.
    calibrator : bool
        Whether one is wanted.

    Returns
    -------
    threshold : Threshold, dict of str to Threshold, or None
        Of two classes; of each label; None where the most probable class is called, or numbers are predicted.
    calibrator : Calibrator or None

    Raises
    ------
    ConfigError
        Where a calibrator is asked for and the task is not classification.
    """
    task = run.cohort.task
    if calibrator and task != "classification":
        raise ConfigError("only classes can be recalibrated", where="evaluate.calibrate", got=task, fix="leave it out")
    labels = run.cohort.classes if task == "multilabel" else ()
    binary = task == "classification" and len(run.cohort.classes) == 2
    name = rule.strip().lower().replace(" ", "") if binary or labels else None
    stored = _read(run.folder / FILE)
    thresholds = stored.setdefault("thresholds", {})
    lacking = (name is not None and name not in thresholds) or (calibrator and not stored.get("calibrator"))
    if lacking:
        val = run.validation()
        if name is not None and name not in thresholds:
            each = {label: threshold_by_rule(name, val.label(label)).to_json() for label in labels}
            thresholds[name] = each or threshold_by_rule(name, val).to_json()
        if calibrator and not stored.get("calibrator"):
            stored["calibrator"] = calibrate(val).to_json()
    if lacking or (name is not None and stored.get("rule") != name):
        stored["rule"] = name
        write_json(run.folder / FILE, stored)
    fitted = Calibrator.from_json(stored["calibrator"]) if calibrator else None
    if name is None:
        return None, fitted
    if labels:
        return {label: Threshold.from_json(thresholds[name][label]) for label in labels}, fitted
    return Threshold.from_json(thresholds[name]), fitted


def stored_rule(run: Run) -> str | None:
    """The rule of the threshold in use, None where none was stored."""
    rule = _read(run.folder / FILE).get("rule")
    return None if rule is None else str(rule)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**stored, "thresholds": dict(stored.get("thresholds") or {})}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(
            "the stored threshold is damaged",
            where=path.name,
            got=type(error).__name__,
            fix="remove the file: the threshold is fitted on validation again",
        ) from error
