"""Refining: search recipe, resolution and backbone inside a training part, and say honestly whether it helped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medtransfer.cache import fingerprint
from medtransfer.errors import ConfigError, DataError, require
from medtransfer.recipe import Recipe
from medtransfer.trials import STEPS, Candidate, Trainer, gain_of_choosing

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.cohort import Cohort
    from medtransfer.model import Model
    from medtransfer.prepare import Prepare
    from medtransfer.split import Split

WATTS = 10.0  # of one busy processor core with its share of the machine: an order of magnitude


Propose = Callable[[Any, Recipe], Recipe]


@dataclass(frozen=True)
class Found:
    """What a search ended in.

    Parameters
    ----------
    chosen, default : Candidate
        The best found, or the default where that was as good.
    best : Candidate
        The best found in any case.
    loss, default_loss : float
        Mean loss of the best and of the default over the inner held-out cases.
    gain : float
        Loss of the default minus that of the best, on patients that had no part in the choice.
    interval : (float, float)
        Its 95 % interval: above zero means that searching helped.
    trials, pruned : int
        Finished trials, the default included, and those that were stopped early.
    seconds, energy_wh : float
        Summed over trials and machines; the energy is an estimate from processor time.
    watts : float
        A busy core's draw behind that estimate.
    """

    chosen: Candidate
    default: Candidate
    best: Candidate
    loss: float
    default_loss: float
    gain: float
    interval: tuple[float, float]
    trials: int
    pruned: int
    seconds: float
    energy_wh: float
    watts: float

    @property
    def recipe(self) -> Recipe:
        """The recipe that is chosen."""
        return self.chosen.recipe

    @property
    def helped(self) -> bool:
        """Whether the interval of the gain lies above zero."""
        return self.interval[0] > 0

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {k: getattr(self, k) for k in ("loss", "default_loss", "gain", "trials", "pruned", "seconds")}
        named = {k: getattr(self, k).to_record() for k in ("chosen", "default", "best")}
        energy = {"energy_wh": self.energy_wh, "energy_method": f"processor time × {self.watts:g} W a core; no GPU"}
        return named | plain | {"interval": list(self.interval), "helped": self.helped} | energy

    def __str__(self) -> str:
        low, high = self.interval
        helped = "better than the default" if self.helped else "no better than the default, which stays"
        return (
            f"{self.trials} trials, {self.pruned} of them stopped early, in {self.seconds / 60:.1f} min; about "
            f"{self.energy_wh:.2g} Wh, estimated from processor time at {self.watts:g} W a core, without GPUs\n"
            f"best: {self.best.against(self.default)}\n"
            f"loss {self.loss:.4f} against {self.default_loss:.4f}; on patients that had no part in the choice "
            f"{self.gain:+.4f} less (95 % interval {low:+.4f} to {high:+.4f}): {helped}"
        )


def search(
    model: Model,
    cohort: Cohort,
    split: Split,
    prepare: Prepare,
    *,
    out: str | Path,
    trials: int = 20,
    minutes: float | None = None,
    folds: int = 3,
    fold: int = 0,
    augment: Augment | None = None,
    default: Recipe | None = None,
    sizes: Sequence[int] = (),
    backbones: Sequence[str] = (),
    storage: str | None = None,
    pruner: Literal["median", "hyperband", "none"] = "median",
    watts: float = WATTS,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
    propose: Propose | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Found:
    """Search by inner patient-grouped folds of a training part; neither validation nor test is seen.

    Parameters
    ----------
    model, cohort, split, prepare, augment
        As for :func:`medtransfer.fit`.
    out : path
        Folder of the trials; each is removed when its losses are noted.
    trials : int
        Trials of the whole search besides the default, those of other processes and earlier calls included.
    minutes : float or None
        No trial is begun after so long.
    folds : int
        Inner folds.
    fold : int
        Whose training part is searched; nested cross-validation searches each in turn.
    default : Recipe or None
        What to beat; None takes the recipe for the size.
    sizes : sequence of int
        Sides in pixels (voxels) to try besides that of ``prepare``.
    backbones : sequence of str
        Names of weights to try besides the model, as in :func:`medtransfer.load_model`.
    storage : str or None
        A journal file, or the URL of a database such as ``sqlite:///search.db``, by which several processes and
        machines share one search and a stopped one goes on; None keeps it in memory.
    pruner : {'median', 'hyperband', 'none'}
        How hopeless trials are stopped: by the best validation loss so far, averaged over folds, after each epoch.
    watts : float
        Of a busy core, for the estimate of energy.
    propose : function of (trial, default) or None
        The recipe of an optuna trial; None tries methods, rates, where learning starts, and what learns.
    watch : function or None
        Is given each trial of this process when it has ended: number, state, parameters, loss and seconds.

    Notes
    -----
    The best of many trials looks better than it is. The gain is therefore worked out in patient-cluster bootstrap
    resamples: the best candidate is chosen on the patients drawn, and compared with the default on the others
    (Tsamardinos et al. 2018, Machine Learning 107, "BBC-CV").

    Raises
    ------
    MissingPackage
        Where optuna, of the extra ``hpo``, is not installed.
    """
    optuna = require("optuna", "hpo")
    inner, parts = split.inner(cohort, fold=fold, folds=folds, seed=seed)
    sized = Recipe.for_size(len(parts.folds[0].train), prepare.dims)  # type: ignore[arg-type]
    usual = Candidate(default or (sized if model.linear else sized.with_head()), prepare.size)
    asked = [usual.to_record(), sorted(sizes), sorted(backbones), model.description.to_json(), seed]
    asked += [prepare.model_dump(mode="json"), None if augment is None else augment.model_dump(mode="json")]
    asked += [[list(p) for p in f.parts()] for f in parts.folds]
    name = f"medtransfer-{fingerprint(inner.fingerprint, json.dumps(asked, sort_keys=True))[:12]}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name, storage=_storage(optuna, storage), load_if_exists=True, pruner=_pruner(optuna, pruner, folds)
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    trainer = Trainer(model, inner, parts, prepare, Path(out), augment, accelerator, seed)

    def ask(trial: Any, default: Recipe) -> Recipe:
        recipe = (propose or _propose)(trial, default)
        solved = "logistic" in (recipe.method, recipe.start)
        return recipe.with_head() if solved and not model.linear else recipe

    def objective(trial: Any) -> float:
        started, busy = time.monotonic(), time.process_time()
        first = bool(trial.user_attrs.get("default"))
        candidate = usual if first else _candidate(trial, usual, sizes, backbones, ask)
        trial.set_user_attr("candidate", candidate.to_record())
        try:
            found = trainer.losses(candidate, f"{name}-{trial.number}", None if first else trial)
        finally:
            trial.set_user_attr("seconds", time.monotonic() - started)
            trial.set_user_attr("busy", time.process_time() - busy)
        trial.set_user_attr("losses", [round(float(v), 6) for v in found])
        return float(found.mean())

    def tell(_: Any, trial: Any) -> None:
        if watch is not None and "candidate" in trial.user_attrs:
            candidate = Candidate.of(trial.user_attrs["candidate"])
            watch({"number": trial.number, "state": trial.state.name.lower(), "loss": trial.value,
                   "seconds": trial.user_attrs.get("seconds"), "parameters": candidate.parameters()})  # fmt: skip

    states = optuna.trial.TrialState
    if not any(t.user_attrs.get("default") and t.state != states.FAIL for t in study.trials):
        study.enqueue_trial({}, user_attrs={"default": True})
    done = (states.COMPLETE, states.PRUNED)
    if (left := trials + 1 - sum(t.state in done for t in study.trials)) > 0:
        study.optimize(
            objective,
            n_trials=left,
            timeout=None if minutes is None else 60 * minutes,
            callbacks=[tell, optuna.study.MaxTrialsCallback(trials + 1, states=done)],
            catch=(ConfigError, DataError),  # a candidate that cannot be trained is no result
            show_progress_bar=progress,
        )
    if not any(t.user_attrs.get("default") and t.state == states.COMPLETE for t in study.trials):
        study.enqueue_trial({}, user_attrs={"default": True})  # another process has begun it and is not through
        study.optimize(objective, n_trials=1, callbacks=[tell])
    return _found([t for t in study.trials if t.state in done], inner, usual, watts, seed)


def _found(trials: Sequence[Any], inner: Cohort, usual: Candidate, watts: float, seed: int) -> Found:
    whole = [t for t in trials if "losses" in t.user_attrs]
    losses = np.array([t.user_attrs["losses"] for t in whole])
    default = next(i for i, t in enumerate(whole) if t.user_attrs.get("default"))
    gain, low, high = gain_of_choosing(losses, default, inner.patients, seed)
    best = int(losses.mean(axis=1).argmin())
    candidate = Candidate.of(whole[best].user_attrs["candidate"])
    return Found(
        chosen=candidate if low > 0 else usual,
        default=usual,
        best=candidate,
        loss=float(losses[best].mean()),
        default_loss=float(losses[default].mean()),
        gain=gain,
        interval=(low, high),
        trials=len(trials),
        pruned=len(trials) - len(whole),
        seconds=sum(t.user_attrs["seconds"] for t in trials),
        energy_wh=sum(t.user_attrs["busy"] for t in trials) / 3600 * watts,
        watts=watts,
    )


def _candidate(
    trial: Any, usual: Candidate, sizes: Sequence[int], backbones: Sequence[str], propose: Propose
) -> Candidate:
    backbone = str(trial.suggest_categorical("backbone", ["", *backbones])) if backbones else ""
    size = usual.size
    if sizes:
        side = trial.suggest_categorical("size", [0, *sizes])
        size = (side,) * len(usual.size) if side else usual.size
    return Candidate(propose(trial, usual.recipe), size, backbone)


def _propose(trial: Any, default: Recipe) -> Recipe:
    method = trial.suggest_categorical("method", ["logistic", "finetune", "full"])
    if method == "logistic":
        return Recipe(method="logistic", views=trial.suggest_categorical("views", [0, 4]))
    last = trial.suggest_categorical("unfreeze_from", [-1, -2]) if method == "finetune" else None
    return Recipe(
        method=method,
        unfreeze_from=last,
        start="logistic",
        freeze_epochs=0,
        epochs=default.epochs if default.learns else 10,
        tune=trial.suggest_categorical("tune", ["all", "norms", "lora"]),
        lr=trial.suggest_float("lr", 1e-4, 3e-3, log=True),
        backbone_lr_scale=trial.suggest_float("backbone_lr_scale", 0.03, 1.0, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        ema=0.98,
        average=3,
    )


def _storage(optuna: Any, storage: str | None) -> Any:
    """A database by its URL, or a journal file that several processes append to.

    Raises
    ------
    ConfigError
        Where the database cannot be opened.
    """
    if storage is None:
        return None
    if "://" in storage:
        wrong = require("sqlalchemy", "hpo").exc.SQLAlchemyError
        for pause in (0.5, 1, 2, 4, 0):  # processes that begin together make the tables together, and one fails
            try:
                return optuna.storages.get_storage(storage)
            except (wrong, ImportError) as error:
                if not pause:
                    raise ConfigError(
                        "the database of the search cannot be opened", where="search.storage",
                        got=type(error).__name__, fix="check the address and that its driver is installed",
                    ) from error  # fmt: skip
                time.sleep(pause)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


def _pruner(optuna: Any, name: str, folds: int) -> Any:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=folds * STEPS, reduction_factor=3)
    return optuna.pruners.NopPruner()
