"""Controls: what simpler or blinder models reach on the same split. A result means little unless it beats them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.features import frozen_features
from medtransfer.linear import fit_linear
from medtransfer.predictions import Predictions, concatenate
from medtransfer.probes import coded, corners, geometry_features, header_features, pooled, start_features

if TYPE_CHECKING:
    from medtransfer.cohort import Cohort
    from medtransfer.run import Run

Control = Literal["covariates", "header", "geometry", "border", "corners", "histogram", "random_weights", "frozen"]

NAMES: dict[Control, str] = {
    "covariates": "Age, sex, site: no image",
    "header": "DICOM header, scanner and protocol: no image",
    "geometry": "Size and spacing of the file: no image",
    "border": "Outer frame of the image only",
    "corners": "Corners of the image only",
    "histogram": "Grey-value histogram: no shapes",
    "random_weights": "Same network, untrained weights",
    "frozen": "Same weights, nothing fine-tuned",
}
_BINS = 32
_FRAME = 0.06  # share of the side that counts as border


def controls(run: Run, names: Sequence[Control], *, seed: int = 0) -> dict[str, Predictions]:
    """Predictions of controls for the run's test parts, each a logistic regression fitted on the same training parts.

    Parameters
    ----------
    run : Run
    names : sequence of str
        ``covariates``: age, sex, site and what else the table carries; ``header``: scanner and protocol;
        ``geometry``: rows, columns, slices and spacing before preparation (each left out where nothing is known
        or nothing differs); ``border``: grey values of the outermost frame; ``corners``: where markers and text
        stand; ``histogram``: how often each grey value occurs;
        ``random_weights``: the same network without pretraining; ``frozen``: the pretrained network, nothing
        fine-tuned (left out where the run itself is that).
    seed : int
        Of the inner folds and the untrained weights.
    """
    found = {}
    for name in names:
        features = _features(run, name, seed)
        if features is not None:
            found[NAMES[name]] = concatenate(_fit(run, features, seed))
    return found


def _fit(run: Run, features: NDArray[np.floating], seed: int) -> list[Predictions]:
    cohort, parts = run.cohort, []
    for number, fold in enumerate(run.split.folds):
        train = list(fold.train)
        model = fit_linear(
            features[train], cohort.references[train], cohort.patients[train], len(cohort.classes), task=cohort.task,
            seed=seed,
        )  # fmt: skip
        parts.append(run.predictions(fold.test, model.says(features[list(fold.test)]), number, "test"))
    return parts


def _features(run: Run, name: Control, seed: int) -> NDArray[np.floating] | None:
    everyone = range(len(run.cohort))
    if name == "covariates":
        return covariate_features(run.cohort)
    if name == "header":
        return header_features(run.cohort)
    if name == "geometry":
        return geometry_features(run.cohort, cache=run.prepared.cache)
    run.prepared.load(everyone)
    looks = {"histogram": histogram, "border": border, "corners": corners}
    if name in looks:
        return np.stack([_over_images(looks[name], run.prepared.one(i), run.cohort.bags) for i in everyone])
    if name == "frozen":  # left out where the run itself is that
        return start_features(run) if (run.folder / "start.safetensors").is_file() else None
    from medtransfer.model import restart

    description = run.model(0).description
    if str(description.weights.get("name", "")).startswith("random/"):
        return None  # the run itself is that
    untrained = restart(description, seed=seed)
    return pooled(frozen_features(untrained, run.prepared, everyone, device=run.device, progress=run.progress))


def _over_images(
    look: Callable[[NDArray[np.float32]], NDArray[np.float64]], array: NDArray[np.float32], bags: int
) -> NDArray[np.float64]:
    """What a look gives, averaged over the images of a bag."""
    if not bags:
        return look(array)
    there = ~np.isnan(array.reshape(*array.shape[:2], -1)[0, :, 0])
    found: NDArray[np.float64] = np.mean([look(array[:, i]) for i in np.flatnonzero(there)], axis=0)
    return found


def histogram(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shares of 32 equal grey-value bins of each channel of ``[channels, ...]`` in [0, 1].

    Examples
    --------
    >>> histogram(np.zeros((1, 4, 4), np.float32))[:2].tolist()
    [1.0, 0.0]
    """
    return np.concatenate([np.histogram(c, _BINS, (0, 1))[0] / c.size for c in array])


def border(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Histograms of the four sides of the outermost frame of each (middle) plane.

    Examples
    --------
    >>> border(np.zeros((1, 50, 50), np.float32)).shape
    (32,)
    """
    plane = array[:, array.shape[1] // 2] if array.ndim == 4 else array
    rows, cols = (max(1, round(_FRAME * s)) for s in plane.shape[1:])
    sides = (plane[:, :rows], plane[:, -rows:], plane[:, :, :cols], plane[:, :, -cols:])
    return np.concatenate([np.histogram(s, 8, (0, 1))[0] / s.size for s in sides])


def covariate_features(cohort: Cohort) -> NDArray[np.float64] | None:
    """Every covariate of the table as numbers and indicators; None where nothing is known or nothing differs."""
    names = sorted({key for case in cohort for key in case.covariates})
    return coded({name: [case.covariates.get(name, "") for case in cohort] for name in names})
