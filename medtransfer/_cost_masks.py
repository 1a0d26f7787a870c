"""Where the time of a segmentation goes, told before it is spent: cases, steps and windows, measured on a few cases."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch

from medtransfer.boundary import generator_of
from medtransfer.cohort import Cohort
from medtransfer.cost import Cost, Stage, evenly
from medtransfer.errors import DataError, MedTransferError
from medtransfer.recipe import Recipe
from medtransfer.segment.infer import speaker
from medtransfer.segment.loss import supervised
from medtransfer.segment.network import Segmenter
from medtransfer.segment.patches import Patches, Resident
from medtransfer.segment.plan import Plan
from medtransfer.segment.slide import starts
from medtransfer.segment.train import residents, validated
from medtransfer.split import Split
from medtransfer.training import optimizer_of
from medtransfer.tuned import choose

LOOKED_AT = 3  # cases
LONG_S = 15.0  # after so many seconds a step or a window is not measured once more


def cost_of_masks(model: Segmenter, cohort: Cohort, split: Split, plan: Plan, recipe: Recipe) -> Cost:
    """Time of training a segmentation and of segmenting its test cases, from a few training cases of the first fold.

    Parameters
    ----------
    model, cohort, split, plan, recipe
        As for :func:`medtransfer.segment.train_segmentation`; the model stays as it is.

    Raises
    ------
    DataError
        Where none of the cases looked at can be read.
    """
    model, classes = copy.deepcopy(model), model.blueprint.classes
    seconds, cases = [], list[list[Resident]]()
    for index in evenly(split.folds[0].train, LOOKED_AT):
        began = time.perf_counter()
        try:
            cases.append(residents(cohort.cases[index], plan, classes))
        except MedTransferError:
            continue  # the audit names it
        seconds.append(time.perf_counter() - began)
    if not cases:
        raise DataError("none of the cases looked at can be read", got=f"{LOOKED_AT} cases")
    windows = [sum(_windows(part, plan) for part in case) for case in cases]
    each = _window_s(model, plan, cases[0][0])
    train, val, test = (sum(len(f.parts()[k]) for f in split.folds) for k in range(3))
    stages = [Stage("read, onto the grid", train + val, tuple(seconds))]
    for first, last in recipe.phases():
        learn = recipe.trainable(first, list(model.stages))
        name, epochs, every = "all" if learn else "decoder", last - first, validated(recipe)
        least = min(epochs, (recipe.patience + 1) * every) * len(split.folds) * plan.steps_per_epoch
        steps = epochs * len(split.folds) * plan.steps_per_epoch
        stages.append(Stage(f"step, {name} learns", steps, _step_s(model, plan, recipe, cases, learn), least))
        looked = sum(e % every == 0 or e + 1 in (last, recipe.epochs) for e in range(first, last))
        fewest = min(looked, recipe.patience + 1) * val
        stages.append(Stage("validate", looked * val, tuple(n * each for n in windows), fewest))
    views = 2 ** len(plan.mirrored)
    stages.append(Stage("segment val and test", val + test, tuple(n * each * views for n in windows)))
    return Cost(tuple(stages), len(cases), "distances, intervals and the report come on top; measured in float32")


def _windows(case: Resident, plan: Plan) -> int:
    """How many windows slide over a case."""
    sizes = zip(case.labels.shape, plan.window, strict=True)
    return math.prod(len(starts(max(n, w), w, plan.overlap)) for n, w in sizes)


def _window_s(model: Segmenter, plan: Plan, case: Resident) -> float:
    views = torch.zeros(2, len(case.image), *plan.window)
    predict = speaker([model.eval()])
    with torch.inference_mode():
        return min(_timed(lambda: predict(views))) / 2


def _step_s(
    model: Segmenter, plan: Plan, recipe: Recipe, cases: Sequence[Sequence[Resident]], learn: Sequence[str]
) -> tuple[float, ...]:
    """Seconds of a step; patches are drawn meanwhile, by a thread of its own."""
    model = copy.deepcopy(model)
    model.train()
    model.recompute = recipe.checkpoint is True
    choose(model, learn, recipe.tune, recipe.frozen_norms)
    optimizer = optimizer_of(model, recipe)
    images, labels = Patches([r for case in cases for r in case], plan, model.blueprint.classes).batch(generator_of(0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        supervised(model.pyramid(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _timed(step)


def _timed(compute: Callable[[], object]) -> tuple[float, ...]:
    """Seconds of two or three calls after a first one; of the first alone where it is long."""
    found: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        compute()
        found.append(time.perf_counter() - began)
        if sum(found) > LONG_S:
            break
    return tuple(found[1:] or found)
