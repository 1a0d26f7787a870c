"""A run is judged: threshold and calibration from validation, numbers from test, controls beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from medtransfer.controls import Control
from medtransfer.controls import controls as control_predictions
from medtransfer.errors import ConfigError

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation, Threshold
    from medtransfer.run import Run

Share = Annotated[float, Field(gt=0, lt=1)]
Rule = Annotated[
    str, Field(pattern=r"^(youden|(sensitivity|specificity)>=(0?\.\d+|1(\.0+)?)|cost=\d+(\.\d+)?|0?\.\d+)$")
]


def judge(
    run: Run,
    *,
    threshold: Rule = "youden",
    calibrate: bool = False,
    bootstrap: Annotated[int, Field(ge=100)] = 2000,
    prevalences: tuple[Share, ...] = (),
    controls: tuple[Control, ...] = ("covariates", "border", "histogram", "random_weights", "frozen"),
    subgroups: tuple[str, ...] = ("sex", "site", "manufacturer"),
    explain: bool = True,
    robustness: bool = True,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a run on its test parts.

    Parameters
    ----------
    run : Run
    threshold : str
        ``'youden'``, ``'sensitivity>=0.9'``, ``'specificity>=0.9'`` or ``'cost=5'`` (a missed case weighs as five
        false alarms), chosen on validation, one a fold; or a number that was fixed before.
    calibrate : bool
        Recalibrate the probabilities, fitted on validation.
    bootstrap : int
        Resamples of patients behind the intervals.
    prevalences : tuple of float
        For which predictive values are worked out.
    controls : tuple of str
        See :func:`medtransfer.controls.controls`.
    subgroups : tuple of str
        Covariates by which results are also given.
    explain : bool
        Show where the evidence lay in the surest errors, and check that these maps depend on what was learned.
    robustness : bool
        Measure again on noisier, coarser, shifted images and other contrast (:mod:`medtransfer.robustness`).
    seed : int
        Of the resampling, the controls and the changes.
    """
    from medtransfer.evaluate import calibrate as fit_calibrator
    from medtransfer.evaluate import evaluate, threshold_by_rule
    from medtransfer.report.explained import examine
    from medtransfer.robustness import robustness as measure

    task, binary = run.cohort.task, run.cohort.task == "classification" and len(run.cohort.classes) == 2
    if calibrate and task != "classification":
        raise ConfigError("only classes can be recalibrated", where="evaluate.calibrate", got=task, fix="leave it out")
    test = run.test()
    val = run.validation() if binary or calibrate or task == "multilabel" else None
    groups = {name: values for name in subgroups if (values := _covariate(run, name)) is not None}
    point: Threshold | dict[str, Threshold] | None = None
    if val is not None and task == "multilabel":
        point = {name: threshold_by_rule(threshold, val.label(name)) for name in val.classes}
    elif val is not None and binary:
        point = threshold_by_rule(threshold, val)
    found = evaluate(
        test,
        threshold=point,
        calibrator=fit_calibrator(val) if calibrate and val is not None else None,
        bootstrap=bootstrap,
        seed=seed,
        prevalences=prevalences,
        controls=control_predictions(run, controls, seed=seed),
        subgroups=groups or None,
    )
    facts: dict[str, object] = {"explanation": None, "robustness": None}
    checks = found.checks
    if explain and run.model(0).description.task == "classification":
        facts["explanation"], check = examine(run, found, seed=seed)
        checks = [*checks, check]
    if robustness:
        facts["robustness"] = measure(run, bootstrap=bootstrap, seed=seed)
    run.describe(facts)
    return replace(found, checks=checks, record=run.record())


def _covariate(run: Run, name: str) -> np.ndarray[tuple[int], np.dtype[np.str_]] | None:
    """A covariate of the test cases in the order of ``run.test()``; None where it does not differ."""
    index = [i for fold in run.split.folds for i in fold.test]
    values = np.array([run.cohort.cases[i].covariates.get(name, "") or "unknown" for i in index], dtype=np.str_)
    return values if len(set(values.tolist())) > 1 else None
