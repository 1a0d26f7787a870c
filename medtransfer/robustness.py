"""Robustness: what remains of the result when the test images are noisier, of another contrast, coarser or shifted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics.comparison import control
from medtransfer.metrics.intervals import ClusterBootstrap, plain
from medtransfer.predictions import Predictions, concatenate

if TYPE_CHECKING:
    from torch import Tensor

    from medtransfer.run import Run

Floats = NDArray[np.float64]
Change = Callable[["Tensor", float, np.random.Generator], "Tensor"]


def noise(images: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """Add normal noise of this standard deviation to images ``[n, channels, ...]`` in [0, 1]."""
    import torch

    drawn = rng.standard_normal(tuple(images.shape), dtype=np.float32)
    return (images + std * torch.from_numpy(drawn)).clamp(0, 1)


def contrast(images: Tensor, gamma: float, rng: np.random.Generator) -> Tensor:
    """Raise grey values to the power of gamma or of its inverse, drawn per image."""
    import torch

    power = torch.from_numpy(np.where(rng.random(len(images)) < 0.5, gamma, 1 / gamma).astype(np.float32))
    return images.clamp(0, 1) ** power.reshape(-1, *[1] * (images.ndim - 1))


def resolution(images: Tensor, factor: float, rng: np.random.Generator) -> Tensor:
    """Average over pixels this many times larger and enlarge again, of volumes along all three axes."""
    from torch.nn import functional as F

    shape = images.shape[2:]
    coarse = F.interpolate(images, tuple(max(1, round(s / factor)) for s in shape), mode="area")
    return F.interpolate(coarse, shape, mode="bilinear" if len(shape) == 2 else "trilinear")


def shift(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Move each image in a direction of its own by this share of its shorter side; edge values fill the gap.

    Volumes are moved within their slices.

    Examples
    --------
    >>> import torch
    >>> ramp = torch.arange(10.0).expand(1, 1, 10, 10)
    >>> bool((shift(ramp, 0.2, np.random.default_rng(0)) != ramp).any())
    True
    """
    import torch

    side = min(images.shape[-2:])
    angles = rng.uniform(0, 2 * np.pi, len(images))
    moved = []
    for image, angle in zip(images, angles, strict=True):
        for axis, step in ((-2, np.sin(angle)), (-1, np.cos(angle))):
            size = image.shape[axis]
            place = (torch.arange(size) - round(share * side * step)).clamp(0, size - 1)
            image = image.index_select(axis, place)
        moved.append(image)
    return torch.stack(moved)


CHANGES: dict[str, tuple[Change, tuple[float, ...], str]] = {
    "Noise": (noise, (0.02, 0.05, 0.1), "standard deviation {:g} of the grey range"),
    "Contrast": (contrast, (1.15, 1.35, 1.6), "gamma {:g} or its inverse"),
    "Resolution": (resolution, (1.5, 2.0, 3.0), "pixels {:g} times as large"),
    "Shift": (shift, (0.02, 0.05, 0.1), "{:.0%} of the side, any direction"),
}


def robustness(
    run: Run, *, cases: int | None = None, bootstrap: int = 1000, seed: int = 0, batch_size: int = 32
) -> dict[str, object]:
    """The headline estimate on changed test images, and what it lost against the same images as they are.

    The prepared images are changed, so grey values are shares of the display window. Nothing is fitted again.

    Parameters
    ----------
    run : Run
    cases : int or None
        At most so many test cases, drawn evenly from all classes; None is 200 images or 40 volumes.
    bootstrap, seed : int
        Resamples of patients behind the intervals; seed of these, of the drawn cases, and of the changes.

    Returns
    -------
    dict
        Plain JSON types for the run's record: ``metric``, ``cases`` out of ``of``, ``seconds``, the estimate on the
        images ``unchanged``, and ``rows`` of change, level, value, loss (unchanged minus changed) and by how much
        probabilities moved on average. ``rows`` is empty where the task is not classification or a class is missing.
    """
    started = time.monotonic()
    limit = cases if cases is not None else 200 if run.prepare.dims == 2 else 40
    chosen = [_draw(run, fold.test, limit // len(run.split.folds), seed) for fold in run.split.folds]
    record: dict[str, object] = {
        "metric": "auroc" if len(run.cohort.classes) == 2 else "macro_auroc",
        "cases": sum(map(len, chosen)),
        "of": sum(len(fold.test) for fold in run.split.folds),
        "rows": [],
    }
    if run.model(0).description.task == "classification" and any(chosen):
        models = [(k, part, _answers(run, k, part, batch_size)) for k, part in enumerate(chosen) if part]

        def answer(change: Change | None, level: float) -> Predictions:
            return concatenate(
                [run.predictions(part, said(change, level, seed), k, "test") for k, part, said in models]
            )

        unchanged = answer(None, 0.0)
        resamples = ClusterBootstrap.draw(unchanged.patient, resamples=bootstrap, seed=seed)
        record["unchanged"] = plain(control("unchanged", unchanged, unchanged, resamples).value.to_json())
        rows = []
        for name, (change, levels, words) in CHANGES.items():
            for level in levels:
                changed = answer(change, level)
                beside = control(name, changed, unchanged, resamples)
                row = {
                    "change": name,
                    "level": words.format(level),
                    "value": beside.value.to_json(),
                    "loss": beside.difference.to_json(),
                    "moved": float(np.abs(changed.probability - unchanged.probability).max(axis=1).mean()),
                }
                rows += [row] if beside.difference else []
        record["rows"] = plain(rows)
    return record | {"seconds": round(time.monotonic() - started, 1)}


def _draw(run: Run, part: Sequence[int], most: int, seed: int) -> list[int]:
    """At most so many labelled cases of a part, evenly from all classes, in the order of the cohort."""
    labels = run.cohort.labels
    known = [i for i in part if labels[i] >= 0]
    order = np.random.default_rng(seed).permutation(known)
    turns: list[tuple[int, int, int]] = []
    seen: dict[int, int] = {}
    for i in order.tolist():
        seen[int(labels[i])] = turn = seen.get(int(labels[i]), 0) + 1
        turns.append((turn, int(labels[i]), i))
    return sorted(i for _, _, i in sorted(turns)[:most])


def _answers(run: Run, fold: int, part: list[int], batch_size: int) -> Callable[[Change | None, float, int], Floats]:
    """A function from a change, its level and a seed to the probabilities ``[n, classes]`` of these cases."""
    import torch

    from medtransfer.fastform import features_of
    from medtransfer.heads import task_probabilities

    model = run.model(fold).to(run.device).eval()
    run.prepared.load(part)
    with torch.inference_mode():
        features = features_of(model, run.prepared.batch(part[:batch_size]).to(run.device))
    said = task_probabilities(model.description.task)

    def answer(change: Change | None, level: float, seed: int) -> Floats:
        rng, found = np.random.default_rng([seed, fold]), []
        with torch.inference_mode():
            for start in range(0, len(part), batch_size):
                images = run.prepared.batch(part[start : start + batch_size])
                images = (images if change is None else change(images, level, rng)).to(run.device)
                layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
                seen = features(images.contiguous(memory_format=layout))
                found.append(said(model.head(seen).double()).cpu().numpy())
        return np.concatenate(found)

    return answer
