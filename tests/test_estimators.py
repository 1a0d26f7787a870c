"""The scikit-learn face behaves like a scikit-learn classifier."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from small_cohorts import blobs

from medtransfer import Prepare, Recipe
from medtransfer.errors import CohortError
from medtransfer.estimators import TransferClassifier


def classifier(**changes):
    return TransferClassifier("random/resnet18", until="layer1", prepare=Prepare(size=40, scale="range"), **changes)


def data(n=60):
    cohort = blobs(n)
    images = np.stack([c.image for c in cohort.cases])
    return images, np.array(["no", "yes"])[cohort.labels], cohort.patients, cohort


def test_cloning_and_parameters():
    first = classifier(seed=3, recipe=Recipe(method="logistic"))
    second = clone(first)
    assert second.get_params() == first.get_params()
    assert second.set_params(seed=4).seed == 4
    assert first.seed == 3


def test_arrays_paths_and_cohorts_give_the_same(tmp_path):
    from PIL import Image

    pytest.importorskip("medtransfer.io.raster", reason="files are read by the io room")
    images, labels, patients, cohort = data()
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    chances = []
    for x in (images, paths):
        fitted = classifier().fit(x, labels, groups=patients)
        chances.append(fitted.predict_proba(x))
        assert fitted.classes_.tolist() == ["no", "yes"]
    assert np.allclose(*chances, atol=1e-6)
    assert np.allclose(chances[0].sum(1), 1)
    whole = classifier().fit(cohort)
    assert set(whole.predict(cohort)) <= set(cohort.classes)
    assert classifier().fit(images, labels, patients).score(images, labels) > 0.8


def test_cross_validation_with_groups():
    images, labels, patients, _ = data()
    scores = cross_val_score(classifier(), images, labels, groups=patients, cv=GroupKFold(3))
    assert scores.shape == (3,)
    assert scores.mean() > 0.55


def test_numbers_must_agree():
    with pytest.raises(CohortError, match="differ in number"):
        classifier().fit(np.zeros((3, 8, 8), np.uint8), ["a", "b"])
