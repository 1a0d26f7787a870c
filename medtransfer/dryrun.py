"""What a training would do: what learns when, how many parameters, how large the caches, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.model import Model
    from medtransfer.recipe import Recipe
    from medtransfer.split import Split


def cache_sizes(
    model: Model, recipe: Recipe, augment: Augment, split: Split, shape: tuple[int, ...], cases: int
) -> dict[str, int]:
    """Bytes of what is computed once: prepared images, pooled features, activations where the frozen part ends.

    Parameters
    ----------
    shape : tuple of int
        Of one prepared image, ``[channels, ...]``.
    cases : int
        Of the cohort.
    """
    import torch

    found = {"prepared images": cases * prod(shape) * 4}
    if recipe.cache == "off":
        return found
    train = len({i for fold in split.folds for i in fold.train})
    val = len({i for fold in split.folds for i in fold.val})
    stages = list(model.stages)
    phases = [len(stages)] if recipe.method == "logistic" or recipe.start == "logistic" else []
    phases += [len(stages) - len(recipe.trainable(first, stages)) for first, _ in recipe.phases()]
    if recipe.method == "logistic":
        phases = [len(stages)]
    for first in dict.fromkeys(phases):
        whole = first == len(stages)
        if not first or (not whole and model.description.by_slice):
            continue
        plain = not augment.active or (whole and not recipe.views)
        times = 1 if plain else recipe.views + (whole and "logistic" in (recipe.method, recipe.start))
        pairs = train * times + val
        with torch.no_grad():
            image = torch.zeros(1, *shape)
            if whole:
                found["features"] = pairs * model.eval().features(image).numel() * 4
                continue
            pooled, x = model.eval().walk(image, stages[:first])
        width = 2 if recipe.cache == "float16" else 4
        found[f"activations after {stages[first - 1]}"] = pairs * (pooled.numel() * 4 + x.numel() * width)
    return found


def memory_of(model: Model, recipe: Recipe, shape: tuple[int, ...], device: str, cases: int) -> dict[str, Any]:
    """How a training step fits into this machine's memory: numbers, and ``text``; empty where nothing learns by steps.

    Parameters
    ----------
    shape : tuple of int
        Of one prepared case.
    """
    from medtransfer.capacity import capacity_of

    found = capacity_of(model, recipe, shape, device=device, held=min(4 * 2**30, cases * prod(shape) * 4), exact=True)
    return {} if found is None else found.to_record() | {"text": str(found)}


def as_text(planned: Mapping[str, Any]) -> str:
    """The plan as tables for the terminal."""
    lines = [f"{key:<10} {planned[key]}" for key in ("cohort", "model", "out")]
    lines.append(f"{'parts':<10} " + ", ".join(f"{k} {v}" for k, v in planned["parts"].items()))
    lines.append(f"{'prepared':<10} " + " × ".join(map(str, planned["prepared"])))
    receipt = planned["receipt"] or {}
    lines += [
        f"{'weights':<10} " + ", ".join(f"{len(v)} {k}" for k, v in receipt.items() if isinstance(v, list | dict))
    ]
    rows = [("epochs", "learns", "parameters", "peak rate", "computed once")]
    for phase in planned["plan"]:
        rates = list(phase.get("lr", {}).values())
        rate = "" if not rates else f"{min(rates):.1e}" + (f" to {max(rates):.1e}" if min(rates) < max(rates) else "")
        learns = ", ".join(phase["learns"]) + (f" ({phase['tune']})" if phase.get("tune", "all") not in ("all", "head")
                                               else "")  # fmt: skip
        once = ", ".join(phase["computed_once"]) or "nothing"
        rows.append((str(phase["epochs"]), learns, f"{phase['parameters']:,}", rate, once))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["", *("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    lines += ["", *(f"{name:<32} {size / 2**20:>10,.1f} MiB" for name, size in planned["caches"].items())]
    if planned.get("memory"):
        lines += ["", f"memory     {planned['memory']['text']}"]
    if "cost" in planned:
        lines += ["", planned["cost"]["text"]]
    if planned["reasons"]:
        lines += ["", "the recipe for this size, and why:", planned["reasons"]]
    return "\n".join(lines)
