"""The loop: one fold after the other, one epoch after the other, every step a function of its place."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer.augment import Augment
from medtransfer.boundary import Boundary, Views, generator_of, tail
from medtransfer.capacity import Capacity, at_once, case_shape
from medtransfer.errors import DataError, Interrupted
from medtransfer.heads import OrdinalLayer, prior_of, start_from_prior, task_probabilities
from medtransfer.linear import Linear, fit_linear
from medtransfer.losses import class_weights, criterion, losses, mixing
from medtransfer.metrics.classification import auroc
from medtransfer.model import Model
from medtransfer.predictions import BY_CLASS
from medtransfer.recipe import Recipe
from medtransfer.run import Run, append, save_checkpoint, write, write_json
from medtransfer.sharding import clip, load
from medtransfer.split import Fold
from medtransfer.team import Team
from medtransfer.training import State, Stop
from medtransfer.tuned import choose, faster

Watch = Callable[[dict[str, Any]], None]


@dataclass
class Job:
    """What stays the same over the folds of one call."""

    team: Team
    run: Run
    model: Model
    recipe: Recipe
    augment: Augment
    seed: int
    watch: Watch | None = None
    scaled: bool = False
    capacity: Capacity | None = None
    _boundaries: dict[int, Boundary] = field(default_factory=dict, repr=False)

    def fit_fold(self, number: int, fold: Fold, stop: Stop) -> None:
        """Train one fold's model into its folder."""
        cases = {i for f in self.run.split.folds for part in (f.train, f.val) for i in part}
        self.run.prepared.load(sorted(cases))
        if self.recipe.method == "logistic":
            if self.team.first:
                self._write(number, fold)
        else:
            _Training(self, number, fold, stop).go()

    def boundary(self, first: int) -> Boundary:
        """What the first stages, which are frozen, say about each case; the same for all folds."""
        if first not in self._boundaries:
            whole = len(self.model.stages)
            stays = whole if self.team.mesh is None else -1  # beside sharded weights there is no room
            self._boundaries = {k: b for k, b in self._boundaries.items() if k == stays}  # large ones one at a time
            device = self.team.fabric.device
            frozen = copy.deepcopy(self.model).eval()
            frozen.train_only(())
            for stage in list(frozen.stages)[:first]:
                frozen.stages[stage].to(device)
            views = Views(self.run.prepared, self.augment, self.seed)
            made = Boundary(frozen, views, first, half=self.recipe.cache == "float16", device=device)
            if first and self.recipe.cache != "off":
                made.keep(self._wanted(made.whole), self.run.folder, progress=self.run.progress)
            self._boundaries[first] = made
        return self._boundaries[first]

    def view(self, epoch: int, head_only: bool) -> int:
        """The view of an epoch; the head alone learns from plain images unless views are computed once."""
        return 0 if head_only and not self.recipe.views else self.recipe.view(epoch)

    def _wanted(self, head_only: bool) -> list[tuple[int, int]]:
        train = sorted({i for f in self.run.split.folds for i in f.train})
        val = sorted({i for f in self.run.split.folds for i in f.val})
        plain = not self.augment.active or (head_only and not self.recipe.views)
        shown = [0] if plain else list(range(1, self.recipe.views + 1))
        solving = self.recipe.method == "logistic" or (head_only and self.recipe.start == "logistic")
        shown = sorted({0, *shown}) if solving else shown
        return [(i, v) for v in shown for i in train] + [(i, 0) for i in val]

    def solve(self, fold: Fold) -> tuple[Model, Linear]:
        """The model with a regularised linear model of a fold's training part as its head."""
        cohort, train = self.run.cohort, list(fold.train)
        boundary = self.boundary(len(self.model.stages))
        views = range(1, self.recipe.views + 1 if self.augment.active else 1)
        varied = [boundary.at(train, v)[0].cpu().numpy() for v in views]
        found = fit_linear(
            boundary.at(train, 0)[0].cpu().numpy(),
            cohort.references[train],
            cohort.patients[train],
            len(cohort.classes),
            task=cohort.task,
            varied=np.stack(varied) if varied else None,
            balanced=self.recipe.class_weights > 0,
            seed=self.seed,
        )
        fitted = copy.deepcopy(self.model)
        last = next(m for m in fitted.head if isinstance(m, nn.Linear | OrdinalLayer))
        weight, bias = torch.from_numpy(found.weight), torch.from_numpy(found.bias)
        with torch.no_grad():
            if isinstance(last, OrdinalLayer):
                last.score.weight.copy_(weight[:1])
                last.place(-bias)
            else:
                last.weight.copy_(weight)
                last.bias.copy_(bias)
        return fitted, found

    def solved(self, number: int, fold: Fold, found: Linear) -> dict[str, Any]:
        """What the linear model reaches, as an entry of the history."""
        said, boundary = self.run.cohort.references[list(fold.train)], self.boundary(len(self.model.stages))
        seen = {p.name: boundary.at(list(p), 0)[0].cpu().numpy() for p in (fold.train, fold.val) if len(p)}
        loss = criterion(found.task, said, found.says(seen[fold.train.name]))
        strength = found.strength[0] if len(found.strength) == 1 else list(found.strength)
        entry = {"fold": number, "phase": "logistic", "epoch": -1, "strength": strength, "train_loss": loss}
        entry["held_out_loss"] = criterion(found.task, said, found.held_out)
        if len(fold.val):
            entry |= self.validate(found.says(seen[fold.val.name]), fold)
        return entry

    def _write(self, number: int, fold: Fold) -> None:
        folder = self.run.folder / f"fold-{number}"
        fitted, found = self.solve(fold)
        entry = self.solved(number, fold, found)
        write(folder / "held_out.json", json.dumps(found.held_out.tolist()))
        write_json(folder / "history.json", [entry])
        self.log(entry)
        facts = {"description": self.model.description.to_json()}
        save_checkpoint(folder / "model.safetensors", fitted.state_dict(), facts)

    def log(self, entry: dict[str, Any]) -> None:
        """Write an entry down and tell whoever watches."""
        append(self.run.folder / "log.jsonl", entry)
        if self.watch is not None:
            self.watch(entry)

    def validate(self, chances: NDArray[np.float64], fold: Fold) -> dict[str, float | None]:
        """Loss and, for two classes, area under the ROC curve of a validation part."""
        cohort = self.run.cohort
        said = cohort.references[list(fold.val)]
        two = cohort.task == "classification" and chances.shape[1] == 2
        area = float(auroc(said == 1, chances[:, 1])) if two else None
        return {"val_loss": criterion(cohort.task, said, chances), "val_auroc": area}


