"""Shortcut probes: what can be told of the label without looking at the anatomy, and whether chance stays chance.

A probe is a few numbers of each case; :mod:`medtransfer.controls` fits a logistic regression on them and sets it
beside the model. A label that the size of the image tells is a label of the scanner (Zech 2018; Oakden-Rayner 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import Cache, fingerprint
from medtransfer.dataset import content
from medtransfer.features import fit_logistic, frozen_features, numbered
from medtransfer.metrics.classification import auroc
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate
from medtransfer.metrics.panel import measure

if TYPE_CHECKING:
    from medtransfer.cohort import Case, Cohort
    from medtransfer.run import Run

Floats = NDArray[np.float64]

_CORNER = 0.15  # share of the side that counts as corner
_CELLS = 6
_ABOUT_THE_PATIENT = ("PatientSex", "PatientAge")  # covariates, not the scanner


def start_features(run: Run) -> NDArray[np.floating[Any]]:
    """Features ``[cases, width]`` of the network as it was before fine-tuning, computed once for a run."""
    if "start" not in run.kept:
        from medtransfer.model import rebuild
        from medtransfer.run import read_checkpoint

        model, start = run.model(0), run.folder / "start.safetensors"
        if start.is_file():  # else nothing was fine-tuned
            model = rebuild(model.description)
            model.load_state_dict(read_checkpoint(start)[0])
        everyone = range(len(run.cohort))
        found = frozen_features(model, run.prepared, everyone, device=run.device, progress=run.progress)
        run.kept["start"] = pooled(found)
    return run.kept["start"]


def pooled(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """One vector a case: the average where slices or images are otherwise weighed by attention."""
    return np.nanmean(features, axis=1) if features.ndim == 3 else features


def corners(array: NDArray[np.float32]) -> Floats:
    """The four corners of the (middle) plane, coarsely: where side markers, names and stickers stand.

    Parameters
    ----------
    array : ndarray (channels, rows, cols) or (channels, x, y, z)
        A prepared image in [0, 1].

    Returns
    -------
    ndarray (corners * channels * (cells + 2),)
        Means of up to 6 × 6 cells, the largest value and the spread of each corner.

    Examples
    --------
    >>> marked = np.zeros((1, 40, 40), np.float32)
    >>> marked[0, :3, :3] = 1
    >>> corners(marked).shape, float(corners(marked)[0])
    ((152,), 1.0)
    """
    plane = array[:, array.shape[1] // 2] if array.ndim == 4 else array
    rows, cols = (max(2, round(_CORNER * s)) for s in plane.shape[1:])
    found: list[Floats] = []
    for vertical in (slice(None, rows), slice(-rows, None)):
        for across in (slice(None, cols), slice(-cols, None)):
            for patch in plane[:, vertical, across].astype(np.float64):
                cells = _cells(_cells(patch, rows).T, cols)
                found += [cells.ravel(), np.array([patch.max(), patch.std()])]
    return np.concatenate(found)


def _cells(patch: Floats, side: int) -> Floats:
    """Means over up to six nearly equal groups of rows."""
    return np.stack([part.mean(axis=0) for part in np.array_split(patch, min(_CELLS, side))])


def geometry_features(cohort: Cohort, *, cache: Cache | None = None) -> Floats | None:
    """Rows, columns, slices and spacing of each image as it came, before preparation; None where all are alike.

    Parameters
    ----------
    cohort : Cohort
    cache : Cache or None
        Keeps the geometry of files that have to be read for it; a scan's records know theirs.
    """
    shapes = [native_geometry(case, cache) for case in cohort]
    columns = {
        f"{kind} {axis}": [f"{values[axis]:.6g}" if np.isfinite(values[axis]) else "" for values in row]
        for kind, row in (("size", [s for s, _ in shapes]), ("spacing", [m for _, m in shapes]))
        for axis in range(3)
    }
    return coded(columns)


def native_geometry(case: Case, cache: Cache | None = None) -> tuple[Floats, Floats]:
    """Size in pixels and spacing in mm along up to three axes, nan where there is none.

    Examples
    --------
    >>> from medtransfer.cohort import Case
    >>> size, spacing_mm = native_geometry(Case("c", "p", np.zeros((5, 7))))
    >>> size.tolist(), spacing_mm.tolist()
    ([5.0, 7.0, nan], [nan, nan, nan])
    """
    case = case.pieces()[0]
    shape: Sequence[float] = () if isinstance(case.image, np.ndarray) else getattr(case.image, "shape", ())
    if shape:
        return _three(shape[:3]), _three(getattr(case.image, "spacing_mm", None) or ())
    digest = content(case) if cache is not None else None
    name = fingerprint("geometry-1", digest) if digest else ""
    if name and cache is not None and (kept := cache.get(name)) is not None:
        return kept[0].astype(np.float64), kept[1].astype(np.float64)
    image = case.read()
    found = _three(image.spatial_shape), _three(image.geometry.spacing_mm or ())
    if name and cache is not None:
        cache.put(name, np.stack(found))
    return found


def _three(values: Sequence[float]) -> Floats:
    return np.array([*values, np.nan, np.nan, np.nan], dtype=np.float64)[:3]


def header_features(cohort: Cohort) -> Floats | None:
    """Scanner, protocol and other header values that identify nobody; None where nothing is known or differs."""
    tags: list[Mapping[str, str]] = [getattr(case.image, "tags", {}) for case in cohort]
    names = sorted({key for row in tags for key in row} - set(_ABOUT_THE_PATIENT))
    return coded({name: [row.get(name, "") for row in tags] for name in names})


def coded(columns: Mapping[str, Sequence[str]]) -> Floats | None:
    """Columns of text as numbers: what is numeric as it is, what has few kinds as indicators; None if all is alike.

    A missing number becomes the median with an indicator beside it; a missing word is a kind of its own. Words
    that are different for nearly every case would name the cases and are left out.

    Examples
    --------
    >>> coded({"kVp": ["120", "", "100", "110"], "maker": ["A", "A", "B", "A"]}).shape
    (4, 4)
    >>> coded({"maker": ["A", "A"]}) is None
    True
    """
    found: list[Floats] = []
    for texts in columns.values():
        numbers = np.array([_number(text) for text in texts])
        known = np.isfinite(numbers)
        numeric = bool(known.any()) and all(known[i] or not text for i, text in enumerate(texts))
        if numeric:
            found += [np.where(known, numbers, np.median(numbers[known])), (~known).astype(float)]
        kinds = sorted(set(texts))
        few = len(kinds) <= max(2, min(12, len(texts) // 20) if numeric else len(texts) // 5)
        if len(kinds) > 1 and few and not (numeric and len(kinds) == 2):
            found += [np.array([text == kind for text in texts], dtype=float) for kind in kinds]
    varied = [c for c in found if np.ptp(c) > 0]
    return np.stack(varied, axis=1) if varied else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def shuffle_by_patient(labels: NDArray[np.int64], patients: NDArray[np.str_], *, seed: int) -> NDArray[np.int64]:
    """Labels of patients in random order, dealt out to the cases in the order of patients.

    Every class keeps its number of cases; where patients have equally many cases, whole patients swap labels.

    Examples
    --------
    >>> patients = np.array(["a", "a", "b", "b", "c", "c"])
    >>> shuffle_by_patient(np.array([1, 1, 0, 0, 1, 1]), patients, seed=0).reshape(3, 2).tolist()
    [[1, 1], [1, 1], [0, 0]]
    """
    number = numbered(patients)
    order = np.random.default_rng(seed).permutation(int(number.max(initial=-1)) + 1)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(number, kind="stable")] = labels[np.argsort(rank[number], kind="stable")]
    return shuffled


def shuffled_auroc(run: Run, features: NDArray[np.floating[Any]], *, bootstrap: int = 1000, seed: int = 0) -> Estimate:
    """Test AUROC after the last step was trained, and tested, on labels shuffled among all patients.

    It must be compatible with 0.5: if it is not, test cases have reached the training. Of several folds the mean
    of their AUROCs is taken, since pooled scores of folds trained on shuffled labels rank below chance.

    Parameters
    ----------
    run : Run
    features : ndarray (cases, width)
        Of all cases of the cohort, from a network that does not learn here.
    bootstrap, seed : int
        Resamples of patients; seed of the shuffle and of these.
    """
    cohort = run.cohort
    known = np.flatnonzero(cohort.labels >= 0)
    labels = cohort.labels.copy()
    labels[known] = shuffle_by_patient(cohort.labels[known], cohort.patients[known], seed=seed)
    said: list[Floats] = []
    index: list[NDArray[np.int64]] = []
    folds: list[NDArray[np.int64]] = []
    for fold in run.split.folds:
        train, test = np.intersect1d(fold.train, known), np.intersect1d(fold.test, known)
        if len(np.unique(labels[train])) < len(cohort.classes) or not len(test):
            continue
        classes = len(cohort.classes)
        model = fit_logistic(features[train], labels[train], cohort.patients[train], classes, seed=seed, inner=3)
        said.append(model.probability(features[test]))
        index.append(test)
        folds.append(np.full(len(test), len(folds)))
    if not said:
        return Estimate(None, note="too few cases of a class to shuffle")
    chance, cases, fold_of = np.concatenate(said), np.concatenate(index), np.concatenate(folds)
    y = labels[cases]
    columns = range(1, 2) if len(cohort.classes) == 2 else range(len(cohort.classes))
    where = [fold_of == k for k in range(len(folds))]

    def statistic(w: Floats) -> dict[str, Floats]:
        each = np.stack([auroc(y[f] == k, chance[f, k], w[:, f]) for f in where for k in columns])
        there = np.isfinite(each).sum(axis=0)
        return {"auroc": np.where(there > 0, np.nansum(each, axis=0) / np.maximum(there, 1), np.nan)}

    resamples = ClusterBootstrap.draw(cohort.patients[cases], resamples=bootstrap, seed=seed)
    # each fold's AUROC rests on its own patients alone: the smallest fold's are the degrees of freedom
    units = min(len(set(cohort.patients[cases][f & (y == k)].tolist())) for f in where for k in np.unique(y[f]))
    return measure(statistic, resamples, units=units).estimates["auroc"]
