"""What a training step of a segmentation takes, by measurement; and a plan that fits into the memory that is there."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import cast

import torch

from medtransfer.capacity import SIDES, USED, Capacity, Need, fixed_bytes, gib, need_of, small_side, watching
from medtransfer.errors import ConfigError
from medtransfer.recipe import Recipe
from medtransfer.segment.network import Segmenter
from medtransfer.segment.plan import Plan
from medtransfer.tuned import choose


def patch_need(model: Segmenter, plan: Plan, recipe: Recipe) -> Need:
    """Bytes of a training step and of each patch in it, measured on small patches and scaled by their voxels.

    Parameters
    ----------
    model : Segmenter
        It stays as it is.
    """
    stages = recipe.trainable(recipe.epochs - 1, list(model.stages))
    least = [math.prod(s[i] for s in plan.steps) if plan.steps else 1 for i in range(plan.dims)]
    small = [max(min(n, 2 * t), small_side(n, SIDES[plan.dims])) for n, t in zip(plan.window, least, strict=True)]
    probe = copy.deepcopy(model).cpu()
    choose(probe, stages, recipe.tune, recipe.frozen_norms)
    found = []
    with torch.random.fork_rng(devices=[]):
        for n in (2, 3):
            images = torch.rand(n, model.blueprint.in_channels, *small)
            with watching(probe, stages, images) as seen:
                levels = probe.pyramid(images)
            seen.more = sum(level.numel() * 4 * 4 for level in levels)  # scores, shares, one-hot labels, a gradient
            found.append(seen)
            del levels
    scale = math.prod(plan.window) / math.prod(small)
    learned = sum(p.numel() for p in probe.parameters() if p.requires_grad)
    return need_of(found[0], found[1], few=2, scale=scale, fixed=fixed_bytes(model, learned, recipe))


def fit_plan(
    need: Need, plan: Plan, recipe: Recipe, there: int, *, given: Collection[str] = ()
) -> tuple[Plan, Recipe, Capacity]:
    """A plan whose training step fits: fewer patches, then encoders that compute again, then smaller patches.

    The batch is never below 2, and the loss is taken over the whole of it, so that it is not cut in parts.

    Parameters
    ----------
    there : int
        Bytes, of which 80 % are used.
    given : collection of str
        Fields of the plan that a person chose: they stay.

    Raises
    ------
    ConfigError
        Where what was chosen does not fit.
    """
    room, asked = USED * there, plan.batch_size
    again, batch = recipe.checkpoint is True, asked
    if need.step(batch, again=again) > room and "batch_size" not in given:
        batch = max(2, min(asked, int((room - need.step(0)) // need.case(again=again))))
    if need.step(batch, again=again) > room and recipe.checkpoint == "auto":
        again = True
    share = min(1.0, max(0.0, room - need.step(0)) / (batch * need.case(again=again)))
    window = plan.patch
    if share < 1:
        total = [math.prod(s[i] for s in plan.strides) if plan.strides else 8 for i in range(plan.dims)]
        side = share ** (1 / plan.dims)
        window = cast(
            tuple[int, int, int], tuple(int(n * side) // t * t for n, t in zip(plan.patch, total, strict=True))
        )
        if "patch" in given or not all(window):
            raise ConfigError(
                "a training step does not fit into the memory", where="plan.patch",
                got=f"{gib(need.step(batch, again=again))} needed, {gib(there)} there",
                fix=f"plan.patch: {list(window)}" if all(window) else "a smaller network",
            )  # fmt: skip
    share = math.prod(window) / math.prod(plan.patch)
    size = need.step(0) + int(share * batch * need.case(again=again))
    fitted = plan.model_copy(update={"batch_size": batch, "patch": window})
    cut = ""
    if fitted != plan:
        ours, theirs = (f"{p.batch_size} patches of {' × '.join(map(str, p.patch))}" for p in (fitted, plan))
        cut = f"{ours} at once; {theirs} would take {gib(need.step(asked))}"
    capacity = Capacity(batch, again, size, need.step(asked), there, asked, cut=cut)
    return fitted, recipe.model_copy(update={"checkpoint": True}) if again else recipe, capacity
