"""The scikit-learn face behaves like a scikit-learn classifier."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from small_cohorts import blobs

from medtransfer import Prepare, Recipe
from medtransfer.errors import CohortError
from medtransfer.estimators import TransferClassifier, TransferRegressor


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


def brighter(n=60, seed=0):
    """Images whose brightness is the target, two of a patient."""
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.uniform(0, 100, n // 2), 2)
    images = rng.integers(0, 60, (n, 40, 40)) + values[:, None, None]
    return images.astype(np.uint8), values, np.repeat(np.arange(n // 2), 2)


def regressor(**changes):
    return TransferRegressor("random/resnet18", until="layer1", prepare=Prepare(size=40, scale="range"), **changes)


def test_a_regressor_in_units_of_the_target_and_cross_validated_by_patient():
    images, values, patients = brighter()
    fitted = regressor().fit(images, values * 1000 + 5e5, groups=patients)
    assert fitted.predict(images).shape == (60,)
    assert np.corrcoef(fitted.predict(images), values)[0, 1] > 0.95
    assert 5e5 - 2e4 < fitted.predict(images).mean() < 6e5 + 2e4
    scores = cross_val_score(regressor(), images, values, groups=patients, cv=GroupKFold(3))
    assert scores.shape == (3,)
    assert scores.mean() > 0.5
    two = regressor().fit(images, np.c_[values, -values], patients).predict(images)
    assert two.shape == (60, 2)
    assert np.corrcoef(two[:, 0], two[:, 1])[0, 1] < -0.9
    with pytest.raises(CohortError, match="differ in number"):
        regressor().fit(images, values[:5])


@pytest.mark.parametrize("make", [classifier, regressor])
def test_scikit_learns_own_checks(make):
    """Those that need no table of numbers: images are no table."""
    from sklearn.utils import estimator_checks as own

    name, estimator = type(make()).__name__, make()
    assert not estimator.__sklearn_tags__().input_tags.two_d_array
    for check in (own.check_estimator_cloneable, own.check_estimator_repr, own.check_estimator_tags_renamed,
                  own.check_get_params_invariance, own.check_set_params, own.check_no_attributes_set_in_init,
                  own.check_valid_tag_types, own.check_parameters_default_constructible):  # fmt: skip
        check(name, estimator)
