"""What a job will cost: cases × seconds, the seconds measured on a few cases here and now.

The range beside a total is honest about what was measured: 95 % intervals of the means (Student's t, few cases), and,
where a training may stop early, the least number of epochs. It knows nothing of what else the machine will do then.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Case, Cohort
from medtransfer.errors import DataError, MedTransferError
from medtransfer.prepare import Prepare
from medtransfer.split import Split

if TYPE_CHECKING:
    from medtransfer.augment import Augment
    from medtransfer.model import Model
    from medtransfer.recipe import Recipe

LOOKED_AT = 6  # cases that are read and prepared
TIMES = 3  # how often a computation is measured, after once to warm up
AT_ONCE = 8  # cases computed together while measuring
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """One kind of work.

    Parameters
    ----------
    name : str
    times : float
        How often it is done at most: case by case.
    seconds : tuple of float
        Measured, each for one time.
    fewest : float or None
        How often at least, where it may end early.
    """

    name: str
    times: float
    seconds: tuple[float, ...]
    fewest: float | None = None

    def range_s(self) -> tuple[float, float, float]:
        """Low, expected and high, in seconds.

        Examples
        --------
        >>> Stage("read", 100, (0.1, 0.1, 0.1)).range_s()
        (10.0, 10.0, 10.0)
        >>> [round(s, 1) for s in Stage("read", 100, (0.1, 0.3)).range_s()]  # t(0.975, 1) = 12.7
        [10.0, 20.0, 147.1]
        """
        from scipy.stats import t

        mean, n = float(np.mean(self.seconds)), len(self.seconds)
        spread = float(np.std(self.seconds, ddof=1)) / np.sqrt(n) if n > 1 else mean
        half = float(t.ppf(0.975, max(1, n - 1)) * spread) if spread else 0.0
        fewest = self.times if self.fewest is None else self.fewest
        low = max(min(self.seconds), mean - half)  # no mean is below what was measured at best
        return round(low * fewest, 9), round(mean * self.times, 9), round((mean + half) * self.times, 9)


@dataclass(frozen=True)
class Cost:
    """Stages of a job, and what was not measured.

    Parameters
    ----------
    stages : tuple of Stage
    cases : int
        How many were looked at.
    left_out : str
        What comes on top.
    """

    stages: tuple[Stage, ...]
    cases: int
    left_out: str = ""

    def total_s(self) -> tuple[float, float, float]:
        """Low, expected and high of all stages together, in seconds."""
        rows = [stage.range_s() for stage in self.stages]
        return sum(r[0] for r in rows), sum(r[1] for r in rows), sum(r[2] for r in rows)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types, the text included."""
        stages = [{"name": s.name, "times": s.times, "seconds_each": float(np.mean(s.seconds)),
                   "seconds": list(s.range_s())} for s in self.stages]  # fmt: skip
        return {"seconds": list(self.total_s()), "stages": stages, "cases_measured": self.cases, "text": str(self)}

    def __str__(self) -> str:
        low, mean, high = self.total_s()
        rows = [("time", "times", "each", "in all")]
        for s in self.stages:
            rows.append((s.name, f"{s.times:,.0f}", say_s(float(np.mean(s.seconds))), say_s(s.range_s()[1])))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        lines.append(f"about {say_s(mean)}, between {say_s(low)} and {say_s(high)}: measured on {self.cases} cases on "
                     f"this machine as busy as it is now{'; ' if self.left_out else ''}{self.left_out}")  # fmt: skip
        return "\n".join(lines)


