"""Did transfer help here? The same folds from scratch, by probe, by LP-FT, by full fine-tuning, and without images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtransfer.metrics.comparison import align, headline
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, interval, plain
from medtransfer.metrics.names import LABELS
from medtransfer.metrics.permutation import holm as adjust
from medtransfer.recipe import Recipe

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.cohort import Cohort
    from medtransfer.model import Model
    from medtransfer.predictions import Predictions
    from medtransfer.prepare import Prepare
    from medtransfer.split import Split

SCRATCH, METADATA = "scratch", "metadata only"
NAMES = {
    SCRATCH: "no pretraining, everything learns",
    "probe": "frozen features, logistic regression",
    "lp-ft": "the probe first, then everything learns from it",
    "full": "everything learns from the pretrained weights",
    METADATA: "age, sex, site: no image",
}


@dataclass(frozen=True)
class Row:
    """One strategy: its headline estimate, its difference to training from scratch, and the p value of that."""

    name: str
    value: Estimate
    gain: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Strategies:
    """What :func:`compare_strategies` found.

    Parameters
    ----------
    metric : str
        The headline estimate, by the names of :data:`medtransfer.metrics.names.LABELS`; larger is better.
    rows : tuple of Row
    predictions : mapping of str to Predictions
        The pooled test parts of each strategy.
    cases, patients : int
    """

    metric: str
    rows: tuple[Row, ...]
    predictions: Mapping[str, Predictions]
    cases: int
    patients: int

    @property
    def verdict(self) -> str:
        """One sentence: whether transfer helped."""
        ways = [r for r in self.rows if r.gain is not None and r.name != METADATA and r.gain.value is not None]
        if not ways:
            return "transfer cannot be judged: the difference is not defined"
        best = max(ways, key=lambda r: _of(r.gain))
        words = f"{best.name} {best.gain} against scratch, p (Holm) = {_p(best.p_holm)}"
        if _of(best.gain) <= 0 or best.p_holm is None or best.p_holm >= 0.05:
            return f"transfer cannot be shown to help here: the best of it, {words}"
        return f"transfer helped here: {words}"

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = [
            {
                "strategy": r.name,
                "value": plain(r.value.to_json()),
                "gain": None if r.gain is None else plain(r.gain.to_json()),
                "p": r.p,
                "p_holm": r.p_holm,
            }
            for r in self.rows
        ]
        counts = {"cases": self.cases, "patients": self.patients}
        return {
            "metric": self.metric,
            "rows": rows,
            "verdict": self.verdict,
            "counts": counts,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        width = max(len(r.name) for r in self.rows)
        lines = [
            f"{self.cases} cases of {self.patients} patients, 95 % intervals",
            f"{'':<{width}}  {LABELS.get(self.metric, self.metric):<22} {'minus scratch':<26} p (Holm)",
        ]
        for r in self.rows:
            gain = "" if r.gain is None else str(r.gain)
            lines.append(f"{r.name:<{width}}  {r.value!s:<22} {gain:<26} {_p(r.p_holm):<9} {NAMES.get(r.name, '')}")
        return "\n".join([*lines, *self.notes, self.verdict])

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be compared, and why."""
        if any(r.name == METADATA for r in self.rows):
            return ()
        return (f"'{METADATA}' is not compared: the cohort has no covariate with more than one value "
                "(cohort.covariates: [age, sex] names columns of the table)",)  # fmt: skip


def recipes(n: int) -> dict[str, Recipe]:
    """The recipe of each strategy for n training cases: the same number of epochs wherever something learns.

    From scratch every stage learns at the head's rate and normalisation follows the data; pretrained stages move
    less, and keep their normalisation.

    Examples
    --------
    >>> list(recipes(200)), recipes(200)["full"].epochs
    (['scratch', 'probe', 'lp-ft', 'full'], 40)
    """
    epochs = max(5, min(40, round(12000 / n)))
    whole = Recipe(method="full", freeze_epochs=0, epochs=epochs, patience=epochs, average=3, lr=1e-3)
    pretrained = {"backbone_lr_scale": 0.2}
    return {
        SCRATCH: whole.model_copy(update={"backbone_lr_scale": 1.0, "layer_decay": 1.0, "frozen_norms": False}),
        "probe": Recipe(method="logistic"),
        "lp-ft": whole.model_copy(update=pretrained | {"start": "logistic"}),
        "full": whole.model_copy(update=pretrained),
    }


