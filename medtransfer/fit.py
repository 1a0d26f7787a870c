"""Fine-tuning: one readable loop, from a model and a cohort to a run folder.

Randomness is drawn from (seed, fold, epoch, step), never from what happened before: a run that was
interrupted and went on ends in the same bytes as one that was not.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.augment import Augment
from medtransfer.cache import fingerprint
from medtransfer.cohort import Cohort
from medtransfer.errors import ConfigError, DataError, Interrupted
from medtransfer.features import fit_logistic, frozen_features, softmax
from medtransfer.metrics.classification import auroc
from medtransfer.model import Model
from medtransfer.predict import probabilities
from medtransfer.prepare import Prepare
from medtransfer.recipe import Recipe
from medtransfer.run import (
    Run,
    begin,
    environment,
    finish,
    save_checkpoint,
    write,
    write_json,
)
from medtransfer.split import Fold, Split
from medtransfer.training import State, Stop, class_weights, generator_of, log_loss, stopping

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    model: Model,
    cohort: Cohort,
    split: Split,
    prepare: Prepare,
    recipe: Recipe,
    *,
    out: str | Path,
    augment: Augment | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> Run:
    """Fine-tune a model on the training part of each fold; the model passed in stays as it is.

    Parameters
    ----------
    model : Model
        From :func:`medtransfer.load_model`.
    cohort, split, prepare, recipe
        What to learn from, who is held out, how images and learning are set.
    out : path
        The run folder. If it holds this very run, training goes on where it stands, or is found complete.
    augment : Augment or None
        How training images vary in the epochs in which the backbone learns.
    seed : int
        Of the order of cases, of augmentation and dropout.
    accelerator : str
        ``'auto'``, ``'cpu'``, ``'cuda'`` or ``'mps'``.

    Raises
    ------
    ConfigError
        Where model, cohort, preparation and recipe do not fit together.
    RunError
        Where the folder cannot be used.
    Interrupted
        After Ctrl-C or SIGTERM, with a checkpoint on disk: the same call goes on from there.
    """
    from lightning_fabric import Fabric

    augment = augment or Augment()
    out = Path(out)
    split.check(cohort)
    _check(model, cohort, prepare, recipe, split)
    asked = {
        "model": json.loads(model.description.to_json()),
        "tensors": _digest(model),
        "cohort": cohort.fingerprint,
        "classes": list(cohort.classes),
        "split": [[list(p) for p in fold.parts()] for fold in split.folds],
        "prepare": prepare.model_dump(mode="json"),
        "augment": augment.model_dump(),
        "recipe": recipe.model_dump(),
        "seed": seed,
    }
    complete = begin(out, asked, cohort, split)
    fabric = Fabric(accelerator=accelerator, devices=1, precision="32-true")
    run = Run(out, cohort, split, prepare, str(fabric.device), progress)
    if complete:
        return run
    started = time.monotonic()
    if recipe.method == "finetune" and not (out / "start.safetensors").is_file():  # what fine-tuning has to beat
        save_checkpoint(out / "start.safetensors", model.state_dict(), {"description": model.description.to_json()})
    job = _Job(fabric, run, recipe, augment, seed)
    with torch.random.fork_rng(), stopping() as stop:
        for number, fold in enumerate(split.folds):
            if (
                not (out / f"fold-{number}" / "model.safetensors").is_file()
                or (out / f"fold-{number}" / "open").is_file()
            ):
                job.fit_fold(model, number, fold, stop)
    run.describe(_facts(model, run, recipe, seed, time.monotonic() - started))
    finish(out)
    return run


@dataclass
class _Job:
    """What stays the same over the folds of one call."""

    fabric: Fabric
    run: Run
    recipe: Recipe
    augment: Augment
    seed: int
    features: NDArray[np.float32] | None = field(default=None, repr=False)

    def fit_fold(self, model: Model, number: int, fold: Fold, stop: Stop) -> None:
        """Train one fold's model into its folder."""
        self.run.prepared.load(range(len(self.run.cohort)))
        if self.features is None and (self.recipe.method != "finetune" or self.recipe.freeze_epochs):
            everyone = range(len(self.run.cohort))
            self.features = frozen_features(
                copy.deepcopy(model), self.run.prepared, everyone, device=self.fabric.device, progress=self.run.progress
            )
        if self.recipe.method == "logistic":
            self._fit_logistic(model, number, fold)
        else:
            self._fit_epochs(model, number, fold, stop)

    def _fit_logistic(self, model: Model, number: int, fold: Fold) -> None:
        assert self.features is not None
        folder, cohort, train = self.run.folder / f"fold-{number}", self.run.cohort, list(fold.train)
        found = fit_logistic(
            self.features[train],
            cohort.labels[train],
            cohort.patients[train],
            len(cohort.classes),
            balanced=self.recipe.class_weights,
            seed=self.seed,
        )
        fitted = copy.deepcopy(model)
        last = fitted.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(found.weight))
            last.bias.copy_(torch.from_numpy(found.bias))
        losses = {"train_loss": log_loss(found.probability(self.features[train]), cohort.labels[train])}
        losses |= {"held_out_loss": log_loss(found.held_out, cohort.labels[train])}
        entry = {"fold": number, "phase": "logistic", "epoch": 0, "strength": found.strength, **losses}
        if len(fold.val):
            entry |= self._validate(found.probability(self.features[list(fold.val)]), fold)
        write(folder / "held_out.json", json.dumps(found.held_out.tolist()))
        write_json(folder / "history.json", [entry])
        save_checkpoint(folder / "model.safetensors", fitted.state_dict(), {"description": model.description.to_json()})

    def _validate(self, chances: NDArray[np.float64], fold: Fold) -> dict[str, float | None]:
        labels = self.run.cohort.labels[list(fold.val)]
        area = float(auroc(labels == 1, chances[:, 1])) if chances.shape[1] == 2 else None
        return {"val_loss": log_loss(chances, labels), "val_auroc": area}

    def _fit_epochs(self, model: Model, number: int, fold: Fold, stop: Stop) -> None:
        from tqdm import tqdm

        folder, recipe = self.run.folder / f"fold-{number}", self.recipe
        folder.mkdir(exist_ok=True)
        write(folder / "open", "")
        state = State.start(copy.deepcopy(model), folder / "last.safetensors", recipe)
        stop.listening = True
        bar = tqdm(
            total=recipe.epochs,
            initial=state.epoch,
            desc=f"fold {number}" if len(self.run.split.folds) > 1 else "train",
            unit="epoch",
            disable=None if self.run.progress else True,
        )
        with bar:
            while state.go_on(recipe):
                self._epoch(state, number, fold, stop)
                entry = state.history[-1]
                if entry["val_loss"] < state.best:
                    state.best, state.waited = entry["val_loss"], 0
                    facts = {"description": model.description.to_json(), "epoch": str(state.epoch)}
                    save_checkpoint(folder / "model.safetensors", state.model.state_dict(), facts)
                else:
                    state.waited += 1
                state.next_epoch()
                state.save(folder / "last.safetensors")
                bar.update()
                bar.set_postfix(val_loss=f"{entry['val_loss']:.3f}", best=f"{state.best:.3f}")
        stop.listening = False
        write_json(folder / "history.json", state.history)
        (folder / "open").unlink()

    def _epoch(self, state: State, number: int, fold: Fold, stop: Stop) -> None:
        recipe, cohort = self.recipe, self.run.cohort
        train = np.array(fold.train)
        stages = recipe.trainable(state.epoch, list(state.model.stages))
        model = state.model.to(self.fabric.device)
        phase = next(p for p in recipe.phases() if p[0] <= state.epoch < p[1])
        state.enter(phase, recipe, self.run.folder / f"fold-{number}" / "model.safetensors")
        model.train_only(stages, frozen_norms=recipe.frozen_norms).train()
        order = train[torch.randperm(len(train), generator=generator_of(self.seed, number, state.epoch)).numpy()]
        batches = [order[i : i + recipe.batch_size] for i in range(0, len(order), recipe.batch_size)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [np.concatenate(batches[-2:])]  # batch statistics need two
        weight = class_weights(cohort.labels[train], len(cohort.classes)) if recipe.class_weights else None
        while state.step < len(batches):
            if stop.is_set():
                state.save(self.run.folder / f"fold-{number}" / "last.safetensors")
                raise Interrupted(
                    f"stopped in fold {number}, epoch {state.epoch}, step {state.step}; everything is saved",
                    where=self.run.folder.name,
                    fix="run the same command again: it goes on from here",
                )
            self._step(state, number, batches, phase, weight)
        mean_loss = state.loss_sum / len(order)
        if stages:
            chances = probabilities(model, self.run.prepared, fold.val, device=self.fabric.device)
        else:
            chances = self._head_only(model, fold)
        name = "fine-tuning" if stages else "head"
        state.history.append(
            {
                "fold": number,
                "phase": name,
                "epoch": state.epoch,
                "train_loss": mean_loss,
                **self._validate(chances, fold),
            }
        )

    def _step(
        self,
        state: State,
        number: int,
        batches: list[NDArray[np.int64]],
        phase: tuple[int, int],
        weight: Tensor | None,
    ) -> None:
        batch, device, model = batches[state.step], self.fabric.device, state.model
        generator = generator_of(self.seed, number, state.epoch, state.step)
        torch.manual_seed(generator.initial_seed())  # dropout has no generator of its own
        factor = self.recipe.lr_factor(
            (state.epoch - phase[0]) * len(batches) + state.step, (phase[1] - phase[0]) * len(batches)
        )
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        labels = torch.from_numpy(self.run.cohort.labels[batch]).to(device)
        if model.trained:
            images = self.run.prepared.batch(batch)
            if self.augment.active:
                images = self.augment.sample(len(images), images.ndim - 2, generator)(images, generator)
            logits = model(images.to(device))
        else:
            assert self.features is not None
            logits = model.head(torch.from_numpy(self.features[batch]).to(device))
        loss = F.cross_entropy(
            logits,
            labels,
            weight=None if weight is None else weight.to(device),
            label_smoothing=self.recipe.label_smoothing,
        )
        if not torch.isfinite(loss):
            raise DataError(
                "the loss is not finite",
                where=f"fold {number}, epoch {state.epoch}, step {state.step}",
                got=f"{loss.item()}",
                fix="lower recipe.lr",
            )
        state.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.recipe.clip)
        state.optimizer.step()
        state.loss_sum += float(loss.detach()) * len(batch)
        state.step += 1

    def _head_only(self, model: Model, fold: Fold) -> NDArray[np.float64]:
        assert self.features is not None
        model.eval()
        with torch.inference_mode():
            logits = model.head(torch.from_numpy(self.features[list(fold.val)]).to(self.fabric.device))
        return softmax(logits.double().cpu().numpy())