def say_s(seconds: float) -> str:
    """A duration as one reads it.

    Examples
    --------
    >>> [say_s(s) for s in (0.0042, 0.62, 1.26, 75, 4000, 400000)]
    ['4.2 ms', '620 ms', '1.3 s', '1.2 min', '1.1 h', '4.6 d']
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 0.001))
    unit, size = next((u for u in units if seconds >= u[1]), units[-1])
    return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"


def cost_of_training(
    model: Model,
    cohort: Cohort,
    split: Split,
    prepare: Prepare,
    recipe: Recipe,
    augment: Augment,
    *,
    workers: int = 2,
    processes: int = 1,
    robustness: bool = True,
) -> Cost:
    """Time of a training and its evaluation, from a few training cases of the first fold.

    Parameters
    ----------
    model, cohort, split, prepare, recipe, augment
        As for :func:`medtransfer.fit`; the model stays as it is.
    workers : int
        Threads that read and prepare.
    processes : int
        That share each step; what they say to each other is not counted.
    robustness : bool
        Whether the evaluation measures again on changed images.
    """
    from medtransfer.robustness import CHANGES
    from medtransfer.team import threads

    index = evenly(split.folds[0].train, LOOKED_AT)
    stages, arrays = preparing([cohort.cases[i] for i in index], prepare, len(cohort), workers)
    val, test = (sum(len(f.parts()[k]) for f in split.folds) for k in (1, 2))
    with threads(processes):
        stages += _learning(model, arrays, split, recipe, augment, processes)
        spoken = speaking(model, arrays)
    changes = sum(len(levels) for _, levels, _ in CHANGES.values()) if robustness else 0
    changed = min(test, 200 if prepare.dims == 2 else 40) * (changes + 1) if changes else 0
    stages += [Stage("predict val and test", val + test, spoken)]
    stages += [Stage("predict changed test images", changed, spoken)] if changed else []
    return Cost(tuple(stages), len(arrays), "controls, maps, intervals and the report come on top")


def evenly(of: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spaced."""
    places = np.unique(np.linspace(0, len(of) - 1, min(most, len(of))).round().astype(int))
    return [of[i] for i in places]


def preparing(
    cases: Sequence[Case], prepare: Prepare, n: int, workers: int, *, reads: int = 2
) -> tuple[list[Stage], list[Array]]:
    """Time of reading and preparing with as many threads as will be; the audit reads once more."""
    from medtransfer.dataset import Prepared

    def one(case: Case) -> tuple[float, float, Array] | None:
        try:
            began = time.perf_counter()
            images = [piece.read() for piece in case.pieces()]
            read = time.perf_counter() - began
            bag = isinstance(case.image, tuple)
            array = Prepared([case], prepare, progress=False).one(0) if bag else prepare(images[0])
        except (MedTransferError, OSError):
            return None  # it is told where it matters: in the training, or in the column of problems
        done = time.perf_counter() - began
        return read, max(0.0, done - (2 if bag else 1) * read), array

    one(cases[0])  # what is loaded and read once is no matter of each case
    began = time.perf_counter()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = [f for f in pool.map(one, cases) if f is not None]
    if not found:
        raise DataError("none of the cases looked at can be read", got=f"{len(cases)} cases")
    side_by_side = (time.perf_counter() - began) / sum(f[0] + f[1] for f in found)
    share = min(1.0, side_by_side)
    reading, making = tuple(f[0] * share for f in found), tuple(f[1] * share for f in found)
    return [Stage("read", reads * n, reading), Stage("prepare", n, making)], [f[2] for f in found]


