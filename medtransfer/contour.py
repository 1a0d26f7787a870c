"""Segmentation as a job: from a cohort with masks to a plan, a model and a recipe; and how good its masks are."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from medtransfer.capacity import Capacity
from medtransfer.cohort import Cohort
from medtransfer.errors import ConfigError, DataError, MetricError, RunError
from medtransfer.memory import available
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.masks import MaskScore, score_masks
from medtransfer.metrics.segmentation import segmentation
from medtransfer.reasons import reasons
from medtransfer.recipe import Recipe
from medtransfer.report.outlines import Seen, look
from medtransfer.segment.beside import beside as paired
from medtransfer.segment.evaluate import Segmented, predict_masks
from medtransfer.segment.fingerprint import Fingerprint, fingerprint_of
from medtransfer.segment.masks import read_pair
from medtransfer.segment.need import fit_plan, patch_need
from medtransfer.segment.network import Segmenter, load_segmenter
from medtransfer.segment.plan import Plan
from medtransfer.segment.run import SegmentationRun
from medtransfer.split import Split

WORST = 10  # cases that the report shows


@dataclass(frozen=True)
class Job:
    """A segmentation that is ready to be trained.

    Parameters
    ----------
    found : Fingerprint
        Of the first fold's training cases.
    structures : tuple of str
    plan : Plan
    model : Segmenter
    recipe : Recipe
    derived : bool
        Whether the recipe is the one for the number of cases.
    capacity : Capacity or None
        How a training step fits into the memory.
    """

    found: Fingerprint
    structures: tuple[str, ...]
    plan: Plan
    model: Segmenter
    recipe: Recipe
    derived: bool = False
    capacity: Capacity | None = None

    def to_record(self, split: Split) -> dict[str, Any]:
        """What ``--dry-run`` prints, as plain JSON types."""
        return {
            "parts": {k: len(v) for k, v in split.parts().items()},
            "structures": list(self.structures),
            "data": self.found.to_record(),
            "model": repr(self.model),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "receipt": self.model.blueprint.receipt,
            "plan": self.plan.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(),
            "steps": self.recipe.epochs * self.plan.steps_per_epoch,
            "memory_gb": memory_gb(self.plan, self.found, len(split.folds[0].train) + len(split.folds[0].val)),
            "memory": None if self.capacity is None else self.capacity.to_record(),
        }

    def as_text(self, split: Split) -> str:
        """The same as text, the plan as it will be written."""
        record = self.to_record(split)
        parts, memory = record["parts"], record["memory_gb"]
        lines = [
            "parts      " + ", ".join(f"{k} {v}" for k, v in parts.items()),
            "structures " + ", ".join(f"{i} {n}" for i, n in enumerate(self.structures, 1)),
            f"model      {self.model}, {record['parameters']:,} parameters",
            f"training   {self.recipe.method}, {self.recipe.epochs} epochs of {self.plan.steps_per_epoch} steps",
            f"memory     {self.capacity}; {memory['cases']:.1f} GB for the cases",
            "",
            self.plan.to_yaml().rstrip(),
        ]
        if self.derived:
            lines += ["", "the recipe for this size, and why:", reasons(self.recipe, "segmentation")]
        return "\n".join(lines)


@cache
def given_plan() -> type[BaseModel]:
    """The fields of :class:`medtransfer.segment.Plan`, any of which may be given; whether they fit is seen later."""
    known: dict[str, Any] = {name: (field.annotation, field) for name, field in Plan.model_fields.items()}
    return create_model("GivenPlan", __config__=ConfigDict(frozen=True, extra="forbid"), **known)


def names_of(structures: Mapping[int, str] | Sequence[str] | None) -> tuple[str, ...]:
    """Names of labels 1, 2, ... from a list, or from a mapping of labels to names.

    Examples
    --------
    >>> names_of({2: "posterior", 1: "anterior"}), names_of(["liver"])
    (('anterior', 'posterior'), ('liver',))

    Raises
    ------
    ConfigError
        Where labels leave a gap or names are not there or not different.
    """
    fix = "structures: {1: liver, 2: tumour}, the names of the masks' labels"
    if not structures:
        raise ConfigError("the structures are not named", where="structures", fix=fix)
    if isinstance(structures, Mapping):
        if sorted(structures) != list(range(1, len(structures) + 1)):
            got = ", ".join(map(str, sorted(structures)))
            raise ConfigError("labels are 1, 2, 3 ... without a gap; 0 is the background", where="structures",
                              got=got, fix=fix)  # fmt: skip
        structures = [structures[i] for i in sorted(structures)]
    names = tuple(str(n).strip() for n in structures)
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError("structures need names of their own", where="structures", got=", ".join(names), fix=fix)
    return names


def prepare_job(
    cohort: Cohort,
    split: Split,
    *,
    structures: Mapping[int, str] | Sequence[str] | None,
    plan: Mapping[str, Any],
    model: Mapping[str, Any],
    recipe: Recipe | None = None,
    gpu: bool = False,
) -> Job:
    """Plan, model and recipe for a cohort: what is given, and for the rest what the training part suggests.

    Parameters
    ----------
    cohort, split
        Only the training part of the first fold is looked at.
    structures : mapping of int to str, or sequence of str
        Names of the labels.
    plan : mapping
        Fields of :class:`medtransfer.segment.Plan`. A grid or patch that is given is what the rest is derived from.
    model : mapping
        Keywords of :func:`medtransfer.segment.load_segmenter`.
    recipe : Recipe or None
    gpu : bool
        Whether a GPU trains.

    Raises
    ------
    ConfigError
        Where the fields do not fit together.
    DataError, ReadError
        Where a mask is missing, or not on the voxels of its image.
    """
    names = names_of(structures)
    lacking = [c.alias for c in cohort.cases if c.mask is None]
    if lacking:
        raise DataError("cases have no mask", where=lacking[0], got=f"{len(lacking)} of {len(cohort)} cases",
                        fix="cohort.mask names the column of masks")  # fmt: skip
    if not all(len(part) for fold in split.folds for part in fold.parts()):
        counts = ", ".join(f"{k} {len(v)}" for k, v in split.parts().items())
        raise ConfigError("a segmentation needs cases to train, to choose and to test on", where="split", got=counts,
                          fix="split: {val: 0.15, test: 0.15}")  # fmt: skip
    found = fingerprint_of(cohort, list(split.folds[0].train), len(names) + 1)
    chosen = resolve(found, plan, gpu=gpu)
    dims: Literal[2, 3] = 2 if chosen.dims == 2 else 3
    default = {"weights": "random/unet", "dims": dims, "in_channels": found.channels, "classes": len(names) + 1}
    keywords = default | {"width": chosen.width} | dict(model)
    plain = keywords["weights"] in ("random/unet", "random/dynunet") or keywords.get("arch") in ("unet", "dynunet")
    if plain and keywords.get("strides") is None:
        keywords["strides"] = chosen.steps
    if keywords["classes"] != len(names) + 1:
        raise ConfigError("classes are the structures and the background", where="model.classes",
                          got=f"{keywords['classes']} for {len(names)}", fix="leave out model.classes")  # fmt: skip
    derived = recipe is None
    if recipe is None:
        recipe = Recipe.for_size(found.n, dims=dims, task="segmentation")
    made = load_segmenter(**keywords)
    there = available("cuda" if gpu else "cpu")
    fitted = fit_plan(patch_need(made, chosen, recipe), chosen, recipe, there, given=plan)
    return Job(found, names, fitted[0], made, fitted[1], derived, fitted[2])


def resolve(found: Fingerprint, given: Mapping[str, Any], *, gpu: bool = False) -> Plan:
    """The plan that data suggest, with what is given in its place.

    Examples
    --------
    >>> found = Fingerprint(n=40, shape=(35, 50, 36), spacing_mm=(1, 1, 1))
    >>> plan = resolve(found, {"patch": (24, 24, 24), "mirror": ("x",)})
    >>> plan.patch, plan.strides[-1], plan.mirror
    ((24, 24, 24), (2, 2, 2), ('x',))
    """
    grid, patch = given.get("spacing_mm"), given.get("patch")
    if patch is not None and len(patch) == 2 and len(found.shape) == 3:  # a 2D network on the slices of volumes
        found = found.in_slices()
    for name, value in (("spacing_mm", grid), ("patch", patch)):
        if value is not None and len(value) != len(found.shape):
            raise ConfigError("one number is wanted for each axis of the images", where=f"plan.{name}",
                              got=f"{len(value)} of {len(found.shape)}")  # fmt: skip
    if "spacing_mm" in given:  # patch and strides of the grid that was asked for
        shape = found.shape
        if grid is not None and found.spacing_mm is not None:
            shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, found.spacing_mm, grid, strict=True))
        found = replace(found, shape=shape, spacing_mm=grid, finest_mm=grid)
    if patch is not None:
        found = replace(found, shape=tuple(patch))
    derived = Plan.for_data(found, gpu=gpu)
    try:
        return Plan.model_validate({**derived.model_dump(), **given})
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError("the plan does not fit together", where="plan", got=said) from None


def memory_gb(plan: Plan, found: Fingerprint, cases: int) -> dict[str, float]:
    """What all prepared cases of a fold hold.

    Examples
    --------
    >>> memory_gb(Plan(patch=(64, 64, 64)), Fingerprint(n=10, shape=(128, 128, 128)), cases=10)
    {'cases': 0.1}
    """
    shape = found.shape
    if plan.spacing_mm is not None and found.spacing_mm is not None:
        shape = tuple(round(n * s / t) for n, s, t in zip(shape, found.spacing_mm, plan.spacing_mm, strict=True))
    stored = cases * math.prod(shape) * (4 * found.channels + 1)
    return {"cases": round(stored / 2**30, 2)}


def judge_masks(
    run: SegmentationRun,
    *,
    tolerance_mm: Annotated[float, Field(gt=0)] = 2.0,
    bootstrap: Annotated[int, Field(ge=100)] = 2000,
    seed: int = 0,
    beside: dict[str, str] | None = None,
) -> tuple[Segmented, list[Seen]]:
    """Segment every held-out case by the fold that never saw it, score it, and keep a look at the worst.

    Masks are written to ``masks/`` of the run, scores to ``segmentation.json`` and ``.csv``.

    Parameters
    ----------
    run : SegmentationRun
    tolerance_mm : float
        Surface distance up to which surfaces agree (NSD).
    bootstrap, seed : int
        Resamples of patients, and their seed.
    beside : dict of str to str or None
        Columns of the cohort's table with another tool's Dice, each with the structure that it is of, or ``all`` for
        the mean over structures: compared case by case.
    """
    parts = [(fold.test, fold.test.fold) for fold in run.split.folds]
    return score_parts(run, parts, run.folder, tolerance_mm, bootstrap=bootstrap, seed=seed, beside=beside)


def score_parts(
    run: SegmentationRun,
    parts: Sequence[tuple[Sequence[int], int | None]],
    out: Path,
    tolerance_mm: float,
    *,
    bootstrap: int,
    seed: int,
    beside: Mapping[str, str] | None = None,
) -> tuple[Segmented, list[Seen]]:
    """As :func:`judge_masks`, for parts of a cohort and the fold that speaks of each (None: all together)."""
    structures = {name: i for i, name in enumerate(run.structures, start=1)}
    wrong = [f"{c}: {s}" for c, s in (beside or {}).items() if s not in (*structures, "all")]
    if wrong:
        raise ConfigError("a column is compared with a structure that there is not", where="evaluate.beside",
                          got=", ".join(wrong), fix=f"one of {', '.join(structures)}, all")  # fmt: skip
    scores, members, seen = [], [], list[Seen]()
    for part, speaker in parts:
        for index, image, labels in predict_masks(run, part, fold=speaker, out=out / "masks"):
            case = run.cohort.cases[index]
            _, reference, _ = read_pair(case, len(structures) + 1)
            spacing = image.geometry.spacing_mm or (1.0,) * labels.ndim
            found = score_masks(reference, labels, spacing, structures=structures, tolerance_mm=tolerance_mm)
            scores.append(found)
            members.append(case)
            mean = _mean_dice(found)
            if len(seen) < WORST or mean < seen[-1].dice:
                seen = sorted([*seen, look(case.alias, mean, image, reference, labels)], key=lambda s: s.dice)[:WORST]
    patients = tuple(c.patient_alias for c in members)
    panel, rows = segmentation(scores, ClusterBootstrap.draw(list(patients), resamples=bootstrap, seed=seed))
    cases = tuple(c.alias for c in members)
    compared = tuple(
        paired(column, name, cases, patients, [_dice_of(s, name) for s in scores],
               [c.covariates.get(column) for c in members], bootstrap=bootstrap, seed=seed)
        for column, name in (beside or {}).items()
    )  # fmt: skip
    result = Segmented(cases, patients, tuple(scores), panel, rows, tolerance_mm, compared)
    result.save(out)
    return result, seen


def _dice_of(scores: Mapping[str, MaskScore], name: str) -> float:
    """Dice of a structure, or of ``all`` the mean over those that are defined, nan without any."""
    values = [s.dice for s in scores.values() if not math.isnan(s.dice)] if name == "all" else [scores[name].dice]
    return float(np.mean(values)) if values else math.nan


def _mean_dice(scores: Mapping[str, MaskScore]) -> float:
    values = [s.dice for s in scores.values() if not math.isnan(s.dice)]
    return float(np.mean(values)) if values else 1.0


def read_segmented(folder: str | Path, *, bootstrap: int = 2000, seed: int = 0) -> Segmented:
    """What an evaluated run has left in ``segmentation.csv``.

    Raises
    ------
    RunError
        Where it has left nothing.
    """
    import json

    folder = Path(folder)
    try:
        stored = json.loads((folder / "segmentation.json").read_text(encoding="utf-8"))
        with open(folder / "segmentation.csv", encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise RunError("there is no evaluated segmentation in this folder", where=folder.name,
                       fix="medtransfer evaluate RUN") from error  # fmt: skip
    kinds = {f.name: int if f.name.startswith("lesions") else float for f in fields(MaskScore)}
    cases: dict[str, dict[str, MaskScore]] = {}
    patients: dict[str, str] = {}
    for row in table:
        values: Any = {name: kind(row[name]) for name, kind in kinds.items()}
        score = MaskScore(**values)
        cases.setdefault(row["case"], {})[row["structure"]] = score
        patients[row["case"]] = row["patient"]
    order = sorted(cases)
    scores = tuple({name: cases[c][name] for name in stored["structures"]} for c in order)
    who = tuple(patients[c] for c in order)
    panel, rows = segmentation(scores, ClusterBootstrap.draw(list(who), resamples=bootstrap, seed=seed))
    return Segmented(tuple(order), who, scores, panel, rows, float(stored["tolerance_mm"]))


def common_cases(runs: Sequence[Segmented]) -> list[Segmented]:
    """The same runs on the cases that all of them tested, in one order.

    Raises
    ------
    MetricError
        Where there is none.
    """
    shared = set.intersection(*(set(r.cases) for r in runs))
    if not shared:
        counts = ", ".join(f"{len(r.cases)} cases" for r in runs)
        raise MetricError("the runs have no tested case in common", got=counts,
                          fix="compare runs on one cohort, made with one private key")  # fmt: skip
    found = []
    for run in runs:
        at = sorted((i for i, c in enumerate(run.cases) if c in shared), key=lambda i: run.cases[i])
        cases, patients = (tuple(of[i] for i in at) for of in (run.cases, run.patients))
        found.append(replace(run, cases=cases, patients=patients, scores=tuple(run.scores[i] for i in at)))
    return found