def compare_strategies(
    model: Model,
    cohort: Cohort,
    split: Split,
    prepare: Prepare,
    *,
    out: str | Path,
    augment: Augment | None = None,
    strategies: Mapping[str, Recipe] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> Strategies:
    """Train each strategy on the same folds and compare it with training from scratch, case by case.

    Parameters
    ----------
    model, cohort, split, prepare, augment
        As for :func:`medtransfer.fit`; ``scratch`` is the same network with random weights.
    out : path
        One run folder a strategy; what is complete is not trained again.
    strategies : mapping of str to Recipe or None
        None takes :func:`recipes`, by descent where no linear model fits the head. The one named ``scratch`` starts
        from random weights and is the reference.
    bootstrap, seed : int
        Resamples of patients behind intervals and p values.

    Returns
    -------
    Strategies
        Test parts pooled over the folds; ``metadata only`` is among them where covariates are known.

    Notes
    -----
    Differences and two-sided p values come from one paired bootstrap over patients; p values are adjusted for the
    number of comparisons by Holm's method (Holm 1979, Scand J Stat 6).
    """
    from medtransfer.controls import NAMES as CONTROLS
    from medtransfer.controls import controls
    from medtransfer.fit import fit
    from medtransfer.model import restart

    out = Path(out)
    found: dict[str, Predictions] = {}
    run = None
    for name, recipe in (strategies or recipes(len(split.folds[0].train))).items():
        start = restart(model.description, seed=seed) if name == SCRATCH else model
        if not model.linear and "logistic" in (recipe.method, recipe.start):
            recipe = recipe.with_head()
        run = fit(start, cohort, split, prepare, recipe, out=out / name, augment=augment, seed=seed,
                  accelerator=accelerator, progress=progress)  # fmt: skip
        found[name] = run.test()
    assert run is not None
    blind = controls(run, ("covariates",), seed=seed)
    if blind:
        found[METADATA] = blind[CONTROLS["covariates"]]
    return judged(found, bootstrap=bootstrap, seed=seed)


def judged(found: Mapping[str, Predictions], *, bootstrap: int = 2000, seed: int = 0) -> Strategies:
    """The table of predictions by strategy, one of which is called ``scratch``."""
    reference = found[SCRATCH]
    resamples = ClusterBootstrap.draw(reference.patient, resamples=bootstrap, seed=seed)
    same = {name: align(p, reference, f"the strategy '{name}'") for name, p in found.items()}
    once = np.ones((1, len(reference)))
    metric = next(iter(headline(reference)(once)))
    points = {name: float(headline(p)(once)[metric][0]) for name, p in same.items()}
    draws = {name: resamples.apply(headline(p))[metric] for name, p in same.items()}
    others = [name for name in found if name != SCRATCH]
    ps = {name: two_sided(draws[name] - draws[SCRATCH]) for name in others}
    holm = dict(zip(others, adjust([ps[name] for name in others]), strict=True))
    rows = []
    for name in found:
        value = interval(points[name], draws[name])
        if name == SCRATCH:
            rows.append(Row(name, value))
            continue
        gain = interval(points[name] - points[SCRATCH], draws[name] - draws[SCRATCH])
        rows.append(Row(name, value, gain, ps[name], holm[name]))
    cases, patients = len(np.unique(reference.case)), len(np.unique(reference.patient))
    return Strategies(metric, tuple(rows), found, cases, patients)


def two_sided(draws: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Twice the smaller share of resampled differences on either side of zero, never zero itself.

    Examples
    --------
    >>> two_sided(np.array([0.1] * 97 + [-0.1] * 2))
    0.06
    """
    known = draws[np.isfinite(draws)]
    if not len(known):
        return 1.0
    fewer = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (1 + fewer) / (len(known) + 1)))


def _of(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None or estimate.value is None else estimate.value


def _p(value: float | None) -> str:
    return "" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")