def _learning(
    model: Model, arrays: Sequence[Array], split: Split, recipe: Recipe, augment: Augment, processes: int
) -> list[Stage]:
    """The frozen part once, and each phase of the training."""
    names, train, val = list(model.stages), _cases(split, 0), _cases(split, 1)
    if recipe.method == "logistic":
        views = 1 + (recipe.views if augment.active else 0)
        times = (len(train) * views + len(val)) / processes
        return [Stage("features, once", times, _frozen(model, arrays, names))]
    stages: list[Stage] = []
    rows, known = sum(len(f.train) for f in split.folds), set[int]()
    shown = sum(len(f.val) for f in split.folds)
    for first, last in recipe.phases():
        learn = recipe.trainable(first, names)
        frozen = 0 if model.description.by_slice and learn else len(names) - len(learn)
        plain = not augment.active or (not learn and not recipe.views)
        kept = recipe.cache != "off" and (plain or recipe.views > 0)
        epochs, at_least = last - first, min(last - first, recipe.patience + 1)
        if frozen:
            each = _frozen(model, arrays, names[:frozen])
            once = frozen in known and kept
            known.add(frozen)
            if kept and not once:
                views = 1 if plain else recipe.views
                stages.append(Stage(f"first {frozen} stages, once", (len(train) * views + len(val)) / processes, each))
            elif not kept:
                times = (rows + shown) / processes
                stages.append(Stage(f"first {frozen} stages, each epoch", times * epochs, each, times * at_least))
        learnt, seen = _step(model, arrays, learn, frozen, recipe)
        name = "fine-tune" if learn else "head"
        stages.append(
            Stage(f"{name}, forward and back", rows * epochs / processes, learnt, rows * at_least / processes)
        )
        stages.append(Stage(f"{name}, validate", shown * epochs / processes, seen, shown * at_least / processes))
    return stages


def _cases(split: Split, part: int) -> set[int]:
    return {i for fold in split.folds for i in fold.parts()[part]}


def _frozen(model: Model, arrays: Sequence[Array], names: Sequence[str]) -> tuple[float, ...]:
    import torch

    from medtransfer.fastform import features_of

    model = copy.deepcopy(model).eval()
    images = _images(arrays)
    with torch.inference_mode():
        if len(names) == len(model.stages):
            features = features_of(model, images)
            return _measured(lambda: features(images), len(images))
        return _measured(lambda: model.walk(images, names), len(images))


def _step(
    model: Model, arrays: Sequence[Array], learn: Sequence[str], frozen: int, recipe: Recipe
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds a case of a step of learning, and of a validation."""
    import torch

    from medtransfer.boundary import tail
    from medtransfer.training import optimizer_of
    from medtransfer.tuned import choose

    model = copy.deepcopy(model)
    choose(model, learn, recipe.tune if recipe.tune != "lora" else "all", recipe.frozen_norms)
    optimizer, images = optimizer_of(model, recipe), _images(arrays)
    with torch.no_grad():
        whole = frozen == len(model.stages)
        pooled, x = (model.features(images), images) if whole else model.walk(images, list(model.stages)[:frozen])

    def learning() -> None:
        optimizer.zero_grad(set_to_none=True)
        tail(model, frozen, pooled, x).float().square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    learnt = _measured(learning, len(images))
    model.eval()
    with torch.no_grad():
        return learnt, _measured(lambda: tail(model, frozen, pooled, x), len(images))


def speaking(model: Model, arrays: Sequence[Array]) -> tuple[float, ...]:
    """Seconds a case of a model."""
    import torch

    model, images = copy.deepcopy(model).eval(), _images(arrays)
    with torch.inference_mode():
        return _measured(lambda: model(images), len(images))


def answering(answer: Callable[[Array], object], arrays: Sequence[Array]) -> tuple[float, ...]:
    """Seconds a case of what answers batches of arrays."""
    images = _images(arrays).contiguous().numpy()
    return _measured(lambda: answer(images), len(images))


def _images(arrays: Sequence[Array]) -> Any:
    """A batch of what was prepared, its cases repeated until it is full."""
    import torch

    from medtransfer.boundary import dense

    largest = max(arrays, key=lambda a: a.size).shape
    same = [a for a in arrays if a.shape == largest]
    size = AT_ONCE if same[0].ndim == 3 else 2
    return dense(torch.from_numpy(np.stack([same[i % len(same)] for i in range(size)])))


def _measured(compute: Callable[[], object], cases: int) -> tuple[float, ...]:
    compute()

    def once() -> Iterable[float]:
        for _ in range(TIMES):
            began = time.perf_counter()
            compute()
            yield (time.perf_counter() - began) / cases

    return tuple(once())
