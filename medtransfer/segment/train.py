"""Training a segmentation: from a model, a cohort with masks and a plan to a run folder.

Randomness is drawn from (seed, fold, epoch, step): a run that was interrupted and went on ends in the same bytes.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from medtransfer.boundary import generator_of
from medtransfer.cache import file_digest, fingerprint
from medtransfer.claims import alone
from medtransfer.cohort import Case, Cohort
from medtransfer.errors import ConfigError, DataError, Interrupted
from medtransfer.folds import chosen_folds
from medtransfer.image import Image
from medtransfer.memory import reusing_pages
from medtransfer.recipe import Recipe
from medtransfer.run import append, begin, environment, finish, read_checkpoint, save_checkpoint, write_json
from medtransfer.segment.finish import choose_finish, dice
from medtransfer.segment.grid import in_slices, to_grid, turn
from medtransfer.segment.infer import chances
from medtransfer.segment.loss import supervised
from medtransfer.segment.masks import read_pair
from medtransfer.segment.network import Segmenter
from medtransfer.segment.patches import Patches, Resident
from medtransfer.segment.plan import Plan
from medtransfer.segment.run import SegmentationRun
from medtransfer.split import Fold, Split
from medtransfer.training import State, Stop, stopping
from medtransfer.tuned import choose

Watch = Callable[[dict[str, Any]], None]
Precision = Literal["auto", "32-true", "bf16-mixed"]
_VALIDATIONS = 20  # over a whole training


def train_segmentation(
    model: Segmenter,
    cohort: Cohort,
    split: Split,
    plan: Plan,
    recipe: Recipe,
    *,
    out: str | Path,
    structures: Sequence[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "auto",
    fold: int | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> SegmentationRun:
    """Train on the training part of each fold; the model passed in stays as it is.

    Parameters
    ----------
    model : Segmenter
        From :func:`medtransfer.segment.load_segmenter`.
    cohort, split
        Cases with masks; who is held out.
    plan : Plan
        Grid, patches, batch, grey values.
    recipe : Recipe
        ``method='probe'`` leaves the encoder frozen, ``'finetune'`` trains the decoder for ``freeze_epochs`` first,
        ``'full'`` everything. An epoch is ``plan.steps_per_epoch`` batches; ``batch_size`` is the plan's;
        ``patience`` counts validations, of which there are about twenty.
    out : path
        The run folder. If it holds this very run, training goes on where it stands, or is found complete.
    structures : sequence of str or None
        Names of the classes after the background.
    seed : int
        Of patches and their variations.
    device : str
    precision : {'auto', '32-true', 'bf16-mixed'}
        Of training; prediction stays float32. ``auto`` measures a step of each on this machine, once a fold.
    fold : int or None
        Train this fold alone, as for :func:`medtransfer.fit`.
    watch : function or None
        Is given each entry of the log as it is written, as in :func:`medtransfer.fit`.

    Raises
    ------
    ConfigError
        Where model, plan and structures do not fit together.
    RunError
        Where the folder cannot be used, or another process is at work on the fold.
    Interrupted
        After Ctrl-C or SIGTERM, with a checkpoint on disk: the same call goes on from there.
    """
    out = Path(out)
    split.check(cohort)
    names = tuple(structures) if structures else tuple(f"structure {i}" for i in range(1, model.blueprint.classes))
    _check(model, plan, recipe, split, names)
    wanted = chosen_folds(split, fold)
    tensors = (part for k, v in model.state_dict().items() for part in (k, v.detach().cpu().numpy()))
    used = sorted({i for f in split.folds for part in f.parts()[:2] for i in part})
    asked = {
        "task": "segmentation",
        "model": json.loads(model.blueprint.to_json()),
        "tensors": fingerprint(*tensors),
        "cohort": cohort.fingerprint,
        "masks": fingerprint(*(file_digest(m) for i in used if (m := cohort.cases[i].mask) and m.is_file())),
        "structures": list(names),
        "split": [[list(p) for p in fold.parts()] for fold in split.folds],
        "plan": plan.model_dump(mode="json"),
        "recipe": recipe.model_dump(exclude={"checkpoint"}),
        "seed": seed,
        "precision": precision,
    }
    complete = begin(out, asked, cohort, split)
    run = SegmentationRun(out, cohort, split, plan, names, device)
    if complete:
        return run
    plan.save(out / "plan.yaml")
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]), reusing_pages(), stopping() as stop:
        for number in wanted:
            with alone(out / f"fold-{number}", "claim"):
                if not (out / f"fold-{number}" / "finish.json").is_file():
                    one = split.folds[number]
                    _Training(run, model, recipe, number, one, seed, precision, stop, progress, watch).go()
    if fold is not None:
        return run
    run.describe(_facts(run, model, recipe, seed, time.monotonic() - started))
    finish(out)
    return run


def residents(case: Case, plan: Plan, classes: int) -> list[Resident]:
    """A case as the network sees it: one array, or the slices of a volume for a network of two axes."""
    image, labels, _ = read_pair(case, classes)
    pairs: list[tuple[Image, Any]] = [(image, labels)]
    if plan.dims == 2 and image.kind == "volume":
        pairs = list(zip(in_slices(image), turn(labels, image), strict=True))
    found = [to_grid(plan, one, mask, where=case.alias) for one, mask in pairs]
    return [Resident.make(array, mask, classes) for array, mask in found if mask is not None]


def validated(recipe: Recipe) -> int:
    """Epochs from one validation to the next: about twenty in a whole training."""
    return max(1, recipe.epochs // _VALIDATIONS)


class _Training:
    """One fold."""

    def __init__(
        self, run: SegmentationRun, model: Segmenter, recipe: Recipe, number: int, fold: Fold, seed: int,
        precision: Precision, stop: Stop, progress: bool, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.run, self.recipe, self.number, self.fold, self.seed, self.stop = run, recipe, number, fold, seed, stop
        self.folder, self.progress, self.watch = run.folder / f"fold-{number}", progress, watch
        self.plan, self.classes = run.plan, model.blueprint.classes
        self.device = torch.device(run.device)
        self.model = copy.deepcopy(model).to(self.device)
        self.model.recompute = recipe.checkpoint is True
        cases = self.run.cohort.cases
        resident = {i: residents(cases[i], self.plan, self.classes) for part in (fold.train, fold.val) for i in part}
        self.val = [resident[i] for i in fold.val]
        self.patches = Patches([r for i in fold.train for r in resident[i]], self.plan, self.classes)
        self.bf16 = self._precision(precision)
        self.repeated = 0  # steps of this epoch that half precision could not compute

    def _precision(self, asked: Precision) -> bool:
        """Whether to train in bfloat16: as asked, as measured when the run began, or as measured now."""
        file = self.folder / "precision.json"
        if asked != "auto":
            return asked == "bf16-mixed"
        if not file.is_file():
            write_json(file, {"bf16": self._faster_in_half()})
        return bool(json.loads(file.read_text())["bf16"])

    def _faster_in_half(self) -> bool:
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        probe = copy.deepcopy(self.model)
        choose(probe, list(probe.stages), "all", self.recipe.frozen_norms)
        images, labels = self.patches.batch(generator_of(self.seed))
        times: dict[bool, float] = {}
        for half in (False, True, False, True):
            began = time.process_time()
            self._loss(probe, images, labels, half).backward()  # type: ignore[no-untyped-call]
            times[half] = time.process_time() - began
        return times[True] < times[False]

    def _loss(self, model: Segmenter, images: Tensor, labels: Tensor, half: bool) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            pyramid = model.pyramid(images.to(self.device))
        return supervised(pyramid, labels.to(self.device))

    def go(self) -> None:
        """All epochs, from wherever the fold stands, and the post-processing."""
        from tqdm import tqdm

        state = State.start(self.model, self.recipe, self.folder, self.seed)
        torch.set_flush_denormal(True)
        self.stop.listening = True
        bar = tqdm(total=self.recipe.epochs, initial=state.epoch, unit="epoch", disable=None if self.progress else True)
        with bar:
            while state.go_on():
                began = time.monotonic()
                entry = self._epoch(state)
                state.history.append(entry)
                waited = state.waited
                state.next_epoch(float("inf") if entry["val_loss"] is None else entry["val_loss"])
                state.waited = waited if entry["val_loss"] is None else state.waited  # patience counts validations
                state.save()
                state.tidy()
                told = entry | {"seconds": round(time.monotonic() - began, 3)}
                if self.repeated:
                    told["steps_repeated_in_float32"], self.repeated = self.repeated, 0
                append(self.run.folder / "log.jsonl", told)
                if self.watch is not None:
                    self.watch(told)
                bar.update()
                bar.set_postfix(loss=f"{entry['train_loss']:.3f}", best_dice=f"{1 - state.best:.4f}")
        self.stop.listening = False
        torch.set_flush_denormal(False)
        write_json(self.folder / "history.json", state.history)
        tensors, facts = read_checkpoint(state.file(state.kept[0][1]))
        save_checkpoint(self.folder / "model.safetensors", tensors, facts)
        self.run.forget(self.number)
        rule = choose_finish(self.run, self.number, self.fold)
        write_json(self.folder / "finish.json", rule)
        state.tidy(everything=True)

    def _epoch(self, state: State) -> dict[str, Any]:
        recipe, steps = self.recipe, self.plan.steps_per_epoch
        stages = recipe.trainable(state.epoch, list(state.model.stages))
        phase = next(p for p in recipe.phases() if p[0] <= state.epoch < p[1])
        state.enter(phase)
        choose(state.model, stages, recipe.tune, recipe.frozen_norms)

        def draw(step: int) -> tuple[Tensor, Tensor]:
            return self.patches.batch(generator_of(self.seed, self.number, state.epoch, step))

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as ahead:  # makes the next batch
            coming = ahead.submit(draw, state.step)
            while state.step < steps:
                if self.stop.is_set():
                    state.save()
                    raise Interrupted(
                        f"stopped in fold {self.number}, epoch {state.epoch}, step {state.step}; everything is saved",
                        where=self.run.folder.name,
                        fix="run the same command again: it goes on from here",
                    )
                images, labels = coming.result()
                coming = ahead.submit(draw, state.step + 1)
                done = (state.epoch - phase[0]) * steps + state.step
                self._step(state, images, labels, recipe.lr_factor(done, (phase[1] - phase[0]) * steps))
        torch.set_num_threads(threads)
        entry: dict[str, Any] = {"fold": self.number, "phase": "fine-tuning" if stages else "decoder"}
        entry |= {"epoch": state.epoch, "train_loss": state.loss_sum / steps, "val_loss": None}
        if state.epoch % validated(recipe) == 0 or state.epoch + 1 in (phase[1], recipe.epochs):
            with state.shown():
                scores = self._validate(cast(Segmenter, state.model))
            entry |= {"val_dice": scores, "val_loss": 1 - float(np.mean(scores))}
        return entry

    def _step(self, state: State, images: Tensor, labels: Tensor, factor: float) -> None:
        optimizer = state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        statistics = [b.clone() for b in state.model.buffers()] if self.bf16 else []
        value, norm = self._backward(state, images, labels, half=self.bf16)
        if self.bf16 and not np.isfinite([value, norm]).all():  # some convolutions overflow in half precision
            with torch.no_grad():
                for now, before in zip(state.model.buffers(), statistics, strict=True):
                    now.copy_(before)
            value, norm = self._backward(state, images, labels, half=False)
            self.repeated += 1
        if not np.isfinite([value, norm]).all():
            raise DataError(
                "the loss or its gradient is not finite",
                where=f"fold {self.number}, epoch {state.epoch}, step {state.step}",
                fix="lower recipe.lr",
            )
        optimizer.step()
        state.follow()
        state.loss_sum += value
        state.step += 1

    def _backward(self, state: State, images: Tensor, labels: Tensor, *, half: bool) -> tuple[float, float]:
        """Gradients of one batch, clipped; the loss, and their norm before."""
        torch.manual_seed(generator_of(self.seed, self.number, state.epoch, state.step, 1).initial_seed())  # dropout
        state.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(cast(Segmenter, state.model), images, labels, half)
        loss.backward()  # type: ignore[no-untyped-call]
        learning = [p for group in state.optimizer.param_groups for p in group["params"] if p.requires_grad]
        return float(loss.detach()), float(nn.utils.clip_grad_norm_(learning, self.recipe.clip))

    def _validate(self, model: Segmenter) -> list[float]:
        """Mean Dice of each structure over the validation cases that have it, on the plan's grid."""
        rows = []
        for case in self.val:
            found, said = [], np.concatenate([part.labels.numpy().ravel() for part in case])
            for part in case:
                slabs = chances([model], self.plan, part.image.to(self.device), mirror=False)
                found += [p.argmax(0).to(torch.uint8).cpu().numpy().ravel() for _, _, p in slabs]
            rows.append(dice(np.concatenate(found), said, self.classes))
        means = np.nanmean(np.array(rows), axis=0)
        return [float(v) for v in np.nan_to_num(means)]