def _digest(model: Model) -> str:
    return fingerprint(*(part for k, v in model.state_dict().items() for part in (k, v.detach().cpu().numpy())))


def _check(model: Model, cohort: Cohort, prepare: Prepare, recipe: Recipe, split: Split) -> None:
    d = model.description
    if d.classes != len(cohort.classes):
        raise ConfigError(
            f"the model has {d.classes} classes and the cohort {len(cohort.classes)}",
            where="model.classes",
            got=", ".join(cohort.classes),
            fix=f"classes: {len(cohort.classes)}",
        )
    if d.dims != prepare.dims:
        raise ConfigError(
            f"the model takes {d.dims}D images and prepare makes {prepare.dims}D ones",
            where="model.dims",
            got=f"size {prepare.size}",
            fix=f"dims: {prepare.dims}",
        )
    if recipe.method == "logistic" and len(model.head) > 1:
        raise ConfigError(
            "logistic regression needs a linear head", where="model.head", fix="leave head out, or method: probe"
        )
    if recipe.method != "logistic" and any(not len(f.val) for f in split.folds):
        raise ConfigError(
            f"method {recipe.method} stops on a validation part, and the split has none",
            where="split.val",
            fix="val: 0.15, or method: logistic",
        )
    if recipe.unfreeze_from is not None and recipe.unfreeze_from not in model.stages:
        raise ConfigError(
            f"there is no stage '{recipe.unfreeze_from}'",
            where="recipe.unfreeze_from",
            got=f"stages {', '.join(model.stages)}",
        )
    if (windows := prepare.window_hu) and len(windows) != d.in_channels:
        raise ConfigError(
            "each window is a channel",
            where="model.in_channels",
            got=f"{d.in_channels}",
            fix=f"in_channels: {len(windows)}",
        )


