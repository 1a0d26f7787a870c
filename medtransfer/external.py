"""External validation: a finished run meets the cases of another place, and nothing of it is fitted again.

All folds' models speak and their probabilities are averaged; threshold and calibrator are those that the run stored
when it was judged, of several folds the mean threshold. A cohort that shares patients or images with the training
is refused. Local recalibration is a step of its own: fitted on a share of the new patients, reported on the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import Cache, fingerprint
from medtransfer.cohort import Cohort
from medtransfer.dataset import Prepared
from medtransfer.decisions import decide, stored_rule
from medtransfer.errors import CohortError, ConfigError, LeakageError, MetricError
from medtransfer.evaluate import Evaluation, evaluate
from medtransfer.groups import groupings
from medtransfer.metrics.calibration import intercept_in_the_large
from medtransfer.metrics.recalibration import Calibrator, calibrate
from medtransfer.metrics.threshold import Threshold
from medtransfer.predict import probabilities
from medtransfer.predictions import BY_CLASS, Predictions

if TYPE_CHECKING:
    from medtransfer.run import Run
    from medtransfer.split import Split

Accept = Literal["same_ids", "same_images"]
ENOUGH_FOR_PLATT = 20  # patients of each kind, below which only the intercept is fitted


@dataclass(eq=False)
class Elsewhere:
    """The source of external predictions: a run's record with the other cohort's flow, and that cohort's pictures."""

    run: Run
    cohort: Cohort
    prepared: Prepared
    facts: dict[str, object] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """What the run wrote down, with what is true of its own cohort replaced."""
        of_the_cohort = ("audit", "learning_curve", "shuffled_labels", "history", "hashes", "notes", "command")
        known = {k: v for k, v in self.run.record().items() if k not in of_the_cohort}
        return {
            **known,
            "title": f"External validation on {self.cohort.name}: {known.get('title', 'a run')}",
            "flow": self.cohort.flow_record(),
            "table1": self.cohort.table1(),
            "notes": list(self.cohort.notes),
            "hashes": {"cohort": self.cohort.fingerprint},
            **self.facts,
        }

    def picture(self, case: str, at: int | None = None) -> NDArray[np.uint8] | None:
        """The prepared image of a case by pseudonym; a volume's middle axial slice, or another."""
        where = {alias: i for i, alias in enumerate(self.cohort.aliases)}
        return self.run.shown(self.prepared.one(where[case]), at) if case in where else None

    def heatmap(self, case: str, class_index: int) -> NDArray[np.float32] | None:
        """No maps are made of external cases."""
        return None


def predict_external(run: Run, cohort: Cohort, *, accept: Sequence[Accept] = ()) -> Predictions:
    """Predictions of a run for a cohort that it has not seen: the mean over all folds' models.

    Parameters
    ----------
    run : Run
    cohort : Cohort
        Its classes are found among those of the run by name; classes may be missing, labels too.
    accept : sequence of str
        ``same_ids``: equal patient ids name different people, as at two hospitals that both count from 1.
        ``same_images``: equal images are known and wanted.

    Returns
    -------
    Predictions
        Part ``'external'``, fold 0 throughout.

    Raises
    ------
    LeakageError
        Where a patient or an image of the cohort was trained or validated on.
    CohortError
        Where the cohort has a class that the run does not know.
    """
    cohort = _in_classes(cohort, run.cohort)
    prepared = Prepared(cohort.cases, run.prepare, cache=Cache(), progress=run.progress)
    prepared.load(range(len(cohort)))
    _refuse_seen(run, cohort, prepared, accept)
    everyone = range(len(cohort))
    said = [
        probabilities(run.model(fold), prepared, everyone, device=run.device, progress=run.progress)
        for fold in range(len(run.split.folds))
    ]
    return Predictions(
        case=np.array(cohort.aliases, dtype=np.str_),
        patient=np.array([c.patient_alias for c in cohort], dtype=np.str_),
        reference=cohort.references,
        probability=np.asarray(np.mean(said, axis=0)),
        classes=run.cohort.classes,
        fold=np.zeros(len(cohort), dtype=np.int64),
        part="external",
        source=Elsewhere(run, cohort, prepared),
        task=run.cohort.task,
    )


