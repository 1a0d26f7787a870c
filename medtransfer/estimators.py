"""A scikit-learn face: fit on arrays, paths or cases, predict, clone, cross-validate with groups."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from medtransfer.augment import Augment
from medtransfer.cohort import Case, Cohort
from medtransfer.dataset import Prepared
from medtransfer.errors import CohortError
from medtransfer.fit import fit
from medtransfer.model import Model, load_model
from medtransfer.predict import probabilities
from medtransfer.prepare import Prepare
from medtransfer.recipe import Recipe
from medtransfer.split import split_by_patient

Images = Cohort | Sequence[Any] | NDArray[Any]


class _Transfer(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the network, its preparation, and how a cohort is fitted."""

    def __init__(
        self,
        weights: str = "imagenet/resnet18",
        *,
        arch: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        until: str | None = None,
        pool_from: Sequence[str] | None = None,
        pool: str = "mean",
        prepare: Prepare | None = None,
        recipe: Recipe | None = None,
        augment: Augment | None = None,
        val: float = 0.15,
        out: str | None = None,
        seed: int = 0,
        accelerator: str = "auto",
    ) -> None:
        self.weights, self.arch, self.mean, self.std = weights, arch, mean, std
        self.until, self.pool_from, self.pool = until, pool_from, pool
        self.prepare, self.recipe, self.augment = prepare, recipe, augment
        self.val, self.out, self.seed, self.accelerator = val, out, seed, accelerator

    def _learn(self, cohort: Cohort) -> None:
        recipe = self.recipe or Recipe.for_size(len(cohort), self._prepare().dims)  # type: ignore[arg-type]
        val = 0.0 if recipe.method == "logistic" else self.val
        split = split_by_patient(cohort, val=val, test=0.0, seed=self.seed)
        with tempfile.TemporaryDirectory() as folder:
            run = fit(
                self._model(cohort),
                cohort,
                split,
                self._prepare(),
                recipe,
                out=self.out or Path(folder) / "run",
                augment=self.augment,
                seed=self.seed,
                accelerator=self.accelerator,
                progress=False,
            )
            self.model_, self.n_features_in_ = run.model(0), 1

    def _say(self, images: Images) -> NDArray[np.float64]:
        check_is_fitted(self, "model_")
        prepared = Prepared(_cases(images, None), self._prepare(), progress=False)
        return probabilities(self.model_, prepared, range(len(prepared.cases)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    def _prepare(self) -> Prepare:
        return self.prepare or Prepare()

    def _model(self, cohort: Cohort) -> Model:
        first = cohort.cases[0].pieces()[0]
        channels = self._prepare()(first.read(), where=first.alias).shape[0]
        return load_model(
            self.weights,
            dims=self._prepare().dims,  # type: ignore[arg-type]
            in_channels=channels,
            classes=len(cohort.classes),
            task=cohort.task,
            arch=self.arch,
            mean=self.mean,
            std=self.std,
            until=self.until,
            pool_from=self.pool_from,
            pool=self.pool,  # type: ignore[arg-type]
            seed=self.seed,
        )


class TransferClassifier(ClassifierMixin, _Transfer):  # type: ignore[misc]
    """A pretrained network as a scikit-learn classifier.

    Parameters
    ----------
    weights : str
        As in :func:`medtransfer.load_model`.
    arch, mean, std, until, pool_from, pool
        As there; the architecture and normalisation of a weights file.
    prepare : Prepare or None
        How images are prepared; None resizes to 224 pixels between two percentiles.
    recipe : Recipe or None
        None chooses by the number of cases.
    augment : Augment or None
        How training images vary.
    val : float
        Share of the cases, whole patients, on which training stops; not used by method ``logistic``.
    out : str or None
        The run folder, for going on after an interruption; None uses a folder that is removed.
    seed : int
    accelerator : str

    Attributes
    ----------
    classes_ : ndarray
        Labels in the order of the columns of :meth:`predict_proba`.
    model_ : Model

    Examples
    --------
    >>> images = np.random.default_rng(0).random((12, 40, 40)).astype(np.float32)
    >>> labels = np.repeat(["no", "yes"], 6)
    >>> images[6:] += 1
    >>> classifier = TransferClassifier("random/resnet18", until="layer1", prepare=Prepare(size=32, scale=(0, 2)))
    >>> classifier.fit(images, labels).predict(images[[0, 11]]).tolist()
    ['no', 'yes']
    """

    def fit(
        self, X: Images, y: Sequence[Any] | NDArray[Any] | None = None, groups: Sequence[Any] | None = None
    ) -> TransferClassifier:
        """Train on images and labels.

        Parameters
        ----------
        X : ndarray, sequence of arrays or paths, or Cohort
            Images ``[rows, cols]`` or ``[rows, cols, 3]``, volumes ``[x, y, z]``, or files. A cohort brings its
            own labels and patients.
        y : sequence or None
            Labels of any comparable type.
        groups : sequence or None
            Patient of each image; None counts each image as a patient.
        """
        if isinstance(X, Cohort) and y is None:
            names, codes = np.array(X.classes), X.labels
        else:
            names, codes = np.unique(np.asarray(y), return_inverse=True)
        cases = _cases(X, groups)
        if len(cases) != len(codes):
            raise CohortError("images and labels differ in number", got=f"{len(cases)} and {len(codes)}")
        labelled = tuple(replace(c, label=int(k)) for c, k in zip(cases, codes, strict=True))
        cohort = Cohort(labelled, tuple(str(n) for n in names))
        self._learn(cohort)
        self.classes_ = names
        return self

    def predict_proba(self, X: Images) -> NDArray[np.float64]:
        """Probabilities ``[n, classes]`` in the order of ``classes_``."""
        return self._say(X)

    def predict(self, X: Images) -> NDArray[Any]:
        """The likeliest label of each image."""
        found: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(1)]
        return found


class TransferRegressor(RegressorMixin, _Transfer):  # type: ignore[misc]
    """A pretrained network as a scikit-learn regressor of one or several numbers an image.

    Parameters
    ----------
    weights, arch, mean, std, until, pool_from, pool, prepare, recipe, augment, val, out, seed, accelerator
        As for :class:`TransferClassifier`; method ``logistic`` is a ridge regression on frozen features.

    Attributes
    ----------
    model_ : Model

    Examples
    --------
    >>> images = np.random.default_rng(0).random((30, 40, 40)).astype(np.float32)
    >>> values = np.linspace(0, 3, 30)
    >>> images += values[:, None, None].astype(np.float32)
    >>> regressor = TransferRegressor("random/resnet18", until="layer1", prepare=Prepare(size=32, scale=(0, 4)))
    >>> bool(regressor.fit(images, values).score(images, values) > 0.9)
    True
    """

    def fit(
        self, X: Images, y: Sequence[Any] | NDArray[Any] | None = None, groups: Sequence[Any] | None = None
    ) -> TransferRegressor:
        """Train on images and numbers.

        Parameters
        ----------
        X : ndarray, sequence of arrays or paths, or Cohort
            As for :class:`TransferClassifier`; a cohort brings its own targets and patients.
        y : sequence (n,) or (n, targets) or None
            In any unit; NaN where a target is unknown.
        groups : sequence or None
            Patient of each image; None counts each image as a patient.
        """
        if isinstance(X, Cohort) and y is None:
            cohort = X
        else:
            values = np.asarray(y, dtype=np.float64)
            cases, columns = _cases(X, groups), values.reshape(len(values), -1)
            if len(cases) != len(columns):
                raise CohortError("images and targets differ in number", got=f"{len(cases)} and {len(columns)}")
            told = tuple(replace(c, target=tuple(map(float, row))) for c, row in zip(cases, columns, strict=True))
            names = tuple(f"target {i + 1}" for i in range(columns.shape[1]))
            cohort = Cohort(told, names, task="regression")
        self._learn(cohort)
        return self

    def predict(self, X: Images) -> NDArray[np.float64]:
        """The value of each image, shape (n,), or (n, targets) where there are several."""
        found = self._say(X)
        return found[:, 0] if found.shape[1] == 1 else found


def _cases(images: Images, groups: Sequence[Any] | None) -> tuple[Case, ...]:
    """Cases of whatever holds images; each its own patient unless groups say otherwise."""
    if isinstance(images, Cohort):
        return images.cases
    found = []
    for i, image in enumerate(images):
        if isinstance(image, Case):
            found.append(image)
            continue
        held = Path(image) if isinstance(image, str | Path) else np.asarray(image)
        found.append(Case(f"{i}", f"{i}" if groups is None else f"{groups[i]}", held))
    return tuple(found)
