"""What a run decided on validation, written down once: thresholds by their rule, and the calibrator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import RunError
from medtransfer.metrics.recalibration import Calibrator, calibrate
from medtransfer.metrics.threshold import Threshold, threshold_by_rule
from medtransfer.run import write_json

if TYPE_CHECKING:
    from medtransfer.run import Run

FILE = "threshold.json"


def decide(run: Run, rule: str | None, *, calibrator: bool = False) -> tuple[Threshold | None, Calibrator | None]:
    """Threshold and calibrator of a run: as stored, or fitted on validation predictions now and stored.

    Parameters
    ----------
    run : Run
    rule : str or None
        As :func:`medtransfer.metrics.threshold.threshold_by_rule` takes it. Another rule than before is fitted, on
        validation again, and stored beside the first. None where no threshold is wanted (several classes).
    calibrator : bool
        Whether one is wanted.

    Returns
    -------
    (Threshold or None, Calibrator or None)
    """
    stored = _read(run.folder / FILE)
    thresholds = stored.setdefault("thresholds", {})
    name = None if rule is None else rule.strip().lower().replace(" ", "")
    lacking = (name is not None and name not in thresholds) or (calibrator and not stored.get("calibrator"))
    if lacking:
        val = run.validation()
        if name is not None and name not in thresholds:
            thresholds[name] = threshold_by_rule(name, val).to_json()
        if calibrator and not stored.get("calibrator"):
            stored["calibrator"] = calibrate(val).to_json()
    if lacking or (name is not None and stored.get("rule") != name):
        stored["rule"] = name
        write_json(run.folder / FILE, stored)
    return (
        None if name is None else Threshold.from_json(thresholds[name]),
        Calibrator.from_json(stored["calibrator"]) if calibrator else None,
    )


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