def _facts(model: Model, run: Run, recipe: Recipe, seed: int, seconds: float) -> dict[str, object]:
    """What the report says about the model and how it was trained."""
    d, final = model.description, run.model(0)
    learned = [] if recipe.method != "finetune" else list(recipe.trainable(recipe.epochs - 1, list(model.stages)))
    history = [
        entry
        for number in range(len(run.split.folds))
        for entry in json.loads((run.folder / f"fold-{number}" / "history.json").read_text())
    ]
    size = " × ".join(map(str, run.prepare.size))
    return {
        "model": {
            "backbone": d.arch,
            "weights": d.weights["name"],
            "source": d.weights["origin"],
            "sha256": d.weights["sha256"],
            "licence": d.weights["licence"],
            "parameters": sum(p.numel() for p in final.parameters()),
            "trainable": sum(p.numel() for p in final.head.parameters())
            + sum(p.numel() for s in learned for p in final.stages[s].parameters()),
            "dims": d.dims,
            "in_channels": d.in_channels,
            "input": f"{d.in_channels} × {size}",
            "head": str(final.head),
            "pool_from": list(d.pool_from),
            "pool": d.pool,
            "until": d.until,
            "receipt": d.receipt,
            "frozen": [s for s in model.stages if s not in learned],
            "trained": learned,
        },
        "recipe": recipe.model_dump(),
        "history": history,
        "environment": environment(),
        "seed": seed,
        "runtime_s": round(seconds, 1),
        "flow": run.cohort.flow_record(),
        "table1": run.cohort.table1(run.split),
        "notes": list(run.cohort.notes),
        "split": run.split.scheme,
        "hashes": {"cohort": run.cohort.fingerprint},
        "version": environment()["medtransfer"],
        "device": run.device,
    }
