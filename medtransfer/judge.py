"""A run is judged: threshold and calibration from validation, numbers from test, controls beside them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, Field

from medtransfer.controls import Control
from medtransfer.controls import controls as control_predictions
from medtransfer.decisions import decide
from medtransfer.enough import how_many
from medtransfer.groups import groupings
from medtransfer.metrics.intervals import ClusterBootstrap, plain
from medtransfer.predictions import BY_CLASS
from medtransfer.probes import shuffled_auroc, start_features

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation
    from medtransfer.run import Run

EVERY_CONTROL: tuple[Control, ...] = (
    "covariates", "header", "geometry", "border", "corners", "histogram", "random_weights", "frozen",
)  # fmt: skip
FEWEST_FOR_A_CURVE = 40  # training cases
Share = Annotated[float, Field(gt=0, lt=1)]
_RULES = re.compile(r"youden|(sensitivity|specificity)>=(0?\.\d+|1(\.0+)?)|cost=\d+(\.\d+)?|0?\.\d+")


def _rule(text: str) -> str:
    if not _RULES.fullmatch(text):
        raise ValueError("a threshold is youden, sensitivity>=0.9, specificity>=0.9, cost=5, or a number such as 0.35")
    return text


Rule = Annotated[str, AfterValidator(_rule)]


def judge(
    run: Run,
    *,
    threshold: Rule = "youden",
    calibrate: bool = False,
    bootstrap: Annotated[int, Field(ge=100)] = 2000,
    prevalences: tuple[Share, ...] = (),
    controls: tuple[Control, ...] = EVERY_CONTROL,
    shuffled_labels: bool = True,
    learning_curve: bool = True,
    subgroups: tuple[str, ...] = ("sex", "age", "site", "manufacturer", "slice_spacing_mm"),
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
    shuffled_labels : bool
        Train and test the last step on shuffled labels too: :func:`medtransfer.probes.shuffled_auroc`.
    learning_curve : bool
        Work out how many cases would be enough, of at least 40 training cases: :func:`medtransfer.enough.how_many`.
    subgroups : tuple of str
        By what results are also given: see :func:`medtransfer.groups.groupings`.
    explain : bool
        Show where the evidence lay in the surest errors, and check that these maps depend on what was learned.
    robustness : bool
        Measure again on noisier, coarser, shifted images and other contrast (:mod:`medtransfer.robustness`).
    seed : int
        Of the resampling, the controls and the changes.
    """
    from threadpoolctl import threadpool_limits

    from medtransfer.evaluate import evaluate
    from medtransfer.metrics.uncertainty import uncertainty
    from medtransfer.report.explained import examine
    from medtransfer.robustness import robustness as measure

    chosen, calibrator = decide(run, threshold, calibrator=calibrate)
    with threadpool_limits(1, user_api="blas"):  # many small fits, in which threads of BLAS only wait for each other
        beside = control_predictions(run, controls, seed=seed)
        _describe(run, shuffled=shuffled_labels, curve=learning_curve, bootstrap=bootstrap, seed=seed)
    tested = [i for fold in run.split.folds for i in fold.test]
    found = evaluate(
        run.test(),
        threshold=chosen,
        calibrator=calibrator,
        bootstrap=bootstrap,
        seed=seed,
        prevalences=prevalences,
        controls=beside,
        subgroups=groupings(run.cohort, tested, subgroups, cache=run.prepared.cache) or None,
    )
    facts: dict[str, object] = {"explanation": None, "robustness": None}
    facts["uncertainty"] = uncertainty(
        found.predictions,
        ClusterBootstrap.draw(found.predictions.patient, resamples=bootstrap, seed=seed),
        called=found.called if run.cohort.task in BY_CLASS else None,
        threshold=found.threshold,
        val=run.validation(),
    ).to_json()
    checks = found.checks
    if explain and run.cohort.task == "classification" and not run.cohort.bags:
        facts["explanation"], check = examine(run, found, seed=seed)
        checks = [*checks, check]
    if robustness and not run.cohort.bags:
        facts["robustness"] = measure(run, bootstrap=bootstrap, seed=seed)
    run.describe(facts)
    return replace(found, checks=checks, record=run.record())


def _describe(run: Run, *, shuffled: bool, curve: bool, bootstrap: int, seed: int) -> None:
    """What the run's record says beside the evaluation; what stands there already is not computed again."""
    asked = {"bootstrap": bootstrap, "seed": seed}
    known: dict[str, Any] = {**run.record()}
    facts: dict[str, object] = {}
    for name, wanted in (("shuffled_labels", shuffled), ("learning_curve", curve)):
        stored = known.get(name)
        done = isinstance(stored, dict) and stored.get("asked") == asked
        few = name == "learning_curve" and len(run.split.folds[0].train) < FEWEST_FOR_A_CURVE
        if not wanted or few or run.cohort.task != "classification":
            facts |= {name: None} if stored else {}
        elif not done and name == "shuffled_labels":
            found = shuffled_auroc(run, start_features(run), bootstrap=bootstrap, seed=seed)
            facts[name] = {**cast(dict[str, Any], plain(found.to_json())), "asked": asked}
        elif not done:
            facts[name] = {**how_many(run, bootstrap=bootstrap, seed=seed), "asked": asked}
    if facts:
        run.describe(facts)