def evaluate_external(
    run: Run,
    cohort: Cohort,
    *,
    threshold: str | None = None,
    calibrate: bool = False,
    bootstrap: int = 2000,
    prevalences: Sequence[float] = (),
    subgroups: Sequence[str] = ("sex", "age", "site", "manufacturer", "slice_spacing_mm"),
    accept: Sequence[Accept] = (),
    facts: dict[str, object] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a run on an external cohort with what it decided on its own validation cases.

    Parameters
    ----------
    run, cohort, accept
        As in :func:`predict_external`.
    threshold : str or None
        None takes the stored rule; another rule is fitted on the run's validation cases.
    calibrate : bool
        Show recalibrated probabilities too, by the run's own calibrator.
    bootstrap, prevalences, subgroups, seed
        As in :func:`medtransfer.judge.judge`.
    facts : dict or None
        Goes into the report's record.
    """
    found = predict_external(run, cohort, accept=accept)
    point, calibrator = decisions(run, threshold, calibrate=calibrate)
    return _evaluated(found, point, calibrator, subgroups, facts, prevalences, bootstrap, seed)


def check_share(share: float) -> None:
    """Refuse what is no share of the patients.

    Raises
    ------
    ConfigError
    """
    if not 0 < share < 1:
        meant = f"{share / 100:g} for {share:g} %" if 1 < share < 100 else "0.3 for 30 %"
        raise ConfigError("a share of the patients lies between 0 and 1", where="--recalibrate", got=f"{share:g}",
                          fix=meant)  # fmt: skip


def recalibrated(found: Evaluation, share: float, *, subgroups: Sequence[str] = (), seed: int = 0) -> Evaluation:
    """Recalibrate locally: fit on a share of the external patients, evaluate on all others, before and after.

    Parameters
    ----------
    found : Evaluation
        From :func:`evaluate_external`; it stays as it is.
    share : float
        Of the patients of each class, between 0 and 1. With at least 20 patients of each kind among them Platt
        scaling is fitted, else the intercept alone (Steyerberg 2004); for several classes a temperature.
    seed : int
        Of the choice of patients.

    Returns
    -------
    Evaluation
        Of the other patients; its ``estimates`` are before, its ``recalibrated`` after.
    """
    check_share(share)
    p = found.predictions
    if p.task != "classification":
        raise ConfigError("only classes can be recalibrated", where="--recalibrate", got=p.task, fix="leave it out")
    chosen = _share(p, share, seed)
    local, rest = p.take(chosen), p.take(~chosen)
    calibrator = fit_locally(local)
    source = p.source
    facts: dict[str, object] = {
        "title": "Local recalibration",
        "recalibration": {
            "method": calibrator.method if calibrator.slope[0] != 1 else "intercept",
            "cases": len(local), "patients": len(set(local.patient.tolist())), "share": share,
            "intercept": calibrator.intercept[0], "slope": calibrator.slope[0],
        },
    }  # fmt: skip
    if isinstance(source, Elsewhere):
        title = f"{source.record()['title']}, recalibrated on {len(local)} local cases"
        rest = replace(rest, source=replace(source, facts={**source.facts, **facts, "title": title}))
    return _evaluated(rest, found.threshold, calibrator, subgroups, None, (), found.bootstrap, found.seed)


def fit_locally(local: Predictions) -> Calibrator:
    """Platt scaling where patients suffice, the intercept alone where not; for several classes a temperature."""
    if len(local.classes) != 2:
        return calibrate(local)
    y = local.reference == 1
    fewest = min(len(set(local.patient[y == kind].tolist())) for kind in (True, False))
    if fewest >= ENOUGH_FOR_PLATT:
        return calibrate(local, "platt")
    shift = float(intercept_in_the_large(y, local.positive))
    if not math.isfinite(shift):
        raise MetricError(
            "recalibration needs local cases of both kinds", got=f"{int(y.sum())} positive of {len(y)}",
            fix="a larger share",
        )  # fmt: skip
    whole = calibrate(local, "platt")  # for what it was fitted on
    return replace(whole, intercept={0: shift}, slope={0: 1.0})


def decisions(
    run: Run, rule: str | None, *, calibrate: bool
) -> tuple[Threshold | dict[str, Threshold] | None, Calibrator | None]:
    """A run's stored thresholds and calibrator for the mean of its folds' models."""
    found, calibrator = decide(run, rule or stored_rule(run) or "youden", calibrator=calibrate)
    folds = len(run.split.folds)
    several = f", mean of {folds} folds" if folds > 1 else ""

    def mean(point: Threshold) -> Threshold:
        return Threshold(
            point.rule + (several if point.cases else ""), {0: float(np.mean(list(point.by_fold.values())))}
        )

    point = {k: mean(t) for k, t in found.items()} if isinstance(found, dict) else found and mean(found)
    if calibrator is not None:
        calibrator = _mean_calibrator(calibrator)
    return point, calibrator


def _mean_calibrator(by_fold: Calibrator) -> Calibrator:
    """The mean of the folds' curves: of their intercepts and slopes, or of isotonic steps at all their knots."""
    if by_fold.method != "isotonic":
        intercept, slope = (float(np.mean(list(v.values()))) for v in (by_fold.intercept, by_fold.slope))
        return Calibrator(by_fold.method, {0: intercept}, {0: slope})
    x = np.unique(np.concatenate([ends for ends, _ in by_fold.knots.values()]))
    y = np.mean([np.interp(x, *curve) for curve in by_fold.knots.values()], axis=0)
    return Calibrator("isotonic", {}, {}, knots={0: (tuple(x.tolist()), tuple(y.tolist()))})


def _evaluated(
    found: Predictions,
    point: Threshold | dict[str, Threshold] | None,
    calibrator: Calibrator | None,
    subgroups: Sequence[str],
    facts: dict[str, object] | None,
    prevalences: Sequence[float],
    bootstrap: int,
    seed: int,
) -> Evaluation:
    levels = None
    if isinstance(source := found.source, Elsewhere):
        where = {alias: i for i, alias in enumerate(source.cohort.aliases)}
        index = [where[str(case)] for case in found.case]
        levels = groupings(source.cohort, index, subgroups, cache=source.prepared.cache) or None
        if facts:
            found = replace(found, source=replace(source, facts={**source.facts, **facts}))
    return evaluate(
        found, threshold=point, calibrator=calibrator, subgroups=levels,
        prevalences=prevalences, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip


def _share(p: Predictions, share: float, seed: int) -> NDArray[np.bool_]:
    """Cases of a share of the patients of each class (that of a patient's first case)."""
    patients, first, number = np.unique(p.patient, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # pseudonyms differ from user to user and must not choose
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(patients), dtype=bool)
    for k in np.unique(p.reference[first]):
        members = order[p.reference[first][order] == k]
        taken[rng.permutation(members)[: round(share * len(members))]] = True
    if taken.all() or not taken.any():
        raise ConfigError("too few patients for this share", where="--recalibrate", got=f"{len(patients)} patients")
    return np.asarray(taken[number])


def _in_classes(cohort: Cohort, known: Cohort) -> Cohort:
    """The cohort with its references counted in the classes, labels or targets of the run's cohort."""
    if not cohort.classes:
        return replace(cohort, classes=known.classes, task=known.task)
    if cohort.task != known.task:
        raise CohortError(
            f"the run speaks of {known.task}, the cohort of {cohort.task}",
            where=cohort.name,
            fix="task, label or target",
        )
    place = {name.casefold(): i for i, name in enumerate(known.classes)}
    unknown = [name for name in cohort.classes if name.casefold() not in place]
    if unknown:
        raise CohortError(
            "the external cohort has classes that the run does not know", where=cohort.name,
            got=", ".join(unknown), fix=f"the run's are {', '.join(known.classes)}",
        )  # fmt: skip
    index = [place[name.casefold()] for name in cohort.classes]
    if known.task in BY_CLASS:
        cases = tuple(replace(c, label=None if c.label is None else index[c.label]) for c in cohort)
    else:
        values = np.full((len(cohort), len(known.classes)), np.nan)
        values[:, index] = cohort.references
        cases = tuple(replace(c, target=tuple(row)) for c, row in zip(cohort, values.tolist(), strict=True))
    return replace(cohort, cases=cases, classes=known.classes)


def learned_from(known: Cohort, split: Split, cohort: Cohort, accept: Sequence[Accept]) -> list[int]:
    """Cases of a run that any fold trained or validated on; their patients are refused in an external cohort."""
    seen = sorted({i for fold in split.folds for part in (fold.train, fold.val) for i in part})
    patients = {known.cases[i].patient_alias for i in seen}
    both = sum(case.patient_alias in patients for case in cohort)
    if both and "same_ids" not in accept:
        raise LeakageError(
            f"{both} of {len(cohort)} external cases are of patients with the id of a training patient",
            where=cohort.name,
            fix="leave them out; if the ids of the two places name different people: --accept same_ids",
        )
    return seen


def _refuse_seen(run: Run, cohort: Cohort, prepared: Prepared, accept: Sequence[Accept]) -> None:
    """Refuse patients and images that any fold trained or validated on."""
    seen = learned_from(run.cohort, run.split, cohort, accept)
    run.prepared.load(seen)
    digests = {fingerprint(x) for i in seen if (x := run.prepared.one(i)).min() < x.max()}
    copies = [case.alias for i, case in enumerate(cohort) if fingerprint(prepared.one(i)) in digests]
    if copies and "same_images" not in accept:
        raise LeakageError(
            f"{len(copies)} of {len(cohort)} external images were trained or validated on, pixel by pixel",
            where=cohort.name, got=f"e.g. {copies[0]}", fix="leave them out, or --accept same_images",
        )  # fmt: skip
