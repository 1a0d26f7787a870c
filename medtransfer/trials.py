"""Trials of a search: what can be tried, how it is judged inside a training part, and what choosing gained."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import require
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.predictions import BY_CLASS
from medtransfer.recipe import Recipe

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.cohort import Cohort
    from medtransfer.model import Model
    from medtransfer.predictions import Predictions
    from medtransfer.prepare import Prepare
    from medtransfer.split import Split

Floats = NDArray[np.float64]
STEPS = 100  # reports of a trial in each fold, by which the same moments of several trials are compared


@dataclass(frozen=True)
class Candidate:
    """One thing to try: a recipe, a size in pixels (voxels) and a backbone; an empty name keeps the model's own."""

    recipe: Recipe
    size: tuple[int, ...]
    backbone: str = ""

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"recipe": self.recipe.model_dump(), "size": list(self.size), "backbone": self.backbone}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Candidate:
        """What :meth:`to_record` gave."""
        return cls(Recipe(**record["recipe"]), tuple(record["size"]), record["backbone"])

    def parameters(self) -> dict[str, Any]:
        """By the words of a config, without what is left open."""
        found = {f"recipe.{k}": v for k, v in self.recipe.model_dump().items() if v is not None}
        return found | {"prepare.size": self.size} | ({"model.weights": self.backbone} if self.backbone else {})

    def against(self, other: Candidate) -> str:
        """What differs from another candidate, in the words of a config.

        Examples
        --------
        >>> Candidate(Recipe(lr=0.001), (64, 64)).against(Candidate(Recipe(), (32, 32)))
        'recipe.lr=0.001 prepare.size=(64, 64)'
        """
        mine, theirs = self.recipe.model_dump(), other.recipe.model_dump()
        found = [f"recipe.{k}={v:.3g}" if isinstance(v, float) else f"recipe.{k}={v}"
                 for k, v in mine.items() if v != theirs[k]]  # fmt: skip
        found += [f"prepare.size={self.size}"] if self.size != other.size else []
        found += [f"model.weights={self.backbone}"] if self.backbone != other.backbone else []
        return " ".join(found) or "the default itself"


@dataclass(frozen=True)
class Trainer:
    """What stays the same over all trials."""

    model: Model
    cohort: Cohort
    split: Split
    prepare: Prepare
    out: Path
    augment: Augment | None
    accelerator: str
    seed: int

    def losses(self, candidate: Candidate, name: str, trial: Any) -> Floats:
        """Loss of each case of the cohort by the model of the inner fold that held it out."""
        from medtransfer.fit import fit

        best: dict[int, float] = {}

        def watch(entry: dict[str, Any]) -> None:
            if trial is None or (loss := entry.get("val_loss")) is None:
                return
            number = int(entry["fold"])
            best[number] = min(best.get(number, np.inf), float(loss))
            trial.report(float(np.mean(list(best.values()))), number * STEPS + min(entry["epoch"] + 1, STEPS - 1))
            if trial.should_prune():
                raise require("optuna", "hpo").TrialPruned

        folder = self.out / name
        prepare = type(self.prepare)(**self.prepare.model_dump() | {"size": candidate.size})
        try:
            model = with_backbone(self.model, candidate.backbone, seed=self.seed)
            run = fit(model, self.cohort, self.split, prepare, candidate.recipe, out=folder,
                      augment=self.augment, seed=self.seed, accelerator=self.accelerator, progress=False,
                      watch=watch)  # fmt: skip
            test = run.test()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        place = {alias: i for i, alias in enumerate(self.cohort.aliases)}
        found = np.empty(len(self.cohort))
        found[[place[str(c)] for c in test.case]] = loss_of_cases(test)
        return found


def with_backbone(model: Model, name: str, *, seed: int = 0) -> Model:
    """A model of the same task and head on other weights; the model itself for an empty name."""
    from medtransfer.model import load_model

    d = model.description
    if not name:
        return model
    return load_model(
        name,
        dims=d.dims,  # type: ignore[arg-type]
        in_channels=d.in_channels,
        classes=d.classes,
        task=d.task,
        head=d.head,
        seed=seed,
    )


def loss_of_cases(test: Predictions) -> Floats:
    """Log loss of each case, mean over its labels, or in a regression the absolute error in deviations; shape (n,).

    Examples
    --------
    >>> from medtransfer.predictions import Predictions
    >>> said, ids = np.array([[0.5], [2.0]]), np.array(["a", "b"])
    >>> loss_of_cases(Predictions(ids, ids, np.array([[0.0], [2.0]]), said, ("mm",), np.zeros(2, int), "test",
    ...                           task="regression"))
    array([0.5, 0. ])
    """
    reference, said = test.reference, test.probability
    if test.task in BY_CLASS:
        right: Floats = said[np.arange(len(test)), reference.astype(np.int64)]
        return -np.log(np.clip(right, 1e-12, None))
    if test.task == "multilabel":
        each = -np.log(np.clip(np.where(reference == 1, said, 1 - said), 1e-12, None))
    else:
        spread = np.nanstd(reference, axis=0)
        each = np.abs(said - reference) / np.where(spread > 0, spread, 1.0)
    known = ~np.isnan(reference)
    mean = np.where(known, each, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.asarray(
        np.where(known.any(axis=1), mean, mean[known.any(axis=1)].mean())
    )  # a case of which nothing is known


def gain_of_choosing(losses: Floats, default: int, patients: NDArray[np.str_], seed: int) -> tuple[float, float, float]:
    """Mean loss of the default minus that of the best, on patients that had no part in choosing it, with its interval.

    Parameters
    ----------
    losses : ndarray (candidates, n)
    default : int
        Row of the default.
    patients : ndarray (n,) of str

    Examples
    --------
    >>> losses = np.stack([np.full(50, 0.7), np.full(50, 0.5)])
    >>> [round(v, 3) for v in gain_of_choosing(losses, 0, np.arange(50).astype(str), 0)]
    [0.2, 0.2, 0.2]
    """
    drawn = ClusterBootstrap.draw(patients, resamples=2000, seed=seed)
    each = np.stack([np.bincount(drawn.patient, row) for row in losses], axis=1)  # (patients, candidates)
    size = np.bincount(drawn.patient)
    times, outside = drawn.counts.astype(np.float64), (drawn.counts == 0).astype(np.float64)
    some = (outside @ size) > 0
    best = (times @ each)[some].argmin(axis=1)
    mean = (outside @ each)[some] / (outside @ size)[some, None]
    gain = mean[:, default] - mean[np.arange(len(mean)), best]
    low, high = np.percentile(gain, (2.5, 97.5))
    return float(gain.mean()), float(low), float(high)
