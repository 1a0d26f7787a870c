"""Refining: search recipes inside the training part only, and say honestly whether it helped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtransfer.errors import require
from medtransfer.features import numbered
from medtransfer.recipe import Recipe

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.cohort import Cohort
    from medtransfer.model import Model
    from medtransfer.prepare import Prepare
    from medtransfer.split import Split


@dataclass(frozen=True)
class Found:
    """What a search ended in.

    Parameters
    ----------
    recipe : Recipe
        The best found, or the default where that was as good.
    loss, default_loss : float
        Mean log loss over the inner validation cases.
    interval : (float, float)
        95 % bootstrap interval over patients of default minus found: above zero means that searching helped.
    trials : int
    seconds : float
    """

    recipe: Recipe
    loss: float
    default_loss: float
    interval: tuple[float, float]
    trials: int
    seconds: float

    def __str__(self) -> str:
        low, high = self.interval
        helped = "better than the default" if low > 0 else "no better than the default, which stays"
        return (
            f"{self.trials} trials in {self.seconds / 60:.1f} min: "
            f"log loss {self.loss:.4f} against {self.default_loss:.4f}, difference {low:+.4f} to {high:+.4f}: {helped}"
        )


def search(
    model: Model,
    cohort: Cohort,
    split: Split,
    prepare: Prepare,
    *,
    out: str | Path,
    trials: int = 20,
    folds: int = 3,
    augment: Augment | None = None,
    storage: str | None = None,
    seed: int = 0,
    propose: Callable[[Any, Recipe], Recipe] | None = None,
) -> Found:
    """Search a recipe by inner patient-grouped folds of the training part; neither validation nor test is seen.

    Parameters
    ----------
    model, cohort, split, prepare, augment
        As for :func:`medtransfer.fit`; the first fold's training part is searched in.
    out : path
        Folder of the trials' runs.
    storage : str or None
        Database in which several machines share one search, such as ``sqlite:///search.db``.
    propose : function of (trial, default) or None
        The recipe of an optuna trial; None tries learning rates, where the learning starts, and what learns.

    Raises
    ------
    MissingPackage
        Where optuna, of the extra ``hpo``, is not installed.
    """
    optuna = require("optuna", "hpo")
    from medtransfer.fit import fit
    from medtransfer.split import split_by_patient

    started, out = time.monotonic(), Path(out)
    inner = cohort.take(list(split.folds[0].train))
    parts = split_by_patient(inner, folds=folds, seed=seed)
    default = Recipe.for_size(len(parts.folds[0].train), prepare.dims)  # type: ignore[arg-type]
    ask = propose or _propose

    def losses(recipe: Recipe, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        run = fit(model, inner, parts, prepare, recipe, out=out / name, augment=augment, seed=seed, progress=False)
        test = run.test()
        chosen = test.probability[np.arange(len(test.reference)), test.reference]
        order = np.argsort(test.case)
        found: np.ndarray[tuple[int], np.dtype[np.float64]] = -np.log(np.clip(chosen, 1e-12, None))[order]
        return found

    def objective(trial: Any) -> float:
        recipe = ask(trial, default)
        trial.set_user_attr("recipe", recipe.model_dump())
        return float(losses(recipe, f"trial-{trial.number}").mean())

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), storage=storage, study_name=out.name, load_if_exists=True
    )
    base = losses(default, "default")
    study.optimize(objective, n_trials=trials)
    best = losses(Recipe(**study.best_trial.user_attrs["recipe"]), f"trial-{study.best_trial.number}")
    aliases = np.array(sorted(inner.aliases))
    patient = dict(zip(inner.aliases, inner.patients, strict=True))
    group = numbered([patient[a] for a in aliases])
    interval = _interval(base - best, group, seed)
    recipe = Recipe(**study.best_trial.user_attrs["recipe"]) if interval[0] > 0 else default
    return Found(recipe, float(best.mean()), float(base.mean()), interval, trials, time.monotonic() - started)


def _propose(trial: Any, default: Recipe) -> Recipe:
    method = trial.suggest_categorical("method", ["logistic", "full"])
    if method == "logistic":
        return Recipe(method="logistic", views=trial.suggest_categorical("views", [0, 4]))
    return Recipe(
        method="full",
        start="logistic",
        freeze_epochs=0,
        epochs=default.epochs if default.learns else 10,
        tune=trial.suggest_categorical("tune", ["all", "norms", "lora"]),
        lr=trial.suggest_float("lr", 1e-4, 3e-3, log=True),
        backbone_lr_scale=trial.suggest_float("backbone_lr_scale", 0.03, 1.0, log=True),
        ema=0.98,
        average=3,
    )


def _interval(
    difference: np.ndarray[tuple[int], np.dtype[np.float64]],
    group: np.ndarray[tuple[int], np.dtype[np.int64]],
    seed: int,
) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over patients."""
    sums, counts = np.bincount(group, difference), np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(counts), (2000, len(counts)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), (2.5, 97.5))
    return float(low), float(high)