def _check(model: Segmenter, plan: Plan, recipe: Recipe, split: Split, names: tuple[str, ...]) -> None:
    b = model.blueprint
    if b.dims != plan.dims:
        raise ConfigError(f"the model takes {b.dims}D images and the plan {plan.dims}D patches", where="model.dims")
    if b.classes != len(names) + 1:
        raise ConfigError(
            f"the model has {b.classes} classes, background included",
            where="model.classes",
            got=f"{len(names)} structures",
            fix=f"classes: {len(names) + 1}",
        )
    if recipe.method == "logistic" or recipe.start == "logistic":
        raise ConfigError("a decoder is not solved for", where="recipe.method", fix="method: full, finetune or probe")
    if any(not len(fold.val) for fold in split.folds):
        raise ConfigError("the best model is chosen on a validation part, and the split has none", where="split.val")


def _facts(run: SegmentationRun, model: Segmenter, recipe: Recipe, seed: int, seconds: float) -> dict[str, object]:
    """What a report says about the model and how it was trained."""
    b = model.blueprint
    folders = [run.folder / f"fold-{n}" for n in range(len(run.split.folds))]
    return {
        "task": "segmentation",
        "model": {
            "backbone": b.arch,
            "weights": b.weights.get("name"),
            "source": b.weights.get("origin"),
            "sha256": b.weights.get("sha256"),
            "licence": b.weights.get("licence"),
            "parameters": sum(p.numel() for p in model.parameters()),
            "dims": b.dims,
            "in_channels": b.in_channels,
            "receipt": b.receipt,
        },
        "recipe": recipe.model_dump(),
        "segmentation_plan": run.plan.model_dump(mode="json"),
        "structures": list(run.structures),
        "history": [entry for f in folders for entry in json.loads((f / "history.json").read_text())],
        "finish": [json.loads((f / "finish.json").read_text()) for f in folders],
        "environment": environment(),
        "seed": seed,
        "runtime_s": round(seconds, 1),
        "flow": run.cohort.flow_record(),
        "notes": list(run.cohort.notes),
        "split": run.split.scheme,
        "hashes": {"cohort": run.cohort.fingerprint},
        "version": environment()["medtransfer"],
        "device": run.device,
    }
