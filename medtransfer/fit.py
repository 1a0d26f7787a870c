"""Fine-tuning, from a model and a cohort to a run folder.

Randomness is drawn from (seed, fold, epoch, step), never from what happened before: a run that was
interrupted and went on ends in the same bytes as one that was not.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch

from medtransfer.augment import Augment
from medtransfer.cache import fingerprint
from medtransfer.capacity import Capacity, capacity_of, case_shape
from medtransfer.claims import alone
from medtransfer.cohort import Cohort
from medtransfer.errors import ConfigError, MedTransferWarning
from medtransfer.folds import chosen_folds
from medtransfer.loop import Job, Watch
from medtransfer.memory import available, reusing_pages
from medtransfer.model import Model
from medtransfer.prepare import Prepare
from medtransfer.recipe import Recipe
from medtransfer.run import Run, begin, environment, finish, save_checkpoint, write_json
from medtransfer.split import Split
from medtransfer.team import Team, threads
from medtransfer.training import stopping
from medtransfer.tuned import Normalisation

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Strategy = Literal["auto", "ddp", "fsdp"]


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
    devices: int = 1,
    nodes: int = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32-true",
    workers: int = 2,
    fold: int | None = None,
    progress: bool = True,
    watch: Watch | None = None,
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
    devices, nodes : int
        Processes a machine, and machines: start that many with ``torchrun`` or ``srun``. A step and its batch stay
        what they are; each process computes its share.
    strategy : {'auto', 'ddp', 'fsdp'}
        How several processes share the work: each holds the whole network (``ddp``, which ``auto`` takes), or a piece
        of the stages that learn, of their gradients and of the optimizer's state (``fsdp``). It changes no file's form:
        a run may go on with the other one.
    precision : {'32-true', 'bf16-mixed', '16-mixed'}
        Of what learns; weights, frozen features and evaluation stay float32. ``16-mixed`` scales the loss, so that
        small gradients do not vanish, and needs a CUDA device.
    workers : int
        Threads that read and prepare images, 0: none besides this one. It changes no number.
    fold : int or None
        Train this fold alone, counted from 0, while other processes train the others into the same folder; a call
        without it then finds all folds trained and completes the run. The folds are the same bytes either way.
    watch : function or None
        Is given each entry of the log as it is written: a dict with fold, epoch, losses. What it raises ends the
        call and leaves a run that can go on.

    Raises
    ------
    ConfigError
        Where model, cohort, preparation and recipe do not fit together.
    RunError
        Where the folder cannot be used, or another process is at work on the fold.
    Interrupted
        After Ctrl-C, SIGTERM or SIGUSR1, with a checkpoint on disk: the same call goes on from there.
    """
    from lightning_fabric import Fabric

    augment = augment or Augment()
    out = Path(out)
    split.check(cohort)
    check_fit(model, cohort, prepare, recipe, split)
    wanted = chosen_folds(split, fold)
    asked = {
        "model": json.loads(model.description.to_json()),
        "tensors": _digest(model),
        "cohort": cohort.fingerprint,
        "classes": list(cohort.classes),
        "task": cohort.task,
        "split": [[list(p) for p in fold.parts()] for fold in split.folds],
        "prepare": prepare.model_dump(mode="json"),
        "augment": augment.model_dump(),
        "recipe": recipe.model_dump(exclude={"checkpoint"}),  # which changes no gradient
        "seed": seed,
    }
    asked |= {} if precision == "32-true" else {"precision": precision}
    asked |= {"bag": cohort.bags} if cohort.bags else {}
    if strategy == "fsdp" and cohort.bags and recipe.learns:
        raise ConfigError(
            "bags of images and weights sharded over devices do not go together",
            where="strategy",
            got=strategy,
            fix="strategy: ddp, and recipe.tune: lora where the network is too large",
        )
    if strategy == "fsdp" and precision == "16-mixed":
        raise ConfigError("the loss is not scaled where weights are sharded over devices", where="precision",
                          got=precision, fix="precision: bf16-mixed, or 32-true")  # fmt: skip
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precision,
    )
    if precision == "16-mixed" and fabric.device.type != "cuda":
        raise ConfigError("16-mixed needs a CUDA device", where="precision", got=str(fabric.device),
                          fix="precision: bf16-mixed, or 32-true")  # fmt: skip
    fabric.launch()
    team = Team(fabric, sharded=strategy == "fsdp")
    if team.first:
        begin(out, asked, cohort, split)
    team.wait()
    complete = begin(out, asked, cohort, split)
    run = Run(out, cohort, split, prepare, str(fabric.device), progress and team.first, workers)
    if complete:
        return run
    started = time.monotonic()
    job = Job(team, run, model, recipe, augment, seed, watch, scaled=precision == "16-mixed")
    job.capacity = _capacity(job, team.size // nodes)
    if team.first and recipe.learns and not (out / "start.safetensors").is_file():  # what fine-tuning has to beat
        save_checkpoint(out / "start.safetensors", model.state_dict(), {"description": model.description.to_json()})
    with torch.random.fork_rng(), threads(team.size // nodes), reusing_pages(), stopping() as stop:
        for number in wanted:
            place = out / f"fold-{number}"
            with alone(place, "claim") if team.first else nullcontext():
                team.wait()
                if not (place / "model.safetensors").is_file():
                    job.fit_fold(number, split.folds[number], stop)
            team.wait()
    if fold is not None:
        return run
    if team.first:
        for path in out.glob("fold-*/kept-*.safetensors"):  # of a process that was killed after it had concluded
            path.unlink(missing_ok=True)
        memory = {"memory": None if job.capacity is None else job.capacity.to_record()}
        run.describe(_facts(model, run, recipe, seed, time.monotonic() - started) | memory)
        finish(out)
    team.wait()
    return run


def _capacity(job: Job, processes: int) -> Capacity | None:
    """How steps are computed: as when the run began, since other batches end in other last digits; told beforehand."""
    run, file = job.run, job.run.folder / "memory.json"
    known = Capacity(**json.loads(file.read_text())) if file.is_file() else None
    short = known is not None and known.need > available(run.device)
    if short:
        warnings.warn("there is less memory than when the run began, and batches are cut anew: the last digits will "
                      "not be those of a run without interruption", MedTransferWarning, stacklevel=3)  # fmt: skip
    job.team.wait()
    if job.team.first and (known is None or short):
        shape = case_shape(job.model, run.prepare, run.cohort.bags)
        known = capacity_of(
            job.model, job.recipe, shape, device=run.device, processes=processes,
            held=min(run.prepared.memory_bytes, 4 * math.prod(shape) * len(run.cohort)),
        )  # fmt: skip
        if known is not None:
            write_json(file, known.to_record())
    job.team.wait()
    found = Capacity(**json.loads(file.read_text())) if file.is_file() else None
    if run.progress and found is not None and (found.changed or sys.stderr.isatty()):
        print(f"memory: {found}", file=sys.stderr)
    return found


_OUTPUTS = {"classification": "classes", "ordinal": "classes", "multilabel": "labels", "regression": "targets"}


def _digest(model: Model) -> str:
    return fingerprint(*(part for k, v in model.state_dict().items() for part in (k, v.detach().cpu().numpy())))


def check_fit(model: Model, cohort: Cohort, prepare: Prepare, recipe: Recipe, split: Split) -> None:
    """Refuse a model, cohort, preparation and recipe that do not fit together, before anything is computed.

    Raises
    ------
    ConfigError
    """
    d = model.description
    if d.task != cohort.task:
        raise ConfigError(
            f"the model is made for {d.task} and the cohort for {cohort.task}", where="model.task", got=d.task,
            fix=f"task: {cohort.task}",
        )  # fmt: skip
    if d.classes != len(cohort.classes):
        raise ConfigError(
            f"the model has {d.classes} {_OUTPUTS[d.task]} and the cohort {len(cohort.classes)}",
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
    if isinstance(recipe.unfreeze_from, str) and recipe.unfreeze_from not in model.stages:
        raise ConfigError(
            f"there is no stage '{recipe.unfreeze_from}'",
            where="recipe.unfreeze_from",
            got=f"stages {', '.join(model.stages)}",
            fix="name one of these, or count from the end: -2 is the last two",
        )
    if (
        recipe.tune == "norms"
        and recipe.learns
        and not any(
            isinstance(m, Normalisation)
            for s in recipe.trainable(recipe.epochs - 1, list(model.stages))
            for m in model.stages[s].modules()
        )
    ):
        raise ConfigError("the stages that learn have no normalisation", where="recipe.tune", fix="tune: all")
    if "logistic" in (recipe.method, recipe.start) and d.head.attention:
        raise ConfigError(
            "method logistic does not learn how to weigh slices or images",
            where="model.head.attention",
            got=d.head.attention,
            fix="attention: 0 (they are averaged), or method: probe",
        )
    if "logistic" in (recipe.method, recipe.start) and not model.linear:
        raise ConfigError(
            "method logistic needs a linear head", where="model.head", got=repr(d.head),
            fix="leave head out, or method: probe",
        )  # fmt: skip
    if recipe.mixup and cohort.bags:
        raise ConfigError("bags of images cannot be mixed", where="recipe.mixup", fix="mixup: 0")
    if recipe.method != "logistic" and any(not len(f.val) for f in split.folds):
        raise ConfigError(
            f"method {recipe.method} stops on a validation part, and the split has none",
            where="split.val",
            fix="val: 0.15, or method: logistic",
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
    d = model.description
    learned = list(recipe.trainable(recipe.epochs - 1, list(model.stages)))
    plan = recipe.describe(model)
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
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable": plan[-1]["parameters"],
            "dims": d.dims,
            "in_channels": d.in_channels,
            "input": f"{d.in_channels} × {size}"
            + (f", up to {run.cohort.bags} images a case" if run.cohort.bags else ""),
            "task": d.task,
            "head": str(model.head),
            "pool_from": list(d.pool_from),
            "pool": d.pool,
            "until": d.until,
            "receipt": d.receipt,
            "frozen": [s for s in model.stages if s not in learned],
            "trained": learned,
        },
        "recipe": recipe.model_dump(),
        "plan": plan,
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