class _Training:
    """One fold's epochs."""

    def __init__(self, job: Job, number: int, fold: Fold, stop: Stop) -> None:
        self.job, self.team, self.recipe, self.fold, self.stop = job, job.team, job.recipe, fold, stop
        self.number, self.folder = number, job.run.folder / f"fold-{number}"
        self.device = job.team.fabric.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=job.scaled)
        cohort, train = job.run.cohort, list(fold.train)
        self.task, classes = cohort.task, len(cohort.classes)
        self.most = at_once(job.model, case_shape(job.model, job.run.prepare, cohort.bags), self.device)
        exact = torch.int64 if self.task in BY_CLASS else torch.float32
        self.references = torch.from_numpy(cohort.references).to(self.device, exact)
        self.prior = prior_of(self.task, cohort.references[train], classes)
        self.unit = torch.tensor(self.prior[:, 1]).to(self.references) if self.task == "regression" else None
        self.weight: Tensor | None = None
        if self.recipe.class_weights and self.task in BY_CLASS:
            self.weight = class_weights(cohort.labels[train], classes, self.recipe.class_weights).to(self.device)

    def go(self) -> None:
        """All epochs, from wherever the fold stands."""
        from tqdm import tqdm

        model, mesh = copy.deepcopy(self.job.model), self.team.mesh
        model.recompute = self.job.capacity is not None and self.job.capacity.again
        (model if mesh is None else model.head).to(self.device)  # stages follow in pieces when they learn
        if mesh is None and model.description.dims == 2:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start_from_prior(model.head, self.task, self.prior)
        base = self.job.model.state_dict()
        state = State.start(model, self.recipe, self.folder, self.job.seed, base, mesh)
        if self.recipe.start == "logistic" and not state.history:
            fitted, found = self.job.solve(self.fold)
            model.load_state_dict(fitted.state_dict())
            state.begin(self.job.solved(self.number, self.fold, found), write=self.team.first)
            if self.team.first:
                self.job.log(state.history[0])
            self.team.wait()
        several = len(self.job.run.split.folds) > 1
        bar = tqdm(
            total=self.recipe.epochs,
            initial=state.epoch,
            desc=f"fold {self.number}" if several else "train",
            unit="epoch",
            disable=None if self.job.run.progress else True,
        )
        if state.scale:
            self.scaler.load_state_dict(state.scale)
        self.stop.listening = True
        with bar:
            while state.go_on():
                started = time.monotonic()
                entry = self._epoch(state)
                state.history.append(entry)
                state.next_epoch(entry["val_loss"], write=self.team.first)
                state.scale = self.scaler.state_dict()
                state.save(write=self.team.first)
                if self.team.first:
                    state.tidy()
                    facts = {"seconds": round(time.monotonic() - started, 3), "learning_rate": self._rate(state)}
                    self.job.log(entry | facts)
                self.team.wait()
                bar.update()
                bar.set_postfix(val_loss=f"{entry['val_loss']:.3f}", best=f"{state.best:.3f}")
        self.stop.listening = False
        if self.team.first:
            write_json(self.folder / "history.json", state.history)
        self._conclude(state)

    def _frozen(self, learning: Sequence[str]) -> int:
        """How many stages are computed once, where these learn."""
        if learning and (self.job.model.description.by_slice or self.job.run.cohort.bags):
            return 0  # slices, or the images of a bag, meet only after the last stage
        return len(self.job.model.stages) - len(learning)

    def _rate(self, state: State) -> float:
        return float(max(group["lr"] for group in state.optimizer.param_groups))

    def _epoch(self, state: State) -> dict[str, Any]:
        recipe = self.recipe
        stages = recipe.trainable(state.epoch, list(state.model.stages))
        phase = next(p for p in recipe.phases() if p[0] <= state.epoch < p[1])
        state.enter(phase)
        choose(state.model, stages, recipe.tune, recipe.frozen_norms)
        boundary = self.job.boundary(self._frozen(stages))
        train = np.array(self.fold.train)
        size = recipe.batch_size * recipe.accumulate
        order = train[
            torch.randperm(len(train), generator=generator_of(self.job.seed, self.number, state.epoch)).numpy()
        ]
        steps = [order[i : i + size] for i in range(0, len(order), size)]
        if len(steps) > 1 and len(steps[-1]) == 1:
            steps[-2:] = [np.concatenate(steps[-2:])]  # batch statistics need two
        with nullcontext() if boundary.whole else faster(state.model, state.adapters):  # a head has nothing to fold
            while state.step < len(steps):
                self._heed(state)
                done = (state.epoch - phase[0]) * len(steps) + state.step
                factor = recipe.lr_factor(done, (phase[1] - phase[0]) * len(steps))
                self._step(state, boundary, steps[state.step], factor)
            with state.shown():
                chances = self._chances(state.model, boundary)
        return {
            "fold": self.number,
            "phase": "fine-tuning" if stages else "head",
            "epoch": state.epoch,
            "train_loss": state.loss_sum / len(order),
            **self.job.validate(chances, self.fold),
        }

    def _heed(self, state: State) -> None:
        """Stop between two steps if a signal came to any of the processes."""
        if not self.team.sum(float(self.stop.is_set())):
            return
        state.scale = self.scaler.state_dict()
        state.save(write=self.team.first)
        self.team.wait()
        raise Interrupted(
            f"stopped in fold {self.number}, epoch {state.epoch}, step {state.step}; everything is saved",
            where=self.job.run.folder.name,
            fix="run the same command again: it goes on from here",
        )

    def _step(self, state: State, boundary: Boundary, batch: NDArray[np.int64], factor: float) -> None:
        recipe, optimizer = self.recipe, state.optimizer
        generator = generator_of(self.job.seed, self.number, state.epoch, state.step, self.team.rank)
        _seed(generator.initial_seed(), self.device)  # dropout has no generator of its own
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        view = self.job.view(state.epoch, boundary.whole)
        share, own, total = self.team.share(batch), self.team.own(len(batch)), 0.0
        most = recipe.batch_size if boundary.whole or self.job.capacity is None else self.job.capacity.batch
        for part in np.array_split(share, math.ceil(len(share) / most)) if len(share) else []:
            loss = self._loss(state, boundary, part, view, generator)[:own]
            own -= len(loss)
            self._check(loss, part[: len(loss)], state)
            self.scaler.scale(loss.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach().sum())
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.team.sum_gradients(parameters)
        self.scaler.unscale_(optimizer)
        clip(parameters, recipe.clip)
        self.scaler.step(optimizer)  # left out where a scaled gradient is not finite
        self.scaler.update()
        state.follow()
        state.loss_sum += self.team.sum(total)
        state.step += 1

    def _loss(
        self, state: State, boundary: Boundary, part: NDArray[np.int64], view: int, generator: torch.Generator
    ) -> Tensor:
        """Loss of each case of a batch."""
        recipe, said = self.recipe, self.references[torch.from_numpy(part).to(self.device)]
        pooled, x = boundary.at(part, view)
        share, other = mixing(len(part), recipe.mixup, generator) if recipe.mixup else (1.0, torch.arange(len(part)))
        if share < 1:
            pooled, x = (share * v + (1 - share) * v[other.to(v.device)] for v in (pooled, x))
        with self.team.fabric.autocast():
            logits = tail(state.model, boundary.first, pooled, x).float()
        each = [losses(logits, y, task=self.task, weight=self.weight, smoothing=recipe.label_smoothing,
                       focal=recipe.focal, unit=self.unit)
                for y in (said, *([said[other.to(said.device)]] if share < 1 else []))]  # fmt: skip
        return each[0] if share == 1 else share * each[0] + (1 - share) * each[1]

    def _check(self, loss: Tensor, part: NDArray[np.int64], state: State) -> None:
        if torch.isfinite(loss).all():
            return
        wrong = part[~torch.isfinite(loss.detach()).cpu().numpy()]
        names = [self.job.run.cohort.cases[i].alias for i in wrong[:8]]
        raise DataError(
            f"the loss is not finite for {len(wrong)} of {len(part)} cases",
            where=f"fold {self.number}, epoch {state.epoch}, step {state.step}",
            got=", ".join(names),
            fix=f"lower recipe.lr or look at these cases; {self.folder.name}/last.safetensors is the last good epoch",
        )

    def _chances(self, model: Model, boundary: Boundary) -> NDArray[np.float64]:
        """Probabilities of the validation part, each case by one process."""
        share = self.team.share(np.array(self.fold.val))
        model.eval()
        parts = [np.zeros((0, model.description.classes))]
        with torch.no_grad():
            for start in range(0, len(share), self.most):
                logits = tail(model, boundary.first, *boundary.at(share[start : start + self.most], 0))
                parts.append(task_probabilities(self.task)(logits.double()).cpu().numpy())
        return self.team.gather(np.concatenate(parts), len(self.fold.val))

    def _conclude(self, state: State) -> None:
        """The best checkpoint, or the average of the best ones if validation is not worse, becomes the fold's model."""
        best = state.kept[0][1]
        phase = next((p for p in self.recipe.phases() if p[0] <= best < p[1]), (-1, 0))
        stages = self.recipe.trainable(best, list(state.model.stages))
        boundary = self.job.boundary(self._frozen(stages))
        chosen, loss = [best], state.best
        for _, epoch in state.kept[1:]:
            if phase[0] <= epoch < phase[1]:
                load(state.model, state.read(*chosen, epoch)[0])
                choose(state.model, stages, self.recipe.tune, self.recipe.frozen_norms)
                found = self.job.validate(self._chances(state.model, boundary), self.fold)["val_loss"]
                if found is not None and found <= loss:
                    chosen, loss = [*chosen, epoch], found
        if self.team.first:
            tensors, facts = state.read(*chosen)
            facts = facts | {"epoch": ",".join(map(str, chosen))}
            save_checkpoint(self.folder / "model.safetensors", tensors, facts)
            state.tidy(everything=True)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the default generator; where CUDA sleeps, torch would keep each call, with its stack, to repeat it there."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
